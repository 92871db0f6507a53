"""The jobs of ``headscope profile``: data, measurement, files, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.commands.console import Advance, interval, out, table
from headscope.commands.methods import build, heads_of
from headscope.errors import RequestError
from headscope.interventions.calibration import calibrate_heads
from headscope.interventions.profile import combined, listed, profile_heads
from headscope.interventions.screen import screened_profile
from headscope.interventions.search import GRIDS, search, updown_heads
from headscope.interventions.store import save

if TYPE_CHECKING:
    import pandas as pd

    from headscope.interventions.base import Head, Method
    from headscope.probes.scores import HeadScores

SHOWN = ("accuracy", "valid", "accuracy_among_valid", "logprob", "entropy")


@dataclass(frozen=True)
class Job:
    """What all jobs are about."""

    model: Any
    method: str
    settings: tuple[str, ...]
    folder: Path
    heads: str | None = None
    fresh: bool = False
    n: int = 60
    length: int | None = None
    batch: int = 8
    seed: int = 0
    min_gain: float = 1e-4

    def task(self, name: str, split: str = "train") -> tuple[Any, list[Any]]:
        """Return a task and ``n`` items of one of its splits."""
        from headscope.data.tasks import make
        from headscope.data.tasks.task import SHARES

        size = -(-self.n * 100 // round(100 * SHARES[split]))  # type: ignore[index]
        options = {} if self.length is None else {"length": self.length}
        made = make(name, self.model, n=size, seed=self.seed, **options)
        return made, list(made.split(split))[: self.n]

    def built(self, task: Any, *, on_heads: bool = False) -> Method:
        """Return the method about the task's region."""
        heads = self.heads if on_heads else "all"
        return build(self.method, self.settings, heads=heads, region=task.region, model=self.model)

    def candidates(self) -> tuple[Head, ...] | None:
        """Return the heads to try; None for all."""
        if self.heads is None:
            return None
        return listed(heads_of(self.heads, self.model), self.model)

    def options(self, name: str) -> dict[str, Any]:
        """Return what every measurement takes."""
        out = self.folder / "work" / name
        return {"batch": self.batch, "seed": self.seed, "fresh": self.fresh, "out": out}


@dataclass(frozen=True)
class Found:
    """What a job found: heads, a table of something else, notes, and the files with all of it."""

    scores: Mapping[str, HeadScores] = field(default_factory=dict)
    rows: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def profiled(job: Job, tasks: Sequence[str], metric: str, screen: int | None, top: int, advance: Advance) -> Found:
    """Profile heads on each task; with several, also say which heads they share."""
    scores: dict[str, HeadScores] = {}
    for name in tasks:
        task, items = job.task(name)
        options = {
            **job.options(name),
            "metric": metric,
            "min_gain": job.min_gain,
            "progress": _titled(advance, name if len(tasks) > 1 else ""),
        }
        if screen is None:
            scores[name] = profile_heads(job.model, job.built(task), task, items, heads=job.candidates(), **options)
        else:
            if job.heads is not None:
                raise RequestError("--screen chooses the heads to measure: leave out --heads.")
            scores[name] = screened_profile(job.model, job.built(task), task, items, top=screen, **options)
    if len(tasks) > 1:
        scores["heads"] = combined(list(scores.values()), top)
    else:
        scores = {"heads": scores[tasks[0]]}
    return Found(scores, files=_write(scores, job.folder))


def by_keys(job: Job, advance: Advance) -> Found:
    """Rank heads by the difference of their keys between a relevant and an irrelevant question."""
    from headscope.data import needles
    from headscope.interventions.selector import contrasts, select_by_keys

    length = job.length or 256
    samples = needles(job.model, n=job.n, lengths=(length,), seed=job.seed)
    scores = select_by_keys(
        job.model,
        contrasts(samples, seed=job.seed),
        seed=job.seed,
        out=job.folder / "work" / "keys",
        fresh=job.fresh,
        progress=advance,
    )
    return Found({"heads": scores}, files=_write({"heads": scores}, job.folder))


def calibrated(
    job: Job, name: str, metric: str, screen: int | None, controls: int, k: int | None, advance: Advance
) -> Found:
    """Choose heads on one half of the items and test them on the other."""
    task, items = job.task(name)
    found = calibrate_heads(
        job.model,
        job.built(task),
        task,
        items,
        metric=metric,
        min_gain=job.min_gain,
        screen=screen,
        controls=controls,
        k=k,
        progress=advance,
        **job.options("calibrate"),
    )
    files = list(_write({"heads": found.scores}, job.folder))
    files.append(_csv(found.report, job.folder / "calibration.csv"))
    if found.method is not None:
        files.append(save(job.folder / "edit.json", found.method, model=job.model))
    return Found({"heads": found.scores}, found.report, found.notes, tuple(files))


def searched(job: Job, name: str, field_name: str, grid: str | None, metric: str, advance: Advance) -> Found:
    """Try values of a field on validation items and keep the best."""
    task, items = job.task(name, "validation")
    values = _grid(field_name, grid)
    method = job.built(task, on_heads=True)
    found = search(
        job.model,
        method,
        task,
        items,
        field_name=field_name,
        grid=values,
        objective=metric,
        progress=advance,
        **job.options("search"),
    )
    files = [_csv(found.table, job.folder / "search.csv")]
    files.append(save(job.folder / "edit.json", found.method, model=job.model))
    best = "the untouched model" if found.best is None else f"{field_name} = {found.best:g}"
    return Found({}, found.table, (f"Best {metric}: {best}.", *found.notes), tuple(files))


def up_and_down(job: Job, name: str, field_name: str, grid: str | None, metric: str, advance: Advance) -> Found:
    """Profile heads with a field below and above neutral."""
    task, items = job.task(name)
    given: dict[str, Any] = (
        {} if grid is None else dict(zip(("down", "up"), sorted(_grid(field_name, grid)), strict=False))
    )
    if len(given) == 1:
        raise RequestError(f"--grid {grid}: --updown needs two values, one below neutral and one above.")
    scores = updown_heads(
        job.model,
        job.built(task),
        task,
        items,
        field_name=field_name,
        heads=job.candidates(),
        metric=metric,
        min_gain=job.min_gain,
        progress=advance,
        **given,
        **job.options("updown"),
    )
    return Found({"heads": scores}, files=_write({"heads": scores}, job.folder))


def document(found: Found, top: int) -> dict[str, Any]:
    """Return what was found as JSON values."""
    notes = list(found.notes)
    return {
        "scores": {
            name: {
                "heads": len(scores),
                "selected": scores.selected,
                "top": [scores.head(*pair) for pair in scores.top(top)] if _any(scores) else [],
                "notes": scores.provenance.get("notes", []),
            }
            for name, scores in found.scores.items()
        },
        "table": None if found.rows is None else found.rows.to_dict("records"),
        "notes": notes,
        "files": list(found.files),
    }


def show(found: Found, top: int) -> None:
    """Print what was found."""
    console = out()
    for name, scores in found.scores.items():
        console.print(f"[bold]{scores.probe}[/bold] ({name}): {len(scores.selected)} heads pass")
        if _any(scores):
            console.print(_heads(scores, top))
        for note in scores.provenance.get("notes", []):
            console.print(note, style="dim", markup=False)
    if found.rows is not None:
        console.print(_rows(found.rows))
    for note in found.notes:
        console.print(note, markup=False)
    for path in found.files:
        console.print(str(path), style="dim", markup=False, soft_wrap=True)


def _heads(scores: HeadScores, top: int) -> Any:
    more = [name for name in ("direction", "estimate", "min_diff", "relative") if name in scores.table.columns]
    shown = table("head", "score (95 %)", "q", *more, "passes", right=("q", *more[more[:1] == ["direction"] :]))
    for layer, head in scores.top(top):
        row = scores.head(layer, head)
        q = row.get("q_value", float("nan"))
        extra = [row[name] if isinstance(row[name], str) else f"{row[name]:.3g}" for name in more]
        shown.add_row(
            f"L{layer}H{head}",
            interval(row["score"], row["ci_low"], row["ci_high"]),
            f"{q:.2g}" if q == q else "–",
            *extra,
            "yes" if row["selected"] else "",
        )
    return shown


def _rows(rows: pd.DataFrame) -> Any:
    """Return the values that were tried, or the sets of heads: metrics, and gain where there is one."""
    first = "value" if "value" in rows.columns else "kind"
    gains = "gain" in rows.columns
    shown = table(
        "value" if first == "value" else "heads",
        *(name.replace("_", " ") for name in SHOWN),
        *(["gain (95 %)", "p"] if gains else []),
        right=tuple(name.replace("_", " ") for name in SHOWN),
    )
    for row in _without_control_sets(rows):
        label = (
            row[first]
            if isinstance(row[first], str)
            else "untouched"
            if row[first] != row[first]
            else f"{row[first]:g}"
        )
        cells = [f"{row[name]:.3f}" if row[name] == row[name] else "–" for name in SHOWN]
        if gains:
            p = row.get("p_value", float("nan"))
            cells += [interval(row["gain"], row["gain_low"], row["gain_high"]), f"{p:.2g}" if p == p else ""]
        shown.add_row(label, *cells)
    return shown


def _without_control_sets(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows, those of all control sets as one: their mean, with the range of their gains."""
    if "kind" not in rows.columns:
        return _records(rows)
    kept = _records(rows[rows["kind"] != "control"])
    sets = rows[rows["kind"] == "control"]
    if len(sets):
        mean = {str(name): value for name, value in sets.mean(numeric_only=True).items()}
        span = {"gain_low": sets["gain"].min(), "gain_high": sets["gain"].max(), "p_value": float("nan")}
        kept.append({**mean, **span, "kind": f"{len(sets)} control sets (range)"})
    return kept


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _any(scores: HeadScores) -> bool:
    return bool(scores.table["score"].notna().any())


def _grid(field_name: str, given: str | None) -> tuple[float, ...]:
    if given is None:
        if field_name not in GRIDS:
            raise RequestError(
                f"There is no usual grid for {field_name!r}: give values with --grid, such as 0.1,0.5,2."
            )
        return GRIDS[field_name]
    try:
        return tuple(float(part) for part in given.split(",") if part.strip())
    except ValueError:
        raise RequestError(f"--grid {given!r}: give numbers separated by commas.") from None


def _titled(advance: Advance, name: str) -> Advance:
    return (lambda task, done, total: advance(f"{name}, {task}", done, total)) if name else advance


def _write(scores: Mapping[str, HeadScores], folder: Path) -> tuple[Path, ...]:
    """Write tables of heads and one report."""
    from headscope.report.html import write_combined

    files = []
    for name, found in scores.items():
        files.append(found.save(folder / f"{name}.parquet"))
        for suffix in (".csv", ".json"):
            found.save(folder / f"{name}{suffix}")
    return (*files, write_combined(list(scores.values()), folder / "report.html"))


def _csv(rows: pd.DataFrame, path: Path) -> Path:
    from headscope.files import write_text

    return write_text(path, rows.to_csv(index=False))
