"""Writing a run's working directory, and how it survives a crash.

    flags.json          the run's flags
    about.json          experiment, command, versions, machine and data that the run began with; the format
    stdout              what was printed
    journal.jsonl       one line of JSON per accepted epoch (or unit of a measurement), appended; each with its CRC-32
    res                 pickled dict {'flags': ..., 'raw': {eid: info}}: plain Python and NumPy only; its SHA-256
                        follows the end of the pickle, where unpicklers do not read
    checkpoint.npz      weights of the last saved epoch, and the state that a resumed run needs
    archive/eid-*.npz   checkpoints that are never replaced
    lock                held by the writing process, which it names

Files other than stdout and the journal are replaced atomically: a reader, or a crash, finds the old file or the new
one. A checkpoint records the length of the journal at that time. Resuming cuts the journal back to that length, so
that both describe the same epochs.
"""

import contextlib
import fcntl
import json
import os
import pickle
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from storage.read import FORMAT, KEPT, archive_path, began, read_journal, runs_in
from support import __version__, checksums
from support.errors import Stopped, UserError, reason
from support.files import ROOT, open_for_writing, read_bytes, replace_atomically
from support.screen import log, shown_path

# Making a directory


def logs_dir(flag: str | None) -> Path:
    """Return the folder of all working directories: the flag logs_dir, or logs in the program's folder."""
    return Path(flag) if flag else ROOT / "logs"


def about(experiment: str) -> dict[str, Any]:
    """Return run metadata: where, when and with what a run began. It goes into about.json."""
    return {
        "format": FORMAT,
        "experiment": experiment,
        "command": shlex.join(map(_lasting, sys.argv)),
        "began": datetime.now(UTC).isoformat(sep=" ", timespec="microseconds"),
        "git": git_revision(),
        "versions": {"program": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("tensorflow", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _lasting(word: str) -> str:
    """Return a word of the command line. A path through the symlink `latest` becomes the path that it points to
    now."""
    if "latest" in Path(word).parts and Path(word).exists():
        return shlex.split(shown_path(Path(word)))[0]
    return word


def git_revision() -> str | None:
    """Return the program's revision, followed by + when files have changed; None outside git."""
    try:
        git = ["git", "-C", str(ROOT)]
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+" if changed.returncode else "")


def create(logs: Path, name: str, files: dict[str, dict] | None = None) -> Path:
    """Make `logs/name/<YYYYmmdd_HHMMSS>` and return it. A second one in the same second gets a suffix.

    Args:
      files: {name: content} of its first JSON files. When one cannot be written, nothing remains.

    Raises: UserError when the directory cannot be made; OSError when the files cannot be written.
    """
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    _begin_after_others(logs / name, files)
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
                f"cannot make the working directory {path}: {reason(error)}; "
                "make that folder writable, or choose another for a training with --logs_dir"
            ) from None
        fill(path, files or {})
        _point_latest(path)
        return path
    raise UserError(f"cannot make the working directory {logs / name / stamp}: too many in one second")


def _begin_after_others(parent: Path, files: dict[str, dict] | None) -> None:
    """Date a new directory after all others of its experiment, even if the clock was set back."""
    about = (files or {}).get("about.json", {})
    if "began" in about:
        others = [began(path) for path in runs_in(parent)]
        now = max([datetime.fromisoformat(about["began"]), *(other + timedelta(microseconds=1) for other in others)])
        about["began"] = now.isoformat(sep=" ", timespec="microseconds")


def fill(path: Path, files: dict[str, dict]) -> None:
    """Write the first JSON files of a working directory. When one fails, nothing new remains."""
    path.mkdir(exist_ok=True)
    new = [path / name for name in files if not (path / name).exists()]
    try:
        for name, content in files.items():
            WorkDir(path).write_json(name, content)
    except OSError:
        with contextlib.suppress(OSError):  # a folder that was there before may hold an archive
            for file in new:
                file.unlink(missing_ok=True)
            path.rmdir()
        raise


def _point_latest(path: Path) -> None:
    """Point the symlink `latest` next to path at it, where the file system has symlinks."""
    link = path.with_name(f".latest.{os.getpid()}")
    with contextlib.suppress(OSError):
        link.symlink_to(path.name)
        os.replace(link, path.with_name("latest"))


WRITTEN = ("lock", "stdout", "journal.jsonl", "checkpoint.npz", "res", "archive", "figures")  # into a run's directory


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context manager: hold the lock on a working directory. The kernel releases it when the process ends.

    The directory itself is locked, too: a file `lock` that somebody removes does not let a second process in.

    Raises: UserError when another process holds it, or the directory contains a link or a pipe to write to.
    """
    for name in WRITTEN:
        place = path / name
        if place.exists() and not place.is_file() and not place.is_dir():
            raise UserError(f"{place}: not a regular file; remove it")
        if place.is_symlink():
            raise UserError(
                f"{path / name}: a link; the program writes only to files of the directory itself: remove it"
            )
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(open_for_writing(path / "lock"), "r+", encoding="utf-8"))
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        try:
            for held in (file, folder):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = " ".join(file.read().split()) or "another process"
            raise UserError(f"{path}: {owner} is writing there; wait until it ends, or stop it") from None
        except OSError as error:
            log.info("note: this file system has no locks (%s); start only one process at a time here", reason(error))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


@contextlib.contextmanager
def resumable(command: str, path: Path, after: Callable[[], str]) -> Iterator[None]:
    """Context manager: when a signal ends it, log how far the task got, and the command that resumes it.

    Args:
      command: such as './run.sh <experiment>'. path: the directory to resume.
      after: returns what is done, in words.
    """
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        log.info("stopped after %s; resume with:", after())
        log.info("  %s --resume %s", command, shown_path(path))
        raise


class WorkDir:
    """A run's working directory, as the run itself writes it.

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
        """Append one accepted epoch's info; returns the journal's length in bytes."""
        if self._journal is None:
            found = open_for_writing(self.path / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self._journal = open(found, "ab")  # noqa: SIM115 (open for the whole run)
        self._journal.write(checksums.with_crc(info))
        self._journal.flush()
        return self._journal.tell()

    def rewind(self, n_bytes: int | None = None, key: str = "eid") -> dict[int, dict]:
        """Cut the journal back to its first n_bytes, and return {info[key]: info} of its lines.

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
        """Write the current checkpoint, and with `archive` archive it as well.

        Args:
          weights: [(name, array), ...] in layer order.
          state: JSON-serializable; has 'eid'.
          kept: further arrays that a resumed run needs.
        """
        if self._journal is not None:
            os.fsync(self._journal.fileno())  # a checkpoint names a length that the journal has on the disk
        arrays = {f"{k:03d} {name}": array for k, (name, array) in enumerate(weights)}
        arrays |= {f"{KEPT}{name}": array for name, array in (kept or {}).items()}
        arrays["state"] = np.array(json.dumps(state))
        target = self.path / "checkpoint.npz"
        if archive:
            target = archive_path(self.path, state["eid"])
            target.parent.mkdir(exist_ok=True)
        replace_atomically(target, lambda file: np.savez(file, allow_pickle=False, **arrays))
        if archive:
            # The same file under a second name. Archive first: a crash between the two repeats the epoch; in the
            # other order it would leave a hole in the archive.
            current = self.path / "checkpoint.npz"
            if not _link(target, current):
                replace_atomically(current, lambda file: file.write(target.read_bytes()))


def _link(source: Path, target: Path) -> bool:
    """Hard-link source to target atomically. Returns False where the file system cannot."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.link(source, temporary)
    except OSError:
        return False
    os.replace(temporary, target)
    return True
