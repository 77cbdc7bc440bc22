"""Reading and writing files: precise errors, atomic writes."""

import contextlib
import errno
import io
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from support.errors import UserError, reason

ROOT = Path(__file__).resolve().parent.parent  # of the program
MOST_BYTES = 1 << 33  # of one array in an .npz


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises: FileNotFoundError; UserError when it is there and cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise UserError(f"{path}: not a regular file")  # reading a pipe would block
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None


def open_for_writing(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Return a descriptor of a file of a working directory, to be written: never through a link, or into a pipe.

    Raises: UserError where it is not a regular file; OSError when the disk fails.
    """
    try:
        found = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise UserError(f"{path}: a link, a pipe or a folder, not a regular file; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise UserError(f"{path}: not a regular file; remove it")
    return found


def parsed(content: bytes, parse: Callable[[bytes], Any], what: str, otherwise: str) -> Any:
    """Parse a file's content.

    Args:
      what: how an error names the content, usually by its path.
      otherwise: ends the message about damaged content: what the user can do.

    Raises: UserError for content that `parse` fails on: a damaged file can raise nearly anything.
    """
    try:
        return parse(content)
    except UserError:
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{what}: damaged or truncated ({words}); {otherwise}") from None


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file. Raises: any Exception for damaged content.

    An array is read only when its header asks for exactly the bytes that are there.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            if member.file_size > MOST_BYTES:
                raise ValueError(f"{member.filename} has {member.file_size} bytes")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = header[version](file)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or size != member.file_size - file.tell():
                    raise ValueError(f"{member.filename}: {dtype} {shape} in {member.file_size} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def replace_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file under another name, sync it to the disk, and move it to its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(open_for_writing(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
