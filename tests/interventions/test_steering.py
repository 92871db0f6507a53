"""Steering vectors: what they find in models where a direction was planted, and what they add."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from headscope.attention import requests as ask
from headscope.attention.engine import NAME
from headscope.errors import DataError, RequestError
from headscope.interventions.steering import ContrastPair, SteeringVector, activations, fit_direction
from headscope.interventions.steering_scan import answer_pairs, contrast_pairs, fit_steering, margins, scan_layers
from headscope.interventions.store import decode, encode
from headscope.interventions.training import Example
from headscope.models.families import build_spec
from headscope.models.model import Model
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny

GOOD, BAD = 70, 80


def wrap(hf, family: str, tokenizer=None) -> Model:
    hf.set_attn_implementation(NAME)
    return Model(hf=hf, tokenizer=tokenizer, spec=build_spec(hf, family), source=family, name=family)


@pytest.fixture(scope="module")
def model() -> Model:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return wrap(tiny("llama", num_hidden_layers=3), "llama", PreTrainedTokenizerFast(tokenizer_object=words))


@pytest.fixture(scope="module")
def planted() -> tuple[Model, torch.Tensor]:
    """A model whose words 70… lie on one side of a direction and 80… on the other, and that reads it out again."""
    hf = tiny("llama", num_hidden_layers=3, tie_word_embeddings=False)
    concept = torch.zeros(32)
    concept[5] = 1.0
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, 5] = 0
        hf.model.embed_tokens.weight[GOOD : GOOD + 8, 5] = 3.0
        hf.model.embed_tokens.weight[BAD : BAD + 8, 5] = -3.0
        hf.lm_head.weight[GOOD : GOOD + 8] = concept
        hf.lm_head.weight[BAD : BAD + 8] = -concept
        for layer in hf.model.layers:  # no block writes along the direction, and none much else
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight *= 0.1
                part.weight[5] = 0
    return wrap(hf, "llama"), concept


def pairs(n: int = 12, seed: int = 0) -> list[ContrastPair]:
    """Pairs of equal beginnings that end in a good and a bad word."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(n):
        start = rng.integers(5, 60, size=int(rng.integers(5, 12))).tolist()
        good, bad = (Prompt.from_ids([*start, side + int(rng.integers(8))]) for side in (GOOD, BAD))
        made.append(ContrastPair(good, bad, f"text{index}"))
    return made


@pytest.mark.parametrize("method", ["mean", "pca"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_a_planted_direction_is_found(planted, method, layer):
    model, concept = planted
    vector = SteeringVector.fit(model, pairs(200), layer, method=method)
    unit = vector.vector / np.linalg.norm(vector.vector)
    assert unit @ concept.numpy() > 0.9
    assert vector.vector @ concept.numpy() == pytest.approx(6, rel=0.1)  # +3 against −3
    assert vector.n_pairs == 200
    assert 0 < vector.share <= 1


def test_mean_difference_and_component_are_what_they_are_called():
    rng = np.random.default_rng(0)
    differences = rng.standard_normal((50, 6)) + np.array([2.0, 0, 0, 0, 0, 0])
    mean, share = fit_direction(differences)
    assert np.allclose(mean, differences.mean(0))
    unit = mean / np.linalg.norm(mean)
    assert share == pytest.approx(((differences @ unit) ** 2).sum() / (differences**2).sum())
    component, more = fit_direction(differences, "pca")
    points = np.concatenate([differences / 2, -differences / 2])  # each pair centred at its midpoint
    values, vectors = np.linalg.eigh(np.cov(points.T))
    axis = vectors[:, -1]
    assert abs(component @ axis) / np.linalg.norm(component) == pytest.approx(1)
    assert component @ differences.mean(0) > 0
    assert np.linalg.norm(component) == pytest.approx(abs(axis @ differences.mean(0)))
    assert more == pytest.approx(values[-1] / values.sum())
    assert more >= share


def test_the_vector_does_not_depend_on_the_order_or_batches_of_pairs(planted):
    model, _ = planted
    made = pairs()
    one = SteeringVector.fit(model, made, 1)
    other = SteeringVector.fit(model, made[::-1], 1, batch_size=5)
    assert np.allclose(one.vector, other.vector, atol=1e-5)
    swapped = SteeringVector.fit(model, [(p.negative, p.positive) for p in made], 1)
    assert np.allclose(swapped.vector, -one.vector, atol=1e-5)


def test_a_region_is_read_as_its_mean(model):
    made = [
        (Prompt.from_ids([1, a, b, 9], {"spot": [1, 2]}), Prompt.from_ids([1, 5, b, 9, 9], {"spot": [2]}))
        for a, b in [(20, 21), (22, 23), (24, 25)]
    ]
    held = activations(model, made, [1], position="spot")[1]
    for index, pair in enumerate(made):
        for side, prompt in enumerate(pair):
            run = model.run(prompt, [ask.Residual(layers=[1])])["residual"].values[0, 0]
            assert np.allclose(held[index, side], run[list(prompt.regions["spot"])].mean(0), atol=1e-5)


@pytest.mark.parametrize("units", ["raw", "norm"])
def test_what_is_added_is_the_coefficient_times_the_vector(planted, units):
    model, _ = planted
    vector = SteeringVector.fit(model, pairs(), 1, coefficient=-2.0, units=units)
    prompt, want = pairs(1, 5)[0].positive, [ask.Residual(layers=[1])]
    before = model.run(prompt, want)["residual"].values
    with model.edited(vector):
        added = model.run(prompt, want)["residual"].values - before
    length = vector.norm if units == "norm" else np.linalg.norm(vector.vector)
    assert np.allclose(np.linalg.norm(added, axis=-1), 2 * length, rtol=1e-4)
    assert np.allclose(added, vector.added, atol=1e-4)
    assert (added @ vector.vector < 0).all()
    norms = activations(model, pairs(), [1])[1]
    assert vector.norm == pytest.approx(np.linalg.norm(norms, axis=-1).mean())


def test_steering_turns_answers_and_a_random_direction_does_not(planted):
    model, _ = planted
    tested = pairs(20, 9)
    base = margins(model, tested)
    vector = SteeringVector.fit(model, pairs(40), 1, coefficient=1.0)
    with model.edited(vector):
        toward = margins(model, tested) - base
    with model.edited(SteeringVector.fit(model, pairs(40), 1, coefficient=-1.0)):
        away = margins(model, tested) - base
    assert toward.min() > 0.5
    assert away.max() < -0.5
    random = []
    for seed in range(10):
        control = vector.control(seed)
        assert np.linalg.norm(control.vector) == pytest.approx(np.linalg.norm(vector.vector), rel=1e-5)
        assert abs(control.vector @ vector.vector) < 0.9 * np.linalg.norm(vector.vector) ** 2
        with model.edited(control):
            random.append((margins(model, tested) - base).mean())
    assert max(map(abs, random)) < toward.mean()
    assert np.array_equal(vector.control(3).vector, vector.control(3).vector)


def test_margins_are_log_probabilities_of_the_endings(model):
    one = Prompt.from_ids([1, 5, 6, 7, 20, 21, 22])
    other = Prompt.from_ids([1, 5, 6, 7, 30, 31])
    expected = []
    for prompt in (one, other):
        logprobs = torch.log_softmax(model.run(prompt).logits[0].double(), -1)
        expected.append(sum(float(logprobs[i - 1, prompt.ids[i]]) for i in range(4, len(prompt))))
    assert margins(model, [(one, other)])[0] == pytest.approx(expected[0] - expected[1], abs=1e-4)
    assert margins(model, [(other, one), (one, other)])[0] == pytest.approx(expected[1] - expected[0], abs=1e-4)


def test_the_scan_measures_vectors_on_pairs_they_have_not_seen(planted):
    model, _ = planted
    scan = scan_layers(model, pairs(30), pairs(12, 1), coefficient=1.0)
    assert scan.table["layer"].tolist() == [1, 2]
    assert (scan.table["separation"] == 1).all()
    assert (scan.table["effect"] > scan.table["control"].abs()).all()
    assert ((scan.table["ci_low"] <= scan.table["effect"]) & (scan.table["effect"] <= scan.table["ci_high"])).all()
    best = scan.best()
    assert best == scan.vectors[best.layer]
    gains = (scan.table["effect"] - scan.table["control"]).tolist()
    assert scan.table["layer"].tolist()[int(np.argmax(gains))] == best.layer
    alone = SteeringVector.fit(model, pairs(30), best.layer, coefficient=1.0)
    assert np.allclose(alone.vector, best.vector, atol=1e-5)
    with pytest.raises(DataError, match="training pairs"):
        scan_layers(model, pairs(6), pairs(6))


def test_a_scan_over_labels_that_mean_nothing_finds_nothing(planted):
    model, _ = planted
    rng = np.random.default_rng(0)

    def shuffled(n, seed):
        return [
            ContrastPair(*((p.positive, p.negative) if rng.random() < 0.5 else (p.negative, p.positive)), p.source)
            for p in pairs(n, seed)
        ]

    scan = scan_layers(model, shuffled(60, 0), shuffled(30, 1), coefficient=1.0)
    assert (scan.table["separation"] - 0.5).abs().max() < 0.35
    assert (scan.table["ci_low"] < 0).any()


def test_heads_are_steered_one_by_one(model):
    made = pairs(10)
    heads = [(1, 3), (1, 0)]
    vector = SteeringVector.fit(model, made, 1, site="head", heads=heads, coefficient=2.0)
    assert vector.vector.shape == (2, 8)
    held = activations(model, made, [1], site="head")[1]
    for row, (_, head) in zip(vector.vector, heads, strict=True):
        assert np.allclose(row, (held[:, 0, head] - held[:, 1, head]).mean(0), atol=1e-5)
    prompt, want = made[0].positive, [ask.HeadOutput(layers=[1])]
    before = model.run(prompt, want)["head_output"].values[0, 0]
    with model.edited(vector):
        after = model.run(prompt, want)["head_output"].values[0, 0]
    assert np.allclose(after[3] - before[3], 2 * vector.vector[0], atol=1e-5)
    assert np.allclose(after[0] - before[0], 2 * vector.vector[1], atol=1e-5)
    assert np.array_equal(after[[1, 2]], before[[1, 2]])
    control = vector.control(0)
    assert np.allclose(np.linalg.norm(control.vector, axis=1), np.linalg.norm(vector.vector, axis=1), rtol=1e-5)
    assert len(SteeringVector.fit(model, made, 1, site="head").heads) == 4
    moved = vector.with_heads([(1, 1), (1, 2)])
    assert moved.heads == ((1, 1), (1, 2))
    assert np.array_equal(moved.vector, vector.vector)
    for wrong in ([(1, 1)], [(0, 1), (0, 2)]):
        with pytest.raises(RequestError, match="heads= of layer 1"):
            vector.with_heads(wrong)
    with pytest.raises(RequestError, match="has no heads"):
        SteeringVector.fit(model, made, 1).with_heads(heads)


def test_prefill_equals_decoding_and_padding_changes_nothing(planted):
    model, _ = planted
    vector = SteeringVector.fit(model, pairs(), 1, coefficient=2.0)
    short, long = Prompt.from_ids(range(5, 14)), Prompt.from_ids(range(20, 37))
    with model.edited(vector):
        trace = model.trace(short, max_new_tokens=5)
        whole = model.run(Prompt.from_ids([*short.ids, *trace.tokens[:-1]])).logits
        assert (trace.logits[0] - whole[0, len(short) - 1 :]).abs().max() < 5e-5
        alone = [model.run(p).logits[0] for p in (short, long)]
        for side in ("left", "right"):
            both = model.run([short, long], side=side).logits
            begin = len(long) - len(short) if side == "left" else 0
            assert (both[0, begin : begin + len(short)] - alone[0]).abs().max() < 5e-5
            assert (both[1] - alone[1]).abs().max() < 5e-5


def test_coefficient_zero_is_bit_equal_and_nothing_is_left_behind(planted):
    model, _ = planted
    vector, prompt = SteeringVector.fit(model, pairs(), 1), pairs(1, 3)[0].positive
    base = model.run(prompt).logits
    assert vector.neutralised().neutral
    assert not vector.neutral
    with model.edited(vector.neutralised()):
        assert torch.equal(model.run(prompt).logits, base)
    with pytest.raises(KeyError), model.edited(vector):  # noqa: PT012
        assert not torch.equal(model.run(prompt).logits, base)
        raise KeyError
    assert torch.equal(model.run(prompt).logits, base)


@pytest.mark.parametrize("options", [{}, {"site": "head"}, {"units": "norm", "positions": "last", "method": "pca"}])
def test_json_round_trip(model, options):
    vector = SteeringVector.fit(model, pairs(), 1, coefficient=1.5, **options)
    back = decode(json.loads(json.dumps(encode(vector))))
    assert back == vector
    assert hash(back) == hash(vector)
    assert back.vector.tobytes() == vector.vector.tobytes()
    assert back != vector.control(0)
    assert back != vector.neutralised()


def test_pairs_come_from_items_of_a_task(model):
    items = [
        SimpleNamespace(
            id=str(i),
            source=f"s{i}",
            prompt=lambda m, i=i: m.prompt(f"w5 w{6 + i} {{spot}}", spot="w9"),
            gold="w70",
            answers=("w70", "w80", "w81"),
        )
        for i in range(4)
    ]
    made = contrast_pairs(model, items)
    for item, pair in zip(items, made, strict=True):
        base = item.prompt(model)
        assert pair.positive.ids == (*base.ids, 70)
        assert pair.negative.ids[:-1] == base.ids
        assert pair.negative.ids[-1] in (80, 81)
        assert pair.positive.regions["spot"] == base.regions["spot"]
        assert pair.source == item.source
    assert SteeringVector.fit(model, made, 1).n_pairs == 4
    items[2].answers = ("w70",)
    with pytest.raises(DataError, match="no wrong answer"):
        contrast_pairs(model, items)


def test_bad_input_is_refused(model):
    made = pairs(3)
    same = [(p.positive, p.positive) for p in made]
    opposite = [*((p.positive, p.negative) for p in made), *((p.negative, p.positive) for p in made)]
    for given, message in [
        ([], "no contrast pairs"),
        (made[:1], "at least two"),
        (same, "equal"),
        (opposite, "cancel"),
    ]:
        with pytest.raises(DataError, match=message):
            SteeringVector.fit(model, given, 1)
    with pytest.raises(DataError, match="begin alike"):
        margins(model, [(Prompt.from_ids([1, 2]), Prompt.from_ids([3, 2]))])
    with pytest.raises(DataError, match="begin alike"):
        margins(model, [(Prompt.from_ids([1, 2]), Prompt.from_ids([1, 2, 3]))])
    ones = np.ones(32)
    for options, message in [
        ({"layer": 1, "vector": np.ones((2, 3))}, r"takes a vector \(D,\)"),
        ({"layer": 1, "vector": ones * np.nan}, "not finite"),
        ({"layer": 1, "vector": ones, "coefficient": float("inf")}, "not finite"),
        ({"layer": 1, "vector": ones, "units": "sigma"}, "raw or norm"),
        ({"layer": 1, "vector": ones, "units": "norm"}, "norm="),
        ({"layer": 1, "vector": ones, "heads": ((1, 0),)}, "site='head'"),
        ({"layer": 1, "vector": np.ones((1, 8)), "site": "head", "heads": ((2, 0),)}, "heads= of layer 1"),
        (
            {"layer": 1, "vector": np.ones((1, 8)), "site": "head", "heads": ((1, 0),), "positions": "x"},
            "every position",
        ),
    ]:
        with pytest.raises(RequestError, match=message):
            SteeringVector(**options)
    with pytest.raises(RequestError, match="heads of layer 1"):
        SteeringVector.fit(model, made, 1, site="head", heads=[(0, 1)])
    with pytest.raises(RequestError, match="'mean' or 'pca'"):
        SteeringVector.fit(model, made, 1, method="lda")
    with pytest.raises(RequestError, match="31 numbers"), model.edited(SteeringVector(1, np.ones(31))):
        pass


def test_the_layer_of_a_fitted_vector_is_the_one_that_moves_answers(planted):
    """The planted direction is read out by the unembedding, so every layer moves answers; random directions do not."""
    model, concept = planted
    made = [
        Example(
            f"{i}", f"s{i}", Prompt.from_ids(pair.positive.ids[:-1]), pair.positive.ids[-1:], (pair.negative.ids[-1:],)
        )
        for i, pair in enumerate(pairs(32))
    ]
    found = fit_steering(model, made[:20], made[20:])
    assert found.parameters == 32
    assert found.method.vector @ concept.numpy() > 5
    before, after = margins(model, answer_pairs(made[20:])), None
    with model.edited(found.method):
        after = margins(model, answer_pairs(made[20:]))
    assert (after - before).mean() > 1
    with pytest.raises(DataError, match="no wrong answer"):
        answer_pairs([replace(made[0], wrong=())])
