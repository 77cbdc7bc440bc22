"""An attack on the stored epochs of a run, and its files."""

import importlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from attacks import local_certificate, measurement
from attacks.base import Attack, Logits, normalized
from attacks.certificate import Certifier
from catalogue.attacks import METHODS
from engine.cluster import executor
from engine.context import Context, directory, writing
from engine.units import Executor, Unit, Worker
from storage import migrate, read, workdir
from support.errors import UserError
from support.screen import Bar, Update, log, shown_path

AT_ONCE = 2  # blocks attacked concurrently on a CPU: one uses the core that the other's serial ops leave idle


def attack(context: Context) -> Path:
    """Find adversarial examples at each stored epoch `eid` of load_dir. Returns the attack's directory.

    Writes, in <load_dir>/<attack>/<time>, `res` = {eid: {'images': adversarial examples, float32 [N, h, w, c] (the
    image itself where none was found), 'errors': squared L2 distances, distances in L1 or L-infinity, or of an attack
    on a grid of eps the smallest eps that succeeded, float64 [N] (infinite, or 1.0, where none was found), 'labels',
    'indices': int [N], 'success', 'clean_correct': bool [N], 'certified': lower bounds of the distances in the
    attack's norm, float64 [N]}}, and the summaries in summary.json.

    Raises: UserError for missing epochs, images or data, and damaged checkpoints, before it begins; Stopped.
    """
    run = AttackRun(context)
    at_once = AT_ONCE if context.compute.device.startswith("CPU") else 1
    with executor(run.context, at_once) as workers:
        path = run.open_directory()
        with writing(context, path, lambda: run.progress):
            log.info("attacking: %s", shown_path(run.source))
            run.attack_all(workers)
            log.info("done: results in %s", shown_path(path))
    return path


def build(f: SimpleNamespace, logits: Logits, shape: tuple[int, int, int]) -> Attack:
    """Return the attack that the flags name.

    Args:
      f: the flags; where a setting's flag is None, the default of the attack's class applies.
      logits: the network. shape: (h, w, c) of an image.
    """
    method = METHODS[f.attack_method]
    module, name = method.path.split(":")
    options = {option: getattr(f, flag) for option, flag in method.options.items()}
    options = {option: value for option, value in options.items() if value is not None}
    if f.attack_target is not None:
        options["targeted"] = True
    attack_class = getattr(importlib.import_module(module), name)
    return attack_class(normalized(logits, f.attack_normalize_output), shape, **options)


def attacked_set(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels that the flag attack_set selects."""
    train, test = context.dataset
    return train if context.f.attack_set == "train" else test


def choose_images(context: Context) -> np.ndarray:
    """Return the indices of the images to attack, int [N], ascending. Raises: UserError for missing ones."""
    f = context.f
    images, labels = attacked_set(context)
    limit = len(images) if f.attack_N == "all" else f.attack_N
    chosen = np.arange(len(images)) if f.attack_indices is None else np.array(f.attack_indices)
    beyond = chosen[chosen >= len(images)]
    has = f"the {f.attack_set} set has {len(images)} images"
    if len(beyond):
        given = ",".join(map(str, beyond))
        raise UserError(f"--attack_indices {given}: {has}; give indices below that")
    if limit > len(images):
        raise UserError(f"--attack_N {limit}: {has}; give at most that, or all")
    if isinstance(f.attack_target, int):
        if f.attack_target >= context.model.n_classes:
            raise UserError(f"--attack_target {f.attack_target}: there are {context.model.n_classes} classes")
        chosen = chosen[labels[chosen] != f.attack_target]  # images of that class have no other one to reach
        if not len(chosen):
            raise UserError(f"--attack_target {f.attack_target}: the images are all of that class")
    return chosen[:limit]


def block(worker: Worker, args: dict[str, Any], update: Update) -> dict[str, np.ndarray]:
    """Attack the images with the numbers `indices` at a `network` (`Worker.weights`): a unit of work."""
    context = worker.context
    f, model, method = context.f, context.model, METHODS[context.f.attack_method]
    images, labels = attacked_set(context)
    attack = context.kept("attack", None, lambda: build(f, model.logits, images.shape[1:]))

    def load() -> Certifier | None:
        model.set_weights(worker.weights(args["network"]))
        if f.attack_certificate == "none":
            return None
        return Certifier(model, method.norm, local=f.attack_certificate == "local")

    certifier = context.kept("attacked", args["network"], load)
    where = args["indices"]
    eps_list = f.attack_eps_list if method.eps_grid else None
    block = images[where], labels[where], where
    return measurement.attack_block(attack, model, *block, f.attack_target, method.norm, eps_list, certifier, update)


class AttackRun:
    """One attack on the stored epochs of one run.

    Args:
      context: its flags define the attack.

    Raises: as `attack`.
    """

    def __init__(self, context: Context):
        f = context.f
        self.source = read.check_run(f.load_dir)
        context.check_data(self.source)
        self.eids = read.choose_eids(self.source, f.eid)
        for eid in self.eids:
            self.last_weights = context.stored_weights(self.source, eid)
        self.method = METHODS[f.attack_method]
        if f.attack_certificate == "local" and (reason := local_certificate.why_not(context.model)):
            raise UserError(f"--attack_certificate local: not available for this network: {reason}; use norms")
        self.indices = choose_images(context)
        self.images, self.labels = (array[self.indices] for array in attacked_set(context))
        # Made last, so that it shares the network. A resumed attack keeps to these epochs, even if there are more.
        self.context = context.changed(eid=self.eids)
        self.progress = "no images"  # what is done, in words

    def open_directory(self) -> Path:
        """Return the directory of the attack, a new one or the one to resume."""
        path = directory(self.context, self.source)
        if self.context.f.resume and migrate.certified_in_l2(read.read_json(path / "flags.json")):
            raise UserError(f"--resume {path}: of an earlier version, whose certified bounds are in L2; attack again")
        self.work_dir = workdir.WorkDir(path)
        return path

    def _records_path(self, eid: int) -> Path:
        return self.work_dir.path / f"eid-{eid:06d}.npy"

    def _records(self, eid: int) -> np.memmap:
        return measurement.open_records(self._records_path(eid), len(self.images), self.images.shape[1:])

    def attack_all(self, workers: Executor) -> None:
        """Attack the remaining images of every epoch, then write `res` and the summary."""
        if (self.work_dir.path / "res").exists():
            log.info("nothing to do: all epochs are attacked already")
            return
        # The last epoch may be in the checkpoint only, which a run that is still running replaces.
        workers.publish("last", self.last_weights)
        raw, summaries = read.load(self.source)["raw"], {}
        n, f = len(self.images), self.context.f
        opened = [self._records(eid) for eid in self.eids]
        found = sum(int(records["done"].sum()) for records in opened)
        with Bar(len(self.eids) * n, "image", self.context.update, found) as bar:
            for eid, records in zip(self.eids, opened, strict=True):
                workers.run(self.blocks(eid, records["done"]), partial(self._store, records, bar), bar)
                summaries[eid] = measurement.summary(records, f.attack_eps_list, self.method, f.attack_target)
                stats = raw.get(eid, {}).get("stats") or {}
                summaries[eid] |= {name: stats.get(name) for name in ("log_loss", "q_bar_min")}
                log.info("epoch #%d: %s", eid, measurement.summary_line(summaries[eid], self.method))
        for line in measurement.summary_table(summaries):
            log.info("%s", line)
        self._gather(summaries)

    def blocks(self, eid: int, done: np.ndarray) -> list[Unit]:
        """Return the unfinished blocks of images of an epoch. Two epochs are never attacked concurrently."""
        network = "last" if eid == self.eids[-1] else (str(self.source), eid)
        size = self.context.f.attack_B
        return [
            Unit(
                block,
                (eid, first),
                {"network": network, "indices": self.indices[first : first + size]},
                size=len(self.indices[first : first + size]),
            )
            for first in range(0, len(self.indices), size)
            if not done[first : first + size].all()
        ]

    def _store(self, records: np.memmap, bar: Bar, unit: Unit, found: dict[str, np.ndarray]) -> None:
        _, first = unit.key
        measurement.store(records, first, found)
        self.progress = f"{bar.done:.0f} of {bar.total:.0f} images"

    def _gather(self, summaries: dict[int, dict]) -> None:
        """Write `res` and the summary; remove the epochs' own arrays, which `res` now contains."""
        res = {}
        for eid in self.eids:
            records = self._records(eid)
            res[eid] = {
                "images": np.array(records["image"]),
                "errors": np.array(records["error"]),
                "labels": self.labels,
                "indices": self.indices,
                **{name: np.array(records[name]) for name in ("success", "clean_correct", "certified")},
            }
        self.work_dir.write_json("summary.json", {str(eid): summary for eid, summary in summaries.items()})
        self.work_dir.write_res(res)
        for eid in self.eids:
            self._records_path(eid).unlink()
