"""Data sets: where their files are looked for, how they are read, and what is checked.

`load` gives integer pixels as stored, NHWC, and the factor that maps them to [0, 1].
"""

import contextlib
import gzip
import io
import os
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import safe_pickle
from errors import UserError, nearest
from files import arrays_of, parsed, read_bytes, replace_atomically

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_FOLDER = "cifar-10-batches-py"
N_DIGITS_TRAIN = 1500
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


def load(
    name: str,
    data_dir: str | Path | None = None,
    train_N: int | None = None,
    test_N: int | None = None,
    classes: tuple[int, ...] | None = None,
    subset_seed: int | None = None,
) -> Dataset:
    """Load a data set, or a part of it.

    Args:
      name: 'digits', 'separable', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', or the path of an .npz file with
        integer arrays x_train [N, h, w] or [N, h, w, c], y_train [N], x_test, y_test and, if its pixels are
        not 0..255, their largest value as `levels`.
      data_dir: the first place to look in; then DATA_DIR, ./data, Keras's cache.
      classes: only examples of these classes, which become 0, 1, ... in this order; None for all.
      train_N, test_N: only the first so many examples, of these classes; None for all.
      subset_seed: train_N random training examples instead of the first. A smaller train_N of the same seed
        gives a part of a larger one.

    Raises: UserError when it is nowhere to be had, or its files are not what they should be.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"--data_dir {data_dir}: no such directory")
    if str(name).endswith(".npz"):
        dataset = _load_npz(Path(name), str(name))
    elif name in BUNDLED:
        dataset = BUNDLED[name]()
    elif name in DATASETS:
        dataset = _find(name, data_dir)
    else:
        known = (*BUNDLED, *DATASETS)
        raise UserError(
            f"--dataset {name}: there is none of that name{nearest(name, known)} "
            f"(known are {', '.join(known)}, or the path of an .npz)"
        )
    train, test = dataset
    if classes is not None:
        train, test = (_of_classes(part, classes, dataset) for part in (train, test))
    if subset_seed is not None:
        order = np.random.default_rng(subset_seed).permutation(len(train[1]))
        train = train[0][order], train[1][order]
    train = _first(train, train_N, f"train_N is {train_N}, but {name} has {len(train[1])} training examples")
    test = _first(test, test_N, f"test_N is {test_N}, but {name} has {len(test[1])} test examples")
    return Dataset(train, test, dataset.name, dataset.scale)


def _first(part: tuple, n: int | None, too_many: str) -> tuple:
    x, y = part
    if n is not None and n > len(x):
        raise UserError(f"{too_many}: give at most that")
    return x[:n], y[:n]


def _of_classes(part: tuple, classes: tuple[int, ...], dataset: Dataset) -> tuple:
    x, y = part
    for k in classes:
        if not (y == k).any():
            raise UserError(
                f"--classes {k}: {dataset.name} has no such class in both sets (0 to {dataset.n_classes - 1}); "
                "give others, or --classes none for all"
            )
    new = np.full(dataset.n_classes, -1, np.int32)
    new[list(classes)] = np.arange(len(classes))
    chosen = new[y] >= 0
    return x[chosen], new[y[chosen]]


def _load_digits() -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8x8, levels 0..16, in a fixed order: 1500 train, 297 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    x = digits.images.astype(np.uint8)[..., None][order]
    y = digits.target.astype(np.int32)[order]
    n = N_DIGITS_TRAIN
    return Dataset((x[:n], y[:n]), (x[n:], y[n:]), "digits", 1 / 16)


SEPARABLE_CONTRAST = 32  # pixel levels that a half is brighter or darker than their mean


def _load_separable() -> Dataset:
    """Two classes of 8x8 images, levels 0..255, whose best linear classifier is known: 200 train, 100 test.

    An image of class 0 is bright on the left and dark on the right, of class 1 the other way round: 128 +- c, plus
    noise whose sum over each half is 0. Of every image there are its mirror image, in the other class, and both
    with the negative noise. So the sum of the four y_i x_i is a multiple of u, 1/8 on the left and -1/8 on the
    right, and u is the direction of the largest margin through 0: min_i y_i <u, x_i> = 8 c / 255 in pixels of
    [0, 1], with c = SEPARABLE_CONTRAST at half of the images and more at the others.
    """
    rng = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        images = []
        for k in range(n // 4):
            noise = rng.integers(-8, 9, (8, 2, 4))
            noise[0, :, 0] -= noise.sum(axis=(0, 2)) % 32
            noise -= noise.sum(axis=(0, 2), keepdims=True) // 32
            c = SEPARABLE_CONTRAST + (rng.integers(1, 41) if k % 2 else 0)
            half = np.array([c, -c])[:, None]
            left = [(128 + half + sign * noise).reshape(8, 8) for sign in (1, -1)]
            images += [*left, *(image[:, ::-1] for image in left)]
        return np.array(images, np.uint8)[..., None], np.tile(np.array([0, 0, 1, 1], np.int32), n // 4)

    return Dataset(part(200), part(100), "separable", 1 / 255)


BUNDLED = {"digits": _load_digits, "separable": _load_separable}


# Where files are


def _roots(data_dir: str | Path | None) -> list[Path]:
    keras = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    given = [data_dir, os.environ.get("DATA_DIR"), "data", keras]
    return [Path(root) for root in given if root]


def _find(name: str, data_dir: str | Path | None) -> Dataset:
    """Try every place in turn, then a download. When all fail the error says where it looked."""
    looked, reader = [], DATASETS[name]
    for root in _roots(data_dir):
        dataset = reader(root)
        if dataset is not None:
            return dataset
        looked.append(str(root))
    if name == "fashion_mnist":
        debian = Path("/usr/share/datasets/fashion-mnist")
        if dataset := _idx_folder(debian, name):
            return dataset
        looked.append(str(debian))
    try:
        return _download(name)
    except UserError:
        raise
    except Exception as error:  # no network, a proxy, a server that is down: all the same to the user
        reason = " ".join(str(error).split())
        wanted = {
            "cifar10": f"the folder {CIFAR_FOLDER} or its tar.gz",
            "cifar100": f"the folder {CIFAR100.folder} or its tar.gz",
            "mnist": "the four IDX files (train-images-idx3-ubyte.gz, ...) or mnist.npz",
            "fashion_mnist": "the four IDX files (train-images-idx3-ubyte.gz, ...), in a folder "
            "fashion-mnist (Debian: apt-get install dataset-fashion-mnist)",
        }.get(name, "its files")
        raise UserError(
            f"{name}: not found in {', '.join(looked)}, and the download failed ({reason}); "
            f"put {wanted} into one of these, or give --data_dir"
        ) from None


def _download(name: str) -> Dataset:
    from device import import_tensorflow

    import_tensorflow()  # Keras imports it anyway, with its start-up chatter
    import keras

    with open(os.devnull, "w") as nowhere:
        # Keras prints its progress; that is for a person who watches.
        progress = sys.stderr if sys.stderr.isatty() else nowhere
        with contextlib.redirect_stdout(progress):
            train, test = getattr(keras.datasets, name).load_data()
    return _checked((*train, *test), name=name, where="keras.datasets")


# What the flatness experiments need (arXiv 1801.02254, section IV)

PUBLISHED_STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
RANDOM_LABELS_SEED = 0


def input_statistics(dataset: Dataset) -> tuple[tuple, tuple]:
    """Mean and standard deviation of the training pixels in [0, 1], by channel: published, or measured."""
    if dataset.name in PUBLISHED_STATISTICS:
        return PUBLISHED_STATISTICS[dataset.name]
    (x, _), _ = dataset
    levels = np.arange(256) * dataset.scale
    counts = [np.bincount(x[..., c].ravel(), minlength=256) / x[..., c].size for c in range(x.shape[-1])]
    mean = [float(p @ levels) for p in counts]
    std = [float(np.sqrt(p @ (levels - m) ** 2)) or 1.0 for p, m in zip(counts, mean, strict=True)]
    return tuple(mean), tuple(std)


def draw_random_labels(labels: np.ndarray, n_classes: int = 10, seed: int = RANDOM_LABELS_SEED) -> np.ndarray:
    """Each label, with probability 1/2, replaced by a uniform draw from all classes; int32 [N]."""
    rng = np.random.default_rng([seed, len(labels)])
    replaced = rng.random(len(labels)) < 0.5
    return np.where(replaced, rng.integers(0, n_classes, len(labels)), labels).astype(np.int32)


def save_random_labels(path: Path, labels: np.ndarray, seed: int, natural: np.ndarray | None = None) -> None:
    """Store labels [N], and which natural ones, int32 [N], they stand for (None: any).

    Raises: OSError when the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"labels": labels, "seed": seed}
    if natural is not None:
        arrays["natural_crc32"] = zlib.crc32(natural.data)
    replace_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def with_labels_of(dataset: Dataset, path: Path) -> Dataset:
    """The data set with the training labels of a file. Raises: UserError for labels that do not fit it."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with ./run.sh make_random_labels") from None

    def labels_and_crc(content):
        arrays = arrays_of(content)
        return arrays["labels"], int(arrays["natural_crc32"]) if "natural_crc32" in arrays else None

    otherwise = "delete it and make it anew with make_random_labels"
    labels, natural_crc32 = parsed(content, labels_and_crc, f"{path}: no file of labels", otherwise)
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
            "give another --random_labels, or delete it and make it anew with make_random_labels"
        )
    return Dataset((x, labels.astype(np.int32)), test, dataset.name, dataset.scale)


# Checks that every source goes through


def _checked(arrays: Sequence, name: str, where: str, levels: int = 255) -> Dataset:
    """A Dataset from raw arrays x_train, y_train, x_test, y_test.

    Raises: UserError, naming the source, for arrays that do not fit.
    """
    x_train, y_train, x_test, y_test = arrays
    parts: list[Any] = []
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        x, y = np.asarray(x), np.asarray(y)
        if not np.issubdtype(x.dtype, np.integer) or x.ndim not in (3, 4) or 0 in x.shape:
            raise UserError(
                f"{where}: x_{part} is {x.dtype} {list(x.shape)}; expected integer pixels [N, h, w] or [N, h, w, c]"
            )
        if x.min() < 0 or x.max() > levels:
            raise UserError(f"{where}: x_{part} has pixels from {x.min()} to {x.max()}; expected 0 to {levels}")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
            raise UserError(f"{where}: y_{part} is {y.dtype} {list(y.shape)}; expected integer labels [N]")
        if len(x) != len(y):
            raise UserError(f"{where}: {len(x)} {part} images but {len(y)} labels; expected as many")
        top = MOST_CLASSES - 1 if name.endswith(".npz") else {"cifar100": 99}.get(name, 9)
        if y.min() < 0 or y.max() > top:  # compared before the cast, which would wrap
            raise UserError(f"{where}: y_{part} has labels from {y.min()} to {y.max()}; expected 0 to {top}")
        x = x[..., None] if x.ndim == 3 else x
        parts.append((np.ascontiguousarray(x, np.uint8), np.ascontiguousarray(y, np.int32)))
    (a, _), (b, _) = parts
    if a.shape[1:] != b.shape[1:]:
        raise UserError(
            f"{where}: training images are {list(a.shape[1:])} but test images {list(b.shape[1:])}; expected the same"
        )
    shape = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1)}.get(name)
    if name in (CIFAR10.name, CIFAR100.name):
        shape = (32, 32, 3)
    if shape and a.shape[1:] != shape:
        raise UserError(f"{where}: images are {list(a.shape[1:])}; {name} has {list(shape)}")
    train, test = parts
    return Dataset(train, test, name, 1 / levels)


# .npz


def _load_npz(path: Path, name: str) -> Dataset:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    arrays = parsed(read_bytes(path), arrays_of, f"{path}: not an .npz of plain arrays", "get it again")
    if {"train_images", "train_labels", "test_images", "test_labels"} <= set(arrays):  # a file of MedMNIST
        for part in ("train", "test"):
            arrays |= {f"x_{part}": arrays[f"{part}_images"], f"y_{part}": arrays[f"{part}_labels"]}
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise UserError(f"{path}: has no {', '.join(sorted(missing))}; it has {', '.join(sorted(arrays))}")
    levels = parsed(arrays.get("levels", 255), int, f"{path}: levels", "expected one number")
    parts = [arrays[key] for key in ("x_train", "y_train", "x_test", "y_test")]
    if not 1 <= levels <= 255:
        raise UserError(f"{path}: levels is {levels}; expected 1 to 255")
    return _checked(parts, name=name, where=str(path), levels=levels)


# IDX (MNIST and Fashion-MNIST)


def _read_idx(path: Path, n_dims: int) -> np.ndarray:
    """A file of unsigned bytes in the IDX format, gzipped or not. Raises: UserError if it is not one."""
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


def _idx_folder(folder: Path, name: str) -> Dataset | None:
    """The four IDX files of a folder; None when not all are there."""
    paths = []
    for file in IDX_FILES:
        choices = [folder / f for f in (file, file + ".gz", file.replace("-idx", ".idx"))]
        paths += [path for path in choices if path.is_file()][:1]
    if len(paths) < len(IDX_FILES):
        return None
    x_train, y_train, x_test, y_test = (_read_idx(path, d) for path, d in zip(paths, (3, 1, 3, 1), strict=True))
    return _checked((x_train, y_train, x_test, y_test), name=name, where=str(folder))


def _mnist_like(name: str, folders: tuple, npz: str) -> Callable[[Path], Dataset | None]:
    def read(root: Path) -> Dataset | None:
        for folder in folders:
            if dataset := _idx_folder(root / folder, name):
                return dataset
            if (path := root / folder / npz).is_file():
                dataset = _load_npz(path, str(path))
                return _checked((*dataset[0], *dataset[1]), name=name, where=str(path))
        return None

    return read


# CIFAR-10


class Cifar(NamedTuple):
    """The files of a CIFAR data set in the official format for Python. labels: the key of the labels."""

    name: str
    folder: str
    files: tuple[str, ...]  # the last one is the test set
    labels: bytes
    archive: str


CIFAR10 = Cifar(
    "cifar10",
    CIFAR_FOLDER,
    (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"),
    b"labels",
    "cifar-10-python.tar.gz",
)
CIFAR100 = Cifar("cifar100", "cifar-100-python", ("train", "test"), b"fine_labels", "cifar-100-python.tar.gz")


def _cifar_batch(content: bytes, where: str, cifar: Cifar) -> tuple[np.ndarray, np.ndarray]:
    """One official batch: images [N, 32, 32, 3] and labels [N]."""

    def unpickled(content):
        return safe_pickle.loads(content, encoding="bytes")

    batch = parsed(content, unpickled, f"{where}: not a pickle of plain data and arrays", "get it again")
    try:
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[cifar.labels])
    except (KeyError, TypeError, IndexError):
        raise UserError(f"{where}: not a batch of {cifar.name} (it has no data and labels)") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise UserError(f"{where}: data is {pixels.dtype} {list(pixels.shape)}; expected uint8 [N, 3072]")
    if len(pixels) != len(labels):
        raise UserError(f"{where}: {len(pixels)} images but {len(labels)} labels; expected as many")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _read_cifar(cifar: Cifar, root: Path) -> Dataset | None:
    # The second place is where Keras unpacks it.
    for folder in (root / cifar.folder, root / f"{cifar.folder}-target" / cifar.folder, root):
        if all((folder / name).is_file() for name in cifar.files):
            batches = [_cifar_batch(read_bytes(folder / name), str(folder / name), cifar) for name in cifar.files]
            return _join_cifar(batches, str(folder), cifar)
    for archive in (cifar.archive, cifar.folder + ".tar.gz"):
        if (path := root / archive).is_file():
            return _read_cifar_tar(path, cifar)
    return None


def _read_cifar_tar(path: Path, cifar: Cifar) -> Dataset:
    """Read in memory: nothing is unpacked to the disk."""

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
    return _join_cifar([found[name] for name in cifar.files], str(path), cifar)


def _join_cifar(batches: list, where: str, cifar: Cifar) -> Dataset:
    *train, test = batches
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return _checked((x_train, y_train, *test), name=cifar.name, where=where)


DATASETS: dict[str, Callable[[Path], Dataset | None]] = {
    "mnist": _mnist_like("mnist", ("mnist", "MNIST/raw", "."), "mnist.npz"),
    "fashion_mnist": _mnist_like(
        "fashion_mnist", ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", "."), "fashion_mnist.npz"
    ),
    "cifar10": partial(_read_cifar, CIFAR10),
    "cifar100": partial(_read_cifar, CIFAR100),
}
