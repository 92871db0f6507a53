from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headscope as hs
from headscope.errors import RequestError, UnsupportedError
from headscope.interventions.firstorder import estimate
from headscope.interventions.outcomes import outcomes, prepared
from headscope.interventions.profile import profile_heads
from headscope.interventions.screen import screen_heads, screened_profile
from headscope.interventions.training import Example
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny
from tests.interventions.planted import Favour, Louder, organism, task


@pytest.fixture(scope="module")
def planted() -> tuple[Any, set[tuple[int, int]]]:
    return organism()


def random_items(answer: tuple[int, ...], wrong: tuple[tuple[int, ...], ...], n: int = 3) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        prompt = replace(Prompt.from_ids(rng.integers(10, 90, 9 + i)), regions={"bos": (0,), "right": (2, 3)})
        made.append(Example(f"e{i}", f"s{i}", prompt, answer, wrong))
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
@pytest.mark.parametrize(
    "pair", [(Louder(factor=1.01), Louder(factor=0.99)), (Favour(alpha=1.01), Favour(alpha=0.99))], ids=["z", "weights"]
)
@pytest.mark.parametrize(
    ("answer", "wrong"),
    [((7,), ()), ((7,), ((9,), (11,))), ((7, 3, 4), ((7, 5),))],
    ids=["one", "choice", "several tokens"],
)
def test_small_edits_are_estimated_exactly(family: str, pair: Any, answer: Any, wrong: Any) -> None:
    """The estimate is the derivative: with an edit of size ε and its opposite, what is left is of third order."""
    model = hs.load(tiny(family).double(), validate=False)
    largest = 0.0
    for item in random_items(answer, wrong):
        guessed, measured = (
            of(pair[0], item) - of(pair[1], item) for of in (partial(_estimated, model), partial(_measured, model))
        )
        np.testing.assert_allclose(guessed, measured, rtol=2e-3, atol=2e-6)
        largest = max(largest, np.abs(measured).max())
    assert largest > 1e-4


def _estimated(model: Any, method: Any, item: Any) -> Any:
    return estimate(model, method.with_heads(model.spec.heads()), item)


def _measured(model: Any, method: Any, item: Any) -> Any:
    gains = [outcomes(model, [item], method.with_heads([pair]))[0, 0] for pair in model.spec.heads()]
    return np.reshape(gains, (model.spec.n_layers, model.spec.n_heads))


def test_nothing_is_left_behind(planted: Any) -> None:
    model, _ = planted
    item = prepared(model, task(1))[0]
    before = [parameter.requires_grad for parameter in model.hf.parameters()]
    logits = model.run(item.prompt).logits
    estimate(model, Favour(), item)
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == before
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    assert (model.run(item.prompt).logits == logits).all()


def test_the_planted_heads_come_first(planted: Any) -> None:
    model, heads = planted
    found = screen_heads(model, Favour(alpha=0.05), task())
    assert set(found.top(2)) == heads
    assert found.selected == []


def test_the_best_are_measured_and_others_beside(planted: Any) -> None:
    model, heads = planted
    method = Favour(alpha=0.05)
    found = screened_profile(model, method, task(), top=3, spread=4, min_gain=0.01)
    assert set(found.top(2)) == heads
    assert set(found.selected) == heads
    measured = found.table[found.table["score"].notna()]
    assert len(measured) == 7
    assert found.table["estimate"].notna().all()
    exact = profile_heads(model, method, task(), heads=found.top(7))
    for pair in found.top(7):
        assert found.head(*pair)["score"] == exact.head(*pair)["score"]
        # The best of all heads were chosen on these items, so all heads count as tried.
        assert found.head(*pair)["q_value"] >= exact.head(*pair)["q_value"]
    agreement = found.details["screen"].set_index("heads")
    assert agreement.loc["all", "n"] == 7
    assert agreement.loc["best", "n"] == 3


def test_resumed_is_undisturbed(planted: Any, tmp_path: Path) -> None:
    model, _ = planted
    whole = screened_profile(model, Favour(), task(6), top=2, spread=1)

    def killed(name: str, done: int, total: int) -> None:
        if name == "screen" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        screened_profile(model, Favour(), task(6), top=2, spread=1, out=tmp_path, progress=killed)
    assert len(list(tmp_path.rglob("*.shard"))) == 3
    found = screened_profile(model, Favour(), task(6), top=2, spread=1, out=tmp_path)
    assert found.table.equals(whole.table)


def test_bad_input(planted: Any) -> None:
    model, _ = planted
    with pytest.raises(RequestError, match="nothing to screen"):
        screen_heads(model, Favour(alpha=1.0), task(2))
    with pytest.raises(RequestError, match="estimates log-probabilities"):
        screened_profile(model, Favour(), task(2), metric="accuracy")
    with pytest.raises(RequestError, match="at least one head"):
        screened_profile(model, Favour(), task(2), top=0)
    encoder = hs.load(tiny("bert"), validate=False)
    with pytest.raises(UnsupportedError, match="no decoder"):
        screen_heads(encoder, Louder(factor=2.0), task(2), random_items((7,), ()))
