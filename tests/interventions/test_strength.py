from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import headscope as hs
from headscope.errors import PromptError, RequestError
from headscope.interventions import (
    ACT,
    PAI,
    PASTA,
    VAR,
    Ablation,
    KnockOut,
    SpotLight,
    Temperature,
    ZeroTuning,
    compare_continuations,
    sweep_continuations,
)
from headscope.interventions.pine import PINE
from headscope.interventions.strength import numbers, repetition, strength


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return hs.load(hs.data.organism("llama", seed=0).save(tmp_path_factory.mktemp("strength") / "model"))


@pytest.fixture(scope="module")
def prompt(model: Any) -> Any:
    return model.prompt("The name is: {animal}. The word is: cojx. The answer:", animal="bivq")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (PASTA(region="r"), ("alpha", 1.0)),
        (PASTA(region="r", alpha=4.0, mode="include"), ("alpha", 1.0)),
        (PASTA(region="r", alpha=1.0), ("alpha", 1.0)),
        (ACT(), ("beta", 1.0)),
        (ZeroTuning(), ("gamma", 1.0)),
        (SpotLight(region="r"), ("psi", 0.0)),
        (VAR(dimensions=(0,), region="r"), ("keep_fraction", 1.0)),
        (Temperature(), ("temperature", 1.0)),
        (PAI(region="r"), ("alpha", 0.0)),
        (KnockOut(source="r"), None),
        (Ablation(heads="all"), None),
        (PINE(segments=("a", "b")), None),
    ],
)
def test_the_strength_of_a_method_is_the_number_that_it_is_neutral_by(method: Any, expected: Any) -> None:
    assert strength(method) == expected
    if expected is not None:
        assert next(iter(numbers(method))) == expected[0]


def test_a_sweep_holds_the_neutral_row_and_agrees_with_single_comparisons(model: Any, prompt: Any) -> None:
    method = PASTA(region="animal", alpha=0.5)
    found = sweep_continuations(model, prompt, method, "alpha", [0.5, 0.01, 0.5], target=" cojx", max_new_tokens=5)
    table = found.table
    assert list(table["value"]) == [0.01, 0.5, 1.0]
    assert list(table["neutral"]) == [False, False, True]
    calm = table.iloc[2]
    assert calm["gain"] == calm["base_gain"] == calm["target_gain"] == calm["kl"] == 0
    assert math.isnan(calm["diverges"])
    for row, comparison in zip(table.itertuples(), found.comparisons, strict=True):
        if row.neutral:
            assert not comparison.changed
            continue
        alone = compare_continuations(model, prompt, PASTA(region="animal", alpha=row.value), max_new_tokens=5)
        assert row.text == alone.steered.text
        assert row.kl == alone.kl > 0
        np.testing.assert_array_equal(comparison.steered.difference, alone.steered.difference)
        np.testing.assert_array_equal(comparison.base.difference, alone.base.difference)
        ids = tuple(model.tokenizer(" cojx", add_special_tokens=False)["input_ids"])
        with model.edited(PASTA(region="animal", alpha=row.value)):
            forced = model.trace(prompt, teacher=ids).logits[0].double().log_softmax(-1)
        assert row.target_logprob == pytest.approx(sum(float(forced[t, i]) for t, i in enumerate(ids)))


def test_another_number_keeps_a_neutral_row_without_a_value(model: Any, prompt: Any) -> None:
    found = sweep_continuations(model, prompt, ACT(layers=(0, 1)), "threshold", [0.05, 0.2], max_new_tokens=3)
    assert math.isnan(found.table["value"][0])
    assert list(found.table["neutral"]) == [True, False, False]
    assert found.table["gain"][0] == 0


def test_what_comes_before_stays_in_force(model: Any, prompt: Any) -> None:
    first = Temperature(temperature=0.5)
    found = sweep_continuations(model, prompt, ZeroTuning(), "gamma", [2.0], before=[first], max_new_tokens=3)
    calm = compare_continuations(model, prompt, first, max_new_tokens=3)
    assert found.table["kl"][0] == pytest.approx(calm.kl)
    assert calm.kl > 0


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        ("alhpa", [1.0], "Did you mean 'alpha'"),
        ("mode", [1.0], "no number 'mode'"),
        ("alpha", [], "at least one finite number"),
        ("alpha", [math.nan], "at least one finite number"),
        ("alpha", [-1.0], "above 0"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_model_runs(
    field: str, values: list[float], said: str, model: Any, prompt: Any
) -> None:
    def never(stage: str, done: int, total: int) -> None:
        raise AssertionError("the model ran")

    with pytest.raises(RequestError, match=said):
        sweep_continuations(model, prompt, PASTA(region="animal"), field, values, progress=never)


def test_progress_is_told_at_every_token_and_may_end_the_work(model: Any, prompt: Any) -> None:
    told: list[tuple[str, int, int]] = []
    found = compare_continuations(
        model, prompt, PASTA(region="animal"), max_new_tokens=4, progress=lambda *said: told.append(said)
    )
    written = range(len(found.base.ids))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["Writing without the edit", "Writing under the edit"]
    assert {(done, total) for stage, done, total in told if stage == stages[0]} == {(i, 4) for i in written}

    class Enough(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == stages[1] and done == 1:
            raise Enough

    with pytest.raises(Enough):
        compare_continuations(model, prompt, PASTA(region="animal"), max_new_tokens=4, progress=stop)
    assert not model.edits


def test_texts_that_do_not_fit_are_refused(model: Any, prompt: Any) -> None:
    with pytest.raises(PromptError, match="context"):
        sweep_continuations(model, prompt, PASTA(region="animal"), "alpha", [0.1], max_new_tokens=10**6)


def test_repetition_counts_runs_that_came_before() -> None:
    assert repetition([5, 5, 5, 5]) == 0.5
    assert repetition([1, 2, 3, 4]) == 0
    assert repetition([]) == 0
