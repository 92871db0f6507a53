"""``headscope evaluate``: what methods are worth on a task, against the untouched model and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.commands.console import (
    JsonOption,
    emit,
    err,
    out,
    progress,
    quiet_libraries,
    share_processors,
    table,
)
from headscope.commands.options import MACHINE, Device, Dtype, Precision, Revision, Threads

if TYPE_CHECKING:
    from headscope.interventions.evaluation import Evaluation

METHOD, TASK = "Methods by name", "Task"


def evaluate(
    task: Annotated[
        str,
        typer.Option(
            "--task",
            "-t",
            help="needles, counterfactual, json, sentiment, topic, pronouns, truthful or instruction.",
        ),
    ] = "sentiment",
    edit: Annotated[
        list[str] | None,
        typer.Option(
            "--edit", "-e", help="A saved method: FILE, or NAME=FILE. May be given several times.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Short name, hub id, local folder or GGUF file.")
    ] = "smollm2-135m",
    n: Annotated[int, typer.Option("-n", "--n", min=2, help="Items to measure on, of the split.")] = 200,
    controls: Annotated[int, typer.Option(min=0, help="Random heads or directions beside each method.")] = 20,
    control_items: Annotated[
        int | None,
        typer.Option(min=1, help="Measure controls on that many of the items.", show_default="all of them"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for measurements, tables and report.", show_default="runs/eval-TASK"),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what an earlier run in this folder finished.")
    ] = False,
    json: JsonOption = False,
    generate: Annotated[
        bool,
        typer.Option("--generate/--no-generate", help="Let the model write, or force the candidates alone."),
    ] = True,
    drift: Annotated[bool, typer.Option("--drift/--no-drift", help="Measure what becomes of neutral text.")] = True,
    write_controls: Annotated[bool, typer.Option("--write-controls", help="Let controls write too; slow.")] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="pasta, act, zerotuning, spotlight, temperature …; may be given several times.",
            show_default=False,
            rich_help_panel=METHOD,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field of the method, such as alpha=0.05; of one of several, pasta.alpha=0.05.",
            show_default=False,
            rich_help_panel=METHOD,
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Heads such as 18.6,23.2, all, or a file of scores that headscope profile or rank wrote.",
            show_default="the method's own",
            rich_help_panel=METHOD,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many heads of the file, best first.",
            show_default="those that pass",
            rich_help_panel=METHOD,
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            help="Region of the prompts that the method is about.", show_default="the task's", rich_help_panel=METHOD
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="train, validation or test; what was chosen or trained on says nothing.", rich_help_panel=TASK
        ),
    ] = "test",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="An option of the task, such as length=400.", show_default=False, rich_help_panel=TASK
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts read at once.", rich_help_panel=MACHINE)] = 8,
    seed: Annotated[
        int, typer.Option(min=0, help="Of items, controls, texts and intervals.", rich_help_panel=MACHINE)
    ] = 0,
    device: Device = None,
    dtype: Dtype = Precision.float32,
    threads: Threads = None,
    revision: Revision = None,
) -> None:
    """Measure methods on a task: gains with intervals, controls, neutral strength. Killed runs resume: run it again.

    [dim]Examples:[/dim]

      headscope evaluate --task sentiment --edit edit.json -n 200 --out runs/eval

      headscope evaluate --task topic --edit lofit=a.json --edit iti=b.json --controls 40

      headscope evaluate --task needles --method pasta --heads runs/pasta/heads.parquet --top 20 --set alpha=0.01

      headscope evaluate --task truthful --no-generate --json
    """
    quiet_libraries()
    share_processors()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    files = named_files(edit or [])
    options = task_options(option or [])
    with err().status(f"Loading {model}"):
        from headscope.interventions.store import load as load_edit
        from headscope.models.load import load

        loaded = load(model, device=device, dtype=dtype, revision=revision)
    methods: dict[str, Any] = {name: load_edit(path, loaded) for name, path in files.items()}
    with err().status("Making data"):
        made, items = task_items(task, loaded, n, seed, split, options)
    methods |= built(loaded, method or [], settings or [], heads, top, region or made.region, taken=set(methods))
    folder = folder or Path("runs") / f"eval-{task}"
    with progress("Evaluating") as advance:
        from headscope.interventions.evaluate import evaluate as run

        found = run(
            loaded,
            made,
            methods,
            items=items,
            controls=controls,
            control_items=control_items,
            generate=generate,
            write_controls=write_controls,
            drift=drift,
            batch=batch,
            seed=seed,
            out=folder,
            fresh=fresh,
            progress=advance,
        )
    written = found.save(folder)
    if json:
        emit({**found.document(), "files": [str(path) for path in written]})
    else:
        show(found, written)


def named_files(given: Sequence[str]) -> dict[str, Path]:
    """Return files of edits by name: ``name=file``, or a file, which is called by its stem."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_file():
            name, path = Path(text).stem, text
        if name in found:
            raise typer.BadParameter(f"Two edits are called {name!r}: give NAME=FILE.", param_hint="--edit")
        found[name] = Path(path)
    return found


def task_options(given: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value``: numbers, true and false are what they look like, all else is text."""
    found: dict[str, Any] = {}
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r}: give an option as name=value.", param_hint="--option")
        found[name] = words.get(value.lower(), value)
        for kind in (float, int):
            try:
                found[name] = kind(value)
            except ValueError:
                continue
    return found


def task_items(name: str, model: Any, n: int, seed: int, split: str, options: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return a task, and ``n`` items of one of its splits.

    Raises
    ------
    DataError
        If there is no such task or split, or it has fewer items than that to give.
    """
    from headscope.data.tasks import make
    from headscope.data.tasks.task import LEAST, SHARES
    from headscope.errors import DataError, nearest

    if split not in SHARES:
        raise DataError(f"There is no split {split!r}.{nearest(split, SHARES)}")
    whole = max(LEAST, math.ceil(n / SHARES[split]))
    task = make(name, model, n=whole, seed=seed, **options)
    found = task.split(split)
    if len(found) < n:  # splits are rounded
        task = make(name, model, n=whole + math.ceil((n - len(found)) / SHARES[split]), seed=seed, **options)
        found = task.split(split)
    return task, list(found[:n])


def built(
    model: Any,
    names: Sequence[str],
    settings: Sequence[str],
    heads: str | None,
    top: int | None,
    region: str,
    *,
    taken: set[str],
) -> dict[str, Any]:
    """Return methods made from the words of the command line.

    Raises
    ------
    RequestError
        If a setting belongs to none of them, or to one of several without saying to which.
    """
    from headscope.commands.methods import build, takes_region
    from headscope.errors import RequestError, nearest

    if (settings or heads is not None) and not names:
        raise RequestError("--set and --heads belong to a --method: a saved edit is measured as it is.")
    own: dict[str, list[str]] = {name: [] for name in names}
    for setting in settings:
        field, equals, value = setting.partition("=")
        owner, dot, rest = field.partition(".")
        if dot:
            if owner not in own:
                raise RequestError(f"--set {setting}: there is no method {owner!r} here.{nearest(owner, own)}")
            own[owner].append(f"{rest}{equals}{value}")
        elif len(own) > 1:
            raise RequestError(f"--set {setting}: say of which method, as {names[0]}.{setting}.")
        else:
            own[names[0]].append(setting)
    double = sorted(taken & set(own))
    if double:
        raise RequestError(f"An edit and a method are both called {double[0]!r}: name the edit, --edit NAME=FILE.")
    return {
        name: build(name, given, heads=heads, top=top, region=region if takes_region(name) else None, model=model)
        for name, given in own.items()
    }


def show(found: Evaluation, files: Sequence[Path]) -> None:
    """Print one table, and what it says."""
    from headscope.report.numbers import number

    console = out()
    rows = found.table[found.table["kind"] != "neutral"].to_dict("records")
    base = found.table.iloc[0]
    primary = next((name for name in ("accuracy", "constrained") if base[name] == base[name]), "logprob")
    # As many columns as fit on 80 characters: headings are broken, and intervals stand below their gains.
    columns = (
        "accu-\nracy",
        "valid",
        "among\nvalid",
        "con-\nstrained",
        "gain",
        "con-\ntrols",
        "p",
        "len-\ngth",
        "drift",
    )
    shown = table("method", *columns, right=columns)
    shown.padding = 0
    for row in rows:
        method, low = row["kind"] == "method", row[f"{primary}_gain_low"]
        gain = f"{row[f'{primary}_gain']:+.3f}"
        bounds = "" if low != low else f"\n{low:.2f} to {row[f'{primary}_gain_high']:.2f}"
        shown.add_row(
            row["method"],
            *(_number(row[name]) for name in ("accuracy", "valid", "accuracy_among_valid", "constrained")),
            gain + bounds if method else "",
            f"{row['control_gain']:+.3f}" if row["controls"] else "",
            _number(row["p_value"]) if row["controls"] else "",
            _number(row["length"], 1),
            f"×{number(row['perplexity_ratio'])}" if method and row["drift"] == row["drift"] else "",
        )
    console.print(shown)
    what = {"logprob": "log-probability of the right answer"}.get(primary, primary)
    console.print(
        f"[dim]gain: in {what}, with its interval; constrained: the likeliest candidate is taken; controls: their mean "
        "gain; drift: perplexity of neutral text against the base[/dim]"
    )
    for note in found.notes:
        console.print(f"- {note}", markup=False)
    for path in files:
        console.print(f"[dim]{path}[/dim]")


def _number(value: float, places: int = 3) -> str:
    return "–" if value != value else f"{value:.{places}f}"
