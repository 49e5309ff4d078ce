"""Learning rules, one file each. A rule is a function that walks the layers once, top-down.

`bind` gives the rules one signature, for loops that run any of them. To add a rule: one new file,
its name in `NAMES` or `INVERTING`, and one line in `bind`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from npgait.backend import Array, array_module
from npgait.initialisation import orthogonal
from npgait.inverse import InverseSolver
from npgait.network import Layer, Network, Record, Update
from npgait.rules.bp import bp
from npgait.rules.dfa import dfa
from npgait.rules.fa import fa
from npgait.rules.gait import gait, gait_absolute
from npgait.rules.itp import itp, itp_absolute
from npgait.rules.tp import tp, tp_absolute
from npgait.validation import check_real

__all__ = [
    "INVERTING",
    "NAMES",
    "Rule",
    "bind",
    "bp",
    "default_gamma",
    "dfa",
    "draw_feedback",
    "fa",
    "feedback_of",
    "gait",
    "gait_absolute",
    "itp",
    "itp_absolute",
    "tp",
    "tp_absolute",
]

INVERTING = ("tp", "itp", "gait")  # need every layer but the first to have an inverse
NAMES = ("bp", "fa", "dfa", *INVERTING)
Form = Callable[..., list[Update]]
TARGETS = ("difference", "absolute")


@dataclass(frozen=True)
class Rule:
    """A learning rule with its settings bound.

    Parameters
    ----------
    name : str
    function : callable or None
        (layers, records, error) -> updates: BP, FA or DFA, or of a rule that inverts layers its form for
        absolute targets.
    difference_form : callable or None
        (layers, records, error, grams=, trace=, solver=) -> updates, of a rule that inverts layers: what
        runs where targets are not absolute, and what is measured of either.
    solver : InverseSolver
    auxiliary : bool
        Whether targets are absolute, so that the forward pass has to compute auxiliary units.
    feedback : sequence of array or None, optional
        What FA and DFA have bound; at each call it is checked against the layers.

    Raises
    ------
    ValueError
        If the form that is asked for is missing.
    """

    name: str
    function: Form | None
    difference_form: Form | None
    solver: InverseSolver
    auxiliary: bool = False
    feedback: Sequence[Array | None] | None = None

    def __post_init__(self) -> None:
        if self.function is None and (self.auxiliary or self.difference_form is None):
            targets = "absolute targets" if self.auxiliary else "any targets"
            raise ValueError(f"rule {self.name!r} has no form for {targets}")

    @property
    def uses_solver(self) -> bool:
        """Whether a step runs the difference form, whose products with W^-1 the solver makes."""
        return self.difference_form is not None and not self.auxiliary

    def __call__(
        self,
        layers: Sequence[Layer],
        records: Sequence[Record],
        error: Array,
        grams: Sequence[Array | None] | None = None,
    ) -> list[Update]:
        """Return (dW, db) of each layer.

        Parameters
        ----------
        layers, records
            The network and its forward pass (with auxiliary units if the rule says so).
        error : array (B, u_L)
            dLoss/dy_L of each sample.
        grams : sequence of array or None, optional
            W W^T of each layer, where it is at hand.

        Returns
        -------
        list of (dW, db)
            A gradient, to be subtracted; see `bp`.

        Raises
        ------
        ValueError
            If the error is not of the used units, the forward pass has auxiliary units where the rule
            takes none, or lacks them where it does, or feedback weights do not fit the layers.
        """
        self._check(layers, records, error)
        error = error.astype(records[-1].y.dtype, copy=False)
        if not self.uses_solver:
            assert self.function is not None
            return self.function(layers, records, error)
        assert self.difference_form is not None
        grams = grams or [None] * len(layers)
        return self.difference_form(layers, records, error, grams=grams, solver=self.solver)

    def _check(self, layers: Sequence[Layer], records: Sequence[Record], error: Array) -> None:
        """Raise a ValueError where error or records are not those that the rule takes."""
        output, record = layers[-1], records[-1]
        expected = (len(record.y), output.used)
        if error.shape != expected:
            raise ValueError(
                f"the output error has shape {error.shape}; expected {expected}, of the used units: "
                "give the loss y[:, :n_classes]"
            )
        if self.auxiliary and record.y.shape[1] != output.W.shape[1]:
            raise ValueError(
                f"absolute targets need the auxiliary units, and the outputs are {record.y.shape}; use "
                "network.forward(x, auxiliary=True)"
            )
        for layer, (_, _, y) in zip(layers, records, strict=True):
            if not self.auxiliary and y.shape[-1] != layer.used:
                raise ValueError(
                    f"the outputs of {layer.name} are {y.shape}, auxiliary units among them, which this "
                    "rule does not take; use network.forward(x)"
                )
        if self.feedback is not None:
            _check_feedback(self.name, layers, self.feedback)


def bind(
    name: str,
    *,
    gamma: float | None = None,
    normalised: bool = True,
    targets: str = "difference",
    feedback: Sequence[Array | None] | None = None,
    solver: InverseSolver | None = None,
) -> Rule:
    """Return the rule called `name` with its settings bound.

    Parameters
    ----------
    name : {"bp", "fa", "dfa", "tp", "itp", "gait"}
    gamma : float, optional
        Of ITP and GAIT-prop. Default: the published 1e-7 for normalised GAIT-prop, 1e-3 otherwise.
    normalised : bool
        Of GAIT-prop.
    targets : {"difference", "absolute"}
        Of TP, ITP and GAIT-prop.
    feedback : sequence of array or None
        Of FA and DFA; see `draw_feedback`.
    solver : InverseSolver, optional
        Of TP, ITP and GAIT-prop in difference form.

    Raises
    ------
    ValueError
        If `name` or `targets` is unknown, gamma is out of range, or feedback is missing.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets {targets!r} is unknown; use difference or absolute")
    if gamma is None:
        gamma = default_gamma(name, normalised)
    check_real("gamma", gamma)
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}; expected 0 < gamma <= 1")
    gamma = float(gamma)  # NumPy's float64 would make float32 errors float64
    if name in ("fa", "dfa") and feedback is None:
        raise ValueError(f"rule {name!r} needs feedback weights; see npgait.rules.draw_feedback")
    B = feedback or ()
    forms: dict[str, tuple[Form | None, Form | None]] = {
        "bp": (bp, None),
        "fa": (partial(fa, feedback=B), None),
        "dfa": (partial(dfa, feedback=B), None),
        "tp": (tp_absolute, tp),
        "itp": (partial(itp_absolute, gamma=gamma), partial(itp, gamma=gamma)),
        "gait": (
            partial(gait_absolute, gamma=gamma, normalised=normalised),
            partial(gait, gamma=gamma, normalised=normalised),
        ),
    }
    if name not in forms:
        raise ValueError(f"rule {name!r} is unknown; use one of {', '.join(NAMES)}")
    function, difference_form = forms[name]
    absolute = difference_form is not None and targets == "absolute"
    own = feedback if name in ("fa", "dfa") else None
    return Rule(name, function, difference_form, solver or InverseSolver(), absolute, own)


def default_gamma(name: str, normalised: bool) -> float:
    """Return the published gamma: 1e-7 for normalised GAIT-prop, 1e-3 otherwise."""
    return 1e-7 if name == "gait" and normalised else 1e-3


def feedback_of(name: str, network: Network, rng: np.random.Generator) -> list[Array | None] | None:
    """Return a network's own feedback, for it is fixed; drawn anew where a rule needs other shapes."""
    own, shapes = network.feedback, _feedback_shapes(name, network.layers)
    if shapes is None or (own and _shapes(own) == shapes):
        return own
    return draw_feedback(name, network, rng)


def draw_feedback(name: str, network: Network, rng: np.random.Generator) -> list[Array | None] | None:
    """Return the random feedback weights that a rule needs of a network, or None if it needs none.

    Orthogonal, as the published feedback is. FA: B_l of the shape of W_l's used columns.
    DFA: B_l (u_L, u_l), u_l counting the used units of one output; None for the last layer.
    """
    shapes, like = _feedback_shapes(name, network.layers), network.layers[0].W
    if shapes is None:
        return None
    xp = array_module(like)
    return [
        None if shape is None else xp.asarray(orthogonal(rng, *shape), dtype=like.dtype)
        for shape in shapes
    ]


def _feedback_shapes(name: str, layers: Sequence[Layer]) -> list[tuple[int, int] | None] | None:
    """Return the shape of each layer's feedback weights, or None if a rule needs none."""
    if name == "fa":
        return [None, *((len(layer.W), layer.used) for layer in layers[1:])]
    if name == "dfa":
        return [*((layers[-1].used, prod(layer.shape_out)) for layer in layers[:-1]), None]
    return None


def _shapes(feedback: Sequence[Array | None]) -> list[tuple[int, ...] | None]:
    return [None if B is None else B.shape for B in feedback]


def _check_feedback(name: str, layers: Sequence[Layer], feedback: Sequence[Array | None]) -> None:
    """Raise a ValueError where feedback weights are not of the shapes that a rule needs.

    Without some of them FA would be backpropagation in part; the first layer's FA does not use.
    """
    expected, own = _feedback_shapes(name, layers), _shapes(feedback)
    if name == "fa" and own:
        own[0] = None
    if own != expected:
        raise ValueError(
            f"feedback weights of {name!r} are {own}; expected {expected}, as "
            "npgait.rules.draw_feedback makes them"
        )
