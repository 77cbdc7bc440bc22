"""Attack a whole set in batches, with every finished batch on the disk, and sum up what came out.

While it runs, an epoch's results stand in `eid-<epoch>.npy`, a memory-mapped structured array with one
record an image; a batch's records are written once, their `done` last. At the end all epochs are
gathered into `res`, and the arrays go.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from attacks import certificate
from attacks.base import Attack, padded
from results import UserError

# Batches attacked at once on a CPU: what runs on one thread in one of them is filled up by the other.
WORKERS = 2


def open_records(path: Path, n: int, image_shape: tuple) -> np.memmap:
    """The records of n images, those of a run that was interrupted, or new ones with nothing done.

    Raises: UserError when the file is damaged or another run's.
    """
    fields = [
        ("image", np.float32, image_shape),  # the adversarial example
        ("error", np.float64),
        ("success", bool),
        ("clean_correct", bool),
        ("certified", np.float64),
        ("done", bool),
    ]
    if not path.exists():
        new = path.with_name(f".{path.name}.tmp")  # killed while it is made, it would look damaged
        try:
            np.lib.format.open_memmap(new, "w+", np.dtype(fields), (n,)).flush()
            if hasattr(os, "posix_fallocate"):  # a disk that is full later would kill the process at a page
                with open(new, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, new.stat().st_size)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        new.replace(path)
    try:
        records = np.lib.format.open_memmap(path, "r+")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and this epoch is attacked anew") from None
    if records.dtype != np.dtype(fields) or records.shape != (n,):
        raise UserError(f"{path}: holds other results; delete it, and this epoch is attacked anew")
    return records


def attack_set(
    attack: Attack,
    model,
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    records: np.memmap,
    batch: int,
    target: str | int | None = None,
    eps_list: tuple[float, ...] | None = None,
    certify: bool = True,
    tick: Callable[[float], None] = lambda images: None,
    workers: int = WORKERS,
) -> None:
    """Attack every image that is not done yet; records are filled batch by batch.

    An example counts as a success only if the network, evaluated afresh, misclassifies it (or with a
    target: puts it into the target class). Images for which that holds already are not attacked.

    Args:
      images: integer pixels [N, h, w, c]; labels: int32 [N]; indices: their numbers in the set.
      records: of `open_records`.
      target: 'next' (the class after the label) or a class; None to leave the label's.
      eps_list: of an L-infinity attack, whose error is the smallest of these that holds the example.
      certify: whether to compute the certificate too.
      tick: called with how many more images are done, in parts of one; may raise, which ends the attack
        when the batches under way have noticed.
    """
    lipschitz = None
    if certify:
        lipschitz = certificate.lipschitz(model.specs, model.effective_weights(), model.act_type)
    n_classes = model.n_classes

    def one_batch(first: int) -> None:
        where = slice(first, first + batch)
        x, y = model.pixels(images[where]).numpy(), labels[where]
        clean = model.logits(x).numpy()
        goal = y if target is None else (y + 1) % n_classes if target == "next" else np.full_like(y, target)

        def wanted(logits):
            return (logits.argmax(axis=1) == goal) == (target is not None)

        found = x.copy()
        todo = np.flatnonzero(~wanted(clean))
        ticked = 0.0

        def attack_tick(part):
            nonlocal ticked
            tick((part - ticked) * len(todo))
            ticked = part

        if len(todo):
            rows = padded(todo)
            found[todo] = attack(x[rows], goal[rows], indices[where][rows], attack_tick)[: len(todo)]
        success = wanted(model.logits(found).numpy())
        found[~success] = x[~success]
        record = records[where]
        record["image"], record["success"] = found, success
        record["clean_correct"] = clean.argmax(axis=1) == y
        record["error"] = np.where(success, errors(found, x, eps_list), 1.0 if eps_list else np.inf)
        record["certified"] = certificate.certified(clean, y, *lipschitz) if certify else 0.0
        records.flush()
        record["done"] = True
        records.flush()
        tick(len(x) - ticked * len(todo))

    todo = [
        first for first in range(0, len(images), batch) if not records["done"][first : first + batch].all()
    ]
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(one_batch, first) for first in todo]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def errors(
    adversarial: np.ndarray, images: np.ndarray, eps_list: tuple[float, ...] | None = None
) -> np.ndarray:
    """Squared L2 distances, float64 [B]; with eps_list the smallest of these that holds the example, or 1."""
    difference = adversarial.astype(np.float64) - images
    if eps_list is None:
        return (difference**2).sum(axis=(1, 2, 3))
    eps = np.sort(np.append(np.asarray(eps_list, np.float64), 1.0))
    # Rounded to float32, a pixel may lie outside by half a unit in its last place.
    return eps[np.searchsorted(eps + 1e-6, np.abs(difference).max(axis=(1, 2, 3)))]


def summary(records: np.ndarray, eps_list: tuple[float, ...], linf: bool) -> dict:
    """What a set's results come to.

    `robust_acc` {eps: part of all images that are classified right and have no example within eps};
    the median is over all images, one without an example being at infinite distance (L-infinity: 1);
    the mean is over those with one. A misclassified image is at distance 0.
    """
    distance = records["error"] if linf else np.sqrt(records["error"])
    distance = np.where(records["clean_correct"], distance, 0.0)
    finite = distance[records["success"]]
    robust = {
        str(eps): float((records["clean_correct"] & (~records["success"] | (distance > eps))).mean())
        for eps in eps_list
    }
    return {
        "n": len(records),
        "clean_acc": float(records["clean_correct"].mean()),
        "success": float(records["success"].mean()),
        "median": float(np.median(distance)),
        "mean": float(finite.mean()) if len(finite) else float("inf"),
        "certified_median": float(np.median(records["certified"])),
        "robust_acc": robust,
    }
