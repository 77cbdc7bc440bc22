"""Every flag: its default, its type, what it means; the command line; validation. No TensorFlow here.

A script's dict, a run's flags.json and the command line all go through `complete`, so a flag is
checked in one place and has one form.
"""

import argparse
import ast
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import results
from attacks import ABORT_RULES, METHODS, NORMALIZATIONS, TARGETED
from models import archivers, lr_scheduler
from models.architectures import ACT_TYPES, ARCHITECTURES, BIAS_MODES, parse
from models.initializers import INITIALIZERS
from results import UserError, nearest

# Values


class Bad(ValueError):
    """A value that a flag does not take; the text says what was expected."""


def _power(base: float, exponent: float) -> float:
    """base**exponent through floats, so that no typed number takes forever; whole where it can be."""
    power = float(base) ** float(exponent)
    exact = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 and abs(power) < 2**53
    return base**exponent if exact else power


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
    ast.USub: operator.neg,
}


def _literal(node: ast.AST) -> Any:
    """Value of a Python literal, in which numbers may be written as 2**(1/5) or log(10)."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Tuple():
            return tuple(map(_literal, node.elts))
        case ast.List():
            return list(map(_literal, node.elts))
        case ast.Dict() if None not in node.keys:
            return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
        case ast.UnaryOp() | ast.BinOp():
            operands = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
            values = list(map(_literal, operands))
            if type(node.op) in _OPERATORS and all(type(v) in (int, float) for v in values):
                return _OPERATORS[type(node.op)](*values)
        case ast.Call(func=ast.Name("log"), args=[argument], keywords=[]):
            return math.log(_literal(argument))
    raise ValueError


def from_text(text: str) -> Any:
    """What a word on the command line stands for: a Python literal, a,b,c for a tuple, else the text."""
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError):
        pass
    if "," in text and not set(text) & set("[](){}"):
        return tuple(from_text(part) for part in text.split(",") if part.strip())
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


# Kinds of values: each takes a value and returns its one form, or raises Bad


def choice(*words: str) -> Callable:
    def check(value):
        if value not in words:
            raise Bad(f"one of {', '.join(words)}{nearest(value, words)}")
        return value

    return check


def whole(least: int, *words: str) -> Callable:
    def check(value):
        if value in words and isinstance(value, str):
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise Bad(", or ".join([f"a whole number, at least {least}", *words]))
        return value

    return check


def number(above: float = -math.inf) -> Callable:
    def check(value):
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
            raise Bad("a number" + (f" above {above:g}" if above > -math.inf else ""))
        return float(value)

    return check


def boolean(value):
    if not isinstance(value, bool):
        raise Bad("true or false")
    return value


def text(value):
    if not isinstance(value, str) or not value:
        raise Bad("a name or path")
    return value


def optional(kind: Callable) -> Callable:
    return lambda value: None if value is None else kind(value)


def several(kind: Callable) -> Callable:
    """A list of values of a kind, at least one, as a tuple; one value alone is a list of one."""

    def check(value):
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise Bad("at least one value")
        return tuple(map(kind, values))

    return check


def either(word: str, kind: Callable) -> Callable:
    """A word, or a value of a kind."""
    return lambda value: value if isinstance(value, str) and value == word else kind(value)


def expecting(what: str, kind: Callable) -> Callable:
    """The same kind of values; what it refuses, it refuses in these words."""

    def check(value):
        try:
            return kind(value)
        except Bad:
            raise Bad(what) from None

    return check


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def learning_rate(value):
    value = _tuples(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    try:
        lr_scheduler.build(value)
    except (ValueError, TypeError) as error:
        names = ", ".join(lr_scheduler.SCHEDULERS)
        name = value[0] if isinstance(value, tuple) and value else value
        hint = nearest(name, lr_scheduler.SCHEDULERS) if isinstance(name, str) else ""
        hint = "" if name in lr_scheduler.SCHEDULERS else hint
        reason = " ".join(str(error).replace("__init__() ", "").split())
        raise Bad(
            f"a learning rate, or (scheduler, arguments ...) with one of {names}: {reason}{hint}"
        ) from None
    return value


def archive(value):
    value = _tuples(value)
    try:
        archivers.build(value)
    except ValueError as error:
        raise Bad(str(error).split("none of ")[-1]) from None
    return value


def _ascending(kind: Callable) -> Callable:
    """Several values of a kind, each once."""
    return lambda value: tuple(sorted(set(several(kind)(value))))


def _different(value):
    values = several(whole(0))(value)
    if len(set(values)) < len(values):
        raise Bad("no value twice")
    return values


epochs = expecting(
    "last, all, or epochs such as 100 or 10,20,30",
    either("last", either("all", lambda value: list(_ascending(whole(1))(value)))),
)
indices = expecting("indices into the set, such as 0 or 3,14,15", _ascending(whole(0)))
radii = expecting("positive numbers, such as 0.5,1,2", _ascending(number(0)))
target = expecting("next, or a class", whole(0, "next"))
confidence = expecting("a number, at least 0", number(-1e-300))
seeds = expecting("different whole numbers such as 0,1,2", _different)
numbers = expecting("a number, or one for each channel", several(number()))
input_statistic = either("auto", numbers)


def normalization(value):
    return choice(*NORMALIZATIONS)({True: "sum", False: "none"}[value] if isinstance(value, bool) else value)


def description(value):
    if isinstance(value, str):
        if value not in ARCHITECTURES:
            raise Bad(
                f"a list of layers, or one of {', '.join(ARCHITECTURES)}{nearest(value, ARCHITECTURES)}"
            )
        value = ARCHITECTURES[value]
    try:
        parse(value, "NONE", (1 << 16, 1 << 16, 1))  # whether it fits the images is seen with the data
    except ValueError as error:
        raise Bad(f"a list of layers ({error})") from None

    def plain(item):
        return [plain(i) for i in item] if isinstance(item, list | tuple) else item

    return plain(value)


def input_std(value):
    value = input_statistic(value)
    if value != "auto" and min(value) <= 0:
        raise Bad("auto, or numbers above 0")
    return value


# The flags


@dataclass(frozen=True)
class Flag:
    name: str
    default: Any
    check: Callable
    help: str


MODEL_FLAGS = [
    Flag("description", None, optional(description), "the layers: a list, or " + " or ".join(ARCHITECTURES)),
    Flag(
        "bias_mode", "FIRST_LAYER", choice(*BIAS_MODES), "which layers have a bias: " + ", ".join(BIAS_MODES)
    ),
    Flag("act_type", "relu", choice(*ACT_TYPES), "the activation: " + ", ".join(ACT_TYPES)),
    Flag(
        "init.weight", "glorot_uniform", choice(*INITIALIZERS), "initial weights: " + ", ".join(INITIALIZERS)
    ),
    Flag("init.weight_normalized", False, boolean, "scale each weight to L2 norm init.weight_rescale"),
    Flag("init.weight_rescale", 1.0, number(), "else multiply each initial weight by this"),
    Flag("init.bias", "zeros", choice(*INITIALIZERS), "initial biases"),
    Flag("init.bias_normalized", False, boolean, "as for weights"),
    Flag("init.bias_rescale", 1.0, number(), "as for weights"),
    Flag(
        "input_mean",
        None,
        optional(input_statistic),
        "subtracted from pixels in [0, 1]: numbers, or auto: the published ones, else the training set's",
    ),
    Flag("input_std", None, optional(input_std), "divides them then; as input_mean"),
]

MEASUREMENTS = ("make_points", "measure_radius", "measure_curvature")
FLATNESS_TASKS = ("make_random_labels", "train_seeds", *MEASUREMENTS)
# Where nothing is said of the default, none means the value of the attack's paper.
ATTACK_FLAGS = [
    Flag("attack_method", "cw", choice(*METHODS), "the attack: " + ", ".join(METHODS)),
    Flag("attack_set", "train", choice("train", "test"), "which images are attacked"),
    Flag("attack_N", "all", whole(1, "all"), "only the first so many of them"),
    Flag("attack", None, optional(indices), "only these, by index"),
    Flag("attack_B", 128, whole(1), "images attacked together"),
    Flag("attack_K", None, optional(whole(1)), "iterations, of one search step or restart or in all"),
    Flag("attack_E", None, optional(whole(1)), "pgd: restarts for each eps"),
    Flag("attack_lr", None, optional(number(0)), "step size (pgd: as a part of eps; cw: Adam's)"),
    Flag("attack_init_eps", None, optional(number(0)), "ddn: first norm; bim: first radius, per pixel"),
    Flag("attack_search_steps", None, optional(whole(1)), "cw: binary-search steps"),
    Flag("attack_initial_const", None, optional(number(0)), "cw: the first constant of the search"),
    Flag("attack_confidence", 0.0, confidence, "cw: by how many logits an example has to be wrong"),
    Flag(
        "attack_abort",
        "image",
        choice(*ABORT_RULES),
        "cw: who stops when Adam stalls: " + ", ".join(ABORT_RULES),
    ),
    Flag(
        "attack_target", None, optional(target), "the class to reach: next, or a class; none: leave the label"
    ),
    Flag(
        "attack_normalize_output",
        "none",
        normalization,
        "divide an image's logits by: none, sum (of magnitudes), max (magnitude)",
    ),
    Flag(
        "attack_eps_list",
        (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
        radii,
        "pgd: the radii tried; else: radii of the summary's robust accuracies",
    ),
    Flag("attack_certificate", True, boolean, "compute provable lower bounds of the L2 distances too"),
]

FLAGS = [
    Flag("task", "train", choice("train", "train_peek", "attack", *FLATNESS_TASKS), "what to do"),
    Flag("dataset", None, optional(text), "digits, mnist, fashion_mnist, cifar10, or the path of an .npz"),
    Flag(
        "data_dir", None, optional(text), "where to look for data first; then DATA_DIR, ./data, Keras's cache"
    ),
    Flag("train_N", "all", whole(1, "all"), "use only the first so many training examples"),
    Flag(
        "random_labels",
        None,
        optional(text),
        "learn the labels of this file (make_random_labels) instead; default: random_labels/<dataset>.npz",
    ),
    *(Flag("model." + f.name, f.default, f.check, f.help) for f in MODEL_FLAGS),
    Flag("E", 10000, whole(1), "epochs to accept"),
    Flag("B", 100, whole(1), "batch size"),
    Flag(
        "parts",
        "auto",
        whole(1, "auto"),
        "slices of a batch computed at the same time; auto: one a core for a small network on the CPU",
    ),
    Flag("drop_last", True, boolean, "leave out an epoch's last batch where it is smaller than B"),
    Flag("augment", "none", choice("none", "crop-flip"), "what is done to training images, at random"),
    Flag("opt", "gd", choice("gd"), "plain gradient steps: no momentum, no weight decay"),
    Flag(
        "train_mode", "USE_FRAME", choice("NORMAL", "USE_FRAME"), "keep the loss relative to a frame, or not"
    ),
    Flag(
        "lr",
        ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)),
        learning_rate,
        "a constant learning rate, or (scheduler, arguments ...), also written scheduler,argument,...",
    ),
    Flag("lr_lb", 1e-50, number(0), "a next lr below this ends the run with an error"),
    Flag("loss_ub", 600.0, number(0), "a batch loss above this (in the frame) makes the attempt fail"),
    Flag("log_frame0", math.log(math.log(10)), number(), "log of the frame of the first epoch"),
    Flag(
        "archive",
        "idle",
        archive,
        "epochs kept for good: idle, n (every n-th), two-phase-const-epoch,n1,n2 or logloss,base",
    ),
    Flag("eid", [10000], epochs, "train_peek, attack: the epochs to look at: last, all, n or n,n,n"),
    Flag(
        "load_dir",
        None,
        optional(text),
        "train_peek, attack, measure: the working directory that is looked at",
    ),
    *ATTACK_FLAGS,
    Flag("include_all_rt_loss_in_res", False, boolean, "keep every batch loss in res"),
    Flag(
        "stats_every",
        1,
        whole(1),
        "evaluate only every n-th epoch and the last; between, stats are the batches' (constant lr only)",
    ),
    Flag(
        "early_reject",
        True,
        boolean,
        "reject an attempt as soon as its partial loss proves it (same decisions)",
    ),
    Flag(
        "tensorboard",
        False,
        boolean,
        "training: show the run, as it goes, to TensorBoard (an optional package)",
    ),
    Flag("seed", 0, whole(0), "of everything random"),
    Flag("seeds", None, optional(seeds), "train one network for each of these seeds"),
    Flag("source", None, optional(text), "measure: the experiment whose latest run is load_dir"),
    Flag("random", False, boolean, "measure: the run with random labels"),
    Flag("params", "all", choice("all", "trainable", "top"), "radius: which tensors are perturbed"),
    Flag("directions", 20, whole(1), "radius: how many random directions a network"),
    Flag("step", 1.0, number(0), "radius: the length of a step"),
    Flag("threshold", 0.05, number(0), "radius: the change of the loss that ends a walk"),
    Flag("max_steps", 100_000, whole(1), "radius: a walk longer than this is an error"),
    Flag(
        "normalize", "none", choice("none", "layer"), "radius; layer: directions in proportion to layer norms"
    ),
    Flag(
        "method",
        "fast",
        choice("fast", "plain"),
        "radius, points: with short cuts, or by definition",
    ),
    Flag("grid", 50, whole(2), "points: how many a side"),
    Flag("eigenvalues", 5, whole(1), "curvature: how many of the Hessian's largest"),
    Flag("probes", 20, whole(2), "curvature: random vectors for the trace"),
    Flag("gpu", 0, whole(-1), "the GPU's id; -1, or no GPU present: the CPU"),
    Flag("tf32", False, boolean, "let GPUs round float32 products to TensorFloat-32 (costs margin digits)"),
    Flag("deterministic", False, boolean, "ask TensorFlow for deterministic kernels only (slower on a GPU)"),
    Flag("checkpoint_every", 20.0, number(0), "seconds between checkpoints, at most"),
    Flag(
        "logs_dir", None, optional(text), "where working directories go; by default logs beside the program"
    ),
    Flag("figures", True, boolean, "draw the figures of a run into its directory when it is done"),
    Flag("resume", None, optional(text), "a working directory of this experiment to go on with"),
]

BY_NAME = {flag.name: flag for flag in FLAGS}

# What a resumed run may change: how and how long it runs, but not what it computes.
FREE_ON_RESUME = (
    *("E", "data_dir", "gpu", "checkpoint_every", "logs_dir", "figures", "tensorboard", "resume"),
)

# What an attack has from its own script and command line; all else comes from the run attacked.
OF_AN_ATTACK = (
    *("task", "eid", "load_dir", "resume", "data_dir", "seed", "gpu", "tf32", "deterministic"),
    *("figures", "tensorboard"),
    *(flag.name for flag in ATTACK_FLAGS),
)


# What a measurement of the flatness experiments has from the run that is measured.
OF_THE_RUN = ("dataset", "train_N", "random_labels", "model", "B")


def flatten(flags: dict, prefix: str = "") -> dict:
    """{'model': {'init': {'weight': w}}} -> {'model.init.weight': w}."""
    flat = {}
    for key, value in flags.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in ("model", "model.init"):
            flat |= flatten(value, name + ".")
        else:
            flat[name] = value
    return flat


def nest(flat: dict) -> dict:
    """The inverse of `flatten`."""
    nested = {}
    for name, value in flat.items():
        *path, key = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[key] = value
    return nested


def complete(flags: dict) -> dict:
    """All flags, nested, checked and in their one form; what is not given has its default.

    Raises: UserError for an unknown flag or a value that its flag does not take.
    """
    flat = flatten(flags)
    for name in flat:
        if name not in BY_NAME:
            raise UserError(f"no flag is named {name}{nearest(name, BY_NAME)}")
    full = {}
    for flag in FLAGS:
        value = flat.get(flag.name, flag.default)
        try:
            full[flag.name] = flag.check(value)
        except Bad as error:
            raise UserError(f"--{flag.name} {_shown(value)}: expected {error}") from None
    try:
        lr_scheduler.build(full["lr"], full["train_mode"], full["log_frame0"])
    except ValueError as error:
        raise UserError(f"--lr {_shown(full['lr'])}: {error}") from None
    if full["stats_every"] > 1 and not (isinstance(full["lr"], float) and full["train_mode"] == "NORMAL"):
        raise UserError("--stats_every above 1 needs a constant --lr and --train_mode NORMAL")
    if full["attack_target"] is not None and full["attack_method"] not in TARGETED:
        raise UserError(
            f"--attack_target {full['attack_target']}: {full['attack_method']} cannot be aimed at a class; "
            f"{', '.join(TARGETED)} can"
        )
    return nest(full)


def of_trained(directory: Path | str) -> dict:
    """The flags of a training run, complete. Raises: UserError for a directory of another kind."""
    stored = complete(results.read_flags(directory))
    if stored["task"] not in ("train", "train_seeds"):
        raise UserError(
            f"{directory}: left by the task {stored['task']}, without networks; "
            "give a training run's directory"
        )
    return stored


def _shown(value: Any) -> str:
    """As it is typed, cut where it is very long."""
    if isinstance(value, tuple) and all(isinstance(v, str | int | float) for v in value):
        value = ",".join(map(str, value))
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) < 200 else shown[:200] + "..."


class Parser(argparse.ArgumentParser):
    """One whose errors are a user's mistakes like all others."""

    def error(self, message):
        raise UserError(message)


def on_directories(
    argv: list[str],
    program: str,
    about: str,
    out: tuple[str, str],
    do: Callable[[list[str], str | None], None],
) -> int:
    """The command line of a program that looks at working directories: they, and --out.

    Args:
      argv: the words after the program's name.
      out: what --out takes, and what stands for it when it is not given.
      do: what to do with the directories and --out.

    Returns: the exit status: 0; 2 for a mistake of the user's, 130 for Ctrl-C, each said in one line.
    """
    parser = Parser(prog=f"python {program}", description=about, allow_abbrev=False)
    parser.add_argument("directories", nargs="+", metavar="DIRECTORY", help="a working directory")
    parser.add_argument("--out", metavar=out[0], help=f"where to [{out[1]}]")
    try:
        options = parser.parse_args(argv)
        if "" in (*options.directories, options.out):
            raise UserError("an empty word where a path is expected (a shell variable that is not set?)")
        do(options.directories, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        return 130
    return 0


def typed(argv: list[str]) -> list[str]:
    """The names of the flags among the words of a command line."""
    names = (word.split("=")[0].removeprefix("--") for word in argv if word.startswith("--"))
    return [name for name in names if name in BY_NAME]


def measure_command_line(argv: list[str], flags: dict, about: str = "", prog: str = "") -> dict:
    """Flags of a measurement: as `command_line`, with the working directory to measure as the first word.

    Raises: UserError, also for a flag that comes from the run which is measured.
    """
    if argv and not argv[0].startswith("-"):
        argv = ["--load_dir", *argv]
    for name in typed(argv):
        if name.split(".")[0] in OF_THE_RUN and name != "dataset":  # this one chooses the run
            raise UserError(f"--{name}: comes from the run that is measured; it cannot be changed")
    return command_line(argv, flags, about, prog)


def command_line(argv: list[str], flags: dict, about: str = "", prog: str = "") -> dict:
    """The script's flags with those of the command line over them, checked.

    Args:
      argv: the words after the script's name: --flag value, --flag=value, or --flag alone for true.
      flags: the script's dict.

    With --resume the flags are those of that run, and only FREE_ON_RESUME may be given anew.

    Raises: UserError.
    """
    script = complete(flags)
    parser = Parser(
        prog=prog, description=about, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--help", "-h", action="help", help="show this and exit")
    shown = flatten(script)
    for flag in FLAGS:
        help_text = f"{flag.help} [{_shown(shown[flag.name])}]".replace("%", "%%")
        bare = {"nargs": "?", "const": "true"} if flag.check is boolean else {}
        parser.add_argument(f"--{flag.name}", metavar="VALUE", help=help_text, **bare)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        options = [f"--{name}" for name in BY_NAME]
        if word.startswith("-"):
            raise UserError(f"no flag is named {word}{nearest(word, options)}")
        raise UserError(f"unexpected word {unknown[0]!r}; flags are given as --flag value")
    changes = {name: from_text(value) for name, value in vars(given).items()}
    for name in ("dataset", "data_dir", "logs_dir", "resume", "load_dir", "random_labels", "source"):
        if name in changes:  # a path stays what was typed, even one that reads like a number
            changes[name] = vars(given)[name]
    if "resume" not in changes:
        return complete(flatten(script) | changes)
    stored = complete(results.read_flags(changes["resume"]))
    full = complete(flatten(stored) | changes)
    old, new = flatten(stored), flatten(full)
    for name in BY_NAME:
        if name not in FREE_ON_RESUME and old[name] != new[name]:
            raise UserError(
                f"--{name} {_shown(new[name])}: the run to resume has {_shown(old[name])}; "
                f"of a resumed run only {', '.join(FREE_ON_RESUME)} may change"
            )
    return full


def attack_command_line(argv: list[str], flags: dict, about: str = "", prog: str = "") -> dict:
    """Flags of an attack: the run's own, and over them the script's and command line's OF_AN_ATTACK.

    Args:
      argv: as for `command_line`, with the working directory to attack as the first word; with
        --resume, the directory of the attack to go on with, there is no such word.

    Raises: UserError.
    """
    directory = None
    if argv and not argv[0].startswith("-"):
        directory, *argv = argv
    for name in typed(argv):
        if name not in OF_AN_ATTACK:
            raise UserError(f"--{name}: comes from the working directory; of an attack it cannot be changed")
    run = {"dataset": "that of the run"}
    if directory is not None:
        stored = flatten(of_trained(directory))
        run = {name: value for name, value in stored.items() if name not in OF_AN_ATTACK}
        run |= {"data_dir": stored["data_dir"], "load_dir": directory}
    full = command_line(argv, nest(run | flatten(flags) | {"task": "attack"}), about, prog)
    for name in typed(argv):
        if attacks.refused(full["attack_method"], name):
            raise UserError(f"--{name}: {full['attack_method']} has no such setting; see --help")
    if full["resume"] is None and directory is None:
        raise UserError("which run? give its working directory, logs/<experiment>/<time>, as the first word")
    if full["resume"] is not None and directory is not None:
        raise UserError(f"unexpected word {directory!r}: --resume says already what to go on with")
    return full
