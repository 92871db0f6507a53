"""``headscope rank``: score every head of a model, with one pass over shared samples."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.commands.console import JsonOption, emit, err, numbers, progress, quiet_libraries, share_processors
from headscope.commands.results import document, show, write

if TYPE_CHECKING:
    from headscope.probes.base import DataSet, Probe
    from headscope.probes.scores import HeadScores


class Ablation(StrEnum):
    """What a removed head's output becomes."""

    zero = "zero"
    mean = "mean"
    resample = "resample"
    mask = "mask"


class Precision(StrEnum):
    """Number format of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


DATA, REMOVAL, MACHINE = "Data", "Removing heads", "Model and machine"


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
    dtype: Annotated[
        Precision, typer.Option(help="Precision of the model.", rich_help_panel=MACHINE)
    ] = Precision.float32,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is", rich_help_panel=MACHINE),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="all", rich_help_panel=MACHINE)
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Revision of a hub model.", show_default="newest", rich_help_panel=MACHINE),
    ] = None,
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
    from headscope.probes import find

    chosen = list({probe.name: probe for probe in map(find, probes)}.values())
    if teacher:
        chosen = [find(probe.name, teacher=True) if probe.name == "retrieval" else probe for probe in chosen]
    folder = folder or Path("runs") / Path(model).name
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with err().status(f"Loading {model}"):
        from headscope.models.load import load

        loaded = load(model, device=device, dtype=dtype.value, revision=revision)
    with err().status("Making data"):
        data = datasets(
            chosen, loaded, n=n, lengths=sizes, length=length, haystack=haystack, teacher=teacher, seed=seed
        )
    if fresh:
        shutil.rmtree(folder / "removal", ignore_errors=True)
    with progress("Ranking") as advance:
        from headscope.probes import rank_all

        scores = rank_all(chosen, loaded, data, out=folder, progress=advance, fresh=fresh, seed=seed)
    for probe in chosen:
        found = scores[probe.name]
        if verify:
            with progress(f"Removing {probe.name} heads") as advance:
                found = removed(
                    found,
                    loaded,
                    data[probe.data],
                    trials,
                    ablation=ablation.value,
                    k=steps,
                    controls=controls,
                    seed=seed,
                    # Another number of trials is another measurement; it must not cost the finished ranking.
                    out=folder / "removal" / f"{trials}-trials",
                    progress=advance,
                )
        with err().status("Reading examples"):
            scores[probe.name] = explained(found, loaded, data[probe.data])
    files = write(scores, folder)
    if json:
        emit(document(scores, files, top))
    else:
        show(scores, files, top)


def removed(scores: HeadScores, model: Any, data: DataSet, trials: int, **options: Any) -> HeadScores:
    """Add what removing the best heads does to the task that goes with the data and, for retrieval, to knowledge."""
    from headscope.probes import task_for, verify, with_claims

    if scores.table["score"].notna().sum() < 2:
        return scores  # no trial counted, as the notes say: there is no ranking to test
    kind = data[0].kind
    scores = scores.with_details(dose=verify(scores, task_for(kind, data, trials), model, **options))
    if scores.probe != "retrieval":
        return scores
    return with_claims(scores, model, **{name: options[name] for name in options if name != "k"})


def explained(scores: HeadScores, model: Any, data: DataSet) -> HeadScores:
    """Add attention rows of the best heads on real samples and, for retrieval, answers to the published claims."""
    from headscope.probes import explain, retrieval_claims

    scores = scores.with_details(samples=explain(model, scores, data))
    if scores.probe == "retrieval" and "claims" not in scores.details:
        scores = scores.with_details(claims=retrieval_claims(scores))
    return scores


def datasets(
    probes: list[Probe],
    model: Any,
    *,
    n: int | None,
    lengths: tuple[int, ...] | None,
    length: int | None,
    haystack: Path | None,
    teacher: bool,
    seed: int,
) -> dict[str, DataSet]:
    """Make the data that ``probes`` ask for; what is None is left to the generator's own default."""
    from headscope import data

    own: dict[str, dict[str, Any]] = {
        "needles": {"lengths": lengths, "haystack": haystack},
        "texts": {"length": length},
        "repeats": {"length": length},
    }
    made: dict[str, DataSet] = {}
    for kind in dict.fromkeys(probe.data for probe in probes):
        options = {"n": n, **own[kind]}
        given = {key: value for key, value in options.items() if value is not None}
        made[kind] = getattr(data, kind)(model, seed=seed, **given)
    if teacher and "needles" in made:
        from headscope.probes import TeacherForced

        made["needles"] = TeacherForced(made["needles"])
    return made
