"""``headscope profile``: which heads a method helps on, and how strong it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headscope.commands.console import JsonOption, emit, err, progress, quiet_libraries, share_processors
from headscope.commands.options import Device, Dtype, Precision, Revision, Threads

WHAT, DATA = "What to look for", "Data"


def profile(
    method: Annotated[
        str,
        typer.Argument(
            help="pasta, act, zerotuning, spotlight, knockout, var, temperature, pai or ablation.", show_default=False
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "-t", help="Task to measure on; several give the heads they share.", show_default="sentiment"
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Short name, hub id, local folder or GGUF file.")
    ] = "smollm2-135m",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of the method, such as alpha=0.05.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for scores and report.", show_default="runs/METHOD-TASK"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what an earlier run in this folder finished.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Heads to print, and to keep of each of several tasks.")] = 20,
    json: JsonOption = False,
    screen: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Estimate all heads first, and measure this many of the best.",
            show_default="measure all",
            rich_help_panel=WHAT,
        ),
    ] = None,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Rank heads by how their keys tell what is asked for.", rich_help_panel=WHAT),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Choose heads on half of the items, test them on the rest.", rich_help_panel=WHAT
        ),
    ] = False,
    search: Annotated[
        str | None,
        typer.Option(help="Try values of this field, such as gamma.", show_default=False, rich_help_panel=WHAT),
    ] = None,
    updown: Annotated[
        str | None,
        typer.Option(help="Profile with this field below and above neutral.", show_default=False, rich_help_panel=WHAT),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Values for --search, or the two for --updown.", show_default="by field", rich_help_panel=WHAT
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads to try, or for --search to act on: 18.6,23.2, all, or a file of scores.",
            show_default="all",
            rich_help_panel=WHAT,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="logprob, accuracy, exact, valid or entropy.",
            show_default="logprob; accuracy for --search",
            rich_help_panel=WHAT,
        ),
    ] = None,
    min_gain: Annotated[
        float,
        typer.Option("--min-gain", help="Mean gain that a head must pass to be chosen.", rich_help_panel=WHAT),
    ] = 1e-4,
    controls: Annotated[
        int, typer.Option(min=1, help="Sets of other heads beside those of --calibrate.", rich_help_panel=WHAT)
    ] = 20,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            min=1,
            help="Heads that --calibrate chooses.",
            show_default="all that pass",
            rich_help_panel=WHAT,
        ),
    ] = None,
    n: Annotated[int, typer.Option(min=4, help="Items to measure on.", rich_help_panel=DATA)] = 60,
    length: Annotated[
        int | None,
        typer.Option(
            min=16, help="Tokens of a prompt, for tasks that take it.", show_default="by task", rich_help_panel=DATA
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Items read at once.", rich_help_panel=DATA)] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of items, halves and intervals.", rich_help_panel=DATA)] = 0,
    device: Device = None,
    dtype: Dtype = Precision.float32,
    threads: Threads = None,
    revision: Revision = None,
) -> None:
    """Try a method on one head at a time, over training items of a task. Killed runs resume: run the command again.

    [dim]Examples:[/dim]

      headscope profile pasta --task sentiment --screen 20 --out runs/pasta

      headscope profile pasta --task json --task pronouns --task counterfactual --top 60 --screen 80

      headscope profile act --task sentiment --calibrate

      headscope profile zerotuning --task topic --search gamma --metric entropy

      headscope profile zerotuning --task topic --updown gamma
    """
    modes = {"--keys": keys, "--calibrate": calibrate, "--search": search is not None, "--updown": updown is not None}
    chosen = [name for name, given in modes.items() if given]
    if len(chosen) > 1 or (screen is not None and chosen not in ([], ["--calibrate"])):
        raise typer.BadParameter("These do not go together.", param_hint=" ".join([*chosen, "--screen"][:2]))
    tasks = list(dict.fromkeys(task or ["sentiment"]))
    if len(tasks) > 1 and chosen:
        raise typer.BadParameter("Several tasks are for profiles alone.", param_hint=f"--task {chosen[0]}")
    quiet_libraries()
    share_processors()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with err().status(f"Loading {model}"):
        from headscope.commands import profiles
        from headscope.models.load import load

        loaded = load(model, device=device, dtype=dtype, revision=revision)
    folder = folder or Path("runs") / "-".join([method, *(tasks if not keys else ["keys"])])
    job = profiles.Job(
        loaded,
        method,
        tuple(settings or ()),
        folder,
        heads=heads,
        fresh=fresh,
        n=n,
        length=length,
        batch=batch,
        seed=seed,
        min_gain=min_gain,
    )
    with progress("Profiling") as advance:
        found: Any
        if keys:
            found = profiles.by_keys(job, advance)
        elif calibrate:
            found = profiles.calibrated(job, tasks[0], metric or "logprob", screen, controls, k, advance)
        elif search is not None:
            found = profiles.searched(job, tasks[0], search, grid, metric or "accuracy", advance)
        elif updown is not None:
            found = profiles.up_and_down(job, tasks[0], updown, grid, metric or "logprob", advance)
        else:
            found = profiles.profiled(job, tasks, metric or "logprob", screen, top, advance)
    if json:
        emit(profiles.document(found, top))
    else:
        profiles.show(found, top)
