"""Run a prompt so that everything about its attention can be looked at afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from headscope.attention import requests as ask
from headscope.report.view.source import OVERVIEW, OVERVIEW_CELLS, THUMB, TILE, View, viewed_stack
from headscope.report.view.statistics import REACH, RECEIVED

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.models.model import Editor, Model
    from headscope.models.prompt import Prompt
    from headscope.models.spec import LayerSpec


def view_requests(model: Model, prompt: Prompt) -> list[ask.Request]:
    """Return what the whole view of a prompt needs, all of it taken in one pass.

    Of an encoder-decoder this is its encoder, which reads the prompt; its decoder and cross-attention are not looked
    at.

    Raises
    ------
    UnsupportedError
        If the model reads no text.
    """
    stack: Any = viewed_stack(model)
    layers = [layer for layer in model.spec.layers(stack) if layer.attention != "linear"]
    # Layers with unlike numbers of heads come as pairs.
    pairs = [(layer.index, head) for layer in layers for head in range(layer.heads)]
    heads = pairs if len({layer.heads for layer in layers}) > 1 else None
    seen = torch.stack([torch.ones(len(prompt)), torch.arange(len(prompt), dtype=torch.float32)], dim=1)
    found = [
        ask.QK(stack=stack),
        ask.Logsumexp(stack=stack, heads=heads),
        ask.Entropy(stack=stack, heads=heads),
        ask.Mass(tuple(prompt.regions), stack=stack, heads=heads),
        ask.Weighted(x=seen, name=REACH, stack=stack, heads=heads),
        ask.Received(mean=True, name=RECEIVED, stack=stack, heads=heads),
        ask.TopKeys(1, stack=stack, heads=heads),
    ]
    if len(prompt) > TILE:  # thumbnails of shorter ones are made in no time
        cells = OVERVIEW_CELLS
        found.append(ask.Pooled(cells, cells, "max", name=OVERVIEW, stack=stack, heads=heads))
    return found


def look(
    model: Model,
    prompt: Prompt,
    *,
    edits: Sequence[Edit | Editor] = (),
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[], None] | None = None,
) -> View:
    """Run a prompt once and return its view.

    Parameters
    ----------
    edits
        Edits to run under, besides those in force.
    progress
        Called with (layers done, layers in all).
    check
        Called before every layer; what it raises ends the run.

    Raises
    ------
    UnsupportedError
        If the model reads no text.
    MemoryBudgetError
        If the view does not fit the memory.
    """
    requests = view_requests(model, prompt)
    with contextlib.ExitStack() as around:
        if edits:
            around.enter_context(model.edited(*edits))
        around.enter_context(_watched(model, model.spec.layers(viewed_stack(model)), progress, check))
        run = model.run(prompt, requests, logits="last")
    return View(run, model)


def estimate(model: Model, length: int) -> int:
    """Return the bytes that the view of ``length`` tokens will keep."""
    layers = model.spec.layers(viewed_stack(model))
    width = torch.finfo(model.dtype).bits // 8
    kept = sum(width * length * layer.head_dim * (layer.heads + layer.kv_heads) for layer in layers)
    heads = sum(layer.heads for layer in layers)
    masks = {(layer.attention, layer.window) for layer in layers if layer.window is not None and layer.window < length}
    extra = (len(masks) + bool(masks)) * length**2
    if any(layer.position_bias for layer in layers):
        extra += width * layers[0].heads * length**2
    return kept + extra + 4 * heads * (length + THUMB**2)


@contextlib.contextmanager
def _watched(
    model: Model,
    layers: Sequence[LayerSpec],
    progress: Callable[[int, int], None] | None,
    check: Callable[[], None] | None,
) -> Iterator[None]:
    """Tell of every layer inside the block."""
    handles = []

    def watch(done: int) -> Callable[..., None]:
        def before(*_: Any) -> None:
            if check is not None:
                check()
            if progress is not None:
                progress(done, len(layers))

        return before

    try:
        for done, layer in enumerate(layers):
            handles.append(model.hf.get_submodule(layer.block).register_forward_pre_hook(watch(done)))
        yield
        if progress is not None:
            progress(len(layers), len(layers))
    finally:
        for handle in handles:
            handle.remove()
