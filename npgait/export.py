"""The forward network as ONNX, for programs that know nothing of npgait; needs `npgait[onnx]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from npgait.backend import to_host
from npgait.files import replacing
from npgait.layers import Conv2D
from npgait.network import Layer, Network
from npgait.saving import describe, slope_of

OPSET, IR_VERSION = 13, 8  # old enough for every runtime of recent years
MAX_BYTES = (1 << 31) - (1 << 20)  # what protobuf holds in one file, less room for all but weights


class ExportError(RuntimeError):
    """A network cannot be exported; the message is one line."""


def export_onnx(network: Network, path: str | Path) -> None:
    """Write the forward network as ONNX, whole or not at all, checked by ONNX's own checker.

    Input "x": float32 (N, n) or (N, H, W, C), scaled as in training. Output "logits": float32
    (N, n_classes). Weights are rounded to float32, which is what runtimes compute in. Auxiliary units
    are left out: nothing in the forward pass needs them.

    Parameters
    ----------
    network : Network
    path : str or Path

    Raises
    ------
    ExportError
        If the package onnx is not installed, or the weights take more than an ONNX file can hold.
    TypeError
        If a layer is neither dense nor a convolution, or an activation neither leaky ReLU nor linear.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ExportError("the package onnx is missing; pip install 'npgait[onnx]'") from error
    describe(network)  # a layer of another kind would be written as what it derives from
    size = sum(4 * (len(layer.W) + 1) * layer.used for layer in network.layers)
    if size > MAX_BYTES:
        raise ExportError(
            f"{path}: the weights take {size:,} bytes, and an ONNX file holds {MAX_BYTES:,}; export a "
            "smaller network"
        )
    nodes: list[Any] = []
    weights: list[Any] = []
    value = "x"
    for number, layer in enumerate(network.layers):
        below = network.layers[number - 1] if number else None
        value = _layer(layer, below, value, nodes, weights)
    nodes[-1].output[0] = "logits"
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "npgait",
        [helper.make_tensor_value_info("x", kind, ["N", *network.shape_in])],
        [helper.make_tensor_value_info("logits", kind, ["N", network.n_classes])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="npgait"
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _layer(layer: Layer, below: Layer | None, value: str, nodes: list[Any], weights: list[Any]) -> str:
    """Add the nodes of a layer that takes `value`; return the name of what it gives.

    Images go through ONNX as (N, C, H, W), and come to a dense layer as (N, H, W, C), flattened.
    """
    from onnx import helper, numpy_helper

    name, u = layer.name, layer.used
    was_image = isinstance(below, Conv2D)

    def node(operation: str, inputs: list[str], what: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operation, inputs, [f"{name}/{what}"], **attributes))
        return f"{name}/{what}"

    def weight(array: np.ndarray, what: str) -> str:
        array = np.ascontiguousarray(array, dtype=np.float32)
        weights.append(numpy_helper.from_array(array, f"{name}/{what}"))
        return f"{name}/{what}"

    W, b = to_host(layer.W)[:, :u], to_host(layer.b)[:u]
    if isinstance(layer, Conv2D):
        w = layer.window
        if not was_image:
            value = node("Transpose", [value], "channels_first", perm=[0, 3, 1, 2])
        kernel = W.reshape(w.kernel, w.kernel, w.channels, u).transpose(3, 2, 0, 1)
        (top, bottom), (left, right) = w.pads
        value = node(
            "Conv",
            [value, weight(kernel, "W"), weight(b, "b")],
            "a",
            kernel_shape=[w.kernel, w.kernel],
            strides=[w.stride, w.stride],
            pads=[top, left, bottom, right],
        )
    else:
        if was_image:
            value = node("Transpose", [value], "channels_last", perm=[0, 2, 3, 1])
        if len(layer.shape_in) > 1:
            value = node("Flatten", [value], "flat", axis=1)
        value = node("Gemm", [value, weight(W, "W"), weight(b, "b")], "a")
    slope = slope_of(layer.f)
    return value if slope is None else node("LeakyRelu", [value], "y", alpha=slope)
