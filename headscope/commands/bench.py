"""``headscope bench``: how fast and how large the engine is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.commands.console import JsonOption, numbers, quiet_libraries

bench = typer.Typer(help="Measure the engine on this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Measure the engine on this machine."""


@bench.command()
def capture(
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens, separated by commas.")] = "512,2048,8192",
    json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the measurements to this JSON file.")] = None,
    peers: Annotated[bool, typer.Option(help="Also measure the tools that hold whole patterns.")] = True,
) -> None:
    """Time and peak memory of captures beside plain SDPA and three other tools.

    Every cell runs in a process of its own on smollm2-135m, float32, two threads, all layers and heads.

    [dim]Example:[/dim]  headscope bench capture --lengths 512,2048 --no-peers
    """
    sizes = numbers(lengths, "--lengths") or ()
    quiet_libraries()
    from headscope.bench.capture import main

    main(sizes, peers, out, machine=json)


@bench.command()
def steer(
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens, separated by commas.")] = "512,2048,8192",
    json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the measurements to this JSON file.")] = None,
    peers: Annotated[bool, typer.Option(help="Also measure the eager way of the papers' code.")] = True,
) -> None:
    """Time and peak memory of steering methods beside plain SDPA and eager attention.

    A quarter of the heads of smollm2-135m is edited, float32, two threads; every cell runs in a process of its own.
    Prefill and decoding steps are timed, and the logits of both ways compared.

    [dim]Example:[/dim]  headscope bench steer --lengths 512,2048 --no-peers
    """
    sizes = numbers(lengths, "--lengths") or ()
    quiet_libraries()
    from headscope.bench.steer import main

    main(sizes, peers, out, machine=json)
