"""Copy scores are bounded, the historical ones are not, and only retrieval counts."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import DataError
from headscope.probes.base import Context, SampleMeta
from headscope.probes.retrieval import RetrievalHeads, copy_scores, shifted_scores
from headscope.probes.teacher import ForcedSample


def one(top):
    """Top keys of a single head: (1, 1, S)."""
    return np.array(top)[None, None]


def test_distinct_tokens_count_once_and_the_historical_score_can_pass_one():
    ids = [9, 1, 2, 3, 9, 9]
    generated = [1, 1, 1, 2]
    scores = copy_scores(one([1, 1, 1, 2]), [*ids, *generated], generated, span=[1, 2, 3])
    assert scores["score"].item() == pytest.approx(2 / 3)
    assert scores["historical"].item() == pytest.approx(4 / 3)


def test_a_key_counts_only_if_its_token_was_generated():
    ids, generated = [9, 1, 2, 3], [7, 2]
    scores = copy_scores(one([1, 2]), [*ids, *generated], generated, span=[1, 2])
    assert scores["score"].item() == 0.5
    assert scores["attended"].item() == 1.0


def test_keys_outside_the_span_and_missing_keys_count_nothing():
    ids, generated = [1, 1, 2, 2], [1, 2]
    scores = copy_scores(one([0, -1]), [*ids, *generated], generated, span=[1, 2])
    assert all(values.item() == 0 for values in scores.values())


def test_steps_and_tokens_must_match():
    with pytest.raises(DataError, match="2 captured steps and 3 generated"):
        copy_scores(one([0, 1]), [1, 2, 3, 4, 5], [3, 4, 5], span=[0])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_score_is_bounded_on_random_traces(data):
    length = data.draw(st.integers(4, 20))
    steps = data.draw(st.integers(1, 12))
    token = st.integers(0, 3)
    ids = data.draw(st.lists(token, min_size=length, max_size=length))
    generated = data.draw(st.lists(token, min_size=steps, max_size=steps))
    top = data.draw(st.lists(st.integers(-1, length - 1), min_size=steps * 2, max_size=steps * 2))
    start = data.draw(st.integers(0, length - 2))
    span = list(range(start, data.draw(st.integers(start + 1, length - 1))))
    top = np.array(top).reshape(1, 2, steps)
    scores = copy_scores(top, [*ids, *generated], generated, span)
    assert np.all((scores["score"] >= 0) & (scores["score"] <= 1))
    assert np.all(scores["score"] <= scores["historical"] + 1e-12)
    assert np.all(scores["score"] <= scores["attended"] + 1e-12)

    nulls = shifted_scores(top, [*ids, *generated], generated, len(span), range(length))
    starts = range(length - len(span) + 1)
    for name, key in (("null", "score"), ("null_attended", "attended")):
        every = [copy_scores(top, [*ids, *generated], generated, range(s, s + len(span)))[key] for s in starts]
        np.testing.assert_allclose(nulls[name], np.mean(every, axis=0), atol=1e-12)


def test_the_null_keeps_to_spans_inside_what_is_allowed():
    ids, generated = list(range(10)), [3]
    # Spans of two within {1, 2, 3} and {6, 7}: [1,2], [2,3], [6,7]. Only [2,3] holds the key.
    nulls = shifted_scores(one([3]), [*ids, *generated], generated, 2, [1, 2, 3, 6, 7])
    assert nulls["null"].item() == pytest.approx(1 / 3 * 1 / 2)
    assert shifted_scores(one([3]), [*ids, *generated], generated, 4, [1, 2, 3])["null"].item() == 0


class Prompt:
    def __init__(self, ids, regions):
        self.ids, self.regions = tuple(ids), regions


class FakeTrace(dict):
    def __init__(self, prompt, tokens, text, top):
        super().__init__(
            top_keys=xr.DataArray(top[:, None, :, :, None], dims=("layer", "batch", "head", "step", "rank"))
        )
        self["top_keys"] = self["top_keys"].assign_coords(layer=list(range(len(top))))
        self.prompt, self.tokens, self.text = prompt, tokens, text


class Sample:
    id = "s"
    answer = "alpha beta"


def trial(text="alpha beta", copier=True):
    """Head (1, 0) copies the two answer tokens; head (0, 1) looks at them out of turn; the rest look elsewhere."""
    prompt = Prompt(
        [0, 50, 51, 10, 11, 52, 53, 54, 55, 56],
        {"bos": (0,), "needle": (2, 3, 4), "answer": (3, 4), "haystack": (1, 2, 3, 4, 5, 6, 7), "question": (8, 9)},
    )
    top = np.zeros((2, 2, 2), dtype=int)
    top[0, 1] = [4, 3]
    top[1, 0] = [3, 4] if copier else [0, 0]
    return FakeTrace(prompt, [10, 11], text, top)


def summarise(observed, **parameters):
    probe = RetrievalHeads(**parameters)
    context = Context(2, 2, {"model": {"n_layers": 2, "n_heads": 2}})
    return probe.summarise(observed, context)


def meta(i, **factors):
    return SampleMeta(i, f"s{i}", f"needle{i % 12}", "needles", {"length": 64, "depth": 0.5, **factors})


def test_the_copying_head_alone_is_selected():
    probe = RetrievalHeads()
    observed = [(meta(i), probe.observe(trial(), Sample())) for i in range(24)]
    scores = summarise(observed)
    assert scores.selected == [(1, 0)]
    row = scores.head(1, 0)
    assert row["score"] == row["historical"] == row["attended"] == row["active"] == 1
    assert scores.head(0, 1)["attended"] == 1
    assert scores.head(0, 1)["score"] == 0
    assert scores.details["activation"].iloc[0]["kind"] == "always"
    assert "24 of 24 trials counted" in scores.provenance["notes"][0]


def test_trials_without_the_answer_do_not_count():
    probe = RetrievalHeads()
    wrong = probe.observe(trial(text="something else"), Sample())
    right = probe.observe(trial(), Sample())
    observed = [(meta(i), right if i % 2 else wrong) for i in range(24)]
    scores = summarise(observed)
    assert scores.head(1, 0)["score"] == 1
    assert scores.head(1, 0)["n"] == 12
    assert any("12 of 24" in note for note in scores.provenance["notes"])
    assert any("Only 12 trials" in note for note in scores.provenance["notes"])
    assert scores.details["by_factor"]["counted"].item() == 0.5


def test_no_counted_trial_gives_no_score_and_says_what_to_do():
    probe = RetrievalHeads()
    observed = [(meta(i), probe.observe(trial(text="no"), Sample())) for i in range(3)]
    scores = summarise(observed)
    assert scores.selected == []
    assert scores.table["score"].isna().all()
    assert any("teacher=True" in note for note in scores.provenance["notes"])


def test_a_head_that_copies_in_some_contexts_is_active_by_context():
    probe = RetrievalHeads()
    observed = [
        (meta(i // 2, depth=0.1 if i % 2 else 0.9), probe.observe(trial(copier=bool(i % 2)), Sample()))
        for i in range(24)
    ]
    scores = summarise(observed)
    activation = scores.details["activation"].set_index(["layer", "head"])
    assert activation.loc[(1, 0), "active"] == pytest.approx(0.5)
    assert activation.loc[(1, 0), "kind"] == "by context"
    by_depth = scores.details["by_factor"].set_index("depth")["score"]
    assert by_depth[0.1] == 1
    assert by_depth[0.9] == 0


def test_teacher_forcing_counts_every_trial_and_is_named():
    probe = RetrievalHeads(teacher=True)
    observed = [(meta(i), probe.observe(trial(text="no"), ForcedSample(Sample()))) for i in range(24)]
    scores = summarise(observed, teacher=True)
    assert scores.selected == [(1, 0)]
    assert "not comparable" in scores.provenance["notes"][0]


@pytest.mark.parametrize("teacher", [False, True])
def test_forced_and_free_answers_are_never_mixed(teacher):
    sample = Sample() if teacher else ForcedSample(Sample())
    with pytest.raises(DataError, match="TeacherForced"):
        RetrievalHeads(teacher=teacher).observe(trial(), sample)


def test_the_needle_span_is_the_published_denominator():
    probe = RetrievalHeads(span="needle")
    assert probe.observe(trial(), Sample())["score"][1, 0] == pytest.approx(2 / 3)
