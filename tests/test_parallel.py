"""Slices of a batch in threads: the same results, in order, and no memory shared between threads."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from npgait import parallel
from npgait.parallel import (
    LARGE,
    WORTH_THREADS,
    by_sample,
    in_threads,
    scratch,
    stretches,
)
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture

SLICES = [slice(i, i + 3) for i in range(0, 30, 3)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_come_in_the_order_of_the_slices_whatever_the_threads(threads):
    x = np.arange(30)
    with threadpool_limits(threads, user_api="blas"):
        parts = in_threads(lambda part: x[part].sum(), SLICES, x)
    assert parts == [x[part].sum() for part in SLICES]


def test_blas_has_its_threads_back_when_slices_fail():
    def fail(part):
        raise ZeroDivisionError

    before = [library["num_threads"] for library in threadpool_info()]
    with pytest.raises(ZeroDivisionError):
        in_threads(fail, SLICES, np.zeros(30))
    assert [library["num_threads"] for library in threadpool_info()] == before


def test_the_calling_thread_takes_parts_as_well():
    def work(part):
        time.sleep(0.002)
        return threading.current_thread()

    with threadpool_limits(2, user_api="blas"):
        threads = in_threads(work, list(range(20)), np.zeros(1))
    assert threading.current_thread() in threads
    assert len(set(threads)) == 2


def test_no_more_threads_are_woken_than_there_are_parts(monkeypatch):
    woken = []

    class Pool:
        def submit(self, work):
            woken.append(work)
            return Future()

    monkeypatch.setattr(parallel, "thread_count", lambda: 64)
    monkeypatch.setattr(parallel, "_pool", lambda process, threads: Pool())
    assert in_threads(lambda part: 2 * part, [1, 2, 3], np.zeros(1)) == [2, 4, 6]
    assert len(woken) == 2


def test_work_on_a_device_is_asked_for_by_one_thread(fake_gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(parallel, "thread_count", lambda: pytest.fail("BLAS has no part in it"))
    threads = in_threads(lambda part: threading.current_thread(), SLICES, fake_gpu.xp.zeros(30))
    assert threads == [threading.current_thread()] * len(SLICES)


def test_nothing_more_is_begun_once_a_part_has_failed():
    begun = []

    def work(part):
        begun.append(part)
        time.sleep(0.002)
        if part == 3:
            raise ZeroDivisionError

    with threadpool_limits(2, user_api="blas"), pytest.raises(ZeroDivisionError):
        in_threads(work, list(range(1000)), np.zeros(1))
    assert 4 <= len(begun) < 20


@pytest.mark.parametrize("shape", [(3, WORTH_THREADS), (WORTH_THREADS,), (7, 5), (0, 3), (1, 2)])
def test_stretches_cover_an_array_once(shape):
    x = np.zeros(shape, np.int8)
    parts = stretches(x)
    for part in parts:
        x[part] += 1
    assert (x == 1).all()
    assert (len(parts) > 1) == (x.size >= WORTH_THREADS)


@pytest.mark.parametrize(("threads", "parts"), [(1, 4), (2, 4), (6, 6), (64, 8)])
def test_stretches_are_as_many_as_threads_where_that_leaves_each_enough(threads, parts, monkeypatch):
    monkeypatch.setattr(parallel, "thread_count", lambda: threads)
    x = np.zeros((64, WORTH_THREADS // 32), np.int8)
    assert len(stretches(x)) == parts


def test_a_limit_that_a_user_sets_is_kept():
    names = set()
    with threadpool_limits(1, user_api="blas"):
        in_threads(lambda part: names.add(threading.current_thread().name), SLICES, np.zeros(30))
    assert names == {threading.current_thread().name}


def test_scratch_memory_is_the_threads_own_and_as_large_as_asked():
    first = scratch(100, np.dtype(np.float32), np.zeros(1))
    assert (first.size, first.dtype) == (100, np.float32)
    assert scratch(10, np.dtype(np.float64), np.zeros(1)).size == 10
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch(100, first.dtype, first)))
    thread.start()
    thread.join()
    assert not np.shares_memory(first, others[0])


@pytest.mark.parametrize("shape", [(5, 3), (7, LARGE // 6), (1, LARGE), (2 * LARGE, 1), (0, 4)])
def test_elementwise_work_is_the_same_however_it_is_shared_out(shape, dtype, rng):
    x, y = rng.standard_normal((2, *shape)).astype(dtype)
    s = rng.standard_normal((len(x), 1)).astype(dtype)
    got = by_sample(lambda x, y, s, c: x * y - s * c, x, y, s, 2.0)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, x * y - s * 2.0)
    whole = (10 * x).astype(int)
    np.testing.assert_array_equal(by_sample(lambda x, y: x * y, whole, y), whole * y)
    for one in (np.array(2.0, dtype), np.array([[2.0]], dtype)):  # for all samples
        np.testing.assert_array_equal(by_sample(lambda x, c: x * c, x, one), x * 2.0)


def test_one_thread_at_a_time_limits_blas_whose_threads_are_those_of_a_process(monkeypatch):
    """A second would take the limit of the first for what BLAS had before, and leave it there."""
    limits = []

    class Controller:
        @contextlib.contextmanager
        def limit(self, **limit):
            limits.append(threading.current_thread())
            yield

    monkeypatch.setattr(parallel, "thread_count", lambda: 2)
    monkeypatch.setattr(parallel, "controller", Controller)
    inside, done = threading.Event(), threading.Event()

    def wait(part):
        inside.set()
        return done.wait(10)

    def share_out():
        assert inside.wait(10)
        results.extend(in_threads(lambda part: part, range(4), np.zeros(1)))
        done.set()

    results: list[int] = []
    other = threading.Thread(target=share_out)
    other.start()
    assert all(in_threads(wait, range(4), np.zeros(1)))
    other.join()
    assert results == [0, 1, 2, 3]
    assert limits == [threading.main_thread()]
    assert in_threads(lambda part: part, range(4), np.zeros(1)) == results
    assert len(limits) == 2
