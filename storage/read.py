"""Reading a run's working directory (`storage.workdir` describes it). What is read is checked here, once."""

import contextlib
import json
import math
import os
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from catalogue.tasks import MEASUREMENTS
from storage import migrate
from support import checksums, forms
from support.errors import UserError, reason
from support.files import arrays_of, parsed, read_bytes

FORMAT = 1  # of new directories; `storage.migrate` has what earlier ones lack
KEPT = "kept "  # prefix of a checkpoint's arrays that are not weights


def archive_path(directory: Path | str, eid: int) -> Path:
    """Return the file of an archived epoch."""
    return Path(directory) / "archive" / f"eid-{eid:06d}.npz"


def check_run(directory: Path | str) -> Path:
    """Return the directory as a Path. Raises: UserError unless it is a run's working directory."""
    path = Path(directory)
    try:
        is_dir = stat.S_ISDIR(path.stat().st_mode)
        what = "not a directory"
    except FileNotFoundError:
        is_dir, what = False, "no such directory"
    except (OSError, ValueError) as error:  # a loop of links, a name too long, no permission
        is_dir, what = False, f"cannot be read ({reason(error)})"
    if not is_dir:
        raise UserError(f"{path}: {what}; expected a working directory, logs/<experiment>/<time>")
    if not os.path.lexists(path / "flags.json"):
        raise UserError(f"{path}: not a working directory (it has no flags.json)")
    return path


def read_json(path: Path) -> dict:
    """Return the content of a JSON file that holds an object. Raises: UserError (missing, or damaged)."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; this working directory is incomplete") from None
    found = parsed(content, json.loads, str(path), "get the file again, or run it again")
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: not a JSON object; get the file again, or run it again")
    return found


def read_flags(directory: Path | str) -> dict:
    """Return the flags as JSON has them, under their present names. Raises: UserError (not a run, or damaged)."""
    return migrate.flags(read_json(check_run(directory) / "flags.json"))


def read_about(directory: Path | str) -> dict:
    """Return about.json: where, when and with what the run began. Raises: UserError (not a run, or damaged)."""
    path = check_run(directory) / "about.json"
    found = read_json(path)
    for key, form in ABOUT.items():
        if key in found and forms.wrong(found[key], form):
            raise UserError(f"{path}: damaged: {key} is not what a run writes there; get the file again")
    if found.get("format", 0) > FORMAT:
        raise UserError(f"{path}: format {found['format']}; this version reads up to {FORMAT}: use a newer one")
    return found


def began(directory: Path | str) -> datetime:
    """Return when a run began, in UTC. It orders the runs of an experiment.

    Where it is not recorded, as in a directory of an early version, when flags.json was written.
    """
    path = Path(directory)
    with contextlib.suppress(UserError, TypeError, ValueError, KeyError):
        return datetime.fromisoformat(read_about(path)["began"]).astimezone(UTC)
    return datetime.fromtimestamp((path / "flags.json").stat().st_mtime, UTC)


def runs_in(parent: Path) -> list[Path]:
    """Return the working directories in a folder, except through the link `latest`."""
    return [path for path in parent.glob("*") if not path.is_symlink() and (path / "flags.json").is_file()]


def _about(path: Path) -> dict:
    """Return `read_about`, or {} where an earlier version wrote none."""
    return read_about(path) if (path / "about.json").exists() else {}


def _is_older(path: Path) -> bool:
    return _about(path).get("format", 0) < 1


ABOUT = {  # the entries that are used; a directory of an earlier version may lack them
    "format": forms.whole,
    "experiment": forms.text,
    "data": {},
    "threads": forms.each(forms.whole),
    "xla": forms.boolean,
    "measured": forms.each(forms.number),
    "cluster": forms.whole_or_text_or_none,
}


def read_summary(directory: Path | str) -> dict:
    """Return an attack's summary, {epoch, as text: its numbers}. Raises: UserError (not a run, or damaged)."""
    path = check_run(directory)
    return migrate.summary(read_json(path / "summary.json"), read_json(path / "flags.json"))


def read_journal(directory: Path | str, key: str = "eid") -> dict[int, dict]:
    """Return {info[key]: info} of the journal, without a last line that a crash cut short."""
    path = Path(directory) / "journal.jsonl"
    try:
        lines = read_bytes(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    raw: dict[int, dict] = {}
    older = bool(lines) and _is_older(path.parent)
    for number, line in enumerate(lines, 1):
        try:
            info = checksums.without_crc(line, required=not older)
            raw[info[key]] = info
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise UserError(f"{path}: line {number} is damaged; {BEFORE_IT}") from None
        if key == "eid" and info[key] != number:
            raise UserError(
                f"{path}: line {number} is of epoch {info[key]}, not of epoch {number}: two processes "
                f"wrote it, or it was edited; {BEFORE_IT}"
            )
    return raw


BEFORE_IT = "archived epochs and checkpoints can still be read"


def read_res(directory: Path | str) -> Any:
    """Return the content of `res`. Raises: FileNotFoundError; UserError for a damaged one.

    The unpickler admits only plain Python types and NumPy arrays.
    """
    path = Path(directory) / "res"
    otherwise = "it was not loaded: get the file again from where it came from"
    what = f"{path}: not a pickle of plain data and arrays"
    content, older = read_bytes(path), _is_older(path.parent)
    return _with_one_nan(parsed(content, lambda c: checksums.checked_pickle(c, required=not older), what, otherwise))


def _with_one_nan(value: Any) -> Any:
    """Replace every NaN in its dicts by the object math.nan, so that equal results compare equal."""
    if isinstance(value, dict):
        return {key: _with_one_nan(inner) for key, inner in value.items()}
    return math.nan if isinstance(value, float) and value != value else value


def load(directory: Path | str) -> dict:
    """Return a run's `res`: {'flags': ..., 'raw': {eid: info}} (an attack's: {eid: results}).

    A missing `res` is rebuilt from the flags and the journal. When a training run is still running, or was killed,
    its journal may have more epochs than `res`; these are included.

    Raises: UserError for a directory that is not a run, or is damaged.
    """
    path = check_run(directory)
    try:
        res = read_res(path)
    except FileNotFoundError:
        if read_flags(path).get("task") in MEASUREMENTS:  # its journal has units, not epochs
            raise UserError(f"{path}: it is not finished (resume it with --resume)") from None
        res = {"flags": read_flags(path), "raw": read_journal(path)}
    raw = res.get("raw") if isinstance(res, dict) else None
    if isinstance(raw, dict) and (last := _last_eid(path)) is not None and last not in raw:
        res["raw"] = read_journal(path)
    return migrate.results(res, read_json(path / "flags.json"), _about(path)) if _is_older(path) else res


def _last_eid(path: Path) -> int | None:
    """Return the epoch of the journal's last whole line; None without one."""
    try:
        lines = read_bytes(path / "journal.jsonl").split(b"\n")
        return json.loads(lines[-2]).get("eid")
    except (FileNotFoundError, IndexError, ValueError, AttributeError):  # nothing yet, or damaged
        return None


def stored_eids(directory: Path | str) -> list[int]:
    """Return the epochs whose weights can be loaded, ascending: the archived ones and the current one."""
    path = check_run(directory)
    eids = set(archived_eids(path))
    if (path / "checkpoint.npz").exists():
        eids.add(load_checkpoint(path)[1]["eid"])
    return sorted(eids)


def archived_eids(path: Path) -> list[int]:
    """Return the archived epochs, ascending."""
    names = (re.fullmatch(r"eid-(\d{6,18})\.npz", file.name) for file in (path / "archive").glob("eid-*.npz"))
    eids = [int(match[1]) for match in names if match]
    return sorted(eid for eid in eids if archive_path(path, eid).exists())


def choose_eids(directory: Path | str, wanted: Any) -> list[int]:
    """Return the stored epochs that an `eid` flag means. Raises: UserError for one that is not stored."""
    if isinstance(wanted, list) and set(wanted) <= set(archived_eids(check_run(directory))):
        return wanted  # whatever the checkpoint is
    stored = stored_eids(directory)
    if not stored and (seeds := sorted(path.name for path in Path(directory).glob("seed-*"))):
        raise UserError(f"{directory}: has one run per seed, {', '.join(seeds)}; give one of these")
    if not stored:
        raise UserError(f"{directory}: has no checkpoint yet; run the experiment first (or resume it)")
    if wanted == "all":
        return stored
    if wanted == "last":
        return stored[-1:]
    missing = [eid for eid in wanted if eid not in stored]
    if missing:
        raise UserError(
            f"--eid {','.join(map(str, missing))}: not stored in {directory}; "
            f"stored are {', '.join(map(str, stored))} (or say last, or all)"
        )
    return wanted


def load_checkpoint(directory: Path | str, eid: int | None = None) -> tuple[list[tuple[str, np.ndarray]], dict]:
    """Return ([(name, array), ...] in layer order, state) of an archived epoch, or of the current checkpoint.

    The state is as it was saved, with the arrays `kept`.

    Raises: FileNotFoundError when there is none; UserError when the file is damaged.
    """
    path = Path(directory) / "checkpoint.npz" if eid is None else archive_path(directory, eid)

    def weights_and_state(content):
        arrays = arrays_of(content)
        state = json.loads(str(arrays.pop("state")))
        state["eid"]
        state["kept"] = {key.removeprefix(KEPT): arrays.pop(key) for key in sorted(arrays) if key.startswith(KEPT)}
        return [(key[4:], arrays[key]) for key in sorted(arrays)], state

    otherwise = "delete it and use another epoch, or run the experiment again"
    if eid is None:
        otherwise = (
            "delete it: archived epochs remain, and --resume continues from the newest of them, else from epoch 1"
        )
    weights, state = parsed(read_bytes(path), weights_and_state, str(path), otherwise)
    if eid is not None and state["eid"] != eid:
        raise UserError(f"{path}: holds epoch {state['eid']}, not {eid}: it was copied or renamed; {otherwise}")
    return weights, state


def load_weights(directory: Path | str, eid: Any = "last") -> list[tuple[str, np.ndarray]]:
    """Return the weights of a stored epoch, [(name, float32 array), ...] in layer order.

    Args:
      eid: an epoch, or 'last' for the current checkpoint.

    Raises: UserError when the directory is not a run, the epoch is not stored, or the file is damaged.
    """
    path = check_run(directory)
    if eid != "last" and (isinstance(eid, bool) or not isinstance(eid, int | np.integer)):
        raise UserError(f"{path}: epoch {eid!r}: expected a number, or 'last'")
    if eid != "last" and archive_path(path, eid).exists():
        return load_checkpoint(path, eid)[0]
    with contextlib.suppress(FileNotFoundError):
        weights, state = load_checkpoint(path)
        if eid in ("last", state["eid"]):
            return weights
    stored = stored_eids(path)
    if not stored:
        raise UserError(f"{path}: has no checkpoint yet; run the experiment first (or resume it)")
    raise UserError(f"{path}: epoch {eid} is not stored; stored are {', '.join(map(str, stored))}")


def are_epochs_of_one_run(eids: list[int]) -> bool:
    """Return whether measured networks, of these epochs, are several epochs of one run: their mean means little.

    Networks of several seeds share an epoch.
    """
    return len(eids) > 1 and len(set(eids)) == len(eids)
