"""A head is active-dormant only where attention and loss agree, and knowledge is asked for without context."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headscope as hs
from headscope.data.dataset import DataSet
from headscope.errors import DataError
from headscope.models.tiny import tiny
from headscope.probes import dormancy
from headscope.probes.knowledge import facts, knowledge_task

DOMAINS = ("code", "prose")


@dataclass(frozen=True)
class Text:
    id: str
    source: str
    factors: dict[str, Any] = field(hash=False)
    kind = "texts"


def texts(n=12):
    return DataSet("texts", [Text(f"t{i}", f"t{i}", {"domain": DOMAINS[i % 2]}) for i in range(n)])


def scores(masses):
    """Sink mass by head and domain, as ``SinkHeads`` writes it."""
    rows = [
        {
            "layer": layer,
            "head": head,
            "domain": domain,
            "sink_mass": mass,
            "difference": sign * (pair[0] - pair[1]),
            "difference_low": sign * (pair[0] - pair[1]) - 0.02,
            "difference_high": sign * (pair[0] - pair[1]) + 0.02,
        }
        for (layer, head), pair in masses.items()
        for domain, mass, sign in zip(DOMAINS, pair, (1, -1), strict=True)
    ]
    return SimpleNamespace(details={"domains": pd.DataFrame(rows)})


class Fake:
    """A model whose loss on one domain grows when a head is removed."""

    def __init__(self, harm):
        self.harm, self.removed = harm, None

    @contextmanager
    def edited(self, edit):
        self.removed = edit.heads[0]
        yield self
        self.removed = None


@pytest.fixture
def losses(monkeypatch):
    def measure(model, samples):
        noise = np.linspace(0, 1e-4, len(samples))
        if model.removed is None:
            return 3 + noise
        return 3 + 2 * noise + np.array([model.harm[model.removed][s.factors["domain"]] for s in samples])

    monkeypatch.setattr(dormancy, "_losses", measure)


def test_attention_and_loss_must_agree(losses):
    masses = {(0, 0): (0.1, 0.9), (1, 1): (0.2, 0.8), (2, 2): (0.3, 0.31)}
    harm = {
        (0, 0): {"code": 0.2, "prose": 0.0},  # works on code, rests on prose
        (1, 1): {"code": 0.2, "prose": 0.2},  # rests on prose, and matters there all the same
    }
    table = dormancy.active_dormant(Fake(harm), scores(masses), texts())
    found = table.set_index(["layer", "head", "domain"])
    assert set(table["layer"]) == {0, 1}  # (2, 2) differs too little to be a candidate
    assert found.loc[(0, 0, "code"), "state"] == "active"
    assert found.loc[(0, 0, "prose"), "state"] == "dormant"
    assert found.loc[(1, 1, "prose"), "state"] == "unclear"
    assert found["active_dormant"].to_dict() == {
        (0, 0, "code"): True,
        (0, 0, "prose"): True,
        (1, 1, "code"): False,
        (1, 1, "prose"): False,
    }
    assert found.loc[(0, 0, "code"), "loss_change"] == pytest.approx(0.2, abs=1e-3)


def test_without_a_candidate_the_table_is_empty(losses):
    table = dormancy.active_dormant(Fake({}), scores({(0, 0): (0.5, 0.5)}), texts())
    assert table.empty
    assert list(table.columns) == list(dormancy.COLUMNS)


def test_scores_of_one_domain_are_refused():
    with pytest.raises(DataError, match="at least two domains"):
        dormancy.candidates(SimpleNamespace(details={}), 3)


def test_facts_are_many_distinct_and_do_not_give_the_answer_away():
    every = facts()
    assert len(every) >= 24
    assert len({fact.id for fact in every}) == len(every)
    for fact in every:
        asked = fact.template.format(subject=fact.subject).lower()
        assert fact.answer.lower() not in asked.split(), fact


def test_knowledge_is_scored_as_the_model_predicts(monkeypatch):
    import torch

    from headscope.data.organisms import organism

    made = organism("gpt2")
    model = hs.load(made.model, tokenizer=made.tokenizer, validate=False)
    task = knowledge_task()
    fact = task.samples[0]
    prompt = model.prompt(fact.template, subject=fact.subject)
    answer = made.tokenizer.encode(" " + fact.answer, add_special_tokens=False)
    logits = model.trace(prompt, teacher=answer).logits[0].log_softmax(-1)
    expected = logits[torch.arange(len(answer)), torch.tensor(answer)].mean()
    assert task.score(model, fact)[0] == pytest.approx(float(expected), abs=1e-4)
    assert [metric.name for metric in task.metrics] == ["answer log-probability", "answer exact match"]


def test_tiny_models_without_a_tokenizer_have_no_knowledge_to_ask_for():
    from headscope.errors import HeadscopeError

    with pytest.raises(HeadscopeError, match="tokenizer"):
        knowledge_task().evaluate(hs.load(tiny("gpt2"), validate=False))
