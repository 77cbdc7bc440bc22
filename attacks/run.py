"""An attack on the stored epochs of a run, with its traces on the disk."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import results
from attacks import certificate, local_certificate, measurement, registry
from context import Context
from errors import Stopped, UserError
from execution import Tick, Unit, executor, weights_of
from screen import Ticker, log, shown_path

AT_ONCE = 2  # blocks attacked at once on a CPU: one fills the core that a one-threaded op of the other leaves idle


def attack(context: Context) -> Path:
    """Find adversarial examples at each stored epoch `eid` of load_dir. Returns the attack's directory.

    Leaves, in <load_dir>/<attack>/<time>, `res` = {eid: {'images': adversarial examples, float32
    [N, h, w, c] (the image itself where none was found), 'errors': squared L2 distances, distances in L1 or
    L-infinity, or of an attack on a grid of eps the smallest eps that succeeded, float64 [N] (infinite, or 1.0, where
    none was found), 'labels', 'indices': int [N], 'success', 'clean_correct': bool [N], 'certified': lower bounds of
    the distances in the attack's norm, float64 [N]}}, and the summaries in summary.json.

    Raises: UserError for epochs, images or data that are not there, and damaged checkpoints, at once; Stopped.
    """
    run = AttackRun(context)
    at_once = AT_ONCE if context.device.startswith("CPU") else 1
    with context.writing(run.work_dir.path), executor(run.context, at_once) as workers:
        log.info("attacking: %s", shown_path(run.source))
        try:
            run.attack_all(workers)
        except Stopped:
            log.info("stopped; go on with:")
            log.info("  ./eval.sh %s --resume %s", context.name, shown_path(run.work_dir.path))
            raise
        log.info("done: results in %s", shown_path(run.work_dir.path))
    return run.work_dir.path


def choose_images(context: Context) -> np.ndarray:
    """The indices of the images to attack, int [N], ascending. Raises: UserError for what is not there."""
    f = context.f
    images, labels = context.dataset[("train", "test").index(f.attack_set)]
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


def block(context: Context, args: dict[str, Any], tick: Tick) -> dict[str, np.ndarray]:
    """A unit of work: attack the images with the numbers `indices` at a `network` (`execution.weights_of`)."""
    f, model, method = context.f, context.model, registry.METHODS[context.f.attack_method]
    images, labels = context.dataset[("train", "test").index(f.attack_set)]
    attack = context.kept("attack", None, lambda: registry.build(f, model.logits, images.shape[1:]))

    def load() -> certificate.Certifier | None:
        model.set_weights(weights_of(context, args["network"]))
        if f.attack_certificate == "none":
            return None
        return certificate.Certifier(model, method.norm, local=f.attack_certificate == "local")

    certifier = context.kept("attacked", args["network"], load)
    where = args["indices"]
    eps_list = f.attack_eps_list if method.eps_grid else None
    block = images[where], labels[where], where
    return measurement.attack_block(attack, model, *block, f.attack_target, method.norm, eps_list, certifier, tick)


class AttackRun:
    """One attack on the stored epochs of one run.

    Args:
      context: its flags say which; the directory is made here, or is the one to resume.

    Raises: as `attack`.
    """

    def __init__(self, context: Context):
        f = context.f
        # The flag of a resumed attack may name `latest`, or a path as seen from another folder.
        self.source = Path(f.resume).resolve().parent.parent if f.resume else results.check_run(f.load_dir)
        context.check_data(self.source)
        self.eids = results.choose_eids(self.source, f.eid)
        self.context = context.changed(eid=self.eids)  # resumed, it keeps to these, whatever the run has by then
        for eid in self.eids:
            self.last_weights = context.stored_weights(self.source, eid)
        self.method = registry.METHODS[f.attack_method]
        if f.attack_certificate == "local" and (reason := local_certificate.why_not(context.model)):
            raise UserError(f"--attack_certificate local: there is none of this network: {reason}; use norms")
        self.indices = choose_images(context)
        self.images, self.labels = (
            array[self.indices] for array in context.dataset[("train", "test").index(f.attack_set)]
        )
        if f.resume is not None:
            path = context.check_resumed("./eval.sh")
            if registry.proved_in_l2(results.read_flags(path), self.method):
                raise UserError(f"--resume {path}: of an older version, whose proved bounds are in L2; attack anew")
        else:
            path = results.create(self.source, context.name, self.context.first_files())
        self.work_dir = results.WorkDir(path)

    def _records_path(self, eid: int) -> Path:
        return self.work_dir.path / f"eid-{eid:06d}.npy"

    def attack_all(self, workers: Any) -> None:
        """Attack every image at every epoch that is not done, then write `res` and the summary."""
        if (self.work_dir.path / "res").exists():
            log.info("nothing to do: all epochs are attacked already")
            return
        # The last epoch may not be in the archive, and will be gone if the run is still going on.
        workers.publish("last", self.last_weights)
        raw, summaries = results.read_journal(self.source), {}
        n = len(self.images)
        with Ticker(len(self.eids) * n, "image", self.context.stop_if_asked) as ticker:
            for eid in self.eids:
                records = measurement.open_records(self._records_path(eid), n, self.images.shape[1:])
                ticker.found(int(records["done"].sum()))
                workers.run(self.blocks(eid, records["done"]), partial(self._store, records), ticker)
                eps_list = self.context.f.attack_eps_list
                summaries[eid] = measurement.summary(records, eps_list, self.method)
                stats = raw.get(eid, {}).get("stats") or {}
                summaries[eid] |= {name: stats.get(name) for name in ("log_loss", "q_bar_min")}
                log.info("epoch #%d: %s", eid, measurement.summary_line(summaries[eid], self.method))
        for line in measurement.summary_table(summaries):
            log.info("%s", line)
        self._gather(summaries)

    def blocks(self, eid: int, done: np.ndarray) -> list[Unit]:
        """The blocks of images that are not done at an epoch. Two epochs are never attacked at once."""
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

    def _store(self, records: np.memmap, unit: Unit, found: dict[str, np.ndarray]) -> None:
        _, first = unit.key
        measurement.store(records, first, found)

    def _gather(self, summaries: dict[int, dict]) -> None:
        """Write `res` and the summary; the epochs' own arrays, now in `res`, go."""
        res = {}
        for eid in self.eids:
            records = measurement.open_records(self._records_path(eid), len(self.images), self.images.shape[1:])
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
