"""NumPy's .npz: all tensors under the names of a checkpoint, and metadata as JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from exchange.chain import Chain, Logits
from models.architectures import BN_EPSILON
from support.files import arrays_of, parsed, read_bytes


def write(network: Any, path: Path, about: dict[str, Any]) -> Logits:
    """Write all tensors under their names, and `metadata`, JSON text; its logits are the network's with these."""
    layers = [
        {"kind": spec.kind, "act": network.act_type if spec.act else "linear", "bn": spec.bn, "bias": spec.bias}
        | ({} if spec.plain else {"window": spec.window, "stride": spec.stride, "pads": spec.pads})
        for spec in network.specs
    ]
    arrays = dict(network.get_weights())
    if network.input_normalization is not None:
        arrays |= dict(zip(("input/factor", "input/shift"), network.input_normalization, strict=True))
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays, metadata=np.array(json.dumps(about | {"layers": layers})))
    stored = arrays_of(path.read_bytes())
    network.set_weights([stored[name] for name in network.names])
    return lambda images: network.logits(images).numpy()


def read(path: Path, shape: tuple[int, ...]) -> tuple[Chain, None]:
    """Read what `write` wrote.

    Args:
      shape: (h, w, c) of our images.

    Returns: its chain; None, since no other program computes its logits. Raises: UserError.
    """

    def tensors_and_layers(content: bytes) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        arrays = arrays_of(content)
        layers = json.loads(str(arrays.pop("metadata")))["layers"]
        return {name: array.astype(np.float64) for name, array in arrays.items()}, [dict(row) for row in layers]

    advice = "give a file that python export.py --to npz wrote"
    tensors, layers = parsed(read_bytes(path), tensors_and_layers, str(path), advice)
    chain = Chain(shape, shape)
    with chain.whole():
        if "input/factor" in tensors:
            chain.scale(tensors["input/factor"], tensors["input/shift"])
        k = 0
        for number, row in enumerate(layers):
            chain.where = f"layer {number} ({row['kind']})"
            if row["kind"] in "PA":
                chain.pool(row["kind"], row.get("window", (2, 2)), row.get("stride", (2, 2)))
                continue
            own = {kind: tensors.get(f"layer{k}/{kind}") for kind in ("weight", "bias")}
            weight, bias = own["weight"], own["bias"]
            if row["kind"] == "C":
                chain.convolution(weight, bias, row.get("stride", (1, 1)), row.get("pads", "SAME"))
            else:
                chain.reshape([-1])
                chain.connected(weight, bias)
            if row["bn"]:
                norm = [tensors[f"layer{k}/bn/{what}"] for what in ("scale", "shift", "mean", "variance")]
                chain.batch_norm(norm, BN_EPSILON)
            if row["act"] != "linear":
                chain.act(row["act"])
            k += 1
    return chain, None
