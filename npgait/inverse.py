"""The product with W^-1: by LU or QR, or near orthogonality by matrix products alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from npgait.backend import Array, array_module, precision_of, to_host
from npgait.orthogonality import gram
from npgait.plans import Plan, Plans, follow, note
from npgait.series import (
    TRUSTED,
    fixed_refinement,
    fixed_series,
    least_norm,
    refined,
    relative_residual,
    series,
)


class SingularWeightsError(ArithmeticError):
    """A weight matrix that has to be inverted has no inverse (to the precision of its dtype)."""


class ErrorsNotFiniteError(ArithmeticError):
    """The errors that reach a layer are not finite, or too large to be squared."""


# Relative error allowed in d W^-1: well under what one training step can resolve in that precision.
DEFAULT_TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "tf32": 1e-3}
METHODS = ("auto", "series", "lu")


@dataclass
class SolveReport:
    """How one product with W^-1 was made."""

    method: str  # "series", "refinement", "lu", "qr" or "normal" (equations of a tall W)
    terms: int  # powers of R that were added, or corrections; 0 for those that solve
    residual: float  # ||z W - d|| / ||d||, measured


@dataclass
class InverseSolver:
    """The product z = d W^-1, by LU or by matrix products alone.

    Where the rows of W are nearly orthogonal to each other, of whatever lengths,
    W^-1 = W^T D^-1 (I + R + R^2 + ...), R = I - W W^T D^-1, D = diag(W W^T). Where W W^T is at hand (the
    regulariser needs it anyway) the series is summed term by term; elsewhere z is refined,
    z <- z + r W^T D^-1 with r = d - z W, at twice the operations of a term. Either ends when what is
    left is below the tolerance. LU is the reference, and what is fallen back to where these do not
    converge or take more operations.

    A tall W (n, m), n > m, is that of a layer with n - m implicit auxiliary units, orthonormal and
    orthogonal to the others: the first m rows of the inverse then are the pseudo-inverse
    (W^T W)^-1 W^T, the series is summed with R = I - W^T W D^-1, D = diag(W^T W), and QR is the
    reference. Where the series does not converge the normal equations are solved, a tenth of QR's time,
    and QR comes in where they lose too many digits.

    Parameters
    ----------
    tolerance : float, optional
        Relative error allowed in z. Default: 1e-5 in float32, 1e-12 in float64. Of TF32 products, with
        factors of 10 bits, no less than 1e-3 can be asked. Where what is left is measured (the normal
        equations, a series that need not converge) ten times as much will do. The series takes it from
        how its terms shrink: where d hardly holds the one direction in which W is far from orthogonal, z
        may be less exact.
    method : {"auto", "series", "lu"}
        "series" forms W W^T itself where it is not given, and still falls back to LU where the
        series does not converge.
    reports : list of SolveReport, optional
        Where given, each product appends how it was made and its measured residual (one more
        product, so for measured steps only).
    plans : dict
        On a GPU: how the product was last made with each W, with W W^T and without. It is made so
        again for a while, without a look at the result; see `plans`.

    Raises
    ------
    ValueError
        If the method is unknown, or the tolerance does not lie between 0 and 1.
    """

    tolerance: float | None = None
    method: str = "auto"
    reports: list[SolveReport] | None = field(default=None, repr=False)
    plans: Plans = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown; use one of {', '.join(METHODS)}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; expected a number between 0 and 1")

    def __call__(self, d: Array, W: Array, G: Array | None = None, *, name: str = "W") -> Array:
        """Return z = d W^-1[:u].

        Parameters
        ----------
        d : array (B, u)
            The first u of n columns; the rest (auxiliary units) are zero and are not computed.
        W : array (n, n) or (n, m), n > m
            Weights of a square layer, or of one with implicit auxiliary units (u = m).
        G : array, optional
            W W^T, or W^T W for a tall W, if it is at hand.
        name : str
            What an error calls W.

        Returns
        -------
        array (B, n)

        Raises
        ------
        ValueError
            If W has fewer rows than columns.
        SingularWeightsError
            If W has no inverse to the precision of its dtype, or is not finite.
        ErrorsNotFiniteError
            If d is not finite, or so large that its norm is not.
        """
        n, m = W.shape
        check_inverse(name, n >= m, W.shape)
        product = id(W), G is None
        plan = follow(self.plans, product)
        if plan is not None:
            return self._as_planned(plan, d, W, G)
        lift = _lift(d)
        d = d if lift is None else d * lift
        tolerance = self._tolerance(W)
        direct = "lu" if n == m else "qr"
        z, method, terms = None, direct, 0
        most = self._terms_that_pay(d, n)
        if self.method == "series" or (self.method == "auto" and G is not None):
            z, terms = series(d, W, gram(W) if G is None else G, tolerance, most)
            method = direct if z is None else "series"
        elif self.method == "auto":
            z, terms = refined(d, W, tolerance, most // 2)
            method = direct if z is None else "refinement"
        if z is None and direct == "qr" and self.method != "lu":
            z = _normal_equations(d, W, gram(W) if G is None else G, tolerance)
            method, terms = direct if z is None else "normal", 0
        if z is None:
            z, terms = _direct(d, W, name), 0
        if self.reports is not None:
            self.reports.append(SolveReport(method, terms, relative_residual(z, d, W)))
        elif array_module(d) is not np:
            note(self.plans, product, method, terms, W=W)
        return z if lift is None else z / lift

    def fresh(self, reports: list[SolveReport] | None = None) -> InverseSolver:
        """Return a solver that makes products as this one does, with plans and reports of its own."""
        return InverseSolver(self.tolerance, self.method, reports)

    def _tolerance(self, W: Array) -> float:
        """Return the relative error allowed in z, none that products of this precision cannot reach."""
        precision = precision_of(W)
        least = DEFAULT_TOLERANCE["tf32"] if precision == "tf32" else 0.0
        return max(self.tolerance or DEFAULT_TOLERANCE[precision], least)

    def _as_planned(self, plan: Plan, d: Array, W: Array, G: Array | None) -> Array:
        """Return z, made as it was last made with this W."""
        if plan.method == "series":
            return fixed_series(d, W, gram(W) if G is None else G, plan.terms)
        return fixed_refinement(d, W, plan.terms)

    def _terms_that_pay(self, d: Array, n: int) -> int:
        """Return how many terms cost less than LU.

        A term costs 2 B n^2 operations (a refinement two such). LU costs 2/3 n^3, at about a third of
        the speed of a matrix product (so 2 n^3), 2 B n^2 for the two triangular solves, at half of it,
        and 2 B n^2 to see whether W was singular.
        """
        if self.method == "series":
            return 1000
        rows = d.size // d.shape[-1]
        return 3 + n // max(rows, 1)


def check_inverse(name: str, has_inverse: bool, shape: tuple[int, ...]) -> None:
    """Raise a ValueError where a layer was not made to have an inverse."""
    if not has_inverse:
        raise ValueError(
            f"{name} has shape {shape} and no inverse; GAIT-prop, TP and ITP need every layer but the "
            "first square (add auxiliary units, stored or implicit)"
        )


def _lift(d: Array) -> Array | None:
    """Return the power of two (0-d) that errors are multiplied by so that no square of them underflows.

    Where none does: None, or 1 on a GPU, which is not waited for. There errors of float32 below 2^-126
    are 0: CuPy has all kernels compiled with -ftz=true.
    """
    xp = array_module(d)
    small = xp.linalg.norm(d) < least_norm(d.dtype)
    if d.size == 0 or (xp is np and not small):
        return None
    largest = xp.abs(d).max()
    highest = int(np.finfo(d.dtype).maxexp) - 8  # the power itself has to be finite
    exponent = xp.minimum(-xp.frexp(largest)[1], highest)
    return xp.where(small & (largest > 0), xp.ldexp(xp.ones_like(largest), exponent), 1).astype(d.dtype)


def _normal_equations(d: Array, W: Array, G: Array, tolerance: float) -> Array | None:
    """Return z = d (W^T W)^-1 W^T, G = W^T W, or None where the square of W's condition is too much."""
    xp = array_module(W)
    try:
        z = xp.linalg.solve(G, d.reshape(-1, len(G)).T).T @ W.T
    except np.linalg.LinAlgError:
        return None
    z = z.reshape(*d.shape[:-1], len(W))
    return z if relative_residual(z, d, W) <= TRUSTED * tolerance else None


def _direct(d: Array, W: Array, name: str) -> Array:
    """Return z with z W = d: by LU with partial pivoting, or the shortest one by QR of a tall W."""
    xp = array_module(W)
    u = d.shape[-1]
    rows = d.reshape(-1, u)
    padded = rows
    if u < W.shape[1]:
        padded = xp.zeros((len(rows), len(W)), dtype=d.dtype)
        padded[:, :u] = rows
    try:
        if W.shape[0] == W.shape[1]:
            z = xp.ascontiguousarray(xp.linalg.solve(W.T, padded.T).T)
        else:
            Q, upper = xp.linalg.qr(W)
            z = xp.linalg.solve(upper.T, rows.T).T @ Q.T
    except np.linalg.LinAlgError:
        raise _singular(W, name) from None
    # LU of a singular matrix rarely meets an exact zero; what it returns then solves nothing.
    if not relative_residual(z, rows, W) < 0.01:
        if not np.isfinite(float(xp.linalg.norm(rows))):
            raise ErrorsNotFiniteError(
                f"the errors that reach {name} are not finite, or overflow; look at gamma, the slope of "
                "the activation and the distance of the weights from orthogonality"
            )
        raise _singular(W, name)
    return z.reshape(*d.shape[:-1], len(W))


def _singular(W: Array, name: str) -> SingularWeightsError:
    W = to_host(W)
    if not np.isfinite(W).all():
        return SingularWeightsError(f"the weights of {name} are not finite; lower the learning rate")
    return SingularWeightsError(
        f"the weights of {name} have no inverse: condition number {np.linalg.cond(W):.1e} in "
        f"{W.dtype}; raise ortho_strength or lower the learning rate"
    )
