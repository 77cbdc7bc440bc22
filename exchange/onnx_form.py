"""ONNX, as PyTorch, tf2onnx and this program write it. One row per operation, for both directions."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exchange.chain import Chain, Logits, Step, steps_of
from models.architectures import BN_EPSILON, slope_of
from support.errors import UserError, reason

OPSET, IR = 17, 8  # of 2022: every consumer of today reads them


# Our network as ONNX


class _Graph:
    """The nodes of a chain, with their constants."""

    def __init__(self, first: str):
        self.last, self.nodes, self.initializers = first, [], []  # type: ignore[var-annotated]

    def constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op, [self.last, *inputs], [name], name, **attributes))
        self.last = name


def _scale(graph: _Graph, step: Step, act_type: str) -> None:
    factor, shift = (v.reshape(1, -1, 1, 1) for v in step.arrays)
    graph.add("Mul", "input_scaled", graph.constant("input_factor", factor))
    graph.add("Add", "input_normalized", graph.constant("input_shift", shift))


def _flatten(graph: _Graph, step: Step, act_type: str) -> None:
    graph.add("Transpose", "nhwc", perm=[0, 2, 3, 1])  # the order that the weight's rows have
    graph.add("Flatten", step.name, axis=1)


def _tensors(graph: _Graph, step: Step, weight: np.ndarray) -> list[str]:
    named = zip(("weight", "bias"), [weight, *step.arrays[1:]], strict=False)
    return [graph.constant(f"{step.name}/{kind}", array) for kind, array in named]


def _conv(graph: _Graph, step: Step, act_type: str) -> None:
    spec, tensors = step.spec, _tensors(graph, step, step.arrays[0].transpose(3, 2, 0, 1))
    top, bottom, left, right = spec.pads
    geometry = {"kernel_shape": spec.window, "pads": [top, left, bottom, right], "strides": spec.stride}
    graph.add("Conv", step.name, *tensors, **geometry)


def _pool(graph: _Graph, step: Step, act_type: str) -> None:
    op = "MaxPool" if step.kind == "P" else "AveragePool"
    graph.add(op, step.name, kernel_shape=step.spec.window, strides=step.spec.stride)


def _norm(graph: _Graph, step: Step, act_type: str) -> None:
    names = [f"{step.name.removesuffix('_bn')}/bn/{what}" for what in ("scale", "shift", "mean", "variance")]
    inputs = [graph.constant(name, array) for name, array in zip(names, step.arrays, strict=True)]
    graph.add("BatchNormalization", step.name, *inputs, epsilon=BN_EPSILON)


def _activation(graph: _Graph, step: Step, act_type: str) -> None:
    if act_type.startswith("leaky_relu"):
        graph.add("LeakyRelu", step.name, alpha=slope_of(act_type))
        return
    name = step.name if act_type == "relu" else step.name.replace("relu2", "relu")
    graph.add("Relu", name)
    if act_type == "relu2":
        graph.add("Mul", step.name, name)


WRITE: dict[str, Callable[[_Graph, Step, str], None]] = {
    "scale": _scale,
    "flatten": _flatten,
    "C": _conv,
    "F": lambda graph, step, act_type: graph.add("Gemm", step.name, *_tensors(graph, step, step.arrays[0])),
    "P": _pool,
    "A": _pool,
    "bn": _norm,
    "act": _activation,
}


def model_of(network: Any, about: dict[str, Any]) -> Any:
    """Return an onnx.ModelProto: input `pixels` float32 [B, c, h, w] in [0, 1], output `logits` [B, classes]."""
    from onnx import TensorProto, checker, helper

    h, w, c = network.specs[0].in_shape
    graph = _Graph("pixels")
    for step in steps_of(network):
        WRITE[step.kind](graph, step, network.act_type)
    graph.nodes[-1].output[0] = "logits"
    proto = helper.make_graph(
        graph.nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", c, h, w])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", network.n_classes])],
        graph.initializers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, opset_imports=opset, ir_version=IR, producer_name="margins")
    helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    checker.check_model(model, full_check=True)
    return model


def write(network: Any, path: Path, about: dict[str, Any]) -> Logits:
    """Write an .onnx; its logits are onnxruntime's."""
    import onnx

    onnx.save(model_of(network, about), path)
    logits = _running(str(path))
    return lambda images: logits(images.transpose(0, 3, 1, 2))


def _running(model: str | bytes) -> Logits:
    """Return onnxruntime's function of the one input."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    return lambda inputs: session.run(None, {first.name: inputs})[0]


# ONNX as our network


def read(path: Path, shape: tuple[int, ...]) -> tuple[Chain, Logits]:
    """Read an .onnx; returns its chain, and images as the model reads them, [B, h, w, c] -> its logits.

    Args:
      shape: (h, w, c) of our images.

    Raises: UserError.
    """
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        graph = model.graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in constants]
        (source,) = inputs
        (output,) = graph.output
        sizes = [d.dim_value or None for d in source.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
        logits = _running(model.SerializeToString())
    except Exception as error:  # of protobuf, of the checker, a missing file of weights, several inputs
        raise UserError(f"{path}: not an ONNX network of one input and one output ({reason(error)})") from None
    if dtype.kind != "f":
        raise UserError(f"{path}: it reads {dtype} numbers; expected floating-point pixels")
    chain = Chain(shape, tuple(sizes[1:]), channels_first=True)
    reader = _Reader(chain, source.name, constants, {entry.domain: entry.version for entry in model.opset_import})
    for node, following in zip(graph.node, [*graph.node[1:], None], strict=True):
        reader.read(node, following)
    if output.name not in reader.here:
        raise UserError(f"{path}: its output {output.name} is not that of the last operation; expected a chain")
    if reader.before_softmax is not None:
        kept = [node for node in graph.node if node.op_type not in SOFTMAX]
        del graph.node[:]
        graph.node.extend(kept)
        output.name = reader.before_softmax
        logits = _running(model.SerializeToString())
    arranged, batch = chain.arranged, sizes[0] or 0

    def of(images: np.ndarray) -> np.ndarray:
        inputs = arranged(images).astype(dtype)
        if not batch:
            return logits(inputs)
        # Exported for batches of one size: the last one is filled up.
        blocks = [inputs[k : k + batch] for k in range(0, len(inputs), batch)]
        full = [np.concatenate([b, np.zeros((batch - len(b), *b.shape[1:]), dtype)]) for b in blocks]
        return np.concatenate([logits(block)[: len(b)] for block, b in zip(full, blocks, strict=True)])

    return chain, of


SOFTMAX = ("Softmax", "LogSoftmax")
SAME_VALUE = ("Identity", "Dropout", "Cast")
OF_SHAPES = ("Shape", "Gather", "Unsqueeze", "Squeeze", "Concat", "Slice", "Cast", "Range", "ConstantOfShape")


class _Reader:
    """Follows the chain through the nodes of a graph.

    Args:
      chain: receives the operations. first: the name of the input. constants: {name: array}.
      opsets: {domain: version}, for operations on constants.

    Attributes:
      here: the names of the present tensor. before_softmax: the name of what a last softmax reads.
    """

    def __init__(self, chain: Chain, first: str, constants: dict[str, np.ndarray], opsets: dict[str, int]):
        self.chain, self.here, self.constants, self.opsets = chain, {first}, constants, opsets
        self.shapes: set[str] = set()  # tensors that are computed from shapes
        self.before_softmax: str | None = None
        self.squared = False

    def read(self, node: Any, following: Any) -> None:
        """Hand one node to the chain. Raises: UserError."""
        from onnx import helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        chain, op = self.chain, node.op_type
        chain.where = f"operation {node.name or node.output[0]} ({op})"
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given = [name for name in node.input if name]
        if op == "Constant":
            value = attributes.get("value")
            self.constants[node.output[0]] = (
                numpy_helper.to_array(value) if value is not None else np.asarray(next(iter(attributes.values())))
            )
            return
        if given and all(name in self.constants for name in given):
            try:
                found = ReferenceEvaluator(node, self.opsets).run(
                    None, {name: self.constants[name] for name in given}
                )
            except Exception as error:
                raise chain.refuse(f"constants cannot be computed ({reason(error)})") from None
            self.constants |= dict(zip(node.output, found, strict=True))
            return
        if op in OF_SHAPES and (op == "Shape" or not self.here & set(given)):
            self.shapes.add(node.output[0])
            return
        if self.before_softmax is not None:
            raise chain.refuse("an operation after a softmax")
        data = [name for name in given if name in self.here]
        names = [name for name in given if name not in self.here]
        others = [self.constants.get(name) for name in names]
        if op == "Mul" and len(data) == 2 and self.squared:
            self.squared = False
        elif len(data) != 1 or any(o is None and n not in self.shapes for n, o in zip(names, others, strict=True)):
            raise chain.refuse("it joins two branches")
        elif op != "Reshape" and any(other is None for other in others):
            raise chain.refuse("it multiplies or adds what is computed from the input's shape")
        elif op in SOFTMAX:
            self.before_softmax = data[0]
            chain.softmax()
        elif op in SAME_VALUE:
            self.here.add(node.output[0])
            return
        elif op == "Relu":
            self.squared = (
                following is not None and following.op_type == "Mul" and list(following.input) == [node.output[0]] * 2
            )
            chain.act("relu2" if self.squared else "relu")
        elif op in READ:
            with chain.whole():
                READ[op](chain, attributes, others, given.index(data[0]))
        else:
            raise chain.refuse("this operation is not supported")
        self.here = {node.output[0]}


Attributes = dict[str, Any]
Constants = list[Any]


def _geometry(chain: Chain, attributes: Attributes, window: Any) -> tuple[Any, Any]:
    """Return stride and pads of a convolution or pool."""
    if any(d != 1 for d in attributes.get("dilations", ())) or attributes.get("ceil_mode", 0):
        raise chain.refuse("dilation, or sizes that are rounded up")
    stride = tuple(attributes.get("strides", (1,) * len(window)))
    way = attributes.get("auto_pad", b"NOTSET").decode()
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0)) if len(window) == 2 else (0, 0, 0, 0)
    if way == "SAME_LOWER" and stride != (1, 1):
        raise chain.refuse("the padding SAME_LOWER")
    if way == "SAME_LOWER":
        (kh, kw) = window
        return stride, (kh // 2, (kh - 1) // 2, kw // 2, (kw - 1) // 2)
    return stride, "SAME" if way == "SAME_UPPER" else (top, bottom, left, right)


def _read_conv(chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    kernel, *bias = constants
    if kernel.ndim != 4:
        raise chain.refuse(f"a convolution over {kernel.ndim - 2} axes")
    stride, pads = _geometry(chain, attributes, kernel.shape[2:])
    chain.convolution(kernel.transpose(2, 3, 1, 0), bias[0] if bias else None, stride, pads)


def _read_pool(kind: str, chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    window = attributes["kernel_shape"]
    chain.pool(kind, window, *_geometry(chain, attributes, window))


def _read_global_pool(chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    axes = constants[0] if constants else attributes.get("axes", (2, 3))
    if sorted(int(axis) % 4 for axis in np.ravel(axes)) != [2, 3] or len(chain.shape) != 3:
        raise chain.refuse("a mean over other axes than height and width")
    chain.pool("A", chain.shape[:2], chain.shape[:2])
    if not attributes.get("keepdims", 1):
        chain.reshape([-1])


def _read_gemm(chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    if position or attributes.get("transA", 0) or not constants or constants[0].ndim != 2:
        raise chain.refuse("a product that is not the inputs times a matrix of weights")
    weight, *bias = (np.asarray(c, np.float64) for c in constants)
    weight = attributes.get("alpha", 1.0) * (weight.T if attributes.get("transB", 0) else weight)
    chain.connected(
        weight, attributes.get("beta", 1.0) * np.broadcast_to(bias[0].ravel(), weight.shape[1]) if bias else None
    )


def _read_norm(chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    if attributes.get("training_mode", 0):
        raise chain.refuse("a batch norm in training mode")
    chain.batch_norm(constants, attributes.get("epsilon", 1e-5))


def _read_reshape(chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    """Read a reshape. Its shape's first number is the batch; one that is computed is taken for a flattening."""
    wanted = [-1] if constants[0] is None else [int(n) for n in constants[0][1:]]
    chain.reshape([chain.order.shape[k] if n == 0 else n for k, n in enumerate(wanted)])


def _arithmetic(op: str, chain: Chain, attributes: Attributes, constants: Constants, position: int) -> None:
    """Read an operation with a constant. position: of the tensor among its two inputs."""
    constant = np.asarray(constants[0], np.float64)
    if op == "Div" and position:
        raise chain.refuse("divides by the tensor")
    sign = -1.0 if op == "Sub" and position else 1.0
    factor = {"Mul": constant, "Div": 1 / constant if op == "Div" else 1.0}.get(op, sign)
    chain.scale(factor, {"Add": constant, "Sub": -sign * constant}.get(op, 0.0))


READ: dict[str, Callable[[Chain, Attributes, Constants, int], None]] = {
    "Conv": _read_conv,
    "Gemm": _read_gemm,
    "MatMul": _read_gemm,
    "MaxPool": partial(_read_pool, "P"),
    "AveragePool": partial(_read_pool, "A"),
    "GlobalAveragePool": _read_global_pool,
    "ReduceMean": _read_global_pool,
    "BatchNormalization": _read_norm,
    "LeakyRelu": lambda chain, attributes, *_: chain.act(f"leaky_relu,{np.float32(attributes.get('alpha', 0.01))}"),
    "Flatten": lambda chain, *_: chain.reshape([-1]),
    "Reshape": _read_reshape,
    "Squeeze": lambda chain, *_: chain.reshape([n for n in chain.order.shape if n != 1]),
    "Transpose": lambda chain, attributes, *_: chain.transpose([axis - 1 for axis in attributes["perm"][1:]]),
    **{op: partial(_arithmetic, op) for op in ("Mul", "Add", "Sub", "Div")},
}
