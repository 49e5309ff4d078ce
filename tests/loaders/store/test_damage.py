"""Damaged, foreign and hostile stores: refused in one line, without a hang, a crash or much memory."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from npgait.loaders import DataError
from npgait.loaders.store import Settings, find_listings, heap, layout, open_store, prepare
from npgait.loaders.store.inspect import verify
from npgait.loaders.store.layout import preadv_whole
from npgait.loaders.store.reader import read_images
from tests.loaders.store.conftest import make_tree


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder with a store of pixels and one of JPEG, of the same images."""
    folder = tmp_path_factory.mktemp("stores")
    tree = make_tree(folder / "source", np.random.default_rng(20201117))
    (listing,) = find_listings("imagenet", tree)
    for store in ("raw", "jpeg"):
        prepare(listing, folder / f"{store}.h5", Settings(24, store))
    return folder


@pytest.fixture
def made(stores, tmp_path):
    return shutil.copy(stores / "raw.h5", tmp_path / "x.h5")


def test_every_damaged_image_is_found_and_named(made):
    store = open_store(made)
    with made.open("r+b") as file:
        for i in (3, 20):
            file.seek(store.place(i)[0] + 100)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 16]))
    found = [damage for _, some in verify(open_store(made)) for damage in some]
    assert [damage.number for damage in found] == [3, 20]
    assert found[0].source == store.head.sources[3].decode()


def test_too_little_memory_is_not_taken_for_damage(made, monkeypatch):
    def no_memory(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(layout, "_read_head", no_memory)
    with pytest.raises(MemoryError, match="9 GiB"):
        open_store(made)


OPEN_ALL = """
import sys, warnings
from pathlib import Path
from npgait.loaders import DataError
from npgait.loaders.store import open_store
from npgait.loaders.store.inspect import verify
for name in sys.argv[1:]:
    try:
        store = open_store(Path(name))
        print("opened", store.digest, sum(len(found) for _, found in verify(store)))
    except DataError as error:
        assert "\\n" not in str(error), error
        print("refused")
"""


def test_a_damaged_store_is_refused_or_says_the_same_as_before(made, tmp_path):
    store, chance = open_store(made), random.Random(5)
    names = []
    whole = made.read_bytes()
    for k in range(300):
        data = bytearray(whole)
        if k % 3 == 0:
            del data[chance.randrange(len(data)) :]
        elif k % 3 == 1:  # in the tables
            for _ in range(chance.randrange(1, 5)):
                data[chance.randrange(store.start)] ^= 1 << chance.randrange(8)
        else:
            first = chance.randrange(store.start)
            data[first : first + 30] = chance.randbytes(30)
        names.append(str(tmp_path / f"d{k}.h5"))
        (tmp_path / f"d{k}.h5").write_bytes(data)
    answers = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *names], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split("\n")[:-1]
    assert len(answers) == 300
    # Where it opens, the damage hit bytes that mean nothing, or those of an image: then they are found.
    opened = [answer.split() for answer in answers if answer != "refused"]
    assert all(digest == store.digest for _, digest, _ in opened)
    assert len(opened) < 150


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_no_byte_of_the_tables_can_make_a_store_hang_or_crash(store, tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24, store))
    whole, chance = (tmp_path / "x.h5").read_bytes(), random.Random(6)
    names = []
    for k in range(0, open_store(tmp_path / "x.h5").start, 7):
        data = bytearray(whole)
        data[k + chance.randrange(7)] ^= chance.randrange(1, 256)
        names.append(str(tmp_path / f"d{k}.h5"))
        (tmp_path / f"d{k}.h5").write_bytes(data)
    answers = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *names],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answers.returncode == 0, answers.stderr
    assert len(answers.stdout.splitlines()) == len(names)


def in_a_heap(path) -> bytes:
    """Write the texts of a store as the first npgait did: of variable length, in HDF5's heap."""
    with h5py.File(path, "r+") as file:
        for key, value in list(file.attrs.items()):
            if isinstance(value, bytes):
                file.attrs[key] = value.decode()
        assert isinstance(file.attrs["format"], str)
    return path.read_bytes()


def test_a_store_whose_texts_lie_in_a_heap_is_read_as_ever(made):
    before = open_store(made)
    assert in_a_heap(made).count(b"GCOL") == 1
    after = open_store(made)
    assert (after.head.made_by, after.digest) == (before.head.made_by, before.digest)


def test_a_damaged_heap_is_an_error_not_a_hang(made, monkeypatch):
    monkeypatch.setattr(heap, "SECONDS", 3.0)
    data = bytearray(in_a_heap(made))
    at = data.index(b"GCOL") + 16  # of its first object: number, references, 4 bytes, size
    data[at + 8 : at + 16] = (2**64 - 16).to_bytes(8, "little")
    made.write_bytes(data)
    with pytest.raises(DataError, match="a damaged image store"):
        open_store(made)


@pytest.mark.parametrize("kind", [h5py.vlen_dtype(np.int32), [("a", h5py.string_dtype()), ("b", "i4")]])
def test_an_attribute_that_is_neither_text_nor_numbers_is_not_read(kind, made):
    value = np.empty((), kind)
    value[()] = np.arange(7, dtype=np.int32) if value.dtype.kind == "O" else ("text", 1)
    with h5py.File(made, "r+") as file:
        del file.attrs["made_by"]
        file.attrs.create("made_by", value, shape=(), dtype=value.dtype)
    data = bytearray(made.read_bytes())
    at = data.index(b"GCOL") + 16
    data[at : at + 64] = bytes(64)  # over which HDF5 never ends
    made.write_bytes(data)
    with pytest.raises(DataError, match="its attribute made_by is neither text nor numbers"):
        open_store(made)


def test_new_stores_hold_no_heap_and_plain_h5py_gives_their_texts_as_bytes(made):
    assert b"GCOL" not in made.read_bytes()
    with h5py.File(made) as file:
        assert file.attrs["format"] == b"npgait image store"
        assert file.attrs["store"].decode() == "raw"


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_no_time_stands_in_a_store_so_that_equal_images_make_equal_files(store, stores):
    path = stores / f"{store}.h5"
    tables, made = path.read_bytes()[: open_store(path).start], int(path.stat().st_mtime)
    assert not any((made + d).to_bytes(4, "little") in tables for d in range(-60, 2))


def foreign(path, **changes):
    with h5py.File(path, "w") as file:
        for key, value in changes.items():
            if isinstance(value, str | int):
                file.attrs[key] = value
            else:
                file[key] = value


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("absent", "there is no such file"),
        ("text", "no HDF5 file"),
        ("foreign", "no image store of npgait's"),
        ("checkpoint", "no image store of npgait's"),
        ("later", "format version 99; expected 1"),
        ("folder", "is a folder; expected an image store"),
        ("pipe", "is no plain file; expected an image store"),
    ],
)
def test_what_is_no_image_store_is_refused_in_one_line(kind, says, made, tmp_path):
    path = tmp_path / "f.h5"
    if kind == "text":
        path.write_text("hello")
    elif kind == "foreign":
        foreign(path, images=np.zeros((2, 3, 3, 3), np.uint8), labels=np.zeros(2))
    elif kind == "checkpoint":
        foreign(path, format="npgait checkpoint", version=1)
    elif kind == "later":
        foreign(path, format="npgait image store", version=99)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(DataError, match=says) as caught:
        open_store(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hostile", "says"),
    [
        ("huge", r"labels is int64 \(1099511627776,\), or not plainly"),
        ("compressed", r"sources is \|S64 \(524288,\), or not plainly"),
        ("external", "its images are uint8"),
        ("virtual", "labels is a link"),
        ("link", "images is a link"),
        ("labels", r"labels in 0\.\.1000000000 for 3 classes"),
        ("holes", "labels has 2147483648 entries of int64"),
    ],
)
def test_a_store_that_promises_what_is_not_there_is_refused_without_the_memory(
    hostile, says, made, tmp_path
):
    shutil.copy(made, tmp_path / "h.h5")
    with h5py.File(tmp_path / "h.h5", "r+") as file:
        if hostile == "huge":
            del file["labels"]
            file.create_dataset("labels", (1 << 40,), np.int64, chunks=(1 << 20,))
        elif hostile == "compressed":
            del file["sources"]
            file.create_dataset("sources", data=np.zeros(1 << 19, "S64"), compression="gzip")
        elif hostile == "external":
            del file["images"]
            file.create_dataset(
                "images", (21, 24, 24, 3), np.uint8, external=[("/etc/passwd", 0, 21 * 24 * 24 * 3)]
            )
        elif hostile == "virtual":
            del file["labels"]
            layout = h5py.VirtualLayout((21,), np.int64)
            layout[:] = h5py.VirtualSource(made, "labels", (21,))
            file.create_virtual_dataset("labels", layout)
        elif hostile == "link":  # which may as well lead to a pipe, whose opening never ends
            del file["images"]
            file["images"] = h5py.ExternalLink(str(made), "/images")
        elif hostile == "holes":  # the file is long enough, and takes next to nothing on the disk
            del file["labels"]
            place = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            place.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            place.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            shape = h5py.h5s.create_simple((1 << 31,))
            h5py.h5d.create(file.id, b"labels", h5py.h5t.NATIVE_INT64, shape, place)
        else:
            file["labels"][0] = 10**9
    with pytest.raises(DataError, match=rf"damaged image store \({says}"):
        open_store(tmp_path / "h.h5")


def crafted(path, *, attributes=None, **arrays):
    """Change a store and write the digest that fits."""
    head = open_store(path).head
    with h5py.File(path, "r+") as file:
        for key, value in (attributes or {}).items():
            file.attrs[key] = value
        for key, value in arrays.items():
            file[key][()] = value
    changes = {key: value for key, value in (attributes or {}).items() if hasattr(head, key)}
    arrays = {key: np.full_like(getattr(head, key), value) for key, value in arrays.items()}
    with h5py.File(path, "r+") as file:
        file.attrs["digest"] = np.bytes_(replace(head, **changes, **arrays).digest())


@pytest.mark.parametrize(
    ("store", "change", "says"),
    [
        ("raw", {"state": 1}, r"states \[1\]"),
        ("raw", {"state": 7}, r"states \[7\]"),
        ("raw", {"attributes": {"version": -5}}, "format version -5; expected 1"),
        ("raw", {"attributes": {"version": 1.5}}, "format version 1.5"),
        ("raw", {"attributes": {"image_shape": (24.5, 24, 3)}}, "three whole numbers"),
        ("raw", {"attributes": {"image_shape": (24, 24)}}, "three whole numbers"),
        ("raw", {"attributes": {"image_shape": (24, 24, 2)}}, r"shape \(24, 24, 2\)"),
        ("raw", {"attributes": {"image_shape": (24, 0, 3)}}, r"shape \(24, 0, 3\)"),
        ("raw", {"attributes": {"image_shape": (23, 24, 3)}}, r"expected uint8 \(21, 23, 24, 3\)"),
        ("raw", {"attributes": {"max_value": 300}}, "largest value 300"),
        ("raw", {"attributes": {"max_value": 0}}, "largest value 0"),
        ("raw", {"attributes": {"store": "png"}}, "store 'png'"),
        ("raw", {"labels": -1}, r"labels in -1\.\.-1 for 3 classes"),
        ("raw", {"labels": 3}, r"labels in 3\.\.3 for 3 classes"),
        ("raw", {"mean": np.nan}, "mean or standard deviation"),
        ("raw", {"std": 0}, "mean or standard deviation"),
        ("jpeg", {"attributes": {"image_shape": (16, 20, 3)}}, "expected squares of up to 4096"),
        ("jpeg", {"attributes": {"image_shape": (16000, 16000, 3)}}, "expected squares of up to 4096"),
        ("jpeg", {"attributes": {"image_shape": (24, 24, 1)}}, "expected squares of up to 4096"),
        ("jpeg", {"offsets": 5}, "out of order"),
        ("jpeg", {"offsets": np.arange(22)[::-1]}, "out of order"),
        ("jpeg", {"offsets": 0, "checksums": 0}, "an image that should be good has no bytes"),
    ],
)
def test_a_store_that_says_what_cannot_be_is_refused_in_one_line(store, change, says, stores, tmp_path):
    shutil.copy(stores / f"{store}.h5", tmp_path / "x.h5")
    crafted(tmp_path / "x.h5", **change)
    with pytest.raises(DataError, match=says) as caught:
        open_store(tmp_path / "x.h5")
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_within_what_is_read_of_it_is_an_error_not_a_hang(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    buffers = [bytearray(4), bytearray(4)]
    with (tmp_path / "x").open("rb") as file:
        preadv_whole(tmp_path / "x", file.fileno(), buffers, 2)
        assert b"".join(buffers) == b"23456789"
        for offset in (3, 9, 99):
            with pytest.raises(DataError, match="ends within an image"):
                preadv_whole(tmp_path / "x", file.fileno(), buffers, offset)


def test_a_store_cut_short_while_it_is_in_use_is_an_error_not_garbage(made):
    store = open_store(made)
    with made.open("r+b") as file:
        file.truncate(store.place(10)[0])
    with pytest.raises(DataError, match="cut short") as caught:
        list(read_images(store, [np.arange(21)]))
    assert str(made) in str(caught.value)


def test_a_store_replaced_while_it_is_in_use_is_an_error_not_images_of_other_labels(tree, made):
    store = open_store(made)
    made.unlink()
    prepare(*find_listings("imagenet", tree), made, Settings(24, seed=1))
    with pytest.raises(DataError, match="changed, cut short or replaced since it was opened"):
        list(read_images(store, [np.arange(21)]))
    assert len(list(read_images(open_store(made), [np.arange(21)]))) == 1
