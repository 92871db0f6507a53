"""A strength over a range of values, on one prompt or on a task, as the Steer page computes and keeps it."""

from __future__ import annotations

import math
import re
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from headscope.app import steering
from headscope.app.cell import literal, prompt_lines
from headscope.app.components import method_words
from headscope.app.components.method_asked import Asked, Tell, paged, parts
from headscope.data.tasks import TASKS
from headscope.data.tasks.task import SPLITS
from headscope.errors import HeadscopeError, RequestError
from headscope.files import canonical_json, sha256_text

if TYPE_CHECKING:
    from headscope.app.desk import Desk

MOST_VALUES, MOST_ITEMS, MOST_CONTROLS = 40, 1000, 100
"""What is beyond them is a slip of the finger."""
STRENGTH = "strength"
"""Stands for whichever number an edit file is neutral by."""
MEASURED = ".app/evaluations"
REPORTS = "reports"


@dataclass(frozen=True)
class Range:
    """What is swept: a number of the method, its values, and a text to measure beside, if any."""

    field: str
    values: tuple[float, ...]
    target: str = ""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Range:
        """Return what a page sends.

        Raises
        ------
        RequestError
            If the values are no list of numbers, or too many.
        """
        words = [word for word in re.split(r"[,;\s]+", str(given.get("values") or "")) if word]
        values = []
        for word in words:
            try:
                values.append(float(word))
            except ValueError:
                raise RequestError(f"Values: {word!r:.30} is no number. Write some, such as 0.03, 0.1, 0.3.") from None
        values = list(dict.fromkeys(values))
        if not values or not all(map(math.isfinite, values)):
            raise RequestError("Values: write at least one number, such as 0.03, 0.1, 0.3.")
        if len(values) > MOST_VALUES:
            raise RequestError(f"Values: {len(values)} are given, {MOST_VALUES} are taken at most.")
        if len({f"{value:g}" for value in values}) < len(values):
            raise RequestError(
                "Values: some agree in their first six digits, by which they are named. Keep one of them."
            )
        return cls(str(given.get("field") or STRENGTH), tuple(values), str(given.get("target") or ""))


@dataclass(frozen=True)
class Trial:
    """What a task is measured with."""

    task: str
    n: int = 24
    split: str = "validation"
    controls: int = 0
    drift: bool = True
    seed: int = 0

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Trial:
        """Return what a page sends.

        Raises
        ------
        RequestError
            If there is no such task or split, or a number is out of bounds.
        """
        task, split = str(given.get("task") or ""), str(given.get("split") or "validation")
        if task not in TASKS:
            raise RequestError(f"Task: choose one of {', '.join(TASKS)}.")
        if split not in SPLITS:
            raise RequestError(f"Split: choose one of {', '.join(SPLITS)}.")
        return cls(
            task,
            _whole("Items", given.get("n"), 2, MOST_ITEMS, 24),
            split,
            _whole("Controls", given.get("controls"), 0, MOST_CONTROLS, 0),
            bool(given.get("drift", True)),
            _whole("Seed", given.get("seed"), 0, 2**31 - 1, 0),
        )


def _whole(name: str, value: Any, least: int, most: int, default: int) -> int:
    if value in (None, ""):
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number == number and number.is_integer() and least <= number <= most):
        raise RequestError(f"{name}: give a whole number from {least} to {most}.")
    return int(number)


def sweep(desk: Desk, asked: Asked, wanted: Range, tell: Tell) -> str:
    """Continue the prompt at each value; return the name of the result, which may be there already."""
    name = asked.name(desk, "sweep", range=asdict(wanted))
    if steering.found(desk, name) is not None:
        return name
    from headscope.commands.steered import described
    from headscope.interventions.strength import sweep_continuations

    began = time.monotonic()
    tell(f"Waiting for {asked.recipe.model}", 0, 1)
    with desk.model(asked.recipe.model) as model, steering.warned() as notes:
        prompt = desk.prompt(asked.recipe, model)
        *before, method = parts(desk, asked, model, tell)
        field = field_of(method, wanted.field)
        try:
            made = sweep_continuations(
                model,
                prompt,
                method,
                field,
                wanted.values,
                before=before,
                target=wanted.target or None,
                max_new_tokens=asked.recipe.new_tokens,
                progress=tell,
            )
        except RequestError as error:
            raise RequestError(paged(str(error))) from error
        base = made.comparisons[0].base
        document = {
            "range": {**asdict(wanted), "field": field},
            "methods": [described(one) for one in (*before, method)],
            "prompt_tokens": len(prompt),
            "rows": _records(made.table),
            "base_text": base.text,
            "base_length": len(base.ids),
            "notes": notes,
            "python": _sweep_python(desk, asked, field, wanted, prompt, (*before, method), model),
            "seconds": time.monotonic() - began,
        }
    asked.recipe.save(desk.workspace)
    steering.keep(desk, name, "sweep", asked, document)
    return name


def field_of(method: Any, field: str) -> str:
    """Return the number of a method that is meant.

    Raises
    ------
    RequestError
        If it has none.
    """
    from headscope.interventions.base import Method
    from headscope.interventions.strength import strength

    if not isinstance(method, Method):
        raise RequestError(f"This file ends in a bare edit ({type(method).__name__}), which has no strength to sweep.")
    if field != STRENGTH:
        return field
    main = strength(method)
    if main is None:
        raise RequestError(f"{type(method).__name__} has no strength that is a number, so there is nothing to sweep.")
    return main[0]


def _records(table: Any) -> list[dict[str, Any]]:
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        for record in table.to_dict("records")
    ]


def _sweep_python(
    desk: Desk, asked: Asked, field: str, wanted: Range, prompt: Any, methods: Sequence[Any], model: Any
) -> str:
    names, lines = method_words.method_lines(desk, asked, methods, model)
    before, last = ([], "method") if asked.valued else ([], "edits[-1]")
    before = [f"before=[{', '.join([*names[:-1], *([] if asked.valued else ['*edits[:-1]'])])}]"]
    before = before if len(methods) > 1 else []
    options = [*before, *([f"target={literal(wanted.target)}"] if wanted.target else [])]
    call = ["model", "prompt", last, repr(field), repr(list(wanted.values)), *options]
    call.append(f"max_new_tokens={asked.recipe.new_tokens}")
    return "\n".join(
        [
            *method_words.opening(desk, asked),
            *prompt_lines(asked.recipe, method_words.Marked(prompt)),
            *lines,
            "found = hs.interventions.sweep_continuations(",
            *(textwrap.indent(f"{one},", "    ") for one in call),
            ")",
            "print(found.table)",
            "found.plot()",
            "",
        ]
    )


# -- on a task -------------------------------------------------------------------------------------------------------


def judge(desk: Desk, asked: Asked, wanted: Range | None, trial: Trial, tell: Tell) -> str:
    """Measure the method at each value on items of a task; goes on where an earlier try stopped."""
    from headscope.commands.evaluate import task_items
    from headscope.commands.steered import described
    from headscope.interventions.evaluate import evaluate

    name = name_of(desk, asked, wanted, trial)
    if steering.found(desk, name) is not None:
        return name
    began = time.monotonic()
    tell(f"Waiting for {asked.recipe.model}", 0, 1)
    with desk.model(asked.recipe.model) as model, steering.warned() as notes:
        tell("Making items", 0, 1)
        task, items = task_items(trial.task, model, trial.n, trial.seed, trial.split, {})
        if asked.method == "pine":
            raise RequestError("PINE needs two segments or more, and items of tasks have none that touch.")
        methods = parts(desk, asked, model, tell, task.region)
        field, variants = _variants(methods, wanted)
        try:
            made = evaluate(
                model,
                task,
                variants,
                items=items,
                controls=trial.controls,
                drift=trial.drift,
                seed=trial.seed,
                # Measurements are shared by all sweeps on the same items: what was measured once is not again.
                out=desk.workspace.path(f"{MEASURED}/{measured(model.fingerprint, trial)}"),
                progress=lambda stage, done, total: tell(_STAGES.get(stage) or stage, done, total),
            )
        except HeadscopeError as error:
            raise type(error)(paged(str(error))) from error
        report = f"{REPORTS}/steer-{trial.task}-{name}.html"
        _write_report(made, desk, report)
        document = {
            "trial": asdict(trial),
            "range": None if wanted is None else {**asdict(wanted), "field": field},
            "values": dict(zip(variants, wanted.values, strict=True)) if wanted else {},
            "neutral": _neutral(methods[-1], field),
            "methods": [described(method) for method in methods],
            "region": task.region,
            "notes": [*notes, *made.notes],
            "report": report,
            "rows": made.document()["methods"],
            "python": _judge_python(desk, asked, field, wanted, trial, methods, model),
            "seconds": time.monotonic() - began,
        }
    steering.keep(desk, name, "task", asked, document)
    return name


_STAGES = {
    "base and neutral": "Without the edit, and at neutral strength",
    "methods": "At each value",
    "controls": "Controls",
    "drift": "Drift on neutral text",
}


def name_of(desk: Desk, asked: Asked, wanted: Range | None, trial: Trial) -> str:
    """Return the name of what comes of it; the prompt of the page has no part in it."""
    from dataclasses import replace

    plain = replace(asked, recipe=type(asked.recipe)(asked.recipe.model, ""))
    return plain.name(desk, "task", range=None if wanted is None else asdict(wanted), trial=asdict(trial))


def measured(fingerprint: str, trial: Trial) -> str:
    """Return the folder of measurements: one for each model and choice of items."""
    items = [fingerprint, trial.task, trial.n, trial.split, trial.seed]
    return f"{trial.task}-{sha256_text(canonical_json(items))[:12]}"


def _variants(methods: Sequence[Any], wanted: Range | None) -> tuple[str | None, dict[str, Any]]:
    from dataclasses import replace

    *before, method = methods
    if wanted is None:
        return None, {getattr(method, "name", "edit"): tuple(methods)}
    field = field_of(method, wanted.field)
    return field, {f"{field}={value:g}": (*before, replace(method, **{field: value})) for value in wanted.values}


def _neutral(method: Any, field: str | None) -> float | None:
    """Return the value at which the field that is swept makes the method neutral; None if another field does."""
    from headscope.interventions.base import Method
    from headscope.interventions.strength import strength

    main = strength(method) if isinstance(method, Method) else None
    return main[1] if main is not None and main[0] == field else None


def _write_report(made: Any, desk: Desk, file: str) -> None:
    from headscope.interventions.evaluation_page import write_page

    write_page(made, desk.workspace.path(file))


def _judge_python(
    desk: Desk, asked: Asked, field: str | None, wanted: Range | None, trial: Trial, methods: Sequence[Any], model: Any
) -> str:
    names, lines = method_words.method_lines(desk, asked, methods, model)
    options = [f"controls={trial.controls}", f"drift={trial.drift}", f"seed={trial.seed}"]
    last = "method" if asked.valued else "edits[-1]"
    if wanted is None or field is None:
        made = f"{{{getattr(methods[-1], 'name', 'edit')!r}: [{', '.join(names)}]}}"
        call = f"found = hs.interventions.evaluate(model, task, {made}, items=items, {', '.join(options)})"
    elif len(methods) > 1:
        rest = [*names[:-1], *([] if asked.valued else ["*edits[:-1]"])]
        lines = ["from dataclasses import replace", *lines]
        made = f"{{f'{field}={{x:g}}': [{', '.join(rest)}, replace({last}, {field}=x)] for x in {list(wanted.values)}}}"
        call = f"found = hs.interventions.evaluate(model, task, {made}, items=items, {', '.join(options)})"
    else:
        swept = f"model, task, {last}, {field!r}, {list(wanted.values)}, items=items"
        call = f"found = hs.interventions.sweep({swept}, {', '.join(options)})"
    first, *rest = method_words.opening(desk, asked)
    return "\n".join(
        [
            first,
            "from headscope.commands.evaluate import task_items",
            *rest,
            f"task, items = task_items({trial.task!r}, model, {trial.n}, {trial.seed}, {trial.split!r}, {{}})",
            *lines,
            call,
            "found.table",
            "",
        ]
    )
