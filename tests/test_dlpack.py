"""Arrays of other libraries go in and come out without a copy, by DLPack."""

from __future__ import annotations

import numpy as np
import pytest

from npgait import models
from npgait.backend import as_array
from npgait.data import array_data
from tests.support import Foreign


def test_a_foreign_array_goes_in_without_a_copy(dtype):
    x = np.arange(12, dtype=dtype).reshape(3, 4)
    assert np.shares_memory(as_array(Foreign(x)), x)
    data = array_data(Foreign(x), Foreign(np.array([0, 1, 0])), dtype=dtype)
    assert np.shares_memory(data.x, x)


def test_outputs_and_weights_go_out_without_a_copy(rng):
    network = models.square(6, 3, depth=1)
    y = network.output(rng.standard_normal((2, 6)).astype(np.float32))
    assert np.shares_memory(np.from_dlpack(y), y)
    W = network.layers[0].W
    assert np.shares_memory(np.from_dlpack(W), W)


def test_an_array_on_another_device_is_refused_by_name():
    class Elsewhere(Foreign):
        def __dlpack_device__(self):
            return (8, 0)

    with pytest.raises(TypeError, match="DLPack device type 8"):
        as_array(Elsewhere(np.zeros(3)))


def test_pytorch_tensors_go_in_and_out_without_a_copy(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.randn(5, 6)
    assert as_array(x).ctypes.data == x.data_ptr()
    y = models.square(6, 3, depth=1).output(as_array(x))
    assert torch.from_dlpack(y).data_ptr() == y.ctypes.data


def test_jax_arrays_go_in_without_a_copy():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    x = jax.numpy.ones((5, 6))
    assert as_array(x).ctypes.data == x.unsafe_buffer_pointer()
