"""Named sets of heads: what they keep, how they combine, and what reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headscope as hs
from headscope.commands.methods import heads_of
from headscope.errors import DataError, OutputError, RequestError
from headscope.models.tiny import tiny
from headscope.probes.head_sets import HeadSet, is_head_set, read_heads
from headscope.probes.scores import HeadScores

PAIRS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12)


@pytest.fixture(scope="module")
def model():
    return hs.load(tiny("llama"), validate=False)


def scores_of(model, *, probe: str = "induction") -> HeadScores:
    """Return scores in which head (1, 2) is best and (0, 3) second; only the best passes."""
    layers, heads = model.spec.n_layers, model.spec.n_heads
    layer, head = np.divmod(np.arange(layers * heads), heads)
    score = np.linspace(0.1, 0.2, layers * heads)
    score[1 * heads + 2], score[3] = 0.9, 0.5
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "score": score,
            "ci_low": score - 0.05,
            "ci_high": score + 0.05,
            "n": 7,
            "null_mean": 0.1,
            "p_value": 0.01,
            "selected": score > 0.8,
        }
    )
    source = {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "n_layers": model.spec.n_layers,
        "n_heads": model.spec.n_heads,
    }
    return HeadScores(table, probe, {"model": source, "data": {"n": 7}, "created": "2025-01-01T00:00:00+00:00"})


def test_a_saved_set_reads_back_the_same(tmp_path: Path, model) -> None:
    made = HeadSet.of("mine", scores_of(model), [(1, 2), (0, 3)], source="induction, top 2", note="for the talk")
    path = made.save(tmp_path / "heads" / "mine.json")
    assert HeadSet.load(path) == made
    assert made.heads == ((1, 2), (0, 3))
    assert made.fingerprint == model.fingerprint
    assert made.created


@given(PAIRS)
def test_any_pairs_survive_a_file_in_their_order(tmp_path_factory: pytest.TempPathFactory, pairs) -> None:
    path = tmp_path_factory.mktemp("sets") / "any.json"
    made = HeadSet("any", tuple(pairs))
    made.save(path)
    assert HeadSet.load(path) == made
    assert list(made.heads) == list(dict.fromkeys(pairs))


@given(PAIRS, PAIRS)
def test_sets_combine_as_sets_do(one, two) -> None:
    a, b = HeadSet("a", tuple(one)), HeadSet("b", tuple(two))
    assert set(a.union(b).heads) == set(one) | set(two)
    assert set(a.intersection(b).heads) == set(one) & set(two)
    assert set(a.difference(b).heads) == set(one) - set(two)
    assert a.intersection(b).heads == tuple(pair for pair in a.heads if pair in b.heads)


def test_by_default_a_set_holds_what_the_probe_selects(model) -> None:
    assert HeadSet.of("passing", scores_of(model)).heads == ((1, 2),)


def test_sets_of_different_models_do_not_combine() -> None:
    a, b = HeadSet("a", ((0, 1),), "one", "f1"), HeadSet("b", ((0, 1),), "two", "f2")
    with pytest.raises(RequestError, match="only sets of one model"):
        a.union(b)
    with pytest.raises(RequestError, match="only sets of one model"):
        HeadSet("c", ((0, 1),), shape=(2, 4)).difference(HeadSet("d", ((0, 1),), shape=(2, 8)))


@pytest.mark.parametrize("heads", [((0,),), ((0, -1),), ((0.5, 1),), (("x", 1),), (5,), ((True, 1),)])
def test_what_is_no_head_is_refused(heads) -> None:
    with pytest.raises(DataError, match="no pair of layer and head"):
        HeadSet("bad", heads)


def test_a_head_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(DataError, match="2 layers × 4 heads"):
        HeadSet("bad", ((2, 0),), shape=(2, 4))


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.json"):
        HeadSet("a", ((0, 1),)).save(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"format": "headscope.scores/1"}', '{"format": "headscope.heads/1"}', "\ud83d"]
)
def test_other_files_are_told_apart_and_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert is_head_set(path) == ("heads/1" in text)
    with pytest.raises(DataError, match="cannot be read as a head set"):
        HeadSet.load(path)


def test_a_missing_file_is_told_as_one(tmp_path: Path) -> None:
    assert not is_head_set(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"none\.json"):
        HeadSet.load(tmp_path / "none.json")


def test_heads_come_from_a_set_and_from_scores_alike(tmp_path: Path, model) -> None:
    scores = scores_of(model)
    HeadSet.of("two", scores, scores.top(2)).save(tmp_path / "two.json")
    scores.save(tmp_path / "scores.json")
    for file in ("two.json", "scores.json"):
        assert read_heads(tmp_path / file, model, 1) == ((1, 2),)
        assert heads_of(str(tmp_path / file), model, 1) == ((1, 2),)
    assert heads_of(str(tmp_path / "two.json"), model) == ((1, 2), (0, 3))
    assert heads_of(str(tmp_path / "scores.json"), model) == ((1, 2),)


def test_a_set_of_other_weights_is_refused(tmp_path: Path, model) -> None:
    HeadSet("a", ((0, 1),), "another", "other").save(tmp_path / "a.json")
    with pytest.raises(RequestError, match="weights differ"):
        heads_of(str(tmp_path / "a.json"), model)


def test_an_empty_set_and_a_set_beyond_the_model_are_refused(tmp_path: Path, model) -> None:
    HeadSet("none", ()).save(tmp_path / "none.json")
    with pytest.raises(RequestError, match="is empty"):
        heads_of(str(tmp_path / "none.json"), model)
    HeadSet("far", ((0, 99),)).save(tmp_path / "far.json")
    with pytest.raises(RequestError, match="heads 0 to"):
        heads_of(str(tmp_path / "far.json"), model)
    with pytest.raises(RequestError, match="at least one"):
        read_heads(tmp_path / "far.json", model, 0)


def test_the_class_is_at_hand_in_probes(tmp_path: Path) -> None:
    path = hs.probes.HeadSet("a", ((0, 1),)).save(tmp_path / "a.json")
    assert hs.probes.HeadSet.load(path).heads == ((0, 1),)
    assert json.loads(path.read_text())["heads"] == [[0, 1]]
