from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import DataError, RequestError
from headscope.interventions import lora
from headscope.interventions.lofit import LoFiTRecipe
from headscope.interventions.matched import Splits, compare_tuned, measure
from headscope.interventions.training import Example
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny


def made(**options: Any) -> Any:
    return hs.load(tiny("llama", **options), validate=False)


def prompts(n: int, seed: int, wrong: int = 2) -> tuple[Example, ...]:
    """Answer 7 where the prompt ends with 20, 8 where it ends with 21."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        answer = i % 2
        prompt = Prompt.from_ids([*rng.integers(30, 90, 4 + i % 3), 20 + answer])
        others = ((8 - answer,), (9, 10))[:wrong]
        found.append(Example(f"{seed}-{i}", f"s{i}", prompt, (7 + answer,), others))
    return tuple(found)


SPLITS = Splits(prompts(24, 0), prompts(12, 1), prompts(20, 2))
RECIPE = LoFiTRecipe(k=2, epochs=3, batch=8, lr_A=2e-2, lr_v=5e-2)


def test_a_steering_vector_is_fitted_where_it_helps(tmp_path: Path) -> None:
    model = made()
    found = compare_tuned(model, SPLITS, RECIPE, methods=("steering",), out=tmp_path)
    row = found.table.set_index("method").loc["Steering vector"]
    assert row["parameters"] == 32
    assert row["what"].startswith("the stream of layer 1")
    assert any("coefficient is" in note for note in found.notes)
    nameless = Splits(prompts(8, 0, wrong=0), prompts(8, 1, wrong=0), prompts(8, 2, wrong=0))
    left_out = compare_tuned(model, nameless, RECIPE, methods=("steering",), out=tmp_path, fresh=True)
    assert list(left_out.table["method"]) == ["untuned"]
    assert "Steering vector is left out" in left_out.notes[0]


def test_measure_is_what_a_plain_run_says() -> None:
    model = made()
    found = measure(model, SPLITS.test, batch=7)
    for i, example in enumerate(SPLITS.test):
        totals, hit = [], True
        for j, answer in enumerate((example.answer, *example.wrong)):
            logits = model.run({"input_ids": torch.tensor([[*example.prompt.ids, *answer]])}).logits[0]
            rows = logits[len(example.prompt) - 1 : -1].log_softmax(-1)
            totals.append(sum(float(rows[t, token]) for t, token in enumerate(answer)))
            hit = hit and (j > 0 or rows.argmax(-1).tolist() == list(answer))
        assert found.logprob[i] == pytest.approx(totals[0], abs=1e-4)
        assert found.accuracy[i] == float(totals[0] > max(totals[1:]))
        assert found.exact[i] == float(hit)


@pytest.mark.skipif(not lora.available(), reason="peft is not installed")
def test_methods_side_by_side(tmp_path: Path) -> None:
    model = made()
    stages: list[str] = []

    def told(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    found = compare_tuned(model, SPLITS, RECIPE, out=tmp_path, progress=told)
    table = found.table.set_index("method")
    assert list(table.index) == ["untuned", "LoFiT", "LoFiT, random heads", "ITI", "LoRA"]
    numbers = table["parameters"]
    assert numbers["LoFiT"] == numbers["LoFiT, random heads"] == numbers["ITI"] == 2 * 8
    assert numbers["LoRA"] == lora.plan(model, 16).parameters
    base = measure(model, SPLITS.test)
    assert table.loc["untuned", "accuracy"] == pytest.approx(base.accuracy.mean())
    assert table.loc["untuned", ["accuracy_gain", "exact_gain", "logprob_gain"]].eq(0).all()
    with model.edited(found.tuned["LoFiT"].method):
        values = measure(model, SPLITS.test)
    assert table.loc["LoFiT", "logprob_gain"] == pytest.approx((values.logprob - base.logprob).mean())
    assert table.loc["LoFiT", "logprob_gain"] > 0
    tuned, control = (found.tuned[name].method for name in ("LoFiT", "LoFiT, random heads"))
    assert not set(tuned.heads) & set(control.heads)  # type: ignore[attr-defined]
    assert found.overlap is not None
    assert found.overlap["k"].tolist() == [2]
    assert any("ITI's alpha" in note for note in found.notes)
    assert any("LoRA's learning rate" in note for note in found.notes)
    assert {"lofit-select", "lofit-tune", "lofit-random-heads", "iti train", "lora-0.001", "measuring"} <= set(stages)

    stages.clear()
    again = compare_tuned(model, SPLITS, RECIPE, out=tmp_path, progress=told)
    assert again.table.drop(columns="what").equals(found.table.drop(columns="what"))
    assert not {"lofit-select", "lofit-tune", "lora-0.001"} & set(stages)  # finished stages take no step again


def test_strength_is_chosen_on_validation_alone(tmp_path: Path) -> None:
    """Test items have no say: with others the choice is the same."""
    model = made()
    other = Splits(SPLITS.train, SPLITS.validation, prompts(20, 5))
    notes = [
        compare_tuned(model, splits, RECIPE, methods=("iti",), out=tmp_path / name).notes[0]
        for name, splits in (("a", SPLITS), ("b", other))
    ]
    assert notes[0] == notes[1]


def test_without_wrong_answers_there_is_no_iti(tmp_path: Path) -> None:
    splits = Splits(prompts(8, 0, wrong=0), prompts(4, 1, wrong=0), prompts(8, 2, wrong=0))
    found = compare_tuned(made(), splits, RECIPE, methods=("lofit", "iti"), random_heads=False, out=tmp_path)
    assert list(found.table["method"]) == ["untuned", "LoFiT"]
    assert found.table["accuracy"].isna().all()
    assert any("ITI is left out" in note for note in found.notes)


@dataclass(frozen=True)
class Item:
    id: str
    split: str
    number: int
    source: str = "s"
    gold: str = "and"
    answers: tuple[str, ...] = ("and", "the")

    def prompt(self, model: Any) -> Prompt:
        made: Prompt = model.prompt(f"word number {self.number} or")
        return made


def test_splits_of_a_task() -> None:
    organism = hs.data.organism("llama", seed=0)
    model = hs.load(organism.model, tokenizer=organism.tokenizer, validate=False)
    items = [Item("a", "train", 1), Item("b", "val", 2), Item("c", "test", 3)]
    splits = Splits.of(model, SimpleNamespace(items=items, answers=None))
    assert [e.id for e in splits.validation] == ["b"]
    assert all(len(e.wrong) == 1 for e in (*splits.train, *splits.test))
    with pytest.raises(DataError, match="no test example"):
        Splits.of(model, SimpleNamespace(items=items[:2], answers=None))
    with pytest.raises(DataError, match="in split 'exam'"):
        Splits.of(model, SimpleNamespace(items=[*items, Item("d", "exam", 4)], answers=None))
    with pytest.raises(DataError, match="also one that is trained on"):
        Splits.of(model, SimpleNamespace(items=[*items, Item("d", "test", 1)], answers=None))


def test_unknown_methods_are_refused(tmp_path: Path) -> None:
    for names in ((), ("dora",)):
        with pytest.raises(RequestError, match="choose from lofit, iti, lora, steering"):
            compare_tuned(made(), SPLITS, RECIPE, methods=names, out=tmp_path)
