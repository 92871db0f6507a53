"""Claims are answered from numbers, and what was not measured is said to be untested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import headscope.probes as probes
from headscope.errors import DataError, HeadscopeError
from headscope.probes.claims import DIFFERENT, OPEN, SAME, UNTESTED, removals, retrieval_claims
from headscope.probes.registry import PROBES, find
from headscope.probes.scores import HeadScores

LAYERS, HEADS = 10, 10
EXACT, NATS = "answer exact match", "answer log-probability"


def scores(selected=((1, 2), (3, 4), (5, 6)), n=40, name="m", activation=True):
    layer, head = np.divmod(np.arange(LAYERS * HEADS), HEADS)
    chosen = np.array([(a, b) in set(selected) for a, b in zip(layer, head, strict=True)])
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "score": np.where(chosen, 0.6, 0.01),
            "ci_low": np.where(chosen, 0.4, 0.0),
            "ci_high": np.where(chosen, 0.8, 0.02),
            "n": n,
            "null_mean": 0.0,
            "p_value": np.where(chosen, 0.0001, 0.5),
            "selected": chosen,
        }
    )
    details = {}
    if activation:
        details["activation"] = pd.DataFrame(
            {
                "layer": [a for a, _ in selected],
                "head": [b for _, b in selected],
                "score": 0.6,
                "selected": True,
                "active": np.linspace(1, 0.3, len(selected)),
                "contexts": 40,
                "kind": ["always", *["by context"] * (len(selected) - 1)][: len(selected)],
            }
        )
    provenance = {"model": {"name": name, "n_layers": LAYERS, "n_heads": HEADS}, "parameters": {"threshold": 0.1}}
    return HeadScores(table, "retrieval", provenance, details)


def dose(top, base=0.9, controls=None, metric=EXACT, ablation="mean", k=(1, 5, 20)):
    """A table as ``verify`` writes it."""
    controls = [0.9 - 0.005 * i for i in range(20)] if controls is None else controls
    rows = [{"k": 0, "kind": "base", "replicate": 0, "value": base, "gap": np.nan, "p_value": np.nan}]
    for step in k:
        p = (1 + sum(value <= top for value in controls)) / (1 + len(controls))
        rows.append(
            {"k": step, "kind": "top", "replicate": 0, "value": top, "gap": np.mean(controls) - top, "p_value": p}
        )
        rows += [
            {"k": step, "kind": "control", "replicate": i, "value": value, "gap": np.nan, "p_value": np.nan}
            for i, value in enumerate(controls)
        ]
    return pd.DataFrame(rows).assign(metric=metric, ablation=ablation)


def verdicts(frame):
    return {claim.split(":")[0]: verdict for claim, verdict in zip(frame["claim"][:5], frame["verdict"], strict=False)}


def test_all_five_claims_and_both_consequences_are_answered():
    frame = retrieval_claims(
        scores(),
        dose(0.1),
        knowledge=dose(0.85),
        others=[scores(name="other")],
        extended=scores(selected=((1, 2), (3, 4), (7, 7)), name="longer"),
    )
    assert list(frame.columns) == ["claim", "answer", "evidence", "verdict"]
    assert verdicts(frame) == dict.fromkeys(["Universal", "Sparse", "Intrinsic", "Dynamic", "Causal"], SAME)
    assert frame["verdict"].tolist()[5:] == [UNTESTED, SAME]
    assert "3 of 100 heads (3.0%)" in frame["evidence"][1]
    assert frame["evidence"].str.len().min() > 0


def test_what_was_not_measured_is_not_testable():
    frame = retrieval_claims(scores(activation=False))
    assert verdicts(frame) == {
        "Universal": UNTESTED,
        "Sparse": SAME,
        "Intrinsic": UNTESTED,
        "Dynamic": UNTESTED,
        "Causal": UNTESTED,
    }
    assert "verify()" in frame["answer"][4]
    assert set(frame["verdict"][5:]) == {UNTESTED}


def test_a_model_that_answers_nothing_tests_nothing():
    frame = retrieval_claims(scores(n=0), dose(0.1))
    assert set(frame["verdict"]) == {UNTESTED}


def test_contrary_numbers_give_contrary_answers():
    many = [(a, b) for a in range(LAYERS) for b in range(2)]
    found = scores(selected=many)
    found.details["activation"]["kind"] = "by context"
    frame = retrieval_claims(found, dose(0.95), extended=scores(selected=((9, 9), (9, 8))), others=[scores(())])
    assert verdicts(frame) == dict.fromkeys(["Universal", "Sparse", "Intrinsic", "Dynamic", "Causal"], DIFFERENT)


def test_damage_within_the_controls_is_inconclusive():
    frame = retrieval_claims(scores(), dose(0.84))
    assert verdicts(frame)["Causal"] == OPEN


def test_few_controls_or_nothing_to_lose_test_nothing():
    assert verdicts(retrieval_claims(scores(), dose(0.1, controls=[0.9] * 5)))["Causal"] == UNTESTED
    assert verdicts(retrieval_claims(scores(), dose(0.0, base=0.02, controls=[0.02] * 20)))["Causal"] == UNTESTED


def test_a_metric_that_cannot_fall_does_not_hide_one_that_can():
    exact = dose(0.0, base=0.02, controls=[0.02] * 20)
    nats = dose(-4.0, base=-2.0, controls=[-2.0 - 0.01 * i for i in range(20)], metric=NATS)
    frame = retrieval_claims(scores(), pd.concat([nats, exact]))
    assert verdicts(frame)["Causal"] == SAME
    assert EXACT in frame["evidence"][4]


def test_knowledge_that_suffers_more_is_different():
    frame = retrieval_claims(scores(), dose(0.6), knowledge=dose(0.1))
    assert frame["verdict"][6] == DIFFERENT
    assert "retrieval loses" in frame["answer"][6]


def test_the_k_that_covers_the_selected_heads_is_read():
    assert [one.k for one in removals(dose(0.1), 3)] == [5]
    assert [one.k for one in removals(dose(0.1), 50)] == [20]
    assert removals(None, 3) == []


def test_another_table_is_refused():
    with pytest.raises(DataError, match="lacks gap, p_value"):
        removals(dose(0.1).drop(columns=["gap", "p_value"]), 3)


def test_every_registered_probe_is_found_by_its_name():
    for name in PROBES:
        probe = find(name)
        assert probe.name == name
        assert probe.data in ("needles", "texts", "repeats")
        assert probe.parameters()
    assert find("sink_tokens").name == "sink-tokens"
    assert find("retrieval", threshold=0.2).threshold == 0.2


@pytest.mark.parametrize(("wrong", "near"), [("retreival", "retrieval"), ("sink", "sinks"), ("Inductive", "induction")])
def test_an_unknown_probe_gets_the_nearest_name(wrong, near):
    with pytest.raises(HeadscopeError, match=f"'{near}'"):
        find(wrong)


def test_an_unknown_parameter_gets_the_nearest_name():
    with pytest.raises(HeadscopeError, match="'threshold'"):
        find("sinks", treshold=1)


def test_the_public_names_resolve():
    for name in probes.__all__:
        assert getattr(probes, name) is not None
    assert callable(probes.verify)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        probes.nothing
