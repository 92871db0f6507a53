"""PINE: the order of segments changes nothing, and the arithmetic is that of the definition."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from headscope.attention import requests as ask
from headscope.attention.edits import HeadEdit, KnockOut
from headscope.attention.engine import NAME
from headscope.errors import MemoryBudgetError, RequestError, UnsupportedError
from headscope.interventions.pine import PINE
from headscope.interventions.rotary import Rotation, rotations
from headscope.interventions.store import decode, encode
from headscope.models.families import build_spec
from headscope.models.model import Model
from headscope.models.prompt import Prompt
from headscope.models.tiny import tiny

# Rotary in whole and in part, in halves, with a soft-cap, with learned sinks, normalised keys, groups of 1, 2 and 4.
FAMILIES = ["llama", "gpt_neox", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_oss"]
WIDE = {"sliding_window": 128}
BEFORE, SEGMENTS, AFTER = [1, 50, 51], ([7, 8, 9], [20, 21], [30, 31, 32, 33]), [60, 61, 62]
NAMES = ("a", "b", "c")
ORDERS = list(itertools.permutations(range(3)))


def make(family: str, **options) -> Model:
    hf = tiny(family, **(WIDE if family in ("mistral", "gemma2", "gemma3", "gpt_oss") else {}), **options)
    hf.set_attn_implementation(NAME)
    return Model(hf=hf, tokenizer=None, spec=build_spec(hf, family), source=family, name=family)


@pytest.fixture(scope="module")
def models():
    made: dict[str, Model] = {}
    return lambda family: made.setdefault(family, make(family)) if family not in made else made[family]


def arranged(order, before=BEFORE, segments=SEGMENTS, after=AFTER) -> Prompt:
    ids, regions = list(before), {}
    for index in order:
        regions[NAMES[index]] = range(len(ids), len(ids) + len(segments[index]))
        ids += segments[index]
    return Prompt.from_ids([*ids, *after], regions)


def answers(model, order, **kwargs):
    with model.edited(PINE(NAMES)):
        return model.run(arranged(order, **kwargs)).logits[0, -len(AFTER) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_segments_changes_nothing(models, family):
    model = models(family)
    found = torch.stack([answers(model, order) for order in ORDERS])
    assert (found - found[0]).abs().max() < 1e-4
    plain = torch.stack([model.run(arranged(order)).logits[0, -3:] for order in ORDERS])
    assert (plain - plain[0]).abs().max() > 1e-2
    assert (found - plain).abs().max() > 1e-2


def test_in_double_precision_nothing_is_left_but_rounding(models):
    model = make("llama")
    model.hf.double()
    found = torch.stack([answers(model, order) for order in ORDERS])
    assert found.dtype == torch.float64
    assert (found - found[0]).abs().max() < 1e-6  # the model's own rotary tables are in single precision


@pytest.mark.parametrize("family", FAMILIES)
def test_rotations_are_found_from_the_keys_themselves(models, family):
    model = models(family)
    found = rotations(model)
    assert len(found) == 2
    assert all(r.frequencies[0] == 1 for r in found)
    width = model.spec.head_dim
    assert [len(r.frequencies) for r in found] == [width // (8 if family == "gpt_neox" else 2)] * 2


def test_the_planes_of_a_rotation_and_their_composition():
    x = torch.randn(4, 8, dtype=torch.float64)
    turn = Rotation(torch.tensor([1.0, 0.1], dtype=torch.float64), torch.tensor([0, 2]), torch.tensor([1, 3]))
    there = turn.turn(x, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(there[..., 4:], x[..., 4:])
    assert torch.equal(there[0], x[0])
    assert (turn.turn(there, torch.tensor([0, -1, -2, -3])) - x).abs().max() < 1e-12
    assert (there.norm(dim=-1) - x.norm(dim=-1)).abs().max() < 1e-12


def brute_force(model: Model, layer: int, prompt: Prompt) -> np.ndarray:
    """The definition, pair by pair, on one layer's queries and keys: patterns (H, T, T) in float64."""
    site = model.sites.stack(None)[layer]
    rotary = model.hf.model.rotary_emb
    caught = {}
    handle = site.attention.register_forward_pre_hook(
        lambda m, a, k: caught.update(x=(a[0] if a else k["hidden_states"])), with_kwargs=True
    )
    with model.edited(PINE(NAMES)):
        model.run(prompt)
    handle.remove()
    x, T = caught["x"][0].double(), len(prompt)
    H, D = site.heads, model.spec.head_dim
    weight = lambda part: getattr(site.attention, part).weight.double()  # noqa: E731
    q = (x @ weight("q_proj").T).view(T, H, D).detach()
    k = (x @ weight("k_proj").T).view(T, site.kv_heads, D).repeat_interleave(site.heads // site.kv_heads, 1).detach()
    freq = rotary.inv_freq.double()

    def at(vector, position):
        a, b = vector.chunk(2)
        c, s = torch.cos(position * freq), torch.sin(position * freq)
        return torch.cat([a * c - b * s, b * c + a * s])

    spans = [list(prompt.regions[name]) for name in NAMES]
    first, end = min(map(min, spans)), max(map(max, spans)) + 1
    owner = {p: g for g, span in enumerate(spans) for p in span}
    out = np.zeros((H, T, T))
    for h in range(H):
        bare = torch.einsum("td,sd->ts", q[:, h], k[:, h]) * D**-0.5

        def share(i, own, bare=bare):
            keys = [p for g, span in enumerate(spans) if g != own for p in span]
            probability = dict(zip(keys, torch.softmax(bare[i, keys], 0).tolist(), strict=True))
            return [sum(probability.get(p, 0) for p in span) / len(span) for span in spans]

        for i in range(T):
            own = owner.get(i)
            if i < first:
                place = {j: j for j in range(i + 1)}
                here = i
            else:
                rows = [i] if own is None else spans[own]
                importance = np.sum([share(r, own) for r in rows], axis=0)
                if own is not None:
                    importance[own] = np.inf
                place = {j: j for j in range(first)}
                stop = end
                for g in np.argsort(-importance):
                    start = stop - len(spans[g])
                    place |= {p: start + t for t, p in enumerate(spans[g])}
                    stop = start
                here = i if own is None else place[i]
                if own is None:
                    place |= {j: j for j in range(end, i + 1)}
                else:
                    place = {j: p for j, p in place.items() if p <= here}
            logits = {j: float(at(q[i, h], here) @ at(k[j, h], p)) * D**-0.5 for j, p in place.items()}
            total = np.logaddexp.reduce(list(logits.values()))
            for j, logit in logits.items():
                out[h, i, j] = np.exp(logit - total)
    return out


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_patterns_are_those_of_the_definition(models, order):
    model, prompt = models("llama"), arranged(order)
    with model.edited(PINE(NAMES)):
        pattern = model.run(prompt, [ask.Pattern()])["pattern"].values
    for layer in range(2):
        assert np.abs(pattern[layer, 0] - brute_force(model, layer, prompt)).max() < 1e-5
    assert np.abs(pattern.sum(-1) - 1).max() < 1e-5
    later = np.triu(np.ones((len(prompt), len(prompt)), bool), 1)
    start, end = 3, 12
    later[start:end, start:end] = False
    assert np.abs(pattern[..., later]).max() == 0  # nothing outside the segments sees what follows


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_equals_decoding(models, family):
    model, start = models(family), arranged((1, 2, 0))
    with model.edited(PINE(NAMES)):
        trace = model.trace(start, max_new_tokens=6)
        whole = Prompt.from_ids(
            [*start.ids, *trace.tokens[:-1]], {k: v for k, v in start.regions.items() if k in NAMES}
        )
        run = model.run(whole)
    assert (trace.logits[0] - run.logits[0, len(start) - 1 :]).abs().max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_batches_and_padding_change_nothing(models, family, side):
    model = models(family)
    one, other = arranged((2, 1, 0)), arranged((0, 1, 2), before=[1, 44, 45, 46, 47, 48], after=[60, 61, 62, 63])
    with model.edited(PINE(NAMES)):
        both = model.run([one, other], side=side).logits
        for row, prompt in enumerate((one, other)):
            begin = len(other) - len(prompt) if side == "left" else 0
            assert (both[row, begin : begin + len(prompt)] - model.run(prompt).logits[0]).abs().max() < 1e-4


def test_generation_with_beams_and_padding_does_not_depend_on_the_order(models):
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    hf = models("llama").hf
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")
    model = Model(hf=hf, tokenizer=tokenizer, spec=models("llama").spec, source="llama", name="llama")
    segments = ["w7 w8 w9", "w20 w21", "w30 w31 w32 w33"]
    prompts = [PINE.prompt(model, "w1 w50 w51", [segments[i] for i in order], "w60 w61 w62") for order in ORDERS]
    assert prompts[0].ids == arranged((0, 1, 2)).ids
    pine = PINE(("segment_0", "segment_1", "segment_2"))
    with model.edited(pine):
        assert len({model.generate(p, max_new_tokens=6) for p in prompts}) == 1
        beams = model.generate(prompts[0], max_new_tokens=6, num_beams=3)
        longer = PINE.prompt(model, "w1 w2 w3 w4 w5 w6", segments, "w60")
        together = model.generate([prompts[3], longer], max_new_tokens=6, num_beams=3)
        assert together == [beams, model.generate(longer, max_new_tokens=6, num_beams=3)]


def test_segments_of_equal_text_may_stand_anywhere(models):
    twin = ([7, 8, 9], [7, 8, 9], [30, 31, 32, 33])
    found = torch.stack([answers(models("llama"), order, segments=twin) for order in ORDERS])
    assert (found - found[0]).abs().max() < 1e-4


def test_one_segment_is_plain_attention_to_the_bit(models):
    model, prompt = models("llama"), arranged((0, 1, 2))
    base = model.run(prompt).logits
    for method in (PINE(("a",)), PINE(), PINE(NAMES).neutralised()):
        assert method.neutral
        with model.edited(method):
            assert torch.equal(model.run(prompt).logits, base)
    assert not PINE(NAMES).neutral


def test_gradients_are_those_of_the_arranged_attention(models):
    model, prompt = make("llama"), arranged((0, 1, 2))
    model.hf.double()
    with model.edited(PINE(NAMES)):
        logits = model.run(prompt).logits
    weight = model.hf.model.layers[0].self_attn.q_proj.weight
    with model.live(prompt, PINE(NAMES)) as tensors:
        found = model.hf(**tensors).logits
        found[0, -1, 5].backward()
    assert (found - logits).abs().max() < 1e-9
    analytic, step = float(weight.grad[3, 4]), 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[3, 4] += sign * step
        with model.edited(PINE(NAMES)):
            values.append(float(model.run(prompt).logits[0, -1, 5]))
        with torch.no_grad():
            weight[3, 4] -= sign * step
    assert abs((values[0] - values[1]) / (2 * step) - analytic) < 0.01 * abs(
        analytic
    )  # the norms compute in single precision


def test_it_composes_with_other_edits(models):
    model = models("llama")
    hide, zero = KnockOut([(0, 1), (1, 2)], ["b"]), HeadEdit([(1, 0)])
    found = []
    for order in ORDERS:
        prompt = arranged(order)
        with model.edited(PINE(NAMES), hide, zero):
            run = model.run(prompt, [ask.Mass(["b"])])
        mass = run["mass"].values[:, 0, ..., 0]
        assert np.abs(mass[[0, 1], [1, 2], -3:]).max() == 0
        assert mass[0, 0, -3:].min() > 0
        found.append(run.logits[0, -3:])
        with model.edited(PINE(NAMES), hide, zero):
            bare = model.run(prompt).logits[0, -3:]
        assert (bare - found[-1]).abs().max() < 1e-5  # captured or not
    assert max(float((x - found[0]).abs().max()) for x in found) < 1e-4


def test_nothing_is_left_behind_by_an_exception(models):
    model, prompt = models("llama"), arranged((0, 1, 2))
    base = model.run(prompt).logits
    with model.edited(PINE((*NAMES, "nowhere"))), pytest.raises(RequestError, match="nowhere"):
        model.run(prompt)
    with pytest.raises(KeyError), model.edited(PINE(NAMES)):  # noqa: PT012
        model.run(prompt)
        raise KeyError
    assert torch.equal(model.run(prompt).logits, base)


def test_json_round_trip():
    method = PINE(NAMES)
    assert decode(json.loads(json.dumps(encode(method)))) == method


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert", "t5", "vit"])
def test_models_without_rotary_positions_are_refused_by_name(family):
    hf = tiny(family)
    hf.set_attn_implementation(NAME)
    model = Model(hf=hf, tokenizer=None, spec=build_spec(hf, family), source=family, name=family)
    with pytest.raises(UnsupportedError, match=family), model.edited(PINE(NAMES)):
        pass


def test_a_window_shorter_than_the_prompt_is_refused():
    hf = tiny("mistral")
    hf.set_attn_implementation(NAME)
    model = Model(hf=hf, tokenizer=None, spec=build_spec(hf, "mistral"), source="mistral", name="mistral")
    with model.edited(PINE(NAMES)), pytest.raises(UnsupportedError, match="last 6 tokens of 15"):
        model.run(arranged((0, 1, 2)))


def test_frequencies_that_change_with_the_length_are_refused():
    model = make("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(UnsupportedError, match="dynamic"), model.edited(PINE(NAMES)):
        pass


def test_memory_is_refused_before_it_is_taken(models, monkeypatch):
    model = models("llama")
    with model.edited(PINE(NAMES)):
        monkeypatch.setattr("headscope.attention.budget.available", lambda: 1000)
        monkeypatch.setattr("headscope.models.forward.check_budget", lambda *a: 0)
        with pytest.raises(MemoryBudgetError, match="1 × 15 tokens"):
            model.run(arranged((0, 1, 2)))


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"a": [3, 4], "b": [6, 7]}, "1 tokens lie between"),
        ({"a": [3, 4, 5], "b": [5, 6]}, "shared"),
        ({"a": [3, 5], "b": [6, 7]}, "unbroken"),
        ({"a": [0, 1], "b": [2, 3]}, "before the first segment"),
    ],
)
def test_segments_that_do_not_follow_each_other_are_refused(models, regions, message):
    model = models("llama")
    with model.edited(PINE(("a", "b"))), pytest.raises(RequestError, match=message):
        model.run(Prompt.from_ids(range(5, 17), regions))


def test_a_segment_named_twice_is_refused():
    with pytest.raises(RequestError, match="twice"):
        PINE(("a", "a"))


@pytest.mark.slow
def test_a_real_model_answers_the_same_in_any_order(smollm2):
    documents = ["The harbour opens at nine.\n", "The code of the vault is 7421.\n", "Grass is green in the valley.\n"]
    pine, found, plain = PINE(("segment_0", "segment_1", "segment_2")), [], []
    for order in ORDERS:
        prompt = PINE.prompt(smollm2, "Read.\n", [documents[i] for i in order], "The code of the vault is")
        plain.append(smollm2.run(prompt, logits="last").logits)
        with smollm2.edited(pine):
            found.append(smollm2.run(prompt, logits="last").logits)
            assert "7421" in smollm2.generate(prompt, max_new_tokens=6)
    assert max(float((x - found[0]).abs().max()) for x in found) < 1e-4
    assert max(float((x - plain[0]).abs().max()) for x in plain) > 0.5
