"""Checksums of what a run writes: a CRC-32 in each line of the journal, a SHA-256 behind the pickle of `res`.

They notice accidents, not forgers. Directories of older versions have none; that is said once in a process.
"""

import hashlib
import json
import math
import zlib
from typing import Any

import safe_pickle
from screen import log

_CRC = b', "crc32": '


# One object for every NaN that is read, so that equal records compare equal.
_CONSTANTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def with_crc(info: dict) -> bytes:
    """A line of the journal: JSON whose last entry is the CRC-32 of all before it."""
    text = json.dumps(info).encode()[:-1]
    return text + _CRC + str(zlib.crc32(text)).encode() + b"}\n"


def without_crc(line: bytes) -> dict:
    """The info of a line. Raises: ValueError for a line that is no JSON, or has another CRC than it says."""
    info = json.loads(line, parse_constant=_CONSTANTS.__getitem__)
    if isinstance(info, dict) and (crc := info.pop("crc32", None)) is not None:
        if crc != zlib.crc32(line.rsplit(_CRC, 1)[0]):
            raise ValueError("another CRC")
    elif isinstance(info, dict) and type(list(info.values())[-1]) is int:  # no older line ends so
        raise ValueError("its CRC has another name")
    else:
        note_without_checksums()
    return info


_MARK = b"\nsha256:"


def digest(content: bytes) -> bytes:
    """What follows behind a pickle's end."""
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def checked_pickle(content: bytes) -> Any:
    """The value of a `res`. Raises: any Exception for content that is damaged."""
    size = len(digest(b""))
    pickled, said = content[:-size], content[-size:]
    if said.startswith(_MARK):
        if said != digest(pickled):
            raise ValueError("its SHA-256 is another one")
        return safe_pickle.loads(pickled)
    value, n = safe_pickle.load_first(content)
    if n < len(content):
        raise ValueError(f"{len(content) - n} bytes too many")
    note_without_checksums()
    return value


def note_without_checksums() -> None:
    """Say, once in a process, that a directory is of a version without checksums."""
    if not _noted:
        _noted.append(True)
        log.warning("note: results of an older version, without checksums: a flipped bit in them is not noticed")


_noted: list[bool] = []
