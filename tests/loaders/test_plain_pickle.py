"""Pickles are read without being run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import time
import tracemalloc

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
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x04cnumpy\nndarray\n)}\x92.",  # NEWOBJ_EX
        b"\x80\x02K\x01Q.",  # persistent id from the stack
        b"\x80\x02\x83\x01\x00.",
        b"\x80\x02\x84\x01\x00\x00\x00.",
        b"\x80\x05\x97.",  # a buffer from outside the file
        b"\x80\x02cnumpy\ndtype\n.",  # a name, not a value
        b"\x80\x02cnumpy\ndtype\nU\x02u1\x85R.",
        b"(.",
        b"K\x01\x86.",  # a pair of one value
        b"](a.",
        b"}K\x01(s.",
        b"h\x01.",
        b".",
    ],
)
def test_every_other_way_to_make_an_object_is_refused(raw):
    with pytest.raises(DataError, match=r"^f: "):
        read_plain_pickle(raw, "f")


def test_a_value_shared_a_billion_times_costs_nothing():
    raw = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e" for i in range(30)
    )
    started = time.process_time()
    with contextlib.suppress(DataError):
        read_plain_pickle(raw + b".", "f")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_and_loops_do_not_escape_as_another_error(depth):
    for raw in (b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".", b"\x80\x02]q\x00h\x00a."):
        try:
            read_plain_pickle(raw, "f")
        except DataError as error:
            assert "f" in str(error)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_truncation_anywhere_is_noticed(protocol):
    raw = pickle.dumps({"data": np.arange(6, dtype=np.uint8), **PLAIN}, protocol)
    for length in range(len(raw)):
        with pytest.raises(DataError):
            read_plain_pickle(raw[:length], "f")


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), protocol=st.integers(2, 5))
def test_no_flipped_bit_escapes_as_another_error(position, bit, protocol):
    raw = bytearray(pickle.dumps({"data": np.arange(6, dtype=np.uint8), **PLAIN}, protocol))
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


EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n)R"


def names_and_values(count, size):
    """Return a pickle that asks `count` times for the same text of `size` letters as bytes."""
    text = b"X" + struct.pack("<I", size) + b"a" * size
    head = b"\x80\x02c_codecs\nencode\nq\x03" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02]("
    return head + b"h\x03h\x01h\x02\x86R" * count + b"e."


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        # Bytes that the file does not hold.
        (b"cnumpy.core.numeric\n_frombuffer\n(J\xff\xff\xff\x7fN(K\x01tU\x01CtR.", "array of a int"),
        (names_and_values(1000, 10_000), "more bytes than it holds"),
        # What is visited as often as it is shared: 2^60 times.
        (b"})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "a tuple as a key"),
        (b"c_codecs\nencode\nU\x01a)" + b"q\x00h\x00\x86" * 60 + b"\x86R.", "the codec a tuple"),
        (b"cnumpy\ndtype\n)" + b"q\x00h\x00\x86" * 60 + b"\x85R.", "dtype a tuple"),
        (EMPTY + b"(K\x01)" + b"q\x00h\x00\x86" * 60 + b"NK\x00U\x01xtb.", "f: "),
        (EMPTY + b"(K\x01K\x01\x85NK\x00)" + b"q\x00h\x00\x86" * 60 + b"tb.", "array of a tuple"),
        # What is visited as deep as it is nested.
        (b"})" + b"\x85" * 200_000 + b"K\x01s.", "a tuple as a key"),
        # An array over an array over an array.
        (EMPTY + b"(K\x01K\x01\x85NK\x00" + EMPTY + b"(K\x01)NK\x00U\x01xtbtb.", "array of a ndarray"),
        # Places to put an array, times arrays to put there.
        (b"cnumpy\ndtype\nU\x02u1\x85R" + b"q\x01" * 40_000 + b"h\x01Nb" * 40_000 + b".", "no value"),
        (b"X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"X\x01\x00\x00\x00b\x93.", "asks for 'aaa"),
    ],
    ids=["int", "encode", "hash", "codec", "dtype", "shape", "data", "deep", "chain", "memo", "long"],
)
def test_no_small_file_takes_much_time_or_memory_or_a_long_message(raw, message):
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        read_plain_pickle(raw, "f")
    took = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 5  # with tracemalloc, which is slow; each of these took forever, or far more memory
    assert peak < 100 * len(raw) + 1_000_000
    assert len(str(caught.value)) < 300


def test_a_file_of_too_many_opcodes_is_refused(monkeypatch):
    monkeypatch.setattr("npgait.loaders.plain_pickle.MAX_OPCODES", 1000)
    assert read_plain_pickle(b"](" + b"K\x01" * 990 + b"e.", "f") == [1] * 990
    with pytest.raises(DataError, match="over 1000 opcodes"):
        read_plain_pickle(b"]" * 1001 + b".", "f")


def test_bytes_of_python_3_at_protocol_2_are_read_however_many():
    values = [bytes([i]) * 40 for i in range(256)] + [b"", bytes(range(256)) * 20]
    assert read_plain_pickle(pickle.dumps(values, 2), "f") == values


def test_a_place_in_the_memo_that_was_used_again_keeps_its_new_value():
    state = b"(K\x01K\x01\x85NK\x00U\x01xt"
    arrays = read_plain_pickle(EMPTY + b"q\x00q\x01" + state + b"bh\x00h\x01\x87.", "f")
    assert [a.tolist() for a in arrays] == [[120]] * 3
    reused = state.replace(b"N", b"K\x07q\x00")  # where the dtype stands, which bytes do not need
    array, seven = read_plain_pickle(EMPTY + b"q\x00" + reused + b"bh\x00\x86.", "f")
    assert (array.tolist(), seven) == ([120], 7)


PIECES = [
    *(b"(", b")", b"]", b"}", b"N", b"K\x01", b"U\x01x", b"U\x02u1", b"X\x01\x00\x00\x00a", b"C\x01x"),
    *(b"a", b"e", b"s", b"u", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"R", b"b", b"\x94"),
    *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", EMPTY),
    *(b"cnumpy.core.numeric\n_frombuffer\n", b"\x93", b"\x96\x01" + bytes(7) + b"x"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_no_sequence_of_known_opcodes_escapes_as_another_error(pieces):
    with contextlib.suppress(DataError):
        read_plain_pickle(b"".join(pieces) + b".", "f")
