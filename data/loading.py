"""Datasets: where their files are searched for, and which part of them is used.

`load` returns integer pixels as stored, NHWC, and the factor that maps them to [0, 1]. A dataset is a row of SOURCES.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.formats import (
    CIFAR10,
    CIFAR100,
    CIFAR_FOLDER,
    MOST_CLASSES,
    Dataset,
    checked,
    read_cifar,
    read_idx_folder,
    read_npz,
)
from support.device import import_tensorflow
from support.errors import UserError, nearest, reason

N_DIGITS_TRAIN = 1500


def load(
    name: str,
    data_dir: str | Path | None = None,
    train_N: int | None = None,
    test_N: int | None = None,
    classes: tuple[int, ...] | None = None,
    subset_seed: int | None = None,
    download: bool = True,
) -> Dataset:
    """Load a dataset, or a part of it.

    Args:
      name: 'digits', 'separable', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', or the path of an .npz file with
        integer arrays x_train [N, h, w] or [N, h, w, c], y_train [N], x_test, y_test and, if its pixels are
        not 0..255, their largest value as `levels`.
      data_dir: the first place to look in; then DATA_DIR, ./data, Keras's cache.
      classes: only examples of these classes, which become 0, 1, ... in this order; None for all.
      train_N, test_N: only the first n examples of these classes; None for all.
      subset_seed: draw the train_N training examples at random. With one seed, a smaller train_N selects a subset of
        a larger one.
      download: whether to ask the network where no place has it.

    Raises: UserError when it is not found, or its files are invalid.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"--data_dir {data_dir}: no such directory")
    if name is None:
        raise UserError(f"--dataset: missing; give one of {', '.join(SOURCES)}, or the path of an .npz")
    if str(name).endswith(".npz"):
        dataset = read_npz(Path(name), str(name))
    elif name in SOURCES:
        dataset = _find(name, SOURCES[name], data_dir, download)
    else:
        raise UserError(
            f"--dataset {name}: there is none of that name{nearest(name, SOURCES)} "
            f"(known are {', '.join(SOURCES)}, or the path of an .npz)"
        )
    train, test = dataset
    if classes is not None:
        train, test = (_of_classes(part, classes, dataset) for part in (train, test))
    if subset_seed is not None:
        order = np.random.default_rng(subset_seed).permutation(len(train[1]))
        train = train[0][order], train[1][order]
    train = _first(train, train_N, f"train_N is {train_N}, but {name} has {len(train[1])} training examples")
    if len(np.unique(train[1])) < 2:
        raise UserError(
            f"{name}: all {len(train[1])} training examples are of class {train[1][0]}; use at least two classes"
        )
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
    """Load scikit-learn's 1797 digits, 8x8, levels 0..16, in a fixed order: 1500 train, 297 test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    x = digits.images.astype(np.uint8)[..., None][order]
    y = digits.target.astype(np.int32)[order]
    n = N_DIGITS_TRAIN
    return Dataset((x[:n], y[:n]), (x[n:], y[n:]), "digits", 1 / 16)


SEPARABLE_CONTRAST = 32  # pixel levels that a half is brighter or darker than their mean


def _load_separable() -> Dataset:
    """Make two classes of 8x8 images, levels 0..255, whose best linear classifier is known: 200 train, 100 test.

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


# Where files are


@dataclass(frozen=True)
class Source:
    """All facts of a dataset.

    Attributes:
      make: creates it, if it is bundled.
      read: (root, name, shape, n_classes) -> the dataset, or None where root does not have it.
      shape: (h, w, c) of its images. n_classes: their number.
      files: what to look for, in words.
      statistics: the published mean and standard deviation of its pixels in [0, 1], per channel.
      roots: more folders to search.
    """

    make: Callable[[], Dataset] | None = None
    read: Callable[..., Dataset | None] = lambda root, name, **facts: None
    shape: tuple[int, ...] | None = None
    n_classes: int = MOST_CLASSES
    files: str = "its files"
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    roots: tuple[str, ...] = ()


def _mnist_like(folders: tuple[str, ...], root: Path, name: str, **facts: object) -> Dataset | None:
    """Return the four IDX files, or <name>.npz, in one of the folders below root."""
    for folder in (root / folder for folder in folders):
        if dataset := read_idx_folder(folder, name, **facts):
            return dataset
        if (path := folder / f"{name}.npz").is_file():
            return read_npz(path, name, **facts)
    return None


SOURCES = {
    "digits": Source(make=_load_digits),
    "separable": Source(make=_load_separable),
    "mnist": Source(
        read=partial(_mnist_like, ("mnist", "MNIST/raw", ".")),
        shape=(28, 28, 1),
        n_classes=10,
        files="the four IDX files (train-images-idx3-ubyte.gz, ...) or mnist.npz",
        statistics=((0.1307,), (0.3081,)),
    ),
    "fashion_mnist": Source(
        read=partial(_mnist_like, ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw", ".")),
        shape=(28, 28, 1),
        n_classes=10,
        files="the four IDX files (train-images-idx3-ubyte.gz, ...), in a folder fashion-mnist "
        "(Debian: apt-get install dataset-fashion-mnist)",
        roots=("/usr/share/datasets",),
    ),
    "cifar10": Source(
        read=partial(read_cifar, CIFAR10),
        shape=(32, 32, 3),
        n_classes=10,
        files=f"the folder {CIFAR_FOLDER} or its tar.gz",
        statistics=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    "cifar100": Source(
        read=partial(read_cifar, CIFAR100),
        shape=(32, 32, 3),
        n_classes=100,
        files=f"the folder {CIFAR100.folder} or its tar.gz",
    ),
}


def _roots(data_dir: str | Path | None) -> list[Path]:
    keras = Path(os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras"))) / "datasets"  # also without a home
    given = [data_dir, os.environ.get("DATA_DIR"), "data", keras]
    return [Path(root) for root in given if root]


def _find(name: str, source: Source, data_dir: str | Path | None, download: bool) -> Dataset:
    """Search every place in turn, then download. When all fail the error names the places."""
    if source.make is not None:
        return source.make()
    roots = [*_roots(data_dir), *map(Path, source.roots)]
    for root in roots:
        if dataset := source.read(root, name, shape=source.shape, n_classes=source.n_classes):
            return dataset
    if not download:
        raise UserError(f"{name}: not found in {', '.join(map(str, roots))}")
    try:
        return _download(name, source)
    except UserError:
        raise
    except Exception as error:  # no network, a proxy, a server that is down: equivalent for the user
        raise UserError(
            f"{name}: not found in {', '.join(map(str, roots))}, and the download failed ({reason(error)}); "
            f"put {source.files} into one of these, or give --data_dir"
        ) from None


def _download(name: str, source: Source) -> Dataset:
    import_tensorflow()  # Keras imports it anyway, with its start-up messages
    import keras

    with open(os.devnull, "w") as nowhere:
        progress = sys.stderr if sys.stderr.isatty() else nowhere  # Keras prints it to stdout
        with contextlib.redirect_stdout(progress):
            train, test = getattr(keras.datasets, name).load_data()
    return checked((*train, *test), name, "keras.datasets", shape=source.shape, n_classes=source.n_classes)
