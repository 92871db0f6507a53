"""The ``headscope`` command: a thin shell over the Python API.

Exit codes: 0 done, 1 a headscope error (one message, no traceback), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headscope import __version__
from headscope.app.command import app as workbench
from headscope.commands.bench import bench
from headscope.commands.compare import compare
from headscope.commands.evaluate import evaluate
from headscope.commands.models import models
from headscope.commands.profile import profile
from headscope.commands.rank import rank
from headscope.commands.steer import steer
from headscope.commands.tune import tune
from headscope.errors import HeadscopeError


class Shell(TyperGroup):
    """Turns deliberate errors and Ctrl-C into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; nothing that the user can mend shows a traceback."""
        try:
            return super().invoke(ctx)
        except HeadscopeError as error:
            typer.secho("Error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            typer.echo("\nInterrupted. Finished samples are kept: run the same command again to resume.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Shell,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with:  headscope models fetch smollm2-135m  and  headscope rank retrieval sinks induction",
)
app.command("app")(workbench)
app.command()(rank)
app.command()(compare)
app.command()(steer)
app.command()(profile)
app.command()(evaluate)
app.command()(tune)
app.add_typer(models, name="models")
app.add_typer(bench, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headscope {__version__}")
        raise typer.Exit


@app.callback()
def headscope(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Which attention heads do what, and does it matter?"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line with ``args``, by default those of the process, and exit."""
    app(args=args, prog_name="headscope")
