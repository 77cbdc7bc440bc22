"""What each certificate proves, and its time: python bench/certificate.py RUN --eid 10,100 [--n 60].

Median radii in L2 of the first n training images that are classified right: by the product of the layers' norms, by
these with pairs of layers (`--attack_certificate norms`), and near each image (`local`).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attacks import certificate, operator_norms
from engine.context import Context
from storage.run_flags import stored


def product(model) -> tuple[float, np.ndarray]:
    """Return the constants of `certificate.lipschitz` without pairs."""
    norms = {"C": operator_norms.conv_norm, "F": lambda weight, spec: operator_norms.fc_norm(weight)}
    weighted = [spec for spec in model.specs if spec.weight_shape is not None]
    *below, last = zip(weighted, model.effective_weights(), strict=True)
    bound = np.prod([norms[spec.kind](weight, spec) for spec, weight in below])
    bound *= np.prod([operator_norms.pool_norm(spec) for spec in model.specs if spec.weight_shape is None])
    columns = last[1].T
    return float(bound), np.linalg.norm(columns[:, None] - columns, axis=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--eid", required=True)
    parser.add_argument("--n", type=int, default=60)
    options = parser.parse_args()
    context = Context(stored(options.run))
    model, (images, labels) = context.model, context.dataset[0]
    print("| epoch | product | norms | local | local over product | seconds an image |\n|---|---|---|---|---|---|")
    for eid in map(int, options.eid.split(",")):
        model.set_weights(context.stored_weights(options.run, eid))
        x, y = model.pixels(images[: options.n]).numpy(), labels[: options.n]
        z = model.logits(x).numpy()
        right = z.argmax(axis=1) == y
        x, y, z = x[right], y[right], z[right]
        plain = certificate.certified(z, y, *product(model))
        norms, local = (certificate.Certifier(model, "L2", local=way) for way in (False, True))
        radii, began = norms(x, z, y, lambda part: None), time.perf_counter()
        near = local(x, z, y, lambda part: None)
        seconds = (time.perf_counter() - began) / len(x)
        medians = " | ".join(f"{np.median(r):.4f}" for r in (plain, radii, near))
        print(f"| {eid} | {medians} | {np.median(near / plain):.2f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
