"""The optimizers: one row each, with its arguments and the norm of its steps. Plain data.

A new optimizer is a row here and a class in `models.optimizers`.
"""

from dataclasses import dataclass
from typing import Any

from support.errors import nearest


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Attributes:
      arguments: {name: default}, in the order of the flag `opt`.
      length: whether the learning rate is the length of a step, whatever the size of the gradient.
      norm: the norm in which the steps are steepest; the margin over this norm is the one that theory says is
        maximized (docs/optimizers.md).
      choices: the words that the argument takes; else it is a number from 0 up to, but not including, 1.
    """

    arguments: dict[str, Any]
    length: bool
    norm: str
    choices: tuple[str, ...] = ()


OPTIMIZERS = {
    "gd": Optimizer({}, False, "L2"),
    "momentum": Optimizer({"beta": 0.9}, False, "L2"),
    "nesterov": Optimizer({"beta": 0.9}, False, "L2"),
    "normalized": Optimizer({}, True, "L2"),
    "sign": Optimizer({}, True, "L-infinity"),
    "signum": Optimizer({"beta": 0.9}, True, "L-infinity"),
    "adam": Optimizer({"beta1": 0.9, "beta2": 0.999, "epsilon": 0.0}, True, "L-infinity"),
    "muon": Optimizer({"beta": 0.95}, True, "spectral"),
    "steepest": Optimizer({"norm": "l2"}, False, "the one named", ("l2", "linf", "spectral")),
}


def parsed(opt: Any) -> tuple[str, dict[str, Any]]:
    """Return (name, {argument: value}) of the flag `opt`: a name, or (name, argument, ...).

    Raises: ValueError, saying what was expected.
    """
    name, *given = opt if isinstance(opt, tuple | list) and opt else (opt,)
    known = OPTIMIZERS.get(name) if isinstance(name, str) else None
    if known is None:
        raise ValueError(f"one of {', '.join(OPTIMIZERS)}{nearest(str(name), OPTIMIZERS)}")
    takes = ", ".join(f"{argument}={default}" for argument, default in known.arguments.items()) or "no argument"
    if len(given) > len(known.arguments):
        raise ValueError(f"{name} with at most {takes}")
    for value in given:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        if value not in known.choices if known.choices else not number:
            expected = f"one of {', '.join(known.choices)}" if known.choices else "numbers from 0 to below 1"
            raise ValueError(f"{name} with {takes}: {expected}")
    return name, known.arguments | dict(zip(known.arguments, given, strict=False))
