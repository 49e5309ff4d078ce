"""benchmarks/gpu.py, with a stand-in for CuPy: one case whole, and what becomes of those that fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from npgait import backend
from npgait.cli import bench_timing
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks/ is not here")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "set_precision", lambda precision: None)
    monkeypatch.setattr(module, "STEPS", 3)
    return module


def row(name, **values):
    numbers = ("seconds", "samples_per_second", "share_of_product_rate", "share_of_floor", "ratio_to_bp")
    return {
        "name": name, "batch_size": 8, "peak_bytes": 1 << 20, "replay_refused": "", "replayed_steps": 3,
        **dict.fromkeys(numbers, 1.0), **values,
    }  # fmt: skip


def test_a_case_is_timed_and_written(script, fake_gpu, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(bench_timing, "product_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(bench_timing, "bandwidth", lambda device: 1e12)
    report = script.Report("card", tmp_path / "gpu")
    assert script.time_cases(report, fake_gpu, {"digits": ("gait",)}, (32,), lambda: 0.0)
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("gait") == 2  # in two precisions,
    assert table.count("-bp") == 2  # each beside backpropagation
    assert table.count(" yes") == 4, table  # all replayed from graphs
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert [r["precision"] for r in results] == list(backend.PRECISIONS)
    for result in results:
        for experiment in result["result"]["experiments"]:
            assert experiment["seconds"] > 0
            assert experiment["replay_refused"] == ""


def test_what_fails_or_has_no_time_is_said_and_the_rest_is_kept(
    script, fake_gpu, monkeypatch, tmp_path  # noqa: F811
):  # fmt: skip
    clock = [0.0]

    def measure(experiments, device, data_dir, steps):
        clock[0] += 100
        if experiments[0].batch_size == 16 and clock[0] < 400:
            raise RuntimeError("cuBLAS is unwell" + 300 * "." + "\nand more")
        return {"experiments": [row(e.name) for e in experiments]}

    monkeypatch.setattr(script, "measure", measure)
    report = script.Report("card", tmp_path / "gpu")
    good = script.time_cases(report, fake_gpu, {"digits": ("gait",)}, (8, 16, 32), lambda: clock[0])
    assert not good
    table = (tmp_path / "gpu.md").read_text()
    lines = [line.split()[:2] for line in table.splitlines() if line.startswith("digits")]
    assert lines.count(["digits", "square-bp"]) == 3
    assert table.count("RuntimeError: cuBLAS is unwell") == 1
    assert "and more" not in table
    assert max(map(len, table.splitlines())) < 250
    assert f"unwell{300 * '.'}" in (tmp_path / "gpu.json").read_text()
    # 8 twice and 16 twice are done by 400; 32 would take twice as long as 16, which is too much.
    assert table.count("no time left") == 2
    assert [r["batch"] for r in json.loads((tmp_path / "gpu.json").read_text())["results"]] == [
        8, 8, 16, 16, 32, 32,
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


@pytest.mark.parametrize(("until", "left_out"), [(99.0, 0), (101.0, 1)])
def test_a_case_is_taken_to_grow_with_the_batch(
    until, left_out, script, fake_gpu, monkeypatch, tmp_path  # noqa: F811
):  # fmt: skip
    """Of imagenet the host makes every image of a batch; it may not run on beyond the limit."""
    clock = [0.0]

    def measure(experiments, device, data_dir, steps):
        clock[0] += until if experiments[0].batch_size == 8 else 0
        return {"experiments": [row(e.name) for e in experiments]}

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script, "PRECISIONS", ("float32",))
    report = script.Report("card", tmp_path / "gpu")
    assert script.time_cases(report, fake_gpu, {"digits": ("gait",)}, (8, 32), lambda: clock[0])
    assert (tmp_path / "gpu.md").read_text().count("no time left") == left_out


def test_a_card_without_tf32_is_timed_in_float32(script, fake_gpu, monkeypatch, tmp_path):  # noqa: F811
    def set_precision(precision):
        if precision == "tf32":
            raise backend.DeviceError("there is none")

    monkeypatch.setattr(script, "set_precision", set_precision)
    monkeypatch.setattr(script, "measure", lambda experiments, *_: {"experiments": [row("bp")]})
    report = script.Report("card", tmp_path / "gpu")
    assert script.time_cases(report, fake_gpu, {"digits": ("gait",)}, (8, 16), lambda: 0.0)
    table = (tmp_path / "gpu.md").read_text()
    assert (table.count("there is none"), table.count("bp ")) == (2, 2)


@pytest.fixture
def timed_with(script, fake_gpu, monkeypatch, tmp_path):  # noqa: F811
    """Time three batches, the second of which fails in CUDA; return what is said, and the table."""

    def timed(kind, message):
        def measure(experiments, device, data_dir, steps):
            if experiments[0].batch_size == 16:
                raise type(kind, (RuntimeError,), {})(message)
            return {"experiments": [row(e.name) for e in experiments]}

        monkeypatch.setattr(script, "measure", measure)
        report = script.Report("card", tmp_path / "gpu")
        good = script.time_cases(report, fake_gpu, {"digits": ("gait",)}, (8, 16, 32), lambda: 0.0)
        return good, (tmp_path / "gpu.md").read_text()

    return timed


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("CUDARuntimeError", "cudaErrorIllegalAddress: an illegal memory access was encountered"),
        ("CUDADriverError", "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"),
    ],
)
def test_after_an_error_of_cuda_nothing_more_is_run(kind, message, timed_with):
    """It is the runtime's where the host waits, and the driver's where it launches the next kernel."""
    good, table = timed_with(kind, message)
    assert not good
    assert table.count("illegal memory access") == 1
    assert table.count("not run: the device had failed") == 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("CUDARuntimeError", "cudaErrorMemoryAllocation: out of memory"),
        ("CUDADriverError", "CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        ("CUBLASError", "CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_memory_that_cuda_has_not_leaves_out_one_case(kind, message, timed_with):
    good, table = timed_with(kind, message)
    assert good
    assert table.count(message) == 2
    assert "not run" not in table


def test_tests_that_fail_or_hang_are_not_passed(script, fake_gpu, monkeypatch, tmp_path):  # noqa: F811
    for body, limit, passed in (
        ("pass", 60, True),
        ("assert False", 60, False),
        ("time.sleep(60)", 2, False),
    ):
        path = tmp_path / f"test_{limit}_{passed}.py"
        path.write_text(f"import time, pytest\n@pytest.mark.gpu\ndef test_it():\n    {body}\n")
        monkeypatch.setattr(script, "TESTS", path)
        monkeypatch.setattr(script, "TESTS_LIMIT", limit)
        assert script.run_tests(fake_gpu, tmp_path / "gpu") is passed
        assert (tmp_path / "gpu-tests.xml").exists() is (limit > 2)
        (tmp_path / "gpu-tests.xml").unlink(missing_ok=True)


def test_backpropagation_is_timed_once_for_each_network(script):
    for presets in script.CASES.values():
        names = [(e.name, e.rule) for e in script._of(presets, 64)]
        assert [rule for _, rule in names].count("bp") == 1
        assert names[0][1] == "bp"
        assert len(names) == len(presets) + 1


def test_without_a_gpu_it_says_so(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    assert script.main() == 2
    assert "there is no GPU to measure" in capsys.readouterr().err


@pytest.fixture
def run_main(script, fake_gpu, monkeypatch):  # noqa: F811
    """Run the script with --out; return its status, and the number of times that tests were run."""

    def run(out, time=lambda *arguments: True):
        runs = []
        monkeypatch.setattr(script, "_card", lambda device: "card")
        monkeypatch.setattr(script, "run_tests", lambda device, out: runs.append(out) or True)
        monkeypatch.setattr(script, "time_cases", time)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
        return script.main(), len(runs)

    return run


@pytest.mark.parametrize(
    ("out", "expected"),
    [(".", "gpu"), ("card.80gb", "card.80gb"), ("new/folder/h200", "new/folder/h200")],
)
def test_files_go_where_out_says_a_folder_included(out, expected, run_main, tmp_path):
    assert run_main(tmp_path / out) == (0, 1)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == [f"{expected}.json", f"{expected}.md"]
    assert "tests passed" in (tmp_path / f"{expected}.md").read_text()


def test_what_was_measured_is_shown_where_it_can_no_longer_be_written(run_main, tmp_path, capsys):
    def time_cases(report, *_):
        report.rows.append(["measured", *[""] * 10])
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_main(tmp_path / "gpu", time=time_cases)
    assert "measured" in capsys.readouterr().out


def test_what_cannot_be_written_is_said_before_the_tests(run_main, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_main(tmp_path / "file" / "gpu") == (2, 0)
    assert "cannot be written" in capsys.readouterr().err
