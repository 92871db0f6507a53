"""Pattern scores agree with the whole pattern, with TransformerLens, and find nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import DataError
from headscope.probes.patterns import (
    MAX_KEYS,
    NULL_REACH,
    PatternKeys,
    lookup,
    null_keys,
    pattern_scores,
    target_keys,
)

PATTERNS = ("previous", "duplicate", "induction")


class Ids:
    def __init__(self, ids):
        self.ids = tuple(int(i) for i in ids)


def repeated(block=12, times=3, seed=0, vocabulary=1000):
    rng = np.random.default_rng(seed)
    return np.concatenate([[0], np.tile(rng.choice(np.arange(1, vocabulary), block, replace=False), times)])


def causal(length, seed=0, layers=2, heads=3):
    """Random causal attention (L, H, T, T)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(layers, heads, length, length)) * 2
    logits[..., ~np.tril(np.ones((length, length), dtype=bool))] = -np.inf
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def gather(attention, keys):
    """(L, H, T, m) entries of the pattern at ``keys``; empty slots give 0, as ``Lookup`` promises."""
    query = np.arange(len(keys))[:, None]
    return np.where(keys >= 0, attention[..., query, np.maximum(keys, 0)], 0.0)


def dense(pattern, ids):
    """The ideal 0/1 pattern (T, T), written down without any of the code under test."""
    ids = np.asarray(ids)
    same = np.tril(ids[:, None] == ids[None, :], -1)
    if pattern == "previous":
        return np.eye(len(ids), k=-1, dtype=bool)
    if pattern == "duplicate":
        return same
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    return np.tril(after)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(ids=st.lists(st.integers(0, 6), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_target_keys_are_the_ideal_pattern(pattern, ids):
    keys = target_keys(pattern, ids)
    found = np.zeros((len(ids), len(ids)), dtype=int)
    for query, row in enumerate(keys):
        for key in row[row >= 0]:
            found[query, key] += 1
    assert np.array_equal(found, dense(pattern, ids).astype(int))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_scores_equal_the_whole_pattern(pattern):
    ids = repeated()
    attention = causal(len(ids))
    keys = PatternKeys(pattern)(Ids(ids))
    scores = pattern_scores(gather(attention, keys), keys)

    ideal = np.tril(dense(pattern, ids), -1)
    ideal[:, 0] = False
    relevant = ideal.any(axis=1) & (null_keys(pattern, ids) >= 0).any(axis=1)
    assert relevant.sum() >= ideal.any(axis=1).sum() - 3
    mass = (attention * ideal).sum(-1)[..., relevant]
    np.testing.assert_allclose(scores["score"], mass.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(scores["per_copy"], mass.sum(-1) / ideal[relevant].sum(), rtol=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("exclude_bos", [False, True])
@pytest.mark.parametrize("exclude_current_token", [False, True])
def test_columns_agree_with_transformer_lens(pattern, exclude_bos, exclude_current_token):
    torch = pytest.importorskip("torch")
    detector = pytest.importorskip("transformer_lens.head_detector")
    ids = np.concatenate([repeated(block=9, times=3, seed=3), [5, 5, 7]])  # with a token that repeats at once
    attention = causal(len(ids), seed=4)
    keys = PatternKeys(pattern)(Ids(ids))
    ours = pattern_scores(
        gather(attention, keys), keys, exclude_bos=exclude_bos, exclude_current_token=exclude_current_token
    )
    ideal = getattr(detector, f"get_{pattern}_{'token_' if pattern != 'induction' else ''}head_detection_pattern")(
        torch.tensor(ids)[None]
    )
    for measure in ("mul", "abs"):
        theirs = np.array(
            [
                [
                    detector.compute_head_attention_similarity_score(
                        torch.tensor(head),
                        ideal.double(),
                        exclude_bos=exclude_bos,
                        exclude_current_token=exclude_current_token,
                        error_measure=measure,
                    )
                    for head in layer
                ]
                for layer in attention
            ]
        )
        # Their "abs" is rounded to three decimals.
        np.testing.assert_allclose(ours[f"tl_{measure}"], theirs, atol=6e-4 if measure == "abs" else 1e-9)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_perfect_head_scores_one_and_its_null_nothing(pattern):
    ids = repeated(block=20, times=2)
    ideal = np.tril(dense(pattern, ids), -1).astype(float)
    ideal[:, 0] = 0
    ideal[ideal.sum(1) == 0, 0] = 1  # rows without a target rest on position 0
    attention = (ideal / ideal.sum(1, keepdims=True))[None, None]
    keys = PatternKeys(pattern)(Ids(ids))
    scores = pattern_scores(gather(attention, keys), keys)
    assert scores["score"] == pytest.approx(1)
    assert scores["null"] == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_uniform_head_does_not_beat_its_null(pattern):
    ids = repeated(block=40, times=2)
    length = len(ids)
    attention = (np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None])[None, None]
    keys = PatternKeys(pattern)(Ids(ids))
    scores = pattern_scores(gather(attention, keys), keys)
    assert scores["score"].item() == pytest.approx(scores["null"].item(), rel=0.1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_null_keys_are_visible_near_and_in_no_pattern(pattern):
    ids = repeated(block=30, times=3)
    keys, null = target_keys(pattern, ids), null_keys(pattern, ids)
    named = dense("previous", ids) | dense("duplicate", ids) | dense("induction", ids)
    query, slot = np.nonzero(null >= 0)
    key = null[query, slot]
    assert np.all((key >= 1) & (key < query))
    assert not named[query, key].any()
    assert np.abs(key - keys[query, slot]).max() <= NULL_REACH
    wanted = (keys > 0).sum()
    assert len(key) > 0.8 * wanted
    assert np.array_equal(null, null_keys(pattern, ids))


@given(seed=st.integers(0, 1000), block=st.integers(2, 15), times=st.integers(2, 4), vocabulary=st.integers(16, 60))
@settings(max_examples=30, deadline=None)
def test_scores_are_bounded(seed, block, times, vocabulary):
    ids = repeated(block, times, seed, vocabulary)
    attention = causal(len(ids), seed)
    for pattern in PATTERNS:
        keys = PatternKeys(pattern)(Ids(ids))
        for name, values in pattern_scores(gather(attention, keys), keys).items():
            if name in ("score", "per_copy", "tl_mul"):
                values = values[np.isfinite(values)]  # a block of two has no other key to compare with
                assert np.all((values >= 0) & (values <= 1 + 1e-9)), name


def test_text_like_repetition_is_refused():
    with pytest.raises(DataError, match="random tokens"):
        target_keys("duplicate", [7] * (MAX_KEYS + 2))


def test_probes_of_one_pattern_share_one_request():
    from headscope.probes.patterns import DuplicateTokenHeads, EchoHeads, InductionHeads

    assert EchoHeads().requests(None)[0] is DuplicateTokenHeads().requests(None)[0] is lookup("duplicate")
    assert EchoHeads().requests(None)[1] is InductionHeads().requests(None)[0]
