"""A run's working directory: what is in it, and how it survives a crash. No TensorFlow here.

    flags.json          the run's flags
    about.json          experiment, command, versions, machine and data that the run began with
    stdout              what was printed
    journal.jsonl       one line of JSON for each accepted epoch (or unit of a measurement), appended; each with
                        its CRC-32
    res                 pickled dict {'flags': ..., 'raw': {eid: info}}: plain Python and NumPy only; its SHA-256
                        follows behind the pickle's end, where unpicklers do not read
    checkpoint.npz      weights of the last saved epoch and what a resumed run needs
    archive/eid-*.npz   checkpoints that are kept for good
    lock                held by the process that writes here; says which one it is

Files other than stdout and the journal are replaced atomically: a reader, or a crash, finds the old
file or the new one. A checkpoint knows how long the journal was when it was written. Resuming cuts
the journal back to there, so that both tell of the same epochs.
"""

import contextlib
import fcntl
import json
import math
import os
import pickle
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import checksums
import forms
from errors import UserError
from files import arrays_of, parsed, read_bytes, replace_atomically
from models import margins
from screen import log

ROOT = Path(__file__).resolve().parent  # of the program
KEPT = "kept "  # begins the names of a checkpoint's arrays that are no weights


def create(logs: Path, name: str, files: dict[str, dict] | None = None) -> Path:
    """Make `logs/name/<YYYYmmdd_HHMMSS>` and return it. A second one in the same second gets a suffix.

    Args:
      files: {name: content} of JSON files to begin with. When one cannot be written, nothing is left.

    Raises: UserError when the directory cannot be made; OSError when the files cannot be written.
    """
    stamp = time.strftime("%Y%m%d_%H%M%S")
    for suffix in ("", *(f"_{k}" for k in range(2, 1000))):
        path = logs / name / (stamp + suffix)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.is_dir():
                continue
            raise UserError(f"cannot make the working directory {path}: a file is in the way") from None
        except OSError as error:
            raise UserError(
                f"cannot make the working directory {path}: {error.strerror}; "
                "make the place writable; a training's can be chosen with --logs_dir"
            ) from None
        fill(path, files or {})
        _point_latest(path)
        return path
    raise UserError(f"cannot make the working directory {logs / name / stamp}: too many in one second")


def fill(path: Path, files: dict[str, dict]) -> None:
    """Write the JSON files that a working directory begins with. When one fails, nothing is left."""
    path.mkdir(exist_ok=True)
    try:
        for name, content in files.items():
            WorkDir(path).write_json(name, content)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _point_latest(path: Path) -> None:
    """Let the symlink `latest` beside path point to it, where the file system has symlinks."""
    link = path.with_name(f".latest.{os.getpid()}")
    with contextlib.suppress(OSError):
        link.symlink_to(path.name)
        os.replace(link, path.with_name("latest"))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a working directory while it is written. It is the kernel's: it ends with its owner.

    Raises: UserError when another process holds it.
    """
    with open(path / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = " ".join(file.read().split()) or "another process"
            raise UserError(f"{path}: is being written by {owner}; wait for its end, or stop it") from None
        except OSError as error:
            log.info("note: this file system has no locks (%s); start one process at a time here", error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


class WorkDir:
    """One run's working directory, as the run itself writes it.

    Args:
      path: an existing directory.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._journal: BinaryIO | None = None

    def write_json(self, name: str, content: dict) -> None:
        text = json.dumps(content, indent=1) + "\n"
        replace_atomically(self.path / name, lambda file: file.write(text.encode()))

    def write_res(self, res: dict) -> None:
        content = pickle.dumps(res, protocol=5)
        replace_atomically(self.path / "res", lambda file: file.write(content + checksums.digest(content)))

    # The journal

    def append(self, info: dict) -> int:
        """Add one accepted epoch's info; returns the journal's length in bytes."""
        if self._journal is None:
            # Stays open for the run.
            self._journal = open(self.path / "journal.jsonl", "ab")  # noqa: SIM115
        self._journal.write(checksums.with_crc(info))
        self._journal.flush()
        return self._journal.tell()

    def rewind(self, n_bytes: int | None = None, key: str = "eid") -> dict[int, dict]:
        """Cut the journal back to its first n_bytes and return {info[key]: info} of what is left.

        Args:
          n_bytes: None for all whole lines.

        Raises: UserError when the journal is shorter than that.
        """
        path = self.path / "journal.jsonl"
        have = path.stat().st_size if path.exists() else 0
        if n_bytes is None:
            n_bytes = read_bytes(path).rfind(b"\n") + 1 if have else 0
        if have < n_bytes:
            raise UserError(
                f"{path}: has {have} bytes where the checkpoint needs {n_bytes}: it was cut or replaced, "
                "so this run cannot be resumed; its archived epochs and res can still be read"
            )
        if have:
            os.truncate(path, n_bytes)
        return read_journal(self.path, key)

    # Checkpoints

    def save(
        self,
        weights: list[tuple[str, np.ndarray]],
        state: dict,
        archive: bool = False,
        kept: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Write the current checkpoint, and keep it in the archive too if asked.

        Args:
          weights: [(name, array), ...] in layer order.
          state: JSON-able; has 'eid'.
          kept: arrays that the run needs to go on with.
        """
        arrays = {f"{k:03d} {name}": array for k, (name, array) in enumerate(weights)}
        arrays |= {f"{KEPT}{name}": array for name, array in (kept or {}).items()}
        arrays["state"] = np.array(json.dumps(state))
        target = self.path / "checkpoint.npz"
        if archive:
            target = archive_path(self.path, state["eid"])
            target.parent.mkdir(exist_ok=True)
        replace_atomically(target, lambda file: np.savez(file, allow_pickle=False, **arrays))
        if archive:
            # The same file under a second name. Archive first: a crash between the two repeats the
            # epoch, a crash the other way round would leave a hole in the archive.
            current = self.path / "checkpoint.npz"
            if not _link(target, current):
                replace_atomically(current, lambda file: file.write(target.read_bytes()))


def _link(source: Path, target: Path) -> bool:
    """Hard-link source to target atomically; False where the file system cannot."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.link(source, temporary)
    except OSError:
        return False
    os.replace(temporary, target)
    return True


# Reading a working directory


def archive_path(directory: Path | str, eid: int) -> Path:
    return Path(directory) / "archive" / f"eid-{eid:06d}.npz"


def check_run(directory: Path | str) -> Path:
    """The directory as a Path. Raises: UserError when it is no run's working directory."""
    path = Path(directory)
    try:
        is_dir = stat.S_ISDIR(path.stat().st_mode)
        what = "not a directory"
    except FileNotFoundError:
        is_dir, what = False, "no such directory"
    except (OSError, ValueError) as error:  # a loop of links, a name too long, no permission
        is_dir, what = False, f"cannot be looked at ({getattr(error, 'strerror', None) or error})"
    if not is_dir:
        raise UserError(f"{path}: {what}; expected a working directory, logs/<experiment>/<time>")
    if not os.path.lexists(path / "flags.json"):
        raise UserError(f"{path}: not a working directory (it has no flags.json)")
    return path


def _read_json(path: Path) -> dict:
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; this working directory is not complete") from None
    found = parsed(content, json.loads, str(path), "get the file again, or run it again")
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: it holds no dict; get the file again, or run it again")
    return found


def read_flags(directory: Path | str) -> dict:
    """The flags as JSON has them. Raises: UserError (no run, or damaged)."""
    return _read_json(check_run(directory) / "flags.json")


def read_about(directory: Path | str) -> dict:
    """about.json: where, when and with what the run was begun. Raises: UserError (no run, or damaged)."""
    path = check_run(directory) / "about.json"
    found = _read_json(path)
    for key, form in ABOUT.items():
        if key in found and forms.wrong(found[key], form):
            raise UserError(f"{path}: damaged: {key} is not what a run writes there; get the file again")
    return found


ABOUT = {  # what is used of about.json; a directory of an older version may lack it
    "experiment": forms.text,
    "data": {},
    "threads": forms.each(forms.whole),
    "xla": forms.boolean,
    "measured": forms.each(forms.number),
    "cluster": forms.whole_or_text_or_none,
}


def read_summary(directory: Path | str) -> dict:
    """An attack's summary, {epoch, as text: its numbers}. Raises: UserError (no run, or damaged)."""
    return _read_json(check_run(directory) / "summary.json")


def read_journal(directory: Path | str, key: str = "eid") -> dict[int, dict]:
    """{info[key]: info} of the journal. A last line that a crash cut short is left out."""
    path = Path(directory) / "journal.jsonl"
    try:
        lines = read_bytes(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    raw = {}
    for number, line in enumerate(lines, 1):
        try:
            info = checksums.without_crc(line)
            raw[info[key]] = info
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise UserError(f"{path}: line {number} is damaged; {BEFORE_IT}") from None
        if key == "eid" and info[key] != number:
            raise UserError(
                f"{path}: line {number} is of epoch {info[key]}, not of epoch {number}: two processes "
                f"wrote it, or it was edited; {BEFORE_IT}"
            )
    return raw


BEFORE_IT = "archived epochs and checkpoints can still be read"


def read_res(directory: Path | str) -> Any:
    """The file `res` as it is. Raises: FileNotFoundError; UserError for a damaged one.

    The unpickler admits plain Python types and NumPy arrays and nothing else.
    """
    path = Path(directory) / "res"
    otherwise = "it was not loaded: get the file again from where it came from"
    what = f"{path}: not a pickle of plain data and arrays"
    return _with_one_nan(parsed(read_bytes(path), checksums.checked_pickle, what, otherwise))


def _with_one_nan(value: Any) -> Any:
    """The same, with the object math.nan for every NaN in its dicts: then equal results compare equal."""
    if isinstance(value, dict):
        return {key: _with_one_nan(inner) for key, inner in value.items()}
    return math.nan if isinstance(value, float) and value != value else value


def load(directory: Path | str) -> dict:
    """A run's `res`: {'flags': ..., 'raw': {eid: info}} (an attack's: {eid: results}).

    Where `res` is missing, it is rebuilt from the flags and the journal. Of a training run that is going on, or was
    killed, the journal may hold more epochs than `res`; then these are taken too.

    Epochs that were recorded without smoothed margins get them here (`models.margins.smoothed_stats`).

    Raises: UserError for a directory that is no run, or damaged.
    """
    path = check_run(directory)
    try:
        res = read_res(path)
    except FileNotFoundError:
        res = {"flags": read_flags(path), "raw": read_journal(path)}
    raw = res.get("raw") if isinstance(res, dict) else None
    if isinstance(raw, dict) and (last := _last_eid(path)) is not None and last not in raw:
        res["raw"] = read_journal(path)
    _smooth(path, res)
    return res


def _smooth(path: Path, res: Any) -> None:
    """Add smoothed margins and balance to the epochs of a run that was recorded before they were."""
    raw = res.get("raw") if isinstance(res, dict) else None
    if not isinstance(raw, dict):
        return
    older = [
        stats
        for info in raw.values()
        if not forms.wrong(info, {"stats": RECORDED}) and "smoothed_q_bar" not in (stats := info["stats"])
    ]
    n: Any = read_about(path).get("data", {}).get("train") if older and (path / "about.json").exists() else None
    if not forms.whole(n):
        return
    for stats in older:
        n_layers = sum(re.fullmatch(r"rho_\d+", str(key)) is not None for key in stats)
        # relu2 is told by its norms: each activation doubles the degree of the layers before it.
        ones, doubled = [1] * n_layers, [2 ** (n_layers - 1 - k) for k in range(n_layers)]
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):  # not a record of ours
            made = margins.smoothed_stats(stats["log_loss"], n, stats, ones)
            if stats["rhoL"] and not math.isclose(stats["rhoL"], stats["rho"] ** n_layers, rel_tol=1e-9):
                made = margins.smoothed_stats(stats["log_loss"], n, stats, doubled)
            stats |= made


RECORDED = dict.fromkeys(("log_loss", "rho", "rhoL", "norm_prod"), forms.number)


def _last_eid(path: Path) -> int | None:
    """The last epoch of a training run's journal, from its last whole line; None where there is none."""
    try:
        lines = read_bytes(path / "journal.jsonl").split(b"\n")
        return json.loads(lines[-2]).get("eid")
    except (FileNotFoundError, IndexError, ValueError, AttributeError):  # nothing there yet; damaged
        return None


def stored_eids(directory: Path | str) -> list[int]:
    """The epochs whose weights can be loaded, ascending: the archived ones and the current one."""
    path = check_run(directory)
    eids = set(archived_eids(path))
    if (path / "checkpoint.npz").exists():
        eids.add(load_checkpoint(path)[1]["eid"])
    return sorted(eids)


def archived_eids(path: Path) -> list[int]:
    """The epochs that were kept for good, ascending."""
    names = (re.fullmatch(r"eid-(\d+)\.npz", file.name) for file in (path / "archive").glob("eid-*.npz"))
    return sorted(int(match[1]) for match in names if match)


def choose_eids(directory: Path | str, wanted: Any) -> list[int]:
    """The stored epochs that an `eid` flag means. Raises: UserError for one that is not stored."""
    stored = stored_eids(directory)
    if not stored and (seeds := sorted(path.name for path in Path(directory).glob("seed-*"))):
        raise UserError(f"{directory}: holds a run for each seed, {', '.join(seeds)}; give one of these")
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
    """([(name, array), ...] in layer order, state) of an archived epoch, or of the current checkpoint.

    The state is as it was saved, and has the arrays `kept`.

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
    return parsed(read_bytes(path), weights_and_state, str(path), otherwise)


def load_weights(directory: Path | str, eid: Any = "last") -> list[tuple[str, np.ndarray]]:
    """The weights of a stored epoch, [(name, float32 array), ...] in layer order.

    Args:
      eid: an epoch, or 'last' for the current checkpoint.

    Raises: UserError when the directory is no run, or the epoch is not stored, or the file damaged.
    """
    path = check_run(directory)
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


def table(directory: Path | str) -> np.ndarray:
    """A run's record as a structured array: `reporting.rows.table`."""
    from reporting import rows

    return rows.table(directory)


if __name__ == "__main__":  # python results.py <directory> [--csv FILE]
    from reporting.rows import main

    raise SystemExit(main(sys.argv[1:]))
