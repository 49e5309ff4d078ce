"""The scikit-learn classifier: scikit-learn's own checks, and what users do with classifiers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed (npgait[sklearn])")
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits, make_blobs  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from npgait.rules import INVERTING, NAMES  # noqa: E402
from npgait.sklearn import GAITClassifier  # noqa: E402


@pytest.fixture(scope="module")
def blobs():
    X, y = make_blobs(300, centers=4, n_features=6, cluster_std=1.5, random_state=0)
    return StandardScaler().fit_transform(X), np.array(["ash", "birch", "cedar", "oak"])[y]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([GAITClassifier(max_iter=30)])
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("rule", NAMES)
def test_every_rule_learns_clusters_with_labels_of_any_kind(rule, blobs):
    model = GAITClassifier(rule=rule, random_state=0, max_iter=40).fit(*blobs)
    assert model.score(*blobs) > 0.9
    assert set(model.predict(blobs[0])) <= set(blobs[1])
    assert len(model.loss_curve_) == model.n_iter_ == 40


def test_probabilities_are_those_of_the_decision(blobs):
    model = GAITClassifier(random_state=0, max_iter=5).fit(*blobs)
    p = model.predict_proba(blobs[0])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(blobs[0]))
    assert model.decision_function(blobs[0]).shape == (300, 4)


def test_one_seed_gives_one_model_and_another_seed_another(blobs):
    X = blobs[0]
    one, same, other = (
        GAITClassifier(random_state=seed, max_iter=3).fit(*blobs).predict_proba(X) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("rule", NAMES)
def test_only_rules_that_invert_layers_are_regularised(rule, blobs):
    model = GAITClassifier(rule=rule, ortho_strength=0.5, random_state=0, max_iter=1).fit(*blobs)
    assert model._recipe.ortho_strength == (0.5 if rule in INVERTING else 0.0)


def test_parameters_reach_what_is_trained(blobs):
    options = {"learning_rate": 0.01, "ortho_strength": 0.5, "regulariser": "orthogonal"}
    model = GAITClassifier(9, 3, slope=0.3, dtype="float64", batch_size=7, random_state=0, **options)
    model.set_params(max_iter=1).fit(*blobs)
    network, recipe = model.network_, model._recipe
    assert [layer.used for layer in network.layers] == [9, 9, 9, 4]
    assert (network.dtype, network.layers[0].f.slope) == (np.float64, 0.3)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.t) == (0.01, 43)
    assert (recipe.ortho_strength, recipe.regulariser, recipe.decoupled) == (0.5, "orthogonal", True)


def test_partial_fit_goes_on_epoch_by_epoch_as_fit_does(blobs):
    X, y = blobs
    whole = GAITClassifier(random_state=0, max_iter=3).fit(X, y)
    parts = GAITClassifier(random_state=0)
    for _ in range(3):
        parts.partial_fit(X, y)
    np.testing.assert_array_equal(parts.predict_proba(X), whole.predict_proba(X))
    assert parts.n_iter_ == 3


def test_classes_that_come_later_are_named_at_the_first_partial_fit(blobs):
    X, y = blobs
    model = GAITClassifier(random_state=0)
    model.partial_fit(X[y != "oak"], y[y != "oak"], classes=np.unique(y))
    for _ in range(20):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9
    with pytest.raises(ValueError, match="pine"):
        model.partial_fit(X, np.where(y == "oak", "pine", y))
    with pytest.raises(ValueError, match="the first call had"):
        model.partial_fit(X, y, classes=["ash", "oak"])


def test_a_grid_search_over_a_pipeline_finds_the_better_depth_and_rate():
    X, y = load_digits(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), GAITClassifier(random_state=0, max_iter=4))
    grid = {"gaitclassifier__learning_rate": [1e-6, 3e-3]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X[:600], y[:600])
    assert search.best_params_ == {"gaitclassifier__learning_rate": 3e-3}
    assert search.best_score_ > 0.8


def test_the_digits_are_learned_as_well_as_by_backpropagation():
    X, y = load_digits(return_X_y=True)
    scores = {
        rule: cross_val_score(
            make_pipeline(StandardScaler(), GAITClassifier(rule=rule, random_state=0, max_iter=15)),
            X,
            y,
            cv=3,
        ).mean()
        for rule in ("gait", "bp")
    }
    assert scores["gait"] > 0.9
    assert scores["gait"] > scores["bp"] - 0.03


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "gate"}, "gate"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"hidden_width": 2}, "4 classes do not fit"),
        ({"ortho_strength": 3.0}, "stable up to 1"),
        ({"regulariser": "l2"}, "l2"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_parameters_out_of_range_are_refused_in_fit_with_what_was_expected(parameters, message, blobs):
    model = clone(GAITClassifier(**parameters))
    with pytest.raises(ValueError, match=message):
        model.fit(*blobs)


def test_importing_npgait_does_not_import_scikit_learn():
    code = "import sys, npgait; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_scikit_learn_the_import_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None; import npgait.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'npgait[sklearn]'" in run.stderr


@pytest.mark.parametrize(
    "options", [{"batch_size": -1}, {"batch_size": 0}, {"batch_size": 2.5}, {"max_iter": 1.5}]
)
def test_numbers_that_are_no_sizes_are_refused(options):
    X, y = np.random.default_rng(0).standard_normal((30, 4)), np.arange(30) % 2
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        GAITClassifier(**{"max_iter": 2, **options}).fit(X, y)


@pytest.mark.parametrize("label", [3, "ash", True])
def test_a_single_class_is_named_as_it_was_given(label):
    X = np.random.default_rng(0).standard_normal((30, 4))
    with pytest.raises(ValueError, match=f"only one class, {label!r};"):
        GAITClassifier().fit(X, np.array([label] * 30))


def test_a_first_call_that_failed_leaves_nothing_behind(blobs):
    X, y = blobs
    model = GAITClassifier(random_state=0)
    with pytest.raises(ValueError, match="y holds classes"):
        model.partial_fit(X, y, classes=np.unique(y)[:2])
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(ValueError, match="batch_size"):
        clone(model).set_params(batch_size=0).partial_fit(X, y)
    for wrong in ({"learning_rate": -1.0}, {"rule": "none"}, {"ortho_strength": 3.0}):
        right = model.get_params()
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.set_params(**wrong).partial_fit(X, y)
        with pytest.raises(NotFittedError):
            model.predict(X)
        model.set_params(**right)
    assert model.partial_fit(X, y, classes=np.unique(y)).n_iter_ == 1


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_outputs_that_overflow_are_no_class(method, blobs):
    model = GAITClassifier(random_state=0, max_iter=2).fit(*blobs)
    with pytest.raises(ValueError, match="not finite, which is no class"):
        getattr(model, method)(np.full((2, 6), 3e38))


def test_a_refit_that_is_refused_leaves_the_classifier_as_it_was(blobs):
    X, y = blobs
    model = GAITClassifier(max_iter=3, random_state=0).fit(X, y)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match="only one class"):
        model.fit(X[:, :3], np.zeros(len(X)))
    model.learning_rate = -1
    with pytest.raises(ValueError, match="learning_rate"):
        model.fit(X[:, :3], y)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    with pytest.raises(ValueError, match="features"):
        model.predict(X[:, :3])
