"""Unpickling of files that may come from anywhere: plain Python types and NumPy arrays, and nothing else."""

import io
import pickle
from typing import Any

_ARRAY_GLOBALS = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in [("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer")]
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def loads(content: bytes, encoding: str = "ASCII") -> Any:
    """The value of a pickle.

    Args:
      content: the pickle.
      encoding: as in `pickle.load`, for pickles from Python 2.

    Raises: any Exception for a pickle that is damaged, or names anything but plain data and arrays.
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding=encoding).load()
