"""An attack on the stored epochs of a run, with its traces on the disk."""

from pathlib import Path

import numpy as np

import attacks
import results
from attacks import measurement
from results import UserError
from screen import Ticker, log, summary_line, summary_table


class AttackRun:
    """One attack on the stored epochs of one run.

    Args:
      core: whose flags, data and model the attack is made with.

    Raises: UserError for epochs, images or data that are not there, and damaged checkpoints, at once.
    """

    def __init__(self, core):
        f = core.f
        self.core = core
        # Of an attack that is resumed the flag may name `latest`, or a place as seen from another folder.
        self.source = Path(f.resume).resolve().parent.parent if f.resume else results.check_run(f.load_dir)
        core.check_data(self.source)
        self.eids = results.choose_eids(self.source, f.eid)
        core.flags["eid"] = self.eids  # resumed, it goes on with these, whatever the run has by then
        # The last epoch may not be in the archive, and will be gone if the run is still going on.
        self.last = results.load_weights(self.source, self.eids[-1])
        for eid in self.eids:
            self._load(eid)
        images, labels = core.dataset[("train", "test").index(f.attack_set)]
        limit = len(images) if f.attack_N == "all" else f.attack_N
        chosen = np.arange(len(images)) if f.attack is None else np.array(f.attack)
        beyond = chosen[chosen >= len(images)]
        has = f"the {f.attack_set} set has {len(images)} images"
        if len(beyond):
            given = ",".join(map(str, beyond))
            raise UserError(f"--attack {given}: {has}; give indices below that")
        if limit > len(images):
            raise UserError(f"--attack_N {limit}: {has}; give at most that, or all")
        if isinstance(f.attack_target, int) and f.attack_target >= core.model.n_classes:
            raise UserError(f"--attack_target {f.attack_target}: there are {core.model.n_classes} classes")
        if isinstance(f.attack_target, int):  # images of that class have no other one to reach
            chosen = chosen[labels[chosen] != f.attack_target]
            if not len(chosen):
                raise UserError(f"--attack_target {f.attack_target}: the images are all of that class")
        self.indices = chosen[:limit]
        self.images, self.labels = images[self.indices], labels[self.indices]
        self.linf = f.attack_method == "pgd"
        if f.resume is not None:
            path = core.check_resumed(f.resume, "./eval.sh")
        else:
            files = {"about.json": core.about(), "flags.json": core.flags}
            path = results.create(self.source, core.name, files)
        self.work_dir = results.WorkDir(path)

    def _load(self, eid: int) -> None:
        weights = self.last if eid == self.eids[-1] else results.load_weights(self.source, eid)
        self.core.load_weights(weights, f"epoch {eid} of {self.source}")

    def _records_path(self, eid: int):
        return self.work_dir.path / f"eid-{eid:06d}.npy"

    def attack_all(self) -> None:
        """Attack every epoch that is not done, then write `res` and the summary. Raises: core.Stopped."""
        f, core = self.core.f, self.core
        if (self.work_dir.path / "res").exists():
            log.info("nothing to do: all epochs are attacked already")
            return
        attack = attacks.build(f, core.model.logits, self.images.shape[1:])
        raw, summaries = results.read_journal(self.source), {}
        with Ticker(len(self.eids) * len(self.images), "image", core.stop_if_asked) as tick:
            for eid in self.eids:
                records = measurement.open_records(
                    self._records_path(eid), len(self.images), self.images.shape[1:]
                )
                tick.found(int(records["done"].sum()))
                self._load(eid)
                measurement.attack_set(
                    attack,
                    core.model,
                    self.images,
                    self.labels,
                    self.indices,
                    records,
                    f.attack_B,
                    f.attack_target,
                    f.attack_eps_list if self.linf else None,
                    f.attack_certificate,
                    tick,
                    measurement.WORKERS if core.device.startswith("CPU") else 1,
                )
                summaries[eid] = measurement.summary(records, f.attack_eps_list, self.linf)
                stats = raw.get(eid, {}).get("stats") or {}
                summaries[eid] |= {name: stats.get(name) for name in ("log_loss", "q_bar_min")}
                log.info("epoch #%d: %s", eid, summary_line(summaries[eid], self.linf))
        for line in summary_table(summaries, self.linf):
            log.info("%s", line)
        self._gather(summaries)

    def _gather(self, summaries: dict[int, dict]) -> None:
        """Write `res` and the summary; the epochs' own arrays, now in `res`, go."""
        res = {}
        for eid in self.eids:
            records = np.load(self._records_path(eid), mmap_mode="r")
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
