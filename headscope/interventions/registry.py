"""Methods by name. A method's module is loaded when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headscope.errors import RequestError, nearest

if TYPE_CHECKING:
    from headscope.interventions.base import Method

METHODS = {
    "pasta": "pasta:PASTA",
    "act": "act:ACT",
    "zerotuning": "zerotuning:ZeroTuning",
    "spotlight": "spotlight:SpotLight",
    "knockout": "knockout:KnockOut",
    "var": "var:VAR",
    "temperature": "temperature:Temperature",
    "pai": "pai:PAI",
    "ablation": "ablation:Ablation",
    "lofit": "lofit:LoFiT",
    "iti": "iti:ITI",
    "lora": "lora:LoRA",
    "steering": "steering:SteeringVector",
    "sae": "sae:SaeFeature",
    "pine": "pine:PINE",
}


def find_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises
    ------
    RequestError
        If there is none of that name.
    """
    if name.lower() not in METHODS:
        raise RequestError(f"There is no method {name!r}.{nearest(name.lower(), METHODS)}")
    module, cls = METHODS[name.lower()].split(":")
    found: Any = getattr(importlib.import_module(f"headscope.interventions.{module}"), cls)
    return found  # type: ignore[no-any-return]
