"""``headscope app``: the workbench in a browser."""

from __future__ import annotations

import signal
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from headscope.commands.console import err, out, quiet_libraries, share_processors
from headscope.commands.options import MACHINE, Device, Dtype, Precision, Revision, Threads

SAFETY = "Who may do what"


def app(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model to begin with: short name, hub id, folder or GGUF file.")
    ] = "smollm2-135m",
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="The one folder that pages read and write.")
    ] = Path("runs"),
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")] = 8321,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser window.")] = False,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; any but this machine's own needs --token.", rich_help_panel=SAFETY),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="HEADSCOPE_TOKEN",
            help="What a browser must show first; 16 characters or more.",
            show_default=False,
            show_envvar=True,
            rich_help_panel=SAFETY,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="Another model that pages may load; may be given several times.",
            show_default=False,
            rich_help_panel=SAFETY,
        ),
    ] = None,
    any_model: Annotated[
        bool, typer.Option("--allow-any-model", help="Pages may load any model.", rich_help_panel=SAFETY)
    ] = False,
    cache_gb: Annotated[
        float, typer.Option(min=0.1, help="Most memory for runs that are kept.", rich_help_panel=MACHINE)
    ] = 4.0,
    dtype: Dtype = Precision.float32,
    device: Device = None,
    threads: Threads = None,
    revision: Revision = None,
) -> None:
    """Explore attention, rank heads and steer in a browser; Ctrl-C ends it.

    [dim]Examples:[/dim]

      headscope app --model smollm2-135m --open

      headscope app --model ./my-model --workspace runs --cache-gb 8

      HEADSCOPE_TOKEN=… headscope app --host 0.0.0.0
    """
    quiet_libraries()
    share_processors()
    from headscope.app.settings import Settings

    settings = Settings(
        model=model,
        allowed=tuple(allow or ()),
        any_model=any_model,
        workspace=workspace,
        host=host,
        port=port,
        token=token,
        device=device,
        dtype=dtype,
        revision=revision,
        cache_bytes=int(cache_gb * 1e9),
    )
    with err().status("Starting"):
        import torch

        from headscope.app.server import Server, create

        if threads is not None:
            torch.set_num_threads(threads)
        made, desk = create(settings)
        server = Server(made, settings)
    with err().status(f"Loading {model}"), desk.model(model):
        pass
    out().print(f"headscope is at [bold]{server.url}[/bold]  (Ctrl-C ends it)", soft_wrap=True)
    if token is not None:
        err().print("It asks for the token that it was started with.")
    if browser:
        webbrowser.open(server.url)
    # As service managers and containers end it.
    signal.signal(signal.SIGTERM, lambda *_: server.close())
    server.run()
