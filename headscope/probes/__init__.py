"""Probes: which heads do what, with uncertainty and controls. Every name loads its module when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headscope.probes.registry import PROBES as PROBES
from headscope.probes.registry import find as find
from headscope.probes.verify import verify as verify  # eagerly: importing the module later would hide the function

# A light module; its function must be bound here, or the module of the same name would take its place.

if TYPE_CHECKING:
    from headscope.probes.base import Context as Context
    from headscope.probes.base import Probe as Probe
    from headscope.probes.base import SampleMeta as SampleMeta
    from headscope.probes.claims import retrieval_claims as retrieval_claims
    from headscope.probes.claims import with_claims as with_claims
    from headscope.probes.dormancy import active_dormant as active_dormant
    from headscope.probes.examples import explain as explain
    from headscope.probes.head_sets import HeadSet as HeadSet
    from headscope.probes.knowledge import knowledge_task as knowledge_task
    from headscope.probes.patterns import DuplicateTokenHeads as DuplicateTokenHeads
    from headscope.probes.patterns import EchoHeads as EchoHeads
    from headscope.probes.patterns import InductionHeads as InductionHeads
    from headscope.probes.patterns import PreviousTokenHeads as PreviousTokenHeads
    from headscope.probes.retrieval import RetrievalHeads as RetrievalHeads
    from headscope.probes.runner import rank_all as rank_all
    from headscope.probes.scores import HeadScores as HeadScores
    from headscope.probes.sink_tokens import SinkTokens as SinkTokens
    from headscope.probes.sinks import SinkHeads as SinkHeads
    from headscope.probes.tasks import Task as Task
    from headscope.probes.tasks import needle_task as needle_task
    from headscope.probes.tasks import repeat_task as repeat_task
    from headscope.probes.tasks import task_for as task_for
    from headscope.probes.tasks import text_task as text_task
    from headscope.probes.teacher import TeacherForced as TeacherForced

_NAMES = {
    "base": ("Context", "Probe", "SampleMeta"),
    "claims": ("retrieval_claims", "with_claims"),
    "dormancy": ("active_dormant",),
    "examples": ("explain",),
    "head_sets": ("HeadSet",),
    "knowledge": ("knowledge_task",),
    "patterns": ("DuplicateTokenHeads", "EchoHeads", "InductionHeads", "PreviousTokenHeads"),
    "retrieval": ("RetrievalHeads",),
    "runner": ("rank_all",),
    "scores": ("HeadScores",),
    "sink_tokens": ("SinkTokens",),
    "sinks": ("SinkHeads",),
    "teacher": ("TeacherForced",),
    "tasks": ("Task", "needle_task", "repeat_task", "task_for", "text_task"),
}

_HOME = {name: f"headscope.probes.{module}" for module, names in _NAMES.items() for name in names}

__all__ = ["PROBES", "find", *_HOME, "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'headscope.probes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
