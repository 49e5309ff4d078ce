"""Ground-truth texts: which row means which file, and what is refused."""

from __future__ import annotations

import os
import sys
import tarfile

import pytest

from npgait.loaders import DataError
from npgait.loaders.store.truth import read_truth


@pytest.fixture
def read(tmp_path):
    def read(text, *names):
        (tmp_path / "truth").write_text(text, encoding="utf-8")
        return read_truth(tmp_path / "truth", names)

    return read


def test_files_that_differ_in_their_endings_keep_their_own_classes(read):
    assert read("a.jpg,cat\na.png,dog\n", "a.jpg", "a.png") == ["cat", "dog"]


def test_a_name_without_its_ending_is_enough_where_it_means_one_file(read):
    assert read("a,cat\nb.1,dog\n", "a.jpg", "b.1.jpg") == ["cat", "dog"]
    assert read("a.JPEG cat\nb.JPEG dog\n", "a.png", "b.png") == ["cat", "dog"]
    with pytest.raises(DataError, match="could not be of another"):
        read("a,cat\nb,dog\n", "a.jpg", "a.png")


def test_a_name_in_a_folder_is_matched_whole_or_by_its_last_part(read):
    assert read("b.jpg\tcat\n./a.jpg\tdog\n", "images/a.jpg", "images/b.jpg") == ["dog", "cat"]
    assert read("val/a.jpg,cat\n", "a.jpg") == ["cat"]


def test_rows_that_contradict_each_other_are_refused_and_repeated_ones_are_not(read):
    with pytest.raises(DataError, match=r"a\.jpg is said to be of class cat and of dog"):
        read("a.jpg,cat\nb.jpg,cat\na.jpg,dog\n", "a.jpg", "b.jpg")
    assert read("a.jpg,cat\na.jpg,cat\n", "a.jpg") == ["cat"]


def test_a_row_that_names_an_image_once_more_does_not_change_its_class(read):
    with pytest.raises(DataError, match="1 of 3 rows name no file, such as a"):
        read("val/a.jpg,cat\nval/b.jpg,dog\na,dog\n", "val/a.jpg", "val/b.jpg")


@pytest.mark.parametrize("extra", ["c.jpg,cat", "c.jpg,bird", "c,cat"])
@pytest.mark.parametrize("first", [True, False])
def test_rows_that_name_no_file_are_refused(extra, first, read):
    rows = ["a.jpg,cat", "b.jpg,dog"]
    rows.insert(0 if first else 2, extra)
    with pytest.raises(DataError, match="1 of 3 rows name no file, such as c"):
        read("\n".join(rows), "a.jpg", "b.jpg")


def test_names_and_classes_may_hold_blanks_where_a_comma_or_tab_separates(read):
    names = ("my cat.jpg", "my dog.jpg")
    assert read("my cat.jpg,red fox\nmy dog.jpg,wolf\n", *names) == ["red fox", "wolf"]
    assert (
        read("my cat.jpg\tred fox\t1\t2\t3\t4\nmy dog.jpg\twolf\t1\t2\t3\t4\n", *names)[0] == "red fox"
    )
    assert read('"a, b.jpg",cat\n', "a, b.jpg") == ["cat"]


def test_a_class_of_several_words_is_not_cut_to_its_first(read):
    with pytest.raises(DataError, match=r"row 1 says .*golden.*retriever.*; expected .*'FILE,CLASS'"):
        read("a.jpg golden retriever\nb.jpg golden eagle\n", "a.jpg", "b.jpg")
    assert read("a.jpg cat 1 2 3 4\nb.jpg dog\n", "a.jpg", "b.jpg") == ["cat", "dog"]


def test_several_boxes_names_of_columns_and_a_byte_order_mark_do_not_matter(read):
    text = "\ufeffImageId,PredictionString\nx_2,n1 1 2 3 4 n1 5 6 7 8 \nx_1,n0 1 2 3 4 \n"
    assert read(text, "x_1.JPEG", "x_2.JPEG") == ["n0", "n1"]


def test_a_row_without_a_class_is_refused(read):
    with pytest.raises(DataError, match="row 2 says"):
        read("a.jpg,cat\nb.jpg,\n", "a.jpg", "b.jpg")


def test_an_archive_or_another_encoding_is_said_to_be_no_text(tmp_path):
    (tmp_path / "meta.mat").write_bytes(b"")
    with tarfile.open(tmp_path / "kit.tar.gz", "w:gz") as kit:
        kit.add(tmp_path / "meta.mat", "data/meta.mat")
    (tmp_path / "wide.txt").write_text("a.jpg cat\n", encoding="utf-16")
    for name in ("kit.tar.gz", "wide.txt"):
        with pytest.raises(DataError, match=rf"{name}: is no text in UTF-8; .* unpack it"):
            read_truth(tmp_path / name, ["a.jpg"])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no plain file"):
        read_truth(tmp_path / "pipe", ["a.jpg"])


def test_numbers_beyond_all_bounds_are_one_clear_line(tmp_path):
    io_ = pytest.importorskip("scipy.io", reason="meta.mat takes SciPy")
    import numpy as np

    rows = np.array([(1, "n1")], dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
    rows = np.concatenate([rows, rows])
    io_.savemat(tmp_path / "meta.mat", {"synsets": rows})
    (tmp_path / "truth").write_text("9" * 5000 + "\n")
    with pytest.raises(DataError, match="is none of the 1") as caught:
        read_truth(tmp_path / "truth", ["a.jpg"])
    assert len(str(caught.value)) < 300


def test_numbers_without_scipy_say_what_to_install(read, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    (tmp_path / "meta.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"takes SciPy: pip install 'npgait\[devkit\]'"):
        read("1\n", "a.jpg")
