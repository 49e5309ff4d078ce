"""Experiment files: what they say, and what is said when they are wrong."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.config import KEYS, ConfigError, Experiment, make_experiment
from npgait.experiments import find_experiments, parse_override, preset_files, read_experiments, to_toml
from npgait.models import MODELS, square
from npgait.session import build_session

FILE = Path("my.toml")


def read(text, **overrides):
    return read_experiments(FILE, text, overrides)


def test_defaults_reach_every_experiment_and_its_own_values_win():
    one, two = read(
        '[defaults]\nepochs = 5\n[[experiment]]\nname = "a"\n[[experiment]]\nname = "b"\nepochs = 7'
    )
    assert (one.name, one.epochs, two.name, two.epochs) == ("a", 5, "b", 7)


def test_overrides_win_over_the_file():
    (e,) = read("[[experiment]]\nepochs = 5", epochs=2)
    assert e.epochs == 2


MIXED = """
[[experiment]]
name = "wide"
rule = "bp"
[[experiment]]
name = "high"
network = "tower"
"""


def test_overrides_are_checked_against_the_chosen_experiments_alone():
    (e,) = read_experiments(FILE, MIXED, {"width": 32}, ["wide"])
    assert (e.name, e.width) == ("wide", 32)
    (e,) = read_experiments(FILE, MIXED, {"name": "x"}, ["high"])
    assert e.name == "x"
    (e,) = find_experiments("mnist-bp-4l", {"width": 32})
    assert (e.name, e.width) == ("mnist-bp-4l", 32)
    (e,) = find_experiments("mnist-gait-tower", {"widths": [100, 50]})
    assert e.widths == (100, 50)
    with pytest.raises(ConfigError, match="'wide' is not here; there is mnist-bp-4l"):
        find_experiments("mnist-bp-4l", {}, ["wide"])


def test_a_message_says_whether_the_file_or_an_override_is_at_fault():
    with pytest.raises(ConfigError, match="experiment 'high', changed by --set width: keys 'width'"):
        read_experiments(FILE, MIXED, {"width": 32})
    with pytest.raises(ConfigError, match=r"changed by --set name: .* 'x' is used 2 times"):
        read_experiments(FILE, MIXED, {"name": "x"})
    with pytest.raises(ConfigError, match="toml, experiment 'high': key 'depth' is 0"):
        read_experiments(FILE, MIXED + "depth = 0", {"width": 32}, ["wide"])
    with pytest.raises(ConfigError, match="toml, experiment 'high': key 'slope' is 0"):
        read_experiments(FILE, MIXED + "slope = 0", {"epochs": 3})


def test_integers_serve_as_floats():
    (e,) = read("[[experiment]]\northo_strength = 100")
    assert e.ortho_strength == 100.0
    assert isinstance(e.ortho_strength, float)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[[experiment]]\nepoch = 5", ["my.toml", "'epoch'", "unknown", "nearest: 'epochs'"]),
        ("epochs = 5\n[[experiment]]", ["my.toml", "'epochs'", "[defaults]"]),
        ("[[experiment]]\nepochs = 0", ["'epochs' is 0", "an integer of at least 1"]),
        ("[[experiment]]\nepochs = 2.5", ["'epochs' is 2.5", "an integer"]),
        ("[[experiment]]\nepochs = true", ["'epochs' is True", "an integer"]),
        (
            '[[experiment]]\nlearning_rate = "fast"',
            ["'learning_rate' is 'fast'", "finite number above 0"],
        ),
        ("[[experiment]]\nlearning_rate = nan", ["'learning_rate' is nan"]),
        ("[[experiment]]\nlearning_rate = inf", ["'learning_rate' is inf"]),
        ("[[experiment]]\nbeta1 = 1.0", ["'beta1' is 1.0", "of at least 0 and below 1"]),
        ('[[experiment]]\nrule = "gate"', ["'rule' is 'gate'", "one of bp, fa, dfa, tp, itp, gait"]),
        ("[[experiment]]\ngamma = 2.0", ["'gamma' is 2.0", "up to 1"]),
        ("[[experiment]]\nauxiliary = false", ["'auxiliary'", "inverts"]),
        (
            '[[experiment]]\nimplicit_auxiliary = true\ntargets = "absolute"',
            ["'implicit_auxiliary'", "stored auxiliary"],
        ),
        ('[[experiment]]\nname = "../up"', ["'name' is '../up'", "letters"]),
        ('[[experiment]]\nname = "a"\n[[experiment]]\nname = "a"', ["'name'", "'a' is used 2 times"]),
        ('[[experiment]]\nname = "a"\n[[experiment]]\nname = "A"', ["'a' is used 2 times", "case"]),
        ("[[experiment]]\nzzz = 1", ["'zzz' is unknown", "expected one of name, description, data,"]),
        ("[[experiment]]\nwidths = [3]", ["'widths'", "tower"]),
        ('[[experiment]]\nnetwork = "tower"\nwidth = 3', ["'width' and 'depth'", "tower"]),
        ('[[experiment]]\nnetwork = "tower"\nwidths = [0]', ["'widths' is [0]"]),
        ("[defaults]\nepochs = 1", ["at least one [[experiment]]"]),
        ("experiment = 3", ["[[experiment]]"]),
        ("experiment = [3]", ["experiment 1 is not a table"]),
        ("[[experiment]\n", ["my.toml", "not TOML"]),
        ("", ["[[experiment]]"]),
    ],
)
def test_a_mistake_is_one_line_naming_file_key_and_what_was_expected(text, parts):
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        ("name", ["a.b-c_1", "x" * 100], ["", ".a", "a b", "a/b", "Run.json", "plots", "x" * 101]),
        ("normalisation", ["none"], ["zscore"]),
        ("image_size", [1], [0, 1 << 24]),
        ("augmentation", ["crop"], ["mixup"]),
        ("shuffle_block", [1], [0]),
        ("network", ["tower"], ["cube"]),
        ("width", [1], [0, 1 << 24]),
        ("depth", [1], [0, 10_000]),
        ("widths", [], [[1.5], [True], [0], [1 << 24], 5, "12"]),
        ("slope", [1, 2.5], [0, -0.1]),
        ("output_activation", ["linear"], ["relu"]),
        ("initialisation", ["glorot_normal"], ["zeros"]),
        ("targets", ["absolute"], ["relative"]),
        ("gamma", [1], [0, 1.1]),
        ("inverse_method", ["lu"], ["qr"]),
        ("inverse_tolerance", [0.5], [0, 1]),
        ("loss", ["squared_error"], ["hinge"]),
        ("reduction", ["mean"], ["max"]),
        ("optimizer", ["sgd", "momentum"], ["lion"]),
        ("momentum", [0], [-0.1, 1]),
        ("beta1", [0], [-0.1, 1]),
        ("beta2", [0], [-0.1, 1]),
        ("epsilon", [1e-30], [0, "1"]),
        ("bias_correction", [False], [0]),
        ("regulariser", ["orthogonal", "conformal"], ["l2"]),
        ("ortho_strength", [0, 1e4], [-1]),
        ("ortho_every", [1], [0]),
        ("batch_size", [1], [0, 1 << 24]),
        ("checkpoint_minutes", [0], [-1]),
        ("seed", [0], [-1]),
        ("dtype", ["float64"], ["float16"]),
        ("measure_every", [0], [-1]),
    ],
)
def test_every_key_takes_what_lies_in_its_limits_and_nothing_else(key, taken, refused):
    for value in taken:
        assert getattr(make_experiment({"name": "x", key: value}, "test"), key) == value
    for value in refused:
        with pytest.raises(ConfigError, match=f"test: key '{key}' is "):
            make_experiment({"name": "x", key: value}, "test")


@pytest.mark.parametrize("values", [{"width": 8}, {"depth": 2}])
@pytest.mark.parametrize("network", ["tower", "imagenet"])
def test_one_size_that_does_not_apply_is_enough_to_be_told(network, values):
    with pytest.raises(ConfigError, match=f"'width' and 'depth' do not apply to network '{network}'"):
        make_experiment({"name": "x", "network": network, **values}, "test")


@given(st.text(max_size=200))
def test_no_text_escapes_as_another_error(text):
    try:
        read(text)
    except ConfigError as error:
        assert "my.toml" in str(error)


@given(st.binary(max_size=200))
def test_no_file_escapes_as_another_error(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("config") / "my.toml"
    path.write_bytes(raw)
    try:
        read_experiments(path)
    except ConfigError as error:
        assert "my.toml" in str(error)


def test_a_missing_and_an_enormous_file_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml.*cannot be read"):
        find_experiments(str(tmp_path / "none.toml"))
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="not an experiment file"):
        find_experiments(str(big))


def test_what_is_written_reads_back_equal():
    experiments = [e for name in preset_files() for e in find_experiments(name)]
    unusual = make_experiment(
        {
            "name": "odd",
            "description": 'a "quoted" \\ line\n\ttab \x7f é \U0001f600',
            "network": "tower",
            "widths": [9, 4],
        },
        "test",
    )
    experiments = [*experiments[:5], unusual]
    assert read_experiments(FILE, to_toml(experiments)) == experiments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs=3", ("epochs", 3)),
        ("learning_rate = 1e-4", ("learning_rate", 1e-4)),
        ("rule=bp", ("rule", "bp")),
        ('rule="bp"', ("rule", "bp")),
        ("auxiliary=true", ("auxiliary", True)),
        ("widths=[5, 3]", ("widths", [5, 3])),
        ("description=a=b", ("description", "a=b")),
    ],
)
def test_overrides_on_the_command_line_are_toml_or_bare_words(text, expected):
    assert parse_override(text) == expected


def test_wrong_overrides_say_so():
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_override("epochs")
    with pytest.raises(ConfigError, match="'learning_rat' is unknown; nearest: 'learning_rate'"):
        parse_override("learning_rat=3")


@pytest.mark.parametrize(
    "text", ["epochs=2\nseed=3", "rule=bp\nseed=3", "epochs=2\n[seed]", 'rule="bp"\nseed=3']
)
def test_one_override_sets_one_key(text):
    with pytest.raises(ConfigError, match="expected one key=value; give each its own --set"):
        parse_override(text)
    assert parse_override("widths=[5,\n3]\n") == ("widths", [5, 3])


def test_an_unknown_preset_gives_the_nearest_name():
    with pytest.raises(ConfigError, match="nearest: 'mnist-gait-4l'"):
        find_experiments("mnist-gait4l")


def test_every_key_has_a_help_text():
    assert all(field.metadata["help"] for field in KEYS.values())


# --- presets: the published experiments ---------------------------------------------------------------


def built(e, shape_in, n_classes):
    """The session of an experiment, with weights that are quicker to draw than orthogonal ones."""
    return build_session(replace(e, initialisation="glorot_normal"), shape_in, n_classes)


@pytest.mark.parametrize("name", preset_files())
def test_every_preset_can_be_built(name):
    sizes = {"digits": ((8, 8, 1), 10), "cifar10": ((32, 32, 3), 10), "imagenet": ((64, 64, 3), 99)}
    for e in find_experiments(name):
        session = built(e, *sizes.get(e.data, ((28, 28, 1), 10)))
        assert session.network.dtype == e.dtype
        assert e.description


@pytest.mark.parametrize("data", ["mnist", "kmnist", "fashion-mnist"])
@pytest.mark.parametrize("rule", ["bp", "tp", "itp", "gait"])
@pytest.mark.parametrize("network", ["1l", "2l", "3l", "4l", "tower"])
def test_the_experiments_of_2020_have_the_published_settings(data, rule, network):
    (e,) = find_experiments(f"{data}-{rule}-{network}")
    assert (e.data, e.rule, e.batch_size, e.epochs) == (data, rule, 60, 100)
    assert (e.loss, e.reduction, e.normalisation) == ("squared_error", "mean", "unit")
    assert (e.optimizer, e.beta1, e.beta2, e.epsilon) == ("adam", 0.9, 0.99, 1e-8)
    assert not e.bias_correction
    published = (1e-5, 1000) if rule in ("tp", "itp") else (1e-4, 0.1)  # of ITP none are
    assert (e.learning_rate, e.ortho_strength) == published
    assert (e.gamma, e.normalised, e.regulariser) == (1e-3, False, "orthogonal")
    layers = built(e, (784,), 10).network.layers
    assert all(layer.has_inverse for layer in layers)
    assert len(layers) == (4 if network == "tower" else int(network[0]) + 1)


def test_the_imagenet_experiments_of_2023_have_the_published_settings():
    by_name = {e.name.removeprefix("imagenet-"): e for e in find_experiments("imagenet")}
    assert set(by_name) == {"bp", "fa", "gait", "gait-stored"}
    for name, e in by_name.items():
        gait = name.startswith("gait")
        assert (e.batch_size, e.epochs, e.loss, e.reduction) == (256, 200, "cross_entropy", "sum")
        assert e.learning_rate == (4.3e-5 if name == "fa" else 4.9e-5)
        assert (e.beta1, e.beta2, e.epsilon) == (0.9, 0.99, 1e-4 if name == "fa" else 1e-8)
        assert e.ortho_strength == (1 if gait else 0)
        assert (e.image_size, e.normalisation) == (224, "standard")
        layers = built(e, (224, 224, 3), 10).network.layers
        assert all(layer.has_inverse for layer in layers[1:]) == gait
        square = all(layer.W.shape[0] == layer.W.shape[1] for layer in layers[1:])
        assert square == (name == "gait-stored")  # as published; gait leaves auxiliary channels implicit
        if gait:
            assert e.gamma == 1e-7
            assert e.normalised


@pytest.mark.parametrize("family", ["cifar10", "cifar10-shallow"])
def test_the_experiments_of_2023_have_the_published_settings(family):
    by_name = {e.name.removeprefix(f"{family}-"): e for e in find_experiments(family)}
    assert set(by_name) == {"bp", "fa", "gait-vanilla", "gait"}
    for name, e in by_name.items():
        fa = name == "fa"
        assert (e.data, e.batch_size, e.epochs, e.loss) == ("cifar10", 256, 200, "cross_entropy")
        assert e.learning_rate == (2.5e-5 if fa else 1.9e-5)
        assert (e.beta1, e.beta2, e.epsilon) == ((0.9, 0.99, 1e-4) if fa else (0.9, 0.999, 1e-6))
        assert e.bias_correction
        assert e.ortho_strength == (100 if name.startswith("gait") else 0)
        layers = built(e, (3072,), 10).network.layers
        assert len(layers) == (7 if family == "cifar10" else 4)
        assert layers[-1].n_out == (1024 if name.startswith("gait") else 10)
    assert by_name["gait-vanilla"].gamma == 1e-3
    assert by_name["gait"].gamma == 1e-7
    assert by_name["gait"].normalised


def test_the_resolved_configuration_writes_out_what_follows_from_other_keys():
    def resolved(**values):
        return make_experiment({"name": "x", **values}, "test")

    e = resolved(rule="gait", network="cifar10_shallow", dtype="float64")
    assert (e.auxiliary, e.gamma, e.inverse_tolerance, e.depth) == (True, 1e-7, 1e-12, 3)
    assert resolved(rule="gait", normalised=False).gamma == 1e-3
    e = resolved(rule="bp", network="cifar10")
    assert (e.auxiliary, e.gamma, e.inverse_tolerance, e.depth, e.width) == (False, None, None, 6, 1024)
    assert resolved(network="tower").widths == (500, 200)
    assert resolved(auxiliary=True, rule="bp").auxiliary


def test_the_resolved_configuration_is_complete():
    of_other_networks = {"width", "depth", "widths", "patch_bytes"}
    of_inverting_rules = {"gamma", "inverse_tolerance"}
    for entry in tomllib.loads(to_toml(find_experiments("digits")))["experiment"]:
        assert set(KEYS) - set(entry) <= of_other_networks | of_inverting_rules
        assert of_inverting_rules <= set(entry) or entry["rule"] in ("bp", "fa")
    assert isinstance(find_experiments("bp")[0], Experiment)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate=1" + 400 * "0", "is inf; expected a finite number"),
        ("epochs=1" + 5000 * "0", "--set epochs: cannot be read"),
        ("widths=" + 5000 * "[", "--set widths: cannot be read"),
        ("epsilon=1e-320", "float32 holds 1.2e-38 to 3.4e.38"),
        ("epsilon=1e-39", "'epsilon' is 1e-39; float32 holds"),
        ("slope=1e-46", "'slope' is 1e-46; float32 holds"),
        ("slope=1e39", "'slope' is 1e.39; float32 holds"),
        ("learning_rate=1e-60", "'learning_rate' is 1e-60; float32 holds"),
    ],
)
def test_numbers_beyond_any_range_are_mistakes_not_crashes(text, message):
    with pytest.raises(ConfigError, match=message):
        find_experiments("digits", dict([parse_override(text)]))


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[experiment]]\nname = "one"\n', encoding="utf-8-sig")
    assert [e.name for e in read_experiments(path)] == ["one"]


def test_a_network_that_takes_an_output_activation_is_given_it_whatever_its_name(monkeypatch):
    linear = {"name": "a", "network": "cifar10", "output_activation": "linear"}
    with pytest.raises(ConfigError, match="'output_activation' does not apply to 'cifar10'"):
        make_experiment(linear, "here")
    monkeypatch.setitem(MODELS, "cifar10", square)  # as one of a user's own, with the keywords of square
    assert make_experiment(linear, "here").output_activation == "linear"
