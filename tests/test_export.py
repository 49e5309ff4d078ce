"""ONNX: another program computes what the network computes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npgait import export, load_network, models
from npgait.activations import LeakyReLU, Linear
from npgait.cli.main import cli
from npgait.export import ExportError, export_onnx
from npgait.layers import Conv2D, Dense, Window
from npgait.network import Network
from tests.support import relative

pytest.importorskip("onnx", reason="onnx is not installed (npgait[onnx])")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (npgait[onnx])")


def run_onnx(path, x):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"x": x})[0]


@pytest.mark.parametrize("auxiliary", [True, False, "implicit"])
@pytest.mark.parametrize("kind", ["square", "tower", "cifar10", "imagenet"])
def test_onnxruntime_agrees_to_rounding(kind, auxiliary, dtype, tmp_path, rng):
    options = {
        "square": {"n_in": 20, "depth": 2},
        "tower": {"n_in": 20, "widths": (12, 9)},
        "cifar10": {"n_in": 48, "width": 30, "depth": 2},
        "imagenet": {"shape_in": (35, 31, 3)},
    }[kind]
    network = models.MODELS[kind](n_classes=5, auxiliary=auxiliary, dtype=dtype, **options)
    for layer in network.layers:
        layer.b += rng.standard_normal(layer.b.shape).astype(dtype)
    export_onnx(network, tmp_path / "model.onnx")
    for n in (1, 7):
        x = rng.standard_normal((n, *network.shape_in)).astype(np.float32)
        expected = network.output(x.astype(dtype))
        assert relative(run_onnx(tmp_path / "model.onnx", x), expected) < 1e-5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    height=st.integers(3, 12),
    width=st.integers(3, 12),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    padding=st.sampled_from(["SAME", "VALID"]),
    slope=st.sampled_from([0.1, 1.0, 3.0, None]),
)
def test_convolutions_of_any_geometry_agree(height, width, kernel, stride, padding, slope, tmp_path):
    rng = np.random.default_rng(height * width)
    f = Linear() if slope is None else LeakyReLU(slope)
    window = Window(height, width, 2, kernel, stride, padding)
    W = rng.standard_normal((window.patch_size, 4)).astype(np.float32)
    conv = Conv2D(W, rng.standard_normal(4).astype(np.float32), window, 3, f)
    n = int(np.prod(conv.shape_out))
    out = Dense(
        rng.standard_normal((n, 5)).astype(np.float32),
        np.ones(5, np.float32),
        5,
        f,
        "out",
        conv.shape_out,
    )
    network = Network([conv, out])
    export_onnx(network, tmp_path / "model.onnx")
    x = rng.standard_normal((2, height, width, 2)).astype(np.float32)
    assert relative(run_onnx(tmp_path / "model.onnx", x), network.output(x)) < 1e-5


def npgait(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_run_is_exported_by_name(tmp_path, rng):
    common = ["--set", "epochs=1", "--no-plots", "--quiet", "--device", "cpu"]
    npgait("run", "digits", "-e", "bp", "-e", "gait", "--out", tmp_path / "run", *common)
    run = npgait("export", tmp_path / "run", tmp_path / "m.onnx", "-e", "gait")
    assert run.exit_code == 0, run.output
    x = rng.standard_normal((4, 64)).astype(np.float32)
    network = load_network(tmp_path / "run" / "gait" / "checkpoint.h5")
    assert relative(run_onnx(tmp_path / "m.onnx", x), network.output(x)) < 1e-5
    for arguments, words in (
        ([tmp_path / "run"], "holds bp, gait"),
        ([tmp_path / "run", "-e", "fa"], "there are bp, gait"),
        ([tmp_path], "not the folder of a run"),
    ):
        run = npgait("export", arguments[0], tmp_path / "n.onnx", *arguments[1:])
        assert run.exit_code == 2
        assert words in run.output
        assert not (tmp_path / "n.onnx").exists()


def test_without_onnx_the_error_says_what_to_install(tmp_path, monkeypatch):
    common = ["--set", "epochs=1", "--no-plots", "--quiet", "--device", "cpu"]
    npgait("run", "digits", "-e", "bp", "--out", tmp_path / "run", *common)
    monkeypatch.setitem(sys.modules, "onnx", None)
    run = npgait("export", tmp_path / "run", tmp_path / "m.onnx")
    assert run.exit_code == 2
    assert "pip install 'npgait[onnx]'" in run.output


def test_weights_that_an_onnx_file_cannot_hold_are_refused_before_it_is_made(tmp_path, monkeypatch):
    weights = np.broadcast_to(np.float32(0), (1 << 15, 1 << 14))  # 2 GiB, of which 4 bytes are there
    large = Network([Dense(weights, np.zeros(1 << 14, "f4"))])
    with pytest.raises(ExportError, match=r"the weights take 2,147,549,184 bytes, and an ONNX file"):
        export_onnx(large, tmp_path / "large.onnx")
    network = models.square(n_in=6, n_classes=3, width=5, depth=1)  # of 5 outputs 2 are left out
    monkeypatch.setattr(export, "MAX_BYTES", 4 * (7 * 5 + 6 * 3) - 1)
    with pytest.raises(ExportError):
        export_onnx(network, tmp_path / "small.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(export, "MAX_BYTES", 4 * (7 * 5 + 6 * 3))
    export_onnx(network, tmp_path / "small.onnx")


def test_a_layer_of_ones_own_is_refused_not_exported_as_what_it_derives_from(tmp_path):
    class Twice(Dense):
        """A layer that ONNX is not told of."""

    network = Network([Twice(np.ones((4, 3), "f4"), np.zeros(3, "f4"))])
    with pytest.raises(TypeError, match="Twice"):
        export_onnx(network, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_a_runs_own_files_are_not_written_over(tmp_path):
    run = tmp_path / "run"
    options = ["-q", "--no-plots", "-e", "bp", "--set", "epochs=1"]
    assert CliRunner().invoke(cli, ["run", "--out", str(run), *options]).exit_code == 0
    (tmp_path / "link").symlink_to(run / "bp")
    for path in (run / "bp" / "checkpoint.h5", tmp_path / "link" / "checkpoint.h5", run / "config.toml"):
        before = path.read_bytes()
        result = CliRunner().invoke(cli, ["export", str(run), str(path)])
        assert result.exit_code == 2, result.output
        assert "is a file of the run itself" in result.output
        assert path.read_bytes() == before
