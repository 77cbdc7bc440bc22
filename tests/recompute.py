"""Recompute what a run recorded of an epoch: `python tests/recompute.py DIRECTORY [--eid n]`.

From the stored weights and the data alone: an own forward pass in float64 NumPy, an own loss in mpmath at 50 digits.
Prints rho, q_min and log_loss as recorded and recomputed, and their relative deviations. For networks of
convolutions, pools and fully connected layers with relu; no batch norm.
"""

import argparse
import sys
from pathlib import Path

import mpmath
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results
from data import loading
from storage.run_flags import stored

mpmath.mp.dps = 50


def conv(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Stride 1, SAME: x [N, h, w, cin], weight [kh, kw, cin, cout]."""
    (kh, kw), (h, w) = weight.shape[:2], x.shape[1:3]
    before = (kh - 1) // 2, (kw - 1) // 2
    padded = np.pad(x, ((0, 0), (before[0], kh // 2), (before[1], kw // 2), (0, 0)))
    return sum(padded[:, i : i + h, j : j + w] @ weight[i, j] for i in range(kh) for j in range(kw))


def pool(x: np.ndarray, reduce) -> np.ndarray:
    """2x2, stride 2, VALID."""
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return reduce(x[:, :h, :w].reshape(len(x), h // 2, 2, w // 2, 2, -1), (2, 4))


def logits(description: list, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """float64 [N, C] of pixels in [0, 1]."""
    k = 0
    for kind, *args in description:
        if kind in "PA":
            x = pool(x, np.max if kind == "P" else np.mean)
            continue
        overrides = args[-1] if isinstance(args[-1], dict) else {}
        weight = weights[f"layer{k}/weight"].astype(np.float64)
        x = conv(x, weight) if kind == "C" else x.reshape(len(x), -1) @ weight
        x = x + weights.get(f"layer{k}/bias", np.zeros(1)).astype(np.float64)
        x = np.maximum(x, 0) if overrides.get("act", True) else x
        k += 1
    return x


def recomputed(directory: str, eid: int) -> dict[str, float]:
    """rho, q_min and log_loss of a stored epoch of a run."""
    flags = stored(directory)
    (x, y), _ = dataset = loading.load(
        flags["dataset"], flags["data_dir"], None if flags["train_N"] == "all" else flags["train_N"]
    )
    weights = dict(results.load_weights(directory, eid))
    z = logits(flags["model"]["description"], weights, x * dataset.scale)
    own = z[np.arange(len(y)), y]
    z[np.arange(len(y)), y] = -np.inf
    gaps = z - own[:, None]
    losses = [mpmath.log1p(mpmath.fsum(mpmath.exp(mpmath.mpf(v)) for v in row if v > -np.inf)) for row in gaps]
    counted = [w for name, w in weights.items() if name.endswith("weight") or name == "layer0/bias"]
    return {
        "rho": float(np.sqrt(sum((w.astype(np.float64) ** 2).sum() for w in counted))),
        "q_min": float(-gaps.max(axis=1).max()),
        "log_loss": float(mpmath.log(mpmath.fsum(losses) / len(losses))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--eid", type=int, help="default: the last stored epoch")
    args = parser.parse_args()
    eid = args.eid or results.stored_eids(args.directory)[-1]
    recorded = results.load(args.directory)["raw"][eid]["stats"]
    print(f"epoch {eid} of {args.directory}")
    for name, value in recomputed(args.directory, eid).items():
        off = abs(recorded[name] - value) / abs(value)
        print(f"{name:9} recorded {recorded[name]:.12g}, recomputed {value:.12g}, relative deviation {off:.1e}")


if __name__ == "__main__":
    main()
