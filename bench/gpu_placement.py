"""What the compiled functions would do on a GPU: which ops fall back to the CPU, what crosses, how many kernels.

    python bench/gpu_placement.py [--json FILE]

Needs no GPU: TensorFlow registers its GPU kernels on every machine. Each function is traced with the shapes that it
has in an experiment. Its graph is walked as the placer would see it:

- an op whose dtypes have neither a GPU nor a DEFAULT kernel runs on the CPU;
- a kernel wants some inputs and outputs in host memory (shapes, int32 scalars, ...);
- a tensor that is made in one memory and wanted in the other crosses: its bytes are counted;
- an op that works on device memory is one launch. A program that XLA compiles counts as one, though it may be several
  kernels (`--xla` says how many). Its ops are checked against XLA's own kernels.

`once` is a call of the function, `in loop` one turn of its loop: a gradient step, an iteration of an attack.
`results` are what the call leaves, for the host to read or for the next call. `an attempt` is all of a training epoch
and the evaluation after it. The real placer also moves small integer ops to the host, and Grappler removes some: so
this is a model, on the safe side.
"""

import argparse
import json
import math
import re
import sys
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.loading import Dataset
from engine.context import build_network
from support.device import import_tensorflow

tf = import_tensorflow()

from tensorflow.python.framework import kernels, op_def_registry

from attacks import run
from catalogue.attacks import METHODS
from flatness.hessian import Hessian
from flatness.span import Examples, FastSpan, PlainSpan
from models.architectures import ARCHITECTURES
from models.network import EVAL_BATCH, on_device

ALLOWED = 64 * 1024  # bytes that may cross in a turn of a loop
ATTACKED = 512  # images in a batch of an attack
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
LOOPS = {"While", "StatelessWhile"}
RENAMING = {  # they only rename a tensor, or hand over a handle: no kernel is launched
    *("Placeholder", "Const", "Identity", "IdentityN", "Reshape", "ExpandDims", "Squeeze", "ReadVariableOp", "NoOp"),
    *("StopGradient", "PreventGradient", "TensorListReserve", "TensorListSetItem", "TensorListGetItem"),
    *("TensorListStack", "TensorListFromTensor"),
}


@dataclass
class Moved:
    """What happens once, or in one turn of a loop."""

    ops: int = 0  # launched one by one
    programs: int = 0  # compiled by XLA
    to_host: int = 0  # bytes
    to_device: int = 0
    largest: int = 0  # bytes of the largest tensor that crosses
    largest_of: str = ""
    fallen: dict[str, int] = field(default_factory=dict)  # ops without a kernel for the device: bytes they work on


class Graph:
    """A walk through a concrete function.

    Args:
      size: what an unknown dimension counts for.
    """

    def __init__(self, concrete: Any, size: int):
        self.size, self.once, self.loop = size, Moved(), Moved()
        self._functions: dict[str, Any] = {}
        if compiled(concrete._inference_function):
            self.once.programs, self.once.fallen = 1, unknown_to_xla(concrete.graph, self._function)
        else:
            self._walk(concrete.graph, self.once)
        self.results = sum(self._bytes(tensor) for tensor in concrete.graph.outputs)

    def _function(self, graph: Any, name: str) -> Any:
        """Return the graph of a function that is named in a graph or in one that contains it."""
        while graph is not None:
            if graph._is_function(name):
                return graph._get_function(name)
            graph = getattr(graph, "outer_graph", None)
        raise KeyError(name)

    def _bytes(self, tensor: Any) -> int:
        if tensor.dtype in (tf.resource, tf.variant, tf.string):
            return 0
        dims = tensor.shape.as_list() if tensor.shape.rank is not None else [self.size]
        return math.prod(self.size if d is None else d for d in dims) * tensor.dtype.size

    def _walk(self, graph: Any, moved: Moved) -> None:
        where = {}
        operations = graph.get_operations()
        for op in operations:
            inputs, outputs = _memories(op)
            for tensor, memory in zip(op.outputs, outputs, strict=True):
                where[tensor.ref()] = memory
            for tensor, wanted in zip(op.inputs, inputs, strict=True):
                self._cross(op, tensor, where[tensor.ref()], wanted, moved)
            if op.type in LOOPS:
                for kind in ("body", "cond"):
                    self._walk(self._function(graph, op.get_attr(kind).name).graph, self.loop)
            elif op.type in CALLS:
                inner = self._function(graph, op.get_attr("f").name)
                if compiled(inner):
                    moved.programs += 1
                    moved.fallen |= unknown_to_xla(inner.graph, self._function)
                else:
                    self._walk(inner.graph, moved)
            elif not has_kernel(op):
                what = f"{op.type} {dtypes(op)}"
                moved.fallen[what] = moved.fallen.get(what, 0) + self._weight(op)
            elif op.type not in RENAMING and "device" in (*inputs, *outputs):
                moved.ops += 1
        for tensor in graph.outputs:
            self._cross(None, tensor, where[tensor.ref()], memory_of_argument(tensor.dtype), moved)

    def _weight(self, op: Any) -> int:
        """Return the bytes that an op on the CPU works on."""
        return max([self._bytes(t) for t in (*op.inputs, *op.outputs)] or [0])

    def _cross(self, op: Any, tensor: Any, has: str, wanted: str, moved: Moved) -> None:
        size = self._bytes(tensor)
        if has == wanted or not size or tensor.op.type == "Const":  # a constant lies where it is wanted
            return
        if wanted == "host":
            moved.to_host += size
        else:
            moved.to_device += size
        if size > moved.largest:
            moved.largest, moved.largest_of = size, f"{tensor.op.type} -> {op.type if op else 'result'}"


def compiled(function: Any) -> bool:
    attributes = function.cached_definition.attr if hasattr(function, "cached_definition") else {}
    return "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b


def memory_of_argument(dtype: Any) -> str:
    """Return where an argument or a result of a function lies: TensorFlow keeps int32 and handles on the host."""
    return "host" if dtype in (tf.int32, tf.resource, tf.string) else "device"


@lru_cache
def registered(op_type: str) -> list[Any]:
    return list(kernels.get_registered_kernels_for_op(op_type).kernel)


def fitting(op: Any, devices: tuple[str, ...]) -> Any:
    """Return the kernel that is registered for an op's dtypes on one of the devices, or None."""
    for device in devices:
        for kernel in registered(op.type):
            if kernel.device_type == device and all(_allows(c, op) for c in kernel.constraint):
                return kernel
    return None


def _allows(constraint: Any, op: Any) -> bool:
    have, allowed = op.get_attr(constraint.name), constraint.allowed_values.list
    have = have if isinstance(have, list) else [have]
    if allowed.s:
        return all(text in allowed.s for text in have)
    return all(tf.as_dtype(dtype).as_datatype_enum in allowed.type for dtype in have)


def has_kernel(op: Any) -> bool:
    return op.type in ("Placeholder", "NoOp") or fitting(op, ("GPU", "DEFAULT")) is not None


def dtypes(op: Any) -> str:
    return ",".join(sorted({t.dtype.name for t in (*op.inputs, *op.outputs) if t.dtype != tf.resource}))


def _memories(op: Any) -> tuple[list[str], list[str]]:
    """Return 'host' or 'device' for each input and output of an op."""
    if op.type == "Placeholder" or op.type in CALLS | LOOPS:
        return [memory_of_argument(t.dtype) for t in op.inputs], [memory_of_argument(t.dtype) for t in op.outputs]
    kernel = fitting(op, ("GPU", "DEFAULT"))
    if kernel is None:
        return ["host"] * len(op.inputs), ["host"] * len(op.outputs)
    definition = op_def_registry.get(op.type)

    def memories(arguments: Any) -> list[str]:
        found = []
        for argument in arguments:
            n = 1
            if argument.number_attr:
                n = op.get_attr(argument.number_attr)
            elif argument.type_list_attr:
                n = len(op.get_attr(argument.type_list_attr))
            found += ["host" if argument.name in kernel.host_memory_arg else "device"] * n
        return found

    return memories(definition.input_arg), memories(definition.output_arg)


def unknown_to_xla(graph: Any, function: Any) -> dict[str, int]:
    """Return the ops of a compiled function for which XLA has no GPU kernel."""
    found: dict[str, int] = {}
    for op in graph.get_operations():
        if op.type in CALLS | LOOPS:
            for kind in ("body", "cond") if op.type in LOOPS else ("f",):
                found |= unknown_to_xla(function(graph, op.get_attr(kind).name).graph, function)
        elif op.type not in ("Placeholder", "NoOp") and fitting(op, ("XLA_GPU_JIT",)) is None:
            found[f"{op.type} {dtypes(op)} (under XLA)"] = 1
    return found


# The program's functions, as its experiments have them

NETWORKS = {  # name: (description, shape of the images, training images, batch)
    "MNIST CNN": ("CNN", (28, 28, 1), 60_000, 100),
    "VGG-16": ("VGG16", (32, 32, 3), 50_000, 100),
    "VGG-16 with batch norm": ("VGG16_BN", (32, 32, 3), 50_000, 100),
    "MLP": ("MLP", (28, 28, 1), 60_000, 64),
}


def network_of(name: str, xla: bool) -> Any:
    description, shape, _, _ = NETWORKS[name]
    few = np.zeros((10, *shape), np.uint8), np.arange(10, dtype=np.int32)
    model = {"description": ARCHITECTURES[description], "bias_mode": "FIRST_LAYER", "act_type": "relu", "init": {}}
    model |= {"input_mean": None, "input_std": None}
    return build_network(model, Dataset(few, few, "mnist", 1 / 255), 0, xla=xla)


def functions(name: str, xla: bool, attacks: bool = True, spans: bool = True) -> dict[str, tuple[Any, int]]:
    """Return {description: (concrete function, what an unknown dimension counts for)} of a network."""
    _, shape, n, batch = NETWORKS[name]
    model = network_of(name, xla)
    found: dict[str, tuple[Any, int]] = {}
    for what, augmented in (("training turn", False), ("augmented turn", True)):
        if not augmented or shape[-1] == 3:
            found[what] = traced_turn(model, shape, n, batch, augmented), batch
    found["evaluation"] = traced_evaluation(model, shape, n), EVAL_BATCH
    for method in METHODS if attacks else ():
        flags = SimpleNamespace(**_attack_flags(method))
        attack = run.build(flags, model.logits, shape)
        for value in vars(attack).values():
            if hasattr(value, "get_concrete_function") and value.input_signature is not None:
                found[f"attack {method}"] = value.get_concrete_function(), ATTACKED
    if spans:
        found |= measured(model, shape)
    return found


def traced_turn(model: Any, shape: tuple[int, ...], n: int, batch: int, augmented: bool) -> Any:
    """Trace the training turn on n images, as `Network.train_epoch` calls it."""
    images, labels = on_device(np.zeros((n, *shape), np.uint8), np.zeros(n))
    count, number = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float64)
    batches, seed = tf.TensorSpec([n // batch, batch], tf.int32), tf.TensorSpec([2], tf.int32)
    return model._train_turn.get_concrete_function(
        *(images, labels, batches, count, count, number, number, number), seed if augmented else None
    )


def traced_evaluation(model: Any, shape: tuple[int, ...], n: int) -> Any:
    """Trace the evaluation of n images, as `Network.evaluate` calls it."""
    images, labels = on_device(np.zeros((n, *shape), np.uint8), np.zeros(n))
    count, number = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float64)
    return model._evaluate_turn.get_concrete_function(images, labels, count, count, number, number, number)


def compiled_turn(model: Any, shape: tuple[int, ...], batch: int, n_batches: int = 2) -> str:
    """Compile the training turn of a network with xla, as XLA does here: optimized HLO."""
    n = n_batches * batch
    images, labels = on_device(np.zeros((n, *shape), np.uint8), np.zeros(n))
    batches = tf.zeros([n_batches, batch], tf.int32)
    counts, numbers = [tf.constant(0), tf.constant(n_batches)], [tf.constant(0.0, tf.float64)] * 3
    ir = model._train_turn.experimental_get_compiler_ir(images, labels, batches, *counts, *numbers, None)
    return str(ir(stage="optimized_hlo"))


def _attack_flags(method: str) -> dict[str, Any]:
    flags = dict.fromkeys(METHODS[method].options.values())
    return flags | {"attack_method": method, "attack_target": None, "attack_normalize_output": "none", "seed": 0} | {
        "attack_eps_list": (0.1,), "attack_confidence": 0.0, "attack_abort": "image"}  # fmt: skip


def measured(model: Any, shape: tuple[int, ...]) -> dict[str, tuple[Any, int]]:
    """Return the functions of the flatness measurements, from running them on a few images."""
    rng, n = np.random.default_rng(0), 64
    images, labels = rng.integers(0, 256, (n, *shape), np.uint8), (np.arange(n) % 10).astype(np.int32)
    examples = Examples(model, images, labels)
    weights = [w.numpy() for w in model.tensors]
    FastSpan(examples, [weights, weights]).losses(np.ones((2, 2)))
    PlainSpan(examples, [weights]).losses(np.ones((1, 1)))
    hessian = Hessian(examples)
    hessian.matvec(np.ones(hessian.shape[0]))
    found = {}
    for key, function in examples.functions.items():
        what = key if isinstance(key, str) else f"span, {key[0]}"
        for concrete in function._list_all_concrete_functions()[:1]:
            found[what] = concrete, n
    return found


# Report


def placed(name: str, xla: bool, **options: bool) -> list[dict]:
    """Return a row for each function of a network."""
    rows = []
    for what, (concrete, size) in functions(name, xla, **options).items():
        graph = Graph(concrete, size)
        parts = {"once": asdict(graph.once), "loop": asdict(graph.loop), "results": graph.results}
        rows.append({"network": name, "function": what} | parts)
        if what == "evaluation":  # its last block is smaller, so its graph does not know the size of what it leaves
            rows[-1]["results"] = 4 * NETWORKS[name][2] * 10
    return [*rows, an_attempt(name, rows)]


def an_attempt(name: str, rows: list[dict]) -> dict:
    """Return the sum of a training epoch and the evaluation after it."""
    _, _, n, batch = NETWORKS[name]
    turn, evaluation = (next(r for r in rows if r["function"] == what) for what in ("training turn", "evaluation"))
    total = asdict(Moved())
    for row, count in ((turn, n // batch), (evaluation, -(-n // EVAL_BATCH))):
        for key in ("ops", "programs", "to_host", "to_device"):
            total[key] += row["once"][key] + count * row["loop"][key]
    nothing, results = asdict(Moved()), turn["results"] + evaluation["results"]
    return {"network": name, "function": "an attempt", "once": total, "loop": nothing, "results": results}


@dataclass
class Gpu:
    """What the model of a step's time assumes of a GPU; by default NVIDIA's A100, from its data sheet.

    Attributes:
      launch_us: microseconds between two launches of TensorFlow's executor; kernel_us: between two kernels of one
        compiled program.
      tflops: float32 operations a second, 10^12, without TensorFloat-32. reached: the part of it that
        convolutions and products reach.
      gb_s: gigabytes a second of its memory.
    """

    launch_us: float = 5.0
    kernel_us: float = 2.0
    tflops: float = 19.5
    reached: float = 0.5
    gb_s: float = 1555.0


def modelled(name: str, rows: list[dict], gpu: Gpu) -> dict[str, float]:
    """Estimate a training step on a GPU, in ms: launches, operations, bytes; with XLA and without.

    Every activation is written, and read by what follows, once forward and twice backward; every weight is read
    forward and backward, its gradient written and read, and the weight written.
    """
    batch, model = NETWORKS[name][3], network_of(name, False)
    first = next(spec for spec in model.specs if spec.weight_shape)
    operations = batch * (3 * sum(spec.flops for spec in model.specs) - first.flops)
    activations = batch * sum(math.prod(spec.out_shape) for spec in model.specs)
    weights = sum(math.prod(v.shape) for v in model.weights)
    turn = next(row for row in rows if row["function"] == "training turn")
    kernels = sum(kernels_of(compiled_turn(network_of(name, True), NETWORKS[name][1], batch)).values())
    found = {
        "launches": (turn["loop"]["ops"] + turn["loop"]["programs"]) * gpu.launch_us / 1e3,
        "launches with XLA": kernels * gpu.kernel_us / 1e3,
        "operations": operations / (gpu.tflops * gpu.reached * 1e9),
        "bytes": 4 * (6 * activations + 5 * weights) / (gpu.gb_s * 1e6),
    }
    work = found["operations"] + found["bytes"]
    # The host launches ahead while the GPU works: the slower of the two sets the pace.
    return found | {"step": max(found["launches"], work), "step with XLA": max(found["launches with XLA"], work)}


def too_much(row: dict) -> list[str]:
    """Return what a row breaks: at most ALLOWED bytes may cross in a loop; only scalars and shapes may fall back."""
    # Where there is no loop in the graph, the program calls it in one.
    loop = row["loop"] if row["loop"]["ops"] + row["loop"]["programs"] else row["once"]
    found = [f"{loop['largest']} bytes cross ({loop['largest_of']})"] if loop["largest"] > ALLOWED else []
    return found + [f"{op} runs on the CPU, on {size} bytes" for op, size in loop["fallen"].items() if size > 64]


def kernels_of(hlo: str) -> dict[str, int]:
    """{kind: how many} of a program as XLA has compiled it: what a turn of its loop runs, nested calls included."""
    bodies: dict[str, list[str]] = {}
    current = ""
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            current = head[1]
            bodies[current] = []
        elif " = " in line and current:
            bodies[current].append(line.split(" = ", 1)[1])
    loops = [found[1] for found in re.finditer(r" while\(.*body=%?([\w.\-]+)", hlo)]
    found: dict[str, int] = {}

    def count(name: str) -> None:
        for text in bodies[name]:
            kind = re.search(r"(?:^|[\])}] )([a-z][\w\-]*)\(", text)
            if kind and kind[1] == "call":
                count(re.search(r"to_apply=%?([\w.\-]+)", text)[1])  # type: ignore[index]
            elif kind and kind[1] not in ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"):
                found[kind[1]] = found.get(kind[1], 0) + 1

    for name in loops or list(bodies)[-1:]:
        count(name)
    return found


def size_text(n: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024 or unit == "MiB":
            return f"{n:.0f} {unit}" if n >= 10 or unit == "B" else f"{n:.1f} {unit}"
        n = n / 1024
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this one")
    parser.add_argument("--xla", action="store_true", help="training turns as --xla true makes them")
    parser.add_argument(
        "--model", action="store_true", help="also what a step would take: a model, not a measurement"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    rows = []
    print(f"{'':24} {'launches':>16} {'to the host':>20} {'to the device':>20} {'':>10}  falls back to the CPU")
    print(f"{'':24} {'once':>8}{'in loop':>8}{'once':>11}{'in loop':>10} {'once':>10}{'in loop':>10} {'results':>10}")
    for name in args.network or NETWORKS:
        print(name)
        for row in placed(name, args.xla):
            rows.append(row)
            once, loop = row["once"], row["loop"]
            cells = [f"{part['ops'] + part['programs']:8d}" for part in (once, loop)]
            moved = [f"{size_text(part[way]):>10}" for way in ("to_host", "to_device") for part in (once, loop)]
            fallen = ", ".join(f"{op} {size_text(size)}" for op, size in (loop["fallen"] | once["fallen"]).items())
            moved = [*moved[:2], " ", *moved[2:], f" {size_text(row['results']):>10}"]
            print(f"  {row['function']:22} {''.join(cells)} {''.join(moved)}  {fallen}")
            for text in too_much(row):
                print(f"    too much: {text}")
        if args.model and not args.xla:
            times = modelled(name, [row for row in rows if row["network"] == name], Gpu())
            print(f"  a model, in ms: {', '.join(f'{what} {ms:.3f}' for what, ms in times.items())}")
        if args.xla:
            _, shape, _, batch = NETWORKS[name]
            found = kernels_of(compiled_turn(network_of(name, True), shape, batch))
            print(f"  the compiled turn, a step: {', '.join(f'{n} {kind}' for kind, n in sorted(found.items()))}")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
