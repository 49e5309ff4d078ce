"""CIFAR-10 and CIFAR-100 in both official versions, unpacked and not."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest

from npgait.loaders import DataError, load
from npgait.loaders.cifar import load_cifar100

NAMES_10 = [f"class{i}" for i in range(10)]
FINE, COARSE = [f"fine{i}" for i in range(100)], [f"coarse{i}" for i in range(20)]


def pixels(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def binary(n, seed, coarse=False):
    labels = np.arange(n, dtype=np.uint8)[:, None] % 10
    heads = np.hstack([labels // 5, labels]) if coarse else labels
    return np.hstack([heads, pixels(n, seed)]).tobytes()


def files_10_binary():
    files = {f"data_batch_{i}.bin": binary(4, i) for i in range(1, 6)}
    meta = "\n".join([*NAMES_10, ""]).encode()
    return files | {"test_batch.bin": binary(3, 9), "batches.meta.txt": meta}


def files_10_python(protocol=2):
    def part(n, seed):
        table = {b"data": pixels(n, seed), b"labels": [i % 10 for i in range(n)], b"filenames": [b"x"]}
        return pickle.dumps(table, protocol)

    files = {f"data_batch_{i}": part(4, i) for i in range(1, 6)}
    meta = pickle.dumps({b"label_names": [n.encode() for n in NAMES_10]}, protocol)
    return files | {"test_batch": part(3, 9), "batches.meta": meta}


def files_100_binary():
    return {
        "train.bin": binary(20, 1, coarse=True),
        "test.bin": binary(3, 9, coarse=True),
        "fine_label_names.txt": "\n".join(FINE).encode(),
        "coarse_label_names.txt": "\n".join(COARSE).encode(),
    }


def files_100_python():
    def part(n, seed):
        labels = [i % 10 for i in range(n)]
        table = {
            "data": pixels(n, seed),
            "fine_labels": labels,
            "coarse_labels": [v // 5 for v in labels],
        }
        return pickle.dumps(table, 2)

    meta = pickle.dumps({"fine_label_names": FINE, "coarse_label_names": COARSE}, 2)
    return {"train": part(20, 1), "test": part(3, 9), "meta": meta}


VERSIONS = {
    ("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"): files_10_binary,
    ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"): files_10_python,
    ("cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz"): files_100_binary,
    ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz"): files_100_python,
}


def put(folder, inner, archive, files, packed):
    folder.mkdir(parents=True, exist_ok=True)
    if not packed:
        (folder / inner).mkdir()
        for name, raw in files.items():
            (folder / inner / name).write_bytes(raw)
        return
    with tarfile.open(folder / archive, "w:gz") as tar:
        for name, raw in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "inner", "archive"), VERSIONS)
def test_both_versions_are_read_unpacked_or_not(name, inner, archive, packed, tmp_path):
    put(tmp_path, inner, archive, VERSIONS[name, inner, archive](), packed)
    data = load(name, tmp_path)
    assert data.train_x.shape == (20, 32, 32, 3)
    assert data.test_x.shape == (3, 32, 32, 3)
    assert data.classes == tuple(NAMES_10 if name == "cifar10" else FINE)
    assert data.test_labels.tolist() == [0, 1, 2]
    raw = pixels(3, 9)[2]
    for channel, row, column in ((0, 0, 0), (1, 31, 0), (2, 4, 30)):
        assert data.test_x[2, row, column, channel] == raw[1024 * channel + 32 * row + column]


def test_both_versions_hold_the_same(tmp_path):
    for number, ((_, inner, archive), make) in enumerate(list(VERSIONS.items())[:2]):
        put(tmp_path / str(number), inner, archive, make(), packed=False)
    assert load("cifar10", tmp_path / "0").digest() == load("cifar10", tmp_path / "1").digest()


@pytest.mark.parametrize(("name", "inner", "archive"), list(VERSIONS)[2:])
def test_coarse_labels_are_an_option(name, inner, archive, tmp_path):
    put(tmp_path, inner, archive, VERSIONS[name, inner, archive](), packed=False)
    data = load_cifar100(tmp_path, coarse=True)
    assert data.classes == tuple(COARSE)
    assert data.train_labels.tolist() == [i % 10 // 5 for i in range(20)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_or_missing_file_is_a_clear_error(number, packed, tmp_path):
    (name, inner, archive), make = list(VERSIONS.items())[number]
    files = make()
    first = next(iter(files))
    for case, raw in enumerate((files[first][:-1], b"", None)):
        broken = {**files, first: raw} if raw is not None else {k: files[k] for k in files if k != first}
        folder = tmp_path / str(case)
        put(folder, inner, archive, broken, packed)
        with pytest.raises(DataError, match=first):
            load(name, folder)


def test_a_damaged_archive_is_a_clear_error(tmp_path):
    (name, inner, archive), make = next(iter(VERSIONS.items()))
    put(tmp_path, inner, archive, make(), packed=True)
    path = tmp_path / archive
    raw = path.read_bytes()
    for damaged in (
        raw[: len(raw) // 2],
        raw[:10],
        b"",
        b"not a tar",
        raw[:500] + b"\xff" * 50 + raw[550:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=archive):
            load(name, tmp_path)


def test_a_missing_set_says_what_to_fetch_from_where_and_where_to_put_it(tmp_path):
    for folder in (None, tmp_path):
        with pytest.raises(DataError) as caught:
            load("cifar10", folder)
        for part in (
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu",
            "DIR/cifar10",
            "--data DIR",
        ):
            assert part in str(caught.value)
