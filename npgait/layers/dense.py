"""The dense layer: y = f(x W + b), and every equation that a learning rule asks of it.

Each method sees its own arguments and the layer's own parameters, nothing else: that is what *local*
means in GAIT-prop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from npgait.activations import Activation, LeakyReLU
from npgait.backend import Array, array_module
from npgait.blas import product
from npgait.inverse import InverseSolver, check_inverse
from npgait.sums import column_sums
from npgait.validation import check_activation, check_parameters, whole

_LU = InverseSolver(method="lu")


@dataclass(eq=False)
class Dense:
    """A dense layer, square with auxiliary units or not.

    Parameters
    ----------
    W : array (n_in, n_out)
        Weights.
    b : array (n_out,)
        Biases.
    used : int, optional
        u, the number of outputs that feed the layer above or the loss. The other n_out - u are
        auxiliary units, which make W square. Default: all.
    f : Activation
        Leaky ReLU of slope 0.1 by default.
    name : str
        What messages call the layer.
    shape_in : tuple of int, optional
        Shape of one input, where it is not (n_in,): above a convolution (H, W, C), which this layer
        flattens in that order.
    implicit : bool
        Whether auxiliary units that are not stored make W square: n_in - n_out of them, whose weights
        are orthonormal and orthogonal to the others'. W^-1 then is the pseudo-inverse.

    Raises
    ------
    TypeError, ValueError
        If W and b are not both float32 or both float64, shapes do not fit each other, or `used` or a
        number of `shape_in` is no whole number from 1 on.
    """

    W: Array
    b: Array
    used: int = -1
    f: Activation = field(default_factory=LeakyReLU)
    name: str = "dense"
    shape_in: tuple[int, ...] = ()
    implicit: bool = False

    def __post_init__(self) -> None:
        check_parameters(self.name, self.W, self.b)
        check_activation(self.name, self.f)
        if self.W.ndim != 2 or self.W.size == 0 or self.b.shape != self.W.shape[1:]:
            raise ValueError(
                f"{self.name}: W {self.W.shape} and b {self.b.shape}; expected W (n_in, n_out) and "
                "b (n_out,), of one unit or more"
            )
        self.shape_in = tuple(whole(f"{self.name}: shape_in", n) for n in self.shape_in) or (self.n_in,)
        if math.prod(self.shape_in) != self.n_in:
            raise ValueError(f"{self.name}: shape_in {self.shape_in} does not flatten to {self.n_in}")
        self.used = checked_used(self.name, self.used, self.W.shape, self.implicit)

    @property
    def n_in(self) -> int:
        """Number of inputs."""
        return self.W.shape[0]

    @property
    def n_out(self) -> int:
        """Number of outputs, auxiliary units included."""
        return self.W.shape[1]

    @property
    def shape_out(self) -> tuple[int, ...]:
        """Shape of one output, used units only: (u,)."""
        return (self.used,)

    @property
    def n_units(self) -> int:
        """Units of one output, auxiliary units included (the n_l of normalised GAIT-prop)."""
        return self.n_in if self.implicit else self.n_out

    @property
    def has_inverse(self) -> bool:
        """Whether W has an inverse: it is square, or implicit auxiliary units make it so."""
        return self.n_in == self.n_out or self.implicit

    # --- the five equations -----------------------------------------------------------------------

    def forward(self, x: Array, *, auxiliary: bool = False) -> tuple[Array, Array]:
        """Return a = x W + b and y = f(a).

        Parameters
        ----------
        x : array (B, *shape_in)
        auxiliary : bool
            Whether auxiliary units are computed too. Absolute targets need them, nothing else does.

        Returns
        -------
        a, y : array (B, used), or (B, n_out) with `auxiliary`
        """
        u = self.n_out if auxiliary else self.used
        a = product(self._flat(x), self.W[:, :u])
        y = self.f.add_bias_and_activate(a, self.b[:u])  # a = x W + b, y = f(a)
        return a, y

    def inverse(self, y: Array, x: Array | None = None) -> Array:
        """Return g(y) = (f^-1(y) - b) W^-1, auxiliary units included (2023 paper).

        Parameters
        ----------
        y : array (B, n_out)
        x : array, optional
            Not needed: only the inverse of a convolution depends on its input.

        Returns
        -------
        array (B, *shape_in)

        Raises
        ------
        ValueError
            If the layer was not made to have an inverse, or its auxiliary units are implicit.
        SingularWeightsError
            If W has none, to the precision of its dtype.
        ErrorsNotFiniteError
            If y is not finite.
        """
        del x
        refuse_implicit(self.name, self.implicit)
        check_inverse(self.name, self.has_inverse, self.W.shape)
        return self._shaped(_LU(self.f.inverse(y) - self.b, self.W, name=self.name))

    def difference_inverse(
        self,
        y: Array,
        v: Array,
        s: Array | float,
        *,
        solver: InverseSolver,
        G: Array | None = None,
    ) -> Array:
        """Return [g(y) - g(y - s v)] / s = d W^-1, d = [f^-1(y) - f^-1(y - s v)] / s.

        What `inverse` would make of the target y - s v, as a difference from the input: the bias
        cancels, and no digit is lost however small s is. Auxiliary units carry no error, so only the
        first u rows of W^-1 are applied.

        Parameters
        ----------
        y : array (B, used)
            Output of the layer.
        v : array (B, used)
            Direction of the nudge.
        s : float or array (B, 1)
            Size of the nudge.
        solver : InverseSolver
            Makes the product with W^-1.
        G : array (n, n), optional
            W W^T, if it is at hand.

        Returns
        -------
        array (B, *shape_in)

        Raises
        ------
        ValueError
            If the layer was not made to have an inverse.
        SingularWeightsError, ErrorsNotFiniteError
            See `InverseSolver`.
        """
        check_inverse(self.name, self.has_inverse, self.W.shape)
        d = self.f.difference(y, v, s)
        return self._shaped(solver(d, self.W, G, name=self.name))

    def transpose(self, delta: Array, B: Array | None = None) -> Array:
        """Return delta W^T, or delta B^T with the feedback weights B of feedback alignment.

        Parameters
        ----------
        delta : array (B, used)
        B : array (n_in, used), optional

        Returns
        -------
        array (B, *shape_in)
        """
        W = self.W[:, : self.used] if B is None else B
        return self._shaped(product(delta, W.T))

    def local_update(self, x: Array, a: Array, error: Array) -> tuple[Array, Array]:
        """Return dW = x^T [f'(a) * e] and db, the same without x, summed over the batch.

        Parameters
        ----------
        x : array (B, *shape_in)
        a : array (B, used) or (B, n_out)
        error : array (B, used)
            e = m (y - t). Auxiliary units' error is zero, and so is their share of dW and db.

        Returns
        -------
        dW : array (n_in, n_out)
        db : array (n_out,)
        """
        u = self.used
        delta = self.f.times_derivative(a[:, :u], error)  # f'(a) * e
        dW = product(self._flat(x).T, delta)
        db = column_sums(delta)
        return with_auxiliary(dW, self.n_out), with_auxiliary(db, self.n_out)

    def _flat(self, x: Array) -> Array:
        return x.reshape(len(x), self.n_in)

    def _shaped(self, x: Array) -> Array:
        return x.reshape(len(x), *self.shape_in)


def checked_used(name: str, used: int, shape: tuple[int, ...], implicit: bool) -> int:
    """Return the number of used outputs of W (`shape`), checked; -1 stands for all of them."""
    n_in, n_out = shape
    used = n_out if used == -1 else whole(f"{name}: used", used)
    if used > n_out:
        raise ValueError(f"{name}: used is {used}; expected 1 to n_out = {n_out}")
    if implicit and not (n_in >= n_out == used):
        raise ValueError(
            f"{name}: W {shape} of {used} used outputs; with implicit auxiliary units all outputs are "
            "used, and they are no more than the inputs"
        )
    return used


def refuse_implicit(name: str, implicit: bool) -> None:
    """Raise a ValueError where the activity of auxiliary units is needed, and there is none."""
    if implicit:
        raise ValueError(
            f"{name}: its auxiliary units are implicit, and absolute targets need their activity; use "
            "difference targets, or stored auxiliary units"
        )


def with_auxiliary(dW: Array, n_out: int) -> Array:
    """Return `dW` (..., u) with zeros for the auxiliary units: (..., n_out)."""
    u = dW.shape[-1]
    if u == n_out:
        return dW
    full = array_module(dW).zeros((*dW.shape[:-1], n_out), dtype=dW.dtype)
    full[..., :u] = dW
    return full
