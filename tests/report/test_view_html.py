"""Runs as files: what is in them gives the oracle's numbers, and nothing in them reaches out or runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.attention.edits import AttentionEdit, Floor, Group, KnockOut, LogitEdit, Scale
from headscope.errors import RequestError
from headscope.kernels.inputs import AttentionInputs
from headscope.models.tiny import tiny
from headscope.report.view import capture
from headscope.report.view.choice import best_heads, first, telling
from headscope.report.view.html import view_page
from headscope.report.view.shape import bias_of, mask_of

FAMILIES = ["llama", "gpt2", "gemma2", "gpt_oss", "mistral", "bert", "t5", "opt"]
LENGTH = 40
EVIL = "</script><img src=x onerror=alert(1)>\u2028\x00"


class Page(HTMLParser):
    """Scripts of a page by their id, and all its elements."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: dict[str, str] = {}
        self.running: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(text)
        self.data = json.loads(self.scripts["run"])

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs) if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is None:
            return
        if "type" in self._open:
            self.scripts[str(self._open["id"])] = data
        else:
            self.running.append(data)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        facts, raw = self.data["blocks"][name], base64.b64decode(self.scripts[f"block-{name}"])
        width = {"f4": 4, "i4": 4, "u1": 1, "f2": 2, "bf2": 2}[facts["type"]]
        if facts["packed"]:
            raw = np.frombuffer(zlib.decompress(raw), np.uint8).reshape(width, -1).T.tobytes()
        if facts["type"] == "bf2":
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(raw, f"<{facts['type']}")

    def pattern(self, layer: int, head: int) -> np.ndarray[Any, Any]:
        """Attention from what the file holds, written here once more."""
        facts, size = self.data["heads"][f"{layer}.{head}"], self.data["meta"]["length"]
        q, k = (self.array(facts[name]).astype(np.float64).reshape(size, -1) for name in ("q", "k"))
        logits = q @ k.T * facts["scale"]
        if facts["softcap"] is not None:
            logits = facts["softcap"] * np.tanh(logits / facts["softcap"])
        queries, keys = np.mgrid[:size, :size]
        if "bias" in facts:
            bias = self.array(facts["bias"]["block"])
            at = {"distance": keys - queries + size - 1, "key": keys, "pair": queries * size + keys}
            logits = logits + bias[at[facts["bias"]["kind"]]]
        seen = keys <= queries if facts["causal"] else np.ones_like(keys, bool)
        if facts["mask"]:
            seen = (keys >= self.array(facts["mask"]["from"])[:, None]) & (
                keys < self.array(facts["mask"]["to"])[:, None]
            )
            if "bits" in facts["mask"]:
                seen &= np.unpackbits(self.array(facts["mask"]["bits"]).reshape(size, -1), axis=1)[:, :size] == 1
        found = np.where(seen, np.exp(logits - self.array(facts["lse"])[:, None]), 0)
        for one in facts.get("factors", []):
            found = found * self.array(one["table"]).reshape(size, one["count"])[:, self.array(one["groups"])]
        return self.array(facts["pattern"]).reshape(size, size) if "pattern" in facts else found


def loaded(family: str = "llama", **options: Any) -> Any:
    return hs.load(tiny(family, **options), validate=False)


def prompt(model: Any, length: int = LENGTH, **regions: Any) -> Any:
    ids = torch.randint(5, 90, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    return model.prompt_from_ids(ids, regions or {"span": range(4, 9)})


def check(page: Page, view: Any) -> None:
    for name in page.data["heads"]:
        layer, head = map(int, name.split("."))
        exact = view.tile(layer, head, 0, 0, 0)
        assert np.abs(page.pattern(layer, head) - exact).max() < 1e-5, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_what_gives_every_pattern_exactly(family) -> None:
    model = loaded(family)
    view = capture.look(model, prompt(model))
    page = Page(view_page(view))
    assert len(page.data["heads"]) == sum(view.meta()["heads"])
    check(page, view)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    "edit",
    [
        AttentionEdit(((0, 1), (1, 0)), (Group("span", ("span",)),), Scale((2.0,), rest=0.05), queries="tail"),
        AttentionEdit(((0, 1), (1, 0)), (Group("span", ("span",)),), Floor(0.5)),
        KnockOut(((0, 1), (1, 0)), ("span",)),
        LogitEdit(((0, 1), (1, 0)), temperature=1.7, bias=0.8, boost=0.3, regions=("span",)),
    ],
    ids=["scale", "floor", "knock-out", "logits"],
)
def test_patterns_under_edits_are_those_after_them(family, edit) -> None:
    model = loaded(family)
    given = prompt(model, span=range(4, 9), tail=range(20, 40))
    with model.edited(edit, *([AttentionEdit(((1, 0),), (Group("tail", ("tail",)),), Scale((0.5,)))])):
        view = capture.look(model, given)
    plain = capture.look(model, given)
    page = Page(view_page(view))
    assert np.abs(view.tile(1, 0, 0, 0, 0) - plain.tile(1, 0, 0, 0, 0)).max() > 1e-3
    check(page, view)
    assert "touched" in page.data["heads"]["1.0"]
    assert "touched" not in page.data["heads"]["0.0"]


def test_halves_are_held_as_they_are() -> None:
    model = hs.load(tiny("llama").to(torch.bfloat16), validate=False)
    view = capture.look(model, prompt(model))
    page = Page(view_page(view))
    one, _ = view.call(0, 0)
    facts = page.data["heads"]["0.0"]
    assert page.data["blocks"][facts["q"]]["type"] == "bf2"
    assert (page.array(facts["q"]) == one.q[0, 0].float().numpy().reshape(-1)).all()
    check(page, view)


@pytest.mark.parametrize("causal", [True, False])
def test_masks_of_any_form(causal) -> None:
    size = 37
    for seed, share in enumerate((0.3, 0.9, 1.0)):
        random = torch.Generator().manual_seed(seed)
        seen = torch.rand(1, 1, size, size, generator=random) < share
        q = torch.zeros(1, 1, size, 4)
        for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)):
            found = mask_of(AttentionInputs(q, q, q, 1.0, mask=mask, causal=causal))
            keys = np.arange(size)
            visible = (keys >= found.first[:, None]) & (keys < found.end[:, None])
            if found.bits is not None:
                visible &= np.unpackbits(found.bits, axis=1)[:, :size] == 1
            want = seen[0, 0].numpy() & (np.tri(size, dtype=bool) if causal else True)
            assert (visible == want).all()
            assert (found.bits is None) == (share == 1.0)


def test_biases_are_held_in_their_shortest_form() -> None:
    size = 21
    q = torch.zeros(1, 1, size, 4)
    random = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    distance = torch.arange(size)[None, :] - torch.arange(size)[:, None]
    by_distance = torch.randn(2 * size - 1, generator=torch.Generator().manual_seed(1))[distance + size - 1]
    cases = {"pair": random, "key": random[:1].expand(size, size), "distance": by_distance}
    for kind, bias in cases.items():
        found = bias_of(AttentionInputs(q, q, q, 1.0, bias=bias[None, None]))
        assert found.kind == kind
        at = {"pair": slice(None), "key": slice(None), "distance": distance + size - 1}[kind]
        assert (found.values[at] == bias.numpy()).all()
    row = bias_of(AttentionInputs(q, q, q, 1.0, bias=random[None, None, :1]))
    assert row.kind == "key"
    hidden = torch.zeros(1, 1, size, size).index_fill(3, torch.tensor([3]), torch.finfo(torch.float32).min)
    assert bias_of(AttentionInputs(q, q, q, 1.0, mask=hidden)) is None
    both = bias_of(AttentionInputs(q, q, q, 1.0, mask=torch.where(hidden < 0, hidden, 0.5), bias=random[None, None]))
    assert both.kind == "pair"
    want = random + torch.where(hidden[0, 0] < 0, 0.0, 0.5)
    assert np.allclose(both.values, want.numpy())


def test_statistics_and_thumbnails_of_all_heads_are_always_there() -> None:
    model = loaded()
    view = capture.look(model, prompt(model))
    page = Page(view_page(view, heads=[(1, 2)]))
    assert list(page.data["heads"]) == ["1.2"]
    for stat in view.meta()["stats"]:
        held = page.array(page.data["stats"][stat["name"]]).reshape(2, 4)
        assert np.array_equal(held, view.stat(stat["name"]), equal_nan=True)
    for layer in range(2):
        thumbs = page.array(page.data["thumbs"][str(layer)]).reshape(view.thumbs(layer).shape)
        assert np.abs(thumbs - view.thumbs(layer)).max() < 5e-4
    assert page.data["meta"]["held"] == ["1.2"]
    assert page.data["state"] == {"stat": "mass:span", "layer": 1, "head": 2}
    assert "held" not in Page(view_page(view)).data["meta"]


def test_the_limit_holds_and_what_fits_is_the_best() -> None:
    model = loaded(max_position_embeddings=600)
    view = capture.look(model, prompt(model, 500))
    whole = view_page(view)
    all_heads, order = Page(whole), best_heads(view)
    assert sorted(order) == [(layer, head) for layer in range(2) for head in range(4)]
    data = sum(len(text) for name, text in all_heads.scripts.items() if name != "run")
    limit = 0.6 * data / 1e6
    some = Page(view_page(view, limit_mb=limit))
    held = [tuple(map(int, name.split("."))) for name in some.data["heads"]]
    assert 1 <= len(held) < 8
    assert held == order[: len(held)]
    assert sum(len(text) for name, text in some.scripts.items() if name != "run") <= limit * 1e6
    assert set(some.data["blocks"]) == {name.removeprefix("block-") for name in some.scripts if name != "run"}
    layer, head = held[0]
    exact = np.stack([view.row(layer, head, query) for query in range(500)])
    assert np.abs(some.pattern(layer, head) - exact).max() < 1e-5
    note = view_page(view, limit_mb=limit).split('<footer class="file">')[1].split("</footer>")[0]
    assert f"Of 8 heads this file holds {len(held)} heads in full" in note
    assert "<footer" not in whole


def test_heads_of_a_named_region_come_first() -> None:
    model = loaded()
    view = capture.look(model, prompt(model, needle=range(4, 9), most=range(9, 40), other=range(20, 22)))
    order = best_heads(view)
    assert telling(view) == ["mass:other", "mass:needle"]
    values = {name: view.stat(f"mass:{name}") for name in ("needle", "other")}
    assert order[0] == tuple(np.unravel_index(values["other"].argmax(), values["other"].shape))
    assert order.index(tuple(np.unravel_index(values["needle"].argmax(), (2, 4)))) <= 1


def test_a_region_that_gets_next_to_nothing_is_not_shown_first() -> None:
    model = loaded()
    view = capture.look(model, prompt(model, needle=range(4, 9), other=range(20, 22)))
    for other, needle, stat in [(0.3, 0.3, "mass:other"), (0.01, 0.3, "mass:needle"), (0.01, 0.01, None)]:
        for name, value in [("mass:other", other), ("mass:needle", needle)]:
            view._stats[name] = replace(view._stats[name], values=np.full((2, 4), value, np.float32))
        assert first(view, [(1, 2)]).get("stat") == stat
    assert first(view, []) == {}


def test_keys_are_shared_by_a_group() -> None:
    model = loaded("llama")
    page = Page(view_page(capture.look(model, prompt(model))))
    heads = page.data["heads"]
    assert heads["0.0"]["k"] == heads["0.1"]["k"] != heads["0.2"]["k"]
    assert heads["0.0"]["q"] != heads["0.1"]["q"]


def test_only_its_own_scripts_run_and_nothing_is_loaded() -> None:
    model = loaded()
    text = view_page(capture.look(model, prompt(model)))
    page = Page(text)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.running}
    assert set(re.findall(r"sha256-([^']+)", policy)) == hashes
    assert len(page.running) == 2
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not str(attributes.get("src", "data:")).startswith(("http", "//"))
        assert not str(attributes.get("href", "data:")).startswith(("http", "//"))


def test_hostile_tokens_and_names_stay_text() -> None:
    model = loaded()
    view = capture.look(model, prompt(model))
    object.__setattr__(view.prompt, "pieces", (EVIL,) * LENGTH)
    view._model = EVIL
    page = Page(view_page(view, heads=[(0, 0)], again=f"{EVIL}[{{head}}]"))
    assert page.data["meta"]["tokens"] == [EVIL] * LENGTH
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert len(page.running) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(2, 0)]}, "no head \\(2, 0\\).*layers run from 0 to 1"),
        ({"heads": [(1, 4)]}, "layer 1 has heads 0 to 3"),
        ({"heads": [3]}, "takes pairs"),
        ({"heads": []}, "name no head"),
        ({"layers": [5]}, "Layer 5 has no heads"),
        ({"theme": "pink"}, "theme='pink'"),
        ({"limit_mb": 0}, "limit_mb=0"),
        ({"layers": [0, 1], "limit_mb": 0.02}, "8 heads of 40 tokens do not fit into 0.02 MB; . of them do"),
    ],
)
def test_what_cannot_be_is_told(options, message) -> None:
    model = loaded()
    view = capture.look(model, prompt(model))
    with pytest.raises(RequestError, match=message):
        view_page(view, **options)


def test_layers_and_heads_together_each_once() -> None:
    model = loaded()
    page = Page(view_page(capture.look(model, prompt(model)), heads=[(1, 3), (0, 2)], layers=[1]))
    assert list(page.data["heads"]) == ["1.3", "0.2", "1.0", "1.1", "1.2"]


@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_colours_follow_the_system_or_the_choice(theme) -> None:
    model = loaded()
    text = view_page(capture.look(model, prompt(model)), theme=theme)
    assert ("prefers-color-scheme:dark){:root" in text) == (theme == "auto")
    assert (f'<html lang="en" data-mantine-color-scheme="{theme}">' in text) == (theme != "auto")


def test_long_patterns_come_with_their_overview() -> None:
    model = loaded(max_position_embeddings=2000)
    view = capture.look(model, prompt(model, 1100))
    assert view.meta()["levels"] == 4
    page = Page(view_page(view, heads=[(1, 2)]))
    held = page.array(page.data["heads"]["1.2"]["overview"]).reshape(138, 138)
    assert np.abs(held - view.tile(1, 2, 3, 0, 0, "max")).max() < 1e-6
    short = Page(view_page(capture.look(model, prompt(model, 1000)), heads=[(1, 2)]))
    assert "overview" not in short.data["heads"]["1.2"]


def test_a_short_prompt() -> None:
    model = loaded()
    view = capture.look(model, model.prompt_from_ids([5]))
    check(Page(view_page(view)), view)
