"""Checksums of what a run writes: a CRC-32 in each line of the journal, a SHA-256 behind the pickle of `res`.

They detect corruption, not tampering. Directories of earlier versions may have none: the process then warns once.
"""

import hashlib
import json
import math
import zlib
from functools import cache
from typing import Any

from support import safe_pickle
from support.screen import log

_CRC = b', "crc32": '


# A single object for every NaN, so that equal records compare equal.
_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def with_crc(info: dict) -> bytes:
    """Return a line of the journal: JSON whose last entry is the CRC-32 of what precedes it."""
    text = json.dumps(info).encode()[:-1]
    return text + _CRC + str(zlib.crc32(text)).encode() + b"}\n"


def without_crc(line: bytes, required: bool = True) -> dict:
    """Return the info of a line.

    Args:
      required: whether a line without a CRC is damaged, as since format 1.

    Raises: ValueError for a line that is not JSON, or whose CRC is missing or wrong.
    """
    info = json.loads(line, parse_constant=_CONSTANTS.__getitem__)
    crc = info.pop("crc32", None)
    if crc is not None and crc != zlib.crc32(line.rsplit(_CRC, 1)[0]):
        raise ValueError("another CRC")
    if crc is None and required:
        raise ValueError("no CRC")
    if crc is None:
        note_without_checksums()
    return info


_MARK = b"\nsha256:"


def digest(content: bytes) -> bytes:
    """Return what follows the end of a pickle."""
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def checked_pickle(content: bytes, required: bool = True) -> Any:
    """Return the value of a `res`.

    Args:
      required: whether a file without a SHA-256 is damaged, as since format 1.

    Raises: any Exception for damaged content.
    """
    size = len(digest(b""))
    pickled, recorded = content[:-size], content[-size:]
    if recorded.startswith(_MARK):
        if recorded != digest(pickled):
            raise ValueError("its SHA-256 differs")
        return safe_pickle.loads(pickled)
    value, n = safe_pickle.load_first(content)
    if n < len(content):
        raise ValueError(f"{len(content) - n} bytes too many")
    if required:
        raise ValueError("no SHA-256")
    note_without_checksums()
    return value


@cache
def note_without_checksums() -> None:
    """Warn, once per process, that a directory was written by a version without checksums."""
    log.warning("note: these results, of an earlier version, have no checksums: a flipped bit goes unnoticed")
