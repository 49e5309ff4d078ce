"""Checks of what comes from outside: sizes, parameters, names, labels."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from npgait.backend import DTYPES, Array, array_module


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number, NumPy's too, as an int: files and ONNX know no other.

    Raises
    ------
    TypeError, ValueError
        If it is of another type, or below `least`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected a whole number, at least {least}")
    if value < least:
        raise ValueError(f"{name} is {value}; expected a whole number, at least {least}")
    return int(value)


def check_real(name: str, value: Any) -> None:
    """Raise a TypeError where a value is no real number; NumPy's numbers and 0-d arrays are."""
    if isinstance(value, bool | np.bool_) or not (
        isinstance(value, Real) or (getattr(value, "shape", None) == () and value.dtype.kind in "fiu")
    ):
        raise TypeError(f"{name} is {value!r}; expected a number")


def check_parameters(name: str, W: Array, b: Array) -> None:
    """Raise a ValueError where W and b are not both float32, or both float64, in native byte order."""
    if W.dtype != b.dtype or W.dtype not in DTYPES.values() or not W.dtype.isnative:
        raise ValueError(
            f"{name}: W is {W.dtype.str} and b is {b.dtype.str}; expected both float32 or both float64"
        )


def check_activation(name: str, f: Any) -> None:
    """Raise a TypeError where a layer's f has none of what the rules ask of an activation."""
    if not callable(getattr(f, "derivative", None)):
        raise TypeError(f"{name}: f is {f!r}; expected an activation, LeakyReLU(0.1), say")


def check_name(name: Any) -> None:
    """Raise a ValueError where a layer's name is none under which a file can hold its weights."""
    if not isinstance(name, str) or name in ("", ".", "..") or not name.isprintable() or "/" in name:
        raise ValueError(f"a layer is called {name!r}; expected printable characters without '/'")


def check_labels(labels: Array, y: Array) -> None:
    """Raise a ValueError where labels are not one class (0 to n - 1) for each output y (B, n).

    On a GPU only their shape is looked at: to see their values the host would have to wait.
    """
    if labels.shape != y.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}; expected {y.shape[:1]}, one a sample")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}; expected integers, classes counted from 0")
    if array_module(labels) is np and len(labels) and not 0 <= labels.min() <= labels.max() < y.shape[1]:
        raise ValueError(
            f"labels reach from {labels.min()} to {labels.max()}; expected classes 0 to {y.shape[1] - 1}"
        )
