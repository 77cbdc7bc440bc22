"""What hessian-eigenthings and adv-lib find of an MLP: python tests/torch_reference.py IN.npz OUT.npz.

A process of its own: PyTorch's and TensorFlow's libraries crash one another in one. IN has W, b, V, c (as x W + b),
images [N, 64], labels, start (a vector over W, b, V, c) and eps; OUT what `torch_test.py` compares.
"""

import sys

import hessian_eigenthings
import numpy as np
import torch
from adv_lib import attacks


def main(source: str, target: str) -> None:
    given = dict(np.load(source))
    shapes = [given[name].shape for name in "WbVc"]
    network = torch.nn.Sequential(torch.nn.Linear(*shapes[0]), torch.nn.ReLU(), torch.nn.Linear(*shapes[2])).double()
    with torch.no_grad():
        for parameter, name in zip(network.parameters(), "WbVc", strict=True):
            parameter.copy_(torch.tensor(given[name].T))
    x, y = torch.tensor(given["images"]).double(), torch.tensor(given["labels"].astype(np.int64))
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def turned(flat: np.ndarray, back: bool = False) -> np.ndarray:
        """A vector over the weights in the other library's order: in PyTorch's a matrix is transposed."""
        parts = zip(np.split(flat, ends), shapes, strict=True)
        return np.concatenate([part.reshape(s[::-1] if back else s).T.ravel() for part, s in parts])

    def spectrum(operator, name: str) -> dict[str, np.ndarray]:
        start = torch.tensor(turned(given["start"]))
        tridiagonal = hessian_eigenthings.lanczos_tridiagonal(operator, start, 12)
        largest = hessian_eigenthings.lanczos(
            operator, k=3, which="LA", max_iter=120, seed=0, reorthogonalize=True
        ).eigenvalues.detach()
        return {
            f"{name} product": turned(operator.matvec(start).detach().numpy(), back=True),
            f"{name} largest": np.sort(largest.numpy())[::-1],
            f"{name} diagonal": tridiagonal.alphas.detach().numpy(),
            f"{name} off": tridiagonal.betas.detach().numpy()[:11],
        }

    loss = torch.nn.functional.cross_entropy
    hessian = hessian_eigenthings.HessianOperator(network, [(x, y)], hessian_eigenthings.supervised_loss(loss))
    gauss_newton = hessian_eigenthings.GGNOperator(
        *(network, [(x, y)], hessian_eigenthings.supervised_forward),
        hessian_eigenthings.supervised_loss_of_output(loss),
    )
    found = spectrum(hessian, "hessian") | spectrum(gauss_newton, "gauss_newton")
    network.float()
    x, y = x[:100].float(), y[:100]
    for order in (1, 2, np.inf):
        first = 1.0 if order == 2 else 10.0
        found[f"fmn {order}"] = attacks.fmn(network, x, y, norm=order, steps=100, α_init=first).numpy()
    for eps in given["eps"]:
        found[f"apgd {eps}"] = attacks.apgd(network, x, y, eps=float(eps), norm=float("inf"), n_iter=100).numpy()
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
