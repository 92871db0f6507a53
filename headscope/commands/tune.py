"""``headscope tune``: train a method on a task, and compare it with others of as many numbers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.commands.console import (
    JsonOption,
    emit,
    err,
    interval,
    out,
    progress,
    quiet_libraries,
    share_processors,
    table,
)
from headscope.commands.options import Device, Revision, Threads

if TYPE_CHECKING:
    from headscope.interventions.matched import Comparison


class Tunable(StrEnum):
    """Methods that are trained."""

    lofit = "lofit"
    iti = "iti"
    lora = "lora"
    steering = "steering"


class Losses(StrEnum):
    """What training minimises."""

    sft = "sft"
    dpo = "dpo"


TRAINING = "Training"
_TITLES = {"lofit": "LoFiT", "iti": "ITI", "lora": "LoRA", "steering": "Steering vector"}


def tune(
    method: Annotated[Tunable, typer.Argument(help="What to train.", show_default=False)],
    task: Annotated[
        str, typer.Option("--task", "-t", help="Task to train on; its test items are only measured on.")
    ] = "sentiment",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Short name, hub id, local folder or GGUF file.")
    ] = "smollm2-135m",
    edit: Annotated[Path, typer.Option("--out", "-o", help="File for the trained method.")] = Path("edit.json"),
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines", help="Train the other methods too, with as many numbers, and compare."
        ),
    ] = True,
    folder: Annotated[
        Path | None,
        typer.Option("--run", help="Folder for checkpoints and tables.", show_default="beside --out"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what an earlier run in this folder finished.")
    ] = False,
    json: JsonOption = False,
    n: Annotated[
        int, typer.Option(min=8, help="Items of the task, all splits together.", rich_help_panel=TRAINING)
    ] = 400,
    k: Annotated[int, typer.Option("--k", min=1, help="Heads to tune.", rich_help_panel=TRAINING)] = 32,
    loss: Annotated[
        Losses,
        typer.Option(help="sft: learn the answer. dpo: prefer it to wrong ones.", rich_help_panel=TRAINING),
    ] = Losses.sft,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the examples.", rich_help_panel=TRAINING)] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Examples of a step.", rich_help_panel=TRAINING)] = 8,
    l1: Annotated[
        float, typer.Option("--l1", min=0, help="LoFiT: penalty in stage 1.", rich_help_panel=TRAINING)
    ] = 5e-4,
    seed: Annotated[
        int, typer.Option(min=0, help="Of items, initial values, order and intervals.", rich_help_panel=TRAINING)
    ] = 42,
    device: Device = None,
    threads: Threads = None,
    revision: Revision = None,
) -> None:
    """Train a method on a task, and measure it on items it has not seen. Killed runs resume: run the command again.

    [dim]Examples:[/dim]

      headscope tune lofit --task sentiment --model smollm2-135m --out edit.json

      headscope tune lofit --task truthful --loss dpo --k 16 --no-baselines

      headscope tune iti --task truthful --out iti.json --no-baselines

      headscope tune steering --task truthful --out vector.json --no-baselines
    """
    quiet_libraries()
    share_processors()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with err().status(f"Loading {model}"):
        from headscope.models.load import load

        loaded = load(model, device=device, dtype="float32", revision=revision)
    with err().status("Making data"):
        from headscope.data.tasks import make
        from headscope.interventions.lofit import LoFiTRecipe
        from headscope.interventions.matched import MATCHED, Name, Splits, compare_tuned

        splits = Splits.of(loaded, make(task, loaded, n=n, seed=seed))
    if method is Tunable.lora:
        from headscope.interventions.lora import require

        require()
    recipe = LoFiTRecipe(k=k, l1=l1, epochs=epochs, batch=batch, seed=seed, loss=loss.value)
    folder = folder or edit.parent / f"{edit.stem}-run"
    names: tuple[Name, ...] = (method.value,)
    if baselines:
        names = tuple(dict.fromkeys((*MATCHED, *names)))
    with progress("Tuning") as advance:
        found = compare_tuned(
            loaded, splits, recipe, methods=names, random_heads=baselines, out=folder, fresh=fresh, progress=advance
        )
    files = write(found, method.value, edit, folder, loaded)
    if json:
        emit(document(found, files))
    else:
        show(found, files)


def write(found: Comparison, method: str, edit: Path, folder: Path, model: Any) -> list[Path]:
    """Write the trained method, the comparison, and the heads that were chosen from; return the files."""
    from headscope.errors import DataError
    from headscope.files import write_text
    from headscope.interventions.store import save

    if _TITLES[method] not in found.tuned:
        raise DataError(f"{_TITLES[method]} was not trained. {' '.join(found.notes)}")
    files = [save(edit, found.tuned[_TITLES[method]].method, model=model)]
    files.append(write_text(folder / "comparison.csv", found.table.to_csv(index=False)))
    for name, tuned in found.tuned.items():
        if tuned.scores is not None:
            files.append(tuned.scores.save(folder / f"{name.lower()}-heads.parquet"))
    return files


def document(found: Comparison, files: list[Path]) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        "methods": found.table.to_dict("records"),
        "training": {
            name: {"parameters": tuned.parameters, "seconds": round(tuned.seconds, 1), "history": tuned.history}
            for name, tuned in found.tuned.items()
        },
        "overlap": None if found.overlap is None else found.overlap.to_dict("records"),
        "notes": list(found.notes),
        "files": [str(path) for path in files],
    }


def show(found: Comparison, files: list[Path]) -> None:
    """Print the comparison."""
    console = out()
    shown = table("method", "numbers", "accuracy", "gain", "exact", "trained", right=("numbers",))
    for row in found.table.to_dict("records"):
        tuned = found.tuned.get(row["method"])
        gain = interval(row["accuracy_gain"], row["accuracy_gain_low"], row["accuracy_gain_high"])
        shown.add_row(
            row["method"],
            f"{row['parameters']:,}",
            interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
            "" if tuned is None else gain,
            interval(row["exact"], row["exact_low"], row["exact_high"]),
            "" if tuned is None else f"{row['what']}, {tuned.seconds:.0f} s",
        )
    console.print(shown)
    if found.overlap is not None:
        for row in found.overlap.to_dict("records"):
            console.print(
                f"{row['a']} and {row['b']} share {row['shared']} of {row['k']} heads; "
                f"chance gives {row['by_chance']:.1f} (p = {row['p_value']:.2g})."
            )
    for note in found.notes:
        console.print(note)
    for path in files:
        console.print(f"[dim]{path}[/dim]")
