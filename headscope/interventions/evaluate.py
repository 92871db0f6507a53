"""What a method is worth on a task: against the untouched model, its own neutral strength, and controls.

This module imports nothing heavy, so that the package can hand on the function of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import DataError, ModelError, RequestError, nearest

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.interventions.base import Method
    from headscope.interventions.drift import Neutral
    from headscope.interventions.evaluation import Evaluation
    from headscope.interventions.measurements import Measurements
    from headscope.interventions.training import Example
    from headscope.interventions.variants import Variant
    from headscope.probes.base import Progress
    from headscope.probes.store import Store

    Part = Method | Edit


def evaluate(
    model: Any,
    task: Any,
    methods: Mapping[str, Part | Sequence[Part]],
    *,
    items: Sequence[Any] | None = None,
    controls: int = 20,
    control_items: int | None = None,
    generate: bool = True,
    write_controls: bool = False,
    drift: bool = True,
    batch: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure methods on a task, beside the untouched model.

    Parameters
    ----------
    task
        A task of ``headscope.data.tasks``.
    methods
        By name: a method, an edit, or several in the order in which they apply. None at all gives the base alone.
    items
        Items to measure on; the task's test split by default.
    controls
        Controls of each method: the same on as many other heads of the same layers, none of them the method's own;
        of a steering vector, random directions of equal norm.
    control_items
        Measure controls on that many of the items, drawn by source, and set the method against them there; all by
        default. With many methods controls are most of the work.
    generate
        Let the model write its answers. Without, the candidates alone are forced: no accuracy, validity or length.
    write_controls
        Let controls write too. By default their candidates are forced, which costs one pass over the prompts.
    drift
        Measure what each method does to neutral text behind the task's prompts.
    batch
        Prompts read at once.
    seed
        Of controls, bootstrap and neutral texts.
    out, fresh
        Folder of finished measurements, from which a killed run goes on and ends in the same numbers, and whether to
        discard what is there. Further methods on the same items may use the same folder.
    progress
        Called with (stage, steps done, steps in all).

    Raises
    ------
    DataError
        If there is no item to measure on.
    RequestError
        If a method does not fit the model.
    ModelError
        If a method at its neutral strength differs from the untouched model in a single bit: then the method or the
        engine is at fault, and no number of it means anything.
    CheckpointError
        If ``out`` holds another run, or a damaged shard.
    """
    from headscope.interventions import variants as make
    from headscope.interventions.assembly import Plan, assemble
    from headscope.interventions.measurements import Measurements
    from headscope.interventions.outcomes import open_outcomes, prepared

    chosen = _items(task, items)
    data = prepared(model, task, chosen)
    subset = _subset([str(item.source) for item in chosen], control_items, seed)
    limit = int(getattr(task, "max_new_tokens", 20))
    found = make.variants(methods)
    for variant in found:
        variant.check(model)
    store = open_outcomes(model, task, data, out, fresh, batch=batch, limit=limit, drift=_drift_version())
    created = _created(store)
    measured = Measurements(model, data, chosen, limit=limit, batch=batch, store=store, progress=progress)
    base = make.Variant(make.BASE, "base")
    neutral = {variant.name: make.neutral(variant) for variant in found}
    _same_as_base(measured, base, [variant for variant in neutral.values() if variant is not None], generate)
    measured.answers(found, write=generate, stage="methods")
    drawn = {variant.name: make.controls(variant, model, controls, seed) for variant in found}
    write_controls = write_controls and generate
    every = [control for group, _ in drawn.values() for control in group]
    part = measured.part(subset)
    part.answers(every, write=write_controls, stage="controls")
    texts, why = _texts(model, data, seed) if drift else ([], "")
    if texts:
        measured.drift([base, *found], texts, stage="drift")
    plan = Plan(base, found, neutral, drawn, controls, subset, generate, write_controls, texts, why, seed, created)
    return assemble(model, task, measured, part, plan)


def _texts(model: Any, data: Sequence[Example], seed: int) -> tuple[Sequence[Neutral], str]:
    """Return neutral texts behind prompts of the task, or why there are none."""
    from headscope.interventions.drift import neutral_texts

    made = neutral_texts(model, [example.prompt for example in data], seed)
    return ([], made) if isinstance(made, str) else (made, "")


def sweep(model: Any, task: Any, method: Method, field_name: str, grid: Sequence[Any], **options: Any) -> Evaluation:
    """Evaluate a method at each value of one of its parameters; resumable, as ``evaluate`` is.

    Parameters
    ----------
    method
        Its ``field_name`` is varied; all else stays.
    grid
        Values, each a row called ``field_name=value``.
    options
        Of ``evaluate``.

    Raises
    ------
    RequestError
        If the method has no such parameter, or the grid is empty or holds a value twice.
    """
    from dataclasses import fields, replace

    known = [found.name for found in fields(method) if found.init]  # type: ignore[arg-type]
    if field_name not in known:
        raise RequestError(f"{type(method).__name__} has no parameter {field_name!r}.{nearest(field_name, known)}")
    if not len(grid):
        raise RequestError(f"The grid of {field_name} is empty: give at least one value.")
    made = {_value(field_name, value): replace(method, **{field_name: value}) for value in grid}  # type: ignore[type-var]
    if len(made) < len(grid):
        raise RequestError(f"The grid of {field_name} holds a value twice: {list(grid)}.")
    found = evaluate(model, task, made, **options)
    note = (
        f"{len(made)} values of {field_name} on the same items: the best of them is flattered by its choice. Choose on "
        "validation items, and report the one chosen on test items."
    )
    return replace(found, notes=(*found.notes, note)) if len(made) > 1 else found


def _value(name: str, value: Any) -> str:
    return f"{name}={value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else f"{name}={value}"


def _items(task: Any, items: Sequence[Any] | None) -> list[Any]:
    if items is None:
        items = task.split("test") if hasattr(task, "split") else task.items
    chosen = list(items)
    if not chosen:
        raise DataError(
            f"The task {getattr(task, 'name', 'task')!r} has no item to measure on: ask for more items, or pass items=."
        )
    if not all(hasattr(item, "verdict") and hasattr(item, "stop") for item in chosen):
        raise DataError("Items must be those of a task, with stop() and verdict(): tokens alone cannot be judged.")
    return chosen


def _subset(sources: Sequence[str], count: int | None, seed: int) -> tuple[int, ...]:
    """Return the items that controls are measured on: all of some sources, and some of one more."""
    from random import Random

    if count is None or count >= len(sources):
        return tuple(range(len(sources)))
    if count < 1:
        raise RequestError(f"control_items={count}: measure controls on at least one item.")
    names = sorted(set(sources))
    Random(f"evaluate/controls/{seed}").shuffle(names)
    place = {name: i for i, name in enumerate(names)}
    order = sorted(range(len(sources)), key=lambda i: (place[sources[i]], i))
    return tuple(sorted(order[:count]))


def _drift_version() -> dict[str, int]:
    """Return what stored losses on neutral text depend on, beside their tokens."""
    from headscope.interventions.drift import LENGTH, TEXTS

    return {"texts": TEXTS, "length": LENGTH}


def _same_as_base(measured: Measurements, base: Variant, neutral: Sequence[Variant], write: bool) -> None:
    """Measure the base and every method at neutral strength, before anything that takes long."""
    first, *others = measured.answers([base, *neutral], write=write, stage="base and neutral")
    for variant, found in zip(neutral, others, strict=True):
        gap = found.difference(first, measured.data)
        if gap is not None:
            raise ModelError(
                f"{variant.name} at neutral strength is not the untouched model: {gap}. The method or the engine is at "
                "fault, and no gain of it would mean anything. Leave it out, and report it."
            )


def _created(store: Store | None) -> str:
    """Return when the run began, so that it ends in the same bytes whenever it is resumed."""
    from headscope.probes.provenance import now

    if store is None:
        return now()
    shard = store.read("run", "created")
    if shard is None:
        store.write("run", "created", {"created": now()}, {})
        return _created(store)
    return str(shard.meta["created"])
