"""How a task computes: device, threads, slices of a batch, XLA. Chosen once, from flags, network and machine."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from catalogue.tasks import TRAINING
from models.architectures import LayerSpec, parse
from support.device import cores, set_up_device
from support.errors import UserError

STEP_TO_SHARE = 2e10  # floating-point operations of a step; above this, sharing each op among cores is as fast
LEAST_PART = 32  # examples of a slice; the ops of a smaller one are less efficient


@dataclass(frozen=True)
class Compute:
    """How a task computes.

    Attributes:
      device: as `support.device.set_up_device` names it.
      threads: how many threads compute, in this process or in each worker of a cluster.
      parts: into how many slices of examples each batch is cut (`models.network.Network`).
      xla: whether XLA compiles the training turn.
      began: threads and parts that the resumed run began with, where known.
      auto_parts: what the flag value `auto` would choose for a new run.
    """

    device: str
    threads: int
    parts: int
    xla: bool
    began: tuple[int, int]
    auto_parts: int


def choose(f: SimpleNamespace, shape: tuple[int, ...], about: dict[str, Any]) -> Compute:
    """Choose the device, and set it up for everything that follows.

    Args:
      f: the flags. shape: (h, w, c) of an image.
      about: about.json of the run that is resumed; empty for a new one.

    Raises: UserError for a GPU that does not exist, or a number of slices that is impossible.
    """
    device = set_up_device(f.gpu, f.tf32, f.deterministic)
    began = about.get("threads", {}) | {"xla": about.get("xla")}
    if str(about.get("device")).startswith("CPU") != device.startswith("CPU"):
        began = {}  # settings do not transfer between CPU and GPU
    threads = f.threads
    if threads == "auto":
        share = cores()
        if f.cluster is not None:  # each worker of this machine gets its share of the cores
            share = max(cores() // f.cluster, 1) if isinstance(f.cluster, int) else 1
        threads = int(began.get("threads", share))
    trains = f.task in TRAINING  # attacks and measurements have large batches: all cores share each op
    parts = auto_parts = 1
    if trains:
        wanted = began.get("parts", "auto") if (f.parts, f.threads) == ("auto", "auto") else f.parts
        network = f.model["description"], shape, f.B, device, threads
        parts, auto_parts = choose_parts(wanted, *network), choose_parts("auto", *network)
    xla = f.xla
    if xla == "auto":
        # On a GPU a small network's step waits for the launches of its kernels. On a CPU XLA's convolutions were
        # many times slower (`bench/train_step.py --xla`).
        xla = not device.startswith("CPU") if began.get("xla") is None else began["xla"]
    before = began.get("threads", threads), began.get("parts", parts)
    return Compute(device, threads, parts, bool(xla and trains), before, auto_parts)


def parts_that_pay(specs: list[LayerSpec], batch: int, threads: int) -> int:
    """Return into how many slices to cut the batches of a network on the CPU (`models.network.Network`).

    Convolutions and pools waste less time where each core has its own slice, unless they are so large that sharing
    them costs nothing. Products with wide weights gain nothing: reading the weights once per slice takes as long as
    sharing does. So slices pay for networks with convolutions, up to a size (`bench/parts.py`).
    """
    step_flops = 3 * batch * sum(spec.flops for spec in specs)
    if step_flops > STEP_TO_SHARE or all(spec.kind != "C" for spec in specs):
        return 1
    return max(1, min(threads, batch // LEAST_PART))


def choose_parts(
    wanted: Any, description: list[Any], shape: tuple[int, ...], batch: int, device: str, threads: int
) -> int:
    """Return the number of slices that the flag `parts` means.

    Args:
      wanted: the flag. description: of the network. shape: (h, w, c) of an image. batch: its size.
      device: as `set_up_device` names it. threads: to compute with.

    Raises: UserError for an impossible number.
    """
    try:
        specs = parse(description, "NONE", (shape[0], shape[1], shape[2]))
    except ValueError:
        return 1  # building the network reports the error
    normed = any(spec.bn for spec in specs)
    if wanted == "auto":
        return 1 if normed or not device.startswith("CPU") else parts_that_pay(specs, batch, threads)
    if normed and wanted > 1:
        raise UserError(f"--parts {wanted}: batch norm needs whole batches; give 1, or auto")
    if wanted > batch:
        raise UserError(f"--parts {wanted}: a batch has {batch} examples; give at most that, or auto")
    return wanted
