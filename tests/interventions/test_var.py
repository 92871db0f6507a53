"""VAR: which rows it edits, what moves where, and massive dimensions that are found where they were planted."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import DataError, RequestError
from headscope.interventions import VAR, sink_dimensions
from headscope.models.tiny import tiny
from tests.interventions.small import patterns, prompt, small

HEAD = ((0, 1),)
LOUD = 7
"""The planted dimension."""
SINKS = (1, 40)
"""Tokens that carry it."""


def embedded(model, ids) -> np.ndarray:
    """The stream at the input of layer 0, normalised to a root mean square of 1 (T, D)."""
    x = model.hf.get_input_embeddings().weight[list(ids)].detach().numpy().astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True))


def expected(a: np.ndarray, sink: np.ndarray, inside: np.ndarray, keep: float, portion: float, least: float):
    """VAR by its formula on one pattern (T, T), and which rows it edits."""
    out, edited = a.copy(), []
    for row in range(int(np.flatnonzero(inside).max()) + 1, len(a)):
        region, held = a[row, inside].sum(), a[row, inside & sink].sum()
        if not (held > 0 and region >= least and held <= portion * region):
            continue
        edited.append(row)
        freed = (1 - keep) * a[row, sink].sum()
        out[row, sink] *= keep
        takers = inside & ~sink
        out[row, takers] += freed * a[row, takers] / a[row, takers].sum()
    return out, edited


@pytest.mark.parametrize(("portion", "least"), [(1.0, 0.0), (0.6, 0.1), (0.3, 0.2)])
def test_rows_that_look_at_the_region_give_its_tokens_what_sinks_held(portion, least) -> None:
    model = small()
    x, dims, tau = embedded(model, prompt(model).ids), (0, 1, 2), 1.5
    sink = abs(x[:, dims]).max(-1) > tau
    inside = np.zeros(24, dtype=bool)
    inside[4:9] = True
    assert 0 < (sink & inside).sum() < 5
    assert (sink & ~inside).any()
    plain = patterns(model)[1]
    wanted, rows = expected(plain, sink, inside, 0.3, portion, least)
    assert len(rows) > 2
    if portion < 1:
        assert len(rows) < 15
    method = VAR(dims, "span", HEAD, keep_fraction=0.3, max_sink_portion=portion, min_total=least, tau=tau)
    found = patterns(model, method)[1]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert found.sum(-1) == pytest.approx(np.ones(24), abs=1e-5)


def test_names_are_those_of_the_code_and_the_docs_say_what_the_paper_calls_them() -> None:
    """The published code's ρ and p are one minus the paper's: nothing here is called by either letter."""
    assert not {"p", "rho", "beta", "summ"} & set(inspect.signature(VAR).parameters)
    page = (Path(__file__).parents[2] / "docs" / "interventions" / "var.md").read_text()
    for said in ("`keep_fraction`", "`max_sink_portion`", "1 − p", "1 − ρ"):
        assert said in page


def test_all_heads_leave_out_the_first_two_layers() -> None:
    (edit,) = VAR((3,), "span").edits(small(layers=4))
    assert {layer for layer, _ in edit.heads} == {2, 3}


def test_no_sink_is_a_warning() -> None:
    model = small()
    with pytest.warns(UserWarning, match="found no key"):
        patterns(model, VAR((0,), "span", HEAD, tau=5.6))


@pytest.fixture(scope="module")
def planted():
    """Two tokens have one huge coordinate, which no block writes to, and every token looks for it in all heads."""
    hf = tiny("llama", num_hidden_layers=5)
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, LOUD] = 0
        hf.model.embed_tokens.weight[list(SINKS), LOUD] = 400.0
        hf.model.embed_tokens.weight[:, LOUD + 1] = 1.0
        for layer in hf.model.layers:
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight *= 0.1
                part.weight[LOUD : LOUD + 2] = 0
            size = layer.self_attn.head_dim
            slow = size // 2 - 1  # the coordinate that rotates least
            layer.self_attn.q_proj.weight[slow::size, LOUD + 1] = 2.0
            layer.self_attn.k_proj.weight[slow::size, LOUD] = 2.0
    return hs.load(hf, validate=False)


def texts(model, n: int = 12) -> list:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        ids = rng.integers(41, 96, 60)
        ids[0], ids[[20, 33]] = SINKS[0], SINKS[1]
        found.append(model.prompt_from_ids(ids.tolist()))
    return found


def test_a_planted_dimension_is_learnt(planted) -> None:
    found = sink_dimensions(planted, texts(planted), tau=1.5)
    assert found.dimensions == (LOUD,)
    assert found.n == 12
    marked = found.table[found.table["separates"]]
    assert set(marked[marked["dimension"] == LOUD]["layer"]) >= {2, 3, 4}


def test_a_method_learns_its_dimensions(planted) -> None:
    method = VAR.learn(planted, "span", texts(planted), heads=((2, 0),), keep_fraction=0.2, max_sink_portion=1)
    assert method.dimensions == (LOUD,)
    assert method.tau == pytest.approx(0.3125 * 32**0.5)
    ids = texts(planted, 1)[0].ids
    given = planted.prompt_from_ids(ids, {"span": range(15, 25)})
    with planted.edited(method):
        after = planted.run(given, [hs.Rows(queries="all", layers=[2])])["rows"].values[0, 0, 0]
    before = planted.run(given, [hs.Rows(queries="all", layers=[2])])["rows"].values[0, 0, 0]
    moved = np.flatnonzero(abs(after - before).max(-1) > 1e-4)
    assert len(moved)
    assert moved.min() >= 25
    for row in moved:
        assert after[row, [0, 20]] == pytest.approx(0.2 * before[row, [0, 20]], abs=1e-4)


def test_models_without_such_a_dimension_say_so() -> None:
    model = small(layers=4)
    with pytest.raises(DataError, match="tells sinks"):
        sink_dimensions(model, texts(model, 3), tau=5.5)
    with pytest.raises(DataError, match="there is none"):
        sink_dimensions(model, [])


@pytest.mark.slow
def test_dimensions_of_a_real_model_tell_its_sinks(smollm2) -> None:
    found = sink_dimensions(smollm2, n=14)
    x = smollm2.run("The harbour opens at nine.", [hs.Residual(layers=[5])])["residual"].values[0, 0]
    peaks = abs(x[:, found.dimensions] / np.sqrt((x**2).mean(-1, keepdims=True))).max(-1)
    assert peaks[0] > found.tau
    assert (peaks[1:] < found.tau).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": ()}, "VAR.learn"),
        ({"dimensions": (-1,)}, "VAR.learn"),
        ({"region": ("a", "b")}, "name one region"),
        ({"keep_fraction": 1.5}, "keep_fraction"),
        ({"tau": 0}, "tau"),
    ],
)
def test_senseless_fields(fields, message) -> None:
    with pytest.raises(RequestError, match=message):
        VAR(**{"dimensions": (1,), "region": "span", **fields})


def test_a_dimension_that_the_model_has_not_is_an_error() -> None:
    model = small()
    with model.edited(VAR((32,), "span", HEAD)), pytest.raises(RequestError, match="width 32"):
        model.run(prompt(model))
