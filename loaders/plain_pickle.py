"""Plain values out of a pickle file, without unpickling it.

CIFAR's "python version" is a set of pickles, and to load a pickle is to run whatever program it holds.
Here `pickletools.genops` splits the file into its opcodes, which executes nothing, and a small machine
rebuilds dicts, lists, tuples, bytes, text, numbers and NumPy arrays of uint8. It knows five names, and
knows them as symbols: nothing is imported or called. Any other opcode or name is refused.
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
} | {"numpy._core.numeric _frombuffer": "_frombuffer", "_codecs encode": "encode"}
_MARK = object()


@dataclass(frozen=True)
class _Symbol:
    name: str


@dataclass
class _Blank:
    """An array or dtype before the BUILD opcode that gives it its content."""

    kind: str
    memo_slots: list[int] = field(default_factory=list)


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
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle fails in any of these steps
        raise DataError(f"{where}: not a readable pickle of plain values ({error})") from error
    raise DataError(f"{where}: the pickle ends before its end mark")


def _to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _step(  # noqa: PLR0912 - one branch an opcode reads best in one place
    name: str, argument: Any, stack: list[Any], memo: dict[int, Any]
) -> None:
    """Carry out one opcode."""
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
            stack[-1].memo_slots.append(slot)
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[int(argument)])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("TUPLE", "LIST", "DICT"):
        items = _to_mark(stack)
        pairs = zip(items[::2], items[1::2], strict=True) if name == "DICT" else None
        stack.append(dict(pairs) if pairs else tuple(items) if name == "TUPLE" else items)
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _to_mark(stack)
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _to_mark(stack)
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        key = argument if name == "GLOBAL" else " ".join([stack.pop(-2), stack.pop()])
        if key not in _NAMES:
            raise DataError(f"the pickle asks for {key!r}; only plain values and NumPy arrays are read")
        stack.append(_Symbol(_NAMES[key]))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_reduced(stack.pop(), arguments))
    elif name == "BUILD":
        state, blank = stack.pop(), stack.pop()
        stack.append(_built(blank, state))
        memo.update(dict.fromkeys(blank.memo_slots, stack[-1]))
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


def _reduced(symbol: Any, arguments: tuple[Any, ...]) -> Any:
    """Return what a call of one of the known names stands for."""
    name = symbol.name if isinstance(symbol, _Symbol) else None
    if name == "encode":  # how Python 3 writes bytes at protocol 2
        text, codec = arguments
        if codec not in ("latin1", b"latin1", "latin-1"):
            raise DataError(f"the pickle asks for the codec {codec!r}")
        return text.encode("latin-1")
    if name == "dtype":
        code = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if code not in ("u1", "|u1"):
            raise DataError(f"the pickle holds an array of dtype {code!r}; expected uint8")
        return _Blank("dtype")
    if name == "_reconstruct":
        return _Blank("array")
    if name == "_frombuffer":
        data, _, shape, order = arguments
        return _uint8_array(bytes(data), shape, order == "F")
    raise DataError("the pickle calls something that is not an array")


def _built(blank: Any, state: tuple[Any, ...]) -> Any:
    """Return the array that NumPy's (version, shape, dtype, is_fortran, bytes) makes of a blank."""
    if not isinstance(blank, _Blank):
        raise DataError("the pickle builds something that is not an array")
    if blank.kind == "dtype":  # byte order and alignment, which bytes do not have
        return blank
    _, shape, _, is_fortran, data = state
    return _uint8_array(data, shape, bool(is_fortran))


def _uint8_array(data: bytes, shape: tuple[int, ...], is_fortran: bool) -> np.ndarray:
    flat = np.frombuffer(data, dtype=np.uint8)
    return flat.reshape(shape, order="F" if is_fortran else "C")
