from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headscope.errors import DataError
from headscope.probes.scores import HeadScores
from headscope.report.agreement import agreement, labels, overlap, rank_correlation

Make = Callable[..., HeadScores]


def test_correlations_are_scipys() -> None:
    random = np.random.default_rng(0)
    x, y = random.integers(0, 20, (2, 200)).astype(float)
    assert rank_correlation(x, y, "spearman", draws=0).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(x, y, "kendall", draws=0).value == pytest.approx(stats.kendalltau(x, y).statistic)


def test_interval_holds_the_value_and_repeats() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=120)
    y = x + random.normal(size=120)
    found = rank_correlation(x, y, clusters=np.repeat(np.arange(12), 10), draws=200)
    assert found.low < found.value < found.high
    assert found == rank_correlation(x, y, clusters=np.repeat(np.arange(12), 10), draws=200)


def test_missing_scores_are_left_out_and_constant_ones_have_no_rank() -> None:
    x = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    assert rank_correlation(x, x).n == 4
    assert np.isnan(rank_correlation(x, np.ones(5)).value)
    assert np.isnan(rank_correlation(x[:2], x[:2]).value)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(DataError, match="pearson"):
        rank_correlation(np.arange(4.0), np.arange(4.0), "pearson")


heads = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)))


@settings(deadline=None)
@given(heads, heads)
def test_overlap_is_symmetric_and_bounded(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> None:
    found, mirrored = overlap(a, b, 16), overlap(b, a, 16)
    assert (found.shared, found.expected) == (mirrored.shared, pytest.approx(mirrored.expected))
    assert found.shared == len(a & b)
    if a and b:
        assert 0 < found.p_value <= 1
        assert 0 <= found.expected_jaccard <= 1


def test_chance_level_is_what_random_sets_share() -> None:
    random = np.random.default_rng(0)
    everything = [(i, j) for i in range(6) for j in range(5)]

    def draw(size: int) -> set[tuple[int, int]]:
        return {everything[i] for i in random.choice(30, size, replace=False)}

    found = overlap(set(everything[:8]), set(everything[:10]), 30)
    drawn = [overlap(draw(8), draw(10), 30) for _ in range(1500)]
    assert found.expected == pytest.approx(np.mean([one.shared for one in drawn]), abs=0.1)
    assert found.expected_jaccard == pytest.approx(np.mean([one.jaccard for one in drawn]), abs=0.01)


def test_more_heads_than_the_model_has_are_refused() -> None:
    with pytest.raises(DataError, match="cannot come from"):
        overlap({(0, 0), (0, 1)}, set(), 1)


def test_labels_tell_rankings_apart(make: Make) -> None:
    one, other = make(details=False), make(details=False, model="gpt2")
    assert labels([one, make("sinks", details=False)]) == ["retrieval", "sinks"]
    assert labels([one, other]) == ["smollm2-135m", "gpt2"]
    assert labels([one, one]) == ["retrieval (1)", "retrieval (2)"]
    assert labels([one, make("sinks", details=False), other])[0] == "retrieval · smollm2-135m"


def test_other_shapes_are_left_out_by_name(make: Make) -> None:
    scores = [make(details=False), make("sinks", details=False), make("induction", layers=4, heads=4, details=False)]
    found = agreement(scores)
    assert found is not None
    assert found.labels == ("retrieval", "sinks")
    assert found.left_out == ("induction",)
    assert np.allclose(np.diag(found.spearman), 1)
    assert agreement(scores[:1]) is None
    assert agreement([]) is None
