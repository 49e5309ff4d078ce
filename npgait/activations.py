"""Activations: f, its inverse f^-1, its derivative f', and the difference quotient of f^-1.

Both activations are strictly increasing and piecewise linear, so each has an exact inverse, and the sign
of y = f(a) is the sign of a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module
from npgait.parallel import by_sample
from npgait.validation import check_real


class Activation(Protocol):
    """What a layer needs of its activation."""

    def __call__(self, a: Array) -> Array:
        """Return y = f(a)."""

    def add_bias_and_activate(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Do a <- a + b in place, and return y = f(a), in `out` where given."""

    def inverse(self, y: Array) -> Array:
        """Return a = f^-1(y)."""

    def derivative(self, a: Array) -> Array:
        """Return f'(a)."""

    def times_derivative(self, a: Array, e: Array, power: int = 1) -> Array:
        """Return f'(a)^power * e."""

    def difference(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return [f^-1(y) - f^-1(y - s v)] / s."""

    def crossed(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return where y and y - s v lie on different sides of the kink (bool, shape of y)."""


@dataclass(frozen=True)
class Linear:
    """f(a) = a."""

    def __call__(self, a: Array) -> Array:
        """Return a."""
        return a

    def add_bias_and_activate(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Do a <- a + b in place, and return it, or a copy in `out`."""
        a += b
        if out is None:
            return a
        out[...] = a
        return out

    def inverse(self, y: Array) -> Array:
        """Return y."""
        return y

    def derivative(self, a: Array) -> Array:
        """Return ones of the shape of `a`."""
        return array_module(a).ones_like(a)

    def times_derivative(self, a: Array, e: Array, power: int = 1) -> Array:
        """Return e."""
        return e

    def difference(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return [y - (y - s v)] / s = v."""
        return v

    def crossed(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return False everywhere: there is no kink."""
        return array_module(y).zeros(y.shape, dtype=bool)


@dataclass(frozen=True)
class LeakyReLU:
    """f(a) = a where a >= 0, slope a below (2023: slope 0.1). f'(0) = 1, as in both published codes.

    Parameters
    ----------
    slope : float
        Slope of the negative side; any finite number above 0.

    Raises
    ------
    ValueError
        If `slope` is not a finite number above 0: f would have no inverse.
    """

    slope: float = 0.1

    def __post_init__(self) -> None:
        check_real("slope of the leaky ReLU", self.slope)
        if not (self.slope > 0 and math.isfinite(self.slope)):
            raise ValueError(
                f"slope of the leaky ReLU is {self.slope}; expected a finite number above 0, "
                "or the activation has no inverse"
            )
        object.__setattr__(self, "slope", float(self.slope))

    def __call__(self, a: Array, out: Array | None = None) -> Array:
        """Return y = f(a), in `out` where given."""
        xp = array_module(a)
        y = xp.multiply(a, _real(a).type(self.slope), out=out)
        # As a maximum: NumPy's `where` costs five times as much, for its branches cannot be foreseen.
        return xp.maximum(a, y, out=y) if self.slope <= 1 else xp.minimum(a, y, out=y)

    def add_bias_and_activate(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Do a <- a + b in place, and return y = f(a), in `out` where given."""
        if kernels.apply_to(a, b, a if out is None else out):
            return kernels.bias_activation(a, b, self.slope, out)
        a += b
        return self(a, out)

    def inverse(self, y: Array) -> Array:
        """Return f^-1(y): y where y >= 0, y / slope below."""
        return array_module(y).where(y >= 0, y, y / self.slope)

    def derivative(self, a: Array) -> Array:
        """Return f'(a): 1 where a >= 0, slope below."""
        # where(a >= 0, 1, slope) by arithmetic: NumPy's `where` costs five times as much.
        xp, real = array_module(a), _real(a)
        slope = real.type(self.slope)
        if self.slope <= 1:
            f_prime = (a >= 0).astype(real)
            f_prime *= 1 - slope
            f_prime += slope  # exactly 1 where a >= 0: what 1 - slope was rounded by is lost in the sum
            return f_prime
        below = (a < 0).astype(real)
        below *= slope
        return xp.maximum(below, real.type(1), out=below)

    def times_derivative(self, a: Array, e: Array, power: int = 1) -> Array:
        """Return f'(a)^power * e."""
        if kernels.apply_to(a, e):
            return kernels.times_derivative(a, e, self.slope, power)

        def equation(a: Array, e: Array) -> Array:
            product = self.derivative(a)
            if power != 1:
                product **= power
            product *= e
            return product

        return by_sample(equation, a, e)

    def difference(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return d = [f^-1(y) - f^-1(y - s v)] / s without cancellation.

        Parameters
        ----------
        y : array (B, n)
            Output of the layer.
        v : array (B, n)
            Direction of the nudge.
        s : float or array (B, 1)
            Size of the nudge; 0 stands for the limit s -> 0, except that y = 0 is not crossed.

        Returns
        -------
        array (B, n)
            v over the slope of y's side where y and y - s v lie on one side of the kink. Where the
            kink is crossed, both slopes count: y and y - s v then have opposite signs, so the
            quotient adds what a subtraction of inverses would cancel.
        """
        if kernels.apply_to(y, v):
            return kernels.difference(y, v, s, self.slope)
        return by_sample(self._difference, y, v, s)

    def _difference(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return d as NumPy and CuPy compute it, in several passes over memory."""
        xp = array_module(y)
        s = xp.asarray(s, dtype=_real(y))
        y_nudged = s * v
        y_nudged = xp.subtract(y, y_nudged, out=y_nudged)  # y - s v
        d = self.derivative(y)
        d = xp.divide(v, d, out=d)  # v / f'
        crossed = (y >= 0) != (y_nudged >= 0)
        if crossed.any():  # there s > 0
            two_sides = self.inverse(y[crossed]) - self.inverse(y_nudged[crossed])
            d[crossed] = two_sides / xp.broadcast_to(s, y.shape)[crossed]
        return d

    def crossed(self, y: Array, v: Array, s: Array | float) -> Array:
        """Return where y and y - s v lie on different sides of the kink (bool, shape of y)."""
        return (y >= 0) != (y - s * v >= 0)


def _real(a: Array) -> np.dtype:
    """Return the dtype of f(a): that of `a`, or of integers, in which the slope would be 0, float64."""
    return a.dtype if a.dtype.kind == "f" else np.dtype(np.float64)
