"""The command `npgait`: its subcommands, and how an error reaches the user."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from npgait import __version__
from npgait.backend import DeviceError
from npgait.checkpoint import CheckpointError
from npgait.cli.bench import bench
from npgait.cli.check import check
from npgait.cli.compare import compare, plot, report
from npgait.cli.completion import completion
from npgait.cli.data import data
from npgait.cli.execute import DIVERGED
from npgait.cli.export import export
from npgait.cli.presets import presets
from npgait.cli.resume import resume
from npgait.cli.run import run
from npgait.config import ConfigError
from npgait.export import ExportError
from npgait.figures import FiguresError
from npgait.kernels.loops import SwitchError
from npgait.loaders import DataError
from npgait.loaders.store.workers import WorkerError
from npgait.run_folder import RunFolderError

MISTAKES = (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    ExportError,
    RunFolderError,
    SwitchError,
)
FAILURES = (*DIVERGED, FiguresError, WorkerError, MemoryError)
NO_THREAD = "can't start new thread"  # which is how Python says so


class BadUsage(click.ClickException):
    """A mistake of the user's, shown without a traceback."""

    exit_code = 2


class FailedRun(click.ClickException):
    """A run that could not go on, shown without a traceback."""

    exit_code = 1


class ReportingGroup(click.Group):
    """A group whose commands report the user's mistakes and a run's failures without a traceback."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read the command line; --help is written here already."""
        with reporting():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with reporting():
            return super().invoke(ctx)


@contextmanager
def reporting() -> Iterator[None]:
    """Report mistakes and failures without a traceback: status 2 for bad usage, 1 for a failed run."""
    try:
        yield
    except MISTAKES as error:
        raise BadUsage(str(error)) from error
    except BrokenPipeError:
        raise  # click ends quietly where nobody reads on
    except OSError as error:
        _drop_output()
        where = error.filename or "standard output, or a file"
        raise FailedRun(f"{where}: {error.strerror or error}") from error
    except FAILURES as error:
        raise FailedRun(str(error) or "there is too little memory") from error
    except RuntimeError as error:
        if not str(error).startswith(NO_THREAD):
            raise
        raise FailedRun(
            "the system starts no more threads: it is short of memory, or this user or container may "
            "have no more processes (ulimit -u)"
        ) from error


def _drop_output() -> None:
    """Let what stdout still holds go nowhere if it cannot be written: Python tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@click.group(
    cls=ReportingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="npgait")
def cli() -> None:
    """Train deep networks by GAIT-prop: local targets instead of backpropagated gradients.

    `npgait run` trains a small network on hand-written digits in four ways and compares them, in
    under a minute and without a download.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of harmless damage to EXIF, say


for command in (run, resume, presets, data, compare, plot, report, check, bench, export, completion):
    cli.add_command(command)


def main() -> None:
    """Entry point of the command `npgait`."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):  # not every encoding has every letter of a name
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    cli(prog_name="npgait")


def _open_closed_streams() -> None:
    """Open the standard streams that the caller closed; what is written there goes nowhere.

    Left closed, the next file that is opened, a store say, would get the number of stderr, and with it
    whatever a library prints. What processes are started inherits the streams.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - open to the end
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
