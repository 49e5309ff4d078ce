"""Checkpoints and metric files: whole or not at all, and damage is noticed."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgait import checkpoint
from npgait.checkpoint import (
    SEAL_BYTES,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from npgait.config import make_experiment
from npgait.files import lock, replacing, write_text
from npgait.run_folder import RunFolderError, hidden_angle, read_metrics, write_metrics
from npgait.session import build_session, restore_session, save_session


def sample():
    rng = np.random.default_rng(0)
    return Checkpoint(
        {"experiment": {"name": "x"}, "rows": [{"kind": "epoch", "loss": 0.5}]},
        {
            "parameters": {"hidden1/W": rng.standard_normal((3, 4)).astype(np.float32)},
            "optimizer": {"t": np.asarray(7), "m0": rng.standard_normal(5)},
            "feedback": {},
        },
    )


def seal(path):
    """Write the digest of a file that was changed, as a hostile one would have it."""
    raw = bytearray(path.read_bytes())
    digest = hashlib.sha256(raw[SEAL_BYTES:]).hexdigest()
    raw[:SEAL_BYTES] = f"npgait checkpoint 2 sha256 {digest}\n".encode().ljust(SEAL_BYTES, b"\0")
    path.write_bytes(raw)


def test_a_checkpoint_reads_back_equal(tmp_path):
    path, saved = tmp_path / "c.h5", sample()
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert loaded.meta == saved.meta
    for group, members in saved.arrays.items():
        assert set(loaded.arrays[group]) == set(members)
        for name, array in members.items():
            np.testing.assert_array_equal(loaded.arrays[group][name], array)
            assert loaded.arrays[group][name].dtype == array.dtype


def test_plain_h5py_reads_the_weights(tmp_path):
    save_checkpoint(tmp_path / "c.h5", sample())
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["parameters/hidden1/W"].shape == (3, 4)
        assert json.loads(file["meta"][:].tobytes())["experiment"]["name"] == "x"


@pytest.mark.skipif(os.name != "posix", reason="locks as on POSIX")
def test_a_file_that_another_program_has_locked_is_read(tmp_path):
    save_checkpoint(tmp_path / "c.h5", sample())
    with (tmp_path / "c.h5").open("rb") as file:
        lock(file.fileno())
        assert load_checkpoint(tmp_path / "c.h5").meta == sample().meta


def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    save_checkpoint(tmp_path / "c.h5", sample())
    monkeypatch.setattr(checkpoint, "_read", no_memory)
    with pytest.raises(MemoryError, match="9 GiB"):
        load_checkpoint(tmp_path / "c.h5")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "c.h5"
    save_checkpoint(path, sample())
    before = path.read_bytes()
    broken = sample()
    broken.arrays["parameters"]["bad"] = np.array([object()])
    with pytest.raises(TypeError):
        save_checkpoint(path, broken)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.h5"]


def test_a_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("sync"), real_sync(d)))
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda self, to: (calls.append("rename"), real_replace(self, to))
    )
    write_text(tmp_path / "a.txt", "text")
    assert calls == ["sync", "rename", "sync"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_missing_foreign_and_future_files_are_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CheckpointError, match="not a checkpoint of npgait"):
        load_checkpoint(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint of npgait"):
        load_checkpoint(tmp_path / "text.h5")
    save_checkpoint(tmp_path / "c.h5", sample())
    raw = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").write_bytes(raw.replace(b"checkpoint 2", b"checkpoint 99", 1))
    with pytest.raises(CheckpointError, match="format version 99"):
        load_checkpoint(tmp_path / "c.h5")


def test_a_file_that_promises_more_than_it_holds_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.h5", sample())
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["parameters/hidden1/W"]
        file.create_dataset("parameters/hidden1/W", shape=(1 << 40,), dtype="f4", chunks=(1024,))
    seal(tmp_path / "c.h5")
    with pytest.raises(CheckpointError, match=r"promises \d+ bytes of float32"):
        load_checkpoint(tmp_path / "c.h5")


def _external(file, name, pipe):
    file.create_dataset(name, (3,), np.float32, external=[(pipe, 0, h5py.h5f.UNLIMITED)])


def _virtual(file, name, pipe):
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[...] = h5py.VirtualSource(pipe, "x", (3,))
    file.create_virtual_dataset(name, layout)


def _linked(file, name, pipe):
    file[name] = h5py.ExternalLink(pipe, "/x")


def _deep(file, name, _):
    file[name + "/g" * 4000] = np.float32(0)


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
@pytest.mark.parametrize(
    ("name", "put", "words"),
    [
        ("meta", _linked, "meta is a link"),
        ("parameters", _linked, "parameters is a link"),
        ("meta", _external, "lies in another file"),
        ("parameters/hidden1/W", _external, "lies in another file"),
        ("parameters/hidden1/W", _virtual, "lies in another file"),
        ("parameters/hidden1", _deep, "groups within groups"),
    ],
)
def test_a_file_that_leads_elsewhere_or_without_end_is_refused_at_once(name, put, words, tmp_path):
    save_checkpoint(tmp_path / "c.h5", sample())
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file[name]
        put(file, name, str(tmp_path / "pipe"))
    seal(tmp_path / "c.h5")
    code = "import sys; from pathlib import Path; from npgait import checkpoint"
    code += "; checkpoint.load_checkpoint(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "c.h5")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert words in ended.stderr


@settings(max_examples=300)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_anywhere_is_noticed_or_harmless(tmp_path_factory, position, bit, cut):
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "c.h5"
    save_checkpoint(path, sample())
    raw = bytearray(path.read_bytes())
    at = int(position * len(raw))
    if cut:
        raw = raw[:at]
    else:
        raw[at] ^= 1 << bit
    path.write_bytes(raw)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if at >= SEAL_BYTES:
                patch.delattr(h5py, "File")  # which may not come to an end
            loaded = load_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
        assert at < SEAL_BYTES or "does not match its digest" in str(error)
    else:  # the space between the first line and HDF5's part
        assert at < SEAL_BYTES
        assert loaded.meta == sample().meta
        np.testing.assert_array_equal(
            loaded.arrays["parameters"]["hidden1/W"], sample().arrays["parameters"]["hidden1/W"]
        )


@pytest.mark.parametrize("name", ["meta", "parameters/hidden1/W", "optimizer/t", "optimizer/m0"])
@pytest.mark.parametrize("last", [False, True])
def test_one_changed_bit_of_any_value_is_noticed(name, last, tmp_path):
    path = tmp_path / "c.h5"
    save_checkpoint(path, sample())
    with h5py.File(path) as file:
        at = file[name].id.get_offset() + (file[name].nbytes - 1 if last else 0)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="does not match its digest"):
        load_checkpoint(path)


def test_meta_data_that_are_no_table_are_refused(tmp_path):
    save_checkpoint(tmp_path / "c.h5", Checkpoint([1], sample().arrays))
    with pytest.raises(CheckpointError, match="are no table"):
        load_checkpoint(tmp_path / "c.h5")


def session(**values):
    experiment = make_experiment({"name": "x", "width": 8, "depth": 1, **values}, "test")
    return build_session(experiment, (6,), 3)


def test_a_session_goes_on_only_with_its_own_experiment_and_data(tmp_path):
    path = tmp_path / "c.h5"
    save_session(path, session(), "digest")
    restore_session(path, session(epochs=99), "digest")
    with pytest.raises(CheckpointError, match="other data"):
        restore_session(path, session(), "another")
    with pytest.raises(CheckpointError, match="another learning_rate"):
        restore_session(path, session(learning_rate=0.5), "digest")
    with pytest.raises(CheckpointError, match="another seed, width"):
        restore_session(path, session(width=9, seed=1), "digest")


def test_a_session_takes_up_weights_feedback_and_streams(tmp_path):
    path = tmp_path / "c.h5"
    one, two = session(rule="fa"), session(rule="fa")
    for parameter in one.network.parameters():
        parameter += 1
    one.network.feedback[1] *= 2
    one.streams.order.integers(10, size=5)
    save_session(path, one, "d")
    restore_session(path, two, "d")
    for p, q in zip(one.network.parameters(), two.network.parameters(), strict=True):
        np.testing.assert_array_equal(p, q)
    np.testing.assert_array_equal(one.network.feedback[1], two.network.feedback[1])
    assert one.streams.order.integers(1 << 40) == two.streams.order.integers(1 << 40)


ROWS = [
    {"kind": "layers", "step": 1, "epoch": 1, "layers": [
        {"layer": "hidden1", "angle": 12.0, "norm_ratio": 1.0, "inverse_residual": None,
         "inverse_terms": None, "orthogonality": None, "crossed": None, "gamma": None},
        {"layer": "output", "angle": 0.0, "norm_ratio": 1.0, "inverse_residual": 1e-7,
         "inverse_terms": 2, "orthogonality": 0.1, "crossed": 0.0, "gamma": 1e-3},
    ]},
    {"kind": "epoch", "epoch": 1, "step": 5, "train_loss": float("nan"), "test_top1": 0.5,
     "seconds": 1.5},
]  # fmt: skip


def test_metrics_are_json_lines_and_two_tables(tmp_path):
    write_metrics(tmp_path, ROWS)
    rows = read_metrics(tmp_path)
    assert rows[0] == ROWS[0]
    assert rows[1] == {**ROWS[1], "train_loss": None}
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {"epoch": "1", "step": "5", "train_loss": "", "test_top1": "0.5", "seconds": "1.5"}
    with (tmp_path / "layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    assert [(r["layer"], r["angle"], r["gamma"]) for r in layers] == [
        ("hidden1", "12.0", ""),
        ("output", "0.0", "0.001"),
    ]


def test_a_file_without_one_of_its_groups_is_said_to_lack_it(tmp_path):
    save_checkpoint(tmp_path / "c.h5", sample())
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["optimizer"]
    seal(tmp_path / "c.h5")
    with pytest.raises(CheckpointError, match="'optimizer' doesn't exist"):
        load_checkpoint(tmp_path / "c.h5")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_measure_of_a_layer_that_is_not_finite_is_missing(value, tmp_path):
    first, output = ROWS[0]["layers"]
    write_metrics(tmp_path, [{**ROWS[0], "layers": [{**first, "norm_ratio": value}, output]}])
    (row,) = read_metrics(tmp_path)
    assert row == {**ROWS[0], "layers": [{**first, "norm_ratio": None}, output]}
    with (tmp_path / "layers.csv").open() as file:
        assert [layer["norm_ratio"] for layer in csv.DictReader(file)] == ["", "1.0"]


def test_the_final_angle_leaves_the_output_layer_out():
    assert hidden_angle(ROWS) == 12.0
    assert hidden_angle(ROWS[1:]) is None
    missing = [{**ROWS[0], "layers": [{**ROWS[0]["layers"][0], "angle": None}, ROWS[0]["layers"][1]]}]
    assert hidden_angle(missing) is None


def test_metrics_have_one_order_wherever_they_have_been(tmp_path):
    def names():
        return [(tmp_path / name).read_text() for name in ("metrics.jsonl", "metrics.csv", "layers.csv")]

    write_metrics(tmp_path, ROWS)
    expected = names()
    write_metrics(tmp_path, json.loads(json.dumps(ROWS, sort_keys=True)))  # as from a checkpoint
    assert names() == expected


DAMAGED = [
    "{",
    "3",
    '{"kind": "other"}',
    "\x00",
    "[" * 10000,
    '{"kind": "epoch"}',
    '{"kind": "epoch", "epoch": 1, "step": 5, "seconds": "1"}',
    '{"kind": "epoch", "epoch": 1, "step": 5, "seconds": 1, "test_top1": [0.5]}',
    '{"kind": "layers", "epoch": 1, "step": 5}',
    '{"kind": "layers", "epoch": 1, "step": 5, "layers": [{"layer": "hidden1"}]}',
    '{"kind": "layers", "epoch": true, "step": 5, "layers": []}',
    *(
        json.dumps({**ROWS[0], "layers": [{**layer, key: value} for layer in ROWS[0]["layers"]]})
        for key, value in (("angle", "12"), ("gamma", [1]), ("norm_ratio", math.nan))
    ),
    '{"kind": "epoch", "epoch": 1, "step": 5, "seconds": NaN}',
    '{"kind": "epoch", "epoch": 1, "step": 5, "seconds": 1, "test_loss": 1e999}',
    '{"kind": "epoch", "epoch": 1, "step": 5, "seconds": 1' + "0" * 400 + "}",
]


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_metrics_are_one_clear_line(tmp_path, line):
    write_metrics(tmp_path, ROWS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunFolderError, match="line 3 is damaged"):
        read_metrics(tmp_path)


def test_metrics_of_other_layers_are_damaged(tmp_path):
    write_metrics(tmp_path, [*ROWS, {**ROWS[0], "layers": ROWS[0]["layers"][:1]}])
    with pytest.raises(RunFolderError, match="layers are not the same"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.meta.pop("rows"),
        lambda c: c.meta.update(progress=3),
        lambda c: c.meta["progress"].pop("tally"),
        lambda c: c.meta["progress"].update(surprise=1),
        lambda c: c.meta.update(streams="{}"),
        lambda c: c.meta.update(experiment=[]),
        lambda c: c.meta.pop("data"),
        lambda c: c.arrays["parameters"].pop("output/W"),
        lambda c: c.arrays["parameters"].update({"output/W": np.zeros((2, 2), np.float32)}),
        lambda c: c.arrays["parameters"].update({"output/W": np.zeros((1, 1), np.float32)}),
        lambda c: c.arrays["parameters"].update(
            {"output/W": c.arrays["parameters"]["output/W"].astype(np.float64)}
        ),
        lambda c: c.arrays["optimizer"].update({"m0": np.zeros(3)}),
        lambda c: c.arrays["optimizer"].update({"m99": np.zeros(3)}),
        lambda c: c.arrays["optimizer"].update({"m0": np.zeros(())}),
        lambda c: c.arrays["optimizer"].update({"m0": np.zeros((6, 8), int)}),
        lambda c: c.arrays["optimizer"].update({"t": np.asarray(-1)}),
        lambda c: c.arrays["optimizer"].update({"t": np.asarray(1.5)}),
        lambda c: c.meta["progress"].pop("batch"),
        lambda c: c.meta["progress"].update(batch="1"),
        lambda c: c.meta["progress"].update(step=-1),
        lambda c: c.meta["progress"].update(epoch=1.5),
        lambda c: c.meta["progress"].update(seconds=float("nan")),
        lambda c: c.meta["progress"]["tally"].update(top1=None),
        lambda c: c.meta.update(rows="text"),
        lambda c: c.meta.update(rows=[5]),
        lambda c: c.meta.update(rows=[{}]),
    ],
)
def test_a_checkpoint_that_is_whole_but_wrong_is_one_clear_line(tmp_path, change):
    path = tmp_path / "c.h5"
    save_session(path, session(), "digest")
    checkpoint = load_checkpoint(path)
    change(checkpoint)
    save_checkpoint(path, checkpoint)
    with pytest.raises(CheckpointError, match=r"c\.h5") as caught:
        restore_session(path, session(), "digest")
    assert "\n" not in str(caught.value)
