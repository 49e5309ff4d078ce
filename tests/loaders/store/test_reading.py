"""Batches out of a store: which, in what order, and never a deadlock."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.backend import CPU
from npgait.data import Preparation, Scaling
from npgait.loaders import DataError, load
from npgait.loaders.batches import sources
from npgait.loaders.store import Settings, find_listings, open_store, prepare
from npgait.loaders.store.listing import ArrayListing
from npgait.loaders.store.reader import block_shuffle, read_images
from npgait.loaders.stored import StoredData, StoredDataset
from npgait.streams import random_streams

N, SHAPE = 500, (6, 5, 3)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(8).integers(0, 256, (N, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("store") / "x.h5"
    names = [str(i) for i in range(N)]
    listing = ArrayListing("mine", "train", names, np.arange(N) % 7, tuple("abcdefg"), pixels)
    prepare(listing, path, Settings(shuffled=False))
    return open_store(path)


def test_runs_longer_than_the_set_are_the_set():
    for n in (1, 2, 7):
        whole = block_shuffle(n, n, np.random.default_rng(3))
        np.testing.assert_array_equal(block_shuffle(n, 10**20, np.random.default_rng(3)), whole)
        assert sorted(whole) == list(range(n))


@given(n=st.integers(1, 300), block=st.integers(1, 70), seed=st.integers(0, 99))
def test_a_block_shuffle_holds_each_image_once_and_mostly_in_runs(n, block, seed):
    order = block_shuffle(n, block, np.random.default_rng(seed))
    assert sorted(order) == list(range(n))
    runs = 1 + np.count_nonzero(np.diff(order) != 1)
    if block > 1:
        assert runs <= n // block + 2


def test_neighbours_are_not_the_same_in_every_epoch():
    orders = [block_shuffle(1000, 32, np.random.default_rng(seed)) for seed in range(40)]
    ends = [order[:-1][np.diff(order) != 1] for order in orders]
    assert len(set((np.concatenate(ends) % 32).tolist())) > 8


@given(
    numbers=st.lists(st.integers(0, N - 1), min_size=1, max_size=600),
    size=st.integers(1, 600),
    threads=st.integers(1, 5),
    ahead=st.integers(1, 4),
)
def test_batches_hold_the_images_asked_for_in_that_order(store, pixels, numbers, size, threads, ahead):
    batches = [np.array(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    read = [x.copy() for x in read_images(store, batches, threads=threads, ahead=ahead)]
    assert len(read) == len(batches)
    for x, batch in zip(read, batches, strict=True):
        np.testing.assert_array_equal(x, pixels[batch])


def test_a_store_of_one_image_of_one_class_is_a_store(pixels, tmp_path):
    listing = ArrayListing("mine", "train", ["0"], np.zeros(1, np.int64), ("a",), pixels[:1])
    prepare(listing, tmp_path / "x.h5", Settings())
    (x,) = read_images(open_store(tmp_path / "x.h5"), [np.arange(1)])
    np.testing.assert_array_equal(x, pixels[:1])


def test_long_runs_are_read_whole(store, pixels, monkeypatch):
    whole, buffers = os.preadv, []  # of each call
    monkeypatch.setattr("npgait.loaders.store.reader.MAX_VECTOR", 7)
    monkeypatch.setattr(os, "preadv", lambda *args: buffers.append(len(args[1])) or whole(*args))
    (x,) = read_images(store, [np.arange(N)], threads=2)
    assert (max(buffers), sum(buffers)) == (7, N)
    np.testing.assert_array_equal(x, pixels)


def test_reads_that_the_system_cuts_short_are_finished(store, pixels, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, at: whole(fd, [memoryview(buffers[0])[:37]], at)
    )
    (x,) = read_images(store, [np.arange(40, 80)], threads=2)
    np.testing.assert_array_equal(x, pixels[40:80])


def data_of(store, **options):
    prepare = Preparation(Scaling(), np.dtype("float32"), CPU, SHAPE, **options)
    return StoredData(store, prepare, block=8)


def epoch(data, seed, start=0, batch_size=64):
    batches = data.shuffled(batch_size, random_streams(seed), start=start)
    return [(x.copy(), labels.copy()) for x, labels in batches]


@pytest.mark.parametrize("augmentation", ["none", "crop", "resized"])
def test_an_epoch_taken_up_at_any_batch_gives_the_batches_it_would_have_given(store, augmentation):
    data = data_of(store, augmentation=augmentation)
    whole = epoch(data, 3)
    assert len(whole) == -(-N // 64)
    for start in range(len(whole) + 1):
        rest = epoch(data, 3, start)
        assert len(rest) == len(whole) - start
        for (x, labels), (x_whole, labels_whole) in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(x, x_whole)
            np.testing.assert_array_equal(labels, labels_whole)


def test_an_epoch_taken_up_after_its_last_batch_is_over_at_once(store):
    n = len(epoch(data_of(store), 3))
    fresh = data_of(store)  # as in a process that has just been started: no buffers are kept yet
    assert epoch(fresh, 3, n) == []
    assert len(epoch(fresh, 4)) == n


@pytest.mark.parametrize("number", [-1, N, 10**12])
def test_an_image_that_the_store_does_not_have_is_refused(number, store):
    with pytest.raises(IndexError, match=rf"image {number} was asked for; the store has {N} images"):
        list(read_images(store, [np.arange(3), np.array([1, number, 2])]))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint64])
def test_numbers_of_any_integer_dtype_mean_the_same_images(dtype, store, pixels):
    (got,) = read_images(store, [np.array([499, 365, 3], dtype)])  # whose places pass 15 bits
    np.testing.assert_array_equal(got, pixels[[499, 365, 3]])


def test_a_batch_of_no_images_is_empty(store):
    assert [len(x) for x in read_images(store, [np.arange(2), np.arange(0)])] == [2, 0]
    assert [len(x) for x in read_images(store, [np.arange(0)])] == [0]


def test_two_seeds_give_two_orders_and_evaluation_none(store, pixels):
    data = data_of(store, augmentation="crop")
    assert any((a[1] != b[1]).any() for a, b in zip(epoch(data, 1), epoch(data, 2), strict=True))
    x = np.concatenate([x for x, _ in data.batches(33)])
    np.testing.assert_array_equal(x, pixels)


def test_skipped_images_are_never_given_out(tree, tmp_path):
    (tree / "n00000001" / "bad.JPEG").write_bytes(b"bad")
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24))
    dataset = load("imagenet", tmp_path / "x.h5")
    train, test = sources(dataset, shape=(20, 20, 3), dtype=np.dtype("float32"), device=CPU)
    assert (len(train), test) == (21, None)
    x, labels = (np.concatenate(parts) for parts in zip(*train.batches(4), strict=True))
    assert np.bincount(labels).tolist() == [7, 7, 7]
    assert x.shape == (21, 20, 20, 3)
    assert x.reshape(21, -1).any(axis=1).all()


@pytest.mark.parametrize("kind", ["jpeg", "original"])
def test_encoded_stores_give_the_images_of_a_raw_one(kind, tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    for name in ("raw", kind):
        prepare(listing, tmp_path / f"{name}.h5", Settings(24, name, quality=95))
    raw, own = (
        next(iter(read_images(open_store(tmp_path / f"{name}.h5"), [np.arange(21)]))).astype(int)
        for name in ("raw", kind)
    )
    assert np.abs(raw - own).mean() < (6 if kind == "jpeg" else 1e-9)


def test_decoding_in_threads_leaves_the_warnings_of_the_process_alone(tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24, "jpeg"))
    before = list(warnings.filters)
    for _ in read_images(open_store(tmp_path / "x.h5"), [np.arange(21)] * 100, threads=4):
        assert warnings.filters == before


def test_a_store_trains_as_the_arrays_that_it_was_made_of(store, pixels):
    """The same order, the same scaling, the same batches."""
    from npgait.data import array_data, scaling_of

    scaling = scaling_of(pixels, "standard")
    arrays = array_data(pixels, np.arange(N) % 7, shape=SHAPE, scaling=scaling)
    dataset = StoredDataset("mine", store, None)
    stored, _ = sources(
        dataset,
        shape=SHAPE,
        dtype=np.dtype("float32"),
        device=CPU,
        normalisation="standard",
        block=1,
    )
    for (x, labels), (x_own, own) in zip(
        stored.shuffled(50, random_streams(4)), arrays.shuffled(50, random_streams(4)), strict=True
    ):
        np.testing.assert_array_equal(labels, own)
        np.testing.assert_allclose(x, x_own, rtol=1e-5, atol=1e-6)


def test_a_reader_that_is_dropped_early_leaves_no_thread(store):
    before = threading.active_count()
    for _ in range(20):
        reader = read_images(store, [np.arange(50)] * 50, threads=3)
        next(reader)
        reader.close()
    assert threading.active_count() == before


def test_the_next_epoch_is_read_into_the_memory_of_the_last(store, pixels):
    kept = []
    for size, same in ((9, False), (9, True), (5, True), (20, False)):
        before = list(kept)
        for x in read_images(store, [np.arange(size)] * 4, ahead=2, buffers=kept):
            np.testing.assert_array_equal(x, pixels[:size])
        assert len(kept) == 3
        assert ({*map(id, kept)} == {*map(id, before)}) == same


def test_an_error_while_reading_reaches_the_consumer(store, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output"):
        list(read_images(store, [np.arange(5)]))


def test_a_system_without_reads_at_a_place_is_told_what_to_use(store, tmp_path, monkeypatch, pixels):
    listing = ArrayListing("mine", "train", ["a"], np.zeros(1, int), ("c",), pixels[:1])
    monkeypatch.delattr(os, "preadv")  # as on Windows
    for use in (
        lambda: list(read_images(store, [np.arange(5)])),
        lambda: prepare(listing, tmp_path / "y.h5"),
    ):
        with pytest.raises(DataError, match=r"this system.*use Linux, WSL or macOS"):
            use()
    assert not list(tmp_path.iterdir())


def _sum_in_child(store, queue):
    total = sum(int(x.sum()) for x in read_images(store, [np.arange(N)] * 3, threads=2))
    queue.put(total)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_readers_in_several_processes_share_one_file(method, store, pixels):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    own = read_images(store, [np.arange(N)] * 9, threads=2)
    next(own)  # threads are running while the children are made
    children = [context.Process(target=_sum_in_child, args=(store, queue)) for _ in range(3)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [3 * int(pixels.sum())] * 3
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert sum(1 for _ in own) == 8


def _go_on_in_child(reader, queue):
    try:
        next(reader)
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_that_goes_on_with_its_parents_reader_is_told(store):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    reader = read_images(store, [np.arange(N)] * 9, threads=2)
    next(reader)
    child = context.Process(target=_go_on_in_child, args=(reader, queue))
    child.start()
    assert "after a fork, ask for them anew" in queue.get(timeout=30)
    child.join(30)
    assert sum(1 for _ in reader) == 8


def test_readers_in_several_threads_do_not_disturb_each_other(store, pixels):
    data = data_of(store)
    results = {}

    def work(k):
        results[k] = [x.copy() for x, _ in data.batches(60)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for k in range(4):
        np.testing.assert_array_equal(np.concatenate(results[k]), pixels)


def test_training_and_validation_have_to_fit(store, tmp_path, pixels):
    names = [str(i) for i in range(10)]
    for classes, x in ((("x", "y"), pixels[:10]), (tuple("abcdefg"), pixels[:10, :4])):
        listing = ArrayListing("mine", "val", names, np.zeros(10, int), classes, x)
        path = tmp_path / f"{len(classes)}.h5"
        prepare(listing, path, Settings())
        with pytest.raises(DataError, match="convert both"):
            StoredDataset("mine", store, open_store(path))


def test_the_digest_of_a_data_set_is_that_of_training_and_validation(store, tmp_path, pixels):
    digests = {StoredDataset("mine", store, None).digest()}
    for n in (10, 11):
        names = [str(i) for i in range(n)]
        listing = ArrayListing("mine", "val", names, np.zeros(n, int), tuple("abcdefg"), pixels[:n])
        prepare(listing, tmp_path / f"{n}.h5", Settings())
        digests.add(StoredDataset("mine", store, open_store(tmp_path / f"{n}.h5")).digest())
    assert len(digests) == 3


def test_images_smaller_than_the_network_takes_are_refused(store):
    with pytest.raises(DataError, match="set image_size=6"):
        sources(
            StoredDataset("mine", store, None), shape=(9, 9, 3), dtype=np.dtype("float32"), device=CPU
        )
