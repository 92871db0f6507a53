from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headscope import data
from headscope.data.repeats import vocabulary
from headscope.errors import DataError


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, 100), times=st.integers(2, 5), seed=st.integers(0, 9))
def test_every_copy_is_the_block(make_model, length, times, seed):
    model = make_model("unigram", n_ctx=None)
    sample = data.repeats(model, n=2, length=length, times=times, seed=seed)[1]
    prompt = sample.prompt(model)
    assert sample.block == length
    assert len(prompt) == sample.offset + length * times
    assert prompt.ids[0] == model.tokenizer.bos_token_id
    for copy in range(times):
        start = sample.offset + copy * sample.block
        assert prompt.ids[start : start + sample.block] == sample.tokens
    assert len(set(sample.tokens)) == length
    assert not set(sample.tokens) & set(model.tokenizer.all_special_ids)
    assert prompt.regions["first"] == tuple(range(1, 1 + length))
    assert prompt.regions["copies"] == tuple(range(1 + length, len(prompt)))


def test_length_follows_the_context(make_model):
    assert data.repeats(make_model(n_ctx=None), n=1)[0].block == 128
    assert data.repeats(make_model(n_ctx=101), n=1)[0].block == 50
    assert data.repeats(make_model(n_ctx=101), n=1, times=4)[0].block == 25
    with pytest.raises(DataError, match=r"2 blocks of 51 tokens do not fit into the context of 101.*length=50"):
        data.repeats(make_model(n_ctx=101), length=51)
    with pytest.raises(DataError, match="at least 2"):
        data.repeats(make_model(), times=1)


def test_no_tokens_of_markup(make_model):
    model = make_model()
    model.tokenizer.add_tokens(["<unused7>", "[unused3]", "<0x0A>"])
    model.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model.spec.vocab_size = len(model.tokenizer)
    names = set(model.tokenizer.convert_ids_to_tokens(vocabulary(model)))
    assert not names & {"<unused7>", "[unused3]", "<0x0A>", "<pad>", "<s>", "</s>", "<|im_start|>"}
    model.spec.vocab_size = 100
    assert max(vocabulary(model)) < 100


def test_models_without_tokenizer_or_bos(make_model):
    model = make_model()
    model.tokenizer = None
    sample = data.repeats(model, n=1, length=5)[0]
    assert (sample.start, sample.offset) == (3, 1)
    assert not {3, 4} & set(sample.tokens)
    model.hf.config.bos_token_id = None
    bare = data.repeats(model, n=1, length=5)[0]
    assert (bare.start, bare.offset, len(bare.ids)) == (None, 0, 10)
    model.hf.config.bos_token_id = 10**6
    assert data.repeats(model, n=1, length=5)[0].start is None


def test_small_vocabularies_repeat_tokens(make_model):
    model = make_model()
    model.spec.vocab_size = 12
    assert data.repeats(model, n=1, length=40)[0].block == 40
    model.spec.vocab_size = 6
    with pytest.raises(DataError, match="fewer than two tokens"):
        data.repeats(model, n=1, length=4)


def test_forward_runs_without_logits(model):
    sample = data.repeats(model, n=1, length=5)[0]
    assert sample.forward(model, ("a",)) == ("run", sample.prompt(model), ["a"], False)
    assert sample.factors == {"length": 5, "times": 2}
