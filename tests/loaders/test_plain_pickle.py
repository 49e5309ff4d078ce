"""Pickles are read without being run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.loaders import DataError
from npgait.loaders.plain_pickle import read_plain_pickle

PLAIN = {
    "text": "é",
    b"bytes": b"\xff\0",
    "list": [1, -2, 70000, 1 << 40, 2.5, None, True, False],
    "nested": {"a": (1, (2,), ()), "b": [[], {}]},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_read_at_every_protocol(protocol):
    assert read_plain_pickle(pickle.dumps(PLAIN, protocol), "f") == PLAIN


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_bytes_are_read_at_every_protocol(protocol, order):
    array = np.asarray(np.arange(24, dtype=np.uint8).reshape(4, 6), order=order)
    result = read_plain_pickle(pickle.dumps({"data": array, "again": array}, protocol), "f")
    np.testing.assert_array_equal(result["data"], array)
    np.testing.assert_array_equal(result["again"], array)


def test_the_official_files_of_python_2_are_read():
    """As Python 2.7 and NumPy 1 wrote them: short strings, and NumPy's old module name."""
    data = bytes(range(6))
    raw = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86"
        b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89T" + struct.pack("<i", 6) + data + b"tbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
    )
    table = read_plain_pickle(raw, "f")
    np.testing.assert_array_equal(table[b"data"], [[0, 1, 2], [3, 4, 5]])
    assert table[b"labels"] == [6, 9]


class Hostile:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_is_refused_and_nothing_is_executed(protocol, tmp_path):
    trace = tmp_path / "trace"
    for call in ((os.system, (f"touch {trace}",)), (eval, (f"open({str(trace)!r}, 'w').close()",))):
        raw = pickle.dumps({"data": Hostile(call)}, protocol)
        with pytest.raises(DataError, match="f: the pickle asks for"):
            read_plain_pickle(raw, "f")
        assert not trace.exists()
        pickle.loads(raw)  # the bait is real
        assert trace.exists()
        trace.unlink()


@pytest.mark.parametrize(
    "raw",
    [
        b"(S'x'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'x'\no.",  # OBJ
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"P1\n.",  # persistent id
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x02cnumpy\ndtype\nU\x02f8\x85R.",  # an array that is not bytes
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02}K\x01b.",
        b"\x80\x02cnumpy\nload\n.",
    ],
)
def test_every_other_way_to_make_an_object_is_refused(raw):
    with pytest.raises(DataError, match=r"^f: "):
        read_plain_pickle(raw, "f")


def test_a_value_shared_a_billion_times_costs_nothing():
    raw = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e" for i in range(30)
    )
    started = time.perf_counter()
    with contextlib.suppress(DataError):
        read_plain_pickle(raw + b".", "f")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_and_loops_do_not_escape_as_another_error(depth):
    for raw in (b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".", b"\x80\x02]q\x00h\x00a."):
        try:
            read_plain_pickle(raw, "f")
        except DataError as error:
            assert "f" in str(error)


def test_truncation_anywhere_is_noticed():
    raw = pickle.dumps({"data": np.arange(6, dtype=np.uint8), **PLAIN}, 4)
    for length in range(len(raw)):
        with pytest.raises(DataError):
            read_plain_pickle(raw[:length], "f")


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_escapes_as_another_error(position, bit):
    raw = bytearray(pickle.dumps({"data": np.arange(6, dtype=np.uint8), **PLAIN}, 2))
    raw[position % len(raw)] ^= 1 << bit
    with contextlib.suppress(DataError):
        read_plain_pickle(bytes(raw), "f")


@given(st.binary(max_size=60))
def test_no_bytes_escape_as_another_error(raw):
    with contextlib.suppress(DataError):
        read_plain_pickle(raw, "f")


def test_a_stream_of_one_opcode_after_another_needs_no_more_memory_than_the_file():
    raw = io.BytesIO()
    raw.write(b"\x80\x02](" + b"K\x01" * 100_000 + b"e.")
    assert len(read_plain_pickle(raw.getvalue(), "f")) == 100_000
