"""Core: flags in, one task out.

    Core({"dataset": "digits", "model": {"description": "CNN"}, "E": 5}, "my-experiment").run()

Works from a script, a notebook or any thread; `launch` handles signals and exit statuses.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from catalogue.tasks import TASKS
from engine.context import Context
from flags import flatten
from storage.run_flags import resolve
from support.device import import_tensorflow
from support.screen import Update, ignore


class Core:
    """One task of one experiment.

    Args:
      flags: a script's dict; missing flags have their defaults (`flags.table`), or the values of the run that the
        task resumes or inspects (`storage.run_flags.resolve`).
      name: the experiment's name: the working directory is logs/<name>/<time>.
      update: called about once per second with the completed fraction; may raise `Stopped` to end the task.

    Raises: UserError for invalid flags.
    """

    def __init__(self, flags: dict, name: str = "unnamed", update: Update = ignore):
        self.context = Context(resolve({}, flatten(flags)), name, update)

    def run(self) -> Path:
        """Run the `task`; returns the working directory.

        Raises: UserError; TrainingDiverged; Stopped; OSError when the disk fails.
        """
        self.context.natural_dataset  # noqa: B018 (errors in the data are reported before TensorFlow loads)
        import_tensorflow()  # without its start-up messages, before a task's modules import it
        module, function = TASKS[self.context.f.task].function.split(":")
        task: Callable[[Context], Path] = getattr(importlib.import_module(module), function)
        return task(self.context)
