"""Data sets that need no download: generated from a seed, sized to the model, hashable."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# These functions share their names with their modules, so they are bound at once: a module that is imported later
# would take the name. All of them are light.
from headscope.data.dataset import DataSet
from headscope.data.needles import NeedleSample, needles, recall
from headscope.data.repeats import RepeatSample, repeats
from headscope.data.tasks import Task
from headscope.data.tasks import make as task
from headscope.data.texts import TextSample, texts

if TYPE_CHECKING:
    from headscope.data.organisms import Organism, organism

__all__ = [
    "DataSet",
    "NeedleSample",
    "Organism",
    "RepeatSample",
    "Task",
    "TextSample",
    "needles",
    "organism",
    "recall",
    "repeats",
    "task",
    "texts",
]


def __getattr__(name: str) -> Any:
    if name in ("Organism", "organism"):
        return getattr(importlib.import_module("headscope.data.organisms"), name)
    raise AttributeError(f"module 'headscope.data' has no attribute {name!r}")
