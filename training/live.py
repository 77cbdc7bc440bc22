"""The live view of a run in TensorBoard.

The event files are written with TensorBoard's own package, which is optional (requirements-tensorboard.txt). Each
accepted epoch becomes one event with all its numbers, in float32: TensorBoard's default reader takes no other type. A
number beyond its range, such as rhoL of a VGG, is infinite there; the journal has all digits.

The journal remains the reference. A resumed run writes all epochs of its journal again, into a new event file. That
file begins with a session start, which makes a running TensorBoard discard the run's earlier events; then the older
files are deleted. So no epoch is duplicated or missing, however the run ended and whenever the flag was given. Only
figures drawn from then on remain: each shows all epochs.
"""

import importlib.util
import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from catalogue.measures import INFO, describe
from flags.values import shown
from reporting import drawing, style
from support.errors import UserError
from support.screen import log

# Figures are drawn at most once in this many seconds, for at most this share of the time, and when the run is longer
# by this factor: 10000 epochs have fewer than 200 drawings.
FIGURES_EVERY, FIGURES_SHARE, FIGURES_GROWTH = 60.0, 0.02, 1.05
FIGURES_DPI = 100


def require_tensorboard() -> None:
    """Raises: UserError when TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard: TensorBoard is not installed here; install it with "
            f"{sys.executable} -m pip install -r requirements-tensorboard.txt, or leave the flag out"
        )


def events_dir(path: Path, whole: Path) -> Path:
    """Return where the events of the working directory `path` go: logs/tensorboard/<experiment>/<time>.

    They lie outside of the working directory. TensorBoard follows links, so that a run would appear twice: below its
    own name, and below `latest`.

    Args:
      whole: path, or the run that it is a part of.
    """
    whole, path = whole.resolve(), path.resolve()
    return whole.parent.parent / "tensorboard" / whole.parent.name / whole.name / path.relative_to(whole)


class Live:
    """Write a run for TensorBoard.

    Args:
      directory: the run's working directory. events: `events_dir`.
      raw: {eid: info} of the epochs accepted so far.
      E: the last epoch, whose figures are always drawn.
      write_res: makes `res` current: figures are drawn from it.
      point: the flags in which the run differs from the others of its sweep: TensorBoard's hyperparameters.

    Raises: OSError when the disk fails.
    """

    def __init__(
        self,
        directory: Path,
        events: Path,
        raw: dict[int, dict],
        E: int,
        write_res: Callable[[], None],
        point: dict[str, Any] | None = None,
    ):
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.run, self.directory, self.E, self.write_res = directory, events, E, write_res
        self.directory.mkdir(parents=True, exist_ok=True)
        older = list(self.directory.glob("events.out.tfevents.*"))
        # TensorBoard reads the files of a directory in the order of their names.
        path = self.directory / f"events.out.tfevents.{time.time():.6f}"
        self._writer = RecordWriter(open(path, "xb"))  # noqa: SIM115 (stays open for the run)
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log={"status": "START"})  # events from this step on are no longer true
        if point:
            plain = {k: v if isinstance(v, bool | int | float | str) else shown(v) for k, v in point.items()}
            self._write(step=0, summary=hparams_pb(plain, trial_id=str(events)))
        for info in raw.values():
            self._write(step=info["eid"], summary={"value": scalars(info)})
        self._writer.flush()
        for file in older:
            file.unlink()
        self.drawn_eid, self.drawn_at, self.seconds = 0, time.monotonic(), 0.0
        if raw:
            self.draw(max(raw))

    def accept(self, info: dict) -> None:
        """Add an accepted epoch, and the figures when they are due."""
        self._write(step=info["eid"], summary={"value": scalars(info)})
        self._writer.flush()
        waited = time.monotonic() - self.drawn_at
        due = waited >= max(FIGURES_EVERY, self.seconds / FIGURES_SHARE)
        if info["eid"] == self.E or (due and info["eid"] >= FIGURES_GROWTH * self.drawn_eid):
            self.draw(info["eid"])

    def draw(self, eid: int) -> None:
        """Add the run's figures as they are at epoch eid. An error here is only logged."""
        began = time.process_time()  # not wall time: a process may be suspended
        self.write_res()
        pictures = []
        try:
            with matplotlib.rc_context(fname=style.STYLE):
                for name, figure in drawing.build([self.run]).items():
                    png = io.BytesIO()
                    figure.savefig(png, format="png", dpi=FIGURES_DPI)
                    pictures.append(image(f"figures/{name}", png.getvalue()))
        except Exception as error:
            log.info("no figures for TensorBoard at epoch #%d: %s: %s", eid, type(error).__name__, error)
        self._write(step=eid, summary={"value": pictures})
        self._writer.flush()
        self.drawn_eid, self.drawn_at = eid, time.monotonic()
        self.seconds = time.process_time() - began

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _write(self, **fields) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


def scalars(info: dict) -> list[dict]:
    """Return an epoch's numbers as values of a Summary, each with its meaning (`catalogue.measures`).

    epoch/log10_loss (log10 of the true training loss), epoch/lr, epoch/rt_loss, epoch/time; stats/<key>.
    """
    values = {f"epoch/{name}": info[name] for name in ("lr", "rt_loss", "time")}
    values["epoch/log10_loss"] = info["stats"]["log_loss"] / math.log(10)
    values |= {f"stats/{name}": value for name, value in info["stats"].items()}
    meanings = {f"epoch/{name}": meaning for name, (meaning, _) in INFO.items()}
    meanings["epoch/log10_loss"] = "log10 of the true training loss"
    meanings |= {f"stats/{name}": describe(name)[0] for name in info["stats"]}
    return [
        {
            "tag": tag,
            "tensor": {"dtype": "DT_FLOAT", "tensor_shape": {}, "float_val": [value]},
            "metadata": {"plugin_data": {"plugin_name": "scalars"}, "summary_description": meanings[tag]},
        }
        for tag, value in values.items()
    ]


def image(tag: str, png: bytes) -> dict:
    """Return a picture as a value of a Summary."""
    size = [str(int.from_bytes(png[k : k + 4])).encode() for k in (16, 20)]  # width and height
    return {
        "tag": tag,
        "tensor": {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 3}]}, "string_val": [*size, png]},
        "metadata": {"plugin_data": {"plugin_name": "images"}},
    }
