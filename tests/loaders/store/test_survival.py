"""What may happen to a conversion: kills, a full disk, damaged sources."""

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

import pytest

from npgait.loaders import DataError
from npgait.loaders.store import Settings, convert, find_listings, open_store, prepare
from npgait.loaders.store.inspect import verify
from tests.loaders.store.conftest import encoded, make_tree, smooth
from tests.loaders.store.test_decode import png_of

COMMAND = [sys.executable, "-m", "npgait", "data", "prepare", "imagenet", "-q", "--size", "32"]


def lines_done(journal) -> int:
    return journal.read_bytes().count(b'"first"') if journal.exists() else 0


needs_ps = pytest.mark.skipif(not shutil.which("ps"), reason="there is no ps to see processes by")


def all_end(sessions: set[int]) -> bool:
    """Whether every process of these sessions ends within seconds: no worker outlives its command."""
    for _ in range(50):
        listing = subprocess.run(
            ["ps", "-eo", "stat=,sid="], capture_output=True, text=True, check=True
        ).stdout
        alive = [line.split()[1] for line in listing.splitlines() if not line.startswith("Z")]
        if sessions.isdisjoint(map(int, alive)):
            return True
        time.sleep(0.1)
    return False


def kill_often(tree, tmp_path, kills, seed, *options) -> int:
    """Kill conversions at random moments until `kills` have died; return how many were finished."""
    chance = random.Random(seed)
    out, finished, killed = tmp_path / "x.h5", 0, 0
    started = time.monotonic()
    subprocess.run([*COMMAND, *options, str(tree), str(tmp_path / "reference.h5")], check=True)
    longest = max(1.2, time.monotonic() - started)  # of a life: on a busy machine some end as well
    reference = (tmp_path / "reference.h5").read_bytes()
    done, sessions = 0, set()
    while killed < kills:
        process = subprocess.Popen(
            [*COMMAND, *options, str(tree), str(out)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        sessions.add(process.pid)
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
    assert all_end(sessions)
    return finished


@needs_ps
@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_conversion_killed_again_and_again_ends_with_the_same_file(store, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=300)
    kill_often(tree, tmp_path, 6, 1, "--store", store)


@pytest.mark.slow
@needs_ps
@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_conversion_killed_200_times_ends_with_the_same_file(store, tmp_path, rng):
    tree = make_tree(tmp_path / "source", rng, images=500)
    assert kill_often(tree, tmp_path, 200, 2, "--store", store) >= 5


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


@pytest.mark.parametrize("letters", [1, 240])  # of the longer the temporary name is cut to fit
def test_what_a_killed_start_left_beside_is_removed(letters, tree, tmp_path):
    (tree / "n00000001" / "bad.JPEG").write_bytes(b"no")
    out = tmp_path / ("x" * letters + ".h5")
    stale = tmp_path / f".{out.name}.skipped.txt.4711.tmp"[-255:]
    stale = stale.with_name("." + stale.name[1:])
    others = tmp_path / ".x.h5.txt.4711.tmp"
    for path in (stale, others):
        path.write_text("half a")
    (listing,) = find_listings("imagenet", tree)
    outcome = prepare(listing, out, Settings(24))
    assert outcome.finished
    assert outcome.report.name == f"{out.name}.skipped.txt"
    assert sorted(os.listdir(tmp_path)) == sorted([others.name, "source", out.name, outcome.report.name])


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


def test_the_journal_of_another_program_is_begun_anew(tree, tmp_path):
    (tmp_path / "x.h5.journal").write_bytes(b"\x00\xff" * 5000)
    (listing,) = find_listings("imagenet", tree)
    assert prepare(listing, tmp_path / "x.h5", Settings(24)).finished


def test_what_is_redone_after_a_kill_is_no_more_than_what_was_in_hand(tree):
    assert convert.TASK * convert.AHEAD <= 32  # images a worker
