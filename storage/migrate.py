"""Directories of earlier versions, brought to the present format as they are read. Nothing on the disk changes.

Format 1 says so in about.json. Format 0, all before it, has no such entry, and may lack: CRCs in the journal and a
SHA-256 behind `res`; present names and forms of flags; smoothed margins in an epoch's stats; indices and certified
bounds of an attack; CRCs in an unfinished attack's records.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from catalogue.attacks import L2, METHODS
from flags.table import ALIASES
from models import margins
from models.architectures import degrees, parse
from support import forms

WORDS = {  # of flags that were booleans
    "attack_certificate": {True: "norms", False: "none"},
    "attack_normalize_output": {True: "sum", False: "none"},
}
GONE = ("max_steps", "ascent_steps", "sharpness_probes")  # flags that became constants
RECORDED = dict.fromkeys(("log_loss", "rho", "rhoL", "norm_prod"), forms.number)


def flags(found: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of flags.json under their present names and in their present form."""
    renamed = {}
    for name, value in found.items():
        new = ALIASES.get(name, name)
        if new not in GONE and (new == name or new not in found):
            renamed[new] = WORDS[new].get(value, value) if new in WORDS and isinstance(value, bool) else value
    return renamed


def results(found: Any, flags: dict[str, Any], about: dict[str, Any]) -> Any:
    """Add to a `res` what earlier versions did not record.

    Args:
      found: the value of `res`. flags: as JSON has them, before `flags`. about: of about.json.
    """
    raw = found.get("raw") if isinstance(found, dict) else None
    if isinstance(raw, dict):
        _smooth(raw, flags, about)
    elif isinstance(found, dict) and flags.get("task") == "attack":
        for part in found.values():
            _attacked(part, flags)
    return found


def _smooth(raw: dict, flags: dict[str, Any], about: dict[str, Any]) -> None:
    """Add smoothed margins and balance to the epochs that lack them (`models.margins.smoothed_stats`)."""
    recorded = [info["stats"] for info in raw.values() if not forms.wrong(info, {"stats": RECORDED})]
    n = about.get("data", {}).get("train")
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):  # not a record of this program
        model = flags["model"]
        specs = parse(model["description"], "NONE", (1 << 16, 1 << 16, 1))
        orders = degrees(specs, model["act_type"])
        for stats in recorded if forms.whole(n) else ():
            if "smoothed_q_bar" not in stats:
                stats |= margins.smoothed_stats(stats["log_loss"], n, stats, orders)


def _attacked(part: Any, flags: dict[str, Any]) -> None:
    if not isinstance(part, dict) or "errors" not in part:
        return
    n = len(part["errors"])
    part.setdefault("indices", np.arange(n))
    if "certified" not in part or certified_in_l2(flags):
        part["certified"] = np.full(n, math.nan)


def certified_in_l2(flags: dict[str, Any]) -> bool:
    """Return whether an attack's `certified` is in L2 although its distances are not.

    So it was until the flag attack_certificate, then a boolean, got its words.
    """
    method = METHODS.get(flags.get("attack_method", "cw"))
    return method is not None and method.norm != L2 and isinstance(flags.get("attack_certificate", True), bool)


def summary(found: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Return an attack's summary: earlier ones have no `tail`, and where their certified bounds are in another norm
    than their distances, these are unknown: None."""
    unknown = {"certified_median": None} if certified_in_l2(flags) else {}
    return {
        eid: {"tail": {"0": None}} | numbers | unknown if isinstance(numbers, dict) else numbers
        for eid, numbers in found.items()
    }


def records(path: Path, dtype: np.dtype, crc: Any) -> None:
    """Rewrite an unfinished attack's records with their CRCs, where they have none.

    Args:
      path: an .npy. dtype: with a field crc. crc: record -> its CRC-32.

    Raises: any Exception for a damaged file.
    """
    before = np.lib.format.open_memmap(path, "r")
    if before.dtype != np.dtype([(name, dtype[name]) for name in dtype.names or () if name != "crc"]):
        return
    temporary = path.with_name(f".{path.name}.tmp")
    after = np.lib.format.open_memmap(temporary, "w+", dtype, before.shape)
    for k, record in enumerate(before):
        for name in before.dtype.names or ():
            after[k][name] = record[name]
        after[k]["crc"] = crc(after[k])
    after.flush()
    temporary.replace(path)
