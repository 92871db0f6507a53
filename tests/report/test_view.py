"""The view of one run against the whole pattern of the same run."""

from __future__ import annotations

import itertools
import json
import math
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headscope as hs
from headscope.attention import requests as ask
from headscope.attention.edits import AttentionEdit, Floor, Group, KnockOut
from headscope.data.organisms import organism
from headscope.errors import RequestError, UnsupportedError
from headscope.kernels import reference
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny
from headscope.report.view import View, capture, source, statistics
from headscope.report.view.memory import Recent
from headscope.report.view.source import TILE, bins, levels, spans, viewed_stack

FAMILIES = ["gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3", "gemma2", "gpt_oss", "bert", "t5"]
LENGTH = 41
SIDE = 8
REGIONS = {"needle": [3, 4, 9], "tail": [38, 39, 40]}


def prompt(length: int = LENGTH, seed: int = 0) -> Prompt:
    ids = torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Prompt.from_ids(ids, {name: [at for at in found if at < length] or [0] for name, found in REGIONS.items()})


class Case:
    """A model with its view of one prompt, and the pattern that it is a view of."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.model = hs.load(tiny(family))
        self.view = capture.look(self.model, prompt())
        stack: Any = viewed_stack(self.model)
        run = self.model.run(prompt(), [ask.Pattern(stack=stack)])
        self.pattern = run["pattern"].values[:, 0].astype(np.float64)
        self.heads = [(layer, head) for layer in range(2) for head in range(4)]


_CASES: dict[str, Case] = {}


@pytest.fixture(params=FAMILIES)
def case(request, monkeypatch) -> Case:
    """A view in tiles of 8 cells, so that a short prompt has a pyramid of several levels."""
    monkeypatch.setattr(source, "TILE", SIDE)
    if request.param not in _CASES:
        _CASES[request.param] = Case(request.param)
    found = _CASES[request.param]
    found.view._recent = Recent(1 << 20)
    return found


@pytest.fixture
def llama() -> Any:
    return hs.load(tiny("llama"))


def close(found: Any, want: Any, within: float = 2e-6) -> None:
    assert np.shape(found) == np.shape(want)
    assert np.abs(np.asarray(found, np.float64) - want).max() < within


# -- patterns ----------------------------------------------------------------------------------------------------------


def test_tiles_of_all_levels_are_the_pooled_pattern(case) -> None:
    view = case.view
    assert view.meta()["levels"] == 4
    for layer, head in case.heads[::3]:
        for level in range(4):
            size, side = 1 << level, SIDE << level
            count = -(-LENGTH // side)
            for row, col in ((0, 0), (count - 1, 0), (count - 1, count - 1), (count // 2, count // 2)):
                part = case.pattern[layer, head, row * side :, col * side :][:side, :side]
                for reduce, function in (("mean", np.mean), ("max", np.max)):
                    want = [
                        [function(part[i : i + size, j : j + size]) for j in range(0, part.shape[1], size)]
                        for i in range(0, part.shape[0], size)
                    ]
                    close(view.tile(layer, head, level, row, col, reduce), want)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_neuron_row_column_and_tile_say_the_same(case, data) -> None:
    layer, head = data.draw(st.sampled_from(case.heads))
    query, key = data.draw(st.integers(0, LENGTH - 1)), data.draw(st.integers(0, LENGTH - 1))
    view = case.view
    found = view.neuron(layer, head, query, key)
    weight = found["weight"]
    assert weight == pytest.approx(case.pattern[layer, head, query, key], abs=2e-6)
    assert view.tile(layer, head, 0, query // SIDE, key // SIDE)[query % SIDE, key % SIDE] == pytest.approx(
        weight, abs=1e-6
    )
    assert view.row(layer, head, query)[key] == pytest.approx(weight, abs=1e-6)
    assert view.column(layer, head, key)[query] == pytest.approx(weight, abs=1e-6)
    assert found["raw"] == pytest.approx(sum(found["product"]), abs=1e-9)
    assert found["visible"] == (weight > 0)
    assert (found["note"] is None) == found["visible"]
    if found["visible"]:
        capped = found["raw"]
        if found["softcap"] is not None:
            capped = found["softcap"] * math.tanh(capped / found["softcap"])
        assert capped + found["bias"] == pytest.approx(found["logit"], abs=1e-9)
        assert math.exp(found["logit"] - found["lse"]) == pytest.approx(weight, abs=1e-9)


def test_rows_and_columns(case) -> None:
    for layer, head in case.heads[::3]:
        for at in (0, 17, LENGTH - 1):
            close(case.view.row(layer, head, at), case.pattern[layer, head, at])
            close(case.view.column(layer, head, at), case.pattern[layer, head, :, at])


@pytest.mark.parametrize(
    ("family", "rotary", "softcap", "sinks", "bias"),
    [
        ("gpt2", False, None, False, False),
        ("gpt_neox", True, None, False, False),
        ("llama", True, None, False, False),
        ("gemma2", True, 5.0, False, False),
        ("gpt_oss", True, None, True, False),
        ("bert", False, None, False, False),
        ("t5", False, None, False, True),
    ],
)
def test_neurons_of_families_know_what_shapes_their_logits(family, rotary, softcap, sinks, bias) -> None:
    view = _CASES.setdefault(family, Case(family)).view
    found = view.neuron(1, 2, 30, 28)
    assert (found["rotary"], found["softcap"]) == (rotary, softcap)
    assert view.meta()["sinks"] == [sinks, sinks]
    assert (found["bias"] != 0) == bias
    assert (view.row(1, 2, 30).sum() < 0.999) == sinks
    json.dumps(found)


def test_queries_and_keys_are_those_after_rotation(llama) -> None:
    """Equal tokens have equal queries before rotation; turned by their positions they differ, and keep their length."""
    same = Prompt.from_ids([7] * 12)
    view = capture.look(llama, same)
    far, near = (np.array(view.neuron(0, 1, query, 2)["q"]) for query in (11, 3))
    assert np.abs(far - near).max() > 1e-2
    assert np.linalg.norm(far) == pytest.approx(np.linalg.norm(near), rel=1e-5)
    plain = capture.look(hs.load(tiny("t5")), same)
    close(plain.neuron(0, 1, 11, 2)["q"], plain.neuron(0, 1, 3, 2)["q"], 1e-5)


def test_thumbnails_hold_the_largest_weights(case) -> None:
    view = case.view
    for layer in range(2):
        found = view.thumbs(layer)
        assert found.shape == (4, 32, 32)
        close(found.max((1, 2)), case.pattern[layer].max((1, 2)))
        edges = [(math.floor(i * LENGTH / 32), math.ceil((i + 1) * LENGTH / 32)) for i in range(32)]
        if bins(LENGTH) == LENGTH:
            close(found[1, 4, 2], case.pattern[layer, 1, slice(*edges[4]), slice(*edges[2])].max())


def test_thumbnails_from_the_run_and_from_tiles_agree(llama, monkeypatch) -> None:
    monkeypatch.setattr(source, "TILE", 32)
    monkeypatch.setattr(capture, "TILE", 32)
    view = capture.look(llama, prompt(128))
    assert view._thumbs
    captured = view.thumbs(1)
    view._recent, view._thumbs = Recent(1 << 20), {}
    close(captured, view.thumbs(1))


def test_levels_end_with_one_tile() -> None:
    for length in (1, 255, 256, 257, 512, 513, 2048, 5000, 8192, 8193, 100_000):
        n = levels(length)
        assert bins(length) == -(-length // 2 ** (n - 1)) <= TILE
        assert n == 1 or -(-length // 2 ** (n - 2)) > TILE


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_are_means_over_queries(case) -> None:
    pattern, view = case.pattern, case.view
    shape = (2, 4)
    close(view.stat("sink"), pattern[..., 0].mean(-1))
    for region, keys in REGIONS.items():
        close(view.stat(f"mass:{region}"), pattern[..., keys].sum(-1).mean(-1))
    entropy = -(pattern * np.log(np.where(pattern > 0, pattern, 1))).sum(-1)
    close(view.stat("entropy"), entropy.mean(-1), 2e-5)
    close(view.stat("largest"), pattern.max(-1).mean(-1))
    apart = np.abs(np.arange(LENGTH)[:, None] - np.arange(LENGTH))
    close(view.stat("locality"), ((pattern * apart).sum(-1) / pattern.sum(-1)).mean(-1), 1e-4)
    seen = (pattern > 0).sum(2)
    means = pattern.sum(2) / seen.clip(1)
    causal = view.meta()["causal"][0]
    last = LENGTH - statistics.SEEN + 1 if causal else LENGTH
    close(view.stat("received-max"), means[..., :last].max(-1), 1e-5)
    assert view.stat("sink").shape == shape
    names = [stat["name"] for stat in view.meta()["stats"]]
    expected = ["sink", "mass:needle", "mass:tail", "entropy", "locality", "largest", "received-max"]
    assert names == expected
    for stat in view.meta()["stats"]:
        values = view.stat(stat["name"])
        assert set(stat) == {"name", "label", "unit", "low", "high", "about"}
        assert (values >= stat["low"] - 1e-6).all()
        # Mass on a region is small where the region is: its scale ends at the largest there is.
        assert (stat["high"] is None) == stat["name"].startswith("mass:")
        assert (values <= (1.0 if stat["high"] is None else stat["high"]) + 1e-6).all()
        assert stat["about"].endswith(".")


def test_a_prompt_of_one_token(llama) -> None:
    view = capture.look(llama, Prompt.from_ids([7]))
    assert view.tile(0, 0, 0, 0, 0).tolist() == [[1.0]]
    assert view.stat("entropy").max() < 1e-6
    assert view.stat("locality").max() == 0
    assert view.thumbs(1).min() == 1


def test_a_run_with_fewer_captures_has_fewer_statistics(llama) -> None:
    run = llama.run(prompt(), [ask.QK(), ask.Entropy()])
    view = View(run, llama)
    assert [stat["name"] for stat in view.meta()["stats"]] == ["entropy"]
    want = llama.run(prompt(), [ask.Pattern()])["pattern"].values[1, 0, 2]
    close(view.tile(1, 2, 0, 0, 0), want)
    assert view.thumbs(1).shape == (4, 32, 32)
    with pytest.raises(RequestError, match="no statistic 'sink'"):
        view.stat("sink")


def test_statistics_of_some_queries_are_not_taken_for_those_of_all(llama) -> None:
    asks = [ask.QK(), ask.Entropy(queries="needle"), ask.Mass(["needle"], queries=[3]), ask.Received()]
    assert View(llama.run(prompt(), asks), llama).meta()["stats"] == []


def test_a_run_of_some_layers_and_heads(llama) -> None:
    asks = [ask.QK(layers=[1]), ask.Entropy(heads=[(1, 3), (0, 1)]), ask.Logsumexp(heads=[(1, 3)])]
    view = View(llama.run(prompt(), asks), llama)
    assert view.meta()["heads"] == [0, 4]
    assert np.isfinite(view.stat("entropy")).sum() == 2
    assert view.row(1, 3, 20).sum() == pytest.approx(1, abs=1e-6)
    with pytest.raises(RequestError, match="Layer 0 has no queries and keys"):
        view.row(0, 1, 20)


def test_a_run_of_tensors_or_text_is_a_run_of_a_prompt(llama) -> None:
    ids = torch.tensor([prompt().ids])
    view = View(llama.run({"input_ids": ids}, [ask.QK()]), llama)
    assert view.length == LENGTH
    assert len(view.meta()["tokens"]) == LENGTH


def test_runs_that_no_view_can_be_made_of(llama) -> None:
    with pytest.raises(RequestError, match=r"capture hs\.QK"):
        View(llama.run(prompt(), [ask.Entropy()]), llama)
    with pytest.raises(RequestError, match="one prompt"):
        View(llama.run([prompt(), prompt(seed=1)], [ask.QK()]), llama)
    t5 = hs.load(tiny("t5"))
    with pytest.raises(RequestError, match="name the stack"):
        View(t5.run(prompt(), [ask.QK(stack="cross")]), t5)


def test_models_that_read_no_text_are_refused() -> None:
    for family in ("vit", "whisper"):
        model = hs.load(tiny(family))
        with pytest.raises(UnsupportedError, match="reads no text"):
            capture.view_requests(model, prompt())
        with pytest.raises(UnsupportedError, match="reads no text"):
            capture.estimate(model, 10)


# -- what there is -----------------------------------------------------------------------------------------------------


def test_meta_is_json_and_says_what_there_is(case) -> None:
    meta = json.loads(json.dumps(case.view.meta()))
    assert meta["layers"] == 2
    assert meta["heads"] == [4, 4]
    assert meta["length"] == meta["prompt_length"] == len(meta["tokens"]) == LENGTH
    assert meta["regions"] == {"bos": [[0, 1]], "needle": [[3, 5], [9, 10]], "tail": [[38, 41]]}
    assert (meta["tile"], meta["levels"], meta["thumb"]) == (SIDE, 4, 32)
    windows = {"mistral": [6, 6], "gemma2": [6, None], "gpt_oss": [6, None]}
    assert meta["window"] == windows.get(case.family, [None, None])
    assert meta["causal"] == [case.family not in ("bert", "t5")] * 2


def test_generated_tokens_are_told_from_the_prompt(llama) -> None:
    asked = prompt()
    written = replace(asked, regions=asked.regions | {"generated": tuple(range(30, LENGTH))})
    meta = capture.look(llama, written).meta()
    assert meta["prompt_length"] == 30
    assert "mass:generated" in [stat["name"] for stat in meta["stats"]]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_spans_hold_the_positions_and_no_others(positions) -> None:
    found = spans(tuple(sorted(positions)))
    assert {at for start, end in found for at in range(start, end)} == positions
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_is_what_a_view_keeps(family) -> None:
    model = hs.load(tiny(family))
    view = capture.look(model, prompt(100))
    held = capture.estimate(model, 100)
    # Statistics of heads, a few numbers each, are not in it.
    assert view.nbytes <= held + 4096
    assert held <= 1.5 * view.nbytes + 40_000


def test_what_is_remembered_is_bounded(llama, monkeypatch) -> None:
    monkeypatch.setattr(source, "TILE", SIDE)
    view = capture.look(llama, prompt())
    before = view.nbytes
    view._recent = Recent(5 * SIDE * SIDE * 4)
    for layer in range(2):
        for row in range(5):
            for col in range(5):
                tile = view.tile(layer, 1, 0, row, col)
                assert tile is view.tile(layer, 1, 0, row, col)
                with pytest.raises(ValueError, match="read-only"):
                    tile[0, 0] = 2
    assert view.nbytes - before == 5 * SIDE * SIDE * 4


def test_numbers_out_of_range_are_told(llama) -> None:
    view = capture.look(llama, prompt())
    wrong: dict[str, Any] = {
        "Layer 2 is out of range: 0 to 1": lambda: view.row(2, 0, 0),
        "Layer -1 is out of range": lambda: view.thumbs(-1),
        "Head 4 is out of range: layer 1 has heads 0 to 3": lambda: view.tile(1, 4, 0, 0, 0),
        "Token 41 is out of range: 0 to 40": lambda: view.row(0, 0, LENGTH),
        "Token -1 is out of range": lambda: view.column(0, 0, -1),
        "Token 99 is out of range": lambda: view.neuron(0, 0, 3, 99),
        "Level 1 is out of range: there are levels 0 to 0": lambda: view.tile(0, 0, 1, 0, 0),
        r"Tile \(0, 1\) of level 0 is out of range: 0 to 0": lambda: view.tile(0, 0, 0, 0, 1),
        "reduce='median'": lambda: view.tile(0, 0, 0, 0, 0, "median"),
        "no statistic 'entropi'. Did you mean 'entropy'": lambda: view.stat("entropi"),
        "no table 'rows'. Did you mean 'row'": lambda: view.frame("rows"),
        "'row' does not take layer": lambda: view.frame("row", layer=1),
    }
    for match, call in wrong.items():
        with pytest.raises(RequestError, match=match):
            call()


# -- edits, threads, tables --------------------------------------------------------------------------------------------


def test_edits_are_seen_and_neurons_say_what_was_before(llama) -> None:
    edit = AttentionEdit(((1, 2),), (Group("needle", ("needle",)),), Floor(0.6))
    plain, view = capture.look(llama, prompt()), capture.look(llama, prompt(), edits=(edit,))
    with llama.edited(edit):
        pattern = llama.run(prompt(), [ask.Pattern()])["pattern"].values[:, 0]
    for layer, head in ((1, 2), (1, 1), (0, 2)):
        close(view.tile(layer, head, 0, 0, 0), pattern[layer, head])
        close(view.row(layer, head, 30), pattern[layer, head, 30])
        close(view.column(layer, head, 4), pattern[layer, head, :, 4])
    assert pattern[1, 2, 30, 4] > 1.2 * plain.row(1, 2, 30)[4]
    found = view.neuron(1, 2, 30, 4)
    assert found["weight"] == pytest.approx(plain.neuron(1, 2, 30, 4)["weight"], abs=1e-6)
    assert found["edited"] == pytest.approx(pattern[1, 2, 30, 4], abs=1e-6)
    assert "before the edit" in found["note"]
    assert view.neuron(1, 1, 30, 4)["note"] is None
    assert view.stat("mass:needle")[1, 2] > plain.stat("mass:needle")[1, 2]


def test_hidden_keys_are_hidden(llama) -> None:
    view = capture.look(llama, prompt(), edits=(KnockOut(((0, 1),), ("needle",)),))
    assert view.column(0, 1, 4)[5:].max() == 0
    assert view.column(0, 2, 4)[5:].max() > 0
    assert view.neuron(0, 1, 20, 4)["edited"] == 0


def test_many_threads_see_one_view(llama, monkeypatch) -> None:
    monkeypatch.setattr(source, "TILE", SIDE)
    view = capture.look(llama, prompt())
    asked = [(layer, head, level) for layer in range(2) for head in range(4) for level in range(4)]
    want = {name: view.tile(*name, 0, 0, "mean").copy() for name in asked}
    view._recent = Recent(300)  # hardly anything is remembered
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for at in np.random.default_rng(seed).permutation(len(asked)):
            name = asked[at]
            same = np.array_equal(view.tile(*name, 0, 0, "mean"), want[name])
            row = view.row(name[0], name[1], 40)
            if (
                not same
                or abs(row.sum() - 1) > 1e-5
                or abs(view.neuron(name[0], name[1], 40, 3)["weight"] - row[3]) > 1e-6
            ):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert view._recent.nbytes <= 300


def test_tables_hold_the_numbers_of_the_view(case) -> None:
    view = case.view
    heads = view.frame("heads")
    assert len(heads) == 8
    assert heads.set_index(["layer", "head"]).loc[(1, 2), "entropy"] == view.stat("entropy")[1, 2]
    row, column = view.frame("row", layer=1, head=2, query=33), view.frame("column", layer=1, head=2, key=9)
    assert (row["weight"].to_numpy() == view.row(1, 2, 33)).all()
    assert (column["weight"].to_numpy() == view.column(1, 2, 9)).all()
    assert row["key_token"].tolist() == column["query_token"].tolist() == view.meta()["tokens"]
    tile = view.frame("tile", layer=1, head=2, level=0, row=2, col=1)
    for entry in tile.itertuples():
        assert entry.weight == pytest.approx(case.pattern[1, 2, entry.query, entry.key], abs=2e-6)
        assert entry.query_token == view.meta()["tokens"][entry.query]
    pooled = view.frame("tile", layer=1, head=2, level=2, row=1, col=0, reduce="max")
    for entry in pooled.itertuples():
        part = case.pattern[1, 2, entry.query : entry.query_end, entry.key : entry.key_end]
        assert entry.weight == pytest.approx(part.max(), abs=2e-6)
    assert pooled["query_end"].max() == LENGTH
    neuron = view.frame("neuron", layer=1, head=2, query=33, key=9)
    assert neuron["sum"].iloc[-1] == pytest.approx(view.neuron(1, 2, 33, 9)["raw"], abs=1e-9)


# -- looking -----------------------------------------------------------------------------------------------------------


def test_looking_tells_of_every_layer(case) -> None:
    told: list[tuple[int, int]] = []
    checked: list[int] = []
    capture.look(
        case.model, prompt(), progress=lambda done, total: told.append((done, total)), check=lambda: checked.append(1)
    )
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert len(checked) == 2


def test_looking_can_be_called_off_and_leaves_nothing(llama) -> None:
    class CalledOff(Exception):
        pass

    def check() -> None:
        raise CalledOff

    with pytest.raises(CalledOff):
        capture.look(llama, prompt(), check=check, edits=(KnockOut(((0, 1),), ("needle",)),))
    assert not llama.edits
    assert capture.look(llama, prompt()).length == LENGTH


def test_layers_with_unlike_numbers_of_heads_come_as_pairs(llama, monkeypatch) -> None:
    """No tiny family has such layers; their requests, of pairs, give the same view."""
    whole = capture.look(llama, prompt())
    pairs = llama.spec.heads()
    asks = [
        request if isinstance(request, ask.QK) else type(request)(**{**request.parameters(), "heads": pairs})
        for request in capture.view_requests(llama, prompt())
    ]
    found = View(llama.run(prompt(), asks), llama)
    for stat in whole.meta()["stats"]:
        close(found.stat(stat["name"]), whole.stat(stat["name"]))


def test_the_likeliest_next_tokens(tmp_path) -> None:
    grown = organism("llama", 0)
    model = hs.load(grown.save(tmp_path / "organism"))
    view = capture.look(model, model.prompt_from_ids(range(5, 20)))
    best = view.meta()["next"]
    assert len(best) == 5
    assert best == sorted(best, key=lambda found: -found["probability"])
    logits = model.run(view.prompt).logits[0, -1]
    assert best[0]["token"] == model.tokenizer.decode([int(logits.argmax())])
    assert best[0]["probability"] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-5)


@pytest.mark.slow
def test_real_weights_at_1500_tokens(smollm2) -> None:
    """Level 0 to the last digit of float32; overviews within the rounding of logits of up to 100."""
    ids = torch.randint(100, 40_000, (1500,), generator=torch.Generator().manual_seed(0)).tolist()
    view = capture.look(smollm2, Prompt.from_ids(ids))
    for layer, head in ((0, 3), (9, 4), (18, 8)):
        one, _ = view.call(layer, head)
        truth = reference.pattern(replace(one, q=one.q.double(), k=one.k.double()))[0, 0].numpy()
        close(view.tile(layer, head, 0, 4, 3), truth[1024:1280, 768:1024], 1e-7)
        close(view.row(layer, head, 1400), truth[1400], 1e-7)
        close(view.column(layer, head, 0), truth[:, 0], 5e-6)
        top, last = view.tile(layer, head, 3, 0, 0, "max"), view.tile(layer, head, 2, 1, 1, "mean")
        assert top.shape == (188, 188)
        close(top[100, 99], truth[800:808, 792:800].max(), 5e-6)
        close(last[-1, -1], truth[1496:, 1496:].mean(), 5e-6)
