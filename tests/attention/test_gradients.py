"""Attention × gradient against eager attention's own gradients."""

from __future__ import annotations

import pytest
import torch

from headscope.attention import requests as ask
from headscope.attention.edits import AttentionEdit, Group, Scale
from headscope.attention.engine import NAME
from headscope.errors import RequestError
from headscope.kernels import reference
from tests.attention.test_engine import make, prompt

FAMILIES = ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "gpt_oss", "opt"]


def best(logits):
    return logits[:, -1].log_softmax(-1).amax(-1)


def eager(model, ids, target):
    model.hf.set_attn_implementation("eager")
    try:
        with torch.enable_grad():
            output = model.hf(ids, output_attentions=True)
            grads = torch.autograd.grad(target(output.logits).sum(), output.attentions)
        return torch.stack([(a * g).sum(2) for a, g in zip(output.attentions, grads, strict=True)]).detach()
    finally:
        model.hf.set_attn_implementation(NAME)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_the_gradients_of_eager_attention(family, monkeypatch):
    monkeypatch.setattr("headscope.kernels.gradient._ROWS", 50)
    model, given = make(family), prompt(120)
    want = eager(model, torch.tensor([given.ids]), best)
    found = torch.tensor(model.run(given, [ask.GradReceived()])["grad_received"].values)
    assert found.shape == want.shape
    assert (found - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))


def test_a_target_of_ones_own_and_other_requests_beside_it():
    model, given = make("llama"), prompt(30)

    def target(logits):
        return logits[0, 10, 7] - logits[0, 20, 3]

    want = eager(model, torch.tensor([given.ids]), target)
    run = model.run(given, [ask.GradReceived(target), ask.Entropy(), ask.GradReceived(target, layers=[1], name="one")])
    assert (torch.tensor(run["grad_received"].values) - want).abs().max() < 1e-5
    assert (torch.tensor(run["one"].values) - want[1:2]).abs().max() < 1e-5
    bare = model.run(given, [ask.Entropy()])["entropy"].values
    assert abs(run["entropy"].values - bare).max() < 1e-5
    assert run.logits is not None
    assert not run.logits.requires_grad
    assert (run["grad_received"].values[..., 21:] == 0).all()


def test_padding_on_either_side_changes_nothing():
    model = make("llama")
    short, long = prompt(9, seed=1), prompt(21, seed=2)
    alone = torch.tensor(model.run(short, [ask.GradReceived()])["grad_received"].values)[:, 0]
    for side in ("left", "right"):
        both = torch.tensor(model.run([short, long], [ask.GradReceived()], side=side)["grad_received"].values)[:, 0]
        real = both[..., -9:] if side == "left" else both[..., :9]
        assert (real - alone).abs().max() < 1e-5


def test_under_an_edit_it_is_that_of_the_edited_model(monkeypatch):
    model, given = make("llama"), prompt(40)
    edit = AttentionEdit(((0, 1), (1, 2)), (Group("some", (3, 4, 5)),), Scale((0.1,)))
    patterns = []

    def watched(inp):
        pattern = reference.pattern(inp)
        pattern.retain_grad()
        patterns.append(pattern)
        return pattern @ inp.v

    with model.edited(edit):
        found = torch.tensor(model.run(given, [ask.GradReceived()])["grad_received"].values)
    monkeypatch.setattr(reference, "attend", watched)
    with torch.enable_grad(), model.edited(edit):
        best(model.hf(torch.tensor([given.ids])).logits).sum().backward()
    assert len(patterns) == 2
    for layer, head in edit.heads:
        want = (patterns[layer] * patterns[layer].grad).sum(2)[0, 0]
        assert (found[layer, 0, head] - want).abs().max() < 1e-6


@pytest.mark.parametrize("bad", [lambda x: 3.0, lambda x: x])
def test_a_target_that_is_no_number_is_refused(bad):
    with pytest.raises(RequestError, match="one number"):
        make("llama").run(prompt(9), [ask.GradReceived(bad)])


def test_two_targets_are_refused():
    requests = [ask.GradReceived(best), ask.GradReceived(lambda x: x[0, 0, 0], name="other")]
    with pytest.raises(RequestError, match="one target"):
        make("llama").run(prompt(9), requests)
