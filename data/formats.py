"""File formats of datasets: IDX (MNIST), the CIFAR batches, .npz. What is read is checked here, once."""

import gzip
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from support import safe_pickle
from support.errors import UserError
from support.files import arrays_of, parsed, read_bytes
from support.screen import log

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_FOLDER = "cifar-10-batches-py"
MOST_CLASSES = 1 << 16


class Dataset(tuple):
    """`((x_train, y_train), (x_test, y_test))` with a name and a scale.

    x: uint8 [N, h, w, c]; y: int32 [N]; scale: the factor that maps x to [0, 1].
    """

    name: str
    scale: float

    def __new__(cls, train: tuple, test: tuple, name: str, scale: float):
        self = super().__new__(cls, (train, test))
        self.name, self.scale = name, scale
        return self

    @property
    def n_classes(self) -> int:
        return 1 + max(int(y.max()) for _, y in self)


def checked(
    arrays: Sequence,
    name: str,
    where: str,
    levels: int = 255,
    shape: tuple[int, ...] | None = None,
    n_classes: int = MOST_CLASSES,
) -> Dataset:
    """Return a Dataset from raw arrays x_train, y_train, x_test, y_test.

    Args:
      where: their source, for errors. levels: the largest pixel value.
      shape: (h, w, c) of its images; None: any. n_classes: labels must be below this.

    Raises: UserError for arrays that do not fit.
    """
    x_train, y_train, x_test, y_test = arrays
    parts: list[Any] = []
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x, y = np.asarray(x), np.asarray(y)
        if not np.issubdtype(x.dtype, np.integer) or x.ndim not in (3, 4) or 0 in x.shape:
            raise UserError(
                f"{where}: x_{part} is {x.dtype} {list(x.shape)}; expected integer pixels [N, h, w] or [N, h, w, c]"
                + _conversion_of_pixels(x)
            )
        if x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[2] == x.shape[3] > 4:
            raise UserError(
                f"{where}: x_{part} is {list(x.shape)}, which looks like [N, c, h, w]; expected [N, h, w, c]: "
                "x.transpose(0, 2, 3, 1)"
            )
        if x.min() < 0 or x.max() > levels:
            raise UserError(f"{where}: x_{part} has pixels from {x.min()} to {x.max()}; expected 0 to {levels}")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
            raise UserError(
                f"{where}: y_{part} is {y.dtype} {list(y.shape)}; expected integer labels [N]"
                + _conversion_of_labels(y)
            )
        if len(x) != len(y):
            raise UserError(f"{where}: {len(x)} {part} images but {len(y)} labels; expected one per image")
        top = n_classes - 1
        if y.min() < 0 or y.max() > top:  # compared before the cast, which would wrap
            raise UserError(f"{where}: y_{part} has labels from {y.min()} to {y.max()}; expected 0 to {top}")
        x = x[..., None] if x.ndim == 3 else x
        parts.append((np.ascontiguousarray(x, np.uint8), np.ascontiguousarray(y, np.int32)))
    (a, _), (b, _) = parts
    if a.shape[1:] != b.shape[1:]:
        raise UserError(
            f"{where}: training images are {list(a.shape[1:])} but test images {list(b.shape[1:])}; expected the same"
        )
    if shape and a.shape[1:] != shape:
        raise UserError(f"{where}: images are {list(a.shape[1:])}; {name} has {list(shape)}")
    train, test = parts
    _warn_about_data(where, levels, max(a.max(), b.max()), train[1])
    return Dataset(train, test, name, 1 / levels)


def _conversion_of_pixels(x: np.ndarray) -> str:
    """Return how to convert such an array of pixels, in words; '' where that is not known."""
    if x.dtype.kind == "f" and x.size and np.isfinite(x).all() and x.min() >= 0:
        return ": " + ("(x * 255).round().astype('uint8')" if x.max() <= 1 else "x.round().astype('uint8')")
    if x.dtype.kind == "b":
        return ": x.astype('uint8'), and levels=1"
    return ""


def _conversion_of_labels(y: np.ndarray) -> str:
    if y.ndim == 2 and y.shape[1] > 1 and y.size and np.isin(y, (0, 1)).all():
        if (y.sum(axis=1) == 1).all():
            return ": y.argmax(axis=1)"
        return "; several labels of one image are not supported: choose one class, such as y[:, 0]"
    if y.ndim == 1 and y.dtype.kind in "fb" and np.isfinite(y).all() and (y == np.round(y)).all():
        return ": y.astype('int64')"
    return ""


def _warn_about_data(where: str, levels: int, largest: int, labels: np.ndarray) -> None:
    """Log a line about pixels far below their range, and about classes without an example."""
    if largest <= levels // 8:
        log.warning("warning: %s: largest pixel %d of %d; did you mean `levels=%d`?", where, largest, levels, largest)
    present = np.unique(labels)
    n_classes = int(labels.max()) + 1
    if len(present) < n_classes:
        missing = np.setdiff1d(np.arange(n_classes), present)
        listed = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        log.warning(
            "warning: %s: labels go from %d to %d, but %d of these %d classes have no training example: %s",
            where, present[0], present[-1], len(missing), n_classes, listed,
        )  # fmt: skip


# .npz


def read_npz(path: Path, name: str, **facts: Any) -> Dataset:
    """Return the dataset of an .npz file (`data.loading.load`). facts: as for `checked`. Raises: UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    arrays = parsed(read_bytes(path), arrays_of, f"{path}: not an .npz of plain arrays", "get it again")
    medmnist = {"train_images", "train_labels", "test_images", "test_labels"} & set(arrays)
    if medmnist and {"x_train", "y_train", "x_test", "y_test"} & set(arrays):
        raise UserError(
            f"{path}: has {', '.join(sorted(arrays))}: two names for the same arrays; keep x_train, y_train, x_test, "
            "y_test"
        )
    if len(medmnist) == 4:
        for part in ("train", "test"):
            arrays |= {f"x_{part}": arrays[f"{part}_images"], f"y_{part}": arrays[f"{part}_labels"]}
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise UserError(f"{path}: has no {', '.join(sorted(missing))}; it has {', '.join(sorted(arrays))}")
    levels = np.asarray(arrays.get("levels", 255))
    if levels.size != 1 or levels.dtype.kind not in "iuf" or levels.item() not in range(1, 256):
        raise UserError(f"{path}: levels is {levels.tolist()}; expected one whole number, 1 to 255")
    parts = [arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")]
    return checked(parts, name, str(path), int(levels.item()), **facts)


# IDX


def _read_idx(path: Path, n_dims: int) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes, gzipped or not. Raises: UserError for any other file."""
    content = read_bytes(path)
    if content[:2] == b"\x1f\x8b":
        content = parsed(content, gzip.decompress, str(path), "get it again")
    head = 4 + 4 * n_dims
    magic = 0x800 + n_dims
    if len(content) < head:
        raise UserError(f"{path}: truncated: {len(content)} bytes, shorter than its header")
    found, *shape = struct.unpack(f">{1 + n_dims}I", content[:head])
    if found != magic:
        raise UserError(
            f"{path}: magic number {found:#010x}; expected {magic:#010x} (IDX, unsigned bytes, {n_dims}-d)"
        )
    size = int(np.prod(shape, dtype=object))
    if len(content) - head != size:
        word = "truncated" if len(content) - head < size else "longer than its header says"
        raise UserError(f"{path}: {word}: {len(content) - head} bytes of data; its header says {size}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def read_idx_folder(folder: Path, name: str, **facts: Any) -> Dataset | None:
    """Return the dataset of the four IDX files in a folder; None unless all exist. facts: as for `checked`."""
    paths = []
    for file in IDX_FILES:
        choices = [folder / f for f in (file, file + ".gz", file.replace("-idx", ".idx"))]
        paths += [path for path in choices if path.is_file()][:1]
    if len(paths) < len(IDX_FILES):
        return None
    x_train, y_train, x_test, y_test = (_read_idx(path, d) for path, d in zip(paths, (3, 1, 3, 1), strict=True))
    return checked((x_train, y_train, x_test, y_test), name, str(folder), **facts)


# CIFAR


class Cifar(NamedTuple):
    """The files of a CIFAR dataset in the official format for Python. labels: the key of the labels."""

    folder: str
    files: tuple[str, ...]  # the last one is the test set
    labels: bytes
    archive: str


CIFAR10 = Cifar(
    CIFAR_FOLDER, (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"), b"labels", "cifar-10-python.tar.gz"
)
CIFAR100 = Cifar("cifar-100-python", ("train", "test"), b"fine_labels", "cifar-100-python.tar.gz")


def _cifar_batch(content: bytes, where: str, cifar: Cifar) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 32, 32, 3] and labels [N] of an official batch."""

    def unpickled(content):
        return safe_pickle.loads(content, encoding="bytes")

    batch = parsed(content, unpickled, f"{where}: not a pickle of plain data and arrays", "get it again")
    try:
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[cifar.labels])
    except (KeyError, TypeError, IndexError, ValueError):
        raise UserError(f"{where}: not a CIFAR batch (it lacks data or {cifar.labels.decode()})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise UserError(f"{where}: data is {pixels.dtype} {list(pixels.shape)}; expected uint8 [N, 3072]")
    if labels.shape != (len(pixels),):
        raise UserError(f"{where}: {len(pixels)} images but labels of shape {labels.shape}; expected one per image")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def read_cifar(cifar: Cifar, root: Path, name: str, **facts: Any) -> Dataset | None:
    """Return the CIFAR dataset of a folder or .tar.gz below root; None without one. facts: as for `checked`."""
    # The second place is where Keras unpacks it.
    for folder in (root / cifar.folder, root / f"{cifar.folder}-target" / cifar.folder, root):
        paths = [folder / file for file in cifar.files]
        if all(path.is_file() for path in paths):
            batches = [_cifar_batch(read_bytes(path), str(path), cifar) for path in paths]
            return _join_cifar(batches, name, str(folder), facts)
    for archive in (cifar.archive, cifar.folder + ".tar.gz"):
        if (path := root / archive).is_file():
            return _join_cifar(_cifar_tar(path, cifar), name, str(path), facts)
    return None


def _cifar_tar(path: Path, cifar: Cifar) -> list:
    """Return the batches of an archive, read in memory: nothing is unpacked to the disk."""

    def batches(content):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            members = [(m.name.split("/")[-1], m) for m in tar if m.isfile()]
            return {
                name: _cifar_batch(tar.extractfile(member).read(), f"{path}: {name}", cifar)
                for name, member in members
                if name in cifar.files
            }

    found = parsed(read_bytes(path), batches, str(path), "get it again")
    missing = [name for name in cifar.files if name not in found]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}")
    return [found[name] for name in cifar.files]


def _join_cifar(batches: list, name: str, where: str, facts: dict[str, Any]) -> Dataset:
    *train, test = batches
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return checked((x_train, y_train, *test), name, where, **facts)
