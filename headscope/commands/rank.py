"""``headscope rank``: score every head of a model, with one pass over shared samples."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.commands.console import JsonOption, emit, err, interval, numbers, out, progress, quiet_libraries, table

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
    ] = 12,
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
    from headscope.probes import find

    chosen = list({probe.name: probe for probe in map(find, probes)}.values())
    folder = folder or Path("runs") / Path(model).name
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with err().status(f"Loading {model}"):
        from headscope.models import load

        loaded = load(model, device=device, dtype=dtype.value, revision=revision)
    with err().status("Making data"):
        data = datasets(chosen, loaded, n=n, lengths=sizes, length=length, haystack=haystack, seed=seed)
    with progress("Ranking") as advance:
        from headscope.probes import rank_all

        scores = rank_all(chosen, loaded, data, out=folder, progress=advance, fresh=fresh, seed=seed)
    for probe in chosen:
        found = scores[probe.name]
        if verify:
            removal = {"ablation": ablation.value, "k": steps, "controls": controls, "seed": seed, "fresh": fresh}
            # Another number of trials is another measurement; it must not cost the finished ranking.
            store = folder / "removal" / f"{trials}-trials"
            with progress(f"Removing {probe.name} heads") as advance:
                found = removed(found, loaded, data[probe.data], trials, **removal, out=store, progress=advance)
        with err().status("Reading examples"):
            scores[probe.name] = explained(found, loaded, data[probe.data])
    files = write(scores, folder)
    if json:
        emit(document(scores, files, top))
    else:
        show(scores, files, top)


def removed(scores: HeadScores, model: Any, data: DataSet, trials: int, **options: Any) -> HeadScores:
    """Add what removing the best heads does to the task that goes with the probe's data."""
    from headscope.probes import verify
    from headscope.probes.tasks import task_for

    if scores.table["score"].notna().sum() < 2:
        return scores  # no trial counted, as the notes say: there is no ranking to test
    kind = data[0].kind
    return scores.with_details(dose=verify(scores, task_for(kind, data, trials), model, **options))


def explained(scores: HeadScores, model: Any, data: DataSet) -> HeadScores:
    """Add attention rows of the best heads on real samples and, for retrieval, answers to the published claims."""
    from headscope.probes import explain, retrieval_claims

    scores = scores.with_details(samples=explain(model, scores, data))
    return scores.with_details(claims=retrieval_claims(scores)) if scores.probe == "retrieval" else scores


def datasets(
    probes: list[Probe],
    model: Any,
    *,
    n: int | None,
    lengths: tuple[int, ...] | None,
    length: int | None,
    haystack: Path | None,
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
    return made


def write(scores: dict[str, HeadScores], folder: Path) -> dict[str, Path]:
    """Write each probe's tables and one report; return the paths by probe, and the report's."""
    from headscope.report.html import write_combined

    for name, found in scores.items():
        for suffix in (".parquet", ".json", ".csv"):
            found.save(folder / f"{name}{suffix}")
    report = write_combined(list(scores.values()), folder / "report.html")
    return {**{name: folder / f"{name}.parquet" for name in scores}, "report": report}


def show(scores: dict[str, HeadScores], files: dict[str, Path], top: int) -> None:
    """Print the best heads of each probe, what their removal did, what limits them, and where everything is."""
    from rich.padding import Padding
    from rich.text import Text

    console = out()
    for name, found in scores.items():
        console.print(f"[bold]{name}[/bold]: {len(found.selected)} of {len(found)} heads pass")
        shown = table("head", "score (95 %)", "null", "p", "passes", right=("null", "p"))
        for layer, head in found.top(top):
            row = found.head(layer, head)
            shown.add_row(
                f"L{layer}H{head}",
                interval(row["score"], row["ci_low"], row["ci_high"]),
                interval(row["null_mean"], math.nan, math.nan),
                f"{row['p_value']:.2g}" if row["p_value"] == row["p_value"] else "–",
                "yes" if row["selected"] else "",
            )
        if shown.row_count:
            console.print(shown)
        for line in removals(found):
            console.print(Padding(line, (0, 0, 0, 2)))
        for note in found.provenance.get("notes", []):
            console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
        console.print()
    console.print(f"Report: {files['report']}", soft_wrap=True)


def removals(scores: HeadScores) -> list[str]:
    """Say what removing the most heads did to each metric, beside the controls."""
    dose = scores.details.get("dose")
    lines: list[str] = []
    for metric, part in [] if dose is None else dose.groupby("metric", sort=False):
        k = part["k"].max()
        values = {kind: group["value"] for kind, group in part[part["k"].isin((0, k))].groupby("kind")}
        p = part.loc[(part["k"] == k) & (part["kind"] == "top"), "p_value"].iloc[0]
        low, high = values["control"].min(), values["control"].max()
        lines.append(
            f"Without the top {k}: {metric} {values['base'].iloc[0]:.3f} → {values['top'].iloc[0]:.3f}; "
            f"without {k} others {low:.3f} to {high:.3f} ({len(values['control'])} control sets, p = {p:.2g})"
        )
    return lines


def document(scores: dict[str, HeadScores], files: dict[str, Path], top: int) -> dict[str, Any]:
    """Return the same facts as ``show`` for machines."""
    return {
        "model": next(iter(scores.values())).provenance.get("model"),
        "report": files["report"],
        "probes": {
            name: {
                "scores": files[name],
                "heads": len(found),
                "selected": found.selected,
                "top": [found.head(layer, head) for layer, head in found.top(top)],
                "removal": removals(found),
                "notes": found.provenance.get("notes", []),
            }
            for name, found in scores.items()
        },
    }
