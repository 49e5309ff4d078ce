"""The networks of both papers.

Each function returns a `Network` with fresh weights and zero biases. With `auxiliary` every layer but
the first is square: its outputs beyond those used are auxiliary units, which make it invertible. BP, FA
and DFA need none, and without them hold fewer weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from npgait.activations import Activation, LeakyReLU, Linear
from npgait.backend import CPU, Array, Device, parse_dtype
from npgait.initialisation import INITIALISATIONS
from npgait.layers import Conv2D, Dense, Window
from npgait.layers.conv import PATCH_BYTES
from npgait.network import Layer, Network
from npgait.validation import whole


def square(
    n_in: int,
    n_classes: int,
    *,
    width: int | None = None,
    depth: int = 4,
    f: Activation | None = None,
    f_output: Activation | None = None,
    auxiliary: bool | str = True,
    initialisation: str = "orthogonal",
    seed: int | np.random.Generator = 0,
    dtype: str | np.dtype = "float32",
    device: Device = CPU,
) -> Network:
    """Return `depth` hidden layers of `width` units and an output layer (2020: 784, 1 to 4 layers).

    Parameters
    ----------
    n_in, n_classes : int
        Size of an input and number of classes.
    width : int, optional
        Units of each hidden layer. Default: n_in, so that the first layer is square too.
    depth : int
        Number of hidden layers.
    f : Activation
        Of the hidden layers; leaky ReLU of slope 0.1 by default.
    f_output : Activation
        Of the output layer. Default: `f`, as in the 2020 code.
    auxiliary : bool or "implicit"
        Whether the output layer is made square by auxiliary units, stored or implicit; see `Dense`.
    initialisation : {"orthogonal", "glorot_normal"}
    seed : int or numpy.random.Generator
    dtype : {"float32", "float64"}
    device : Device

    Raises
    ------
    TypeError, ValueError
        If a size is no whole number from 1 on, there are more classes than a square output layer has
        units, or `auxiliary`, `initialisation` or `dtype` is none of those above.
    """
    f = f or LeakyReLU()
    width = n_in if width is None else width
    _check_sizes(n_in=n_in, n_classes=n_classes, width=width, depth=depth)
    shapes = [(n_in, width, width), *[(width, width, width)] * (depth - 1)]
    shapes.append(_output_shape(width, n_classes, auxiliary))
    activations = [f] * depth + [f_output or f]
    return _stack(shapes, activations, auxiliary, initialisation, seed, dtype, device)


def tower(
    n_in: int,
    n_classes: int,
    *,
    widths: Sequence[int] = (500, 200),
    f: Activation | None = None,
    f_output: Activation | None = None,
    auxiliary: bool | str = True,
    initialisation: str = "orthogonal",
    seed: int | np.random.Generator = 0,
    dtype: str | np.dtype = "float32",
    device: Device = CPU,
) -> Network:
    """Return the tower of the 2020 paper, 784-784-500-200-10.

    Every layer is square and takes the first units of the layer below; those left over are the
    auxiliary units of the layer below. Parameters as in `square`, and

    Parameters
    ----------
    widths : sequence of int
        Sizes of the square layers between the first (n_in) and the last (n_classes); they may not
        grow.

    Raises
    ------
    TypeError, ValueError
        As by `square`; also if `widths` is empty or grows.
    """
    f = f or LeakyReLU()
    sizes = [n_in, *widths, n_classes]
    if len(widths) == 0:
        raise ValueError("widths is empty; expected the size of one hidden layer or more")
    _check_sizes(n_in=n_in, n_classes=n_classes)
    for width in widths:
        whole("width", width)
    if any(above > below for below, above in pairwise(sizes)):
        raise ValueError(f"a tower of sizes {sizes} grows; each layer uses units of the one below")
    used = [*sizes[1:], n_classes]
    stored = auxiliary is True
    shapes = [(n, n if stored else u, u) for n, u in zip(sizes, used, strict=True)]
    activations = [f] * (len(shapes) - 1) + [f_output or f]
    return _stack(shapes, activations, auxiliary, initialisation, seed, dtype, device)


def cifar10(
    n_in: int = 3072,
    n_classes: int = 10,
    *,
    width: int = 1024,
    depth: int = 6,
    f: Activation | None = None,
    auxiliary: bool | str = True,
    initialisation: str = "orthogonal",
    seed: int | np.random.Generator = 0,
    dtype: str | np.dtype = "float32",
    device: Device = CPU,
) -> Network:
    """Return the CIFAR-10 network of the 2023 paper, 3072 -> 6 x 1024 -> 10, linear output.

    Parameters as in `square`.
    """
    return square(
        n_in,
        n_classes,
        width=width,
        depth=depth,
        f=f,
        f_output=Linear(),
        auxiliary=auxiliary,
        initialisation=initialisation,
        seed=seed,
        dtype=dtype,
        device=device,
    )


def cifar10_shallow(
    n_in: int = 3072, n_classes: int = 10, *, depth: int = 3, **options: object
) -> Network:
    """Return the shallow CIFAR-10 network of the 2023 paper, 3072 -> 3 x 1024 -> 10.

    Parameters as in `cifar10`.
    """
    return cifar10(n_in, n_classes, depth=depth, **options)  # type: ignore[arg-type]


# Kernel, stride and used channels of each convolution (2023 paper, ImageNet network).
IMAGENET = ((9, 4, 24), (3, 2, 24), (5, 2, 48), (3, 2, 48), (3, 1, 96), (3, 2, 96), (3, 1, 192))


def imagenet(
    shape_in: tuple[int, ...] = (224, 224, 3),
    n_classes: int = 1000,
    *,
    f: Activation | None = None,
    auxiliary: bool | str = True,
    patch_bytes: int = PATCH_BYTES,
    initialisation: str = "orthogonal",
    seed: int | np.random.Generator = 0,
    dtype: str | np.dtype = "float32",
    device: Device = CPU,
) -> Network:
    """Return the ImageNet network of the 2023 paper: seven convolutions and a linear dense output.

    Parameters
    ----------
    shape_in : tuple of int
        (H, W, C) of an image; every map above follows from it.
    patch_bytes : int
        Most memory that the patches of one slice of a batch take in a convolution; see `Conv2D`.
    n_classes, f, auxiliary, initialisation, seed, dtype, device
        As in `square`.

    Raises
    ------
    TypeError, ValueError
        As by `square`; also if `shape_in` is no image.
    """
    if len(shape_in) != 3:
        raise ValueError(f"the network takes images (H, W, C); got shape {shape_in}")
    height, width, channels = shape_in
    _check_sizes(height=height, width=width, channels=channels, n_classes=n_classes)
    f = f or LeakyReLU()
    rng = np.random.default_rng(seed)
    layers: list[Layer] = []
    implicit = _is_implicit(auxiliary)
    for number, (kernel, stride, used) in enumerate(IMAGENET, 1):
        window = Window(height, width, channels, kernel, stride, "SAME")
        c_out = window.patch_size if auxiliary is True and number > 1 else used
        W, b = _weights(rng, initialisation, window.patch_size, c_out, dtype, device)
        name, completed = f"conv{number}", implicit and number > 1
        layers.append(Conv2D(W, b, window, used, f, name, patch_bytes, completed))
        height, width, channels = layers[-1].shape_out
    n_in, n_out, used = _output_shape(height * width * channels, n_classes, auxiliary)
    W, b = _weights(rng, initialisation, n_in, n_out, dtype, device)
    layers.append(Dense(W, b, used, Linear(), "output", (height, width, channels), implicit))
    return Network(layers)


def _is_implicit(auxiliary: bool | str) -> bool:
    """Return whether auxiliary units are there and not stored."""
    if isinstance(auxiliary, bool):
        return False
    if auxiliary != "implicit":
        raise ValueError(f"auxiliary is {auxiliary!r}; expected True, False or 'implicit'")
    return True


def _output_shape(n_in: int, n_classes: int, auxiliary: bool | str) -> tuple[int, int, int]:
    if auxiliary and n_classes > n_in:
        raise ValueError(
            f"output: {n_classes} classes do not fit a square layer of {n_in} units; widen the network "
            "or its images, or use auxiliary=False with a rule that inverts nothing (bp, fa, dfa)"
        )
    return n_in, n_in if auxiliary is True else n_classes, n_classes


def _stack(
    shapes: Sequence[tuple[int, int, int]],
    activations: Sequence[Activation],
    auxiliary: bool | str,
    initialisation: str,
    seed: int | np.random.Generator,
    dtype: str | np.dtype,
    device: Device,
) -> Network:
    """Return a network of dense layers of the given (n_in, n_out, used)."""
    rng = np.random.default_rng(seed)
    layers: list[Layer] = []
    implicit = _is_implicit(auxiliary)
    for number, ((n_in, n_out, used), f) in enumerate(zip(shapes, activations, strict=True), 1):
        W, b = _weights(rng, initialisation, n_in, n_out, dtype, device)
        name = "output" if number == len(shapes) else f"hidden{number}"
        layers.append(Dense(W, b, used, f, name, implicit=implicit and number > 1))
    return Network(layers)


def _weights(
    rng: np.random.Generator,
    initialisation: str,
    n_in: int,
    n_out: int,
    dtype: str | np.dtype,
    device: Device,
) -> tuple[Array, Array]:
    """Return W (n_in, n_out) and zero b (n_out,) on the device."""
    if initialisation not in INITIALISATIONS:
        known = ", ".join(INITIALISATIONS)
        raise ValueError(f"initialisation {initialisation!r} is unknown; use one of {known}")
    if not isinstance(device, Device):
        raise TypeError(f"device is {device!r}; expected one of npgait.select_device, of 'gpu', say")
    xp, dtype = device.xp, parse_dtype(dtype)
    device.use()
    W = INITIALISATIONS[initialisation](rng, n_in, n_out)
    return xp.asarray(W, dtype=dtype), xp.zeros(n_out, dtype=dtype)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        whole(name, size)


MODELS: dict[str, Callable[..., Network]] = {
    "square": square,
    "tower": tower,
    "cifar10": cifar10,
    "cifar10_shallow": cifar10_shallow,
    "imagenet": imagenet,
}
TAKES_IMAGES = ("imagenet",)  # networks whose first argument is (H, W, C), not the number of values
