"""Answers forced and written: as one prompt alone gives them, whatever the batch, and under edits that find keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.attention.edits import AttentionEdit, Group, HeadEdit, Scale
from headscope.errors import DataError, ModelError, PromptError, RequestError
from headscope.interventions import ACT, PASTA, SpotLight, SteeringVector, ZeroTuning
from headscope.interventions.answers import Forced, answer
from headscope.interventions.outcomes import METRICS, column, metrics, outcomes, prepared, split_sources, stored
from headscope.interventions.reading import Reading
from headscope.interventions.training import Example
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny
from headscope.probes.store import Store
from tests.interventions import quiz


def made(family: str = "llama", **options: Any) -> Any:
    return hs.load(tiny(family, **options), validate=False)


def examples(seed: int = 0, n: int = 7) -> list[Example]:
    """Prompts of different lengths, candidates of one to four tokens, one to three of them, a region in each."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        ids = [int(t) for t in rng.integers(10, 90, 5 + i % 4)]
        answers = [tuple(int(t) for t in rng.integers(10, 90, 1 + (i + k) % 4)) for k in range(1 + i % 3)]
        prompt = Prompt.from_ids(ids, {"fact": range(1, 3)})
        found.append(Example(f"e{i}", f"s{i % 3}", prompt, answers[0], tuple(answers[1:])))
    return found


EDITS: dict[str, Any] = {
    "nothing": lambda model: (),
    "a region": lambda model: (PASTA(heads=((0, 1), (1, 2)), region="fact", alpha=0.1),),
    "a key position": lambda model: (ZeroTuning(gamma=4.0),),
    "found keys": lambda model: (ACT(heads=((0, 0), (1, 1), (1, 3)), threshold=0.12, layers=(0, 1)),),
    "a floor": lambda model: (SpotLight(region="fact", psi=0.6),),
    "the last row": lambda model: (
        AttentionEdit(((0, 0), (1, 1)), (Group("first", (0,)),), Scale((8.0,)), queries="last"),
    ),
    "generated tokens": lambda model: (
        SteeringVector(1, np.ones(model.spec.d_model), coefficient=3.0, positions="generated"),
    ),
    "heads": lambda model: (HeadEdit(((0, 1), (1, 0)), mode="scale", factor=3.0),),
}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("edit", EDITS)
def test_candidates_get_what_a_trace_gives_them(family: str, edit: str) -> None:
    model, data = made(family), examples()
    methods = EDITS[edit](model)
    with model.edited(*methods):
        found, _ = answer(model, data, batch=3)
        for i, item in enumerate(data):
            for k, ids in enumerate((item.answer, *item.wrong)):
                rows = model.trace(item.prompt, teacher=ids).logits[0].double().log_softmax(-1)
                assert found.totals[i, k] == pytest.approx(float(rows[range(len(ids)), list(ids)].sum()), abs=5e-5)
                assert found.greedy[i, k] == bool((rows.argmax(-1) == torch.tensor(ids)).all())
            first = rows[0]
            assert found.entropy[i] == pytest.approx(float(-(first.exp() * first).sum()), abs=5e-5)
            assert np.isnan(found.totals[i, 1 + len(item.wrong) :]).all()


@pytest.mark.parametrize("edit", EDITS)
def test_text_is_that_of_one_prompt_alone(edit: str) -> None:
    model, _ = quiz.organism()
    task = quiz.task(10, blank=3)
    data = prepared(model, task)
    methods = EDITS[edit](model)
    with model.edited(*methods):
        _, written = answer(model, data, batch=4, stops=[lambda text: False] * len(data), limit=4)
        assert written is not None
        for item, said in zip(data, written, strict=True):
            assert said.text == model.trace(item.prompt, max_new_tokens=4).text
        together = model.generate([item.prompt for item in data], max_new_tokens=4)
    assert [said.text for said in written] == together


def test_text_ends_where_it_is_told_to() -> None:
    model, _ = quiz.organism()
    data = prepared(model, quiz.task(6, long=True))
    two = [lambda text: text.count(" ") == 2] * 6
    ends, limited, stopped = (
        answer(model, data, batch=3, stops=stops, limit=limit)[1]
        for stops, limit in (([lambda text: False] * 6, 8), (two, 1), (two, 8))
    )
    assert ends is not None
    assert limited is not None
    assert stopped is not None
    assert {said.length for said in ends} == {2, 3}  # to the end-of-sequence token, which is not counted
    assert all(said.ended for said in ends)
    assert all(said.length == 1 and not said.ended for said in limited)
    assert all(said.length == 2 and said.ended for said in stopped)


@pytest.mark.parametrize("edit", EDITS)
def test_batches_change_nothing(edit: str) -> None:
    model, data = made(), examples()
    methods = EDITS[edit](model)
    one, many = (outcomes(model, data, *methods, batch=batch) for batch in (1, 7))
    np.testing.assert_allclose(one, many, atol=5e-5)


def test_a_reading_is_not_used_up() -> None:
    model, data = made("mistral"), examples()
    with model.edited(ACT(heads=((1, 1),), threshold=0.12, layers=(1,))):
        reading = Reading(model, [item.prompt for item in data[:3]], 4)
        first = reading.branch().step([11, 12, 13])
        reading.branch(2).step([21, 22, 23, 24, 25, 26])
        assert torch.equal(reading.branch().step([11, 12, 13]), first)
        copies = reading.branch(2).step([11, 11, 12, 12, 13, 13])
    torch.testing.assert_close(copies[::2], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(copies[1::2], first, atol=1e-5, rtol=1e-5)


def test_many_candidates_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from headscope.interventions import answers

    model, data = made(), examples()
    whole = answer(model, data, batch=3)[0]
    monkeypatch.setattr(answers, "ROWS", 3)
    np.testing.assert_allclose(answer(model, data, batch=3)[0].totals, whole.totals, atol=5e-5)


def test_an_encoder_decoder_is_traced() -> None:
    model = made("t5")
    data = [Example(f"e{i}", "s", Prompt.from_ids(range(10, 16 + i)), (11, 12), ((13,),)) for i in range(2)]
    found, _ = answer(model, data)
    for i, item in enumerate(data):
        rows = model.trace(item.prompt, teacher=item.answer).logits[0].double().log_softmax(-1)
        assert found.totals[i, 0] == pytest.approx(float(rows[0, 11] + rows[1, 12]), abs=1e-6)


def test_metrics_of_known_numbers() -> None:
    totals = np.log([[0.6, 0.2, 0.1], [0.2, 0.5, np.nan], [0.25, 0.25, np.nan], [0.3, np.nan, np.nan]])
    greedy = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool)
    found = Forced(totals, greedy, np.arange(4.0))
    rows = dict(zip(METRICS, metrics(found).T, strict=True))
    np.testing.assert_allclose(np.exp(rows["logprob"]), [2 / 3, 2 / 7, 1 / 2, 0.3])
    np.testing.assert_array_equal(rows["accuracy"], [1, 0, 0, 1])  # a tie is not right
    np.testing.assert_array_equal(rows["exact"], [1, 0, 0, 1])
    np.testing.assert_array_equal(rows["valid"], [1, 1, 0, np.nan])
    np.testing.assert_array_equal(rows["entropy"], np.arange(4.0))
    np.testing.assert_array_equal(found.chosen, [0, 1, 1, 0])
    np.testing.assert_array_equal(found.constrained, [1, 0, 0, np.nan])


def test_stored_outcomes_are_read_back(tmp_path: Any) -> None:
    model, data = made(), examples()
    store = Store.open(tmp_path, {"a": 1})
    found = stored(store, "heads", "one", model, data, batch=4)
    model.hf.lm_head.weight.data.zero_()  # measured again it would be another
    np.testing.assert_array_equal(stored(store, "heads", "one", model, data, batch=4), found)


def test_halves_share_no_source() -> None:
    data = [Example(f"e{i}", f"s{i // 2}", Prompt.from_ids([1, 2 + i]), (3,)) for i in range(12)]
    first, second = split_sources(data, 0.5, seed=1)
    assert {e.source for e in first}.isdisjoint(e.source for e in second)
    assert len(first) + len(second) == 12
    with pytest.raises(DataError, match="at least 4"):
        split_sources(data[:6])
    with pytest.raises(RequestError, match="between 0 and 1"):
        split_sources(data, 1.0)


def test_bad_input() -> None:
    model, data = made(), examples()
    task = quiz.task(4)
    with pytest.raises(DataError, match="no item"):
        prepared(model, task, [])
    with pytest.raises(DataError, match="same id"):
        prepared(model, task, [data[0], data[0]])
    with pytest.raises(RequestError, match="'accuracy'"):
        column("accurracy")
    with pytest.raises(PromptError, match="pass the context"):
        Reading(model, [Prompt.from_ids([5] * model.spec.n_ctx)], 2)
    model.hf.lm_head.weight.data[11] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        outcomes(model, data)
