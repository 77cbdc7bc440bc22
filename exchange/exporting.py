"""Exports stored epochs of a run, and checks each export against the network."""

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.context import Context
from exchange import keras_form, npz_form, onnx_form
from exchange.chain import Logits
from flags import values
from storage import read
from storage.run_flags import of_trained
from support.errors import UserError, reason

SUFFIX = {"keras": ".keras", "saved_model": "", "onnx": ".onnx", "npz": ".npz"}
FORMS: dict[str, Callable[[Any, Path, dict[str, Any]], Logits]] = {  # write to a path; returns the logits read back
    "keras": keras_form.write_keras,
    "saved_model": keras_form.write_saved_model,
    "onnx": onnx_form.write,
    "npz": npz_form.write,
}
TOLERANCE = 1e-5  # of an image's logits, relative to the largest of them
CHECK_BATCH = 500
SAVED_MODEL_HOLDS = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}


def metadata(directory: Path, eid: int) -> dict[str, Any]:
    """Return the metadata of an export: experiment, epoch, log_loss, q_min, rho, log_frame, flags."""
    info = read.load(directory)["raw"].get(eid, {})
    stats = info.get("stats") or {}
    about = read.read_about(directory) if (directory / "about.json").exists() else {}
    return {
        "experiment": about.get("experiment", ""),
        "epoch": eid,
        **{key: stats.get(key) for key in ("log_loss", "log_frame", "q_min", "rho")},
        "input": "pixels in [0, 1]",
        "flags": read.read_flags(directory),
    }


def export(
    directory: Path | str, to: str, eid: Any = "last", out: Path | str | None = None, **flags: Any
) -> list[Path]:
    """Export stored epochs of a training run.

    Args:
      directory: its working directory. to: a key of FORMS. eid: an epoch, several, 'last' or 'all'.
      out: the file, of one epoch; None: export/eid-<epoch> in the directory.
      flags: of the run, to be replaced: data_dir, dataset, random_labels, gpu.

    Returns: what was written. Raises: UserError, also for logits that are not the network's own; OSError.
    """
    if to not in FORMS:
        raise UserError(f"--to {to}: expected one of {', '.join(FORMS)}")
    if to == "onnx":
        require_onnx("--to onnx")
    directory = read.check_run(directory).resolve()
    run = of_trained(directory)
    eids = read.choose_eids(directory, values.epochs(eid))
    if out is not None and len(eids) > 1:
        raise UserError(f"--out {out}: one file for {len(eids)} epochs; leave it out, or choose one with --eid")
    changed = {name: value for name, value in flags.items() if value is not None}
    context = Context(run | {"task": "measure_curvature", "resume": None, "cluster": None} | changed)
    context.check_data(directory)
    folder = directory / "export"
    places = [Path(out) if out is not None else folder / f"eid-{number:06d}{SUFFIX[to]}" for number in eids]
    for place in places:
        _check_place(place, to)
    pairs = tqdm(list(zip(eids, places, strict=True)), unit="epoch", disable=None)
    return [_export(context, directory, number, to, place) for number, place in pairs]


def _check_place(place: Path, to: str) -> None:
    """Raises: UserError for a place that cannot be this form's, or that holds something else."""
    if not place.name or place.name == "..":
        raise UserError(f"--out '{place}': expected the name of a file")
    if to == "keras" and place.suffix != ".keras":
        raise UserError(f"--out {place}: Keras reads files that end in .keras; give it such a name")
    if place.is_dir():
        foreign = sorted(path.name for path in place.iterdir() if path.name not in SAVED_MODEL_HOLDS)
        if to != "saved_model" or foreign or not (place / "saved_model.pb").exists():
            raise UserError(f"--out {place}: a folder is in the way; give the name of a new file, or one to replace")
    elif to == "saved_model" and place.exists():
        raise UserError(f"--out {place}: a file is in the way; a SavedModel is a folder")


def require_onnx(what: str) -> None:
    """Raises: UserError where ONNX's packages are missing; it begins with what needs them."""
    if not all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
        raise UserError(
            f"{what}: the packages onnx and onnxruntime are not installed here; install them with "
            f"{sys.executable} -m pip install -r requirements-export.txt, or choose another form"
        )


def _export(context: Context, directory: Path, eid: int, to: str, place: Path) -> Path:
    network = context.model
    network.set_weights(context.stored_weights(directory, eid))
    own = logits_of(context, lambda images: network.logits(images).numpy())
    with _in_place(place) as temporary:
        theirs = logits_of(context, FORMS[to](network, temporary, metadata(directory, eid)))
        deviation, other = differences(own, theirs)
        if not deviation < TOLERANCE or other:
            raise UserError(
                f"epoch {eid}: the logits of the {to} form deviate by {deviation:.2g} (allowed is {TOLERANCE:g}), "
                f"{other} predictions differ; nothing was written"
            )
    print(
        f"{place}: epoch {eid}, {len(own)} test images: largest relative deviation {deviation:.2g}, "
        f"same predictions, logits up to {np.abs(own).max():.4g}"
    )
    return place


def differences(own: np.ndarray, theirs: np.ndarray) -> tuple[float, int]:
    """Return the largest difference of two networks' logits [N, C], relative to an image's largest, and how many
    predictions differ."""
    size = np.abs(own).max(axis=1, keepdims=True)
    deviation = float((np.abs(theirs - own) / np.maximum(size, 1e-30)).max())
    return deviation, int((theirs.argmax(axis=1) != own.argmax(axis=1)).sum())


def logits_of(context: Context, logits: Logits) -> np.ndarray:
    """Return the logits of the whole test set, float64, from a function of pixels in [0, 1]."""
    _, (x, _) = context.dataset
    blocks = (context.model.pixels(x[k : k + CHECK_BATCH]).numpy() for k in range(0, len(x), CHECK_BATCH))
    return np.concatenate([np.asarray(logits(images), np.float64) for images in blocks])


@contextlib.contextmanager
def _in_place(place: Path) -> Iterator[Path]:
    """Context manager: a temporary path, whose content replaces `place` at the end, and is removed after an error.

    It is in the system's folder for temporary files: TensorFlow takes a `[` in a path for a pattern.
    """
    near = place.with_name(f".{os.getpid()}-{place.name}")

    def remove(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"export{place.suffix}"
            yield temporary
            shutil.move(temporary, near)
        if place.is_dir():
            remove(place)
        os.replace(near, place)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({reason(error)}); choose another place with --out") from None
    finally:
        remove(near)
