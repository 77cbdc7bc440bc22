"""Table 1 of arXiv 1801.02254, and which of our measurements repeat it."""

import math
from typing import Any

import numpy as np

from flags import complete
from models.architectures import MLP, VGG16_BN
from storage.read import are_epochs_of_one_run

# (data set, params, random labels): mean and standard deviation over three networks.
RADII = {
    ("mnist", "all", False): (13.9833, 0.1670),
    ("mnist", "all", True): (4.6333, 0.2461),
    ("mnist", "top", False): (2.3400, 0.1393),
    ("mnist", "top", True): (3.8600, 0.0497),
    ("cifar10", "all", False): (14.2999, 0.2943),
    ("cifar10", "all", True): (7.3167, 0.1312),
    ("cifar10", "top", False): (10.2667, 0.5632),
    ("cifar10", "top", True): (4.8333, 0.0471),
}

# The paper's trainings. tests/flatness_commands_test.py holds the train_* scripts to them.
_COMMON = {"task": "train_seeds", "train_N": "all", "train_mode": "NORMAL", "lr": 0.01, "drop_last": False}
_MNIST = _COMMON | {"B": 64, "augment": "none"}
_CIFAR = _COMMON | {"B": 128, "augment": "crop-flip", "E": 150}
_INIT = {
    **{"model.bias_mode": "ALL", "model.init.weight": "torch_default", "model.init.bias": "torch_default"},
    **{"model.input_mean": "auto", "model.input_std": "auto"},
}
TRAININGS = {  # (data set, random labels): flags, flat
    ("mnist", False): _INIT | _MNIST | {"model.description": MLP, "E": 30, "seeds": (0, 1, 2)},
    ("mnist", True): _INIT | _MNIST | {"model.description": MLP, "E": 150, "seeds": (42, 43, 44)},
    ("cifar10", False): _INIT | _CIFAR | {"model.description": VGG16_BN, "seeds": (0, 1, 2)},
    ("cifar10", True): _INIT | _CIFAR | {"model.description": VGG16_BN, "seeds": (0, 1, 2)},
}


def is_papers_training(flags: dict) -> bool:
    """Return whether a run's flags are those of the paper's training on its data; more seeds than the paper's are
    fine."""
    random = flags["random_labels"] is not None
    papers = TRAININGS.get((flags["dataset"], random))
    if papers is None:
        return False
    wanted = complete(papers | {"dataset": flags["dataset"], "random_labels": flags["random_labels"]})
    same = ("task", "train_N", "model", "train_mode", "lr", "E", "B", "augment", "drop_last")
    return all(flags[key] == wanted[key] for key in same) and set(wanted["seeds"]) <= set(flags["seeds"] or ())


def published_radius(trained: dict, measured: dict) -> tuple[float, float] | None:
    """Return the published (mean, standard deviation) that a measurement can be compared with, or None.

    Args:
      trained: the flags of the run. measured: the flags of the measurement.
    """
    random = trained["random_labels"] is not None
    step = 0.2 if (trained["dataset"], measured["params"]) == ("mnist", "top") else 1.0
    as_measured = (measured["eid"], measured["radius_step"], measured["threshold"], measured["normalize"])
    if not is_papers_training(trained) or as_measured != ("last", step, 0.05, "none"):
        return None
    return RADII.get((trained["dataset"], measured["params"], random))


def table_row(
    networks: dict[str, dict], dataset: str, params: str, random: bool, published: tuple[float, float] | None = None
) -> dict:
    """Return a row of Table 1: mean and population standard deviation over the networks' means.

    Args:
      networks: {name: `flatness.radius.summary` with the network's epoch `eid`}.
      published: the paper's mean and standard deviation over three networks, where it may be compared.

    Returns: mean, sd, by_norm_mean, by_norm_sd, text, published; and where it is known, standard_errors: how far
      apart the two means are, in standard errors of their difference, sqrt(sd^2/(n - 1) + sd_published^2/2), with
      n networks here (each sd being the population's).
    """
    means = [network["mean"] for network in networks.values()]
    by_norm = [network["mean_by_norm"] for network in networks.values()]
    (mean, sd), (norm_mean, norm_sd) = mean_and_sd(means), mean_and_sd(by_norm)
    row: dict[str, Any] = {
        "mean": mean,
        "sd": sd,
        "by_norm_mean": norm_mean,
        "by_norm_sd": norm_sd,
        "published": published,
    }
    what = {"all": "all params", "trainable": "trainable params", "top": "top layer"}[params]
    row["text"] = f"{dataset}, {what}{', random labels' if random else ''}: "
    names = list(networks)
    if are_epochs_of_one_run([network["eid"] for network in networks.values()]):
        row["text"] += f"{means[0]:.4f} at {names[0]}, {means[-1]:.4f} at {names[-1]}"
        return row
    row["text"] += f"{mean:.4f} ± {sd:.4f} (by norm {norm_mean:.4f} ± {norm_sd:.4f})"
    if published:
        row["text"] += f"; published {published[0]:.4f} ± {published[1]:.4f}"
        if len(means) > 1 and (error := math.sqrt(sd**2 / (len(means) - 1) + published[1] ** 2 / 2)):
            row["standard_errors"] = abs(mean - published[0]) / error
            row["text"] += f": {row['standard_errors']:.1f} standard errors apart"
    return row


def mean_and_sd(values: list[float]) -> tuple[float, float]:
    """Return mean and population standard deviation."""
    return float(np.mean(values)), float(np.std(values))
