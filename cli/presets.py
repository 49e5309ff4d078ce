"""`npgait presets`: what can be run by name."""

from __future__ import annotations

import click

from npgait.cli.completion import complete_presets
from npgait.cli.table import format_table
from npgait.experiments import find_experiments, preset_experiments, preset_files, to_toml


@click.group(invoke_without_command=True, short_help="List the experiments that can be run by name.")
@click.pass_context
def presets(ctx: click.Context) -> None:
    """List the presets: the published experiments and a few more, runnable by name."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_presets)


@presets.command("list")
def list_presets() -> None:
    """List every preset and its experiments."""
    rows = []
    for name, experiments in preset_experiments():
        rows.append([name, f"all {len(experiments)} below", experiments[0].data])
        rows += [[f"  {e.name}", e.description, e.data] for e in experiments]
    click.echo(format_table(["preset", "what", "data"], rows, left=3))


@presets.command("show")
@click.argument("name", shell_complete=complete_presets)
def show(name: str) -> None:
    """Print preset NAME as TOML, to start a file of one's own from.

    A file of presets as it stands, with its defaults and comments; one experiment with every key.
    """
    files = preset_files()
    click.echo(files[name] if name in files else to_toml(find_experiments(name)), nl=False)
