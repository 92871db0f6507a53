"""Probes on real forward passes: planted heads are found, and every score equals that of eager attention."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.data.dataset import DataSet
from headscope.data.organisms import KINDS, organism
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny as tiny_model
from headscope.probes import find, rank_all
from headscope.probes.examples import explain
from headscope.probes.patterns import PatternKeys, pattern_scores
from headscope.probes.retrieval import copy_scores
from headscope.probes.sinks import sink_masses
from headscope.probes.teacher import TeacherForced

PATTERNS = ("previous", "duplicate", "induction", "echo")


@cache
def grown(kind: str, seed: int = 0) -> tuple[Any, Any]:
    made = organism(kind, seed)
    return made, hs.load(made.model, tokenizer=made.tokenizer)


@dataclass(frozen=True)
class PassPhrase:
    """A needle whose answer is a run of markers, which an organism can copy."""

    id: str
    source: str
    words: tuple[str, ...]
    before: str
    after: str
    factors: dict[str, Any] = field(hash=False)

    kind = "needles"

    @property
    def answer(self) -> str:
        return " ".join(self.words)

    def prompt(self, model: Any) -> Prompt:
        prompt = model.prompt(
            "{haystack}{needle}{haystack}\nQuestion: What is the pass phrase?\nAnswer: The pass phrase is",
            haystack=[self.before, self.after],
            needle=f" The pass phrase is {self.answer}.",
        )
        return prompt.with_regions({"answer": prompt.find(self.answer, within="needle")})

    def forward(self, model: Any, capture: Any) -> Any:
        return model.trace(self.prompt(model), list(capture), max_new_tokens=8, stop=".")


PROSE = (
    "The lighthouse keeper counted the ships that passed before dawn, and wrote their names into a ledger bound in "
    "green cloth. Most of them carried timber, some carried salt, and one brought letters for the village. "
)


def phrases(made: Any, n: int = 10) -> DataSet[PassPhrase]:
    markers = [made.tokenizer.decode([i]).strip() for i in made.vocabulary.marker]
    samples = []
    for i in range(n):
        rng = np.random.default_rng(i)
        words = tuple(rng.choice(markers, 5, replace=False).tolist())
        cut = 60 + 5 * i
        samples.append(
            PassPhrase(f"p{i}", f"p{i}", words, PROSE[:cut], PROSE[cut:], {"length": 200, "depth": round(i / n, 1)})
        )
    return DataSet("needles", samples)


@pytest.mark.parametrize("kind", KINDS)
def test_pattern_probes_find_exactly_the_planted_heads(kind):
    made, model = grown(kind)
    data = hs.data.repeats(model, n=14, length=40)
    found = rank_all([find(name) for name in PATTERNS], model, {"repeats": data})
    assert {name: set(scores.selected) for name, scores in found.items()} == {
        name: made.expected[name] for name in PATTERNS
    }
    assert made.expected["induction"] | made.expected["echo"] == {
        (row.layer, row.head) for row in found["echo"].table.itertuples() if row.razor
    }
    kv_heads = found["echo"].details["kv_heads"]
    assert len(kv_heads) == model.spec.n_layers * model.spec.n_kv_heads
    assert kv_heads["echo"].max() == found["echo"].table["score"].max()


@pytest.mark.parametrize("kind", KINDS)
def test_sink_heads_are_exactly_the_planted_heads(kind):
    made, model = grown(kind)
    data = hs.data.texts(model, n=14, length=256)
    found = rank_all([find("sinks"), find("sink-tokens")], model, {"texts": data})
    assert set(found["sinks"].selected) == made.expected["sinks"]
    dimensions = found["sink-tokens"].details["dimensions"]
    massive = dimensions[dimensions["massive"]]
    assert set(massive["dimension"]) == {made.planted_massive["dimension"]}
    assert massive["layer"].min() == made.planted_massive["layer"] + 1
    tokens = found["sink-tokens"].details["tokens"]
    assert tokens["token"].iloc[0] == made.tokenizer.decode([made.planted_massive["token"]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("teacher", [False, True])
def test_retrieval_heads_are_exactly_the_planted_heads(kind, teacher):
    made, model = grown(kind)
    data = phrases(made)
    scores = find("retrieval", teacher=teacher).rank(model, data)
    assert set(scores.selected) == made.expected["retrieval"]
    assert scores.table["score"].max() == 1
    assert set(scores.details["activation"].query("selected")["kind"]) == {"always"}
    assert scores.details["by_factor"]["recall"].min() == 1

    rows = explain(model, scores, TeacherForced(data) if teacher else data, k=2, samples=2)
    best = rows.loc[rows.groupby(["sample", "layer", "head"])["weight"].idxmax()]
    assert len(best) == 4
    words = {sample.id: sample.answer for sample in data}
    assert all(row.key_token.strip() in words[row.sample] for row in best.itertuples())
    assert best["weight"].min() > 0.5


def test_examples_of_patterns_show_the_pattern():
    _, model = grown("llama")
    data = hs.data.repeats(model, n=12, length=30)
    scores = find("induction").rank(model, data)
    rows = explain(model, scores, data, k=1, samples=3)
    best = rows.loc[rows.groupby("sample")["weight"].idxmax()]
    assert set(best["query"] - best["key"]) == {29}
    assert set(rows["sample"]) <= {sample.id for sample in data}


def eager(model: Any, ids: Any) -> np.ndarray:
    """Attention (L, H, T, T) of the same weights in transformers' own eager implementation."""
    copy = type(model.hf)(deepcopy(model.hf.config))
    copy.load_state_dict(model.hf.state_dict())
    copy.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.cat(copy.eval()(torch.tensor([list(ids)]), output_attentions=True).attentions).double().numpy()


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request):
    return hs.load(tiny_model(request.param))


def test_pattern_scores_equal_eager_attention(tiny):
    sample = hs.data.repeats(tiny, n=1, length=15, times=3)[0]
    attention = eager(tiny, sample.ids)
    for name in ("previous", "duplicate", "induction"):
        probe = find(name)
        seen = probe.observe(sample.forward(tiny, probe.requests(tiny.spec)), sample)
        keys = PatternKeys(name)(sample.prompt(tiny))
        at = np.where(keys >= 0, attention[..., np.arange(len(keys))[:, None], np.maximum(keys, 0)], 0)
        for key, expected in pattern_scores(at, keys).items():
            np.testing.assert_allclose(seen[key], expected, atol=2e-6, err_msg=f"{name} {key}")


def test_sink_scores_equal_eager_attention(tiny):
    rng = np.random.default_rng(1)
    prompt = Prompt.from_ids([1, *rng.integers(2, 97, 70)])
    probe = find("sinks", later_threshold=0.02)
    seen = probe.observe(tiny.run(prompt, probe.requests(tiny.spec), logits=False), None)
    attention = eager(tiny, prompt.ids)
    sums = attention.sum(-2)
    expected = sink_masses(sums / np.arange(71, 0, -1), sums, 0, later_threshold=0.02)
    for key in ("score", "null", "total"):
        np.testing.assert_allclose(seen[key], expected[key], atol=2e-6, err_msg=key)
    assert sorted(map(tuple, seen["later_at"].tolist())) == sorted(map(tuple, expected["later_at"].tolist()))
    np.testing.assert_allclose(seen["first_64"], attention[..., :64, 0].mean(-1), atol=2e-6)


def test_retrieval_scores_equal_eager_attention(tiny):
    @dataclass
    class Sample:
        id: str = "s"
        answer: str = "x"
        forced: bool = True

    ids = [1, *np.random.default_rng(2).integers(2, 97, 30).tolist()]
    generated = [ids[10], ids[11], ids[11], 5]
    prompt = Prompt.from_ids(
        ids, {"needle": range(8, 14), "answer": range(10, 13), "haystack": range(1, 20), "question": range(20, 31)}
    )
    probe = find("retrieval", teacher=True)
    run = tiny.trace(prompt, probe.requests(tiny.spec), teacher=generated)
    seen = probe.observe(run, Sample())
    whole = [*ids, *generated]
    rows = eager(tiny, whole)[..., len(ids) - 1 : len(whole) - 1, :]
    expected = copy_scores(rows.argmax(-1), whole, generated, [10, 11, 12])
    for key, values in expected.items():
        np.testing.assert_allclose(seen[key], values, err_msg=key)


def test_sink_tokens_equal_eager_attention(tiny):
    prompt = Prompt.from_ids([1, *np.random.default_rng(3).integers(2, 97, 60)])
    probe = find("sink-tokens")
    run = tiny.run(prompt, probe.requests(tiny.spec), logits=False)
    seen = probe.observe(run, None)
    with torch.no_grad():
        states = tiny.hf(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    # transformers norms the last hidden state; the embedding and the first block's output are compared.
    others = np.setdiff1d(np.arange(61), seen["token_at"])
    norms = [states[i][0].norm(dim=-1).double().numpy() for i in (0, 1)]
    np.testing.assert_allclose(seen["norm"][:2], [n[0] / np.median(n[others]) for n in norms], rtol=1e-4)
    assert np.isfinite(seen["score"]).all()


@pytest.fixture(scope="module")
def lens_model(tmp_path_factory):
    """The organism in TransformerLens, read from its checkpoint: it loads the tokenizer again by its path."""
    bridge = pytest.importorskip("transformer_lens.model_bridge")
    transformers = pytest.importorskip("transformers")
    folder = grown("gpt2")[0].save(tmp_path_factory.mktemp("organism") / "gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return bridge.TransformerBridge.boot_transformers("gpt2", hf_model=model.eval(), tokenizer=tokenizer)


@pytest.mark.parametrize("exclude", [False, True])
def test_columns_agree_with_the_detector_of_transformer_lens(exclude, lens_model):
    detector = pytest.importorskip("transformer_lens.head_detector")
    made, model = grown("gpt2")
    words = [made.tokenizer.decode([i]) for i in made.vocabulary.ordinary]
    text = "".join(np.random.default_rng(0).choice(words, 20, replace=False).tolist() * 2)
    ids = lens_model.to_tokens(text)[0].tolist()
    assert ids[0] == made.vocabulary.bos
    prompt = Prompt.from_ids(ids)
    for name in ("previous", "duplicate", "induction"):
        probe = find(name, exclude_bos=exclude, exclude_current_token=exclude)
        seen = probe.observe(model.run(prompt, probe.requests(model.spec), logits=False), None)
        for measure in ("mul", "abs"):
            scores = detector.detect_head(
                lens_model,
                text,
                "induction_head" if name == "induction" else f"{name}_token_head",
                exclude_bos=exclude,
                exclude_current_token=exclude,
                error_measure=measure,
            )
            ours = seen[f"tl_{measure}"]
            told = np.isfinite(ours)  # pure sink heads have nothing left to divide by without column 0
            assert told.all() or (exclude and measure == "mul" and told.sum() >= 30)
            # Their "abs" is rounded to three decimals.
            np.testing.assert_allclose(ours[told], scores.numpy()[told], atol=6e-4, err_msg=f"{name} {measure}")
