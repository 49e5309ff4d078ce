"""A stand-in for CuPy on the CPU: strict where CuPy is strict, and it counts what a host would wait for.

Arrays are NumPy's in disguise. Mixing them with NumPy arrays is an error, as it is with CuPy's; full
reductions are 0-d arrays; whatever brings a value to the host (float, int, bool, item, get) is counted.
Kernels run as C++ (tests/emulation.py). While a stream records, nothing in place is done, results are
NaN, and copies from the host and CuPy's own products are errors; a graph does what was recorded, on the
same memory. This is the second of two GPUs, and a thread has to choose it: CuPy begins with the first.
What only a device can show, it cannot.
"""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.emulation import launch_kernel
from tests.fake_cublas import FakeCublas

INDEX = 1  # of the GPU that this is


class Counter:
    waits = 0


class Current(threading.local):
    """The GPU that a thread computes on."""

    index = 0


current = Current()


class Tape:
    """What a stream records: None where none does."""

    work: list[Callable[[], object]] | None = None


def _make(compute: Callable[[], Any], *sources: Any) -> Any:
    """Return a new array; where a stream records, one that holds NaN until the graph is launched."""
    result = compute()
    if Tape.work is None or not isinstance(result, np.ndarray | np.generic):
        assert Tape.work is None or not isinstance(result, tuple), "not recorded: several results"
        return _disguised(result)
    for source in sources:
        if isinstance(source, np.ndarray) and np.may_share_memory(result, source.view(np.ndarray)):
            return _disguised(result)  # a view
    kept = np.array(result)
    kept[...] = np.nan if kept.dtype.kind == "f" else 0
    Tape.work.append(lambda: np.copyto(kept, compute()))
    return _disguised(kept)


def _change(work: Callable[[], object]) -> None:
    """Do something in place, or record it."""
    if Tape.work is None:
        work()
    else:
        Tape.work.append(work)


def _refuse_products() -> None:
    if Tape.work is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def _launch(source: str, name: str, dtype: np.dtype, n: int, arguments: tuple) -> None:
    assert all(type(each) is not np.ndarray for each in arguments), f"{name}: an array of the host"
    assert current.index == INDEX, f"{name}: an array of another GPU"
    _change(lambda: launch_kernel(source, name, dtype, n, arguments))


class FakeArray(np.ndarray):
    """A NumPy array that is taken for one of CuPy's."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if ufunc is np.matmul:
            _refuse_products()
        inputs = tuple(map(_plain, inputs))
        if out is not None:
            options["out"] = tuple(map(_plain, out))
            _change(lambda: getattr(ufunc, method)(*inputs, **options))
            return out[0]
        return _make(lambda: getattr(ufunc, method)(*inputs, **options))

    def __array_function__(self, function, kinds, arguments, options):
        arguments, options = _plain(list(arguments)), _plain(options)
        return _make(lambda: function(*arguments, **options), *arguments)

    def __setitem__(self, index, value):
        index, value = _plain(index), _plain(value)
        _change(lambda: self.view(np.ndarray).__setitem__(index, value))

    def __getitem__(self, index):
        index = _plain(index)
        return _make(lambda: np.asarray(self.view(np.ndarray)[index]), self)

    def copy(self, order="C"):
        return _make(lambda: self.view(np.ndarray).copy(order))

    def astype(self, dtype, **options):
        return _make(lambda: self.view(np.ndarray).astype(dtype, **options), self)

    def reshape(self, *shape):
        return _make(lambda: self.view(np.ndarray).reshape(*shape), self)

    @property
    def data(self):
        if Tape.work is not None:
            Tape.work.append(lambda: self)  # what is recorded knows an address: it has to stay
        return types.SimpleNamespace(ptr=self.ctypes.data)

    @property
    def device(self):
        return types.SimpleNamespace(id=INDEX)

    def _wait(self):
        if Tape.work is not None:
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        Counter.waits += 1
        return self.view(np.ndarray)

    def get(self):
        return self._wait().copy()

    def __float__(self):
        return float(self._wait())

    def __int__(self):
        return int(self._wait())

    def __bool__(self):
        return bool(self._wait())

    def item(self, *arguments):
        return self._wait().item(*arguments)

    def set(self, values, stream=None):
        assert type(values) is np.ndarray and values.flags.c_contiguous
        assert self.dtype.isnative, "CuPy's kernels would read the bytes of a value the wrong way round"
        self.view(np.ndarray)[...] = values

    def ravel(self, *arguments):
        return _make(lambda: self.view(np.ndarray).ravel(*arguments), self)


def _reduction(name):
    def method(self, *arguments, **options):
        return _make(lambda: np.asarray(getattr(self.view(np.ndarray), name)(*arguments, **options)))

    return method


for name in ("sum", "max", "min", "mean", "trace", "any", "all", "argmax", "argmin"):
    setattr(FakeArray, name, _reduction(name))


def _plain(value: Any) -> Any:
    """The NumPy array behind a disguise; a NumPy array without one is refused."""
    if isinstance(value, FakeArray):
        return value.view(np.ndarray)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: mixed with CuPy arrays")
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


def _disguised(value: Any) -> Any:
    if isinstance(value, FakeArray):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value).view(FakeArray)
    if type(value) is tuple or hasattr(value, "_fields"):
        return tuple(map(_disguised, value))
    return value


class _Module(types.ModuleType):
    def __init__(self, real, **own):
        super().__init__(real.__name__ if isinstance(real, types.ModuleType) else "fake")
        self._real = real
        self.__dict__.update(own)

    def __getattr__(self, name):
        found = getattr(self._real, name)
        if not callable(found) or isinstance(found, type):
            return found

        def function(*arguments, **options):
            if name in ("matmul", "dot"):
                _refuse_products()
            arguments, options = _plain(arguments), _plain(options)
            if options.get("out") is not None:
                _change(lambda: found(*arguments, **options))
                return _disguised(options["out"])
            return _make(lambda: found(*arguments, **options), *arguments)

        return function


def _to_device(x, dtype=None):
    if Tape.work is not None and not isinstance(x, FakeArray):
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
    plain = x.view(np.ndarray) if isinstance(x, FakeArray) else np.array(x)
    return _disguised(np.asarray(plain, dtype=dtype))


def _syrk(trans, a, out, *, lower):
    _refuse_products()

    def work():
        product = np.tril(_plain(a) @ _plain(a).T)
        product[np.triu_indices(len(product), 1)] = np.nan
        out.view(np.ndarray)[...] = product

    _change(work)
    return out


class _Event:
    def __init__(self, **options):
        self.recorded = False

    def record(self, stream=None):
        self.recorded = True

    def synchronize(self):
        pass


class _Pool:
    def __init__(self, allocator):
        self.malloc = allocator
        self.given_back = 0

    def set_limit(self, size):
        assert size == 0

    def free_all_blocks(self):
        self.given_back += 1


class _Graph:
    def __init__(self, work):
        self.work = work

    def launch(self):
        assert Tape.work is None
        for work in self.work:
            work()


class _Stream:
    ptr = 1

    def __init__(self, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def begin_capture(self):
        assert Tape.work is None
        Tape.work = []

    def end_capture(self):
        work, Tape.work = Tape.work, None
        return _Graph(work)

    def wait_event(self, event):
        pass

    def synchronize(self):
        Counter.waits += 1


def make() -> types.ModuleType:
    """A module to stand as `cupy` in sys.modules."""
    cuda = types.SimpleNamespace(
        Device=lambda index: types.SimpleNamespace(use=lambda: setattr(current, "index", index)),
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 2, runtimeGetVersion=lambda: 13000),
        get_current_stream=_Stream,
        Stream=_Stream,
        Event=_Event,
        alloc_pinned_memory=bytearray,
        MemoryPool=_Pool,
        using_allocator=lambda malloc: contextlib.nullcontext(),
    )
    pool = types.SimpleNamespace(
        total_bytes=lambda: 0, used_bytes=lambda: 0, free_all_blocks=lambda: None
    )
    strides = types.SimpleNamespace(stride_tricks=_Module(np.lib.stride_tricks))
    return _Module(
        np,
        ndarray=FakeArray,
        asarray=_to_device,
        array=_to_device,
        linalg=_Module(np.linalg),
        lib=strides,
        cuda=cuda,
        cublas=types.SimpleNamespace(syrk=_syrk),
        get_default_memory_pool=lambda: pool,
        __version__="0",
    )


@pytest.fixture
def fake_gpu(monkeypatch):
    """A device that takes itself for a GPU."""
    import sys

    from npgait import backend, cublas, gpu, kernels

    monkeypatch.setitem(sys.modules, "cupy", make())
    monkeypatch.setattr(cublas, "_library", lambda device: FakeCublas(_change))
    monkeypatch.setitem(sys.modules, "cupy.cublas", sys.modules["cupy"].cublas)
    monkeypatch.setattr(kernels, "launch_kernel", _launch)
    for made in (gpu.uploader, gpu.recorder, cublas.cublas_of):
        made.cache_clear()
    Counter.waits = 0
    yield backend.select_device(f"gpu:{INDEX}")
    for made in (gpu.uploader, gpu.recorder, cublas.cublas_of):
        made.cache_clear()
