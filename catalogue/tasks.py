"""The tasks: one row each. Plain data.

A new task is a function `Context -> directory` and a row here. Its flags go into `flags.table`, the figures of its
results into `reporting.kinds`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
      function: 'module:function'. The function takes a Context and returns the path of what it wrote.
      trains: whether it trains networks; it then reads the flags of networks and training.
      measures: whether it measures stored networks of the run `load_dir`.
      holds: pattern of the directories of its runs, where its working directory holds several.
    """

    function: str
    trains: bool = False
    measures: bool = False
    holds: str | None = None


TASKS = {
    "train": Task("training.run:train", trains=True),
    "train_seeds": Task("training.seeds:train_seeds", trains=True, holds="seed-*"),
    "train_peek": Task("training.peek:train_peek", trains=True),
    "sweep": Task("training.sweep:sweep", trains=True, holds="*=*"),
    "attack": Task("attacks.run:attack"),
    "make_random_labels": Task("flatness.run:make_random_labels"),
    "make_points": Task("flatness.run:make_points", measures=True),
    "make_surface": Task("flatness.run:make_surface", measures=True),
    "measure_radius": Task("flatness.run:measure_radius", measures=True),
    "measure_curvature": Task("flatness.run:measure_curvature", measures=True),
    "measure_sharpness": Task("flatness.run:measure_sharpness", measures=True),
    "measure_epochs": Task("training.stored_epochs:measure_epochs", measures=True),
}
TRAINING = tuple(name for name, task in TASKS.items() if task.trains)
MEASUREMENTS = tuple(name for name, task in TASKS.items() if task.measures)
SEVERAL = {name: task.holds for name, task in TASKS.items() if task.holds is not None}
