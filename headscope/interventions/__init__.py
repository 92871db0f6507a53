"""Interventions: change a running model. Every name loads its module when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headscope.interventions.registry import METHODS as METHODS
from headscope.interventions.registry import find_method as find_method

if TYPE_CHECKING:
    from headscope.interventions.base import Method as Method
    from headscope.interventions.store import load as load
    from headscope.interventions.store import save as save

_NAMES = {
    "base": ("Method",),
    "store": ("load", "save"),
}

_HOME = {name: f"headscope.interventions.{module}" for module, names in _NAMES.items() for name in names}

__all__ = ["METHODS", "find_method", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'headscope.interventions' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
