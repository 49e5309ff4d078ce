"""The commands as a user types them."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from npgait import kernels, models
from npgait.cli import run as run_command
from npgait.cli.interrupt import stop_on_signals
from npgait.cli.main import cli
from npgait.layers import Dense

SMALL = ["--set", "epochs=2", "--set", "depth=1", "--set", "width=64"]


def call(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


def weights(folder):
    with h5py.File(folder / "checkpoint.h5") as file:
        found = {}
        file["parameters"].visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = call("run", "--out", folder, "--device", "cpu", *SMALL)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_run_compares_four_rules_on_the_digits_and_shows_a_table(finished):
    _, output = finished
    table = output[output.index("experiment ") :].splitlines()
    assert table[0].split("  ")[0] == "experiment"
    assert [line.split()[0] for line in table[2:6]] == ["bp", "fa", "gait-vanilla", "gait"]
    for heading in ("test top-1", "test loss", "angle to BP", "time"):
        assert heading in table[0]


def test_a_run_leaves_everything_needed_to_look_again(finished):
    folder, _ = finished
    assert (folder / "config.toml").is_file()
    info = json.loads((folder / "run.json").read_text())
    assert {"npgait", "python", "numpy", "device", "threads", "command"} <= set(info)
    for name in ("bp", "fa", "gait-vanilla", "gait"):
        for file in ("checkpoint.h5", "metrics.jsonl", "metrics.csv", "layers.csv"):
            assert (folder / name / file).stat().st_size > 0
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        epochs = [row for row in rows if row["kind"] == "epoch"]
        assert len(epochs) == 2
        for part in ("train", "test"):
            for key in ("loss", "top1", "top5"):
                assert epochs[0][f"{part}_{key}"] >= 0
        measured = [row for row in rows if row["kind"] == "layers"]
        assert {m["layer"] for m in measured[0]["layers"]} == {"hidden1", "output"}
    for plot in (
        "train-accuracy",
        "test-accuracy",
        "train-loss",
        "test-loss",
        "angle",
        "angle-by-layer",
    ):
        assert (folder / "plots" / f"{plot}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(folder.glob("**/.*.tmp"))


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, _ = finished
    before = {path: path.stat() for path in folder.rglob("*")}
    result = call("resume", folder)
    assert result.exit_code == 0
    assert "gait" in result.output
    for path, stat in before.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), path
    assert set(folder.rglob("*")) == set(before)


def test_a_run_begun_with_tf32_goes_on_on_the_cpu_unless_tf32_is_asked_for(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "precision": "tf32"}))
    arguments = ["resume", tmp_path / "run", "--no-plots", "--device", "cpu"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    result = call(*arguments, "--precision", "tf32")
    assert result.exit_code == 2
    assert "needs a GPU" in result.output


def test_plots_that_a_killed_process_did_not_draw_are_drawn(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    shutil.rmtree(run / "plots")
    assert call("resume", run).exit_code == 0
    plots = sorted((run / "plots").iterdir())
    os.utime(run / "gait" / "metrics.jsonl")  # an epoch later
    drawn = [path.stat().st_mtime_ns for path in plots]
    assert len(plots) == 6
    assert call("resume", run).exit_code == 0
    assert all(a < path.stat().st_mtime_ns for a, path in zip(drawn, plots, strict=True))


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_of_others(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "notes").mkdir()
    own = [run / ".config.toml.7.tmp", run / "plots" / ".angle.pdf.7.tmp"]
    own += [run / "gait" / f".{path.name}.7.tmp" for path in (run / "gait").iterdir()]
    own += [run / "plots" / f".{path.name}.7.tmp" for path in (run / "plots").iterdir()]
    others = [run / "notes" / ".config.toml.7.tmp", run / ".mine.tmp", run / "gait" / ".mine.7.tmp"]
    for path in own + others:
        path.touch()
    assert call("resume", run, "--no-plots").exit_code == 0
    assert [path for path in own + others if path.exists()] == others


@pytest.mark.parametrize("left", ["", '{"kind": "epoch"', None])
def test_metrics_that_a_killed_process_did_not_write_come_from_the_checkpoint(left, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for name in ("metrics.jsonl", "metrics.csv", "layers.csv"):
        path = tmp_path / "run" / "gait" / name
        path.unlink() if left is None else path.write_text(left)
    result = call("resume", tmp_path / "run", "--no-plots")
    assert result.exit_code == 0, result.output
    for name in ("metrics.jsonl", "metrics.csv", "layers.csv"):
        whole = (finished[0] / "gait" / name).read_bytes()
        assert (tmp_path / "run" / "gait" / name).read_bytes() == whole


def test_one_experiment_can_be_chosen(tmp_path):
    result = call("run", "-q", "-e", "fa", "--no-plots", "--out", tmp_path / "r", *SMALL)
    assert result.exit_code == 0
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["config.toml", "fa", "run.json"]


MISTAKES = [
    (["run", "nosuch"], ["preset 'nosuch' is unknown"]),
    (["run", "digit"], ["nearest: 'digits'"]),
    (["run", "nosuch.toml"], ["nosuch.toml", "cannot be read"]),
    (["run", "--set", "epoch=3"], ["'epoch' is unknown", "'epochs'"]),
    (["run", "--set", "epochs=many"], ["digits.toml", "'epochs' is 'many'", "integer"]),
    (["run", "--set", "epochs"], ["expected key=value"]),
    (["run", "--set", "width=1" + 30 * "0"], ["'bp'", "--set width", "below 16777216"]),
    (["run", "--set", "data=minst"], ["'bp'", "'data' is 'minst'", "one of digits", "nearest: 'mnist'"]),
    (["run", "--set", "width=8"], ["10 classes do not fit", "gait-vanilla"]),
    (["run", "--device", "gpu:77"], ["gpu:77"]),
    (["run", "--device", "abacus"], ["abacus", "use cpu, gpu"]),
    (["run", "-e", "nosuch"], ["--experiment 'nosuch'", "gait-vanilla"]),
    (["run", "--nosuch"], ["No such option"]),
    (["nosuch"], ["No such command"]),
    (["resume", "nosuch"], ["nosuch is not the folder of a run"]),
    (["check", "."], [". is not the folder of a run"]),
    (["presets", "show", "nosuch"], ["preset 'nosuch' is unknown"]),
    (["run", "mnist-gait-4l"], ["'mnist'", "train-images", "https://", "--data DIR"]),
    (["run", "cifar10", "--data", "/nosuch"], ["/nosuch: there is no such file or folder"]),
    (["run", "cifar10", "--data", "typo.h5"], ["typo.h5: there is no such file or folder"]),
    (["run", "cifar10", "--data", "."], ["cifar-10-binary.tar.gz", "cs.toronto.edu"]),
]


@pytest.mark.parametrize(("args", "parts"), MISTAKES, ids=lambda v: " ".join(v)[:40])
def test_a_users_mistake_is_a_clear_message_with_status_2(args, parts, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NPGAIT_DATA", raising=False)
    result = call(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.output
    assert not list(tmp_path.glob("runs/*/*")) or "classes" in result.output


def test_a_folder_that_holds_something_is_not_overwritten(finished, tmp_path):
    folder, _ = finished
    result = call("run", "--out", folder)
    assert result.exit_code == 2
    assert "npgait resume" in result.output
    (tmp_path / "file").touch()
    assert call("run", "--out", tmp_path / "file").exit_code == 2


def test_of_two_runs_that_find_a_folder_empty_one_is_refused(tmp_path, monkeypatch):
    def found_empty(out, preset, real=run_command._make_folder):
        folder = real(out, preset)
        (folder / "config.toml").write_text("of the other")
        return folder

    monkeypatch.setattr(run_command, "_make_folder", found_empty)
    result = call("run", "--out", tmp_path / "r", *SMALL)
    assert result.exit_code == 2, result.output
    assert "is not empty; `npgait resume" in result.output
    assert (tmp_path / "r" / "config.toml").read_text() == "of the other"
    assert os.listdir(tmp_path / "r") == ["config.toml"]


@pytest.mark.parametrize("out", [(), ("--out", "runs"), ("--out", "runs/r")], ids=" ".join)
def test_a_link_to_nothing_where_a_folder_belongs_is_a_clear_message(out, tmp_path):
    (tmp_path / "runs").symlink_to("nowhere")
    command = [sys.executable, "-m", "npgait", "run", *out]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "runs is no folder" in run.stderr


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_a_run_that_diverges_stops_with_status_1_and_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "r"
    assert call("run", "-q", "-e", "bp", "--out", folder, *SMALL).exit_code == 0
    good = weights(folder / "bp")
    text = (folder / "config.toml").read_text().replace("epochs = 2", "epochs = 3")
    (folder / "config.toml").write_text(text)
    from npgait import session

    original = session.restore_session

    def poisoned(path, session, digest):
        original(path, session, digest)
        session.network.layers[1].W[0, 0] = np.inf

    from npgait.cli import execute

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "restore_session", poisoned)
        result = call("resume", folder)
    assert result.exit_code == 1
    assert "step 93" in result.output
    assert "output" in result.output
    for name, array in weights(folder / "bp").items():
        np.testing.assert_array_equal(array, good[name])


def test_a_damaged_checkpoint_is_a_clear_message(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    path = folder / "fa" / "checkpoint.h5"
    path.write_bytes(path.read_bytes()[:-500])
    result = call("resume", folder)
    assert result.exit_code == 2
    assert "checkpoint.h5" in result.output


@pytest.mark.parametrize(
    ("missing", "words"), [(ImportError("no module"), "matplotlib"), (MemoryError(), "memory")]
)
def test_what_cannot_be_drawn_is_one_line_after_the_table(missing, words, tmp_path, monkeypatch):
    def failing(name, *rest, real=builtins.__import__):
        if name.startswith("matplotlib"):
            raise missing
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", failing)
    folder = tmp_path / "r"
    run = call("run", "-q", "-e", "bp", "--set", "epochs=1", "--out", folder)
    assert run.exit_code == 1
    assert "run folder: " in run.output and "test top-1" in run.output
    assert run.output.splitlines()[-1].startswith("Error: ") and words in run.output
    for command in (["plot", folder], ["compare", folder], ["report", folder]):
        monkeypatch.chdir(tmp_path)
        result = call(*command)
        assert result.exit_code == 1 and words in result.output.splitlines()[-1]


def test_a_backend_that_matplotlib_does_not_know_is_one_line(finished, tmp_path):
    command = [sys.executable, "-m", "npgait", "plot", finished[0], "--out", tmp_path]
    environment = {**os.environ, "MPLBACKEND": "nosuch"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (1, 1), run.stderr
    assert "nosuch" in run.stderr and "MPLBACKEND" in run.stderr


def every_command(command=cli, path=()):
    yield list(path)
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, (*path, name))


@pytest.mark.parametrize("command", list(every_command()), ids=" ".join)
def test_every_command_has_help(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_presets_are_listed_and_shown(tmp_path):
    listed = call("presets").output
    for name in ("digits", "mnist-gait-4l", "cifar10", "cifar10-shallow-fa", "kmnist-tp-tower"):
        assert name in listed
    for name in ("digits", "mnist-gait-4l"):
        shown = call("presets", "show", name)
        assert shown.exit_code == 0
        (tmp_path / "own.toml").write_text(shown.output)
        assert "own.toml" not in call("run", str(tmp_path / "own.toml"), "--device", "none").output


# --- real processes: signals and imports -------------------------------------------------------------

RUN = [sys.executable, "-m", "npgait"]
LONG = ["-e", "gait", "--set", "epochs=12", "--set", "depth=3", "--no-plots", "--device", "cpu"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    subprocess.run([*RUN, "run", "-q", "--out", folder, *LONG], check=True, capture_output=True)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 1)])
def test_a_signal_saves_and_resuming_ends_bit_identical(number, straight, tmp_path):
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        [*RUN, "run", "--out", stopped, *LONG], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while "epoch 2/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "npgait resume" in err
    assert "Traceback" not in err
    assert (stopped / "gait" / "metrics.jsonl").read_text().count('"epoch", ') < 12
    subprocess.run([*RUN, "resume", "-q", stopped], check=True, capture_output=True)
    one, two = weights(straight / "gait"), weights(stopped / "gait")
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])
    rows = [
        [
            {**json.loads(line), "seconds": 0}
            for line in (folder / "gait" / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (straight, stopped)
    ]
    assert rows[0] == rows[1]


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_the_second_signal_stops_at_once_and_says_what_goes_on(tmp_path, monkeypatch, capfd):
    def train(*args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("npgait.cli.execute._train", train)
    result = call("run", "--out", tmp_path / "r", *LONG)
    assert result.exit_code == 1
    assert f"stopped at once; `npgait resume {tmp_path / 'r'}` goes on" in result.output
    assert "once more to stop at once" in capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="terminals as on POSIX")
def test_a_run_whose_terminal_goes_is_saved(tmp_path):
    ours, theirs = os.openpty()
    takes_it = "import fcntl, termios, runpy; fcntl.ioctl(2, termios.TIOCSCTTY, 0)"
    module = f"{takes_it}; runpy.run_module('npgait', run_name='__main__')"
    command = [sys.executable, "-c", module, "run", "--out", tmp_path / "r", *LONG]
    process = subprocess.Popen(
        [*command, "--set", "batch_size=1"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.read(ours, 100)  # the first batch is done
    os.close(ours)
    process.wait(timeout=60)
    with h5py.File(tmp_path / "r" / "gait" / "checkpoint.h5") as file:
        progress = json.loads(file["meta"][:].tobytes())["progress"]
    assert progress["epoch"] == 0 < progress["batch"]


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_a_signal_in_the_midst_of_a_line_for_stderr_is_no_error():
    lines = (
        "import os, signal, sys, threading, time\n"
        "from npgait.cli.interrupt import stop_on_signals\n"
        "read, write = os.pipe(); said = os.dup(2); os.dup2(write, 2)\n"
        "def late(): time.sleep(0.5); os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.5); drain()\n"
        "def drain():\n"
        "    while os.read(read, 1 << 16): pass\n"
        "threading.Thread(target=late, daemon=True).start()\n"
        "with stop_on_signals('resume') as stop:\n"
        "    sys.stderr.buffer.write(b'x' * (1 << 17))\n"
        "    print(stop.signal)\n"
    )
    command = [sys.executable, "-c", lines]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, f"{int(signal.SIGTERM)}\n")


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_caller_has_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signals("resume") as stop:
            os.kill(os.getpid(), number)
            assert not stop()
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_a_run_under_nohup_goes_on(tmp_path):
    process = subprocess.Popen(
        ["nohup", *RUN, "run", "--out", tmp_path / "r", *LONG, "--set", "epochs=2"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "epoch 1/" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "epoch 2/" in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_an_epoch_that_cannot_be_told_is_saved(tmp_path):
    with open("/dev/full", "w") as full:
        command = [*RUN, "run", "--out", tmp_path / "r", *LONG]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and "No space left" in run.stderr
    rows = (tmp_path / "r" / "gait" / "metrics.jsonl").read_text()
    assert rows.count('"kind": "epoch"') == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["run", "--help"], ["presets"]], ids=" ".join
)
def test_words_that_cannot_be_written_are_one_line(words):
    with open("/dev/full", "w") as full:
        run = subprocess.run([*RUN, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "Error: standard output, or a file: No space left on device\n"


def test_a_name_that_the_output_has_no_letters_for_is_no_traceback(tmp_path):
    (tmp_path / "own.toml").write_text('[[experiment]]\nname = "日本"\n', encoding="utf-8")
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
    environment["LC_ALL"] = "C.UTF-8"
    command = [*RUN, "run", tmp_path / "own.toml", "-q", "--no-plots", "--set", "epochs=1"]
    command += ["--set", "rule=bp", "--out", tmp_path / "r"]
    run = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"\n??  " in run.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_a_killed_run_loses_no_more_than_the_time_between_checkpoints(tmp_path):
    folder = tmp_path / "r"
    options = [*LONG, "--set", "epochs=2", "--set", "batch_size=32"]
    every_batch = ["--set", "checkpoint_minutes=0"]
    process = subprocess.Popen([*RUN, "run", "-q", "--out", folder, *options, *every_batch])
    checkpoint = folder / "gait" / "checkpoint.h5"
    while not checkpoint.exists():
        assert process.poll() is None
    time.sleep(0.3)
    process.kill()
    process.wait()
    with h5py.File(checkpoint) as file:
        progress = json.loads(file["meta"][:].tobytes())["progress"]
    assert progress["step"] > 0
    subprocess.run([*RUN, "resume", "-q", folder], check=True, capture_output=True)
    straight = tmp_path / "straight"
    command = [*RUN, "run", "-q", "--out", straight, *options]
    subprocess.run(command, check=True, capture_output=True)
    one, two = weights(folder / "gait"), weights(straight / "gait")
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name])


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path):
    folder = tmp_path / "r"
    process = subprocess.Popen(
        [*RUN, "run", "--out", folder, *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "epoch 2/" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    result = subprocess.run([*RUN, "resume", folder], check=True, capture_output=True, text=True)
    assert "epoch 1/" not in result.stdout
    assert "epoch 12/12" in result.stdout


def loaded_by(code):
    lines = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return {name.partition(".")[0] for name in lines}


def test_importing_npgait_loads_nothing_it_does_not_use():
    heavy = {"matplotlib", "h5py", "cupy", "PIL", "tqdm", "click"}
    assert not heavy & loaded_by("import npgait")
    assert not {"matplotlib", "cupy"} & loaded_by("import npgait.cli.main")
    assert not heavy & loaded_by("import npgait; npgait.models.square(4, 2).predict([[1, 2, 3, 4]])")


def test_importing_npgait_is_fast():
    """Within twice the time of importing NumPy, which it cannot do without."""

    def seconds(module):
        times = []
        for _ in range(3):
            before = os.times()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            after = os.times()  # of the processor: other tests run beside this one
            times.append(after.children_user + after.children_system)
            times[-1] -= before.children_user + before.children_system
        return min(times)

    assert seconds("npgait") < 2 * seconds("numpy") + 0.2


def test_only_the_backend_imports_cupy_and_the_core_knows_neither_cli_nor_loaders():
    root = Path(__file__).parents[1]
    for path in (root / "npgait").rglob("*.py"):
        text = path.read_text()
        if path.name != "backend.py":
            assert "import cupy" not in text, path
        if path.name != "__main__.py":
            assert "npgait.cli" not in text, path
            assert "import npgait.loaders" not in text, path
            assert "from npgait.loaders" not in text, path
    for path in (root / "loaders").rglob("*.py"):
        assert "npgait.cli" not in path.read_text(), path


def test_a_network_takes_as_many_threads_as_its_products_are_worth_and_there_are(monkeypatch):
    from threadpoolctl import threadpool_info

    from npgait.cli.threads import blas_threads

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with blas_threads(models.square(64, 10, width=128), 32):
        assert set(threads()) <= {1}
    with blas_threads(models.square(784, 10), 60):
        assert threads() == before
    assert threads() == before
    monkeypatch.setattr("npgait.cli.threads.thread_count", lambda: 64)
    monkeypatch.setattr("npgait.cli.threads.threadpool_limits", lambda limits, user_api: limits)
    sizes = ((64, 128, 32), (64, 256, 64), (784, 784, 60), (784, 1024, 256))
    limits = [blas_threads(models.square(n, 10, width=width), size) for n, width, size in sizes]
    assert limits == [1, 3, 19, None]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_memory speaks to glibc")
def test_memory_of_any_size_that_a_step_frees_is_kept_for_the_next():
    faults = (
        "import numpy as np, resource, sys\n"
        "from npgait.cli.threads import keep_memory\n"
        "if sys.argv[1] == 'kept': keep_memory()\n"
        "for step in range(4):\n"
        "    if step == 2: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    np.ones(10_000_000), np.ones(100_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    freed, kept = (
        int(subprocess.run([sys.executable, "-c", faults, word], capture_output=True, check=True).stdout)
        for word in ("freed", "kept")
    )
    assert kept <= 4 < 2 * 80e6 / (2 << 20) <= freed  # a fault for each page, of 2 MiB at most


@pytest.mark.skipif(os.name != "posix", reason="file size limits as on POSIX")
def test_a_disk_that_fills_up_is_one_clear_line_with_status_1(tmp_path):
    folder = tmp_path / "r"
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "sys.argv[0] = 'npgait'; from npgait.cli.main import main; main()"
    )
    command = [sys.executable, "-c", limited, "run", "-q", "--out", folder, "--set", "width=200"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "checkpoint.h5" in line
    assert "too large" in line
    assert not list((folder / "bp").iterdir())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"device": 3}', "\0" * 100, "[" * 100_000, " " * (2 << 20)]
)
def test_a_damaged_run_json_is_a_clear_message(finished, tmp_path, text):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "run.json").write_text(text)
    result = call("resume", folder)
    assert result.exit_code == 2, result.output
    assert "run.json" in result.output


@pytest.mark.parametrize("data", ["a\0b", "\ud800"])
@pytest.mark.parametrize("command", ["resume", "check"])
def test_a_run_json_with_data_that_no_path_can_name_is_a_clear_message(
    command, data, finished, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "data": data}))
    result = call(command, folder)
    assert result.exit_code == 2, result.output
    assert "run.json: says that the data are in" in result.output


def test_without_run_json_it_is_said_what_to_write_and_that_is_enough(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "run.json").unlink()
    for command in ("resume", "check", "compare"):
        result = call(command, folder)
        assert result.exit_code == 2, result.output
        assert "run.json: cannot be read" in result.output
        assert 'write {"data": "DIR"} there' in result.output
    (folder / "run.json").write_text('{"data": null}')
    assert call("resume", folder, "--no-plots").exit_code == 0
    assert call("compare", folder, "--no-plots").exit_code == 0


def shown_on_a_terminal(tmp_path, name, columns):
    """The last line of epoch 2 of 2 as a terminal of so many columns is sent it."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "npgait", "run", "digits", "-e", name, "--set", "epochs=2"]
    process = subprocess.Popen(
        [*command, "--no-plots", "--out", str(tmp_path / f"run{columns}"), "--device", "cpu"],
        stderr=child,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": str(columns)},
    )
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is gone
        while data := os.read(parent, 65536):
            shown += data
    os.close(parent)
    assert process.wait() == 0
    return [line.strip("\r").split("\r")[-1] for line in shown.decode().split("\n") if "2/2" in line][-1]


def test_on_a_terminal_each_epoch_is_a_live_line_with_rate_time_left_loss_accuracy_and_angle(tmp_path):
    last = shown_on_a_terminal(tmp_path, "gait", 120)
    assert last.startswith("gait 2/2")
    for words in ("it/s", "left", "loss", "train", "test", "angle"):
        assert words in last, last


@pytest.mark.parametrize(
    ("columns", "items"), [(80, ["loss", "test", "angle"]), (70, ["test", "angle"]), (36, []), (12, [])]
)
def test_a_narrow_terminal_is_shown_fewer_items_each_of_them_whole(columns, items, tmp_path):
    last = shown_on_a_terminal(tmp_path, "gait-vanilla", columns).strip()
    assert len(last) < columns
    assert "2/2" in last
    forms = {"loss": r"loss \d+\.\d{3}", "test": r"test \d+\.\d%", "angle": r"angle \d+\.\d deg"}
    behind = last.split("it/s")[1:] or [""]
    assert re.fullmatch("".join(f", {forms[item]}" for item in items), behind[0]), last


def test_piped_output_is_plain_lines(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "npgait", "run", "digits", "-e", "bp", "--set", "epochs=2", "--no-plots",
         "--out", str(tmp_path / "run"), "--device", "cpu"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "bp: epoch 2/2, loss" in run.stdout
    assert "left" in run.stdout
    assert "\r" not in run.stdout + run.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_given_a_completion_script(shell):
    run = CliRunner().invoke(cli, ["completion", shell])
    assert run.exit_code == 0, run.output
    assert "_NPGAIT_COMPLETE" in run.output


def test_presets_are_completed(monkeypatch):
    from npgait.cli.completion import complete_presets

    names = [item.value for item in complete_presets(None, None, "cifar10-g")]
    assert names == ["cifar10-gait-vanilla", "cifar10-gait"]
    assert [item.type for item in complete_presets(None, None, "my.to")] == ["file"]


def test_what_cannot_be_trained_is_said_before_anything_is(tmp_path):
    out = tmp_path / "run"
    result = call("run", "--out", out, "--set", "width=3", "--set", "depth=1")
    assert result.exit_code == 2
    assert "experiment 'gait-vanilla': " in result.output
    assert "do not fit" in result.output
    assert not out.exists()


@pytest.mark.parametrize("name", ["config.toml", "run.json", "Plots"])
def test_an_experiment_cannot_take_the_name_of_a_runs_own_file(name, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'[[experiment]]\nname = "{name}"\n')
    result = call("run", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "own files" in result.output


def test_names_that_seeds_make_too_long_are_refused_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'[[experiment]]\nname = "{"a" * 98}"\n')
    result = call("run", path, "--out", tmp_path / "run", "--seeds", "2")
    assert result.exit_code == 2
    assert "up to 100 letters" in result.output
    assert not (tmp_path / "run").exists()


def test_names_of_too_many_bytes_are_refused_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    for letters in (85, 86):  # of three bytes each
        path.write_text(f'[[experiment]]\nname = "{"語" * letters}"\nepochs = 1\n', encoding="utf-8")
        result = call("run", path, "-q", "--no-plots", "--out", tmp_path / f"run{letters}")
        assert result.exit_code == (0 if letters == 85 else 2), result.output
    assert "up to 255 bytes" in result.output
    assert not (tmp_path / "run86").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are UTF-8 in every locale")
@pytest.mark.parametrize("command", ["run", "resume", "compare"])
def test_a_name_that_the_locale_has_no_letters_for_is_refused_at_once(command, finished, tmp_path):
    path, folder = tmp_path / "mine.toml", tmp_path / "run"
    path.write_text('[[experiment]]\nname = "日本語é"\n', encoding="utf-8")
    if command != "run":
        shutil.copytree(finished[0], folder)
        shutil.copy(path, folder / "config.toml")
    ascii_names = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    arguments = [path, "--out", folder] if command == "run" else [folder]
    result = subprocess.run(
        [*RUN, command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ascii_names},
    )
    assert result.returncode == 2, result.stderr
    assert "cannot be the name of a folder in this locale" in result.stderr
    assert "PYTHONUTF8=1" in result.stderr
    assert folder.exists() == (command != "run")


def test_a_run_under_way_is_not_resumed_beside_itself(finished):
    folder, _ = finished
    hold = (
        "import sys, time; from pathlib import Path; from npgait.files import locked\n"
        "with locked(Path(sys.argv[1])) as free: print(free, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, folder / "config.toml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "True\n"
            result = call("resume", folder)
        finally:
            holder.kill()
    assert result.exit_code == 2
    assert "another npgait is at work in it" in result.output
    assert call("resume", folder, "--no-plots").exit_code == 0  # once the other is gone


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--out", ""],
        ["report", "runs", "--out", ""],
        ["export", "runs", ""],
        ["data", "info", "x.h5", "--png", ""],
        ["compare", "runs", "--out", ""],
        ["resume", ""],
    ],
)
def test_an_empty_path_is_no_path(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "the path is empty" in result.output


def test_a_measurement_takes_a_finite_time(tmp_path):
    result = call("data", "bench", tmp_path / "x.h5", "--seconds", "nan")
    assert result.exit_code == 2
    assert "nan is not a finite number" in result.output


def test_nobody_reading_on_is_no_error_to_speak_of():
    command = f"{sys.executable} -m npgait check digits -e gait | head -n 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Error" not in run.stderr
    assert "Traceback" not in run.stderr


def test_a_run_that_diverges_says_so_in_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "npgait",
        "run",
        "digits",
        "-e",
        "bp",
        "--set",
        "learning_rate=1e10",
    ]
    options = ["--set", "epochs=2", "-q", "--no-plots", "--out", str(tmp_path / "run")]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1, run.stderr
    assert "experiment 'bp': the loss is not finite at step 2" in run.stderr


def test_a_layer_that_no_checkpoint_can_hold_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    class Own(Dense):
        pass

    def with_own_layer(*sizes, **options):
        network = models.square(*sizes, **options)
        network.layers[0].__class__ = Own
        return network

    (tmp_path / "own.toml").write_text('[[experiment]]\nrule = "bp"\n')
    monkeypatch.setitem(models.MODELS, "square", with_own_layer)
    result = call("run", tmp_path / "own.toml", "--out", tmp_path / "r")
    assert result.exit_code == 2
    assert "experiment 'experiment1' cannot be saved: hidden1 is a Own" in result.output
    assert not (tmp_path / "r").exists()


def test_what_does_not_fit_into_memory_says_what_to_lower(tmp_path, monkeypatch):
    def too_large(*sizes, f_output=None, **options):
        raise MemoryError("Unable to allocate 7.28 TiB")

    monkeypatch.setitem(models.MODELS, "square", too_large)
    result = call("run", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "experiment 'bp': its weights do not fit into memory; lower width or depth" in result.output
    monkeypatch.undo()
    monkeypatch.setattr("npgait.cli.execute.run_session", too_large)
    result = call("run", "-e", "bp", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "experiment 'bp': Unable to allocate 7.28 TiB; lower batch_size or" in result.output


def test_experiments_beside_one_that_diverges_are_trained_by_run_and_by_resume(tmp_path):
    out = tmp_path / "run"
    gamma = ["--set", "gamma=1e-300", "--set", "epochs=2", "--no-plots"]
    result = call("run", "--out", out, "-e", "gait-vanilla", "-e", "gait", *gamma)
    assert result.exit_code == 1
    assert "Error: experiment 'gait-vanilla': the loss is not finite" in result.output
    assert "failed: gait-vanilla\n" in result.output
    table = result.output[result.output.index("experiment  ") :].splitlines()
    assert [line.split()[:2] for line in table[2:4]] == [["gait-vanilla", "0"], ["gait", "2"]]
    shutil.rmtree(out / "gait")
    result = call("resume", out, "--no-plots")
    assert result.exit_code == 1
    assert "failed: gait-vanilla\n" in result.output
    assert (out / "gait" / "checkpoint.h5").exists()


def test_python_m_npgait_in_the_source_says_where_to_start_it(tmp_path):
    """There npgait has no `cli` in it, which setup.py puts there."""
    shutil.copytree(Path(kernels.__file__).parents[1], tmp_path / "npgait")
    shutil.rmtree(tmp_path / "npgait" / "cli", ignore_errors=True)
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = "
    code += "[f for f in sys.meta_path if 'editable' not in str(f)]; runpy.run_module('npgait')"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 1
    assert "start Python in another folder" in run.stderr
    assert "Traceback" not in run.stderr
