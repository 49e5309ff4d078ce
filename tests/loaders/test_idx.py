"""MNIST's format: the real files, made ones, and damaged ones."""

from __future__ import annotations

import gzip
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.loaders import DataError, load
from npgait.loaders.idx import read_idx


def idx(array, *, kind=8):
    header = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_set(folder, *, zipped=True, dotted=False, value=0, train=12, test=7):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", train), ("t10k", test)):
        for what, array in (
            ("images-idx3", np.full((n, 4, 5), value)),
            ("labels-idx1", np.arange(n) % 10),
        ):
            name = f"{stem}-{what}-ubyte"
            name = name.replace("-idx", ".idx") if dotted else name
            raw = idx(array)
            path = folder / (name + (".gz" if zipped else ""))
            path.write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize(("name", "first"), [("mnist", 5), ("fashion-mnist", 9)])
def test_the_real_sets_are_read(name, first, shared_data):
    data = load(name, shared_data)
    assert data.train_x.shape == (60000, 28, 28)
    assert data.test_x.shape == (10000, 28, 28)
    assert data.train_labels[0] == first
    assert np.bincount(data.train_labels).min() > 5000
    assert np.bincount(data.test_labels).min() > 800
    assert len(data.classes) == 10
    assert load(name, shared_data / name).digest() == data.digest()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
@pytest.mark.parametrize("sub", ["", "kmnist", "KMNIST", "KMNIST/raw"])
def test_files_are_found_in_every_customary_spelling_and_place(zipped, dotted, sub, tmp_path):
    write_set(tmp_path / sub, zipped=zipped, dotted=dotted, value=9)
    data = load("kmnist", tmp_path)
    assert data.train_x.shape == (12, 4, 5)
    assert (data.test_x == 9).all()


def test_a_folder_that_is_called_as_a_file_is_passed_over(tmp_path):
    write_set(tmp_path, value=3)
    for path in list(tmp_path.iterdir()):
        path.with_suffix("").mkdir()
    assert (load("mnist", tmp_path).test_x == 3).all()


def test_a_folder_of_the_set_s_own_name_wins_over_files_of_another_set(tmp_path):
    write_set(tmp_path, value=1)
    write_set(tmp_path / "fashion-mnist", value=2)
    assert load("fashion-mnist", tmp_path).train_x.max() == 2
    assert load("mnist", tmp_path).train_x.max() == 1


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    zipped=st.booleans(),
    seed=st.integers(0, 9),
)
def test_what_is_written_reads_back_equal(shape, zipped, seed, tmp_path_factory):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "f"
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncation_anywhere_is_noticed(zipped, tmp_path):
    raw = idx(np.arange(60).reshape(3, 4, 5))
    raw = gzip.compress(raw) if zipped else raw
    path = tmp_path / "f"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(DataError, match="f"):
            read_idx(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\1\x08\1\0\0\0\1x", "not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\1xxxx", "type 13"),
        (b"\0\0\x08\0", "0 axes"),
        (b"\0\0\x08\x05" + b"\0\0\0\1" * 5 + b"x", "5 axes"),
        (b"\0\0\x08\2\0\0\0\1", "promises shape"),
        (b"\0\0\x08\1\0\0\0\0", "promises shape"),
        (b"\0\0\x08\3" + b"\xff" * 12, "promises shape"),
        (b"\0\0\x08\1\0\0\0\2x", "only 1"),
        (b"\0\0\x08\1\0\0\0\1xy", "more"),
    ],
)
def test_damaged_headers_and_lengths_are_one_clear_line(raw, message, tmp_path):
    for content in (raw, gzip.compress(raw)):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_idx(tmp_path / "f")
        assert "\n" not in str(caught.value)


def test_a_zip_bomb_is_never_unpacked(tmp_path):
    bomb = gzip.compress(idx(np.zeros(10)) + bytes(300_000_000), compresslevel=1)
    (tmp_path / "f").write_bytes(bomb)
    started = time.process_time()
    with pytest.raises(DataError, match="more"):
        read_idx(tmp_path / "f")
    assert time.process_time() - started < 0.2


@given(raw=st.binary(max_size=100), zipped=st.booleans())
def test_no_bytes_escape_as_another_error(raw, zipped, tmp_path_factory):
    path = tmp_path_factory.mktemp("idx") / "f"
    path.write_bytes(gzip.compress(raw) if zipped else b"\x1f\x8b" + raw)
    with pytest.raises(DataError):
        read_idx(path)


def test_images_and_labels_that_do_not_match_are_refused(tmp_path):
    write_set(tmp_path, train=12)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(11))))
    with pytest.raises(DataError, match="12 images and 11 labels"):
        load("mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(12, 10))))
    with pytest.raises(DataError, match=r"10\.\.10; expected 0\.\.9"):
        load("mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((12, 1)))))
    with pytest.raises(DataError, match="2 axes"):
        load("mnist", tmp_path)


def test_one_missing_file_is_named(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("end", range(1, 9))
def test_a_wrong_checksum_or_length_of_the_archive_is_noticed(end, tmp_path):
    raw = bytearray(gzip.compress(idx(np.arange(60))))
    raw[-end] ^= 1
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "f")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(1 << 30,), (1 << 10,) * 3, ((1 << 32) - 1,) * 4])
def test_a_header_that_promises_too_much_takes_no_memory(shape, zipped, tmp_path):
    raw = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"few"
    (tmp_path / "f").write_bytes(gzip.compress(raw) if zipped else raw)
    tracemalloc.start()
    with pytest.raises(DataError, match="its header promises"):
        read_idx(tmp_path / "f")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_highly_compressed_file_is_still_read_whole(tmp_path):
    (tmp_path / "f").write_bytes(gzip.compress(idx(np.zeros((5000, 28, 28)))))
    assert read_idx(tmp_path / "f").shape == (5000, 28, 28)


def test_a_path_that_is_no_readable_file_is_a_clear_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="it is not in"):
        load("mnist", tmp_path / "file")
    with pytest.raises(DataError, match="cannot be looked into"):
        load("mnist", tmp_path / ("x" * 300))


@given(raw=st.binary(max_size=200))
def test_no_bytes_after_a_good_start_escape_as_another_error(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("idx") / "f"
    good = idx(np.arange(6).reshape(2, 3))
    for content in (good[:4] + raw, gzip.compress(good)[:12] + raw):
        path.write_bytes(content)
        try:
            result = read_idx(path)
        except DataError:
            continue
        assert result.dtype == np.uint8
