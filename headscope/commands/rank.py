"""``headscope rank``: score every head of a model, with one pass over shared samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headscope.commands.console import (
    Advance,
    JsonOption,
    emit,
    err,
    numbers,
    progress,
    quiet_libraries,
    share_processors,
)
from headscope.commands.options import Device, Dtype, Precision, Revision, Threads
from headscope.commands.ranking import Plan, carry_out
from headscope.commands.results import document, show


class Ablation(StrEnum):
    """What a removed head's output becomes."""

    zero = "zero"
    mean = "mean"
    resample = "resample"
    mask = "mask"


DATA, REMOVAL = "Data", "Removing heads"


def rank(
    probes: Annotated[
        list[str],
        typer.Argument(
            metavar="PROBE",
            help="One or more of retrieval, echo, induction, previous, duplicate, sinks, sink-tokens.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Short name, hub id, local folder or GGUF file.")
    ] = "smollm2-135m",
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for scores and report.", show_default="runs/MODEL")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what an earlier run in this folder finished.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Heads to print for each probe.")] = 5,
    json: JsonOption = False,
    n: Annotated[
        int | None,
        typer.Option(min=1, help="Samples of each kind.", show_default="by kind", rich_help_panel=DATA),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Retrieval contexts in tokens, such as 512,2048.", show_default="by model", rich_help_panel=DATA
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=8, help="Tokens of a text or block.", show_default="by kind", rich_help_panel=DATA),
    ] = None,
    haystack: Annotated[
        Path | None,
        typer.Option(
            help="Folder of your own text to hide needles in.", show_default="generated prose", rich_help_panel=DATA
        ),
    ] = None,
    teacher: Annotated[
        bool,
        typer.Option("--teacher", help="Feed the true answers: for models that do not answer.", rich_help_panel=DATA),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of data, bootstrap and controls.", rich_help_panel=DATA)] = 0,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Remove the best heads and measure.", rich_help_panel=REMOVAL),
    ] = True,
    ablation: Annotated[
        Ablation, typer.Option(help="What a removed head's output becomes.", rich_help_panel=REMOVAL)
    ] = Ablation.mean,
    controls: Annotated[
        int, typer.Option(min=1, help="Sets of other heads to remove beside.", rich_help_panel=REMOVAL)
    ] = 20,
    k: Annotated[
        str | None,
        typer.Option(
            "--k",
            help="How many heads to remove, such as 1,5,20.",
            show_default="up to all that pass",
            rich_help_panel=REMOVAL,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(min=2, help="Samples on which a removal is measured.", rich_help_panel=REMOVAL)
    ] = 8,
    dtype: Dtype = Precision.float32,
    device: Device = None,
    threads: Threads = None,
    revision: Revision = None,
) -> None:
    """Score every head and write tables and a report. Killed runs resume: run the same command again.

    [dim]Examples:[/dim]

      headscope rank retrieval sinks induction --model smollm2-135m --out runs/a

      headscope rank retrieval --haystack ~/texts --lengths 1024,4096 --ablation zero

      headscope rank induction --model gpt2 --no-verify --json
    """
    sizes, steps = numbers(lengths, "--lengths"), numbers(k, "--k")
    quiet_libraries()
    share_processors()
    plan = Plan(
        probes=tuple(probes),
        n=n,
        lengths=sizes,
        length=length,
        haystack=haystack,
        teacher=teacher,
        seed=seed,
        verify=verify,
        ablation=ablation.value,
        controls=controls,
        k=steps,
        trials=trials,
    )
    plan.found()  # a name that there is not is told before the model is loaded
    folder = folder or Path("runs") / Path(model).name
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with err().status(f"Loading {model}"):
        from headscope.models.load import load

        loaded = load(model, device=device, dtype=dtype.value, revision=revision)
    scores, files = carry_out(plan, loaded, folder, _phase, fresh=fresh)
    if json:
        emit(document(scores, files, top))
    else:
        show(scores, files, top)


@contextlib.contextmanager
def _phase(text: str, counted: bool) -> Iterator[Advance]:
    """Show a bar where steps are counted, else that something is at work."""
    if counted:
        with progress(text) as advance:
            yield advance
    else:
        with err().status(text):
            yield lambda task, done, total: None
