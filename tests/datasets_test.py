"""Data sets: every layout that is read, and every fault that is refused."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from results_test import Malicious

from data import loading
from data.formats import CIFAR_FOLDER, IDX_FILES
from support.errors import UserError

RNG = np.random.default_rng(0)
X = {
    "train": RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "t10k": RNG.integers(0, 256, (9, 28, 28), dtype=np.uint8),
}
Y = {"train": RNG.integers(0, 10, 30, dtype=np.uint8), "t10k": RNG.integers(0, 10, 9, dtype=np.uint8)}


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
    """No other place has data, and there is no network."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.chdir(tmp_path)

    def offline(name, source):
        raise OSError("the network is unreachable")

    monkeypatch.setattr(loading, "_download", offline)


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for file in IDX_FILES:
        array = (X if "images" in file else Y)[file.split("-")[0]]
        path = folder / (file + ".gz" if compress else file)
        path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))


def assert_is_x_and_y(dataset):
    (x_train, y_train), (x_test, y_test) = dataset
    np.testing.assert_array_equal(x_train, X["train"][..., None])
    np.testing.assert_array_equal(x_test, X["t10k"][..., None])
    np.testing.assert_array_equal(y_train, Y["train"])
    np.testing.assert_array_equal(y_test, Y["t10k"])
    assert x_train.dtype == np.uint8 and dataset.scale == 1 / 255


def test_digits_are_the_recipes():
    from sklearn.datasets import load_digits

    dataset = loading.load("digits")
    (x_train, y_train), (x_test, y_test) = dataset
    bunch, order = load_digits(), np.random.RandomState(0).permutation(1797)
    assert x_train.shape == (1500, 8, 8, 1) and x_test.shape == (297, 8, 8, 1)
    np.testing.assert_array_equal(x_train[..., 0] * dataset.scale, (bunch.images / 16)[order][:1500])
    np.testing.assert_array_equal(x_test[..., 0], bunch.images[order][1500:])
    np.testing.assert_array_equal(np.concatenate([y_train, y_test]), bunch.target[order])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "name, folder",
    [
        ("mnist", "."),
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "."),
    ],
)
def test_idx_files_are_found_in_every_layout(tmp_path, name, folder, compress):
    write_idx(tmp_path / "here" / folder, compress)
    assert_is_x_and_y(loading.load(name, tmp_path / "here"))


@pytest.mark.parametrize("place", ["data_dir", "DATA_DIR", "data", "keras"])
def test_every_place_is_searched(tmp_path, monkeypatch, place):
    root = tmp_path / {"keras": "keras/datasets"}.get(place, place)
    write_idx(root / "mnist")
    if place == "DATA_DIR":
        monkeypatch.setenv("DATA_DIR", str(root))
    assert_is_x_and_y(loading.load("mnist", root if place == "data_dir" else None))


def test_an_incomplete_folder_is_skipped_for_a_complete_one(tmp_path):
    write_idx(tmp_path / "here" / "mnist")
    (tmp_path / "here" / "mnist" / IDX_FILES[1]).unlink()
    write_idx(tmp_path / "here" / "MNIST" / "raw")
    assert_is_x_and_y(loading.load("mnist", tmp_path / "here"))


def npz(path, **changes):
    arrays = {"x_train": X["train"], "y_train": Y["train"], "x_test": X["t10k"], "y_test": Y["t10k"]} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_keras_npz_is_read(tmp_path):
    npz(tmp_path / "mnist.npz")
    assert_is_x_and_y(loading.load("mnist", tmp_path))


def test_any_npz_is_read_by_its_path_with_its_own_levels(tmp_path):
    assert_is_x_and_y(loading.load(npz(tmp_path / "mine.npz")))
    few = loading.load(
        npz(tmp_path / "few.npz", x_train=X["train"] // 16, x_test=X["t10k"] // 16, levels=np.array(15))
    )
    assert few.scale == 1 / 15
    colour = np.repeat(X["train"][..., None], 3, axis=-1)
    assert loading.load(npz(tmp_path / "c.npz", x_train=colour, x_test=colour[:9]))[0][0].shape == (30, 28, 28, 3)
    column = loading.load(npz(tmp_path / "col.npz", y_train=Y["train"][:, None].astype(np.int64)))
    np.testing.assert_array_equal(column[0][1], Y["train"])


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"y_train": Y["train"][:-1]}, "30 train images but 29 labels"),
        ({"x_train": X["train"] / 255.0}, "expected integer pixels"),
        ({"x_train": X["train"].astype(np.int64) * 2}, "expected 0 to 255"),
        ({"x_train": X["train"].reshape(30, -1)}, "expected integer pixels"),
        ({"y_test": Y["t10k"].astype(float)}, "expected integer labels"),
        ({"y_test": Y["t10k"].astype(np.int64) - 20}, "labels from"),
        ({"x_test": X["t10k"][:, :20]}, "expected the same"),
        ({"x_train": X["train"][:0], "y_train": Y["train"][:0]}, "expected integer pixels"),
        ({"y_test": None}, "has no y_test"),
        ({"levels": np.array(0)}, "levels is 0"),
        ({"x_train": np.array([Malicious()], dtype=object)}, "not an .npz of plain arrays: damaged"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        loading.load(npz(tmp_path / "bad.npz", **changes))


def test_a_truncated_npz_is_refused(tmp_path):
    path = tmp_path / "cut.npz"
    npz(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        loading.load(str(path))
    with pytest.raises(UserError, match="no such file"):
        loading.load(str(tmp_path / "none.npz"))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("file", IDX_FILES)
def test_a_truncated_idx_file_is_refused_by_name(tmp_path, file, compress):
    write_idx(tmp_path, compress)
    path = tmp_path / (file + ".gz" if compress else file)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{file}.*truncated"):
        loading.load("mnist", tmp_path)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"\x00\x00", "shorter than its header"),
        (idx(X["train"]) + b"\x00", "longer than its header says"),
        (idx(Y["train"]) + bytes(20), "magic number"),
        (b"\x00\x00\x0d\x03" + idx(X["train"])[4:], "magic number"),
        (idx(X["train"][:-1]), "29 train images but 30 labels"),
        (idx(X["train"][:, :20]), "expected the same"),
    ],
)
def test_idx_images_that_do_not_fit_are_refused(tmp_path, content, says):
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[0]).write_bytes(content)
    with pytest.raises(UserError, match=says):
        loading.load("mnist", tmp_path)


def test_a_label_outside_the_classes_is_refused(tmp_path):
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(idx(Y["train"] + np.uint8(5)))
    with pytest.raises(UserError, match="labels from"):
        loading.load("mnist", tmp_path)


# CIFAR-10


def cifar_batch(n, seed, changes):
    rng = np.random.default_rng(seed)
    batch = {
        b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        b"labels": rng.integers(0, 10, n).tolist(),
        b"batch_label": b"a batch",
        b"filenames": [b"a.png"] * n,
    }
    return batch | changes


def write_cifar(folder, changes=None):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(1, 6):
        batch = cifar_batch(3 + k, k, (changes or {}) if k == 2 else {})
        (folder / f"data_batch_{k}").write_bytes(pickle.dumps(batch, 2))
    (folder / "test_batch").write_bytes(pickle.dumps(cifar_batch(4, 9, {}), 2))


def assert_is_cifar(dataset):
    (x_train, y_train), (x_test, _) = dataset
    assert x_train.shape == (4 + 5 + 6 + 7 + 8, 32, 32, 3) and x_test.shape == (4, 32, 32, 3)
    first = cifar_batch(4, 1, {})
    # The official layout is planar: 1024 red, 1024 green, 1024 blue values, each row by row.
    assert x_train[2, 5, 7, 1] == first[b"data"][2, 1024 + 5 * 32 + 7]
    assert y_train[:4].tolist() == first[b"labels"]


def test_cifar_batches_of_any_length_are_read(tmp_path):
    write_cifar(tmp_path / CIFAR_FOLDER)
    assert_is_cifar(loading.load("cifar10", tmp_path))
    assert_is_cifar(loading.load("cifar10", tmp_path / CIFAR_FOLDER))


def test_cifar_is_read_from_its_archive_without_unpacking(tmp_path):
    write_cifar(tmp_path / "made" / CIFAR_FOLDER)
    (tmp_path / "here").mkdir()
    with tarfile.open(tmp_path / "here" / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made" / CIFAR_FOLDER, CIFAR_FOLDER)
    assert_is_cifar(loading.load("cifar10", tmp_path / "here"))
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["cifar-10-python.tar.gz"]


def test_a_truncated_cifar_archive_is_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        write_cifar(tmp_path / "made")
        tar.add(tmp_path / "made", CIFAR_FOLDER)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(buffer.getvalue()[:-4000])
    with pytest.raises(UserError, match="damaged or truncated"):
        loading.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({b"labels": [1, 2]}, r"data_batch_2: 5 images but labels of shape \(2,\)"),
        ({b"labels": 3}, r"labels of shape \(\)"),
        ({b"labels": [[1], [2, 3], [4], [5], [6]]}, "not a CIFAR batch"),
        ({b"data": np.zeros((5, 3000), np.uint8)}, "expected uint8"),
        ({b"data": np.zeros((5, 3072))}, "expected uint8"),
        ({b"labels": [11] * 5}, "labels from"),
        ({b"extra": Malicious()}, "system"),
    ],
)
def test_a_cifar_batch_that_does_not_fit_is_refused(tmp_path, changes, says):
    write_cifar(tmp_path / CIFAR_FOLDER, changes)
    with pytest.raises(UserError, match=says):
        loading.load("cifar10", tmp_path)


# Names, places, numbers


def test_missing_data_is_reported_with_the_places_searched_and_a_remedy(tmp_path):
    with pytest.raises(UserError) as error:
        loading.load("mnist", tmp_path)
    for word in (str(tmp_path), "keras", "network is unreachable", "four IDX files", "--data_dir"):
        assert word in str(error.value)


def test_an_unknown_name_and_a_missing_place_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"--dataset nope: there is none .*did you mean .*known are digits, separable, mnist"
    ):
        loading.load("nope")
    with pytest.raises(UserError, match="--dataset: missing; give one of digits, separable"):
        loading.load(None)
    with pytest.raises(UserError, match="no such directory"):
        loading.load("mnist", tmp_path / "nowhere")


def test_train_N_takes_the_first_and_no_more_than_there_are():
    whole, part = loading.load("digits"), loading.load("digits", train_N=100)
    np.testing.assert_array_equal(part[0][0], whole[0][0][:100])
    np.testing.assert_array_equal(part[1][0], whole[1][0])
    assert part.scale == whole.scale
    with pytest.raises(UserError, match="1500 training examples"):
        loading.load("digits", train_N=1501)


def test_the_real_mnist_is_complete(real_data):
    (x_train, y_train), (x_test, y_test) = loading.load("mnist", real_data)
    assert x_train.shape == (60000, 28, 28, 1) and x_test.shape == (10000, 28, 28, 1)
    assert np.bincount(y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert len(y_test) == 10000


def test_the_real_cifar_part_is_read(real_data):
    (x_train, y_train), (x_test, _) = loading.load("cifar10", real_data)
    assert x_train.shape[1:] == x_test.shape[1:] == (32, 32, 3) and set(y_train) == set(range(10))


def test_classes_are_numbered_in_the_given_order_in_both_sets():
    (whole_x, whole_y), (_, whole_test) = loading.load("digits")
    (x, y), (_, test) = loading.load("digits", classes=(5, 3))
    np.testing.assert_array_equal(x, whole_x[(whole_y == 5) | (whole_y == 3)])
    np.testing.assert_array_equal(y, [0 if k == 5 else 1 for k in whole_y if k in (5, 3)])
    assert len(test) == ((whole_test == 5) | (whole_test == 3)).sum()


def test_a_random_subset_holds_the_smaller_one_of_its_seed():
    (x, y), _ = loading.load("digits", train_N=50, subset_seed=1)
    (smaller, _), _ = loading.load("digits", train_N=20, subset_seed=1)
    (other, _), _ = loading.load("digits", train_N=50, subset_seed=2)
    np.testing.assert_array_equal(x[:20], smaller)
    assert not np.array_equal(x, other)
    (whole, labels), _ = loading.load("digits")
    where = [int(np.flatnonzero((whole == image).all(axis=(1, 2, 3)))[0]) for image in x]
    np.testing.assert_array_equal(y, labels[where])


def test_test_N_takes_the_first_test_images():
    whole, part = loading.load("digits"), loading.load("digits", test_N=7)
    np.testing.assert_array_equal(part[1][0], whole[1][0][:7])
    assert len(part[0][0]) == 1500


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"--classes 11: digits has no such class in both sets \(0 to 9\)"):
        loading.load("digits", classes=(1, 11))
    with pytest.raises(UserError, match="test_N is 298, but digits has 297 test examples"):
        loading.load("digits", test_N=298)


def test_the_separable_sets_largest_margin_is_the_one_that_is_promised():
    from sklearn.svm import SVC

    (x, y), test = loading.load("separable")
    signed = np.where(y == 0, 1, -1)[:, None] * x.reshape(len(x), -1) / 255
    both = np.concatenate([signed, -signed])  # symmetric: the best plane goes through 0
    svm = SVC(kernel="linear", C=1e6, tol=1e-10).fit(both, np.repeat([1, -1], len(x)))
    assert 1 / np.linalg.norm(svm.coef_) == pytest.approx(8 * loading.SEPARABLE_CONTRAST / 255, rel=1e-5)
    assert (
        np.where(test[1] == 0, 1, -1) * ((test[0][:, :, :4] * 1.0).sum((1, 2, 3)) - test[0][:, :, 4:].sum((1, 2, 3)))
        > 0
    ).all()


def test_cifar100_has_its_fine_labels_from_the_folder_and_the_archive(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "folder" / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels, fine = rng.integers(0, 256, (40, 3072), dtype=np.uint8), rng.permutation(100)[:40].tolist()
    for name, part in (("train", slice(30)), ("test", slice(30, None))):
        batch = {b"data": pixels[part], b"fine_labels": fine[part], b"coarse_labels": [0] * len(fine[part])}
        (folder / name).write_bytes(pickle.dumps(batch))
    (tmp_path / "archive").mkdir()
    with tarfile.open(tmp_path / "archive" / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(folder, "cifar-100-python")
    for place in ("folder", "archive"):
        (x, y), (x_test, y_test) = loading.load("cifar100", tmp_path / place)
        assert y.tolist() == fine[:30] and y_test.tolist() == fine[30:]
        np.testing.assert_array_equal(x[0, 3, 5], pixels[0].reshape(3, 32, 32)[:, 3, 5])
        assert x.shape == (30, 32, 32, 3) and len(x_test) == 10
    with pytest.raises(UserError, match=r"put the folder cifar-100-python or its tar\.gz into one of these"):
        loading.load("cifar100", tmp_path)


def test_a_medmnist_file_is_read_unchanged(tmp_path):
    labels = np.arange(30, dtype=np.uint8)[:, None] % 5
    arrays = {"train_images": X["train"], "train_labels": labels, "val_images": X["t10k"], "val_labels": labels[:9]}
    np.savez(tmp_path / "pathmnist.npz", **arrays, test_images=X["t10k"], test_labels=labels[:9])
    (x, y), (x_test, _) = loading.load(str(tmp_path / "pathmnist.npz"))
    np.testing.assert_array_equal(x, X["train"][..., None])
    np.testing.assert_array_equal(y, labels[:, 0])
    assert len(x_test) == 9
