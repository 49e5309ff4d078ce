"""Plain values out of a pickle file, without unpickling it.

CIFAR's "python version" is a set of pickles, and to load a pickle is to run whatever program it holds.
Here `pickletools.genops` splits the file into its opcodes, which executes nothing, and a small machine
rebuilds dicts, lists, tuples, bytes, text, numbers and NumPy arrays of uint8. It knows six names, and
knows them as symbols: nothing is imported or called. Any other opcode or name is refused. Keys of dicts
are text or bytes: the hash of a tuple visits all that is in it, however often shared, however deep.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npgait.loaders.dataset import DataError

_NAMES = {
    f"{module} {name}": name
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric")
    for name in ("_reconstruct", "ndarray", "dtype", "_frombuffer")
} | {
    "numpy._core.numeric _frombuffer": "_frombuffer",
    "_codecs encode": "encode",
    "__builtin__ bytes": "bytes",
}
_MARK = object()
MAX_OPCODES = 1 << 22  # the largest official file has fewer than a million
MAX_QUOTED = 100  # characters of the file in a message


@dataclass(frozen=True)
class _Symbol:
    name: str


@dataclass
class _Blank:
    """An array or dtype before the BUILD opcode that gives it its content."""

    kind: str
    memo_slots: set[int] = field(default_factory=set)


@dataclass
class _Machine:
    """The state of the machine between two opcodes."""

    room: int  # bytes that may yet be copied
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def take(self, count: int) -> list[Any]:
        """Pop so many values, in the order they were pushed."""
        items = self.stack[-count:]
        if len(items) < count or any(item is _MARK for item in items):
            raise DataError("the pickle takes more values than it gives")
        del self.stack[-count:]
        return items

    def take_to_mark(self) -> list[Any]:
        """Pop all values since the last mark, and the mark."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def read_plain_pickle(raw: bytes, where: Path | str) -> Any:
    """Return the value that a pickle of plain values and uint8 arrays describes.

    Parameters
    ----------
    raw : bytes
        The whole file. Memory is bounded by a small multiple of its size.
    where : Path or str
        What a message calls it.

    Raises
    ------
    DataError
        If it holds anything else, or is damaged.
    """
    machine = _Machine(room=len(raw))
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count == MAX_OPCODES:
                raise DataError(f"the pickle has over {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                (value,) = machine.take(1)
                if isinstance(value, _Symbol | _Blank):
                    raise DataError("the pickle holds no value")
                return value
            _step(opcode.name, argument, machine)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle fails in any of these steps
        reason = str(error)[:MAX_QUOTED]
        raise DataError(f"{where}: not a readable pickle of plain values ({reason})") from error
    raise DataError(f"{where}: the pickle ends before its end mark")


def _quoted(value: Any) -> str:
    """Return how a message shows a value: neither long nor, like repr, slow where values are shared."""
    is_text = isinstance(value, str | bytes)
    return repr(value[:MAX_QUOTED]) if is_text else f"a {type(value).__name__}"


def _pairs(items: list[Any]) -> dict[str | bytes, Any]:
    for key in items[::2]:
        if type(key) not in (str, bytes):
            raise DataError(f"the pickle has {_quoted(key)} as a key; expected text or bytes")
    return dict(zip(items[::2], items[1::2], strict=True))


def _step(  # noqa: PLR0912 - one branch an opcode reads best in one place
    name: str, argument: Any, machine: _Machine
) -> None:
    """Carry out one opcode."""
    stack, memo = machine.stack, machine.memo
    if name in ("PROTO", "FRAME"):
        return
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name]())
    elif name in _LITERALS:
        stack.append(argument)
    elif name in _TEXT_OF_PYTHON_2:  # genops hands out latin-1 text
        stack.append(argument.encode("latin-1"))
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        slot = len(memo) if name == "MEMOIZE" else int(argument)
        memo[slot] = stack[-1]
        if isinstance(stack[-1], _Blank):
            stack[-1].memo_slots.add(slot)
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(machine.take(int(name[-1]))))
    elif name in ("TUPLE", "LIST", "DICT"):
        items = machine.take_to_mark()
        stack.append(_pairs(items) if name == "DICT" else tuple(items) if name == "TUPLE" else items)
    elif name in ("APPEND", "APPENDS"):
        items = machine.take(1) if name == "APPEND" else machine.take_to_mark()
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = machine.take(2) if name == "SETITEM" else machine.take_to_mark()
        stack[-1].update(_pairs(items))
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        key = argument if name == "GLOBAL" else " ".join(machine.take(2))
        if key not in _NAMES:
            asked = _quoted(key)
            raise DataError(f"the pickle asks for {asked}; only plain values and NumPy arrays are read")
        stack.append(_Symbol(_NAMES[key]))
    elif name == "REDUCE":
        symbol, arguments = machine.take(2)
        stack.append(_reduced(symbol, arguments, machine))
    elif name == "BUILD":
        blank, state = machine.take(2)
        stack.append(_built(blank, state))
        if stack[-1] is not blank:
            memo.update({s: stack[-1] for s in blank.memo_slots if memo[s] is blank})
            blank.memo_slots.clear()
    else:
        raise DataError(f"the pickle holds the opcode {name}; only plain values are read")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_TEXT_OF_PYTHON_2 = {"STRING", "SHORT_BINSTRING", "BINSTRING"}


def _reduced(symbol: Any, arguments: tuple[Any, ...], machine: _Machine) -> Any:
    """Return what a call of one of the known names stands for."""
    name = symbol.name if isinstance(symbol, _Symbol) else None
    if name == "encode":  # how Python 3 writes bytes at protocol 2
        text, codec = arguments
        if codec not in ("latin1", b"latin1", "latin-1"):
            raise DataError(f"the pickle asks for the codec {_quoted(codec)}")
        machine.room -= len(text)  # the file holds each text once, but may ask for it again and again
        if machine.room < 0:
            raise DataError("the pickle makes more bytes than it holds")
        return text.encode("latin-1")
    if name == "bytes" and arguments == ():  # how it writes none
        return b""
    if name == "dtype":
        code = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if code not in ("u1", "|u1"):
            raise DataError(f"the pickle holds an array of dtype {_quoted(code)}; expected uint8")
        return _Blank("dtype")
    if name == "_reconstruct":
        return _Blank("array")
    if name == "_frombuffer":
        data, _, shape, order = arguments
        return _uint8_array(data, shape, order == "F")
    raise DataError("the pickle calls something that is not an array")


def _built(blank: Any, state: tuple[Any, ...]) -> Any:
    """Return the array that NumPy's (version, shape, dtype, is_fortran, bytes) makes of a blank."""
    if not isinstance(blank, _Blank):
        raise DataError("the pickle builds something that is not an array")
    if blank.kind == "dtype":  # byte order and alignment, which bytes do not have
        return blank
    _, shape, _, is_fortran, data = state
    return _uint8_array(data, shape, bool(is_fortran))


def _uint8_array(data: Any, shape: tuple[int, ...], is_fortran: bool) -> np.ndarray:
    """Return an array over the bytes of the file, not a copy."""
    if not isinstance(data, bytes | bytearray):
        raise DataError(f"the pickle holds an array of {_quoted(data)}; expected bytes")
    flat = np.frombuffer(data, dtype=np.uint8)
    return flat.reshape(shape, order="F" if is_fortran else "C")
