"""The flatness experiments (arXiv 1801.02254, section IV) as tasks of a Core.

A script's last line calls `main`. A run of several seeds is a working directory that has one of its
own for each seed, seed-<n>; what measures a run puts its working directory beside them.
"""

import functools
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import core
import datasets
import flags as flag_table
import results
from core import Core, Stopped, build_model
from results import UserError
from screen import Throttle, Ticker, log, logging_to, shown_path


class FlatnessCore(Core):
    """Core with the tasks of the flatness experiments.

    For a measurement network and data come from the flags of the run that is measured.
    """

    def __init__(self, flags: dict, name: str = "unnamed"):
        flags = flag_table.complete(flags)
        if flags["task"] == "make_random_labels":  # needs no network
            self.flags, self.f, self.name = flags, SimpleNamespace(**flags), name
            return
        if flags["task"] in flag_table.MEASUREMENTS:
            flags = self._flags_to_measure(flags)
            self.f = SimpleNamespace(**flags)
            self.networks()  # what is missing is said at once, before TensorFlow is loaded
        super().__init__(flags, name)

    def tasks(self):
        return super().tasks() | {
            "make_random_labels": self.make_random_labels,
            "train_seeds": self.train_seeds,
            "make_points": self.make_points,
            "measure_radius": self.measure_radius,
            "measure_curvature": self.measure_curvature,
        }

    # Training

    def make_random_labels(self) -> Path:
        """Store random labels for the data set, once; returns the file's path."""
        path = self.random_labels_path()
        if path.exists():
            log.info("%s is there already and stays; delete it to draw anew", shown_path(path))
            return path
        f = self.f
        dataset = datasets.load(f.dataset, f.data_dir, None if f.train_N == "all" else f.train_N)
        (_, labels), _ = dataset
        drawn = datasets.draw_random_labels(labels, dataset.n_classes, f.seed)
        datasets.save_random_labels(path, drawn, f.seed, labels)
        changed = 100 * (drawn != labels).mean()
        log.info("%d labels, %.2f%% of them changed, in %s", len(drawn), changed, shown_path(path))
        return path

    def train_seeds(self) -> Path:
        """Train one network for each of `seeds`.

        Leaves in the run's directory seed-<n>, each the working directory of a `train`, and, when all
        are trained, `res` = {'flags': flags, 'raw': {seed: info of the last epoch}}.
        """
        flags, raw = self.flags, {}
        if flags["seeds"] is None:
            raise UserError("--task train_seeds needs --seeds, such as 0,1,2")
        if flags["resume"]:
            run = self.check_resumed(flags["resume"])
        else:
            run = results.create(self.logs_dir(), self.name, {"about.json": self.about()})
        results.WorkDir(run).write_json("flags.json", flags | {"resume": None})
        self.whole_run = run
        children = {seed: self._prepared(run / f"seed-{seed}", seed) for seed in flags["seeds"]}
        for seed, child in children.items():
            self.flags, self.f = child, SimpleNamespace(**child)
            # The same model for all seeds: its graphs are traced once.
            self.load_weights(build_model(self.f.model, self.dataset, seed).get_weights(), f"seed {seed}")
            self.train()
            raw[seed] = results.read_journal(child["resume"])[results.stored_eids(child["resume"])[-1]]
        results.WorkDir(run).write_res({"flags": flags, "raw": raw})
        log.info("all seeds are trained: %s", shown_path(run))
        return run

    def _prepared(self, path: Path, seed: int) -> dict:
        """A seed's flags; its working directory is made as one stopped before its first epoch."""
        flags = self.flags | {"task": "train", "seed": seed, "seeds": None, "resume": None}
        if not (path / "flags.json").exists():
            path.mkdir(exist_ok=True)
            results.WorkDir(path).write_json("about.json", self.about())
            results.WorkDir(path).write_json("flags.json", flags)
        return flags | {"resume": str(path)}

    # What is measured

    def _flags_to_measure(self, flags: dict) -> dict:
        """The flags with those of the run over them, and load_dir as it was found."""
        if flags["resume"] is not None:  # of a run that moved, or that was `latest` then, the flag is stale
            path = results.check_run(results.check_run(flags["resume"]).resolve().parent.parent)
        elif flags["load_dir"] is not None:
            path = results.check_run(flags["load_dir"])
        else:
            path = self._latest_run(flags)
        of_the_run = flag_table.of_trained(path)
        if flags["dataset"] not in (None, of_the_run["dataset"]):
            raise UserError(f"--dataset {flags['dataset']}: the run {path} is on {of_the_run['dataset']}")
        taken = {name: of_the_run[name] for name in flag_table.OF_THE_RUN} | {"load_dir": str(path.resolve())}
        if flags["data_dir"] is None:
            taken["data_dir"] = of_the_run["data_dir"]
        return flags | taken

    def _latest_run(self, flags: dict) -> Path:
        if flags["source"] is None:
            raise UserError("give the working directory of a run, logs/<experiment>/<time>")
        source = flags["source"] + ("_random" if flags["random"] else "")
        logs = Path(flags["logs_dir"]) if flags["logs_dir"] else core.ROOT / "logs"
        runs = [
            p
            for p in sorted((logs / source).glob("*"))
            if p.name != "latest" and (p / "flags.json").is_file()
        ]
        wanted = flags["dataset"]
        if wanted is not None:
            runs = [p for p in runs if results.read_flags(p).get("dataset") == wanted]
        if not runs:
            of = f" on {wanted}" if wanted else ""
            raise UserError(f"no run of {source}{of} in {logs}; train first: ./run.sh {source}")
        return runs[-1]

    def networks(self) -> dict[str, tuple[Path, int]]:
        """{name: (working directory, epoch)} of what load_dir has: one for each seed, or for each `eid`.

        Raises: UserError when not every seed is trained to the end.
        """
        run = Path(self.f.load_dir)
        of_the_run = flag_table.complete(results.read_flags(run))
        if of_the_run["task"] == "train":
            return {f"epoch {eid}": (run, eid) for eid in results.choose_eids(run, self.f.eid)}
        found = {}
        for seed in of_the_run["seeds"]:
            path = run / f"seed-{seed}"
            stored = results.stored_eids(path) if (path / "flags.json").is_file() else []
            has, due = stored[-1] if stored else 0, of_the_run["E"]
            if has == 0 or (self.f.eid == "last" and has != due):
                experiment = results.read_about(run)["experiment"]
                about = f"has {has} of its {due} epochs" if has < due else f"has {has} epochs, not {due}"
                mend = f"finish it with ./run.sh {experiment} --resume {run}"
                raise UserError(
                    f"{run}: seed {seed} {about}, and all {len(of_the_run['seeds'])} networks are needed; "
                    + (mend if has < due else f"{mend} --E {has}, or choose a common epoch with --eid")
                )
            for eid in results.choose_eids(path, self.f.eid):
                several = "" if self.f.eid == "last" else f" epoch {eid}"
                found[f"seed {seed}{several}"] = (path, eid)
        return found

    def _weights(self, path: Path, eid: int) -> list[np.ndarray]:
        """A network's tensors. Raises: UserError when they, or the data, are not those of the flags."""
        self.check_data(path)
        weights = results.load_weights(path, eid)
        self.load_weights(weights, str(path))
        return [array for _, array in weights]

    def _examples(self, tick: Callable[[], None] | None = None):
        from flatness.span import Examples

        (x, y), _ = self.dataset
        return Examples(self.model, x, y, tick or self.stop_if_asked)

    def _each(self, networks: dict[str, tuple[Path, int]]) -> Callable[[int], list[np.ndarray]]:
        """The tensors of network 0, 1, ..., loaded when they are asked for; all are checked at once."""
        places = list(networks.values())
        for place in places:
            self._weights(*place)
        return functools.lru_cache(1)(lambda number: self._weights(*places[number]))

    def _as_published(self) -> bool:
        """Whether run and measurement are what the paper's scripts say: its numbers may stand beside."""
        trained = results.read_about(self.f.load_dir)["experiment"]
        of_the_run = flag_table.complete(results.read_flags(self.f.load_dir))
        return _as_in_script(
            trained, of_the_run, ("task", "dataset", "train_N", "model", "lr", "E", "B", "augment")
        ) and _as_in_script(self.name, self.flags, ("eid", "params", "step", "threshold", "normalize"))

    # How it is measured

    def _measure(
        self,
        networks: dict[str, tuple[Path, int]],
        n_parts: int,
        measure: Callable[[int], dict],
        finish: Callable[[dict], dict],
    ) -> Path:
        """Measure part 0, 1, ..., each into the journal when it is done; then `res`.

        Args:
          networks: what is measured, as `networks` has it.
          measure: a part's number -> JSON-able results.
          finish: {part: results} -> `raw` of `res`; also prints.
        """
        measured = {name: eid for name, (_, eid) in networks.items()}
        if self.f.resume:
            path = self.check_resumed(self.f.resume)
            before = results.read_about(path).get("measured", measured)
            if before != measured:
                raise UserError(
                    f"--resume {path}: {self.f.load_dir} was trained on since this was begun: then "
                    f"{_listed(before)}, now {_listed(measured)}; measure it anew"
                )
        else:
            files = {"about.json": self.about() | {"measured": measured}, "flags.json": self.flags}
            path = results.create(Path(self.f.load_dir), self.name, files)
        work_dir = results.WorkDir(path)
        done = work_dir.rewind(key="part")
        with self._watch_signals(), logging_to(path / "stdout"):
            self._print_header(path)
            log.info("measures: %s", shown_path(Path(self.f.load_dir)))
            try:
                with Ticker(n_parts, "part", self.stop_if_asked) as tick:
                    tick.found(len(done))
                    for part in (part for part in range(n_parts) if part not in done):
                        done[part] = {"part": part} | measure(part)
                        work_dir.append(done[part])
                        tick(1)
            except Stopped:
                log.info("stopped after %d of %d parts; go on with:", len(done), n_parts)
                log.info("  ./run.sh %s --resume %s", self.name, shown_path(path))
                raise
            work_dir.write_res(
                {"flags": self.flags, "raw": finish({part: done[part] for part in sorted(done)})}
            )
            log.info("results in %s", shown_path(path))
        return path

    def measure_radius(self) -> Path:
        """The flatness radius of each network of load_dir (arXiv 1801.02254, table 1).

        Leaves `res`['raw'] = {'networks': {name: {...}}, 'row': {...}}. A network has I (its loss),
        radii, profiles (for each direction the losses at 0, s, 2s, ... up to the radius), ends (the loss
        one step on, or a lower bound of it that is beyond the threshold), mean, norm (of the perturbed
        tensors), mean_by_norm. The row: mean and sd over the networks' means, also by norm; published.
        """
        from flatness import radius

        f = self.f
        networks = self.networks()
        labels, weights = list(networks), self._each(networks)
        names = [name for name, _, _ in self.model.places()]
        examples = self._examples()
        walkers = {}

        def walker(number):
            if number not in walkers:
                walkers.clear()  # one network's products at a time
                walkers[number] = radius.WALKS[f.method](examples, weights(number))
            return walkers[number]

        due = Throttle(30)

        def measure(part):
            number, k = divmod(part, f.directions)

            def tick(steps):
                if due():
                    log.info("%s, direction %d: %d steps", labels[number], k, steps)

            rng = np.random.default_rng([f.seed, number, k])
            delta = radius.direction(rng, names, weights(number), f.params, f.normalize)
            try:
                walk = walker(number).walk(delta, f.step, f.threshold, f.max_steps, tick)
            except radius.EndlessWalk:
                raise UserError(
                    f"{labels[number]}, direction {k}: {f.max_steps} steps of {f.step:g} changed the "
                    f"loss by less than {f.threshold:g}; give a larger --step"
                ) from None
            log.info(
                "%s, direction %d: I = %.4g, radius %.4g, loss there %.4g",
                *(labels[number], k, walk["profile"][0], walk["radius"], walk["profile"][-1]),
            )
            return {"network": labels[number], "direction": k} | walk

        def finish(parts):
            moved = radius.perturbed(names, f.params)
            found = {}
            for number, name in enumerate(labels):
                own = [part for part in parts.values() if part["network"] == name]
                length = radius.norm([w for w, m in zip(weights(number), moved, strict=True) if m])
                found[name] = radius.summary(own, length)
                log.info(
                    "%s: I(w) = %.4g, radius %.4f, by norm %.4f (norm %.2f)",
                    *(name, *(found[name][key] for key in ("I", "mean", "mean_by_norm", "norm"))),
                )
            row = radius.table_row(
                found, f.dataset, f.params, f.random_labels is not None, self._as_published()
            )
            log.info("%s", row["text"])
            return {"networks": found, "row": row}

        return self._measure(networks, len(networks) * f.directions, measure, finish)

    def make_points(self) -> Path:
        """The loss in the plane of the three networks of load_dir (arXiv 1801.02254, section IV).

        Leaves X.npy, Y.npy, Z.npy (the losses), float64 [grid, grid], and the same in `res`['raw'].
        """
        from flatness import interpolation

        networks = self.networks()
        if len(networks) != 3:
            raise UserError(
                f"{self.f.load_dir}: a surface goes through three networks; here are {len(networks)} "
                f"({', '.join(networks)})"
            )
        weights = [self._weights(*where) for where in networks.values()]
        X, Y = interpolation.grid(self.f.grid)
        plane = interpolation.Plane(self._examples(), weights, self.f.method)

        def measure(row):
            losses = plane.row(X[row], Y[row])
            log.info("row %d of %d: losses from %.4g to %.4g", row + 1, len(X), losses.min(), losses.max())
            return {"losses": losses.tolist()}

        def finish(parts):
            Z = np.array([part["losses"] for part in parts.values()])
            return {"X": X, "Y": Y, "Z": Z, "networks": list(networks)}

        path = self._measure(networks, len(X), measure, finish)
        raw = results.load(path)["raw"]
        for name in "XYZ":
            results.replace_atomically(path / f"{name}.npy", lambda file, name=name: np.save(file, raw[name]))
        return path

    def measure_curvature(self) -> Path:
        """The Hessian's largest eigenvalues and its trace at each network of load_dir.

        Leaves `res`['raw'] = {name: {'log_frame', 'log_loss', 'eigenvalues', 'trace', 'trace_error', ...}};
        see `flatness.curvature`.
        """
        from flatness import curvature

        f = self.f
        networks = self.networks()
        labels, weights = list(networks), self._each(networks)
        due = Throttle(30)
        hessian = None

        def tick():
            self.stop_if_asked()
            if hessian is not None and due():
                log.info("%d Hessian-vector products so far", hessian.products)

        examples = self._examples(tick)

        def measure(part):
            nonlocal hessian
            self.model.set_weights(weights(part))
            hessian = curvature.Hessian(examples)
            found = curvature.measure(hessian, f.eigenvalues, f.probes, np.random.default_rng([f.seed, part]))
            log.info("%s: %s", labels[part], curvature.line(found))
            return {"network": labels[part]} | found

        def finish(parts):
            return {part["network"]: part for part in parts.values()}

        return self._measure(networks, len(networks), measure, finish)


def _as_in_script(name: str, flags: dict, keys: tuple[str, ...]) -> bool:
    """Whether these flags are those of the experiment's script."""
    script = core.ROOT / f"{name}.py"
    if not script.is_file():
        return False
    own = flag_table.complete(runpy.run_path(str(script))["flags"])
    return all(own[key] == flags[key] for key in keys)


def _listed(measured: dict[str, int]) -> str:
    return ", ".join(
        name if name.startswith("epoch") else f"{name} epoch {eid}" for name, eid in measured.items()
    )


def main(script: str, flags: dict, about: str | None = None) -> None:
    """As `core.main`, for a script of the flatness experiments; of a measurement a first word is load_dir."""
    measures = flags["task"] in flag_table.MEASUREMENTS
    command_line = flag_table.measure_command_line if measures else flag_table.command_line
    core.main(script, flags, about, command_line, core_class=FlatnessCore)
