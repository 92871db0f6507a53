"""Tasks that steering is evaluated on: made from seeds and templates of our own, no download.

See ``docs/tasks.md``.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from headscope.data.tasks.task import SPLITS, Task, TaskItem, Verdict
from headscope.errors import DataError, nearest

__all__ = ["SPLITS", "TASKS", "Task", "TaskItem", "Verdict", "make"]

TASKS: dict[str, str] = {
    "needles": "which fact does the text state? among facts of the same form",
    "counterfactual": "a known fact has changed: previously …, currently …",
    "json": "write a text as JSON, with the keys in a stated order",
    "sentiment": "is a review positive or negative? few-shot",
    "topic": "is a line of news about sports, science, business or music? few-shot",
    "pronouns": "rewrite a text with they for she or he",
    "truthful": "what is true, where many believe something else?",
    "instruction": "answer in the form that the top of the context asks for",
}
"""What each task asks."""

_MODULES = {name: name for name in TASKS} | {"json": "formatting"}


def make(name: str, model: Any, n: int = 200, seed: int = 0, **options: Any) -> Task:
    """Make a task for a model.

    Parameters
    ----------
    name
        One of ``TASKS``.
    model
        Its tokenizer and context size the prompts; its weights are not used.
    n
        Number of items, all splits together: two fifths train, one fifth validation, two fifths test.
    seed
        Of the items. Which sources are test does not depend on it.
    options
        Of the task, see ``docs/tasks.md``. All take ``chat``: whether to ask through the chat template.

    Raises
    ------
    DataError
        If there is no such task or option, n is too small or more than there is to ask, the model has no tokenizer,
        or the prompts do not fit its context.
    """
    if name not in TASKS:
        raise DataError(f"There is no task {name!r}.{nearest(name, TASKS)}")
    build = importlib.import_module(f"headscope.data.tasks.{_MODULES[name]}").build
    known = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise DataError(f"The task {name!r} has no option {option!r}.{nearest(option, known)}")
    made: Task = build(model, n, seed, **options)
    return made
