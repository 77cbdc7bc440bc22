"""Random labels, and the statistics of images (arXiv 1801.02254, section IV)."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data.formats import Dataset
from data.loading import SOURCES
from support.errors import UserError
from support.files import arrays_of, parsed, read_bytes, replace_atomically

RANDOM_LABELS_SEED = 0


def input_statistics(dataset: Dataset) -> tuple[tuple, tuple]:
    """Return mean and standard deviation of the training pixels in [0, 1], per channel: published, or measured."""
    source = SOURCES.get(dataset.name)
    if source is not None and source.statistics is not None:
        return source.statistics
    (x, _), _ = dataset
    levels = np.arange(256) * dataset.scale
    counts = [np.bincount(x[..., c].ravel(), minlength=256) / x[..., c].size for c in range(x.shape[-1])]
    mean = [float(p @ levels) for p in counts]
    std = [float(np.sqrt(p @ (levels - m) ** 2)) or 1.0 for p, m in zip(counts, mean, strict=True)]
    return tuple(mean), tuple(std)


def draw_random_labels(labels: np.ndarray, n_classes: int = 10, seed: int = RANDOM_LABELS_SEED) -> np.ndarray:
    """Replace each label, with probability 1/2, by a uniform draw from all classes; int32 [N]."""
    rng = np.random.default_rng([seed, len(labels)])
    replaced = rng.random(len(labels)) < 0.5
    return np.where(replaced, rng.integers(0, n_classes, len(labels)), labels).astype(np.int32)


def save_random_labels(path: Path, labels: np.ndarray, seed: int, natural: np.ndarray | None = None) -> None:
    """Store labels [N], and a checksum of the natural ones, int32 [N], that they replace (None: any).

    Raises: OSError when the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"labels": labels, "seed": seed}
    if natural is not None:
        arrays["natural_crc32"] = zlib.crc32(natural.data)
    replace_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def with_labels_of(dataset: Dataset, path: Path) -> Dataset:
    """Return the dataset with the training labels of a file. Raises: UserError for labels that do not fit it."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with ./run.sh make_random_labels") from None

    def labels_and_crc(content):
        arrays = arrays_of(content)
        return arrays["labels"], int(arrays["natural_crc32"]) if "natural_crc32" in arrays else None

    otherwise = "delete it and make it again with make_random_labels"
    labels, natural_crc32 = parsed(content, labels_and_crc, f"{path}: not a file of labels", otherwise)
    (x, y), test = dataset
    if labels.shape != y.shape or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: {labels.dtype} labels {list(labels.shape)}, but {dataset.name} has {len(y)} training "
            "examples here; make labels for these with make_random_labels (and the same --train_N)"
        )
    if labels.min() < 0 or labels.max() >= dataset.n_classes:
        raise UserError(
            f"{path}: labels from {labels.min()} to {labels.max()}; expected 0 to {dataset.n_classes - 1}"
        )
    if natural_crc32 not in (None, zlib.crc32(y)):
        raise UserError(
            f"{path}: made for other data than these of {dataset.name}; "
            "give another --random_labels, or delete it and make it again with make_random_labels"
        )
    if len(np.unique(labels)) < 2:
        raise UserError(f"{path}: all labels are {labels[0]}; {otherwise}, for at least two classes")
    return Dataset((x, labels.astype(np.int32)), test, dataset.name, dataset.scale)
