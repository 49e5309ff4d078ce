"""CIFAR-10 and CIFAR-100 in both official versions, unpacked and not."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.loaders import DataError, load

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
        with pytest.raises(DataError, match=f"{first}.*fetch it again|{first}: not a readable pickle"):
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


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_python_version_is_read_at_every_protocol(protocol, tmp_path):
    put(tmp_path, "cifar-10-batches-py", "", files_10_python(protocol), packed=False)
    data = load("cifar10", tmp_path)
    np.testing.assert_array_equal(data.test_x[1, :, :, 2].ravel(), pixels(3, 9)[1, 2048:])


def test_a_record_is_red_green_blue_each_row_by_row(tmp_path):
    planes = bytes([10] * 1024 + [20] * 1024 + [30] * 1024)
    first_row = bytes(range(32)) + planes[32:]
    files = {**files_10_binary(), "test_batch.bin": b"\x07" + planes + b"\x03" + first_row}
    put(tmp_path, "cifar-10-batches-bin", "", files, packed=False)
    data = load("cifar10", tmp_path)
    assert data.test_labels.tolist() == [7, 3]
    assert (data.test_x[0] == [10, 20, 30]).all()
    assert data.test_x[1, 0, :, 0].tolist() == list(range(32))
    assert (data.test_x[1, 1:] == [10, 20, 30]).all()


@pytest.mark.parametrize("sub", ["cifar10", "cifar-10"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_set_is_found_in_a_subfolder_of_its_own(sub, packed, tmp_path):
    (_, inner, archive), make = next(iter(VERSIONS.items()))
    put(tmp_path / sub, inner, archive, make(), packed)
    assert load("cifar10", tmp_path).train_x.shape == (20, 32, 32, 3)


def changed_batches(tmp_path, **labels):
    files = files_10_python()
    for name, values in labels.items():
        table = pickle.loads(files[name])
        files[name] = pickle.dumps({**table, b"labels": values}, 2)
    put(tmp_path, "cifar-10-batches-py", "", files, packed=False)


def test_labels_of_one_batch_do_not_make_up_for_those_of_the_next(tmp_path):
    changed_batches(tmp_path, data_batch_1=[0] * 5, data_batch_2=[0] * 3)
    with pytest.raises(DataError, match="data_batch_1: 4 images and 5 labels"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("label", [1 << 70, -1, 10, 1.0, True, None, "1", [1]])
def test_a_label_that_is_no_class_is_refused(label, tmp_path):
    changed_batches(tmp_path, data_batch_1=[0, 1, 2, label])
    with pytest.raises(DataError, match=r"has no list 'labels' of labels|labels lie in 0\.\.10"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        [],
        {},
        {"data": 1, "labels": [1]},
        {"data": np.zeros((1, 3071), np.uint8), "labels": [1]},
        {"data": np.zeros(3072, np.uint8), "labels": [1]},
        {"data": np.zeros((1, 3072), np.uint8), "labels": 1},
        {"data": np.zeros((1, 3072)), "labels": [1]},
    ],
)
def test_a_batch_without_images_or_labels_is_refused_by_name(table, tmp_path):
    files = {**files_10_python(), "data_batch_3": pickle.dumps(table, 2)}
    put(tmp_path, "cifar-10-batches-py", "", files, packed=False)
    with pytest.raises(DataError, match="data_batch_3"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("names", [5, None, [1, 2], {"label_names": 3}, {"label_names": ["a", 3]}])
def test_names_of_classes_that_are_not_text_are_refused(names, tmp_path):
    files = {**files_10_python(), "batches.meta": pickle.dumps(names, 2)}
    put(tmp_path, "cifar-10-batches-py", "", files, packed=False)
    with pytest.raises(DataError, match=r"batches\.meta"):
        load("cifar10", tmp_path)


def test_a_file_without_names_of_classes_is_refused_by_name(tmp_path):
    files = {**files_10_binary(), "batches.meta.txt": b"\n"}
    put(tmp_path, "cifar-10-batches-bin", "", files, packed=False)
    with pytest.raises(DataError, match=r"batches\.meta\.txt: no names of classes; fetch it again"):
        load("cifar10", tmp_path)


def test_a_flipped_bit_anywhere_in_an_archive_is_noticed(tmp_path):
    (_, inner, archive), make = next(iter(VERSIONS.items()))
    put(tmp_path, inner, archive, make(), packed=True)
    raw = (tmp_path / archive).read_bytes()
    start = 10 + len(archive)  # behind the header of gzip, which holds a date and a name
    for position in [*range(start, len(raw), len(raw) // 100), *range(len(raw) - 8, len(raw))]:
        damaged = bytearray(raw)
        damaged[position] ^= 4
        (tmp_path / archive).write_bytes(damaged)
        with pytest.raises(DataError, match=archive):
            load("cifar10", tmp_path)


def long_name(size):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = b"L", size
    return header.tobuf(tarfile.GNU_FORMAT)


def huge_member(name):
    header = tarfile.TarInfo(name)
    header.size = 1 << 30
    return header.tobuf()


@pytest.mark.parametrize(
    "head", [long_name(1 << 30), huge_member("test_batch.bin"), huge_member("other")]
)
def test_an_archive_that_unpacks_to_far_too_much_is_refused_in_bounded_memory(
    head, tmp_path, monkeypatch
):
    monkeypatch.setattr("npgait.loaders.cifar.MAX_ARCHIVE_BYTES", 1 << 22)
    bomb = gzip.compress(head + bytes(1 << 25), compresslevel=1)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to over"):
        load("cifar10", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.parametrize("name", ["readme.html", "cifar-10-batches-bin/test_batch.bin"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_member_that_claims_to_be_huge_is_refused_and_not_sought_the_end_of(kind, name, tmp_path):
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, 1 << 60
    zipped = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(zipped)
    with pytest.raises(DataError, match="unpacks to over"):
        load("cifar10", tmp_path)


def test_headers_that_make_tarfile_recurse_are_a_clear_error(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(long_name(0) * 5000))
    with pytest.raises(DataError, match="cannot be read"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_a_link_in_an_archive_is_not_followed(kind, tmp_path):
    header = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    header.type, header.linkname = kind, "/etc/passwd"
    raw = header.tobuf() + bytes(1024)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(DataError, match="has no file"):
        load("cifar10", tmp_path)


@given(
    changes=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=12),
    kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_no_header_of_an_archive_escapes_as_another_error(changes, kind, tmp_path_factory):
    header = tarfile.TarInfo("data_batch_1.bin" + "é" * 120)
    raw = bytearray(header.tobuf(kind)) + bytes(2048)
    for position, value in changes:
        raw[position] = value
    for start in range(0, 1024, 512):  # with a checksum that fits, or tarfile reads no further
        raw[start + 148 : start + 156] = b" " * 8
        raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
    folder = tmp_path_factory.mktemp("tar")
    (folder / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(raw, 1))
    with pytest.raises(DataError):
        load("cifar10", folder)
