"""Load any model, and say what it is made of."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.models.carried import fetch as fetch
    from headscope.models.carried import list_models as list_models
    from headscope.models.describe import info as info
    from headscope.models.load import load as load
    from headscope.models.tiny import tiny as tiny

_HOME = {"fetch": "carried", "list_models": "carried", "info": "describe", "load": "load", "tiny": "tiny"}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"headscope.models.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'headscope.models' has no attribute {name!r}")
