"""The product with W^-1 by matrix products alone: how many, how accurate, where LU takes over."""

from __future__ import annotations

import numpy as np
import pytest

from npgait import blas, inverse, series
from npgait.backend import to_host
from npgait.initialisation import orthogonal
from npgait.inverse import DEFAULT_TOLERANCE, InverseSolver, SingularWeightsError
from npgait.orthogonality import gram
from tests.support import near_orthogonal, relative


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
def test_the_series_stops_at_the_tolerance_it_is_asked_for(tolerance, rng):
    W = near_orthogonal(rng, 200, 0.02)
    d = rng.standard_normal((10, 200))
    reports = []
    z = InverseSolver(tolerance, reports=reports)(d, W, gram(W))
    error = relative(z, np.linalg.solve(W.T, d.T).T)
    assert reports[0].method == "series"
    assert reports[0].residual == pytest.approx(np.linalg.norm(z @ W - d) / np.linalg.norm(d))
    assert error <= tolerance * 1.5
    assert reports[0].terms <= np.ceil(np.log(tolerance) / np.log(0.05)) + 1


def test_orthogonal_weights_take_no_term_at_all(rng):
    W = orthogonal(rng, 64, 64)
    reports = []
    InverseSolver(reports=reports)(rng.standard_normal((5, 64)), W, gram(W))
    assert (reports[0].method, reports[0].terms) == ("series", 0)


@pytest.mark.parametrize(("away", "batch"), [(0.6, 4), (3.0, 4), (0.1, 1000)])
def test_lu_takes_over_where_the_series_diverges_or_does_not_pay(away, batch, rng):
    W = near_orthogonal(rng, 50, away)
    reports = []
    InverseSolver(reports=reports)(rng.standard_normal((batch, 50)), W, gram(W))
    assert (reports[0].method, reports[0].terms) == ("lu", 0)
    assert reports[0].residual < 1e-10


def test_without_the_gram_matrix_near_orthogonal_weights_are_refined(dtype, device, rng):
    W = near_orthogonal(rng, 200, 0.02, dtype) * dtype.type(3.7)  # up to any factor
    for u in (200, 7):
        d = rng.standard_normal((2, 3, u)).astype(dtype)
        reports = []
        W_, d_ = device.xp.asarray(W), device.xp.asarray(d)
        z = InverseSolver(reports=reports)(d_, W_)
        padded = np.zeros((6, 200))
        padded[:, :u] = d.reshape(6, u)
        expected = np.linalg.solve(W.T.astype(np.float64), padded.T).T.reshape(2, 3, 200)
        assert reports[0].method == "refinement"
        assert relative(to_host(z), expected) < 2 * DEFAULT_TOLERANCE[str(dtype)]


@pytest.mark.parametrize(("away", "batch"), [(0.6, 4), (3.0, 4), (0.1, 1000)])
def test_without_the_gram_matrix_lu_is_taken_where_refinement_does_not_pay(away, batch, rng):
    reports = []
    W, d = near_orthogonal(rng, 50, away), rng.standard_normal((batch, 50))
    z = InverseSolver(reports=reports)(d, W)
    assert reports[0].method == "lu"
    assert relative(z @ W, d) < 1e-10


def test_the_series_knows_the_size_of_the_weights(rng):
    reports = []
    W = 0.3 * near_orthogonal(rng, 100, 0.02)
    d = rng.standard_normal((5, 100))
    z = InverseSolver(reports=reports)(d, W, gram(W))
    assert reports[0].method == "series"
    assert relative(z @ W, d) < 1e-11


@pytest.mark.parametrize("given_gram", [True, False])
@pytest.mark.parametrize("along", ["all rows alike", "the long rows"])
@pytest.mark.parametrize("shape", [(100, 100), (100, 60)])
def test_the_length_of_each_row_and_of_a_tall_matrix_each_column_is_known(
    shape, along, given_gram, device, dtype, rng
):
    """The regulariser of 2020 leaves lengths free: rows orthogonal to each other are enough."""
    n, m = shape
    lengths = np.geomspace(0.2, 5, m)
    W = near_orthogonal(rng, n, 0.01)[:, :m]
    W = (lengths[:, None] * W if n == m else lengths * W).astype(dtype)
    d = rng.standard_normal((7, m))
    d = (d if along == "all rows alike" else rng.standard_normal((7, n)) @ W).astype(dtype)
    W_, d_, reports = device.xp.asarray(W), device.xp.asarray(d), []
    z = to_host(InverseSolver(reports=reports)(d_, W_, gram(W_) if given_gram else None))
    assert reports[0].method == ("series" if given_gram else "refinement")
    assert reports[0].terms <= {"float32": 5, "float64": 9}[str(dtype)]
    expected = d.astype(np.float64) @ np.linalg.pinv(W.astype(np.float64))
    assert relative(z, expected) < 2 * DEFAULT_TOLERANCE[str(dtype)]


@pytest.mark.parametrize("used", [30, 20])
@pytest.mark.parametrize(("kind", "size"), [("float32", 1e-15), ("float64", 1e-85)])
def test_weights_so_small_that_squares_of_r_underflow_do_not_pass_for_orthogonal(kind, size, used, rng):
    W = near_orthogonal(rng, 30, 0.05)[:, :used]
    d = rng.standard_normal((7, used))
    small = (size * W).astype(kind)
    z = InverseSolver(method="series")(d.astype(kind), small, gram(small))
    assert relative(size * z.astype(np.float64), d @ np.linalg.pinv(W)) < 1e-4


@pytest.mark.parametrize("given_gram", [True, False])
def test_errors_along_short_rows_count_as_much_as_those_along_long_ones(given_gram, rng):
    """d - z W hardly shows them: where its share is 1e-12 that of z may be a thousand times as much."""
    W = np.geomspace(0.02, 20, 90)[:, None] * near_orthogonal(rng, 90, 0.02)
    z = rng.standard_normal((5, 90))
    got = InverseSolver()(z @ W, W, gram(W) if given_gram else None)
    assert relative(got, z) < 2 * DEFAULT_TOLERANCE["float64"]


@pytest.mark.parametrize("shape", [(60, 60), (60, 40)])
def test_what_no_row_reaches_is_seen_without_the_gram_matrix_too(shape, device, dtype, rng):
    """W orthogonal but for one direction, which corrections leave as it is."""
    n, m = shape
    Q = orthogonal(rng, m, m)
    W, d = orthogonal(rng, n, n)[:, :m] @ Q[:, 1:] @ Q[:, 1:].T, rng.standard_normal((5, m))
    W, d = (device.xp.asarray(a, dtype=dtype) for a in (W, d))
    with pytest.raises(SingularWeightsError, match="hidden3 have no inverse"):
        InverseSolver()(d, W, name="hidden3")


@pytest.mark.parametrize("given_gram", [True, False])
@pytest.mark.parametrize("shape", [(200, 200), (200, 150)])
def test_tf32_products_are_asked_for_what_they_can_reach(shape, given_gram, rng, monkeypatch):
    """Factors of 10 bits never come within 1e-5, and LU at every step would be the end of it."""
    W = np.ascontiguousarray(near_orthogonal(rng, 200, 0.02, "float32")[:, : shape[1]])
    d = rng.standard_normal((20, shape[1])).astype(np.float32)

    def of_ten_bits(x):
        return (x.view(np.int32) + 0x1000 & ~0x1FFF).view(np.float32)

    def gemm(alpha, A, B, C=None, **options):
        A, B = (of_ten_bits(np.ascontiguousarray(factor)) for factor in (A, B))
        return blas.gemm(alpha, A, B, C, **options)

    monkeypatch.setattr(series, "gemm", gemm)
    monkeypatch.setattr(inverse, "precision_of", lambda W: "tf32")
    for tolerance in (None, 1e-5):
        reports = []
        z = InverseSolver(tolerance, reports=reports)(d, W, gram(W) if given_gram else None)
        assert reports[0].method == ("series" if given_gram else "refinement")
        assert 1e-5 < relative(z @ W, d) < 3e-3
    monkeypatch.setattr(inverse, "precision_of", lambda W: "float32")
    if not given_gram:
        reports = []
        InverseSolver(1e-5, reports=reports)(d, W)
        assert reports[0].method != "refinement"


@pytest.mark.parametrize("away", [0.2, 0.3, 0.5])
def test_a_series_that_will_be_late_is_left_after_a_few_terms(away, rng, monkeypatch):
    W, terms = near_orthogonal(rng, 80, away), []
    times_R = series._times_R
    monkeypatch.setattr(series, "_times_R", lambda *given: terms.append(1) or times_R(*given))
    z, _ = series.series(rng.standard_normal((10, 80)), W, gram(W), 1e-5, 5)
    assert z is None
    assert len(terms) < 3
