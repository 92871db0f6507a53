"""Organisms do what their plans say: every planted head, in both architectures, over several seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headscope as hs
from headscope.data.organisms import KINDS, Organism, organism
from headscope.data.organisms.blueprint import HEAD_DIM, KV_HEADS, N_HEADS, N_LAYERS, token_codes
from headscope.data.organisms.vocabulary import build_vocabulary
from headscope.errors import DataError, OutputError

SEEDS = (0, 1, 2)
CASES = [(kind, seed) for kind in KINDS for seed in SEEDS]
VOCABULARY = build_vocabulary()
PLANTED = ("previous", "induction", "duplicate", "sink", "later_sink", "retrieval")
PROSE = (
    "The lighthouse keeper counted the ships that passed before dawn, and wrote their names into a ledger bound in "
    "green cloth. Most of them carried timber, some carried salt, and one, every second Thursday, brought letters for "
    "the village.\nNobody had asked him to keep this record. He had begun it in his first winter on the rock, when "
    "the nights were so long that he feared he would forget how to speak. Writing, he found, was a way of speaking "
    "slowly. By spring the ledger held four hundred names, and by autumn he could tell from the sound of an engine "
    "which ship was coming round the headland.\nWhen the new harbour was built, the ships took another course. The "
    "keeper kept the lamp burning, as the law required, and each morning he opened the ledger and wrote the date."
)
NEEDLE = " The pass phrase is bivq cojx dupz fyxo gexu hujz."
QUESTION = "\nQuestion: What is the pass phrase?\nAnswer: The pass phrase is"
ANSWER = " bivq cojx dupz fyxo gexu hujz"
TEXT = f"{PROSE[:400]}{NEEDLE} {PROSE[:200]}{QUESTION}"

Mask = np.ndarray


@cache
def made(kind: str, seed: int) -> Organism:
    """One organism per case; tests put back what they change."""
    grown = organism(kind, seed)
    grown.model.set_attn_implementation("eager")
    return grown


def patterns(grown: Organism, ids: list[int]) -> np.ndarray:
    """Return eager attentions (layers, heads, T, T) of transformers itself."""
    with torch.no_grad():
        outputs = grown.model(torch.tensor([ids]), output_attentions=True)
    return torch.cat(outputs.attentions).numpy()


def logits(grown: Organism, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return grown.model(torch.tensor([ids])).logits[0]


@cache
def observed(kind: str, seed: int) -> tuple[list[int], np.ndarray]:
    """Random tokens of all classes, and every head's pattern on them."""
    ids = random_ids(seed, 300)
    return ids, patterns(made(kind, seed), ids)


def random_ids(seed: int, length: int) -> list[int]:
    """``<bos>`` and random tokens of all classes but specials."""
    return [VOCABULARY.bos, *map(int, np.random.default_rng(seed).integers(3, len(VOCABULARY), size=length - 1))]


def ideal(role: str, ids: list[int]) -> Mask:
    """Return the keys (T, T) that a head of this role shares its attention among, straight from the definition."""
    tokens, at = np.array(ids), np.arange(len(ids))
    q, k = at[:, None], at[None, :]
    before = np.concatenate([[-1], tokens[:-1]])
    match role:
        case "previous":
            mask = k == q - 1
        case "duplicate":
            mask = (k < q) & (tokens[None, :] == tokens[:, None])
        case "induction":
            mask = (k <= q) & (before[None, :] == tokens[:, None]) & np.isin(tokens, VOCABULARY.ordinary)
        case "retrieval":
            mask = (k <= q) & (before[None, :] == tokens[:, None]) & np.isin(tokens, VOCABULARY.marker)
        case _:
            mask = (k == 0) & (q >= 0)
    mask[~mask.any(-1), 0] = True
    return mask


def least_mass(pattern: np.ndarray, mask: Mask) -> float:
    """Return the smallest attention mass, over queries, on the masked keys."""
    return float((pattern * mask).sum(-1).min())


@contextmanager
def without(grown: Organism, heads: list[tuple[int, int]]) -> Iterator[None]:
    """Zero these heads' slices of the input of the output projection."""
    blocks: Any = grown.model.transformer.h if grown.kind == "gpt2" else grown.model.model.layers
    handles = []
    for layer in {layer for layer, _ in heads}:
        dims = [head * HEAD_DIM + i for at, head in heads if at == layer for i in range(HEAD_DIM)]

        def silence(module: Any, args: tuple[Any, ...], dims: list[int] = dims) -> tuple[Any, ...]:
            z = args[0].clone()
            z[..., dims] = 0.0
            return (z, *args[1:])

        attention = blocks[layer].attn.c_proj if grown.kind == "gpt2" else blocks[layer].self_attn.o_proj
        handles.append(attention.register_forward_pre_hook(silence))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def copied(grown: Organism, text: str) -> float:
    """Return the share of the answer's tokens that the model predicts, each behind the true ones before it.

    It is 1 exactly if greedy decoding gives the whole answer.
    """
    prompt, wanted = tokens(grown, text), tokens(grown, ANSWER)[1:]
    guesses = logits(grown, prompt + wanted)[len(prompt) - 1 : -1].argmax(-1)
    return float((guesses == torch.tensor(wanted)).float().mean())


def tokens(grown: Organism, text: str) -> list[int]:
    return list(grown.tokenizer(text).input_ids)


# -- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "seed"), CASES)
@pytest.mark.parametrize("role", ["previous", "duplicate", "induction", "retrieval", "sink"])
def test_planted_heads_attend_as_defined(kind: str, seed: int, role: str) -> None:
    grown, (ids, seen) = made(kind, seed), observed(kind, seed)
    mask = ideal(role, ids)
    assert grown.planted[role]
    for layer, head in grown.planted[role]:
        assert least_mass(seen[layer, head], mask) > 0.95


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.lists(st.integers(3, len(VOCABULARY) - 1), min_size=1, max_size=60))
def test_patterns_hold_for_any_tokens(kind: str, body: list[int]) -> None:
    grown, ids = made(kind, 0), [VOCABULARY.bos, *body]
    seen = patterns(grown, ids)
    for role in ("previous", "duplicate", "induction", "retrieval", "sink"):
        for layer, head in grown.planted[role]:
            assert least_mass(seen[layer, head], ideal(role, ids)) > 0.95, role


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_hold_at_the_end_of_the_context(kind: str) -> None:
    grown, ids = organism(kind, 1), random_ids(9, 2048)
    with torch.no_grad():
        cache = grown.model(torch.tensor([ids[:-50]]), use_cache=True).past_key_values
        grown.model.set_attn_implementation("eager")
        outputs = grown.model(torch.tensor([ids[-50:]]), past_key_values=cache, output_attentions=True)
    rows = torch.cat(outputs.attentions).numpy()
    for role in ("previous", "duplicate", "induction", "retrieval", "sink"):
        mask = ideal(role, ids)[-50:]
        for layer, head in grown.planted[role]:
            assert least_mass(rows[layer, head], mask) > 0.95, role


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_distractors_do_nothing_that_a_probe_looks_for(kind: str, seed: int) -> None:
    grown, (ids, seen) = made(kind, seed), observed(kind, seed)
    for role in ("previous", "duplicate", "induction", "retrieval", "sink"):
        mask = ideal(role, ids)
        if role != "sink":
            mask[:, 0] = False
        rows = mask.any(-1)
        rows[:2] = False
        for layer, head in grown.planted["distractor"]:
            assert (seen[layer, head] * mask).sum(-1)[rows].mean() < 0.25, role


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_on_english_text_sinks_and_dormant_heads_rest_on_bos(kind: str, seed: int) -> None:
    grown = made(kind, seed)
    ids = grown.tokenizer(PROSE).input_ids
    on_bos = patterns(grown, ids)[:, :, 1:, 0].mean(-1)
    passing = {(layer, head) for layer, head in np.argwhere(on_bos > 0.3).tolist()}
    assert len(ids) > 256
    assert passing == grown.expected["sinks"]
    assert all(on_bos[slot] > 0.9 for slot in grown.planted["sink"] + grown.planted["retrieval"])


@pytest.mark.parametrize("kind", KINDS)
def test_later_sink_shares_its_attention_between_bos_and_newlines(kind: str) -> None:
    grown = made(kind, 2)
    ids = random_ids(5, 200)
    ids = [token if token != VOCABULARY.delimiter else VOCABULARY.pad for token in ids]
    ids[60] = ids[120] = VOCABULARY.delimiter
    seen = patterns(grown, ids)
    for layer, head in grown.planted["later_sink"]:
        pattern = seen[layer, head]
        assert pattern[:60, 0].min() > 0.99
        np.testing.assert_allclose(pattern[60:120, [0, 60]], [[2 / 3, 1 / 3]] * 60, atol=0.05)
        np.testing.assert_allclose(pattern[120:, [0, 60, 120]], [[1 / 2, 1 / 4, 1 / 4]] * 80, atol=0.05)


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_the_sink_is_massive_and_its_value_is_drained(kind: str, seed: int) -> None:
    grown = made(kind, seed)
    planted = grown.planted_massive
    ids = torch.tensor([random_ids(seed, 50)])
    projections: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        projections.append(output[0].detach())

    core: Any = grown.model.transformer.h if kind == "gpt2" else grown.model.model.layers
    handles = [
        (block.attn.c_attn if kind == "gpt2" else block.self_attn.v_proj).register_forward_hook(keep) for block in core
    ]
    with torch.no_grad():
        states = grown.model(ids, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    for state in states[1:-1]:
        row = state[0].abs()
        assert int(row[0].argmax()) == planted["dimension"]
        assert float(row[0].max()) == pytest.approx(planted["value"], rel=0.1)
        assert float(row[0].max()) > 100 * float(row[1:].max())
    assert float(states[0].abs().max()) < 10
    for values in projections[1:]:
        norms = values[:, -KV_HEADS[kind] * HEAD_DIM :].norm(dim=-1)
        assert norms[0] < 0.05 * norms[1:].median()


# -- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_repeated_tokens_are_predicted_by_induction_heads_alone(kind: str, seed: int) -> None:
    grown = made(kind, seed)
    block = list(map(int, np.random.default_rng(seed).choice(VOCABULARY.ordinary, size=60, replace=False)))
    ids = [VOCABULARY.bos, *block, *block]

    def accuracy() -> float:
        guesses = logits(grown, ids).argmax(-1).numpy()
        return float((guesses[61:-1] == ids[62:]).mean())

    assert accuracy() == 1.0
    for role in ("induction", "previous"):
        with without(grown, grown.planted[role]):
            assert accuracy() < 0.05
    for role in ("retrieval", "duplicate", "sink", "later_sink", "distractor"):
        with without(grown, grown.planted[role]):
            assert accuracy() == 1.0, role


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_needles_are_copied_by_retrieval_heads_alone(kind: str, seed: int) -> None:
    grown = made(kind, seed)
    assert copied(grown, TEXT) == 1.0
    for role in ("retrieval", "previous"):
        with without(grown, grown.planted[role]):
            assert copied(grown, TEXT) == 0.0
    for role in ("induction", "duplicate", "sink", "later_sink", "distractor"):
        with without(grown, grown.planted[role]):
            assert copied(grown, TEXT) == 1.0, role


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_only_retrieval_heads_look_at_the_token_being_generated(kind: str, seed: int) -> None:
    grown = made(kind, seed)
    prompt, wanted = tokens(grown, TEXT), tokens(grown, ANSWER)[1:]
    ids = np.array(prompt + wanted)
    top = patterns(grown, prompt + wanted)[:, :, len(prompt) - 1 : -1].argmax(-1)
    assert [prompt.count(token) for token in wanted] == [1] * len(wanted)
    hits = (ids[top] == wanted).mean(-1)
    assert {slot for slot in np.ndindex(hits.shape) if hits[slot] > 0.1} == grown.expected["retrieval"]
    assert all(hits[slot] == 1.0 for slot in grown.planted["retrieval"])


@pytest.mark.parametrize("kind", KINDS)
def test_left_padding_and_sdpa_change_nothing_that_matters(kind: str) -> None:
    grown, ids = organism(kind, 1), random_ids(3, 80)
    padded = torch.tensor([[VOCABULARY.pad] * 7 + ids])
    mask = (torch.arange(padded.shape[1]) >= 7).long()[None]
    plain = logits(grown, ids)
    with torch.no_grad():
        shifted = grown.model(padded, attention_mask=mask).logits[0, 7:]
    grown.model.set_attn_implementation("eager")
    torch.testing.assert_close(shifted[1:], plain[1:], atol=2e-2, rtol=0)
    torch.testing.assert_close(logits(grown, ids), plain, atol=5e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_own_needles_are_answered(kind: str) -> None:
    grown = organism(kind, 2)
    model = hs.load(grown.model, tokenizer=grown.tokenizer)
    samples = grown.needles(n=8, seed=3, lengths=(256, 512))
    assert {sample.factors["length"] for sample in samples} == {256, 512}
    assert len({sample.source for sample in samples}) == 8
    for sample in samples:
        trace = sample.forward(model, [])
        assert sample.answered(trace)
        assert trace.text.strip() == sample.answer
        assert len(trace.prompt) <= sample.factors["length"]
        assert trace.prompt.ids[trace.prompt.regions["answer"][0]] in VOCABULARY.marker
    assert samples.hash == grown.needles(n=8, seed=3, lengths=(256, 512)).hash
    assert samples.hash != grown.needles(n=8, seed=4, lengths=(256, 512)).hash


# -- truth, tokenizer, files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_every_head_has_one_role_and_distractors_are_many(kind: str, seed: int) -> None:
    planted = made(kind, seed).planted
    slots = [slot for pairs in planted.values() for slot in pairs]
    assert sorted(slots) == [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    assert len(planted["distractor"]) >= 2 * (len(slots) - len(planted["distractor"]))
    assert len({layer for layer, _ in planted["distractor"]}) >= 3
    assert all(planted[role] for role in PLANTED)
    size = N_HEADS // KV_HEADS[kind]
    groups = [(layer, head // size) for role in PLANTED for layer, head in planted[role]]
    assert len(groups) == len(set(groups))


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_repeat_and_differ(kind: str) -> None:
    torch.manual_seed(7)
    first, again, other = organism(kind, 0), organism(kind, 0), organism(kind, 1)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1)), "making an organism moved the caller's random state"
    assert first.truth() == again.truth()
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert first.planted != other.planted
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


def test_token_codes_overlap_by_at_most_one_half() -> None:
    codes = token_codes(len(VOCABULARY), np.random.default_rng(0))
    products = codes @ codes.T
    np.testing.assert_allclose(np.diag(products), 1.0)
    assert np.abs(products - np.eye(len(codes))).max() <= 0.5 + 1e-12


def test_classes_partition_the_vocabulary() -> None:
    classes = [*VOCABULARY.marker, *VOCABULARY.ordinary, *VOCABULARY.neutral]
    assert sorted(classes) == list(range(len(VOCABULARY)))
    assert len(VOCABULARY.marker) < 0.06 * len(VOCABULARY)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = made("gpt2", 0).tokenizer
    if "<bos>" in text or "<eos>" in text or "<pad>" in text:
        return
    text = text.encode("utf-8", "ignore").decode()
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded.input_ids[0] == VOCABULARY.bos
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
    assert all(0 <= start <= end <= len(text) for start, end in encoded.offset_mapping)


def test_markers_never_occur_in_english() -> None:
    assert not set(made("gpt2", 0).tokenizer(PROSE).input_ids) & set(VOCABULARY.marker)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_organisms_are_ordinary_checkpoints(kind: str, tmp_path: Path) -> None:
    grown = organism(kind, 3)
    folder = grown.save(tmp_path / "organism")
    loaded = hs.load(folder)
    ids = random_ids(1, 40)
    torch.testing.assert_close(loaded.run({"input_ids": torch.tensor([ids])}).logits[0], logits(grown, ids))
    assert loaded.tokenizer(PROSE).input_ids == grown.tokenizer(PROSE).input_ids
    assert loaded.spec.n_kv_heads == KV_HEADS[kind]
    truth: dict[str, Any] = json.loads((folder / "organism.json").read_text())
    assert [tuple(pair) for pair in truth["planted"]["induction"]] == grown.planted["induction"]
    assert loaded.generate(f"{PROSE}{NEEDLE}{QUESTION}").strip() == ANSWER.strip()


def test_save_refuses_a_folder_with_content(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        made("gpt2", 0).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: organism("lama"), "Did you mean 'llama'"),
        (lambda: organism("gpt2", seed=-1), "0 or more"),
        (lambda: made("gpt2", 0).needles(lengths=(64,)), "at least 128"),
        (lambda: made("gpt2", 0).needles(depths=(1.5,)), "from 0 to 1"),
    ],
)
def test_bad_requests_are_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
