"""The list of data sets: what each says when its files are not there."""

from __future__ import annotations

import pytest

from npgait.loaders import DATASETS, DataError, load


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_every_set_but_the_digits_says_what_to_fetch_without_a_folder_and_with_an_empty_one(
    name, tmp_path
):
    for folder, where in ((None, "no --data DIR was given"), (tmp_path, str(tmp_path))):
        with pytest.raises(DataError) as caught:
            load(name, folder)
        for part in (repr(name), where, "fetch:", "http", "put in: DIR/", "with --data DIR"):
            assert part in str(caught.value)


def test_a_path_that_is_not_there_is_named_and_nothing_is_to_be_fetched(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "typo.h5", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=f"^{path}: there is no such file or folder; ") as caught:
            load("cifar10", path)
        assert "fetch" not in str(caught.value)


def test_the_digits_need_no_folder(tmp_path):
    assert load("digits", tmp_path / "absent").digest() == load("digits").digest()


@pytest.mark.parametrize(
    ("name", "nearest"), [("minst", "mnist"), ("cifar-10", "cifar10"), ("digit", "digits")]
)
def test_a_slip_of_the_hand_is_answered_with_the_nearest_name(name, nearest):
    with pytest.raises(DataError, match=f"{name!r} is unknown; nearest: {nearest!r}"):
        load(name)


def test_a_name_that_is_near_to_none_is_answered_with_all():
    with pytest.raises(DataError, match="'xyzzy' is unknown; there are digits, mnist"):
        load("xyzzy")
