"""Unpickling of files that may come from anywhere: plain Python types and NumPy arrays, and nothing else.

NumPy trusts what a pickle tells it: a dtype of objects makes pointers of a file's bytes, a dtype's state may claim
any size. So a pickle gets stand-ins for NumPy's functions and types. They check what they are given, and build arrays
of numbers, booleans and text from exactly the bytes that are in the file.
"""

import contextlib
import io
import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

DEEPEST = 64  # levels of lists and dicts; a `res` has six
KINDS = "biufcSU"  # of dtypes: numbers, booleans, bytes, text


class _Dtype:
    """Stands in for a numpy.dtype."""

    def __init__(self, code: Any, *flags: Any):
        if not isinstance(code, str) or len(code) > 8:
            raise pickle.UnpicklingError(f"a dtype {code!r:.40}")
        self.real = np.dtype(code)
        self._check()

    def __setstate__(self, state: tuple) -> None:
        _, order, *rest = state  # version, order; then subdtype, names, fields, itemsize, alignment, flags
        size = self.real.itemsize if self.real.kind in "SU" else -1
        if rest[:3] != [None] * 3 or rest[3] not in (-1, size) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"a dtype with the state {state!r:.60}")
        self.real = self.real.newbyteorder(order)

    def _check(self) -> None:
        if self.real.kind not in KINDS or self.real.hasobject:
            raise pickle.UnpicklingError(f"a dtype {self.real}")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Return an array of exactly these bytes."""
    if not isinstance(dtype, _Dtype) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise pickle.UnpicklingError(f"an array of shape {shape!r:.60}")
    data = bytes(data)
    if math.prod(shape) * dtype.real.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {shape} and {dtype.real} in {len(data)} bytes")
    return np.frombuffer(data, dtype.real).reshape(shape, order=order).copy()


class _Array:
    """Stands in for an array whose state is still to come. `_plain` puts the array in its place."""

    def __init__(self, array_type: Any, shape: Any, typecode: Any):
        self.real: np.ndarray | None = None
        if array_type is not _NDARRAY or shape != (0,):
            raise pickle.UnpicklingError(f"an array that begins as {shape!r:.60}")

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, str):  # bytes of Python 2
            data = data.encode("latin1")
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of objects")
        self.real = _array(data, dtype, shape, "F" if is_fortran else "C")


_NDARRAY = "numpy.ndarray"  # a name that arrays begin with, and that cannot be called


def _scalar(dtype: Any, data: Any = None) -> Any:
    return _array(data, dtype, (), "C")[()]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *more: Any) -> np.ndarray:
    return _array(data, dtype, shape, order if order in ("C", "F") else "C")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("an encoding other than latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NDARRAY,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _STAND_INS[module, name]


def _plain(value: Any, visits: Iterator[int], level: int = 0) -> Any:
    """Return the value with arrays in the place of their stand-ins.

    Args:
      visits: one for each part that is looked at, at most: parts that share parts could ask for endless work.
    """
    if level > DEEPEST:
        raise pickle.UnpicklingError(f"nested deeper than {DEEPEST} levels")
    if next(visits, None) is None:
        raise pickle.UnpicklingError("more parts than its size allows")
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(item) not in _SIMPLE:
                value[key] = _plain(item, visits, level + 1)
    elif kind is list:
        for k, item in enumerate(value):
            if type(item) not in _SIMPLE:
                value[k] = _plain(item, visits, level + 1)
    elif kind is tuple:
        return tuple(_plain(item, visits, level + 1) for item in value)
    elif kind is _Array:
        if value.real is None:
            raise pickle.UnpicklingError("an array without its state")
        return value.real
    elif kind is _Dtype:
        return value.real
    return value


_SIMPLE = {int, float, str, bool, bytes, type(None), np.ndarray}


@contextlib.contextmanager
def _bounded_memory(size: int) -> Iterator[None]:
    """While this lasts, the process can grow by 4 GiB and 64 times `size`, where the system can say so.

    A few bytes may ask the unpickler for a table of 30 GB. Asking for more than the bound is a MemoryError.
    """
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    bound = now + (4 << 30) + 64 * size
    if before[0] != resource.RLIM_INFINITY:
        bound = min(bound, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (bound, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def load_first(content: bytes, encoding: str = "ASCII") -> tuple[Any, int]:
    """Return the value of the pickle at the beginning of content, and how many bytes it has; else as `loads`."""
    file = io.BytesIO(content)
    with _bounded_memory(len(content)):
        value = _ArrayUnpickler(file, encoding=encoding).load()
        return _plain(value, iter(range(1000 + 10 * len(content)))), file.tell()


def loads(content: bytes, encoding: str = "ASCII") -> Any:
    """Return the value of a pickle.

    Args:
      content: the pickle.
      encoding: as in `pickle.load`, for pickles from Python 2.

    Raises: any Exception for a pickle that is damaged, or names anything but plain data and arrays.
    """
    return load_first(content, encoding)[0]
