"""Intervals cover, p-values are uniform under the null, clusters count, and order does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import DataError
from headscope.probes.statistics import (
    bootstrap,
    cautions,
    cluster,
    expanded_tail,
    false_discovery,
    head_table,
    sign_flip,
)


def names(n: int, sources: int) -> list[str]:
    return [f"source{i % sources}" for i in range(n)]


@pytest.mark.parametrize(("sources", "each"), [(6, 1), (20, 3)])
def test_intervals_cover_the_truth(sources: int, each: int) -> None:
    """Means of 1000 heads with a shared effect per source: nominal coverage is 95 %."""
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(sources, 1000))
    values = 3 + np.tile(effect, (each, 1)) + 0.5 * rng.normal(size=(sources * each, 1000))
    found = bootstrap(values, names(sources * each, sources))
    covered = np.mean((found.low <= 3) & (found.high >= 3))
    assert 0.91 < covered < 0.98


def test_plain_resampling_of_samples_would_not_cover() -> None:
    """The reason for clusters: forgetting them makes intervals far too short."""
    rng = np.random.default_rng(0)
    values = np.tile(rng.normal(size=(20, 300)), (5, 1))
    naive = bootstrap(values, [str(i) for i in range(100)])
    assert np.mean((naive.low <= 0) & (naive.high >= 0)) < 0.75


def test_copies_of_a_sample_add_no_certainty() -> None:
    values = np.random.default_rng(1).random((12, 7))
    once = bootstrap(values, names(12, 12))
    often = bootstrap(np.tile(values, (10, 1)), names(120, 12))
    np.testing.assert_allclose(often.low, once.low)
    np.testing.assert_allclose(often.high, once.high)
    p_once = sign_flip(values - 0.4, names(12, 12))
    p_often = sign_flip(np.tile(values - 0.4, (10, 1)), names(120, 12))
    np.testing.assert_array_equal(p_once, p_often)
    assert list(often.n) == [120] * 7


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 9))
def test_order_of_samples_never_shows(seed: int, n: int, sources: int) -> None:
    rng = np.random.default_rng(seed)
    values, labels = rng.normal(size=(n, 2, 3)) * 10.0 ** rng.integers(-8, 8, size=(n, 1, 1)), names(n, sources)
    values[rng.random(values.shape) < 0.1] = np.nan
    order = rng.permutation(n)
    a, notes = head_table(values, labels, null=-values, threshold=0.0)
    b, _ = head_table(values[order], [labels[i] for i in order], null=-values[order], threshold=0.0)
    assert a.equals(b)
    assert isinstance(notes, list)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 6))
def test_bounds_hold_the_mean_and_stay_in_range(seed: int, n: int, sources: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2, size=(n, 5)).astype(float)
    found = bootstrap(values, names(n, sources), draws=200)
    if len(set(names(n, sources))) == 1:
        assert np.isnan(found.low).all()
    else:
        assert ((found.low <= found.mean) & (found.mean <= found.high)).all()
        assert (found.low >= 0).all()
        assert (found.high <= 1).all()


def test_equal_values_have_no_spread() -> None:
    found = bootstrap(np.full((9, 3), 0.1), names(9, 4))
    np.testing.assert_allclose([found.low, found.high], 0.1)
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()


def test_samples_that_do_not_count_are_left_out() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, np.nan]])
    values[1, 0] = np.nan
    found = bootstrap(values, ["a", "b", "c"])
    assert found.mean[0] == 3
    assert list(found.n) == [2, 0]
    assert np.isnan([found.mean[1], found.low[1], found.high[1]]).all()
    assert np.isnan(sign_flip(values, ["a", "b", "c"])[1])


def test_a_head_seen_in_one_source_has_no_interval() -> None:
    values = np.array([[1.0, 1.0], [2.0, np.nan], [3.0, np.nan]])
    found = bootstrap(values, ["a", "b", "c"])
    assert np.isnan(found.low).tolist() == [False, True]


@pytest.mark.parametrize("sources", [12, 25])
def test_p_values_are_uniform_under_the_null(sources: int) -> None:
    """Both the exact test (2^12 patterns) and the sampled one."""
    rng = np.random.default_rng(2)
    difference = np.repeat(rng.standard_t(3, size=(sources, 2000)), 2, axis=0)
    labels = [f"s{i // 2}" for i in range(2 * sources)]
    p = sign_flip(difference, labels, flips=5000)
    for level in (0.01, 0.05, 0.2, 0.5):
        assert abs(np.mean(p <= level) - level) < 4 * np.sqrt(level * (1 - level) / 2000) + 1e-3


def test_sign_flip_is_the_known_exact_test() -> None:
    p = sign_flip(np.array([[1.0], [2.0], [3.0]]), ["a", "b", "c"])
    assert p == pytest.approx([1 / 8])
    assert sign_flip(np.array([[-1.0], [-2.0]]), ["a", "b"]) == pytest.approx([1.0])
    assert sign_flip(np.zeros((5, 1)), list("abcde")) == pytest.approx([1.0])


def test_one_head_alone_can_pass_among_many() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((40, 20, 20))
    values[:, 3, 4] += 2
    table, _ = head_table(values, names(40, 20), null=rng.random((40, 20, 20)), threshold=0.5)
    assert table.loc[table["selected"], ["layer", "head"]].to_numpy().tolist() == [[3, 4]]


def test_selection_needs_threshold_and_null() -> None:
    values = np.random.default_rng(4).random((20, 2, 2))
    assert not head_table(values, names(20, 20))[0]["selected"].any()
    assert head_table(values, names(20, 20), threshold=-1.0)[0]["selected"].all()
    assert head_table(values, names(20, 20), threshold=0.0)[0]["p_value"].isna().all()
    assert head_table(values, names(20, 20), null=values - 0.1)[0]["selected"].all()
    assert not head_table(values, names(20, 20), null=values - 0.1, threshold=2)[0]["selected"].any()


def test_extra_columns_follow() -> None:
    table, _ = head_table(np.ones((3, 1, 2)), list("abc"), extra={"other": np.array([[5, 6]])})
    assert list(table.columns)[-2:] == ["q_value", "other"]
    assert table["other"].tolist() == [5, 6]


def test_false_discovery_ignores_heads_without_a_test() -> None:
    q = false_discovery(np.array([[0.01, np.nan], [0.02, 0.03]]))
    np.testing.assert_allclose(q, [[0.03, np.nan], [0.03, 0.03]])
    assert np.isnan(false_discovery(np.array([np.nan]))).all()


def test_few_sources_are_declared() -> None:
    assert "one source" in cautions(["a"], 10, tested=False)[0]
    few = cautions(list("abcdef"), 270, tested=True)
    assert "Only 6 independent sources" in few[0]
    assert "0.016" in few[1]
    assert cautions([str(i) for i in range(20)], 270, tested=True) == []


def test_expanded_tail_tends_to_the_nominal_one() -> None:
    assert expanded_tail(10_000) == pytest.approx(0.025, abs=1e-4)
    assert expanded_tail(5) < expanded_tail(20) < 0.025


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="no sample"):
        bootstrap(np.empty((0, 3)), [])
    with pytest.raises(DataError, match="one source per sample"):
        cluster(np.ones((3, 2)), ["a"])
    with pytest.raises(DataError, match="samples, layers, heads"):
        head_table(np.ones((3, 2)), list("abc"))
    with pytest.raises(DataError, match="null scores"):
        head_table(np.ones((3, 2, 2)), list("abc"), null=np.ones((3, 2, 1)))
