"""Core: flags in, one task out.

    Core({"dataset": "digits", "model": {"description": "CNN"}, "E": 5}, "my-experiment").run()

Works from a script, a notebook or any thread; signals and exit statuses are `launch`'s.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from context import Context
from device import import_tensorflow
from errors import UserError
from flags import complete, flatten
from flags.command_line import with_the_peeked_run
from flags.table import DEFAULTS, MEASUREMENTS

TASKS = {  # {task: 'module:function'}. A function takes a Context and returns the directory (or file) it made.
    "train": "training.run:train",
    "train_seeds": "training.seeds:train_seeds",
    "train_peek": "training.peek:train_peek",
    "sweep": "training.sweep:sweep",
    "attack": "attacks.run:attack",
    "make_random_labels": "flatness.run:make_random_labels",
    "make_points": "flatness.run:make_points",
    "make_surface": "flatness.run:make_surface",
    "measure_radius": "flatness.run:measure_radius",
    "measure_curvature": "flatness.run:measure_curvature",
    "measure_sharpness": "flatness.run:measure_sharpness",
    "measure_epochs": "training.peek:measure_epochs",
}


class Core:
    """One task of one experiment.

    Args:
      flags: a script's dict; what it leaves out has its default (`flags.table`).
      name: the experiment's name: the working directory is logs/<name>/<time>.
      stop_if_asked: called about once a second; raises Stopped to end the task.

    Raises: UserError for flags that make no sense.
    """

    def __init__(self, flags: dict, name: str = "unnamed", stop_if_asked: Callable[[], None] = lambda: None):
        flags = complete(flags)
        if flags["task"] in MEASUREMENTS:
            from flatness.networks import with_flags_of_the_run

            flags = with_flags_of_the_run(flags)
        if flags["task"] == "train_peek":
            flat = flatten(flags)
            given = {name: value for name, value in flat.items() if value != DEFAULTS[name]}
            flags = complete(with_the_peeked_run(flat, given))
        if flags["task"] == "attack" and flags["load_dir"] is None:
            raise UserError("--task attack: not a task of ./run.sh; use ./eval.sh <attack> <directory>")
        self.context = Context(flags, name, stop_if_asked)

    def run(self) -> Path:
        """Do the `task`; returns the working directory.

        Raises: UserError; TrainingDiverged; Stopped; OSError when the disk fails.
        """
        self.context.natural_dataset  # noqa: B018 (what is wrong with the data is said before TensorFlow loads)
        import_tensorflow()  # before a task's modules import it, with its start-up messages
        module, function = TASKS[self.context.f.task].split(":")
        task: Callable[[Context], Path] = getattr(importlib.import_module(module), function)
        return task(self.context)
