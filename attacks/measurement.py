"""Attack images block by block, and summarize the results.

While an attack runs, an epoch's results are in `eid-<epoch>.npy`, a memory-mapped structured array of one record per
image with its CRC-32; a block's records are written once, their `done` last. At the end all epochs are gathered into
`res`, and the arrays are removed.
"""

import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from attacks.base import Attack
from attacks.certificate import Certifier
from catalogue.attacks import L1, L2, LINF, Method
from storage import migrate
from support.errors import UserError, reason
from support.screen import Update, ignore, within


def padded_size(n: int) -> int:
    """Return the next of 1, 2, 4, 8, 16, 24, 32, 48, 64, ...: the pool's gradient is compiled for each batch size, so
    few sizes are used."""
    size = 1 << max(n - 1, 0).bit_length()
    return size * 3 // 4 if size >= 32 and n <= size * 3 // 4 else size


def padded(rows: np.ndarray) -> np.ndarray:
    """Pad row numbers, int [n], n >= 1, to a batch of `padded_size` with the last one."""
    return np.concatenate([rows, np.full(padded_size(len(rows)) - len(rows), rows[-1])])


RESULTS = ("image", "error", "success", "clean_correct", "certified")


def open_records(path: Path, n: int, image_shape: tuple) -> np.memmap:
    """Open the records of n images: those of an interrupted attack, or new ones with nothing done.

    Raises: UserError when the file is damaged or another run's.
    """
    fields = [
        ("image", np.float32, image_shape),  # the adversarial example
        ("error", np.float64),
        ("success", bool),
        ("clean_correct", bool),
        ("certified", np.float64),
        ("crc", np.uint32),  # of the numbers above
        ("done", bool),
    ]
    otherwise = "delete it, and this epoch is attacked again"
    if not path.exists():
        new = path.with_name(f".{path.name}.tmp")  # a kill must not leave an incomplete file
        try:
            np.lib.format.open_memmap(new, "w+", np.dtype(fields), (n,)).flush()
            if hasattr(os, "posix_fallocate"):  # otherwise a disk that fills up later kills the process by a signal
                with open(new, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, new.stat().st_size)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        new.replace(path)
    try:
        migrate.records(path, np.dtype(fields), crc_of)
        records = np.lib.format.open_memmap(path, "r+")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {reason(error)}") from None
    except Exception as error:  # a damaged header can raise nearly anything
        raise UserError(f"{path}: damaged ({type(error).__name__}); {otherwise}") from None
    if records.dtype != np.dtype(fields) or records.shape != (n,):
        raise UserError(f"{path}: holds other results; {otherwise}")
    for k in np.flatnonzero(records["done"]):
        if records["crc"][k] != crc_of(records[k]):
            raise UserError(f"{path}: damaged: the record of image {k} has a wrong CRC; {otherwise}")
    return records


def crc_of(record: np.void) -> int:
    """Return the CRC-32 of a record's numbers."""
    crc = 0
    for name in RESULTS:
        crc = zlib.crc32(np.ascontiguousarray(record[name]).tobytes(), crc)
    return crc


def store(records: np.memmap, first: int, found: dict[str, np.ndarray]) -> None:
    """Write the results of `attack_block` for images first, first + 1, ...; `done` last."""
    block = records[first : first + len(found["image"])]
    for name, values in found.items():
        block[name] = values
    block["crc"] = [crc_of(record) for record in block]
    records.flush()
    block["done"] = True
    records.flush()


def attack_block(
    attack: Attack,
    model: Any,
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    target: str | int | None = None,
    norm: str = L2,
    eps_list: tuple[float, ...] | None = None,
    certifier: Certifier | None = None,
    update: Update = ignore,
) -> dict[str, np.ndarray]:
    """Attack some images together.

    An example is a success only if the network, evaluated again, misclassifies it (with a target: classifies it as
    the target). Images for which that already holds are not attacked.

    Args:
      images: integer pixels [B, h, w, c]; labels: int32 [B]; indices: their numbers in the set.
      target: 'next' (the class after the label) or a class; None: any class but the label.
      norm: of the distances.
      eps_list: of an attack on a grid of eps; its error is the smallest of these that contains the example.
      certifier: of this norm, to compute certified bounds; None: they are 0.
      update: called with the completed fraction; may raise to end the attack.

    Returns: image float32 [B, h, w, c], error float64 [B], success, clean_correct bool [B], certified float64 [B].
    """
    x, y = model.pixels(images).numpy(), labels
    share = 0.5 if certifier and certifier.local else 1.0  # of the attack in the work, approximately
    clean = model.logits(x).numpy()
    goal = y
    if target is not None:
        goal = (y + 1) % model.n_classes if target == "next" else np.full_like(y, target)

    def wanted(logits):
        return (logits.argmax(axis=1) == goal) == (target is not None)

    found = x.copy()
    todo = np.flatnonzero(~wanted(clean))
    if len(todo):
        rows = padded(todo)
        found[todo] = attack(x[rows], goal[rows], indices[rows], within(update, 0, share))[: len(todo)]
    success = wanted(model.logits(found).numpy())
    found[~success] = x[~success]
    certified = np.zeros(len(x))
    if certifier:
        certified = certifier(x, clean, y, within(update, share, 1))
    return {
        "image": found,
        "success": success,
        "clean_correct": clean.argmax(axis=1) == y,
        "error": np.where(success, errors(found, x, norm, eps_list), 1.0 if eps_list else np.inf),
        "certified": certified,
    }


def errors(
    adversarial: np.ndarray, images: np.ndarray, norm: str = L2, eps_list: tuple[float, ...] | None = None
) -> np.ndarray:
    """Return distances in L1 or L-infinity, squared ones in L2, float64 [B]; with eps_list, its smallest radius that
    contains the example, or 1."""
    difference = np.abs(adversarial.astype(np.float64) - images)
    if eps_list is None and norm == LINF:
        return difference.max(axis=(1, 2, 3))
    if eps_list is None:
        return (difference if norm == L1 else difference**2).sum(axis=(1, 2, 3))
    eps = np.sort(np.append(np.asarray(eps_list, np.float64), 1.0))
    # Rounded to float32, a pixel may be outside by half a unit in the last place.
    return eps[np.searchsorted(eps + 1e-6, difference.max(axis=(1, 2, 3)))]


TAIL = (0, 0.1, 1, 5, 10)  # percent


def summary(
    records: np.ndarray, eps_list: tuple[float, ...], method: Method, target: str | int | None = None
) -> dict:
    """Summarize the results of a set.

    `robust_acc` is {eps: fraction of all images without an example within eps}. The median is over all images, the
    mean over those with an example. `tail` is {percent: quantile of the distances of all images}, 0 being the
    minimum: the normalized margin is that of the worst example, so this is where it can be seen. Distances:
    `Method.distances`.

    Args:
      records: of `open_records`. eps_list, target: the flags.
    """
    distance = method.distances(records["error"], records["clean_correct"], target)
    finite = distance[records["success"]]
    robust = {str(eps): float(((distance > eps) | (~records["success"] & (distance > 0))).mean()) for eps in eps_list}
    return {
        "n": len(records),
        "clean_acc": float(records["clean_correct"].mean()),
        "success": float(records["success"].mean()),
        "median": float(np.median(distance)),
        "mean": float(finite.mean()) if len(finite) else float("inf"),
        # Not interpolated, so that it is a distance of an image: between a found one and infinity there is none.
        "tail": {str(k): float(np.quantile(distance, k / 100, method="inverted_cdf")) for k in TAIL},
        "certified_median": float(np.median(records["certified"])),
        "robust_acc": robust,
    }


def summary_line(found: dict, method: Method) -> str:
    """Return the summary of an epoch on one line."""
    robust = " ".join(f"{eps}:{part:.2%}" for eps, part in found["robust_acc"].items())
    distance = method.distance
    return (
        f"success={found['success']:.2%} clean_acc={found['clean_acc']:.2%} "
        f"median_{distance}={found['median']:.4f} mean_{distance}={found['mean']:.4f} "
        f"certified_median={found['certified_median']:.4g} robust_acc {robust}"
    )


def summary_table(summaries: dict[int, dict]) -> list[str]:
    """Return one line per epoch: its normalized margin next to the medians of certified bound and distance."""
    columns = " ".join(f"{name:>8}" for name in ("min", "1 %", "median", "mean"))
    lines = [f"{'epoch':>8} {'log10_loss':>12} {'q_bar_min':>12} {'certified':>10} {columns}"]
    for eid, s in summaries.items():
        log10_loss = "-" if s["log_loss"] is None else f"{s['log_loss'] / math.log(10):.4f}"
        q_bar_min = "-" if s["q_bar_min"] is None else f"{s['q_bar_min']:.4e}"
        certified = f"{s['certified_median']:.4g}"
        distances = (s["tail"]["0"], s["tail"]["1"], s["median"], s["mean"])
        shown = " ".join(f"{distance:8.4f}" for distance in distances)
        lines.append(f"{eid:8d} {log10_loss:>12} {q_bar_min:>12} {certified:>10} {shown}")
    return lines
