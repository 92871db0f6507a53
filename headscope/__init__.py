"""Headscope: a workbench for attention in transformers.

Importing the package is cheap: every public name below loads its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope import data as data
    from headscope import errors as errors
    from headscope import interventions as interventions
    from headscope import models as models
    from headscope import probes as probes
    from headscope import report as report
    from headscope.attention.edits import AttentionEdit as AttentionEdit
    from headscope.attention.edits import HeadEdit as HeadEdit
    from headscope.attention.edits import KnockOut as KnockOut
    from headscope.attention.edits import LogitEdit as LogitEdit
    from headscope.attention.edits import NeuronEdit as NeuronEdit
    from headscope.attention.edits import ResidualEdit as ResidualEdit
    from headscope.attention.requests import QK as QK
    from headscope.attention.requests import Entropy as Entropy
    from headscope.attention.requests import GradReceived as GradReceived
    from headscope.attention.requests import HeadOutput as HeadOutput
    from headscope.attention.requests import Logsumexp as Logsumexp
    from headscope.attention.requests import Lookup as Lookup
    from headscope.attention.requests import Mass as Mass
    from headscope.attention.requests import MlpActivation as MlpActivation
    from headscope.attention.requests import Pattern as Pattern
    from headscope.attention.requests import Pooled as Pooled
    from headscope.attention.requests import Received as Received
    from headscope.attention.requests import Residual as Residual
    from headscope.attention.requests import Rows as Rows
    from headscope.attention.requests import TopKeys as TopKeys
    from headscope.attention.requests import ValueNorms as ValueNorms
    from headscope.attention.requests import Weighted as Weighted
    from headscope.errors import HeadscopeError as HeadscopeError
    from headscope.models.load import load as load
    from headscope.models.prompt import Prompt as Prompt
    from headscope.probes.scores import HeadScores as HeadScores
    from headscope.report.compare import compare as compare

__version__ = "0.1.0"

_MODULES = ("data", "errors", "interventions", "models", "probes", "report")

_NAMES = {
    "headscope.attention.edits": (
        "AttentionEdit",
        "HeadEdit",
        "KnockOut",
        "LogitEdit",
        "NeuronEdit",
        "ResidualEdit",
    ),
    "headscope.attention.requests": (
        "QK",
        "Entropy",
        "GradReceived",
        "HeadOutput",
        "Logsumexp",
        "Lookup",
        "Mass",
        "MlpActivation",
        "Pattern",
        "Pooled",
        "Received",
        "Residual",
        "Rows",
        "TopKeys",
        "ValueNorms",
        "Weighted",
    ),
    "headscope.errors": ("HeadscopeError",),
    "headscope.models.load": ("load",),
    "headscope.models.prompt": ("Prompt",),
    "headscope.probes.scores": ("HeadScores",),
    "headscope.report.compare": ("compare",),
}

_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_MODULES, *_HOME]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"headscope.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'headscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
