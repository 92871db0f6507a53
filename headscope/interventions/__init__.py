"""Interventions: change a running model. Every name loads its module when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headscope.interventions.evaluate import evaluate as evaluate  # eagerly: its module would hide the function
from headscope.interventions.evaluate import sweep as sweep
from headscope.interventions.registry import METHODS as METHODS
from headscope.interventions.registry import find_method as find_method

if TYPE_CHECKING:
    from headscope.interventions.ablation import Ablation as Ablation
    from headscope.interventions.act import ACT as ACT
    from headscope.interventions.base import Method as Method
    from headscope.interventions.calibration import calibrate_heads as calibrate_heads
    from headscope.interventions.continuation import compare_continuations as compare_continuations
    from headscope.interventions.evaluation import Evaluation as Evaluation
    from headscope.interventions.iti import ITI as ITI
    from headscope.interventions.knockout import KnockOut as KnockOut
    from headscope.interventions.knockout import window as window
    from headscope.interventions.lofit import LoFiT as LoFiT
    from headscope.interventions.lora import LoRA as LoRA
    from headscope.interventions.pai import PAI as PAI
    from headscope.interventions.pasta import PASTA as PASTA
    from headscope.interventions.pine import PINE as PINE
    from headscope.interventions.profile import combined as combined
    from headscope.interventions.profile import intersect as intersect
    from headscope.interventions.profile import profile_heads as profile_heads
    from headscope.interventions.sae import SaeFeature as SaeFeature
    from headscope.interventions.screen import screen_heads as screen_heads
    from headscope.interventions.screen import screened_profile as screened_profile
    from headscope.interventions.search import updown_heads as updown_heads
    from headscope.interventions.selector import select_by_keys as select_by_keys
    from headscope.interventions.spotlight import SpotLight as SpotLight
    from headscope.interventions.steering import SteeringVector as SteeringVector
    from headscope.interventions.store import load as load
    from headscope.interventions.store import save as save
    from headscope.interventions.strength import sweep_continuations as sweep_continuations
    from headscope.interventions.temperature import Temperature as Temperature
    from headscope.interventions.var import VAR as VAR
    from headscope.interventions.var import sink_dimensions as sink_dimensions
    from headscope.interventions.zerotuning import ZeroTuning as ZeroTuning
    from headscope.interventions.zerotuning import check_token as check_token

_NAMES = {
    "ablation": ("Ablation",),
    "act": ("ACT",),
    "base": ("Method",),
    "calibration": ("calibrate_heads",),
    "continuation": ("compare_continuations",),
    "evaluation": ("Evaluation",),
    "iti": ("ITI",),
    "knockout": ("KnockOut", "window"),
    "lofit": ("LoFiT",),
    "lora": ("LoRA",),
    "pai": ("PAI",),
    "pasta": ("PASTA",),
    "pine": ("PINE",),
    "profile": ("combined", "intersect", "profile_heads"),
    "sae": ("SaeFeature",),
    "screen": ("screen_heads", "screened_profile"),
    "search": ("updown_heads",),
    "selector": ("select_by_keys",),
    "spotlight": ("SpotLight",),
    "steering": ("SteeringVector",),
    "store": ("load", "save"),
    "strength": ("sweep_continuations",),
    "temperature": ("Temperature",),
    "var": ("VAR", "sink_dimensions"),
    "zerotuning": ("ZeroTuning", "check_token"),
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
