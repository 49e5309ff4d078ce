"""What the bench times: which experiments, with which settings, and from which weights."""

from __future__ import annotations

import numpy as np
import pytest

from npgait.backend import CPU
from npgait.cli import bench_timing
from npgait.cli.bench import choose
from npgait.loaders import load


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_a_rule_that_the_preset_lacks_and_inverts_nothing_is_timed_without_regulariser(rule):
    (*_, made) = choose("mnist-gait-2l", [rule], [], {"targets": "absolute", "dtype": "float64"})
    assert (made.name, made.rule, made.ortho_strength) == (f"square-{rule}", rule, 0.0)
    assert (made.targets, made.dtype, made.auxiliary) == ("difference", "float32", False)


@pytest.mark.parametrize("rule", ["tp", "itp"])
def test_a_rule_that_the_preset_lacks_and_inverts_is_timed_as_the_one_that_does(rule):
    (gait,) = [e for e in choose("mnist-gait-2l", [], [], {}) if e.rule == "gait"]
    (*_, made) = choose("mnist-gait-2l", [rule], [], {})
    assert (made.rule, made.ortho_strength) == (rule, gait.ortho_strength)
    assert (made.network, made.depth, made.batch_size) == (gait.network, gait.depth, gait.batch_size)
    assert gait.ortho_strength > 0


@pytest.mark.parametrize("strength", [0.0, 0.25])
def test_a_rule_set_beside_one_that_inverts_is_regularised_as_that_one_is(strength, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(f'[[experiment]]\nrule = "gait"\northo_strength = {strength}\n')
    bp, itp = choose(str(file), ["itp"], [], {})
    assert [(e.rule, e.ortho_strength) for e in (bp, itp)] == [("bp", 0.0), ("itp", strength)]


def test_rules_that_invert_are_timed_with_the_regulariser_beside_experiments_that_have_none():
    for arguments in (("cifar10-bp", ["gait", "dfa"], []), ("digits", ["gait", "dfa"], ["bp"])):
        bp, *made = choose(*arguments, {})
        assert {e.rule: e.ortho_strength for e in (bp, *made)} == {"bp": 0, "gait": 1, "dfa": 0}
    (*_, asked) = choose("cifar10-bp", ["gait"], [], {"ortho_strength": 0.0})
    assert asked.ortho_strength == 0
    (*_, own) = choose("mnist-bp-2l", ["gait"], [], {})
    assert own.ortho_strength == 0.1


def test_the_weights_that_each_round_begins_with_are_out_of_the_reach_of_steps():
    (experiment,) = choose("digits", ["bp"], [], {"width": 8, "depth": 1, "batch_size": 10})
    t = bench_timing._set_up(experiment, CPU, load("digits"), graphs=False)
    before = [w.copy() for w in t.weights]
    t.stepper(*t.batch, step=3)
    for p, w, expected in zip(t.session.network.parameters(), t.weights, before, strict=True):
        np.testing.assert_array_equal(w, expected)
        assert (p != w).any()
