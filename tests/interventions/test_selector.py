from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.attention.requests import QK
from headscope.errors import DataError, UnsupportedError
from headscope.interventions.selector import Contrast, contrasts, select_by_keys
from headscope.models.tiny import tiny

QUESTIONS = ("What is the secret key?", "Who came to the house at night, and when?", "Where was the river?")


def data(n: int = 4) -> list[Contrast]:
    return [
        Contrast(
            id=str(i),
            source=str(i % 3),
            context="It was said that the code was found in the water by the man.",
            answer="the code was found",
            relevant=QUESTIONS[i % 3],
            irrelevant=QUESTIONS[(i + 1) % 3],
        )
        for i in range(n)
    ]


def model(family: str = "llama", **options: Any) -> Any:
    tokenizer = hs.data.organism("llama", seed=0).tokenizer
    return hs.load(tiny(family, vocab_size=len(tokenizer), **options), tokenizer=tokenizer, validate=False)


def test_only_the_planted_key_head_can_tell() -> None:
    """Two of the four query heads of layer 1 share the one key head that still reads the stream."""
    made = model()
    with torch.no_grad():
        made.hf.model.layers[1].self_attn.k_proj.weight[:8] = 0
    found = select_by_keys(made, data())
    assert set(found.top(2)) == {(1, 2), (1, 3)}
    assert set(found.selected) == {(1, 2), (1, 3)}
    assert found.head(1, 2)["score"] == found.head(1, 3)["score"] > 0.01
    # Keys of layer 0 know their own token alone, and a key of zeros knows nothing.
    for pair in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]:
        assert found.head(*pair)["score"] < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_scores_are_distances_of_keys_at_the_same_positions(family: str) -> None:
    """Both questions brought to one length by hand: then no shift is needed, and the distance can be read off."""
    made = model(family)
    pad = "the the the the"
    item = Contrast("a", "a", "He said the code was found.", "the code", f"What {pad}?", f"When {pad}?")
    keys, spans = [], []
    for prompt in item.prompts(made):
        store = made.run(prompt, [QK()]).qk["qk"]
        keys.append(store)
        spans.append(list(prompt.positions("answer")))
    assert spans[0] == spans[1]
    found = select_by_keys(made, [item])
    for layer, head in made.spec.heads():
        a, b = (_keys(store, layer, head)[spans[0]] for store in keys)
        assert found.head(layer, head)["score"] == pytest.approx(float((a - b).norm(dim=-1).mean()), abs=1e-5)
        whole = float((a - b).norm()) / len(spans[0])
        assert found.head(layer, head)["min_diff"] == pytest.approx(whole, abs=1e-5)


def _keys(store: Any, layer: int, head: int) -> torch.Tensor:
    inp = store._layers[layer]
    return inp.k[0, head // (inp.q.shape[1] // inp.k.shape[1])].double()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_length_of_the_question_is_no_difference(family: str) -> None:
    """Layer 0 knows tokens and positions alone: questions of other lengths must not move its keys."""
    found = select_by_keys(model(family), data())
    scores = found.map()
    assert np.nanmax(scores[0]) < 1e-5
    assert np.nanmin(scores[1]) > 1e-3


def test_resumed_is_undisturbed(tmp_path: Path) -> None:
    made = model()
    whole = select_by_keys(made, data())

    def killed(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select_by_keys(made, data(), out=tmp_path, progress=killed)
    assert len(list(tmp_path.rglob("*.shard"))) == 2
    assert select_by_keys(made, data(), out=tmp_path).table.equals(whole.table)


def needle(source: str, question: str) -> Any:
    return SimpleNamespace(
        id=f"{source}-0",
        source=source,
        before="It was night.",
        needle=" The code was found. ",
        after="",
        question=question,
    )


def test_contrasts_of_needles_ask_about_something_else() -> None:
    samples = [needle("a", "What?"), needle("b", "Who?"), needle("c", "When?")]
    made = contrasts(samples, seed=3)
    for item, sample in zip(made, samples, strict=True):
        assert item.relevant == sample.question
        assert item.irrelevant in {"What?", "Who?", "When?"} - {sample.question}
        assert item.answer == "The code was found."
        assert item.answer in item.context
    assert contrasts(samples, seed=3) == made
    with pytest.raises(DataError, match="same question"):
        contrasts([needle("a", "What?"), needle("b", "What?")])


def test_bad_input() -> None:
    with pytest.raises(DataError, match="needs contrasts"):
        select_by_keys(model(), [])
    with pytest.raises(UnsupportedError, match="no decoder"):
        select_by_keys(hs.load(tiny("bert"), validate=False), data())
