"""The whole context in a real browser: from the map of 8192 tokens down to weights that are known from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.app.harness import wait_for

pytestmark = pytest.mark.slow

LENGTH = 8192
HEAD = 4
"""Of the first layer, whose queries and keys need no other layer."""
RUN = 600_000
"""Milliseconds that the run may take on a machine with busy neighbours."""


@pytest.fixture(scope="module")
def whole(server: Any) -> tuple[str, torch.Tensor, torch.Tensor]:
    """Return the name of a run of the whole context; queries and keys of ``HEAD`` in float64, by transformers."""
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    import headscope as hs
    from headscope.app.runs import Recipe
    from headscope.app.workspace import Workspace
    from headscope.data import texts
    from headscope.models.carried import ensure

    model = hs.load("smollm2-135m", validate=False)
    prompt = texts(model, n=1, length=LENGTH)[0].prompt(model)
    assert len(prompt) == LENGTH
    recipe = Recipe("smollm2-135m", prompt.text)
    recipe.save(Workspace(server.workspace))
    hf = AutoModelForCausalLM.from_pretrained(ensure("smollm2-135m"), dtype=torch.float64)
    layer = hf.model.layers[0]
    with torch.no_grad():
        x = hf.model.embed_tokens(torch.tensor([list(prompt.ids)]))
        cos, sin = hf.model.rotary_emb(x, torch.arange(LENGTH)[None])
        x = layer.input_layernorm(x)
        q, k = (
            part(x).unflatten(-1, (-1, 64)).transpose(1, 2) for part in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
    return recipe.id, q[0, HEAD], k[0, HEAD // 3]


def pattern(q: torch.Tensor, k: torch.Tensor, rows: range) -> np.ndarray:
    at = torch.tensor(rows)
    logits = (q[at] @ k.T / 8).masked_fill(torch.arange(LENGTH) > at[:, None], -torch.inf)
    return logits.softmax(-1).numpy()


def debug(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("() => Headscope.parts.active.head.debug()")
    return found


def still(page: Any) -> bool:
    page.wait_for_timeout(100)
    return not debug(page)["pending"]


def test_zooming_into_the_whole_context_ends_at_the_weights_themselves(page: Any, server: Any, whole: Any) -> None:
    run, q, k = whole
    page.goto(f"{server.url}explore?run={run}&head=0.{HEAD}")
    page.wait_for_selector("[data-panel=head][data-state=ready]", timeout=RUN)
    assert page.evaluate("() => Headscope.parts.active.meta.length") == LENGTH
    first = debug(page)
    assert first["mode"] == "map"
    assert first["level"] == 5
    box = page.locator("[data-panel=head] .hs-stage").bounding_box()
    plot = first["plot"]
    # A point three quarters down; the wheel zooms to where the pointer is, within the edges of the map.
    x, y = box["x"] + plot["x"] + 6040 * first["scale"], box["y"] + plot["y"] + 6144 * first["scale"]
    page.mouse.move(x, y)
    levels = [first["level"]]
    for _ in range(60):
        page.mouse.wheel(0, -240)
        wait_for(lambda: still(page), 60)
        levels.append(debug(page)["level"])
        if levels[-1] == 0:
            break
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)
    page.mouse.move(x - 3, y)
    wait_for(lambda: still(page) and debug(page)["hover"], 60)
    seen = debug(page)
    query, key = seen["under"]["query"], seen["under"]["key"]
    assert 6000 < query < 6300
    assert 3000 < key < query
    truth = pattern(q, k, range(query, query + 1))[0]
    assert seen["hover"]["value"] == pytest.approx(truth[key], abs=1e-6)
    said = page.locator("[data-panel=head]").inner_text()
    shown = float(re.findall(r"(\d\.\d+(?:e−\d+)?)", said.split("→")[-1])[0].replace("−", "-"))
    assert shown == pytest.approx(truth[key], abs=6e-5, rel=1e-2)

    # Whole tiles, as the server gives them: exact ones, and pooled ones of another level.
    def tile(level: int, row: int, col: int, reduce: str) -> np.ndarray:
        url = f"/api/run/{run}/tile/0/{HEAD}/{level}/{row}/{col}?reduce={reduce}"
        values = page.evaluate(
            "async (url) => Array.from(new Float32Array(await (await fetch(url)).arrayBuffer()))", url
        )
        return np.reshape(values, (256, 256))

    row, col = query // 256, key // 256
    rows, cols = slice(row * 256, (row + 1) * 256), slice(col * 256, (col + 1) * 256)
    exact = pattern(q, k, range(rows.start, rows.stop))
    assert np.abs(tile(0, row, col, "max") - exact[:, cols]).max() < 1e-6
    side = 256 << 2
    lower = pattern(q, k, range(4096, 4096 + side))[:, 2048 : 2048 + side].reshape(256, 4, 256, 4)
    assert np.abs(tile(2, 4096 // side, 2048 // side, "max") - lower.max((1, 3))).max() < 1e-6
    assert np.abs(tile(2, 4096 // side, 2048 // side, "mean") - lower.mean((1, 3))).max() < 1e-6
