"""Optimizers: they change parameters in place, and their whole state is a dict of arrays.

Each has `step(parameters, gradients)`, `state()` and `load(state)`; a gradient is subtracted. A setting
out of range is a ValueError, one that is no number a TypeError; a step of other parameters than those of
the steps before is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module
from npgait.parallel import in_threads
from npgait.validation import check_real

IN_CACHE = 1 << 18  # values of each array that are worked on at a time
IN_ONE_PASS = 1 << 20  # and where there is one pass, so that only threads have to share them


class Optimizer(Protocol):
    """What the training loop asks of an optimizer."""

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Subtract one step from the parameters, in place."""

    def state(self) -> dict[str, Array]:
        """Return what `load` needs to go on as if never stopped: later steps leave it as it is."""

    def load(self, state: Mapping[str, Array]) -> None:
        """Take up the state that `state` returned."""


def _rate(learning_rate: float) -> float:
    """Return a rate as a float: times a NumPy scalar, float32 would become float64."""
    check_real("learning_rate", learning_rate)
    if not (learning_rate > 0 and np.isfinite(learning_rate)):
        raise ValueError(f"learning_rate is {learning_rate}; expected a finite number above 0")
    return float(learning_rate)


def _decay(name: str, value: float) -> float:
    check_real(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; expected 0 <= {name} < 1")
    return float(value)


@dataclass
class SGD:
    """p <- p - lr g."""

    learning_rate: float

    def __post_init__(self) -> None:
        self.learning_rate = _rate(self.learning_rate)

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Subtract lr g from each parameter, in place."""
        for p, g in zip(parameters, gradients, strict=True):
            p -= self.learning_rate * g

    def state(self) -> dict[str, Array]:
        """Return an empty state."""
        return {}

    def load(self, state: Mapping[str, Array]) -> None:
        """Take up nothing."""


@dataclass
class Momentum:
    """v <- momentum v + g; p <- p - lr v (Polyak's heavy ball)."""

    learning_rate: float
    momentum: float = 0.9
    v: list[Array] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.learning_rate = _rate(self.learning_rate)
        self.momentum = _decay("momentum", self.momentum)

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Change each parameter by one step, in place."""
        if not self.v:
            self.v = _zeros_like(parameters)
        _check_own(self.v, parameters)
        for p, g, v in zip(parameters, gradients, self.v, strict=True):
            v *= self.momentum
            v += g
            p -= self.learning_rate * v

    def state(self) -> dict[str, Array]:
        """Return copies of the velocities."""
        return {f"v{i}": v.copy() for i, v in enumerate(self.v)}

    def load(self, state: Mapping[str, Array]) -> None:
        """Take up the velocities."""
        self.v = _listed(state, "v")


@dataclass
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with or without bias correction.

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr m' / (sqrt(v') + epsilon)

    with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t) (2023 code, but for epsilon: see
    docs/deviations.md), or m' = m, v' = v without bias correction (2020 code).
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    bias_correction: bool = True
    t: int = 0
    m: list[Array] = field(default_factory=list, repr=False)
    v: list[Array] = field(default_factory=list, repr=False)
    clock: Array | None = field(default=None, repr=False)  # t, rate, epsilon on a GPU

    def __post_init__(self) -> None:
        self.learning_rate = _rate(self.learning_rate)
        self.beta1, self.beta2 = _decay("beta1", self.beta1), _decay("beta2", self.beta2)
        check_real("epsilon", self.epsilon)
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}; expected a number above 0")
        self.epsilon = float(self.epsilon)

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Change each parameter by one step, in place."""
        if not self.m:
            self.m, self.v = _zeros_like(parameters), _zeros_like(parameters)
        _check_own(self.m, parameters)
        if array_module(parameters[0]) is not np and kernels.apply_to(*parameters, *gradients):
            self._step_on_device(parameters, gradients)
            return
        self.t += 1
        correct1 = 1 - self.beta1**self.t if self.bias_correction else 1.0
        correct2 = 1 - self.beta2**self.t if self.bias_correction else 1.0
        # As the paper advises (end of section 2): the corrections move into the rate and epsilon.
        rate = self.learning_rate * correct2**0.5 / correct1
        epsilon = self.epsilon * correct2**0.5
        parts = [
            part
            for arrays in zip(parameters, gradients, self.m, self.v, strict=True)
            for part in in_cache(*arrays)
        ]
        in_threads(lambda part: self._step(part, rate, epsilon), parts, parameters[0])
        self.clock = None  # which is behind now

    def _step_on_device(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Change each parameter by one step: the same equations in one pass, t counted on the device."""
        if self.clock is None:
            clock = [self.t, 0.0, 0.0]
            self.clock = array_module(parameters[0]).asarray(clock, dtype=np.float64)
        numbers = (self.learning_rate, self.beta1, self.beta2, self.epsilon, self.bias_correction)
        kernels.adam_clock(self.clock, parameters[0], *numbers)
        for p, g, m, v in zip(parameters, gradients, self.m, self.v, strict=True):
            kernels.adam(p, g, m, v, self.clock, self.beta1, self.beta2)
        self.t += 1

    def _step(self, part: tuple[Array, ...], rate: float, epsilon: float) -> None:
        """One step of a part of a parameter: in one pass, or with one temporary."""
        p, g, m, v = part
        if array_module(p) is np and kernels.apply_to(*part):
            kernels.adam(p, g, m, v, np.array([self.t, rate, epsilon]), self.beta1, self.beta2)
            return
        xp = array_module(p)
        # m <- beta1 m + (1 - beta1) g
        m *= self.beta1
        buffer = xp.multiply(g, 1 - self.beta1)
        m += buffer
        # v <- beta2 v + (1 - beta2) g^2
        v *= self.beta2
        xp.multiply(g, g, out=buffer)
        buffer *= 1 - self.beta2
        v += buffer
        # p <- p - rate m / (sqrt(v) + epsilon)
        xp.sqrt(v, out=buffer)
        buffer += epsilon
        xp.divide(m, buffer, out=buffer)
        buffer *= rate
        p -= buffer

    def state(self) -> dict[str, Array]:
        """Return t and copies of both moments."""
        moments = {f"m{i}": m.copy() for i, m in enumerate(self.m)}
        moments |= {f"v{i}": v.copy() for i, v in enumerate(self.v)}
        return {"t": np.asarray(self.t), **moments}

    def load(self, state: Mapping[str, Array]) -> None:
        """Take up t and both moments."""
        self.t, self.clock = int(state["t"]), None
        self.m, self.v = _listed(state, "m"), _listed(state, "v")


def check_state(state: Mapping[str, Array], parameters: Sequence[Array]) -> None:
    """Check that a state can be that of an optimizer of these parameters.

    "t" is a count; "m0", "v1", ... are each of the shape and dtype of the parameter of that number.

    Raises
    ------
    ValueError, LookupError
        If it cannot, or is of more parameters.
    """
    for key, array in state.items():
        if key == "t":
            fits = array.ndim == 0 and array.dtype.kind in "iu" and array >= 0
        else:
            p = parameters[int(key[1:])]
            fits = (array.shape, array.dtype) == (p.shape, p.dtype)
        if not fits:
            raise ValueError(f"the optimizer's {key} is {array.dtype} {array.shape}")


def in_cache(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Yield the same stretch of each array, short enough that several passes over it stay in the cache.

    On a GPU, and where an array does not lie in one piece, that is all of it.
    """
    size = arrays[0].size
    if array_module(arrays[0]) is not np or not all(a.flags.c_contiguous for a in arrays):
        yield arrays
        return
    flat = [array.reshape(-1) for array in arrays]
    length = IN_ONE_PASS if kernels.apply_to(*arrays) else IN_CACHE
    for i in range(0, size, length):
        yield tuple(array[i : i + length] for array in flat)


def _zeros_like(parameters: Sequence[Array]) -> list[Array]:
    return [array_module(p).zeros_like(p) for p in parameters]


def _check_own(moments: Sequence[Array], parameters: Sequence[Array]) -> None:
    """Raise a ValueError where the moments that an optimizer holds are of other parameters."""
    held, given = ([(a.shape, a.dtype) for a in arrays] for arrays in (moments, parameters))
    if held != given:
        raise ValueError(
            "the optimizer holds moments of another network, whose layers have other shapes or dtypes; "
            "give each network an optimizer of its own"
        )


def _listed(state: Mapping[str, Array], letter: str) -> list[Array]:
    """Return copies of the arrays letter0, letter1, ... of a state, in order."""
    count = sum(key[0] == letter and key[1:].isdecimal() for key in state)
    return [state[f"{letter}{i}"].copy() for i in range(count)]
