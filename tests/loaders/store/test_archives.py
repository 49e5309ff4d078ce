"""Archives that are damaged, linked, packed in other ways: all that is in them, or one clear line."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

import h5py
import numpy as np
import pytest

from npgait.loaders import DataError
from npgait.loaders.store import Settings, find_listings, prepare
from npgait.loaders.store.archives import files_in_archive
from npgait.loaders.store.decode import read_source
from tests.loaders.store.conftest import encoded, make_tree
from tests.loaders.store.test_sources import inner_tar, tar_of


def packed(path, folder, *what):
    """What GNU tar or bsdtar makes of `what` in `folder`."""
    subprocess.run(["tar", "cf", str(path), "-C", str(folder), *what], check=True)
    return path


def listed(path, **options):
    (listing,) = find_listings("imagenet", path, **options)
    owners = [listing.classes[label] for label in listing.labels]
    data = [read_source(*listing.where(i)) for i in range(len(listing))]
    return list(zip(listing.names, owners, data, strict=True))


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        find_listings("imagenet", path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def headers(path):
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.fixture
def flat_tar(tree, tmp_path):
    return packed(tmp_path / "t.tar", tree, *sorted(os.listdir(tree)))


# --- damage ---------------------------------------------------------------------------------------


def test_an_archive_cut_anywhere_is_refused(flat_tar):
    data = flat_tar.read_bytes()
    starts = headers(flat_tar)
    end = starts[-1] + 512 + -(-int(data[starts[-1] + 124 : starts[-1] + 135], 8) // 512) * 512
    for cut in [*starts[1:], end, end - 1, end + 511, starts[5] + 100, starts[5] + 700]:
        flat_tar.write_bytes(data[:cut])
        assert "t.tar" in refusal(flat_tar)
    flat_tar.write_bytes(data[: end + 512])  # one block of zeros is an end
    assert len(listed(flat_tar)) == 21


def test_a_flipped_bit_in_a_header_is_refused_with_the_place(flat_tar):
    data = bytearray(flat_tar.read_bytes())
    at = headers(flat_tar)[7]
    data[at + 3] ^= 4
    flat_tar.write_bytes(data)
    assert f"t.tar: is damaged or cut short at byte {at}" in refusal(flat_tar)


@pytest.mark.parametrize("blocks", [1, 2, 40])
def test_a_hole_in_an_archive_is_not_its_end(blocks, flat_tar):
    data = bytearray(flat_tar.read_bytes())
    at = headers(flat_tar)[3]
    data[at : at + 512 * blocks] = bytes(512 * blocks)
    flat_tar.write_bytes(data + bytes(10240))
    assert "more behind it" in refusal(flat_tar)


def test_what_fills_up_the_last_record_does_not_matter(flat_tar):
    data = flat_tar.read_bytes()
    flat_tar.write_bytes(data[:-512] + b"x" * 512)
    assert len(listed(flat_tar)) == 21


@pytest.mark.parametrize("damage", ["cut", "flip", "zeros", "nothing"])
def test_a_damaged_archive_within_an_archive_is_named(damage, tree, tmp_path):
    inner = {f"{folder.name}.tar": inner_tar(folder) for folder in sorted(tree.iterdir())}
    data = inner["n00000001.tar"]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = tar.getmembers()[2].offset
    inner["n00000001.tar"] = {
        "cut": data[:at],
        "flip": data[:at] + b"?" + data[at + 1 :],
        "zeros": bytes(len(data)),
        "nothing": b"",
    }[damage]
    text = refusal(tar_of(tmp_path / "train.tar", inner.items()))
    assert "train.tar: the archive n00000001.tar in it" in text
    if damage in ("cut", "flip"):
        assert f"at byte {at}" in text


def test_an_empty_archive_of_a_class_is_not_a_class_less(tree, tmp_path):
    (tmp_path / "tars").mkdir()
    for folder in tree.iterdir():
        (tmp_path / "tars" / f"{folder.name}.tar").write_bytes(inner_tar(folder))
    (tmp_path / "tars" / "n00000001.tar").write_bytes(bytes(10240))
    assert "n00000001.tar: holds no files" in refusal(tmp_path / "tars")


def test_members_that_would_go_round_for_ever_or_take_all_memory_are_refused(tmp_path):
    def member(size, kind=tarfile.REGTYPE):
        info = tarfile.TarInfo("n1/a.JPEG")
        info.type = kind
        head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        head[124:136] = b"\xff" * 4 + (size % (1 << 64)).to_bytes(8) if size < 0 else b"%011o\0" % size
        head[148:156] = b"%06o\0 " % (sum(head[:148]) + 256 + sum(head[156:]))
        return bytes(head)

    first = tarfile.TarInfo("n1/0.JPEG").tobuf(tarfile.GNU_FORMAT)
    pax = tarfile.TarInfo.create_pax_global_header({"a": "b"})
    for hostile in (
        member(-1024),
        member(-1024, tarfile.XHDTYPE),
        member(1 << 32, tarfile.XHDTYPE),
        member(1 << 32, tarfile.GNUTYPE_LONGNAME),
        pax * 2000,
    ):
        (tmp_path / "t.tar").write_bytes(first + hostile + bytes(10240))
        assert "t.tar: is damaged or cut short" in refusal(tmp_path / "t.tar")


# --- links ----------------------------------------------------------------------------------------


def test_links_in_an_archive_stand_for_what_they_point_to(tree, tmp_path):
    folder = tree / "n00000000"
    os.link(folder / "n00000000_0.JPEG", folder / "hard.JPEG")
    (folder / "soft.JPEG").symlink_to("../n00000001/n00000001_3.JPEG")
    (tree / "n00000002" / "chain.JPEG").symlink_to("../n00000000/soft.JPEG")
    (tree / ".store").mkdir()
    (folder / "n00000000_1.JPEG").rename(tree / ".store" / "x")
    (folder / "n00000000_1.JPEG").symlink_to("../.store/x")
    found = listed(packed(tmp_path / "t.tar", tree, "."))
    assert found == listed(tree)
    assert len(found) == 24


@pytest.mark.parametrize("target", ["absent.JPEG", "/etc/hostname", "../n00000001", "a.JPEG"])
def test_a_link_to_what_is_not_in_the_archive_is_named(target, tree, tmp_path):
    (tree / "n00000000" / "a.JPEG").symlink_to(target)
    text = refusal(packed(tmp_path / "t.tar", tree, "."))
    assert f"n00000000/a.JPEG is a link to {target}" in text


def test_a_link_to_what_is_not_in_the_archive_is_skipped_and_reported_if_told_to(tree, tmp_path):
    (tree / "n00000000" / "a.JPEG").symlink_to("absent")
    listings = find_listings("imagenet", packed(tmp_path / "t.tar", tree, "."), skip_unreadable=True)
    outcome = prepare(*listings, tmp_path / "x.h5", Settings(24, skip_unreadable=True))
    assert (outcome.images, outcome.skipped) == (22, 1)
    assert "n00000000/a.JPEG\t" in outcome.report.read_text()


def test_a_hard_link_to_what_is_not_there_is_named(tmp_path):
    info = tarfile.TarInfo("n1/b")
    info.type, info.linkname = tarfile.LNKTYPE, "n1/a"
    (tmp_path / "t.tar").write_bytes(info.tobuf() + bytes(10240))
    assert "n1/b is a link to /n1/a" in refusal(tmp_path / "t.tar")


def test_a_hard_link_keeps_what_it_was_made_of(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("n1/a", b"old"), ("n2/b", None), ("n1/a", b"newer")):
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type, info.linkname = tarfile.LNKTYPE, "n1/a"
            tar.addfile(info, io.BytesIO(data or b""))
    assert listed(tmp_path / "t.tar") == [("n1/a", "n1", b"newer"), ("n2/b", "n2", b"old")]


def test_sparse_files_are_refused_not_dropped(tmp_path):
    (tmp_path / "n1").mkdir()
    with (tmp_path / "n1" / "a.JPEG").open("wb") as file:
        file.truncate(1 << 20)
    assert "n1/a.JPEG is sparse" in refusal(packed(tmp_path / "t.tar", tmp_path, "-S", "n1"))


# --- the same classes as from folders -------------------------------------------------------------


@pytest.fixture
def deep(tmp_path, rng):
    """Two classes with folders of their own, in which names come again."""
    root = make_tree(tmp_path / "ne", rng, classes=2, images=3)
    for folder in list(root.iterdir()):
        (folder / "images").mkdir()
        (folder / "more").mkdir()
        for i, path in enumerate(sorted(folder.glob("*.JPEG"))):
            path.rename(folder / ("images" if i else "more") / f"{max(i, 1)}.JPEG")
    return root


@pytest.mark.parametrize("what", [["n00000000", "n00000001"], ["."]])
def test_an_archive_gives_the_classes_and_names_of_its_folders(what, deep, tmp_path):
    assert listed(packed(tmp_path / "t.tar", deep, *what)) == listed(deep)


def test_folders_that_lead_to_the_classes_are_left_out_of_names(deep, tmp_path):
    assert listed(packed(tmp_path / "t.tar", tmp_path, "ne")) == listed(deep)
    (deep / "README.txt").write_text("about")
    assert listed(packed(tmp_path / "t.tar", tmp_path, "./ne")) == listed(deep)


def test_the_last_of_members_of_one_name_counts(tree, flat_tar):
    path = tree / "n00000000" / "n00000000_0.JPEG"
    path.write_bytes(b"better")
    subprocess.run(["tar", "rf", flat_tar, "-C", tree, "n00000000/n00000000_0.JPEG"], check=True)
    found = listed(flat_tar)
    assert len(found) == 21
    assert found[0][2] == b"better"


def test_names_that_leave_the_archive_are_refused_and_absolute_ones_lie_in_it(tmp_path):
    text = refusal(tar_of(tmp_path / "t.tar", [("n1/a.png", b"1"), ("../c.png", b"2")]))
    assert "'../c.png'" in text
    found = listed(tar_of(tmp_path / "t.tar", [("/n1/a.png", b"1"), ("n2/b.png", b"2")]))
    assert [name for name, *_ in found] == ["n1/a.png", "n2/b.png"]


@pytest.mark.parametrize("prefix", ["", "val/", "./val/images/", "photos/"])
def test_labels_say_the_classes_of_an_archive_of_flat_files(prefix, tmp_path):
    members = [(f"{prefix}{name}.JPEG", name.encode()) for name in "abc"]
    members.append((f"{prefix}about.txt", b"a text"))
    tar = tar_of(tmp_path / "t.tar", members)
    (tmp_path / "truth").write_text("a.JPEG n1\nb.JPEG n0\nc.JPEG n1\n")
    found = listed(tar, labels=tmp_path / "truth")
    assert found == [("a.JPEG", "n1", b"a"), ("b.JPEG", "n0", b"b"), ("c.JPEG", "n1", b"c")]


def test_a_folder_of_a_split_in_an_archive_is_no_class(tmp_path):
    assert "--labels" in refusal(tar_of(tmp_path / "t.tar", [("val/a", b"1"), ("val/b", b"2")]))
    assert "look like splits" in refusal(
        tar_of(tmp_path / "t.tar", [("x/val/n1/a", b"1"), ("x/train/n1/b", b"2")])
    )


def test_one_class_is_a_class_whatever_leads_to_it(tmp_path):
    tar = tmp_path / "t.tar"
    assert listed(tar_of(tar, [("n1/a", b"1"), ("n1/b", b"2")]))[0][:2] == ("n1/a", "n1")
    assert listed(tar_of(tar, [("n1/a", b"1"), ("n1/x/b", b"2")]))[1][:2] == ("n1/x/b", "n1")
    assert listed(tar_of(tar, [("train/n1/a", b"1"), ("train/n1/b", b"2")]))[0][:2] == ("n1/a", "n1")


def test_texts_beside_the_classes_are_not_data_and_texts_in_them_are_reported(tmp_path):
    members = [("README.txt", b"x"), ("n1/a", b"1"), ("n1/notes.txt", b"2"), ("n2/b", b"3")]
    found = listed(tar_of(tmp_path / "t.tar", members))
    assert [name for name, *_ in found] == ["n1/a", "n1/notes.txt", "n2/b"]
    found = listed(tar_of(tmp_path / "t.tar", [("all/n1/a", b"1"), ("all/n2/notes.txt", b"2")]))
    assert [name for name, *_ in found] == ["n1/a", "n2/notes.txt"]


def test_endings_in_upper_case_are_endings(tree, tmp_path):
    (tmp_path / "tars").mkdir()
    for folder in tree.iterdir():
        (tmp_path / "tars" / f"{folder.name}.TAR").write_bytes(inner_tar(folder))
    assert listed(tmp_path / "tars") == listed(tree)
    assert listed(packed(tmp_path / "all.TAR", tmp_path / "tars", ".")) == listed(tree)


def test_archives_of_classes_packed_with_their_folder_give_the_same_names(tree, tmp_path):
    (tmp_path / "tars").mkdir()
    for folder in sorted(tree.iterdir()):
        packed(tmp_path / "tars" / f"{folder.name}.tar", tree, folder.name)
    assert listed(tmp_path / "tars") == listed(tree)
    assert listed(packed(tmp_path / "all.tar", tmp_path, "tars")) == listed(tree)


def test_images_beside_archives_are_refused_not_dropped(tree, tmp_path):
    (tmp_path / "tars").mkdir()
    for folder in tree.iterdir():
        (tmp_path / "tars" / f"{folder.name}.tar").write_bytes(inner_tar(folder))
    (tmp_path / "tars" / "a.JPEG").write_bytes(b"x")
    for place in (tmp_path / "tars", packed(tmp_path / "all.tar", tmp_path / "tars", ".")):
        assert "a.JPEG lies beside the archives of the classes" in refusal(place)


def test_hidden_members_are_not_data(tmp_path):
    members = [("n1/a", b"1"), ("n1/._a", b"2"), (".git/x", b"3"), ("n2/.cache/b", b"4")]
    assert set(files_in_archive(tar_of(tmp_path / "t.tar", members))) == {"n1/a"}


def test_a_conversion_does_not_go_on_with_an_archive_that_changed(tmp_path, rng):
    archive, out, asked = tmp_path / "s.tar", tmp_path / "x.h5", iter([False, True])

    def pack():  # other pixels in files of the same names and sizes
        (tmp_path / "c").mkdir(exist_ok=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            (tmp_path / "c" / f"{i}.ppm").write_bytes(encoded(pixels, "PPM"))
        return packed(archive, tmp_path, "c").stat().st_size

    size = pack()
    prepare(*find_listings("imagenet", archive), out, Settings(9), stop=lambda: next(asked))
    assert pack() == size
    with pytest.raises(DataError, match="was begun with other images"):
        prepare(*find_listings("imagenet", archive), out, Settings(9))


def test_names_too_long_for_a_store_are_cut_and_classes_refused(tmp_path):
    image = encoded(np.zeros((8, 8, 3), np.uint8))
    archive, out = tmp_path / "s.tar", tmp_path / "x.h5"
    tar_of(archive, [("c/" + "é" * 2999 + ".jpg", image), ("dd/" + "é" * 2999 + ".jpg", image)])
    prepare(*find_listings("imagenet", archive), out, Settings(8))
    with h5py.File(out) as file:
        lengths = sorted(len(name.encode()) for name in file["sources"].asstr()[:])
    assert lengths == [4095, 4096]
    tar_of(archive, [("c/x.jpg", image), ("é" * 2100 + "/x.jpg", image)])
    assert "has a name of over 4096 bytes" in refusal(archive)
