"""Run a prompt so that everything about its attention can be looked at afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from headscope.attention import requests as ask
from headscope.report.view.source import THUMB, View, bins

if TYPE_CHECKING:
    from headscope.models.model import Model
    from headscope.models.prompt import Prompt


def view_requests(prompt: Prompt) -> list[ask.Request]:
    """Return what the whole view of a prompt needs, all of it taken in one pass."""
    length = len(prompt)
    top = bins(length)
    thumb = min(THUMB, length)
    return [
        ask.QK(),
        ask.Logsumexp(),
        ask.Entropy(),
        ask.Mass(tuple(prompt.regions)),
        ask.Weighted(x=torch.arange(length, dtype=torch.float32)[:, None], name="expected_key"),
        ask.Received(mean=True),
        ask.TopKeys(1),
        ask.Pooled(rows=thumb, cols=thumb, reduce="max", name="thumbs"),
        ask.Pooled(rows=top, cols=top, reduce="mean", name="overview_mean"),
        ask.Pooled(rows=top, cols=top, reduce="max", name="overview_max"),
    ]


def look(
    model: Model,
    prompt: Prompt,
    *,
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[], None] | None = None,
) -> View:
    """Run a prompt once and return its view.

    Parameters
    ----------
    progress
        Called with (layers done, layers in all).
    check
        Called before every layer; what it raises ends the run.
    """
    with _watched(model, progress, check):
        run = model.run(prompt, view_requests(prompt), logits="last")
    return View(run, model)


def estimate(model: Model, length: int) -> int:
    """Return the bytes that the view of ``length`` tokens will keep."""
    width = 4 if model.dtype == torch.float32 else 8 if model.dtype == torch.float64 else 2
    layers = model.spec.layers()
    kept = sum(width * length * layer.head_dim * (layer.heads + 2 * layer.kv_heads) for layer in layers)
    heads = sum(layer.heads for layer in layers)
    return kept + 4 * heads * (6 * length + THUMB**2 + 2 * bins(length) ** 2)


@contextlib.contextmanager
def _watched(
    model: Any, progress: Callable[[int, int], None] | None, check: Callable[[], None] | None
) -> Iterator[None]:
    """Tell of every layer inside the block."""
    layers = model.spec.layers()
    handles = []

    def watch(number: int) -> Callable[..., None]:
        def before(*_: Any) -> None:
            if check is not None:
                check()
            if progress is not None:
                progress(number, len(layers))

        return before

    try:
        for number, layer in enumerate(layers):
            handles.append(model.hf.get_submodule(layer.block).register_forward_pre_hook(watch(number)))
        yield
        if progress is not None:
            progress(len(layers), len(layers))
    finally:
        for handle in handles:
            handle.remove()
