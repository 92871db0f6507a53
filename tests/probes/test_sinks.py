"""Sinks, drained values and massive dimensions are what the definitions say, on arrays made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.probes.base import Context, SampleMeta
from headscope.probes.sink_tokens import (
    MAX_DRAIN,
    SinkTokens,
    drain,
    massive_dimensions,
    normalised,
    sink_positions,
)
from headscope.probes.sinks import PREFIX, SinkHeads, eligible_keys, sink_masses
from headscope.probes.tables import contrast

LAYERS, HEADS, LENGTH, WIDTH = 2, 3, 96, 32
LATER = 40


def attention(seed=0):
    """Head (0, 1) rests on the first token, (1, 2) on the first and on a later one, the others nowhere."""
    rng = np.random.default_rng(seed)
    a = rng.random((LAYERS, HEADS, LENGTH, LENGTH)) + 0.5
    a[0, 1, :, 0] += 400
    a[1, 2, :, 0] += 150
    a[1, 2, :, LATER] += 150
    a *= np.tril(np.ones((LENGTH, LENGTH)))
    return a / a.sum(-1, keepdims=True)


def columns(a):
    sums = a.sum(-2)
    return sums / np.arange(LENGTH, 0, -1), sums


class Prompt:
    regions = {"bos": (0,)}
    ids = tuple(range(100, 100 + LENGTH))
    tokens = ["<s>", *(f"t{i}" for i in range(1, LENGTH))]


class FakeRun(dict):
    prompt = Prompt()

    def __init__(self, a, seed=0, shallow=False):
        rng = np.random.default_rng(seed)
        means, sums = columns(a)
        norms = np.ones((LAYERS, HEADS, LENGTH)) + 0.1 * rng.random((LAYERS, HEADS, LENGTH))
        outputs = norms.copy()
        outputs[[0, 1], [1, 2], 0] /= 10
        outputs[0, 0, 0] /= 10  # drained, but no sink head
        residual = rng.normal(size=(LAYERS + 1, LENGTH, WIDTH))
        if not shallow:
            residual[1:, [0, LATER], 7] = 300
            residual[1:, [0, LATER], 19] = -200
        key, dims = ("layer", "batch", "head", "key"), ("layer", "batch", "query", "dim")
        layers = {"layer": list(range(LAYERS))}
        wrapped = {
            "received_mean": xr.DataArray(means[:, None], dims=key, coords=layers),
            "received": xr.DataArray(sums[:, None], dims=key, coords=layers),
            "value_norms": xr.DataArray(norms[:, None], dims=key, coords=layers),
            "output_norms": xr.DataArray(outputs[:, None], dims=key, coords=layers),
            "residual": xr.DataArray(residual[:, None], dims=dims),
            "sink_mass": xr.DataArray(
                a[:, None, :, :, :1], dims=("layer", "batch", "head", "query", "region"), coords=layers
            ),
        }
        super().__init__(wrapped)


def observed(probe, n=24, **kwargs):
    found = []
    for i in range(n):
        meta = SampleMeta(i, f"s{i}", f"text{i}", "texts", {"length": LENGTH, "domain": "code" if i % 2 else "prose"})
        found.append((meta, probe.observe(FakeRun(attention(i), i, **kwargs), None)))
    return found


def context():
    return Context(LAYERS, HEADS, {"model": {"n_layers": LAYERS, "n_heads": HEADS}})


def test_masses_are_the_definitions():
    a = attention()
    means, sums = columns(a)
    found = sink_masses(means, sums, 0, later_threshold=0.1, min_queries=16)
    np.testing.assert_allclose(found["score"], a[..., 0].mean(-1))
    visible = np.arange(LENGTH, 0, -1)
    importance = a.sum(-2) / visible
    np.testing.assert_allclose(found["null"], importance[..., 1 : LENGTH - 15].mean(-1))
    assert found["later_at"].tolist() == [[1, 2, LATER]]
    assert found["later_mean"].item() == pytest.approx(importance[1, 2, LATER])
    assert found["total"][1, 2] == pytest.approx(a[1, 2][:, [0, LATER]].sum() / LENGTH)
    np.testing.assert_allclose(found["total"][0], a[0][..., 0].mean(-1))


def test_the_last_keys_are_never_sinks():
    # A head that attends to itself gives the last key, seen by one query, a mean of one.
    a = np.eye(LENGTH)[None, None]
    found = sink_masses(*columns(a), 0)
    assert found["later"].item() == 0
    assert eligible_keys(20, 0, 16).tolist() == [1, 2, 3, 4]
    assert eligible_keys(10, 0, 16).tolist() == []


def test_short_texts_have_no_later_sinks_and_no_null():
    a = np.tril(np.ones((8, 8)))
    a = (a / a.sum(-1, keepdims=True))[None, None]
    sums = a.sum(-2)
    found = sink_masses(sums / np.arange(8, 0, -1), sums, 0)
    assert found["null"].item() == 0
    assert found["later_at"].shape == (0, 3)


def test_exactly_the_sink_heads_are_selected():
    probe = SinkHeads()
    scores = probe.summarise(observed(probe), context())
    assert sorted(scores.selected) == [(0, 1), (1, 2)]
    later = scores.details["later"]
    assert later[["layer", "head", "token", "texts", "earliest"]].values.tolist() == [[1, 2, f"t{LATER}", 24, LATER]]
    row = scores.head(1, 2)
    assert row["total"] > row["score"]
    assert row["later"] == 1


def test_the_prefix_column_is_the_score_of_the_prefix():
    probe = SinkHeads()
    a = attention()
    np.testing.assert_allclose(probe.observe(FakeRun(a), None)["first_64"], a[..., :PREFIX, 0].mean(-1))


def test_domains_differ_where_they_were_made_to():
    probe = SinkHeads()
    found = observed(probe)
    for meta, observation in found:
        if meta.factors["domain"] == "code":
            observation["score"][0, 1] -= 0.5
    table = probe.summarise(found, context()).details["domains"].set_index(["layer", "head", "domain"])
    assert table.loc[(0, 1, "code"), "difference"] == pytest.approx(-0.5, abs=0.05)
    assert table.loc[(0, 1, "code"), "difference_high"] < 0
    assert table.loc[(0, 1, "prose"), "difference_low"] > 0
    assert table.loc[(1, 2, "code"), "difference_low"] < 0 < table.loc[(1, 2, "code"), "difference_high"]


def test_one_domain_has_no_contrast():
    probe = SinkHeads()
    found = [(SampleMeta(m.index, m.id, m.source, m.kind, {"domain": "prose"}), o) for m, o in observed(probe, 4)]
    assert "domains" not in probe.summarise(found, context()).details


@given(seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_contrast_contains_its_difference(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(20, 2))
    inside = np.arange(20) % 2 == 0
    sources = [str(i // 2) for i in range(20)]
    difference, low, high = contrast(values, sources, inside, draws=300)
    np.testing.assert_allclose(difference, values[inside].mean(0) - values[~inside].mean(0))
    assert np.all(low <= high)
    one_source = ["a" if kept else str(i) for i, kept in enumerate(inside)]
    assert np.isnan(contrast(values, one_source, inside, draws=50)[1]).all()


def test_drain_is_a_ratio_of_norms():
    norms = np.array([[[0.5, 2.0, 4.0, 6.0]]])
    assert drain(norms, 0, np.array([1, 2, 3])).item() == 8
    np.testing.assert_allclose(drain(norms, np.array([1, 2]), np.array([1, 2, 3])), [[[2, 1]]])
    assert drain(np.array([[[0.0, 1.0]]]), 0, np.array([1])).item() == MAX_DRAIN
    assert drain(np.zeros((1, 1, 3)), 0, np.array([1, 2])).item() == 1


def test_normalised_is_bounded_by_the_root_of_the_width():
    h = np.zeros(16)
    h[3] = -5
    assert normalised(h)[3] == pytest.approx(4)
    assert normalised(np.zeros(4)).tolist() == [0, 0, 0, 0]


def test_sink_positions_are_the_first_and_what_many_heads_attend_to():
    means, _ = columns(attention())
    positions, share = sink_positions(means, 0, later_threshold=0.1, min_share=0.05, min_queries=16)
    assert positions.tolist() == [0, LATER]
    assert share[LATER] == pytest.approx(1 / 6)
    positions, _ = sink_positions(means, 0, later_threshold=0.1, min_share=0.5, min_queries=16)
    assert positions.tolist() == [0]


def test_massive_dimensions_are_found_at_the_sinks():
    residual = FakeRun(attention())["residual"].values[:, 0]
    others = np.setdiff1d(np.arange(LENGTH), [0, LATER])
    found = massive_dimensions(residual, np.array([0, LATER]), others)
    assert found["dims"][1, :2].tolist() == [7, 19]
    assert found["at_others"][1, 0] < 1.5
    assert found["peak"][1] > 50 > 3 > found["peak"][0]


def test_drained_sink_heads_and_massive_dimensions_are_reported():
    probe = SinkTokens()
    scores = probe.summarise(observed(probe), context())
    assert sorted(scores.selected) == [(0, 1), (1, 2)]
    assert scores.head(0, 0)["score"] > 5  # drained too, but it does not rest there
    dimensions = scores.details["dimensions"]
    massive = dimensions[dimensions["massive"]]
    assert set(massive["dimension"]) == {7, 19}
    assert set(massive["layer"]) == {1, 2}
    tokens = scores.details["tokens"]
    assert tokens["token"].tolist() == ["<s>", f"t{LATER}"]
    assert tokens["place"].tolist() == ["first", "later"]
    assert scores.details["residual"]["peak_ratio"].iloc[1] > 50
    assert "7, 19" in scores.provenance["notes"][0]


def test_a_model_without_massive_activations_reports_none():
    probe = SinkTokens()
    scores = probe.summarise(observed(probe, 6, shallow=True), context())
    assert not scores.details["dimensions"]["massive"].any()
    assert "none" in scores.provenance["notes"][0]


def test_a_dimension_that_is_large_everywhere_does_not_separate():
    probe = SinkTokens()
    found = observed(probe, 4)
    for _, observation in found:
        observation["at_others"][:, 0] = 5
    dimensions = probe.summarise(found, context()).details["dimensions"].query("layer == 1").set_index("dimension")
    assert dimensions.loc[7, "massive"]
    assert not dimensions.loc[7, "separates"]
    assert dimensions.loc[19, "separates"]
