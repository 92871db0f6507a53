"""Load-time validation: what is captured is right, what is edited takes effect, and nothing else changes.

A family that transformers routes in some new way would otherwise give plausible nonsense without a word. The
checks run the model a few times on eight random tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headscope.errors import HeadscopeError, UnsupportedError
from headscope.models.inputs import random_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.models.model import Model

log = logging.getLogger(__name__)

_NOISE = {"float64": 1e-6, "float32": 5e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference from the model's own attention, relative to the largest output (at least 1).

In bfloat16 both are off by a few steps of 2⁻⁸ by the last layer; attention that is wrong is off by much more."""

_ROWS = {"float64": 1e-6, "float32": 1e-4}
"""How far a row's sum may be from one; 0.02 for shorter types."""


def validate(model: Model) -> None:
    """Check a loaded model against its own attention.

    For every stack: rows of the pattern sum to one (to less with learned sinks); the model's output while it is
    captured equals its output under stock attention; zeroing the strongest head of the first and of the last
    layer changes the output; scaling a head by one does not.

    Raises
    ------
    UnsupportedError
        If a check fails; the message names the family and the part.
    """
    inputs = random_inputs(model.hf)
    noise = _NOISE.get(str(model.dtype).removeprefix("torch."), 5e-2)
    expected = _stock(model, inputs)
    scale = max(1.0, float(expected.abs().max()))
    try:
        captured, strongest = _captured(model, inputs)
        _same(model, captured, expected, noise * scale, "its output while attention is captured")
        for kind, heads in strongest.items():
            neutral = _edited(model, inputs, kind, heads, factor=1.0)
            what = f"its output under an edit of {kind} heads that changes nothing"
            _same(model, neutral[0], expected, noise * scale, what)
            for head in heads:
                _takes_effect(model, inputs, kind, head, neutral)
    except UnsupportedError:
        raise
    except HeadscopeError as error:
        raise UnsupportedError(f"{model.spec.family} cannot be captured: {error}") from error


def _fail(model: Model, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{model.name} ({model.spec.family}) did not pass validation: {what}. Results for it would be wrong. Load it "
        "with validate=False only to look for the cause."
    )


def _stock(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    """Output under the attention that transformers itself would use: SDPA, or eager where SDPA cannot serve."""
    layers = [layer for stack in model.spec.stacks.values() for layer in stack.layers]
    special = any(layer.softcap or layer.sinks for layer in layers)
    own = "sdpa" if getattr(model.hf, "_supports_sdpa", False) and not special else "eager"
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation(own)
    try:
        with _output(model) as seen:
            model.run(inputs)
    finally:
        model.hf.set_attn_implementation(before)
    return seen[0]


@contextmanager
def _output(model: Model, path: str = "") -> Iterator[list[Tensor]]:
    """Collect the outputs of a module: logits, or the first tensor that it returns."""
    seen: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        first = getattr(output, "logits", None)
        if first is None:
            first = output if hasattr(output, "detach") else output[0]
        seen.append(first.detach().float())

    handle = model.hf.get_submodule(path).register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _captured(model: Model, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, list[tuple[int, int]]]]:
    """Capture rows and head outputs; return the model's output and the strongest heads of each stack."""
    from headscope.attention.requests import HeadOutput, Request, Rows

    requests: list[Request] = []
    for kind, stack in model.spec.stacks.items():
        requests.append(Rows(queries=(0, -1), stack=stack.kind, name=f"rows {kind}"))
        requests.append(HeadOutput(queries=(0, -1), stack=stack.kind, name=f"z {kind}"))
    with _output(model) as seen:
        run = model.run(inputs, capture=requests)
    strongest = {}
    for kind in model.spec.stacks:
        _check_rows(model, kind, run[f"rows {kind}"])
        layers = model.spec.stacks[kind].layers
        ends = sorted({0, len(layers) - 1})
        chosen = [_strongest(model, kind, layer, run[f"z {kind}"].sel(layer=layer)) for layer in ends]
        strongest[kind] = [head for head in chosen if head is not None]
    return seen[-1], strongest


def _check_rows(model: Model, kind: str, rows: Any) -> None:
    """Rows must be there for every layer, not negative, and sum to one."""
    import numpy as np

    tolerance = _ROWS.get(str(model.dtype).removeprefix("torch."), 0.02)
    for layer in model.spec.stacks[kind].layers:
        values = np.asarray(rows.sel(layer=layer.index).values)[..., : layer.heads, :, :]
        sums = np.nansum(values, axis=-1)
        off = np.maximum(sums - 1, 0) if layer.sinks else np.abs(sums - 1)
        worst = float(off.max())
        if not np.isfinite(sums).all() or float(np.nanmin(values)) < -tolerance or worst > tolerance:
            raise _fail(model, f"attention rows of {layer.attn} sum to one only within {worst:.2g}")


def _strongest(model: Model, kind: str, layer: int, z: Any) -> tuple[int, int] | None:
    """Return the head of a layer that writes most; None if none writes anything (as in hand-made models)."""
    import torch

    site = model.sites.stack(kind)[layer]
    values = torch.as_tensor(z.values, dtype=torch.float32).reshape(-1, *z.values.shape[-3:])[:, : site.heads]
    weight = site.output_weight().detach().float().cpu()
    written = torch.einsum("bhqd,hdm->bhqm", torch.nan_to_num(values), weight)
    norms = written.pow(2).sum((0, 2, 3))
    head = int(norms.argmax())
    return (layer, head) if float(norms[head]) > 1e-12 else None


def _edited(
    model: Model, inputs: dict[str, Tensor], kind: str, heads: list[tuple[int, int]], *, factor: float
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the model's output, and the blocks' outputs by layer, with heads scaled by ``factor``."""
    from contextlib import ExitStack

    from headscope.attention.edits import HeadEdit

    if not heads:
        with _output(model) as seen:
            model.run(inputs)
        return seen[-1], {}
    with ExitStack() as stack:
        stack.enter_context(model.edited(HeadEdit(heads=tuple(heads), mode="scale", factor=factor, stack=kind)))
        layers = model.spec.stacks[kind].layers
        blocks = {layer: stack.enter_context(_output(model, layers[layer].block)) for layer, _ in heads}
        seen = stack.enter_context(_output(model))
        model.run(inputs)
    return seen[-1], {layer: outputs[-1] for layer, outputs in blocks.items()}


def _takes_effect(
    model: Model, inputs: dict[str, Tensor], kind: str, head: tuple[int, int], neutral: tuple[Tensor, dict[int, Tensor]]
) -> None:
    """Zero a head that writes something: the output must change, or at least what its block hands on."""
    import torch

    output, blocks = _edited(model, inputs, kind, [head], factor=0.0)
    layer = head[0]
    if torch.equal(output, neutral[0]) and torch.equal(blocks[layer], neutral[1][layer]):
        path = model.spec.stacks[kind].layers[layer].o_proj
        raise _fail(model, f"zeroing {kind} head {head} changes nothing: {path} does not read its output")


def _same(model: Model, found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not difference <= tolerance:
        raise _fail(
            model, f"{what} differs from that under stock attention by {difference:.2g} (allowed {tolerance:.2g})"
        )
    log.debug("%s: %s differs by %.2g.", model.name, what, difference)
