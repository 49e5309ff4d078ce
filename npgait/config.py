"""What an experiment is: a flat record of plain values, each checked.

A message names the file, the key, what was got, what was expected, and the nearest known key.
"""

from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

import numpy as np

from npgait.augmentation import AUGMENTATIONS
from npgait.backend import DTYPES
from npgait.data import NORMALISATIONS
from npgait.files import MAX_NAME_BYTES, can_be_file
from npgait.initialisation import INITIALISATIONS
from npgait.inverse import DEFAULT_TOLERANCE, METHODS
from npgait.losses import LOSSES
from npgait.models import MODELS
from npgait.orthogonality import REGULARISERS
from npgait.rules import INVERTING, NAMES, TARGETS, default_gamma
from npgait.run_folder import CONFIG, INFO, PLOTS
from npgait.saving import LAYERS_MOST
from npgait.step import REDUCTIONS

OPTIMIZERS = ("adam", "sgd", "momentum")
IN_DTYPE = ("slope", "learning_rate", "epsilon")  # normal in an experiment's dtype; less is 0 on a GPU
TOO_MANY = 1 << 24  # units, layers, pixels of a side, samples: NumPy's own words for these name no key


class ConfigError(ValueError):
    """An experiment file, or a value in it, is not usable; the message is one line."""


def _option(
    default: Any = MISSING,
    *,
    kind: type,
    help: str,
    choices: Iterable[str] | None = None,
    low: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a field whose metadata say what values it takes."""
    checks = {"low": low, "above": above, "below": below}
    metadata = {
        "kind": kind,
        "help": help,
        "choices": tuple(choices) if choices is not None else None,
        "checks": {key: value for key, value in checks.items() if value is not None},
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Experiment:
    """One training run, fully described. None stands for a value that depends on other keys."""

    name: str = _option(kind=str, help="name of the experiment, and of its folder")
    description: str = _option("", kind=str, help="one line for people")
    data: str = _option("digits", kind=str, help="data set; images in one folder per class: imagenet")
    normalisation: str = _option(
        "unit",
        kind=str,
        choices=NORMALISATIONS,
        help="scaling of pixels: none, 0..1, or mean 0 and sd 1",
    )
    image_size: int = _option(
        224, kind=int, low=1, below=TOO_MANY, help="side of an image of imagenet, in pixels"
    )
    augmentation: str = _option(
        "none",
        kind=str,
        choices=AUGMENTATIONS,
        help="of training images: padded crops, or resized crops; both with flips",
    )
    shuffle_block: int = _option(
        32, kind=int, low=1, help="images read in a run from an image store; 1 shuffles fully"
    )
    network: str = _option("square", kind=str, choices=MODELS, help="network of the papers")
    width: int | None = _option(
        None, kind=int, low=1, below=TOO_MANY, help="hidden units a layer (default: n_in; cifar10: 1024)"
    )
    depth: int | None = _option(
        None,
        kind=int,
        low=1,
        below=LAYERS_MOST,
        help="hidden layers (default: 4; cifar10: 6, shallow: 3)",
    )
    widths: tuple[int, ...] | None = _option(
        None, kind=tuple, low=1, below=TOO_MANY, help="inner widths of a tower (default: 500, 200)"
    )
    patch_bytes: int | None = _option(
        None, kind=int, low=1, help="bytes for the patches of a convolution (default: 256 MiB)"
    )
    auxiliary: bool | None = _option(
        None, kind=bool, help="square layers with auxiliary units (default: where the rule inverts)"
    )
    implicit_auxiliary: bool = _option(
        False, kind=bool, help="auxiliary units not stored: an orthonormal completion of the others"
    )
    slope: float = _option(0.1, kind=float, above=0, help="slope of the leaky ReLU below 0; 1 is linear")
    output_activation: str = _option(
        "same", kind=str, choices=("same", "linear"), help="of the output layer of square and tower"
    )
    initialisation: str = _option("orthogonal", kind=str, choices=INITIALISATIONS, help="of weights")
    rule: str = _option("gait", kind=str, choices=NAMES, help="learning rule")
    targets: str = _option("difference", kind=str, choices=TARGETS, help="form of the targets")
    normalised: bool = _option(True, kind=bool, help="GAIT-prop with gamma normalised per sample")
    gamma: float | None = _option(
        None,
        kind=float,
        above=0,
        help="size of the nudge, up to 1 (default: 1e-3; normalised GAIT: 1e-7)",
    )
    inverse_method: str = _option("auto", kind=str, choices=METHODS, help="how W^-1 is applied")
    inverse_tolerance: float | None = _option(
        None,
        kind=float,
        above=0,
        below=1,
        help="relative error allowed in d W^-1 (default: 1e-5; float64: 1e-12)",
    )
    loss: str = _option("cross_entropy", kind=str, choices=LOSSES, help="loss")
    reduction: str = _option(
        "sum", kind=str, choices=REDUCTIONS, help="updates summed or averaged over the batch"
    )
    optimizer: str = _option("adam", kind=str, choices=OPTIMIZERS, help="optimizer")
    learning_rate: float = _option(1e-3, kind=float, above=0, help="learning rate")
    momentum: float = _option(0.9, kind=float, low=0, below=1, help="of the optimizer momentum")
    beta1: float = _option(0.9, kind=float, low=0, below=1, help="decay of Adam's first moment")
    beta2: float = _option(0.999, kind=float, low=0, below=1, help="decay of Adam's second moment")
    epsilon: float = _option(1e-8, kind=float, above=0, help="of Adam")
    bias_correction: bool = _option(True, kind=bool, help="of Adam")
    regulariser: str = _option("orthonormal", kind=str, choices=REGULARISERS, help="its form")
    ortho_strength: float = _option(0.0, kind=float, low=0, help="lambda of the regulariser; 0: none")
    ortho_every: int = _option(1, kind=int, low=1, help="steps from one regularisation to the next")
    ortho_decoupled: bool = _option(
        False, kind=bool, help="regulariser applied after the optimizer, not through the gradient"
    )
    batch_size: int = _option(64, kind=int, low=1, below=TOO_MANY, help="samples of a batch")
    epochs: int = _option(10, kind=int, low=1, help="number of epochs")
    checkpoint_minutes: float = _option(
        10.0, kind=float, low=0, help="minutes between checkpoints within an epoch; 0: every batch"
    )
    seed: int = _option(0, kind=int, low=0, help="seed of weights, feedback, order and augmentation")
    dtype: str = _option("float32", kind=str, choices=DTYPES, help="arithmetic")
    measure_every: int = _option(100, kind=int, low=0, help="steps between measurements; 0: none")
    evaluate_train: bool = _option(
        True, kind=bool, help="train metrics of the epoch's final weights, not running means"
    )


KEYS: dict[str, Field] = {f.name: f for f in fields(Experiment)}


def make_experiment(values: Mapping[str, Any], where: str) -> Experiment:
    """Return an experiment of plain values, each checked.

    Raises
    ------
    ConfigError
        Naming `where`, the key, what was got and what was expected.
    """
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{where}: {unknown_key(key)}")
    checked = {key: _checked(key, value, where) for key, value in values.items()}
    experiment = Experiment(**checked)
    _check_together(experiment, where)
    return resolved(experiment)


def resolved(e: Experiment) -> Experiment:
    """Return the experiment with the values that follow from other keys written out.

    What stays None has no meaning for its rule or network, or follows from the data (the width of
    the square network).
    """
    inverts = e.rule in INVERTING
    network = inspect.signature(MODELS[e.network]).parameters
    values: dict[str, Any] = {
        "auxiliary": inverts,
        "gamma": default_gamma(e.rule, e.normalised) if e.rule in ("itp", "gait") else None,
        "inverse_tolerance": DEFAULT_TOLERANCE[e.dtype] if inverts else None,
    }
    values |= {key: network[key].default for key in ("width", "depth", "widths") if key in network}
    return replace(e, **{key: v for key, v in values.items() if getattr(e, key) is None})


def _checked(key: str, value: Any, where: str) -> Any:
    """Return `value` as the type of `key`, or raise saying what was expected."""
    spec = KEYS[key].metadata
    kind, choices, checks = spec["kind"], spec["choices"], spec["checks"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    numbers: Sequence[Any] = [value]
    if kind is float and is_number:
        value = _as_float(value)
        fits = math.isfinite(value)
        numbers = [value]
    elif kind is tuple:
        fits = isinstance(value, list | tuple) and all(type(v) is int for v in value)
        value = tuple(value) if fits else value
        numbers = value if fits else []
    else:
        fits = type(value) is kind
    if fits and choices is not None:
        fits = value in choices
    if fits and checks:
        fits = all(_in_range(number, **checks) for number in numbers)
    if fits and key == "name":
        fits = _is_folder_name(value)
    if not fits:
        got = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"{where}: key {key!r} is {got!r}; expected {_expected(key)}")
    return value


def _as_float(number: float) -> float:
    """Return a number as a float, infinity where it is an integer beyond the range of floats."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _in_range(
    number: float, low: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> bool:
    return low <= number < below and number > above


def _is_folder_name(name: str) -> bool:
    allowed = all(c.isalnum() or c in "-_." for c in name)
    taken = name.lower() in (CONFIG, INFO, PLOTS)  # by a run's own files
    fits = allowed and len(name) <= 100 and len(name.encode()) <= MAX_NAME_BYTES
    return bool(name) and fits and not name.startswith(".") and not taken


def _expected(key: str) -> str:
    spec = KEYS[key].metadata
    if key == "name":
        return (
            f"up to 100 letters, digits, '-', '_' and '.' (up to {MAX_NAME_BYTES} bytes in UTF-8), and "
            "no name of a run's own files"
        )
    if spec["choices"] is not None:
        return "one of " + ", ".join(spec["choices"])
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}
    text = words.get(spec["kind"], "a list of integers")
    limits = {"low": "of at least {}", "above": "above {}", "below": "below {}"}
    parts = [limits[name].format(value) for name, value in spec["checks"].items()]
    return " ".join([text, " and ".join(parts)]).strip()


def _check_together(e: Experiment, where: str) -> None:
    """Refuse values that are fine alone and cannot work together, or not on this machine."""
    problem = None
    takes = inspect.signature(MODELS[e.network]).parameters
    low, high = float(np.finfo(e.dtype).tiny), float(np.finfo(e.dtype).max)
    if not can_be_file(e.name):
        problem = (
            f"key 'name' is {e.name!r}, which cannot be the name of a folder in this locale "
            f"({sys.getfilesystemencoding()}); use ASCII letters, or set PYTHONUTF8=1"
        )
    elif e.gamma is not None and e.gamma > 1:
        problem = f"key 'gamma' is {e.gamma}; expected a number above 0 and up to 1"
    elif e.rule in INVERTING and e.auxiliary is False:
        problem = f"key 'auxiliary' is false; rule {e.rule!r} inverts layers and needs it true"
    elif e.implicit_auxiliary and e.rule in INVERTING and e.targets == "absolute":
        problem = "key 'implicit_auxiliary' is true, and absolute targets need stored auxiliary units"
    elif e.network != "tower" and e.widths is not None:
        problem = f"key 'widths' belongs to network 'tower'; for {e.network!r} set width and depth"
    elif e.network == "tower" and (e.width is not None or e.depth is not None):
        problem = "keys 'width' and 'depth' do not apply to network 'tower'; set widths"
    elif e.ortho_decoupled and e.ortho_strength > 1:
        problem = f"key 'ortho_strength' is {e.ortho_strength}; decoupled it is stable up to 1"
    elif beyond := [key for key in IN_DTYPE if not low <= getattr(e, key) <= high]:
        got = getattr(e, beyond[0])
        problem = f"key {beyond[0]!r} is {got}; {e.dtype} holds {low:.1e} to {high:.1e}"
    elif e.network != "imagenet" and e.patch_bytes is not None:
        problem = "key 'patch_bytes' belongs to network 'imagenet'"
    elif e.output_activation != "same" and "f_output" not in takes:
        problem = f"key 'output_activation' does not apply to {e.network!r}; set it to same"
    elif e.network == "imagenet" and (e.width is not None or e.depth is not None):
        problem = "keys 'width' and 'depth' do not apply to network 'imagenet'"
    if problem is not None:
        raise ConfigError(f"{where}: {problem}")


def unknown_key(key: str) -> str:
    """Return that there is no such key, and the nearest that there is, or all of them."""
    return f"key {key!r} is unknown; " + (
        nearest(key, KEYS, "nearest: {}") or f"expected one of {', '.join(KEYS)}"
    )


def nearest(key: str, known: Iterable[str], phrase: str) -> str:
    """Return `phrase` with the known key nearest to `key`, or the empty string if none is near."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return phrase.format(repr(near[0])) if near else ""
