"""What each family can do, as checks against the family's own eager attention.

``scripts/families_table.py`` writes the results to ``docs/models.md``. A check returns nothing if the capability
holds, raises ``NotApplicable`` where the question makes no sense for the family, and fails otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headscope.attention.edits import HeadEdit, KnockOut
from headscope.attention.requests import (
    Entropy,
    HeadOutput,
    Logsumexp,
    Mass,
    MlpActivation,
    Pattern,
    Received,
    Residual,
    TopKeys,
)
from headscope.models.inputs import random_inputs
from headscope.models.load import load
from headscope.models.prompt import Prompt
from headscope.models.tiny import FAMILIES, tiny

NOISE = 5e-5
"""Largest difference from eager attention in float32."""


class NotApplicable(Exception):
    """The family has no such thing: images are not padded, encoders do not generate."""


@cache
def model_of(family: str) -> Any:
    """Return the tiny model of a family, loaded and validated."""
    return load(tiny(family))


def eager(model: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Patterns by stack (layers, batch, heads, queries, keys), as transformers' eager attention gives them."""
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            output = model.hf(**inputs, output_attentions=True)
    finally:
        model.hf.set_attn_implementation(before)
    names = {"decoder": "decoder_attentions", "cross": "cross_attentions", "encoder": "encoder_attentions"}
    found = {}
    for kind in model.spec.stacks:
        attentions = getattr(output, names.get(kind, "attentions"), None)
        found[kind] = torch.stack(list(attentions if attentions is not None else output.attentions)).numpy()
    return found


def patterns(model: Any) -> None:
    """Patterns of every stack equal eager attention's."""
    inputs = random_inputs(model.hf, batch=2, length=12)
    expected = eager(model, inputs)
    asked = [Pattern(stack=kind, name=kind) for kind in model.spec.stacks]
    run = model.run(inputs, capture=asked)
    for kind, pattern in expected.items():
        np.testing.assert_allclose(run[kind].values, pattern, atol=NOISE, err_msg=kind)


def statistics(model: Any) -> None:
    """Entropy, mass, received, top keys and the log-normaliser agree with the pattern."""
    inputs = random_inputs(model.hf, length=12)
    for kind, pattern in eager(model, inputs).items():
        wanted = [Entropy(stack=kind), Mass(["bos"], stack=kind), Received(stack=kind), TopKeys(1, stack=kind),
                  Logsumexp(stack=kind)]  # fmt: skip
        run = model.run(inputs, capture=wanted)
        p = pattern.astype(np.float64)
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
        sinks = any(layer.sinks for layer in model.spec.stacks[kind].layers)
        if not sinks:  # with a learned sink a row is not a distribution over keys; its definition is the engine's
            np.testing.assert_allclose(run["entropy"].values, entropy, atol=1e-4, err_msg=kind)
        np.testing.assert_allclose(run["mass"].values[..., 0], p[..., 0], atol=NOISE, err_msg=kind)
        np.testing.assert_allclose(run["received"].values, p.sum(-2), atol=1e-4, err_msg=kind)
        np.testing.assert_allclose(run["top_weights"].values[..., 0], p.max(-1), atol=NOISE, err_msg=kind)
        assert np.isfinite(run["logsumexp"].values).all()


def streams(model: Any) -> None:
    """Residual stream, head outputs and MLP activations are what the modules hand on."""
    inputs = random_inputs(model.hf, length=9)
    layers = model.spec.layers()
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any = None) -> None:
            seen[name] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    hooks = []
    for layer in layers:
        for name, path in (("z", layer.o_proj), ("mlp", layer.mlp_act), ("block", layer.block)):
            if path is not None:
                module = model.hf.get_submodule(path)
                hooks.append(module.register_forward_pre_hook(keep(f"{name}{layer.index}"), with_kwargs=True))
    wanted: list[Any] = [Residual(), HeadOutput()]
    wanted += [MlpActivation()] if layers[0].mlp_act is not None else []
    try:
        run = model.run(inputs, capture=wanted)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        z = run["head_output"].sel(layer=layer.index).values  # (batch, head, query, dim)
        np.testing.assert_allclose(np.moveaxis(z, 1, 2).reshape(seen[f"z{layer.index}"].shape), seen[f"z{layer.index}"])
        np.testing.assert_allclose(run["residual"].sel(layer=layer.index).values, seen[f"block{layer.index}"])
        if layer.mlp_act is not None:
            expected = seen[f"mlp{layer.index}"].reshape(run["mlp_activation"].sel(layer=layer.index).shape)
            np.testing.assert_allclose(run["mlp_activation"].sel(layer=layer.index).values, expected)


def head_edits(model: Any) -> None:
    """Zeroing any single head changes the output; scaling it by one does not."""
    inputs = random_inputs(model.hf, length=9)

    def output() -> torch.Tensor:
        with torch.no_grad():
            found = model.hf(**inputs)
        logits = getattr(found, "logits", None)
        return logits if logits is not None else found.last_hidden_state

    plain = output()
    for kind in model.spec.stacks:
        for head in model.spec.heads(kind):
            with model.edited(HeadEdit(heads=(head,), mode="zero", stack=kind)):
                assert not torch.allclose(output(), plain, atol=1e-6), (kind, head)
        with model.edited(HeadEdit(heads=tuple(model.spec.heads(kind)), mode="scale", factor=1.0, stack=kind)):
            torch.testing.assert_close(output(), plain, atol=NOISE, rtol=NOISE)


def knock_out(model: Any) -> None:
    """Keys hidden from a head get nothing, and the rest of each row is renormalised."""
    inputs = random_inputs(model.hf, length=9)
    for kind in model.spec.stacks:
        plain = model.run(inputs, capture=[HeadOutput(stack=kind)])["head_output"].values[0, :, 1]
        with model.edited(KnockOut(heads=((0, 1),), regions=(1,), stack=kind)):
            found = model.run(inputs, capture=[HeadOutput(stack=kind)])["head_output"].values[0, :, 1]
        assert not np.allclose(found, plain, atol=1e-6), kind
        if model.spec.stacks[kind].layers[0].causal:
            np.testing.assert_allclose(found[:, 0], plain[:, 0], atol=1e-6)  # row 0 never saw key 1


def padding(model: Any) -> None:
    """A prompt gives the same numbers alone and padded in a batch."""
    if model.hf.main_input_name != "input_ids":
        raise NotApplicable
    if model.hf.config.is_encoder_decoder:
        short, long = (random_inputs(model.hf, length=n, seed=n)["input_ids"] for n in (6, 9))
        width = long.shape[1] - short.shape[1]
        padded = torch.cat([torch.nn.functional.pad(short, (0, width)), long])
        mask = torch.ones_like(padded)
        mask[0, short.shape[1] :] = 0
        start = torch.zeros((2, 1), dtype=torch.int64)
        asked = [Entropy(stack="encoder")]
        batch = model.run({"input_ids": padded, "attention_mask": mask, "decoder_input_ids": start}, capture=asked)[
            "entropy"
        ].values
        alone = model.run({"input_ids": short, "decoder_input_ids": start[:1]}, capture=asked)["entropy"].values
        np.testing.assert_allclose(batch[:, :1, :, : short.shape[1]], alone, atol=1e-4)
        return
    short, long = (Prompt.from_ids(random_inputs(model.hf, length=n, seed=n)["input_ids"][0].tolist()) for n in (6, 9))
    sides = ("left", "right") if model.spec.default_stack == "decoder" else ("right",)
    for side in sides:
        asked = [Entropy(), Received()]
        batch, alone = model.run([short, long], capture=asked, side=side), model.run(short, capture=asked)
        own = slice(3, None) if side == "left" else slice(0, 6)
        for name in ("entropy", "received"):
            np.testing.assert_allclose(batch[name].values[:, 0, :, own], alone[name].values[:, 0], atol=1e-4)


def generation(model: Any) -> None:
    """Rows captured step by step with a cache equal those of one pass over the whole text."""
    if model.spec.default_stack != "decoder" or model.spec.unembed is None:
        raise NotApplicable
    if model.hf.config.is_encoder_decoder:
        _generation_with_encoder(model)
        return
    prompt = Prompt.from_ids(random_inputs(model.hf, length=9)["input_ids"][0].tolist())
    teacher = [7, 11, 13, 17]
    trace = model.trace(prompt, capture=[Entropy(), TopKeys(1)], teacher=teacher)
    whole = model.run(Prompt.from_ids([*prompt.ids, *teacher[:-1]]), capture=[Entropy(), TopKeys(1)])
    for name in ("entropy", "top_weights"):
        steps = np.asarray(trace[name].transpose("step", ...).values).squeeze()
        rows = np.asarray(whole[name].transpose("query", ...).values).squeeze()[8:]
        np.testing.assert_allclose(steps, rows, atol=1e-4, err_msg=name)
    torch.testing.assert_close(trace.logits[0], whole.logits[0, 8:].float(), atol=1e-3, rtol=1e-3)


def _generation_with_encoder(model: Any) -> None:
    inputs = random_inputs(model.hf, length=4)
    teacher = [7, 11, 13, 17]
    asked = [Entropy(stack="decoder", name="own"), Entropy(stack="cross", name="cross")]
    trace = model.trace(inputs, capture=asked, teacher=teacher)
    whole = dict(inputs)
    whole["decoder_input_ids"] = torch.cat([inputs["decoder_input_ids"], torch.tensor([teacher[:-1]])], dim=1)
    run = model.run(whole, capture=asked)
    for name in ("own", "cross"):
        steps = np.asarray(trace[name].transpose("step", ...).values).squeeze()
        rows = np.asarray(run[name].transpose("query", ...).values).squeeze()[3:]
        np.testing.assert_allclose(steps, rows, atol=1e-4, err_msg=name)


CAPABILITIES: dict[str, Callable[[Any], None]] = {
    "patterns": patterns,
    "statistics": statistics,
    "streams": streams,
    "head edits": head_edits,
    "knock-out": knock_out,
    "padding": padding,
    "generation": generation,
}
"""Name in the table → check."""


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, capability):
    try:
        CAPABILITIES[capability](model_of(family))
    except NotApplicable:
        pytest.skip(f"{capability} makes no sense for {family}")


def test_the_documented_table_names_every_family_and_capability():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    again = "run python scripts/families_table.py"
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)[: len(FAMILIES)] == FAMILIES, again
    for capability in CAPABILITIES:
        assert f"| {capability} |" in page, again
