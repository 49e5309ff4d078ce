"""The convolution: a dense layer on patches, with every equation written on the patches.

Images are (B, H, W, C). A patch is one row of k*k*C values, in (row, column, channel) order, and W is
(k*k*C, c_out): forward is x_p W + b at every position. Where receptive fields overlap, what flows down
to the input is the sum over patches, for the transpose as for the difference of inverses.

Patches are made in slices of the batch, so that memory stays bounded whatever the batch.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field

import numpy as np

from npgait.activations import Activation, LeakyReLU
from npgait.backend import Array, array_module
from npgait.inverse import InverseSolver, check_inverse
from npgait.layers.dense import checked_used, refuse_implicit, with_auxiliary
from npgait.layers.patch_products import (
    multiplied_in_loops,
    multiplier,
    patches_transposed_times,
    product_adder,
)
from npgait.layers.patches import Window, count_patches
from npgait.parallel import in_threads, slices, thread_count
from npgait.sums import column_sums
from npgait.validation import check_activation, check_parameters, whole

_LU = InverseSolver(method="lu")
PATCH_BYTES = 256 << 20  # of the patches of one slice of a batch, unless a layer says otherwise
CACHE_BYTES = 4 << 20  # of the same on a CPU, so that a product finds them in a cache
SHARES = 8  # slices that a batch is cut into for threads to share, or two a thread, if that is more
SLICE_OPERATIONS = 1 << 27  # least of a slice's product: of fewer, the calls around it would show,
LEAST_OPERATIONS = 1 << 24  # which is better than a thread that has none, down to these


@dataclass(eq=False)
class Conv2D:
    """A convolution, square with auxiliary channels or not.

    Parameters
    ----------
    W : array (k*k*C, c_out)
        Kernel; rows in (row, column, channel) order.
    b : array (c_out,)
        Biases.
    window : Window
        Input size, kernel, stride and padding.
    used : int, optional
        u, the number of channels that feed the layer above. The other c_out - u are auxiliary
        channels, which make W square. Default: all.
    f : Activation
        Leaky ReLU of slope 0.1 by default.
    name : str
        What messages call the layer.
    patch_bytes : int
        Most memory that the patches of one slice of the batch take (a slice holds at least one
        sample). Compiled loops hold a few patches at a time, whatever it is.
    implicit : bool
        Whether auxiliary channels that are not stored make W square; see `Dense`.

    Raises
    ------
    TypeError, ValueError
        As by `Dense`; `patch_bytes` too is a whole number from 1 on.
    """

    W: Array
    b: Array
    window: Window
    used: int = -1
    f: Activation = field(default_factory=LeakyReLU)
    name: str = "conv"
    patch_bytes: int = PATCH_BYTES
    implicit: bool = False

    def __post_init__(self) -> None:
        check_parameters(self.name, self.W, self.b)
        check_activation(self.name, self.f)
        if self.W.ndim != 2 or len(self.W) != self.window.patch_size or self.W.shape[1] == 0:
            raise ValueError(
                f"{self.name}: W {self.W.shape}; expected ({self.window.patch_size}, c_out) for "
                f"{self.window}"
            )
        if self.b.shape != self.W.shape[1:]:
            raise ValueError(f"{self.name}: b {self.b.shape}; expected {self.W.shape[1:]}")
        self.used = checked_used(self.name, self.used, self.W.shape, self.implicit)
        self.patch_bytes = whole(f"{self.name}: patch_bytes", self.patch_bytes)

    @property
    def shape_in(self) -> tuple[int, ...]:
        """Shape of one input: (H, W, C)."""
        return (self.window.height, self.window.width, self.window.channels)

    @property
    def shape_out(self) -> tuple[int, ...]:
        """Shape of one output, used channels only: (H', W', u)."""
        return (*self.window.positions, self.used)

    @property
    def n_units(self) -> int:
        """Units of one output, auxiliary channels included (the n_l of normalised GAIT-prop)."""
        rows, columns = self.window.positions
        return rows * columns * self.W.shape[0 if self.implicit else 1]

    @property
    def has_inverse(self) -> bool:
        """Whether W has an inverse: it is square, or implicit auxiliary channels make it so."""
        return self.W.shape[0] == self.W.shape[1] or self.implicit

    # --- the five equations -----------------------------------------------------------------------

    def forward(self, x: Array, *, auxiliary: bool = False) -> tuple[Array, Array]:
        """Return a = x_p W + b and y = f(a), x_p the patches of x.

        Parameters
        ----------
        x : array (B, H, W, C)
        auxiliary : bool
            Whether auxiliary channels are computed too. Absolute targets need them, nothing else.

        Returns
        -------
        a, y : array (B, H', W', used), or (B, H', W', c_out) with `auxiliary`
        """
        u = self.W.shape[1] if auxiliary else self.used
        dtype = np.result_type(x.dtype, self.W.dtype)
        a = array_module(x).empty((len(x), *self.window.positions, u), dtype=dtype)
        y = array_module(x).empty_like(a)
        patches_times_W = multiplier(self.W[:, :u], self.window)

        def forward(part: slice) -> None:
            patches_times_W(x[part], a[part])  # x_p W
            self.f.add_bias_and_activate(a[part], self.b[:u], out=y[part])  # a = x_p W + b, y = f(a)

        in_threads(forward, self._slices(x), x)
        return a, y

    def inverse(self, y: Array, x: Array) -> Array:
        """Return g(y): the patches (f^-1(y) - b) W^-1, summed, less (count - 1) x (2023 code).

        Where receptive fields overlap, a pixel is reconstructed once by each of the `count` fields
        that cover it; the sum is right for one of them, and the others are taken off at the
        layer's own input x. Pixels that no field covers keep x.

        Parameters
        ----------
        y : array (B, H', W', c_out)
        x : array (B, H, W, C)
            Input of the layer in the forward pass.

        Returns
        -------
        array (B, H, W, C)

        Raises
        ------
        ValueError
            If the layer was not made to have an inverse, or its auxiliary channels are implicit.
        SingularWeightsError
            If W has none, to the precision of its dtype.
        """
        refuse_implicit(self.name, self.implicit)
        check_inverse(self.name, self.has_inverse, self.W.shape)
        xp = array_module(y)
        a = self.f.inverse(y) - self.b
        W_inverse = _LU(xp.eye(len(self.W), dtype=y.dtype), self.W, name=self.name)
        correction = count_patches(self.window, xp, y.dtype) - 1
        return self._spread(a, W_inverse) - correction * x

    def difference_inverse(
        self,
        y: Array,
        v: Array,
        s: Array | float,
        *,
        solver: InverseSolver,
        G: Array | None = None,
    ) -> Array:
        """Return [g(y) - g(y - s v)] / s = sum over patches of d W^-1.

        d = [f^-1(y) - f^-1(y - s v)] / s. Bias and reconstruction correction cancel, and auxiliary
        channels carry no error, so only the first u rows of W^-1 are made and applied.

        Parameters
        ----------
        y, v : array (B, H', W', used)
            Output of the layer, direction of the nudge.
        s : float or array (B, 1, 1, 1)
            Size of the nudge.
        solver : InverseSolver
            Makes the rows of W^-1.
        G : array (n, n), optional
            W W^T, if it is at hand.

        Returns
        -------
        array (B, H, W, C)

        Raises
        ------
        ValueError
            If the layer was not made to have an inverse.
        SingularWeightsError
            See `InverseSolver`. Errors that are not finite are not seen here: W^-1 is made without them.
        """
        check_inverse(self.name, self.has_inverse, self.W.shape)
        d = self.f.difference(y, v, s)
        W_inverse = solver(array_module(y).eye(self.used, dtype=y.dtype), self.W, G, name=self.name)
        return self._spread(d, W_inverse)

    def transpose(self, delta: Array, B: Array | None = None) -> Array:
        """Return the sum over patches of delta W^T, or of delta B^T with feedback kernels B.

        Parameters
        ----------
        delta : array (B, H', W', used)
        B : array (k*k*C, used), optional

        Returns
        -------
        array (B, H, W, C)
        """
        W = self.W[:, : self.used] if B is None else B
        return self._spread(delta, W.T)

    def local_update(self, x: Array, a: Array, error: Array) -> tuple[Array, Array]:
        """Return dW = x_p^T [f'(a) * e] and db, the same without x_p, over positions and batch.

        Parameters
        ----------
        x : array (B, H, W, C)
        a : array (B, H', W', used) or (B, H', W', c_out)
        error : array (B, H', W', used)
            e = m (y - t). Auxiliary channels' error is zero, and so is their share of dW and db.

        Returns
        -------
        dW : array (k*k*C, c_out)
        db : array (c_out,)
        """
        u = self.used

        def local_update(part: slice) -> tuple[Array, Array]:
            delta = self.f.times_derivative(a[part][..., :u], error[part])  # f'(a) * e
            dW = patches_transposed_times(x[part], delta, self.window)  # x_p^T [f'(a) * e]
            return dW, column_sums(delta.reshape(-1, u))

        # An empty batch has one slice, of nothing, and an update of zeros.
        parts = in_threads(local_update, self._slices(x) or [slice(0, 0)], x)
        dW, db = (functools.reduce(operator.iadd, values) for values in zip(*parts, strict=True))
        n_out = self.W.shape[1]
        return with_auxiliary(array_module(x).ascontiguousarray(dW), n_out), with_auxiliary(db, n_out)

    # --- a slice of the batch at a time -------------------------------------------------------------

    def _spread(self, d: Array, M: Array) -> Array:
        """Return the sum over patches of d M: d (B, H', W', u), M (u, k*k*C), result (B, H, W, C)."""
        d = d.astype(M.dtype, copy=False) if d.dtype.kind != "f" else d
        x = array_module(d).empty((len(d), *self.shape_in), dtype=d.dtype)
        sum_of_products = product_adder(M.astype(d.dtype, copy=False), self.window)

        def spread(part: slice) -> None:
            sum_of_products(d[part], x[part])

        in_threads(spread, self._slices(d), d)
        return x

    def _slices(self, batch: Array) -> list[slice]:
        """Return the slices of the batch that are worked on one at a time, each by one thread.

        The patches of a slice fit `patch_bytes`, and on the CPU a cache. There the slices are also
        enough to share out. Compiled loops need the same memory for any slice: theirs are cut for
        sharing only.
        """
        rows, columns = self.window.positions
        size, on_cpu = len(batch), array_module(batch) is np
        if on_cpu:
            operations = 2 * size * rows * columns * self.W.shape[0] * self.used
            size = -(-size // _shares(operations, thread_count()))
        if not multiplied_in_loops(batch, self.W):
            most_bytes = min(self.patch_bytes, CACHE_BYTES) if on_cpu else self.patch_bytes
            size = min(size, most_bytes // (rows * columns * len(self.W) * batch.dtype.itemsize))
        return slices(len(batch), max(1, size))


def _shares(operations: int, threads: int) -> int:
    """Return into how many slices a batch's product of so many operations is cut for threads."""
    shares = max(SHARES, 2 * threads)
    while shares > 2:
        least = SLICE_OPERATIONS if shares > threads else LEAST_OPERATIONS
        if shares * least <= operations:
            break
        shares = max(2, shares // 2)
    return shares
