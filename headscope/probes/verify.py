"""Does it matter? Remove the best heads, and as many others, and see what the model can still do.

This module imports nothing heavy, so that the package can hand on the function of the same name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import HeadscopeError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from headscope.probes.base import Progress
    from headscope.probes.controls import Control
    from headscope.probes.removal import Ablation, Removal
    from headscope.probes.scores import HeadScores
    from headscope.probes.store import Store
    from headscope.probes.tasks import Task

log = logging.getLogger(__name__)

STEPS = (1, 5, 20, 100, 500)


def verify(
    scores: HeadScores,
    task: Task,
    model: Any,
    *,
    ablation: Ablation = "mean",
    k: Sequence[int] | None = None,
    controls: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
) -> pd.DataFrame:
    """Dose-response of removing the k best heads, beside layer-matched disjoint control heads.

    Parameters
    ----------
    scores
        The ranking that is tested.
    task
        What the model is asked to do meanwhile, see ``headscope.probes.tasks``.
    ablation
        What becomes of a removed head: ``"zero"``, ``"mean"``, ``"resample"`` or ``"mask"``; in words in
        ``frame.attrs["notes"]``.
    k
        How many heads to remove. By default 1, 5, 20 and on (100, 500) until all selected heads are covered, at most
        half of the model's.
    controls
        How many control sets for each k; fewer where fewer different ones exist.
    seed
        Of the control sets, the reference outputs and the bootstrap.
    progress
        Called with (``"removal"``, evaluations done, evaluations in all).
    out
        Folder in which finished evaluations are kept, so that a killed run resumes.
    fresh
        Discard what an earlier run of the same ranking, task and ablation left in ``out``.

    Returns
    -------
    One row per metric and removal: k, kind ("base", "top", "control"), replicate, value, ci_low, ci_high, ablation,
    metric, n, gap, gap_low, gap_high, p_value, from_selected, from_other_layers, heads. ``gap`` is how much more
    damage the best heads' removal does than that of the controls on average, positive when it does more, with an
    interval over the samples; ``p_value`` is the share of control sets whose removal does at least as much, with
    +1. ``frame.attrs["notes"]`` says what was done, in words; ``scores.with_details(dose=frame)`` keeps them.

    Raises
    ------
    HeadscopeError
        If the scores are another model's, or k, ablation or controls make no sense.
    CheckpointError
        If ``out`` holds a damaged shard, or another run.
    """
    from headscope.probes.removal import SEMANTICS, Removal

    if ablation not in SEMANTICS:
        raise HeadscopeError(f"There is no ablation {ablation!r}.{nearest(str(ablation), SEMANTICS)}")
    if controls < 1:
        raise HeadscopeError(f"controls={controls}: a removal means nothing without at least one control.")
    _same_model(scores, model)
    plan = _plan(scores, _steps(scores, k), controls, seed)
    removal = Removal(model, task, ablation, seed)
    store = _store(scores, task, model, ablation, seed, out, fresh)
    values = _evaluate(plan, removal, store, progress)
    frame = _table(plan, values, task, ablation, seed)
    frame.attrs["notes"] = _notes(plan, removal, controls) + _floors(values, task)
    return frame


Key = tuple[int, str, int]
"""(k, kind, replicate)."""


def _same_model(scores: HeadScores, model: Any) -> None:
    ranked = scores.provenance.get("model", {}).get("fingerprint")
    if ranked is not None and ranked != model.fingerprint:
        raise HeadscopeError(
            f"The {scores.probe} scores are of {scores.provenance['model'].get('name')!r}, whose weights differ from "
            f"those of {model.name!r}: rank this model first."
        )


def _steps(scores: HeadScores, k: Sequence[int] | None) -> list[int]:
    scored = int(scores.table["score"].notna().sum())
    half = scored // 2
    if k is None:
        enough = max(20, len(scores.selected))
        cut = next((i for i, step in enumerate(STEPS) if step >= enough), len(STEPS) - 1)
        steps = [step for step in STEPS[: cut + 1] if step <= half]
        return steps or [1]
    steps = sorted({int(step) for step in k})
    if not steps or steps[0] < 1 or steps[-1] > half:
        raise HeadscopeError(
            f"k={list(k)}: give numbers of heads from 1 to {half}, half of the {scored} heads that have a score, "
            "so that controls can be disjoint."
        )
    return steps


def _plan(scores: HeadScores, steps: Sequence[int], controls: int, seed: int) -> dict[Key, Control]:
    """All removals in order: nothing, then for each k the best heads and their controls."""
    from headscope.probes.controls import Control, draw_controls

    ranked = scores.table.dropna(subset=["score"])
    heads = [(int(layer), int(head)) for layer, head in zip(ranked["layer"], ranked["head"], strict=True)]
    plan: dict[Key, Control] = {(0, "base", 0): Control(())}
    for step in steps:
        best = scores.top(step)
        plan[step, "top", 0] = Control(tuple(sorted(best)))
        drawn = draw_controls(best, heads, controls, selected=scores.selected, seed=seed)
        plan |= {(step, "control", i): control for i, control in enumerate(drawn)}
    return plan


def _store(
    scores: HeadScores, task: Task, model: Any, ablation: str, seed: int, out: str | Path | None, fresh: bool
) -> Store | None:
    if out is None:
        return None
    from headscope.probes.provenance import identity
    from headscope.probes.store import Store

    ranking = {"heads": scores.top(len(scores)), "selected": scores.selected}
    parts = {"probe": scores.probe, "ranking": ranking, "task": task.hash, "ablation": ablation, "seed": seed}
    folder = Path(out) / "verify" / f"{scores.probe}-{task.name}-{ablation}"
    return Store.open(folder, identity(model, parts), fresh=fresh)


def _evaluate(
    plan: dict[Key, Control], removal: Removal, store: Store | None, progress: Progress | None
) -> dict[Key, NDArray[np.float64]]:
    """Per-sample values (samples, metrics) of every removal."""
    done: dict[Key, NDArray[np.float64]] = {}
    for key in plan:
        shard = None if store is None else store.read("values", _name(key))
        if shard is not None:
            done[key] = shard.arrays["values"]
    if progress is not None:
        progress("removal", len(done), len(plan))
    removal.prepare({head for key, control in plan.items() if key not in done for head in control.heads})
    for key, control in plan.items():
        if key in done:
            continue
        heads = control.heads
        edit = (lambda sample, heads=heads: removal.edit(heads, sample)) if heads else None
        done[key] = removal.task.evaluate(removal.model, edit)
        if store is not None:
            store.write("values", _name(key), {"heads": heads}, {"values": done[key]})
        if progress is not None:
            progress("removal", len(done), len(plan))
    return done


def _name(key: Key) -> str:
    k, kind, replicate = key
    return f"{k:05d}-{kind}-{replicate:05d}"


def _table(
    plan: dict[Key, Control], values: dict[Key, NDArray[np.float64]], task: Task, ablation: str, seed: int
) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from headscope.probes.statistics import bootstrap

    rows = []
    for m, metric in enumerate(task.metrics):
        sign = 1.0 if metric.higher_is_better else -1.0
        for key, control in plan.items():
            k, kind, replicate = key
            found = bootstrap(values[key][:, [m]], task.sources, seed=seed)
            row: dict[str, Any] = {
                "k": k,
                "kind": kind,
                "replicate": replicate,
                "value": found.mean[0],
                "ci_low": found.low[0],
                "ci_high": found.high[0],
                "ablation": ablation,
                "metric": metric.name,
                "n": len(task.samples),
            } | dict.fromkeys(("gap", "gap_low", "gap_high", "p_value"), np.nan)
            if kind == "top":
                others = [value[:, m] for (step, what, _), value in values.items() if (step, what) == (k, "control")]
                gap = bootstrap(sign * (np.mean(others, axis=0) - values[key][:, m])[:, None], task.sources, seed=seed)
                harsher = sum(sign * (other.mean() - values[key][:, m].mean()) <= 1e-12 for other in others)
                row |= {"gap": gap.mean[0], "gap_low": gap.low[0], "gap_high": gap.high[0]}
                row["p_value"] = (1 + harsher) / (1 + len(others))
            row |= {"from_selected": control.from_selected, "from_other_layers": control.from_other_layers}
            row["heads"] = " ".join(f"{layer}.{head}" for layer, head in control.heads)
            rows.append(row)
    return pd.DataFrame(rows)


def _floors(values: dict[Key, NDArray[np.float64]], task: Task) -> list[str]:
    """Name the metrics that removal cannot lower, because the whole model does not succeed once."""
    whole = values[0, "base", 0]
    return [
        f"With all heads {metric.name} is 0 on every sample: removal cannot lower it, and says nothing about it."
        for m, metric in enumerate(task.metrics)
        if metric.higher_is_better and not whole[:, m].any()
    ]


def _notes(plan: dict[Key, Control], removal: Removal, controls: int) -> list[str]:
    task = removal.task
    names = " and ".join(metric.name for metric in task.metrics)
    notes = [
        f"Removal measured on {len(task.samples)} samples of the task {task.name!r} ({names}); {removal.semantics}"
    ]
    for k in sorted({k for k, kind, _ in plan if kind == "top"}):
        drawn = [control for (step, kind, _), control in plan.items() if (step, kind) == (k, "control")]
        if len(drawn) < controls:
            notes.append(f"k = {k}: there are no more than {len(drawn)} different control sets.")
        borrowed = max(control.from_other_layers for control in drawn)
        chosen = max(control.from_selected for control in drawn)
        if borrowed:
            notes.append(
                f"k = {k}: layers have too few other heads; up to {borrowed} control heads are of near layers."
            )
        if chosen:
            notes.append(f"k = {k}: layers have too few other heads; up to {chosen} control heads pass the rule too.")
    for note in notes:
        log.info("%s", note)
    return notes
