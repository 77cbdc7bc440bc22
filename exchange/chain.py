"""A network as a chain of operations, which all formats share: ours in steps, and another's as a description."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.architectures import ACT_TYPES, BN_EPSILON, LayerSpec, same_padding, same_pads, windows
from support.errors import UserError, reason

Logits = Callable[[np.ndarray], np.ndarray]  # images [B, h, w, c], as the network reads them -> logits [B, classes]

POSSIBLE = (
    "supported are chains of convolutions (without groups or dilation), fully connected layers, max and average "
    "pools (without padding), batch norm directly after a layer, and relu, leaky relu or squared relu, the same "
    "throughout"
)


@dataclass(frozen=True)
class Step:
    """One operation of a network.

    Attributes:
      kind: scale, flatten, C, F, P, A (as in a description), bn or act.
      spec: of the layer that it belongs to. arrays: its tensors; of C and F the weight, then perhaps the bias.
    """

    kind: str
    name: str
    spec: LayerSpec
    arrays: list[np.ndarray] = field(default_factory=list)


def steps_of(network: Any) -> Iterator[Step]:
    """Yield the operations of a network, from pixels in [0, 1] to logits."""
    if network.input_normalization is not None:
        vectors = [np.broadcast_to(v, network.specs[0].in_shape[-1:]) for v in network.input_normalization]
        yield Step("scale", "normalization", network.specs[0], vectors)
    for spec, own, name in network.stages():
        if spec.kind == "F" and len(spec.in_shape) > 1:
            yield Step("flatten", "flatten", spec)
        tensors = [] if own is None else [v.numpy() for v in (own.weight, own.bias) if v is not None]
        yield Step(spec.kind, name, spec, tensors)
        if own is not None and own.bn is not None:
            norm = own.bn
            yield Step(
                "bn", f"{name}_bn", spec, [v.numpy() for v in (norm.scale, norm.shift, norm.mean, norm.variance)]
            )
        if spec.act and network.act_type != "linear":
            yield Step("act", f"{name}_{network.act_type.partition(',')[0]}", spec)


@dataclass
class _Layer:
    """A layer that has been read. tensors: by their names in a checkpoint, float64, channels last."""

    entry: list[Any]
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    act: bool = False


class Chain:
    """Collects the operations of a network in the order of their computation, and becomes a description with weights.

    Args:
      shape: (h, w, c) of our images.
      source: the shape of one of the source's inputs: (h, w, c), (c, h, w), (h, w) or (h w c,); None: any size.

    Attributes:
      where: the operation that is being read, for messages. notes: lines on what was removed.
      channels_first: whether the source's convolutions and pools read [c, h, w].
      order: for each element of the source's present tensor, its index in ours, which is [h, w, c] or flat.

    Raises: UserError in every method, for what a description cannot express.
    """

    def __init__(self, shape: tuple[int, ...], source: tuple[int | None, ...], channels_first: bool = False):
        self.layers: list[_Layer] = []
        self.where, self.channels_first = "its input", channels_first
        self.factor, self.shift = np.ones(shape[-1]), np.zeros(shape[-1])
        self.activation: str | None = None
        self.pads: tuple[int, ...] = (0, 0, 0, 0)
        self.order: np.ndarray
        self.notes: list[str] = []
        self._reset(shape)
        index = np.arange(self.order.size).reshape(shape)
        layouts = [index, index.transpose(2, 0, 1), self.order.ravel(), *([index[..., 0]] if shape[2] == 1 else [])]
        fits = [
            i
            for i in layouts
            if len(i.shape) == len(source) and all(a in (None, b) for a, b in zip(source, i.shape, strict=True))
        ]
        if not fits:
            raise UserError(
                f"it reads inputs of {times(source)}, but the images are {times(shape)}; give the data that it was "
                "trained on with --dataset"
            )
        self.order = self.first = fits[-1] if channels_first else fits[0]

    def arranged(self, images: np.ndarray) -> np.ndarray:
        """Return our images [B, h, w, c] in the shape that the source reads."""
        return images.reshape(len(images), -1)[:, self.first]

    def refuse(self, why: str) -> UserError:
        """Return the error for the operation that is being read."""
        return UserError(f"{self.where}: {why}; {POSSIBLE}")

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Context manager: an operation whose tensors have another form than expected is refused."""
        try:
            yield
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self.refuse(f"of another form than expected ({reason(error)})") from None

    def _in_order(self) -> np.ndarray:
        index = np.arange(math.prod(self.shape)).reshape(self.shape)
        return index.transpose(2, 0, 1) if self.channels_first and len(self.shape) == 3 else index

    def _reset(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self.order = self._in_order()

    def _check_images(self, whole: bool = True) -> None:
        if whole and (len(self.shape) != 3 or not np.array_equal(self.order, self._in_order())):
            raise self.refuse("reads images with another order of axes")
        if any(self.pads):
            raise self.refuse("follows a padding that belongs to no convolution")

    def _pads(self, pads: Any, window: Any, stride: Any) -> tuple[int, ...]:
        """Return numbers for pads; 'SAME' stands for those that TensorFlow means."""
        if pads != "SAME":
            return tuple(map(int, pads))
        size = self.shape[0] + sum(self.pads[:2]), self.shape[1] + sum(self.pads[2:])
        return sum(map(same_padding, size, window, stride), ())

    # Operations without weights

    def transpose(self, axes: list[int]) -> None:
        """Permute the axes of the source's tensor, the batch not counted."""
        self.order = self.order.transpose(axes)

    def reshape(self, shape: list[int]) -> None:
        """Give the source's tensor another shape, the batch not counted; -1: what is left."""
        self._check_images(whole=False)
        try:
            self.order = self.order.reshape(shape)
        except ValueError:
            raise self.refuse(f"makes {times(shape)} of {times(self.order.shape)}") from None

    def pad(self, pads: list[int]) -> None:
        """Pad the images with zeros: (top, bottom, left, right). The next convolution takes them over."""
        self.pads = tuple(a + int(b) for a, b in zip(self.pads, pads, strict=True))

    def softmax(self) -> None:
        """Remove the final softmax. The network's outputs are then the logits, of which margins are measured."""
        self.notes.append(f"{self.where}, the final softmax, was removed: margins are those of the logits before it")

    def pool(self, kind: str, window: Any, stride: Any, pads: Any = (0, 0, 0, 0)) -> None:
        """Add a max ('P') or average ('A') pool; pads, as of `convolution`, must be 0."""
        self._check_images()
        window, stride = list(map(int, window)), list(map(int, stride))
        if any(self._pads(pads, window, stride)):
            raise self.refuse("a pool with padding")
        size = [] if window == [2, 2] else [window]
        self.layers.append(_Layer([kind, *size, *([] if stride == window else [{"stride": stride}])]))
        self._reset((*map(windows, self.shape[:2], window, stride), self.shape[2]))

    def act(self, name: str) -> None:
        """Add an activation. A max pool hands it down to the layer before it: both are monotone."""
        if name not in ACT_TYPES and not name.startswith("leaky_relu,"):
            raise self.refuse(f"the activation {name}")
        if self.activation not in (None, name):
            raise self.refuse(f"the activation {name}, where others are {self.activation}")
        below = [layer for layer in self.layers if layer.entry[0] != "P"]
        if not below or below[-1].act or not below[-1].tensors:
            raise self.refuse("an activation that does not follow a convolution or fully connected layer")
        self.activation, below[-1].act = name, True

    # Operations with weights

    def scale(self, factor: Any, shift: Any) -> None:
        """Multiply by constants and add constants, in the source's shape with the batch as the first axis."""
        self._check_images(whole=False)
        factor, shift = self._ours(factor), self._ours(shift)
        if not self.layers:
            self.factor, self.shift = self.factor * factor, self.shift * factor + shift
            return
        tensors = self.layers[-1].tensors
        if self.layers[-1].act or not tensors:
            raise self.refuse("constants that do not follow the input, a convolution or a fully connected layer")
        names = ("bn/scale", "bn/shift") if "bn/scale" in tensors else ("weight", "bias")
        tensors[names[0]] = tensors[names[0]] * factor
        if names[1] in tensors or shift.any():  # a factor alone adds no bias
            tensors[names[1]] = tensors.get(names[1], np.zeros(1)) * factor + shift

    def _ours(self, constant: Any) -> np.ndarray:
        """Return constants as one number for each of our channels."""
        flat = np.empty(self.order.size)
        try:
            flat[self.order] = np.broadcast_to(np.asarray(constant, np.float64), (1, *self.order.shape))[0]
        except ValueError:
            raise self.refuse(
                f"constants of shape {times(np.shape(constant))} do not fit {times(self.order.shape)}"
            ) from None
        by_channel = flat.reshape(-1, self.shape[-1])
        if (by_channel != by_channel[0]).any():
            raise self.refuse("constants that differ within a channel")
        return by_channel[0]

    def batch_norm(self, norm: list[Any], eps: float) -> None:
        """Add a batch norm: scale, shift, running mean and variance. Its epsilon becomes ours, in the variance."""
        self._check_images(whole=False)
        by_channel = (-1, 1, 1) if self.channels_first and self.order.ndim == 3 else (-1,)
        scale, shift, mean, variance = (self._ours(np.reshape(np.asarray(v, np.float64), by_channel)) for v in norm)
        if not math.isclose(eps, BN_EPSILON, rel_tol=1e-6):  # beyond float32, in which ONNX keeps it
            variance = variance + eps - BN_EPSILON
        if not self.layers:  # of the input: constants
            factor = scale / np.sqrt(variance + BN_EPSILON)
            self.factor, self.shift = self.factor * factor, self.shift * factor + shift - mean * factor
            return
        last = self.layers[-1]
        if not last.tensors or last.act or "bn/scale" in last.tensors:
            raise self.refuse("a batch norm that does not follow a convolution or fully connected layer directly")
        last.tensors |= {"bn/scale": scale, "bn/shift": shift, "bn/mean": mean, "bn/variance": variance}
        if not (variance >= 0).all():
            raise self.refuse(f"a batch norm with a variance below {BN_EPSILON}, epsilon included")

    def convolution(self, kernel: np.ndarray, bias: np.ndarray | None, stride: Any, pads: Any) -> None:
        """Add a convolution. kernel: [kh, kw, cin, cout]. pads: (top, bottom, left, right), or 'SAME'."""
        (kh, kw, cin, cout), stride = kernel.shape, tuple(map(int, stride))
        pads = tuple(map(sum, zip(self._pads(pads, (kh, kw), stride), self.pads, strict=True)))
        self.pads = (0, 0, 0, 0)
        self._check_images()
        if cin != self.shape[2]:
            raise self.refuse(f"groups: it reads {cin} of {self.shape[2]} channels at a time")
        extra = {"stride": list(stride)} if stride != (1, 1) else {}
        extra |= {"pad": list(pads)} if pads != same_pads(kh, kw) else {}
        self._add(["C", cout, [kh, kw], extra], kernel, bias)
        over = pads[0] + pads[1], pads[2] + pads[3]
        self._reset((*map(windows, self.shape[:2], (kh, kw), stride, over), cout))

    def connected(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Add a fully connected layer. weight: [inputs, outputs], rows in the source's order."""
        if self.order.ndim != 1 or weight.shape[0] != self.order.size:
            raise self.refuse(f"a weight of {times(weight.shape)} for inputs of {times(self.order.shape)}")
        rows = np.empty_like(weight)
        rows[self.order] = weight
        self._add(["F", weight.shape[1], {}], rows, bias)
        self._reset((weight.shape[1],))

    def _add(self, entry: list[Any], weight: np.ndarray, bias: np.ndarray | None) -> None:
        tensors = {"weight": np.asarray(weight, np.float64)} | (
            {} if bias is None else {"bias": np.asarray(bias, np.float64)}
        )
        self.layers.append(_Layer(entry, tensors))

    # The network

    def after(self, factor: float | np.ndarray, shift: float | np.ndarray) -> None:
        """Let the source's input be pixels in [0, 1] times `factor` plus `shift`, numbers or one for each channel."""
        self.factor, self.shift = self.factor * factor, self.factor * shift + self.shift

    def network(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Return the flags of `model` and the tensors, float32, in the order of a checkpoint."""
        if not self.layers or self.layers[-1].entry[0] != "F":
            raise UserError(
                f"it does not end with a fully connected layer, whose outputs are the classes; {POSSIBLE}"
            )
        weighted = [layer for layer in self.layers if layer.tensors]
        biased = ["bias" in layer.tensors for layer in weighted]
        mode = "ALL" if all(biased) else "FIRST_LAYER" if biased[0] and not any(biased[1:]) else "NONE"
        for layer, bias in zip(weighted, biased, strict=True):
            bias_is_odd = mode == "NONE" and bias
            overrides = (
                layer.entry[-1] | ({} if layer.act else {"act": False}) | ({"bias": True} if bias_is_odd else {})
            )
            overrides |= {"bn": True} if "bn/scale" in layer.tensors else {}
            layer.entry = layer.entry[:-1] + ([overrides] if overrides else [])
        model: dict[str, Any] = {"description": [layer.entry for layer in self.layers], "bias_mode": mode}
        model["act_type"] = self.activation or "linear"
        if (self.factor != 1).any() or self.shift.any():
            if not (self.factor > 0).all():
                raise UserError("its input is multiplied by a factor that is not positive; no such input is possible")
            model |= {"input_mean": tuple(-self.shift / self.factor), "input_std": tuple(1 / self.factor)}
        names = ("weight", "bias", "bn/scale", "bn/shift", "bn/mean", "bn/variance")
        tensors = [
            layer.tensors[name].astype(np.float32) for layer in weighted for name in names if name in layer.tensors
        ]
        if not all(np.isfinite(tensor).all() for tensor in tensors):
            raise UserError("it has weights that are not finite; give a network that was trained without overflow")
        return model, tensors


def times(shape: Any) -> str:
    """Return a shape as 3x4; None is any size."""
    return "x".join("?" if n is None else str(n) for n in shape)
