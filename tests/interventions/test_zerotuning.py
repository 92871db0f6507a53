"""ZeroTuning: the first token that is attended to, what is left of it, and whether it is the one to scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import RequestError
from headscope.interventions import ZeroTuning, check_token
from tests.interventions.small import patterns, prompt, small

HEAD = ((0, 1),)


@pytest.mark.parametrize("gamma", [0.2, 3.0])
def test_the_token_gets_gamma_and_the_rest_shares_what_is_left(gamma) -> None:
    model = small()
    plain, edited = patterns(model)[1], patterns(model, ZeroTuning(HEAD, gamma))[1]
    a = plain[:, 0]
    assert edited[:, 0] == pytest.approx(gamma * a / (1 + (gamma - 1) * a), abs=1e-6)
    assert edited[1:, 1:] == pytest.approx(plain[1:, 1:] / (1 + (gamma - 1) * a[1:, None]), abs=1e-6)


def test_gamma_0_takes_the_token_away_but_for_rows_that_see_nothing_else() -> None:
    model = small()
    plain, edited = patterns(model)[1], patterns(model, ZeroTuning(HEAD, 0))[1]
    assert edited[0] == pytest.approx(plain[0])
    assert (edited[1:, 0] == 0).all()
    assert edited.sum(-1) == pytest.approx(np.ones(24), abs=1e-5)


@pytest.mark.parametrize("given", ["prompts", "tensors"])
def test_padding_is_not_the_first_token(given) -> None:
    """Also while decoding, and where the caller pads by himself and names no region."""
    model = small()
    short = prompt(model, 20)
    method = ZeroTuning(((0, 1), (1, 2)), 4.0)
    with model.edited(method):
        alone = model.run(short).logits[0, -1]
        if given == "prompts":
            batch = model.run([prompt(model), short]).logits[1, -1]
        else:
            ids = torch.tensor([[0] * 4 + list(short.ids)])
            mask = torch.tensor([[0] * 4 + [1] * 20])
            batch = model.run({"input_ids": ids, "attention_mask": mask}).logits[0, -1]
    assert batch == pytest.approx(alone, abs=1e-4)


def test_padding_is_not_the_first_token_while_generating() -> None:
    made = hs.data.organism("llama", seed=0)
    model = hs.load(made.model, tokenizer=made.tokenizer, validate=False)
    ids = [int(i) for i in np.random.default_rng(0).integers(5, 60, 30)]
    long, short = model.prompt_from_ids(ids), model.prompt_from_ids(ids[:11])
    with model.edited(ZeroTuning(gamma=0.05)):
        alone = [model.generate(p, max_new_tokens=8) for p in (long, short)]
        assert model.generate([long, short], max_new_tokens=8) == alone


def test_a_range_of_tokens_is_scaled_as_one() -> None:
    model = small()
    plain, edited = patterns(model)[1], patterns(model, ZeroTuning(HEAD, 2.0, token=(0, 1, 2)))[1]
    a = plain[:, :3].sum(-1)
    assert edited[:, :3].sum(-1) == pytest.approx(2 * a / (1 + a), abs=1e-6)


def test_the_check_tells_a_sink_from_a_first_token() -> None:
    model = small()
    given = prompt(model)
    means = patterns(model)[1].sum(0) / np.arange(24, 0, -1)
    best = int(means[:18].argmax())
    found = check_token(model, given, ZeroTuning(HEAD, 2.0, token=best))
    assert found.ok
    assert found.position == best
    assert found.mass == pytest.approx(means[best], abs=1e-6)
    assert found.share == 1
    assert "more than any other" in found.note
    worst = int(means[:18].argmin())
    found = check_token(model, given, ZeroTuning(HEAD, 2.0, token=worst))
    assert not found.ok
    assert found.rival == best
    assert found.share == 0
    assert f"token={best}" in found.note
    with pytest.raises(RequestError, match="24 tokens"):
        check_token(model, given, ZeroTuning(token=24))


@pytest.mark.slow
def test_the_first_token_of_a_real_model_is_its_sink(smollm2) -> None:
    text = "The harbour opens at nine, and the first boat leaves an hour later. " * 4
    found = check_token(smollm2, text)
    assert found.ok
    assert found.mass > 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"gamma": -1}, "gamma"), ({"gamma": float("inf")}, "gamma"), ({"token": ()}, "is empty")],
)
def test_senseless_fields(fields, message) -> None:
    with pytest.raises(RequestError, match=message):
        ZeroTuning(**fields)


def test_a_token_beyond_the_prompt_is_an_error() -> None:
    model = small()
    with model.edited(ZeroTuning(HEAD, 2.0, token=24)), pytest.raises(RequestError, match="outside the 24 tokens"):
        model.run(prompt(model))
