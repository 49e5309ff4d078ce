"""What only a GPU has: copies on a second stream, and work recorded in CUDA graphs."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from npgait.backend import Array, Device
from npgait.cublas import cublas_of, in_recordings


class Uploader:
    """Copies batches to a GPU on a stream of its own, from pinned memory, while others are computed on.

    Two buffers take turns on either side. A buffer is written again only after its copy, and what was
    computed from it, are done; the host waits for the former, the copying stream for the latter.
    """

    def __init__(self, device: Device) -> None:
        self.cuda = device.xp.cuda
        self.xp = device.xp
        self.stream = self.cuda.Stream(non_blocking=True)
        self.slots: list[dict[str, Any]] = [{}, {}]
        self.number = 0
        self.lock = threading.Lock()  # networks that are trained in threads share the buffers

    def __call__(self, x: np.ndarray, prepare: Callable[[Array], Array]) -> Array:
        """Return `prepare` of x on the device; its result must not be a view of its argument."""
        with self.lock:
            return self._upload(x, prepare)

    def _upload(self, x: np.ndarray, prepare: Callable[[Array], Array]) -> Array:
        slot = self.slots[self.number % 2]
        self.number += 1
        if not slot or slot["host"].nbytes < x.nbytes:
            slot |= self._buffers(x.nbytes)
        slot["copied"].synchronize()
        dtype = x.dtype.newbyteorder("=")  # CuPy knows no other, and would not say so
        host = slot["host"][: x.nbytes].view(dtype).reshape(x.shape)
        np.copyto(host, x)
        device = slot["device"][: x.nbytes].view(dtype).reshape(x.shape)
        self.stream.wait_event(slot["used"])
        device.set(host, stream=self.stream)
        slot["copied"].record(self.stream)
        current = self.cuda.get_current_stream()
        current.wait_event(slot["copied"])
        prepared = prepare(device)
        slot["used"].record(current)
        return prepared

    def _buffers(self, size: int) -> dict[str, Any]:
        self.cuda.get_current_stream().synchronize()
        memory = self.cuda.alloc_pinned_memory(size)
        return {
            "host": np.frombuffer(memory, np.uint8, size),
            "device": self.xp.empty(size, np.uint8),
            "copied": self.cuda.Event(disable_timing=True),
            "used": self.cuda.Event(disable_timing=True),
        }


@functools.cache
def uploader(device: Device) -> Uploader:
    """Return the one uploader of a GPU."""
    return Uploader(device)


class Graph:
    """What a GPU was asked to do, recorded: `launch()` does it."""

    def __init__(self, graph: Any, recorder: Recorder) -> None:
        self.graph, self.recorder = graph, recorder

    def launch(self) -> None:
        """Do it on the current stream, after what was launched before on any other."""
        done = self.recorder.done
        with self.recorder.lock:
            stream = self.recorder.cuda.get_current_stream()
            stream.wait_event(done)
            self.graph.launch()
            done.record(stream)


class Recorder:
    """Records what a GPU is asked to do in a CUDA graph, without its being done.

    What is allocated meanwhile comes from a memory pool that nothing else uses, and that gives nothing
    back while there is a graph: it reads and writes the same addresses each time that it is launched.
    Graphs share the pool, so that they are done one after the other.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.cuda = device.xp.cuda
        self.stream = self.cuda.Stream(non_blocking=True)
        self.done = self.cuda.Event(disable_timing=True)  # the graph that was launched last
        self.pool = self.cuda.MemoryPool(functools.partial(_memory, self.cuda))
        self.pool.set_limit(size=0)  # none
        self.graphs: weakref.WeakSet[Graph] = weakref.WeakSet()  # CuPy has no weak ones
        self.lock = threading.Lock()
        cublas_of(device)  # made before anything is recorded

    def __call__(self, work: Callable[[], Any]) -> tuple[Graph, Any]:
        """Return a graph of what `work` asks for, and what `work` returned.

        Whatever CuPy and the driver refuse to record ends in an exception of theirs.
        """
        with self.lock, self.stream, self.cuda.using_allocator(self.pool.malloc):
            self.stream.begin_capture()
            try:
                with in_recordings(self.device):
                    result = work()
            except BaseException:
                with suppress(Exception):  # the recording is spoilt; it has to be ended all the same
                    self.stream.end_capture()
                raise
            graph = Graph(self.stream.end_capture(), self)
            self.graphs.add(graph)
            return graph, result

    def give_back(self) -> None:
        """Give its memory back to the device, where no graph is left that uses it."""
        with self.lock:
            if not self.graphs:
                self.pool.free_all_blocks()


def _memory(cuda: Any, size: int) -> Any:
    """Return `size` bytes of the device, or raise a MemoryError.

    At CUDA's own error CuPy's pool would free what it holds, and graphs use, and try again.
    """
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"no {size} bytes are left to record a step in: {error}") from None


@functools.cache
def recorder(device: Device) -> Recorder:
    """Return the one recorder of a GPU."""
    return Recorder(device)


def give_back_memory(device: Device) -> None:
    """Give a GPU the memory back that recordings took of which none is left."""
    if recorder.cache_info().currsize:  # there was something to record
        recorder(device).give_back()
