"""A network in a file: plain HDF5, no pickle, read back bit for bit.

The file is a checkpoint (checkpoint.py) whose meta data describe every layer; those of a run describe
their network too, so that `load_network` reads either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npgait.activations import Activation, LeakyReLU, Linear
from npgait.backend import CPU, Array, Device
from npgait.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from npgait.layers import Conv2D, Dense, Window
from npgait.network import Layer, Network

LAYERS_MOST = 10_000  # of a network in a file


def save_network(path: str | Path, network: Network) -> None:
    """Write a network to a plain HDF5 file, whole or not at all.

    Parameters
    ----------
    path : str or Path
    network : Network
        Of dense and convolutional layers with leaky ReLU or linear outputs.

    Raises
    ------
    TypeError
        If a layer or an activation is of a kind that the file format does not know.
    OSError
        If the file cannot be written.
    """
    arrays = {
        "parameters": dict(network.named_parameters()),
        "optimizer": {},
        "feedback": network.named_feedback(),
    }
    save_checkpoint(Path(path), Checkpoint({"network": describe(network)}, arrays))


def load_network(path: str | Path, *, device: Device = CPU) -> Network:
    """Return a network from a file that `save_network` or a run (RUN/NAME/checkpoint.h5) wrote.

    Parameters
    ----------
    path : str or Path
    device : Device
        Where its weights will live.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds no network.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    described = checkpoint.meta.get("network")
    if described is None:
        raise CheckpointError(f"{path}: does not describe its network; an earlier npgait wrote it")
    try:
        if not isinstance(described, list) or len(described) > LAYERS_MOST:
            raise ValueError("its layers are no list")
        device.use()
        parameters = {
            name: device.xp.asarray(array) for name, array in checkpoint.arrays["parameters"].items()
        }
        network = Network([_layer(layer, parameters) for layer in described])
        network.feedback = _feedback(checkpoint.arrays["feedback"], network, device)
        return network
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: holds no network that can be built ({error})") from error


def describe(network: Network) -> list[dict[str, Any]]:
    """Return what has to be known of each layer beside its weights, as plain values.

    Raises
    ------
    TypeError
        If a layer or an activation is of an unknown kind.
    """
    return [_described(layer) for layer in network.layers]


def _described(layer: Layer) -> dict[str, Any]:
    common = {"name": layer.name, "used": layer.used, "slope": slope_of(layer.f)}
    if type(layer) is Dense:  # a subclass has more to say than the file would hold
        shape = list(layer.shape_in)
        return {"kind": "dense", **common, "shape_in": shape, "implicit": layer.implicit}
    if type(layer) is Conv2D:
        w = layer.window
        window = [w.height, w.width, w.channels, w.kernel, w.stride, w.padding]
        return {"kind": "conv", **common, "window": window, "implicit": layer.implicit}
    raise TypeError(f"{layer.name} is a {type(layer).__name__}; a file holds Dense and Conv2D layers")


def slope_of(f: Activation) -> float | None:
    """Return the slope of a leaky ReLU, None of a linear layer.

    Raises
    ------
    TypeError
        If the activation is neither.
    """
    if type(f) is LeakyReLU:
        return f.slope
    if type(f) is Linear:
        return None
    raise TypeError(f"the activation is a {type(f).__name__}; expected LeakyReLU or Linear")


def _layer(described: dict[str, Any], parameters: dict[str, Any]) -> Layer:
    """Return a layer, its own constructor checking that everything fits."""
    name, slope = str(described["name"]), described["slope"]
    f: Activation = Linear() if slope is None else LeakyReLU(slope)
    W, b = parameters[f"{name}/W"], parameters[f"{name}/b"]
    used, implicit = _whole(described["used"]), bool(described["implicit"])
    if described["kind"] == "dense":
        shape_in = tuple(map(_whole, described["shape_in"]))
        return Dense(W, b, used, f, name, shape_in, implicit)
    if described["kind"] == "conv":
        *sizes, padding = described["window"]
        height, width, channels, kernel, stride = map(_whole, sizes)
        window = Window(height, width, channels, kernel, stride, str(padding))
        return Conv2D(W, b, window, used, f, name, implicit=implicit)
    raise ValueError(f"{name} is of kind {described['kind']!r}; expected dense or conv")


def _feedback(arrays: dict[str, Any], network: Network, device: Device) -> list[Array | None] | None:
    """Return the feedback weights of each layer; None where the file holds none."""
    numbers = {str(l): l for l in range(len(network.layers))}
    feedback: list[Array | None] = [None] * len(numbers)
    for key, B in arrays.items():
        if key not in numbers or B.ndim != 2 or B.dtype != network.dtype:
            raise ValueError(f"feedback {key} is {B.dtype} {B.shape}; expected a layer's matrix")
        feedback[numbers[key]] = device.xp.asarray(B)
    return feedback if arrays else None


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 40:
        raise ValueError(f"{value!r} stands where a size has to")
    return value
