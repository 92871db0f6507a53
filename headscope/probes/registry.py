"""Probes by the names that the command line uses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headscope.errors import HeadscopeError, nearest

if TYPE_CHECKING:
    from headscope.probes.base import Probe

PROBES: dict[str, tuple[str, str]] = {
    "retrieval": ("headscope.probes.retrieval", "RetrievalHeads"),
    "echo": ("headscope.probes.patterns", "EchoHeads"),
    "induction": ("headscope.probes.patterns", "InductionHeads"),
    "previous": ("headscope.probes.patterns", "PreviousTokenHeads"),
    "duplicate": ("headscope.probes.patterns", "DuplicateTokenHeads"),
    "sinks": ("headscope.probes.sinks", "SinkHeads"),
    "sink-tokens": ("headscope.probes.sink_tokens", "SinkTokens"),
}
"""Name -> module and class. Kept as text, so that the list can be shown without importing anything heavy."""


def find(name: str, **parameters: Any) -> Probe:
    """Return the probe of this name, with its published parameters or the given ones.

    Raises
    ------
    HeadscopeError
        If there is no such probe or no such parameter; the nearest name is suggested.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in PROBES:
        raise HeadscopeError(f"There is no probe {name!r}.{nearest(key, PROBES)}")
    module, kind = PROBES[key]
    cls: type[Probe] = getattr(importlib.import_module(module), kind)
    known = cls.__dataclass_fields__
    for parameter in parameters:
        if parameter not in known:
            raise HeadscopeError(f"The probe {key!r} has no parameter {parameter!r}.{nearest(parameter, known)}")
    return cls(**parameters)
