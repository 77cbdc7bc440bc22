"""Networks as layer descriptions, and how a description is read (no TensorFlow here).

A description is a list with one entry a layer; each may end in a dict of overrides:

    ['C', channels, [kh, kw]]   convolution, stride 1, SAME
    ['P'], ['P', [h, w]]        max pool, 2x2 or h x w, of stride equal to the size, VALID
    ['A'], ['A', [h, w]]        average pool, likewise
    ['F', units]                fully connected; the first one flattens (NHWC order)
    {'act': False}              no activation after this layer
    {'bias': True}              whatever bias_mode says
    {'bn': True}                batch norm before the activation
    {'stride': [h, w]}          of a convolution or pool
    {'pad': [t, b, l, r]}       rows and columns of zeros around the input of a convolution, instead of SAME

`ARCHITECTURES` has the papers' networks by name; 'VGG16/4' is VGG16 with a quarter of the units in each layer but the
last.
"""

import math
from dataclasses import dataclass
from typing import Any

from support.forms import whole

BIAS_MODES = ("NONE", "FIRST_LAYER", "ALL")
ACT_TYPES = ("relu", "linear", "relu2", "leaky_relu")
LEAKY_SLOPE = 0.01
BN_EPSILON = 1e-5  # of batch norm, added to the variance

CNN: list[Any] = [["C", 32, [5, 5]], ["P"], ["C", 64, [3, 3]], ["P"], ["F", 1024], ["F", 10, {"act": False}]]


def _block(channels: int, convolutions: int) -> list[Any]:
    return [["C", channels, [3, 3]] for _ in range(convolutions)] + [["P"]]


VGG16: list[Any] = [
    *(*_block(64, 2), *_block(128, 2), *_block(256, 3), *_block(512, 3), *_block(512, 3)),
    ["F", 10, {"act": False}],
]

# The two networks of arXiv 1801.02254, section IV.
MLP: list[Any] = [["F", 800], ["F", 320], ["F", 50], ["F", 10, {"act": False}]]
VGG16_BN: list[Any] = [[*layer, {"bn": True}] if layer[0] == "C" else layer for layer in VGG16]

ARCHITECTURES = {"CNN": CNN, "VGG16": VGG16, "MLP": MLP, "VGG16_BN": VGG16_BN}
DIVISORS = (1, 2, 4, 8, 16)


def named(name: str) -> list[Any]:
    """Return the description that a name such as 'CNN' or 'VGG16/4' means. Raises: KeyError for another name."""
    known, slash, divisor = name.partition("/")
    if slash and divisor not in map(str, DIVISORS):
        raise KeyError(name)
    narrow = int(divisor or 1)
    *hidden, last = ARCHITECTURES[known]
    # The smallest networks keep a unit in every layer.
    return [[e[0], max(e[1] // narrow, 1), *e[2:]] if e[0] in "CF" else e for e in hidden] + [last]


def name_of(description: list[Any]) -> str | None:
    """Return the shortest name of a description, or None where it has none."""
    names = [known if k == 1 else f"{known}/{k}" for k in DIVISORS for known in ARCHITECTURES]
    return next((name for name in names if named(name) == description), None)


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a description, its shapes worked out.

    kind: 'C', 'P', 'A' or 'F'. in_shape, out_shape: without the batch axis, (h, w, c) or (units,).
    weight_shape: (kh, kw, cin, cout) or (cin, cout); None for a pool.
    flops: floating-point operations of the forward pass for one example, 2 per multiply-add.
    window, stride: of a convolution or pool, (h, w). pads: of a convolution, (top, bottom, left, right).
    """

    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    weight_shape: tuple[int, ...] | None = None
    act: bool = False
    bias: bool = False
    bn: bool = False
    flops: int = 0
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def plain(self) -> bool:
        """Whether it is of the papers' kinds: a convolution of stride 1, SAME, or a 2x2 pool of stride 2."""
        if self.kind == "C":
            return self.stride == (1, 1) and self.pads == same_pads(*self.window)
        return self.kind == "F" or (self.window, self.stride) == ((2, 2), (2, 2))


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """Return the numbers of zeros before and after an axis of this size that TensorFlow calls SAME."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def same_pads(kh: int, kw: int) -> tuple[int, int, int, int]:
    """Return the pads (top, bottom, left, right) of a SAME convolution of stride 1, for images of any size."""
    return (*same_padding(kh, kh, 1), *same_padding(kw, kw, 1))


def windows(size: int, window: int, stride: int, pad: int = 0) -> int:
    """Return how many windows fit along an axis; pad: the number of zeros added to it."""
    return (size + pad - window) // stride + 1


def slope_of(act_type: str) -> float:
    """Return the slope below 0 that 'leaky_relu' or, with another one, 'leaky_relu,0.2' means.

    Raises: ValueError for another activation, or a slope outside (0, 1).
    """
    name, _, slope = act_type.partition(",")
    found = float(slope or LEAKY_SLOPE)
    if name != "leaky_relu" or not 0 < found < 1:
        raise ValueError(act_type)
    return found


OVERRIDES = {
    "C": ("act", "bias", "bn", "stride", "pad"),
    "F": ("act", "bias", "bn"),
    "P": ("stride",),
    "A": ("stride",),
}


def _sizes(value: Any, n: int, least: int = 1) -> bool:
    """Return whether this is a list of n whole numbers, none below `least`."""
    return (
        isinstance(value, list | tuple)
        and len(value) == n
        and all(type(v) is int and least <= v < 2**16 for v in value)
    )


def _entry(entry: Any, number: int) -> tuple[str, list[Any], dict[str, Any]]:
    """Return (kind, arguments, overrides) of one entry. Raises: ValueError, naming the layer."""
    where = f"layer {number} of the description, {entry!r}"
    if not isinstance(entry, list | tuple) or not entry:
        raise ValueError(f"{where}: expected a list such as ['C', 32, [5, 5]]")
    kind, *args = entry
    overrides = args.pop() if args and isinstance(args[-1], dict) else {}
    if kind == "C":
        ok = len(args) == 2 and whole(args[0]) and _sizes(args[1], 2)
        expected = "['C', channels, [kh, kw]]"
    elif kind == "F":
        ok, expected = len(args) == 1 and whole(args[0]), "['F', units]"
    elif kind in ("P", "A"):
        args = args or [[2, 2]]
        ok, expected = len(args) == 1 and _sizes(args[0], 2), f"['{kind}'] or ['{kind}', [h, w]]"
    else:
        ok, expected = False, "a 'C', 'P', 'A' or 'F' layer"
    if not ok:
        raise ValueError(f"{where}: expected {expected}")
    for key, value in overrides.items():
        fits = {"stride": _sizes(value, 2), "pad": _sizes(value, 4, least=0)}
        if key not in OVERRIDES[kind] or not fits.get(key, isinstance(value, bool)):
            raise ValueError(
                f"{where}: overrides are 'act', 'bias' and 'bn', True or False, on 'C' and 'F'; 'stride': [h, w] on "
                "'C', 'P' and 'A'; 'pad': [top, bottom, left, right] on 'C'"
            )
    return kind, args, overrides


def parse(description: list[Any], bias_mode: str, input_shape: tuple[int, int, int]) -> list[LayerSpec]:
    """Read a description for images of input_shape (h, w, c).

    Raises: ValueError, naming the layer, for an entry that makes no sense or does not fit.
    """
    if not isinstance(description, list | tuple) or not description:
        raise ValueError("a description is a list of layers, at least one")
    specs: list[LayerSpec] = []
    shape: tuple[int, ...] = tuple(input_shape)
    weighted = 0
    for number, entry in enumerate(description):
        kind, args, overrides = _entry(entry, number)
        where = f"layer {number} of the description, {entry!r}"
        if kind != "F" and len(shape) == 1:
            raise ValueError(f"{where}: the input is flat after the first 'F'")
        if kind in ("P", "A"):
            (h, w, c), window = shape, tuple(args[0])
            stride = tuple(overrides.get("stride", window))
            out_shape = (*map(windows, (h, w), window, stride), c)
            if min(out_shape) < 1:
                raise ValueError(f"{where}: a {h}x{w} input is too small for another pool")
            spec = LayerSpec(kind, shape, out_shape, window=window, stride=stride)
        else:
            geometry: dict[str, Any] = {}
            bias = {"NONE": False, "FIRST_LAYER": weighted == 0, "ALL": True}[bias_mode]
            if kind == "C":
                channels, size = args
                weight_shape = (*size, shape[2], channels)
                stride, pads = overrides.get("stride", (1, 1)), overrides.get("pad", same_pads(*size))
                over = pads[0] + pads[1], pads[2] + pads[3]
                out_shape = (*map(windows, shape[:2], size, stride, over), channels)
                if min(out_shape) < 1:
                    raise ValueError(f"{where}: a {shape[0]}x{shape[1]} input is too small for it")
                flops = 2 * math.prod(weight_shape) * math.prod(out_shape[:2])
                geometry = {"window": tuple(size), "stride": tuple(stride), "pads": tuple(pads)}
            else:
                weight_shape = (math.prod(shape), args[0])
                out_shape = (args[0],)
                flops = 2 * math.prod(weight_shape)
            flags: dict[str, Any] = {"act": True, "bias": bias, "bn": False} | {
                k: v for k, v in overrides.items() if type(v) is bool
            }
            spec = LayerSpec(kind, shape, out_shape, weight_shape, flops=flops, **flags, **geometry)
            weighted += 1
        specs.append(spec)
        shape = spec.out_shape
    if specs[-1].kind != "F":
        raise ValueError("the last layer of a description must be an 'F': its units are the classes")
    return specs


def degrees(specs: list[LayerSpec], act_type: str) -> list[int]:
    """Return e_k for each layer k with weights: the logits are homogeneous of degree e_k in its weights.

    1 with relu and linear; with relu2 it doubles with every activation that follows. The order of homogeneity L
    (arXiv 1906.05890, section 2) is their sum. Holds where `why_not_homogeneous` finds nothing.
    """
    found: list[int] = []
    for spec in specs:
        if spec.weight_shape is not None:
            found.append(1)
        if spec.act and act_type == "relu2":
            found = [2 * e for e in found]
    return found


def why_not_homogeneous(specs: list[LayerSpec]) -> str | None:
    """Return what keeps the logits from being homogeneous in the weights; None where they are."""
    weighted = [spec for spec in specs if spec.weight_shape is not None]
    if any(spec.bn for spec in weighted):
        return "it has batch norm"
    if any(spec.bias for spec in weighted[1:]):
        return "it has biases after the first layer"
    return None
