"""Data sets on a real, tiny model: what they capture is what the probes read."""

from __future__ import annotations

import numpy as np
import pytest

import headscope as hs
from headscope.attention.requests import Entropy, TopKeys


@pytest.fixture(scope="module")
def model():
    made = hs.data.organism("llama", seed=0)
    return hs.load(made.model, tokenizer=made.tokenizer)


def test_needles_are_traced(model):
    sample = hs.data.needles(model, n=1, lengths=(200,))[0]
    trace = sample.forward(model, [TopKeys(1)])
    assert trace["top_keys"].sizes["step"] == len(trace.tokens) <= sample.max_new_tokens
    assert set(trace.prompt.regions) >= {"bos", "needle", "answer", "question", "haystack"}
    assert isinstance(sample.answered(trace), bool)


def test_texts_and_repeats_are_run(model):
    for sample in (hs.data.texts(model, n=1, length=32)[0], hs.data.repeats(model, n=1, length=12)[0]):
        run = sample.forward(model, [Entropy()])
        assert run.logits is None
        assert run["entropy"].sizes["query"] == len(run.prompt)
        assert np.isfinite(run["entropy"].values).all()
