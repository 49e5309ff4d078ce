"""`npgait completion`: what a shell needs to complete commands, options and presets."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from npgait.experiments import preset_experiments

SHELLS = ("bash", "zsh", "fish")


def complete_presets(ctx: Any, parameter: Any, incomplete: str) -> list[CompletionItem]:
    """Return the presets and experiments whose name begins so; files are left to the shell."""
    del ctx, parameter
    found: dict[str, str] = {}
    for name, experiments in preset_experiments():
        found[name] = f"all {len(experiments)} experiments"
        found |= {e.name: e.description for e in experiments}
    items = [CompletionItem(n, help=t) for n, t in found.items() if n.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]


@click.command(short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete npgait's commands, options and presets.

    \b
    eval "$(npgait completion bash)"               # in ~/.bashrc
    eval "$(npgait completion zsh)"                # in ~/.zshrc
    npgait completion fish > ~/.config/fish/completions/npgait.fish
    """  # noqa: D301 - click wants the control character
    kind = get_completion_class(shell)
    assert kind is not None  # of each shell among the choices
    click.echo(kind(ctx.find_root().command, {}, "npgait", "_NPGAIT_COMPLETE").source())
