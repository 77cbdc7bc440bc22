"""Makes a working directory of a network that was trained elsewhere."""

import hashlib
import math
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from engine.context import Context, first_files, logs_dir, with_statistics
from exchange import keras_form, npz_form, onnx_form
from exchange.chain import Chain
from exchange.exporting import TOLERANCE, differences, logits_of, require_onnx
from models.sequential import normalization
from storage import workdir
from support.errors import NotFinite, UserError
from support.files import read_bytes
from support.screen import shown_path
from training import measures
from training.measures import Evaluation

READERS = {".keras": keras_form.read, ".h5": keras_form.read, ".onnx": onnx_form.read, ".npz": npz_form.read}
MOST_BYTES = 2**31
FACTOR_OF_BYTES = 1 / 20  # an input multiplied by less than this is meant to reach 255


def import_network(
    file: Path | str, flags: dict[str, Any], name: str | None = None, levels: int | None = None
) -> Path:
    """Read a network, and write a working directory with it as epoch 0. Returns the directory.

    Its record has the numbers of `catalogue.measures` that every epoch has, computed from the network and the data.

    Args:
      file: .keras, .h5, .onnx, or an .npz of `export.py`.
      flags: of the data, nested. `model` may have input_mean and input_std: what is done to the pixels before the
        source reads them.
      name: of the experiment; None: that of the file.
      levels: the pixels are in [0, levels] then, as are numbers of input_mean and input_std; None: 255 where
        the network begins with a factor below 1/20, else 1.

    Raises: UserError, also where its logits are not the source's; OSError.
    """
    file = Path(file)
    _check_file(file)
    if flags.get("dataset") is None:
        raise UserError("give --dataset, the data that the network was trained on")
    if name is not None and not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UserError(f"--name {name}: expected letters, digits, '.', '-' and '_'")
    data = Context(flags, name or re.sub(r"[^\w.-]+", "-", f"import-{file.stem}")[:100])
    shape = data.dataset[0][0].shape[1:]
    chain, source = READERS[file.suffix](file, shape)
    if levels is None:
        levels = 255 if (chain.factor < FACTOR_OF_BYTES).all() else 1
    # Published statistics are those of pixels in [0, 1]; numbers are in the units that the network reads.
    given, numbers = data.f.model, with_statistics(data.f.model, data.dataset)
    mean, std = (
        [levels * value for value in numbers[name]] if given[name] == "auto" else numbers[name]
        for name in ("input_mean", "input_std")
    )
    factor, shift = normalization(mean, std, shape[-1])
    chain.after(levels * factor.astype(np.float64), shift)
    model, tensors = chain.network()
    context = data.changed(E=1, B=min(data.f.B, len(data.dataset[0][1])), model=model)
    _check_classes(context, len(tensors[-1].T))
    context.model.set_weights(tensors)
    deviation = _compared(context, source, levels * factor, shift)
    info = {"eid": 0, "lr": 0.0, "rt_loss": math.nan, "time": 0.0} | _record(context)
    about = {"file": file.name, "sha256": hashlib.sha256(read_bytes(file)).hexdigest(), "levels": levels}
    path = workdir.create(logs_dir(context), context.name, first_files(context, imported=about))
    try:
        work_dir = workdir.WorkDir(path)
        work_dir.save(context.model.get_weights(), {"eid": 0}, archive=True)
        work_dir.write_res({"flags": context.flags, "raw": {0: info}})
        lines = _report(context, file, path, chain, levels, deviation, info["stats"])
        (path / "stdout").write_text("\n".join(lines) + "\n", errors="backslashreplace")
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    print(*lines, sep="\n")
    return path


def _check_file(file: Path) -> None:
    """Raises: UserError for a file that cannot be a network of a format that is read, or that is too large."""
    if file.suffix not in READERS:
        raise UserError(f"{file}: expected a file that ends in {', '.join(READERS)}")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if file.suffix == ".onnx":
        require_onnx(str(file))
    external = file.with_name(f"{file.name}.data")  # where PyTorch's exporter puts the weights
    size = file.stat().st_size + (external.stat().st_size if os.path.isfile(external) else 0)
    if file.suffix in (".keras", ".npz"):
        try:
            size = sum(part.file_size for part in zipfile.ZipFile(file).infolist())
        except (zipfile.BadZipFile, OSError):
            raise UserError(f"{file}: not a {file.suffix} file, or cut short; get the file again") from None
    if size >= MOST_BYTES:
        raise UserError(
            f"{file}: {size / 1e9:.1f} GB; networks of less than {MOST_BYTES / 1e9:.1f} GB can be imported"
        )


def _check_classes(context: Context, outputs: int) -> None:
    """Raises: UserError unless the network has one output for each class."""
    classes, cut = context.dataset.n_classes, (context.f.train_N, context.f.test_N) != ("all", "all")
    if outputs < max(classes, 2) or (outputs > classes and not cut):
        raise UserError(
            f"the network has {outputs} outputs, but {context.f.dataset} has {classes} classes; give the data that "
            "it was trained on, or its --classes"
        )


def _compared(context: Context, source: Any, factor: Any, shift: Any) -> tuple[float, int] | None:
    """Return how the network's logits differ from the source's on the test set. Raises: UserError where they do."""
    own = logits_of(context, lambda images: context.model.logits(images).numpy())
    if not np.isfinite(own).all():
        raise UserError("its logits are not finite on the test set; give a network that was trained without overflow")
    if source is None:
        return None
    theirs = logits_of(context, lambda images: source((images * factor + shift).astype(np.float32)))
    if theirs.shape != own.shape:
        raise UserError(
            f"its outputs have the shape {theirs.shape} for {len(own)} images; expected one number per class"
        )
    deviation, other = differences(own, theirs)
    if not deviation < TOLERANCE:
        raise UserError(
            f"as it was read, its logits differ from the source's by {deviation:.2g} of the largest (allowed is "
            f"{TOLERANCE:g}), in {other} of {len(own)} predictions; nothing was written"
        )
    return deviation, other


def _record(context: Context) -> dict[str, Any]:
    """Return log_frame, the log of the network's own loss, and the stats. Raises: UserError."""
    try:
        log_loss = (now := Evaluation(context, 0.0)).log_loss
        return {"log_frame": log_loss, "stats": measures.record(Evaluation(context, log_loss, (1.0, now.logits)))}
    except NotFinite as error:
        raise UserError(str(error)) from None


def _report(
    context: Context, file: Path, path: Path, chain: Chain, levels: int, deviation: Any, stats: dict[str, Any]
) -> list[str]:
    """Return the lines that are printed: notes, description, comparison with the source, and stats."""
    n, keys = len(context.dataset[1][1]), ("log_loss", "acc", "test_acc", "q_min", "q_bar2_min", "smoothed_q_bar2")
    lines = [f"note: {note}" for note in chain.notes]
    lines.append(f"{file.name}: reads pixels in [0, {levels}]; as a description: {context.f.model['description']}")
    if deviation is not None:
        lines.append(
            f"{n} test images: logits within {deviation[0]:.2g} of the source's, relative to an image's largest; "
            f"{deviation[1]} predictions differ"
        )
    return [*lines, " ".join(f"{key}={stats[key]:.6g}" for key in keys), f"epoch 0 of {shown_path(path)}"]
