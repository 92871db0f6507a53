"""Load-time validation catches what it is there to catch, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from headscope.errors import UnsupportedError
from headscope.models.load import load
from headscope.models.tiny import FAMILIES, tiny
from headscope.models.validate import validate


@pytest.mark.parametrize("family", FAMILIES)
def test_validation_leaves_no_hook_and_no_edit_behind(family):
    model = load(tiny(family), validate=False)
    validate(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    assert model.edits == ()
    assert model.hf.config._attn_implementation == "headscope"


def test_half_precision_passes():
    for family in ("llama", "gemma2", "gpt_oss"):
        load(tiny(family), dtype="bfloat16")


def test_a_wrong_output_projection_is_caught():
    """The path of a module that is never called: zeroing a head there would change nothing."""
    import dataclasses

    model = load(tiny("llama"), validate=False)
    model.hf.unused = torch.nn.Linear(32, 32)
    layers = tuple(dataclasses.replace(layer, o_proj="unused") for layer in model.spec.layers())
    stack = dataclasses.replace(model.spec.stacks["decoder"], layers=layers)
    model.spec = dataclasses.replace(model.spec, stacks={"decoder": stack})
    with pytest.raises(UnsupportedError, match="llama"):
        validate(model)


def test_attention_that_differs_from_stock_is_caught(monkeypatch):
    from headscope.attention import engine

    model = load(tiny("gemma2"), validate=False)  # soft-cap: its output comes from our kernel
    right = engine._beyond_sdpa
    monkeypatch.setattr(engine, "_beyond_sdpa", lambda *args: right(*args).roll(1, dims=1))  # heads in the wrong order
    with pytest.raises(UnsupportedError, match="differs from that under stock attention"):
        validate(model)


def test_edits_without_effect_are_caught(monkeypatch):
    from headscope.attention.edits import HeadEdit

    model = load(tiny("gpt2"), validate=False)
    monkeypatch.setattr(HeadEdit, "apply", lambda _self, _site, z, _start: z)
    with pytest.raises(UnsupportedError, match=r"zeroing decoder head .* changes nothing"):
        validate(model)


def test_heads_that_write_nothing_are_not_blamed():
    """Hand-made models have heads whose output projection is zero."""
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    load(model)
