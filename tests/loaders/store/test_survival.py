"""What may happen to a conversion and to its files: kills, damaged sources, damaged stores."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest

from npgait.loaders import DataError
from npgait.loaders.store import Settings, convert, find_listings, heap, open_store, prepare
from npgait.loaders.store.inspect import verify
from npgait.loaders.store.reader import read_images
from tests.loaders.store.conftest import encoded, make_tree, smooth
from tests.loaders.store.test_decode import png_of

COMMAND = [sys.executable, "-m", "npgait", "data", "prepare", "imagenet", "-q", "--size", "32"]


def lines_done(journal) -> int:
    return journal.read_bytes().count(b'"first"') if journal.exists() else 0


def kill_often(tree, tmp_path, kills, seed, *options) -> int:
    """Kill conversions at random moments until `kills` have died; return how many were finished."""
    chance = random.Random(seed)
    out, finished, killed = tmp_path / "x.h5", 0, 0
    subprocess.run([*COMMAND, *options, str(tree), str(tmp_path / "reference.h5")], check=True)
    reference = (tmp_path / "reference.h5").read_bytes()
    done, longest = 0, 1.2
    while killed < kills:
        process = subprocess.Popen(
            [*COMMAND, *options, str(tree), str(out)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(chance.uniform(0.25, longest))
        except subprocess.TimeoutExpired:
            # The command alone, its workers left behind; or everything of it at once.
            (os.kill if chance.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        if out.exists():
            assert out.read_bytes() == reference
            assert process.returncode in (0, -signal.SIGKILL)
            subprocess.run([*COMMAND, *options, str(tree), str(out)], check=True)  # tidies up
            assert not list(tmp_path.glob("x.h5.*"))
            out.unlink()
            finished, done = finished + 1, 0
        else:
            assert process.returncode == -signal.SIGKILL
            now = lines_done(tmp_path / "x.h5.journal")
            assert now >= done  # what was done stays done
            done = now
    subprocess.run([*COMMAND, *options, str(tree), str(out)], check=True)
    assert out.read_bytes() == reference
    return finished


def no_worker_is_left() -> bool:
    for _ in range(50):
        listing = subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        if "npgait.loaders.store.worker" not in listing:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_conversion_killed_again_and_again_ends_with_the_same_file(store, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=300)
    kill_often(tree, tmp_path, 6, 1, "--store", store)
    assert no_worker_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_conversion_killed_200_times_ends_with_the_same_file(store, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=500)
    assert kill_often(tree, tmp_path, 200, 2, "--store", store) >= 5
    assert no_worker_is_left()


def limited_to(size):
    """Have the system refuse to write beyond `size` bytes of a file, as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("store", "size"),
    [("raw", 100), ("raw", 4096), ("raw", 50_000), ("jpeg", 1000), ("jpeg", 14_000), ("jpeg", 20_000)],
)
def test_a_full_disk_is_one_line_and_loses_nothing(store, size, tree, tmp_path):
    command = [*COMMAND, "--store", store, str(tree), str(tmp_path / "x.h5")]
    full = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=limited_to(size), check=False
    )
    assert full.returncode == 1
    assert re.fullmatch(r"Error: \S*x\.h5\S*: File too large\n", full.stderr)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"source", "x.h5.part", "x.h5.journal"}
    subprocess.run(command, check=True)
    subprocess.run([*command[:-1], str(tmp_path / "y.h5")], check=True)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_what_a_killed_start_left_beside_is_removed(tree, tmp_path):
    stale, others = tmp_path / ".x.h5.skipped.txt.4711.tmp", tmp_path / ".x.h5.txt.4711.tmp"
    for path in (stale, others):
        path.write_text("half a")
    (listing,) = find_listings("imagenet", tree)
    assert prepare(listing, tmp_path / "x.h5", Settings(24)).finished
    assert not stale.exists()
    assert others.exists()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes of an image, damaged in one of the ways that disks, networks and people have."""
    way = chance.randrange(6)
    if way == 0:  # bit flips
        array = bytearray(data)
        for _ in range(chance.randrange(1, 30)):
            array[chance.randrange(len(array))] ^= 1 << chance.randrange(8)
        return bytes(array)
    if way == 1:  # truncation
        return data[: chance.randrange(len(data))]
    if way == 2:  # random bytes
        return chance.randbytes(chance.randrange(3000))
    if way == 3:  # a stretch overwritten
        first = chance.randrange(len(data))
        return data[:first] + chance.randbytes(50) + data[first + 50 :]
    if way == 4:  # a bomb: much from little, or sizes that lie
        side = chance.choice([20_000, 65_000, 2_000_000_000])
        return png_of(side, side, zlib.compress(bytes(100_000), 9))
    return data + chance.randbytes(100)  # something stuck to the end


def test_a_thousand_damaged_files_are_reported_or_decoded_and_nothing_else(tmp_path, rng):
    chance = random.Random(3)
    folder = tmp_path / "source" / "class"
    folder.mkdir(parents=True)
    forms = [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {})]
    whole = [encoded(smooth(rng, 40, 50), form, **options) for form, options in forms]
    whole.append(encoded(smooth(rng, 40, 50), "JPEG", progressive=True))
    endings = [".JPEG", ".png", ".txt", ".h5", "", ".tar.gz"]
    for i in range(1000):
        (folder / f"{i:04d}{chance.choice(endings)}").write_bytes(damaged(chance.choice(whole), chance))
    (folder / "good.JPEG").write_bytes(whole[0])
    (listing,) = find_listings("imagenet", tmp_path / "source")
    outcome = prepare(listing, tmp_path / "x.h5", Settings(32))
    listed = {line.split("\t")[1] for line in outcome.report.read_text().splitlines()}
    assert 500 < outcome.skipped == len(listed)
    assert "crashed" not in outcome.report.read_text()
    assert "class/good.JPEG" not in listed
    store = open_store(tmp_path / "x.h5")
    assert len(store) == 1001
    assert not [d for _, found in verify(store) for d in found]


def test_an_archive_with_damaged_images_is_converted_and_a_damaged_archive_is_one_line(tmp_path, rng):
    from tests.loaders.store.test_sources import inner_tar, tar_of

    tree = make_tree(tmp_path / "source", rng)
    (tree / "n00000001" / "bad.JPEG").write_bytes(b"bad")
    tar = tar_of(tmp_path / "t.tar", [(f"{f.name}.tar", inner_tar(f)) for f in sorted(tree.iterdir())])
    (listing,) = find_listings("imagenet", tar)
    assert prepare(listing, tmp_path / "x.h5", Settings(24)).skipped == 1
    data = tar.read_bytes()
    for cut in (700, 5000, len(data) - 12000):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(DataError) as caught:
            find_listings("imagenet", tmp_path / "cut.tar")
        assert "\n" not in str(caught.value)


# --- damaged and foreign stores -------------------------------------------------------------------


@pytest.fixture
def made(tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24))
    return tmp_path / "x.h5"


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


def test_new_stores_hold_no_heap_and_plain_h5py_gives_their_texts_as_bytes(made):
    assert b"GCOL" not in made.read_bytes()
    with h5py.File(made) as file:
        assert file.attrs["format"] == b"npgait image store"
        assert file.attrs["store"].decode() == "raw"


def foreign(path, **changes):
    with h5py.File(path, "w") as file:
        for key, value in changes.items():
            if isinstance(value, str | int):
                file.attrs[key] = value
            else:
                file[key] = value


@pytest.mark.parametrize("kind", ["absent", "text", "foreign", "checkpoint", "later", "folder"])
def test_what_is_no_image_store_is_refused_in_one_line(kind, made, tmp_path):
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
    with pytest.raises(DataError) as caught:
        open_store(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hostile", ["huge", "compressed", "external", "virtual", "labels"])
def test_a_store_that_promises_what_is_not_there_is_refused_without_the_memory(hostile, made, tmp_path):
    shutil.copy(made, tmp_path / "h.h5")
    with h5py.File(tmp_path / "h.h5", "r+") as file:
        if hostile == "huge":
            del file["labels"]
            file.create_dataset("labels", (1 << 40,), np.int64, chunks=(1 << 20,))
        elif hostile == "compressed":
            del file["sources"]
            file.create_dataset("sources", data=np.zeros(1 << 24, "S64"), compression="gzip")
        elif hostile == "external":
            del file["images"]
            file.create_dataset(
                "images", (21, 24, 24, 3), np.uint8, external=[("/etc/passwd", 0, 21 * 24 * 24 * 3)]
            )
        elif hostile == "virtual":
            del file["labels"]
            layout = h5py.VirtualLayout((21,), np.int64)
            file.create_virtual_dataset("labels", layout)
        else:
            file["labels"][0] = 10**9
    with pytest.raises(DataError, match="damaged image store"):
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
        ("raw", {"attributes": {"max_value": 300}}, "largest value 300"),
        ("jpeg", {"attributes": {"image_shape": (16, 20, 3)}}, "expected squares of up to 4096"),
        ("jpeg", {"attributes": {"image_shape": (16000, 16000, 3)}}, "expected squares of up to 4096"),
        ("jpeg", {"attributes": {"image_shape": (24, 24, 1)}}, "expected squares of up to 4096"),
    ],
)
def test_a_store_that_says_what_cannot_be_is_refused_in_one_line(store, change, says, tree, tmp_path):
    (listing,) = find_listings("imagenet", tree)
    prepare(listing, tmp_path / "x.h5", Settings(24, store))
    crafted(tmp_path / "x.h5", **change)
    with pytest.raises(DataError, match=says) as caught:
        open_store(tmp_path / "x.h5")
    assert "\n" not in str(caught.value)


def test_a_store_cut_short_while_it_is_in_use_is_an_error_not_garbage(made):
    store = open_store(made)
    with made.open("r+b") as file:
        file.truncate(store.place(10)[0])
    with pytest.raises(DataError, match="cut short"):
        list(read_images(store, [np.arange(21)]))


def test_the_journal_of_another_program_is_begun_anew(tree, tmp_path):
    (tmp_path / "x.h5.journal").write_bytes(b"\x00\xff" * 5000)
    (listing,) = find_listings("imagenet", tree)
    assert prepare(listing, tmp_path / "x.h5", Settings(24)).finished


def test_what_is_redone_after_a_kill_is_no_more_than_what_was_in_hand(tree):
    assert convert.TASK * convert.AHEAD <= 32  # images a worker
