"""A tiny model with a named span, and the patterns of one of its layers with and without methods."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import headscope as hs
from headscope.models.tiny import tiny

IDS = tuple(range(5, 29))
REGIONS = {"span": range(4, 9), "tail": range(15, 20), "over": range(7, 12)}


@cache
def small(family: str = "llama", layers: int = 2) -> Any:
    return hs.load(tiny(family, num_hidden_layers=layers), validate=False)


def prompt(model: Any, length: int = len(IDS)) -> Any:
    return model.prompt_from_ids(IDS[:length], {name: list(found) for name, found in REGIONS.items()})


def patterns(model: Any, *methods: Any, layer: int = 0, given: Any = None) -> np.ndarray:
    """Return the attention of all heads of a layer (H, T, T) under methods."""
    with model.edited(*methods):
        run = model.run(prompt(model) if given is None else given, [hs.Rows(queries="all", layers=[layer])])
    return run["rows"].values[0, 0].astype(np.float64)


def steps(model: Any, *methods: Any, more: tuple[int, ...] = (7, 8, 9)) -> np.ndarray:
    """Return logits of the prompt's last token and of tokens that are forced behind it (1 + more, V)."""
    with model.edited(*methods):
        return model.trace(prompt(model), teacher=[*more, 1]).logits[0].numpy()
