"""The table of all flags: name, default, kind of value, meaning.

A script's dict, a run's flags.json and the command line all go through `complete`: each flag is checked in one place
and has one form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from catalogue.attacks import ABORT_RULES, CERTIFICATES, METHODS
from catalogue.measures import OF_A_NETWORK, ON_REQUEST
from catalogue.optimizers import OPTIMIZERS
from catalogue.tasks import MEASUREMENTS, TASKS, TRAINING
from flags import values
from flags.values import boolean, choice, data_path, number, optional, path, several, text, whole
from models import lr_scheduler
from models.architectures import ACT_TYPES, ARCHITECTURES, BIAS_MODES
from models.initializers import INITIALIZERS
from support.errors import UserError, nearest


@dataclass(frozen=True)
class Flag:
    """A flag. check: its kind of value (`flags.values`). help: its meaning, in one line."""

    name: str
    default: Any
    check: Callable
    help: str


@dataclass(frozen=True)
class Section:
    """Flags that belong together. tasks: those that read them. public: whether they can be typed."""

    title: str
    tasks: tuple[str, ...]
    flags: tuple[Flag, ...]
    public: bool = True


NAMES = ", ".join(INITIALIZERS)

# fmt: off
SECTIONS = (
    Section("Every task", tuple(TASKS), (
        Flag("task", "train", choice(*TASKS), "what to do"),
        Flag("seed", 0, whole(0), "random seed"),
        Flag("gpu", 0, whole(-1), "the GPU's id; -1, or no GPU present: the CPU"),
        Flag("threads", "auto", whole(1, "auto", most=4096),
             "threads to compute with; auto: one per core, or those that a resumed run began with"),
        Flag("cluster", None, optional(values.cluster),
             "distribute the work: a number of workers of this machine, tcp://host:port, or a scheduler file"),
        Flag("tf32", False, boolean, "let GPUs round float32 products to TensorFloat-32 (costs margin digits)"),
        Flag("deterministic", False, boolean, "let TensorFlow use deterministic kernels only (slower on a GPU)"),
        Flag("logs_dir", None, optional(path), "where working directories go; default: logs in the program's folder"),
        Flag("figures", True, boolean, "draw the figures of a finished run into its directory"),
        Flag("resume", None, optional(path), "a working directory of this experiment to resume"),
    )),
    Section("Data", tuple(TASKS), (
        Flag("dataset", None, optional(data_path),
             "digits, separable, mnist, fashion_mnist, cifar10, cifar100, or the path of an .npz"),
        Flag("data_dir", None, optional(values.folder), "where to look for data first; then DATA_DIR, ./data, "
             "Keras's cache"),
        Flag("classes", None, optional(values.classes),
             "use only these classes, renumbered from 0: 3,5; none: all"),
        Flag("train_N", "all", whole(1, "all"), "use only the first n training examples"),
        Flag("subset_seed", None, optional(whole(0)), "with train_N: draw them at random with this seed"),
        Flag("test_N", "all", whole(1, "all"), "use only the first n test examples"),
        Flag("random_labels", None, optional(data_path),
             "learn the labels of this file (make_random_labels); default: random_labels/<dataset>.npz"),
    )),
    Section("Network", TRAINING, (
        Flag("model.description", None, optional(values.description),
             f"the layers: a list, or {', '.join(ARCHITECTURES)}; VGG16/4: with a quarter of each layer's units"),
        Flag("model.bias_mode", "FIRST_LAYER", choice(*BIAS_MODES), "layers with a bias: " + ", ".join(BIAS_MODES)),
        Flag("model.act_type", "relu", values.act_type,
             f"the activation: {', '.join(ACT_TYPES)}, or with another slope than 0.01: leaky_relu,0.2"),
        Flag("model.init.weight", "glorot_uniform", choice(*INITIALIZERS), f"initial weights: {NAMES}"),
        Flag("model.init.weight_normalized", False, boolean, "scale each weight to L2 norm init.weight_rescale"),
        Flag("model.init.weight_rescale", 1.0, number(), "else multiply each initial weight by this number"),
        Flag("model.init.bias", "zeros", choice(*INITIALIZERS), "initial biases; names as for weights"),
        Flag("model.init.bias_normalized", False, boolean, "as for weights"),
        Flag("model.init.bias_rescale", 1.0, number(), "as for weights"),
        Flag("model.input_mean", None, optional(values.input_statistic),
             "subtracted from pixels in [0, 1]: numbers, or auto (published, or the training set's own)"),
        Flag("model.input_std", None, optional(values.input_std), "then divides them; values as for input_mean"),
    )),
    Section("Training", TRAINING, (
        Flag("E", 10000, whole(1), "epochs to accept"),
        Flag("B", 100, whole(1), "batch size"),
        Flag("parts", "auto", whole(1, "auto"),
             "slices of a batch computed concurrently; auto: one per core for a small network on a CPU"),
        Flag("xla", "auto", values.boolean_or_auto,
             "compile a turn of an epoch into one program with XLA; auto: on a GPU, or as a resumed run began"),
        Flag("speculate", False, boolean,
             "with a cluster: compute the next attempts concurrently, in case the first is rejected"),
        Flag("drop_last", True, boolean, "drop an epoch's last batch when it is smaller than B"),
        Flag("augment", "none", choice("none", "crop-flip"), "random changes of training images: none, crop-flip"),
        Flag("opt", "gd", values.optimizer, "the optimizer, or (name, arguments ...): " + ", ".join(OPTIMIZERS)),
        Flag("train_mode", "USE_FRAME", choice("NORMAL", "USE_FRAME"),
             "keep the loss relative to a frame (USE_FRAME), or not (NORMAL)"),
        Flag("lr", ("loss-based-v1", 0.1, 2 ** (1 / 5), 2 ** (1 / 10)), values.learning_rate,
             "a constant learning rate, or (scheduler, arguments ...), also written scheduler,argument,..."),
        Flag("lr_lb", 1e-50, number(0), "end the run with an error when the next lr is below this"),
        Flag("loss_ub", 600.0, number(0), "a batch loss above this (in the frame) makes the attempt fail"),
        Flag("log_frame0", "auto", values.first_frame,
             "natural log of the first epoch's frame; auto: that of a uniform guess's loss, or if no epoch can be "
             "accepted there, of the initial loss"),
        Flag("archive", "idle", values.archive,
             "epochs to archive: idle, n (every n-th), two-phase-const-epoch,n1,n2 or logloss,base"),
        Flag("include_all_rt_loss_in_res", False, boolean, "keep every batch loss in res"),
        Flag("stats_every", 1, whole(1), "evaluate only every n-th epoch and the last; others record the batches' "
             "mean loss (constant lr only)"),
        Flag("measure_every", 10, whole(1, "archived"),
             "at every n-th epoch and the last, or archived: at each archived epoch"),
        Flag("early_reject", True, boolean, "reject an attempt once its partial loss proves it (same decisions)"),
        Flag("checkpoint_every", 20.0, number(0), "seconds between checkpoints, at most"),
        Flag("tensorboard", False, boolean,
             "log the run for TensorBoard (an optional package)"),
    )),
    Section("More to record of an epoch", (*TRAINING, "measure_epochs"), (
        Flag("measure", None, optional(several(choice(*OF_A_NETWORK))),
             "record these, along a run or of stored epochs: " + ", ".join(ON_REQUEST) + "; of stored "
             "epochs also what is always recorded: " + ", ".join(n for n in OF_A_NETWORK if n not in ON_REQUEST)),
        Flag("kkt_constraints", 50, whole(1, most=10_000),
             "theory: number of smallest gaps that kkt_certificate may use"),
    )),
    Section("Start from another run", ("train", "train_seeds", "sweep"), (
        Flag("init_from", None, optional(values.folder),
             "start with the last network of this working directory, and take its network's flags"),
    )),
    Section("Several networks", ("train_seeds",), (
        Flag("seeds", None, optional(values.seeds), "one network for each of these seeds"),
    )),
    Section("Of sweep.py --grid", ("sweep",), (
        Flag("axes", None, optional(several(text)), "what changes from run to run: seed=0:3"),
    ), public=False),
    Section("Inspecting a run", ("train_peek", "attack", *MEASUREMENTS), (
        Flag("load_dir", None, optional(path), "the working directory to inspect"),
        Flag("eid", [10000], values.epochs, "the epochs to inspect: last, all, n or n,n,n"),
    )),
    Section("Attacks (none: the value of the attack's paper)", ("attack",), (
        Flag("attack_method", "cw", choice(*METHODS), "the attack: " + ", ".join(METHODS)),
        Flag("attack_set", "train", choice("train", "test"), "which images are attacked"),
        Flag("attack_N", "all", whole(1, "all"), "only the first n of them"),
        Flag("attack_indices", None, optional(values.indices), "only these images, by index"),
        Flag("attack_B", 128, whole(1), "images attacked together"),
        Flag("attack_K", None, optional(whole(1)), "iterations: of one search step, of one restart, or in total"),
        Flag("attack_E", None, optional(whole(1)), "pgd, apgd: restarts for each eps"),
        Flag("attack_lr", None, optional(number(0)), "step size (pgd: as a part of eps; cw: Adam's)"),
        Flag("attack_init_eps", None, optional(number(0)), "ddn: first norm; bim: first radius, per pixel"),
        Flag("attack_search_steps", None, optional(whole(1)), "cw: binary-search steps"),
        Flag("attack_initial_const", None, optional(number(0)), "cw: the first constant of the search"),
        Flag("attack_confidence", 0.0, values.confidence, "cw: by how many logits an example must be misclassified"),
        Flag("attack_abort", "batch", choice(*ABORT_RULES),
             "cw: what stops when Adam stalls: " + ", ".join(ABORT_RULES)),
        Flag("attack_target", None, optional(values.target),
             "the class to reach: next, or a class; none: any class but the label"),
        Flag("attack_normalize_output", "none", values.normalization,
             "divide an image's logits by: none, sum (of magnitudes), max (magnitude)"),
        Flag("attack_eps_list", (0.5, 1.0, 1.5, 2.0, 2.5, 3.0), values.radii,
             "pgd, apgd: the radii tried; other attacks: radii of the summary's robust accuracies"),
        Flag("attack_certificate", "norms", choice(*CERTIFICATES),
             "certified lower bounds of the distances: by norms of layers, local (near an image, slow), none"),
    )),
    Section("Which run to measure when no directory is given", MEASUREMENTS, (
        Flag("measured_experiment", None, optional(path), "measure the latest run of this experiment"),
        Flag("on_random_labels", False, boolean, "measure its run with random labels"),
    )),
    Section("Losses along rays and in planes", ("measure_radius", "make_points", "make_surface"), (
        Flag("method", "fast", choice("fast", "plain"),
             "fast: with the shortcuts of flatness/span.py; plain: by definition"),
    )),
    Section("Flatness radius", ("measure_radius",), (
        Flag("params", "all", choice("all", "trainable", "top"), "which tensors are perturbed"),
        Flag("directions", 20, whole(1, most=10**6), "random directions per network"),
        Flag("radius_step", 1.0, number(0), "the length of a step"),
        Flag("threshold", 0.05, number(0), "the change of the loss that ends a walk"),
        Flag("normalize", "none", choice("none", "layer"), "layer: directions in proportion to the layers' norms"),
    )),
    Section("Loss surfaces", ("make_points", "make_surface"), (
        Flag("grid", 50, whole(2, most=1000), "points per side"),
    )),
    Section("Loss surface of one run", ("make_surface",), (
        Flag("plane", "random", choice("random", "pca"),
             "through the network: random, of filters' norms; pca, of the path of training"),
        Flag("extent", 1.0, number(0), "random: half the side of the surface, in the filters' norms"),
    )),
    Section("Sharpness", ("measure_sharpness",), (
        Flag("rho", (0.01, 0.02, 0.05, 0.1, 0.2), values.radii, "sizes of perturbations, relative to the weights"),
        Flag("adaptive", ("norm", "layer"), values.different(choice("norm", "layer", "element")),
             "relative to: the norm of all weights, each layer's own (ASAM), each weight's own size"),
    )),
    Section("Curvature", ("measure_curvature",), (
        Flag("eigenvalues", 5, whole(1, most=1000), "number of largest eigenvalues of the Hessian"),
        Flag("probes", 20, whole(2, most=10**6), "random vectors for the trace"),
        Flag("density", False, boolean, "also the density of the spectrum, by stochastic Lanczos quadrature"),
        Flag("density_probes", 10, whole(2, most=10**6), "density: random vectors"),
        Flag("density_steps", 80, whole(2, most=10**4), "density: Lanczos steps per vector"),
        Flag("layer", None, optional(values.layers), "density: also of the block of these layers: all, or 0,2"),
    )),
)
# fmt: on

FLAGS = [flag for section in SECTIONS for flag in section.flags]
BY_NAME = {flag.name: flag for flag in FLAGS}
TASKS_OF = {flag.name: section.tasks for section in SECTIONS for flag in section.flags}
_PATH_KINDS = (path, data_path, values.folder)
PATHS = tuple(f.name for f in FLAGS if getattr(f.check, "kind", None) in _PATH_KINDS)  # a word is taken as it is
DEFAULTS = {flag.name: flag.default for flag in FLAGS}

# Names of the published codes, and of earlier versions of this program. They still work.
ALIASES = {
    "attack": "attack_indices",
    "random": "on_random_labels",
    "source": "measured_experiment",
    "step": "radius_step",
}

# What may change when a run is resumed: how and how long it runs, but not what it computes.
FREE_ON_RESUME = (  # of the paths of data, the fingerprint says whether they have the same data
    *("E", "data_dir", "gpu", "threads", "xla", "cluster", "speculate", "checkpoint_every", "logs_dir", "figures"),
    *("tensorboard", "resume"),
)

# The flags that decide data, network and training: what may be taken over from another run (`storage.run_flags`).
DATA = ("dataset", "data_dir", "classes", "train_N", "subset_seed", "test_N", "random_labels")
NETWORK, TRAINING_FLAGS = (
    tuple(flag.name for section in SECTIONS if section.title == title for flag in section.flags)
    for title in ("Network", "Training")
)


def flatten(flags: dict, prefix: str = "") -> dict:
    """Return {'model.init.weight': w} for {'model': {'init': {'weight': w}}}."""
    flat: dict[str, Any] = {}
    for key, value in flags.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name in ("model", "model.init"):
            flat |= flatten(value, name + ".")
        else:
            flat[name] = value
    return flat


def nest(flat: dict) -> dict:
    """Return the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, key = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[key] = value
    return nested


def renamed(flat: dict) -> dict:
    """Return the same flags under their present names. Raises: UserError for a flag given under two names."""
    found: dict[str, Any] = {}
    for given, value in flat.items():
        name = ALIASES.get(given, given)
        if name in found and found[name] != value:
            older = next(old for old in flat if ALIASES.get(old) == name)
            raise UserError(f"--{older} is another name of --{name}: give one of them")
        found[name] = value
    return found


def complete(flags: dict) -> dict:
    """Return all flags, nested, checked and in their one form. Missing flags have their defaults.

    Raises: UserError for an unknown flag or a value that its flag does not take.
    """
    flat = renamed(flatten(flags))
    for name in flat:
        if name in ("model", "model.init"):
            raise UserError(f"{name} {values.shown(flat[name])}: expected a dict of the flags {name}.*")
        if name not in BY_NAME:
            raise UserError(f"no flag is named {name}{nearest(name, BY_NAME)}")
    full = {}
    for flag in FLAGS:
        value = values.native(flat.get(flag.name, flag.default))
        try:
            full[flag.name] = flag.check(value)
        except values.Bad as error:
            raise UserError(f"--{flag.name} {values.shown(value)}: expected {error}") from None
    _check_together(full)
    return nest(full)


def _check_together(flat: dict) -> None:
    """Raises: UserError for flags that contradict one another."""
    try:
        lr_scheduler.build(flat["lr"], flat["train_mode"])
    except (ValueError, OverflowError) as error:
        raise UserError(f"--lr {values.shown(flat['lr'])}: {error}") from None
    if flat["stats_every"] > 1 and not (isinstance(flat["lr"], float) and flat["train_mode"] == "NORMAL"):
        raise UserError("--stats_every above 1 needs a constant --lr and --train_mode NORMAL")
    if flat["subset_seed"] is not None and flat["train_N"] == "all":
        raise UserError(f"--subset_seed {flat['subset_seed']}: give --train_N, how many examples to draw, too")
    if flat["layer"] is not None and not flat["density"]:
        raise UserError(f"--layer {values.shown(flat['layer'])}: needs --density, whose blocks it names")
    method, target = flat["attack_method"], flat["attack_target"]
    if target is not None and not METHODS[method].targeted:
        can = ", ".join(name for name, row in METHODS.items() if row.targeted)
        raise UserError(f"--attack_target {target}: {method} cannot be aimed at a class; {can} can")
