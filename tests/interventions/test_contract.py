"""The contract of all methods: every case of ``methods.py`` runs every clause that makes sense for it.

Methods on attention are compared with ``eager.py``, which applies their formulas to whole patterns after the softmax.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import headscope as hs
from headscope.attention import session
from headscope.errors import CheckpointError, RequestError
from headscope.interventions import METHODS
from headscope.interventions.store import encode, load, save
from headscope.kernels import dispatch, reference, rows
from headscope.kernels.rows import Stats
from headscope.models.tiny import tiny
from tests.interventions.eager import watching
from tests.interventions.methods import CASES, HEADS, IDS, MODELS, MORE, Case, model, prompt

ROWS = [name for name, case in CASES.items() if case.formula is not None]
OTHERS = [name for name in CASES if name not in ROWS]
HEADWISE = [name for name, case in CASES.items() if case.heads is not None]
FAMILIES = ["gpt2", "llama", "mistral", "gemma2", "gemma3", "gpt_oss"]
FEW = ["llama", "mistral", "gpt_oss"]

every_case = pytest.mark.parametrize("name", CASES)
every_row_case = pytest.mark.parametrize("name", ROWS)


def across(names: Iterable[str], families: Iterable[str]) -> Any:
    """Cases on families, without pairs that the method refuses."""
    pairs = [(of, name) for name in names for of in families if of not in CASES[name].unserved]
    return pytest.mark.parametrize(("of", "name"), pairs)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


def logits(of: Any, method: Any = None, given: Any = None, **options: Any) -> torch.Tensor:
    with of.edited(*(() if method is None else (method,))):
        found: torch.Tensor = of.run(prompt(of) if given is None else given, **options).logits
    return found


def formula(case: Case) -> Any:
    """What the case does to a pattern; nothing, for methods that leave patterns alone."""
    return case.formula or (lambda a, at: a)


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES.values()} == set(METHODS)


# -- strength ------------------------------------------------------------------------------------------------------


@across(CASES, FEW)
def test_neutral_strength_changes_no_bit(of: str, case: Case, folder: Path) -> None:
    it, method = model(of), case.make(model(of), folder)
    neutral = method.neutralised()
    assert neutral.neutral
    assert not method.neutral
    assert type(neutral) is type(method)
    assert torch.equal(logits(it, neutral), logits(it))
    plain = it.trace(prompt(it), teacher=MORE).logits
    with it.edited(neutral):
        assert torch.equal(it.trace(prompt(it), teacher=MORE).logits, plain)


@across(CASES, FEW)
def test_full_strength_changes_logits_and_leaves_nothing(of: str, case: Case, folder: Path) -> None:
    it, plain = model(of), logits(model(of))
    changed = logits(it, case.make(it, folder))
    assert (changed - plain).abs().max() > 1e-5
    assert torch.isfinite(changed).all()
    assert torch.equal(logits(it), plain)


@every_case
def test_nothing_is_left_after_exceptions(case: Case, folder: Path) -> None:
    it = model("llama")
    plain, method, found = logits(it), case.make(it, folder), []

    def failing(where: str) -> None:
        def interrupt(*args: Any) -> None:
            raise InterruptedError

        with it.edited(method):
            if where == "in the block":
                found.append(logits(it))
                raise InterruptedError
            handle = it.sites.stack(None)[1].output.register_forward_pre_hook(interrupt)
            try:
                it.run(prompt(it)) if where == "in a run" else it.trace(prompt(it), teacher=MORE)
            finally:
                handle.remove()

    for where in ("in the block", "in a run", "in a trace"):
        with pytest.raises(InterruptedError):
            failing(where)
        assert torch.equal(logits(it), plain)
    assert torch.equal(found[0], logits(it, method))


@across(HEADWISE, FEW)
def test_heads_not_chosen_are_bit_identical_in_the_edited_layer(of: str, case: Case, folder: Path) -> None:
    it = model(of)
    wanted = [hs.HeadOutput(layers=[0])]
    plain = it.run(prompt(it), wanted)["head_output"].values
    with it.edited(case.make(it, folder)):
        edited = it.run(prompt(it), wanted)["head_output"].values
    assert case.heads is not None
    chosen = [head for layer, head in case.heads if layer == 0]
    others = [head for head in range(plain.shape[2]) if head not in chosen]
    assert others
    assert (plain[:, :, others] == edited[:, :, others]).all()
    assert (plain[:, :, chosen] != edited[:, :, chosen]).any()


@pytest.mark.parametrize("name", HEADWISE)
def test_other_heads_can_be_chosen(case: Case, folder: Path) -> None:
    it = model("llama")
    method = case.make(it, folder).with_heads([(0, 0), (0, 2), (1, 3)])
    assert set(method.heads) == {(0, 0), (0, 2), (1, 3)}
    assert (logits(it, method) - logits(it, case.make(it, folder))).abs().max() > 1e-5


# -- the formula ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def engine(name: str, monkeypatch: pytest.MonkeyPatch, it: Any) -> Iterator[None]:
    """Run edited rows by one of the ways that there are."""
    with monkeypatch.context() as patch:
        if name == "compiled" and rows.library() is None:
            pytest.skip("no C compiler on this machine")
        if name == "torch":
            patch.setattr(rows, "library", lambda: None)
            patch.setattr(dispatch, "library", lambda: None)
        if name == "reference":
            patch.setattr(session, "compute", _by_reference)
        yield


def _by_reference(inp: Any, wants: Any, queries: Any = None) -> Stats:
    out = reference.attend(inp)
    if queries is not None:
        out = torch.stack([out[sample][:, rows.clamp(min=0)] for sample, rows in enumerate(queries)])
    return Stats(out=out)


def observe(name: str, it: Any, case: Case, method: Any, patch: pytest.MonkeyPatch) -> Any:
    """Return the oracle after one run of the prompt by the engine of that name."""
    with watching(it, prompt(it), case.heads or (), formula(case)) as seen:  # noqa: SIM117
        with engine(name, patch, it):
            if name != "gradients":
                logits(it, method)
                return seen
            it.hf.requires_grad_(True)
            try:
                with it.live(prompt(it), method) as tensors:
                    assert it.hf(**tensors, use_cache=False).logits.requires_grad
            finally:
                it.hf.requires_grad_(False)
    return seen


@pytest.mark.parametrize(
    ("way", "of"),
    [
        *(("torch", of) for of in MODELS),
        *itertools.product(("reference", "gradients"), ("group 4", "gemma2", "gpt_oss")),
    ],
)
@every_row_case
def test_engines_equal_the_formula_in_double_precision(
    way: str, of: str, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = model(of, torch.float64)
    seen = observe(way, it, case, case.make(it, folder), monkeypatch)
    assert len(seen.errors) == 2
    assert seen.moved > 1e-2
    assert max(seen.errors) < 1e-11


@pytest.mark.parametrize(
    ("way", "of"),
    [
        *(("compiled", of) for of in ("gpt2", "group 4", "mistral", "gemma2", "gpt_oss")),
        *itertools.product(("torch", "reference", "gradients"), ("group 4", "gpt_oss")),
    ],
)
@every_row_case
def test_errors_are_at_most_twice_those_of_eager(
    way: str, of: str, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = model(of)
    seen = observe(way, it, case, case.make(it, folder), monkeypatch)
    assert len(seen.errors) == 2
    assert max(seen.spread) <= 2 * max(seen.eager_spread) + 5e-8
    assert (
        max(seen.errors) <= 4 * max(seen.eager) + 2e-7
    )  # of a few hundred numbers the largest error is a matter of luck


@pytest.mark.parametrize("of", FAMILIES)
def test_the_oracle_is_the_eager_attention_of_transformers(of: str) -> None:
    """Without a formula its patterns are those that transformers' own eager attention returns."""
    it = model(of)
    with watching(it, prompt(it), instead=True) as seen, torch.no_grad():
        found = it.hf(input_ids=torch.tensor([IDS])).logits
    it.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            own = it.hf(input_ids=torch.tensor([IDS]), output_attentions=True)
    finally:
        it.hf.set_attn_implementation("headscope")
    assert (found - own.logits).abs().max() < 5e-5
    for layer, pattern in enumerate(own.attentions):
        assert (pattern - seen.patterns[layer]).abs().max() < 1e-5


@across(ROWS, ["llama", "gemma2", "gpt_oss"])
def test_rows_sum_to_what_the_method_says(of: str, case: Case, folder: Path) -> None:
    """To 1; with learned sinks to what the formula leaves to keys."""
    it = model(of)
    with watching(it, prompt(it), case.heads or (), formula(case)) as seen:  # noqa: SIM117
        with it.edited(case.make(it, folder)):
            found = it.run(prompt(it), [hs.Rows(queries="all")])["rows"].values
    assert case.heads is not None
    for layer, head in case.heads:
        mine, expected = torch.from_numpy(found[layer, 0, head]), seen.patterns[layer][0, head]
        assert (mine - expected).abs().max() < 5e-6
        if of != "gpt_oss":
            assert (mine.sum(-1) - 1).abs().max() < 5e-6
        assert (mine >= 0).all()
        assert mine.triu(1).abs().max() == 0


# -- decoding, batches, padding ------------------------------------------------------------------------------------


@across(ROWS, [*FAMILIES, "group 8"])
def test_decoding_equals_prefill(of: str, case: Case, folder: Path) -> None:
    """Forced token by token, the model says what it says when the oracle reads all of it at once.

    What is found in the prompt is frozen there: the oracle looks for sinks in the prompt's rows alone.
    """
    it = model(of, torch.float64)
    method = case.make(it, folder)
    with it.edited(method):
        steps = it.trace(prompt(it), teacher=MORE).logits[0]
    whole = prompt(it, MORE)
    with watching(it, whole, HEADS, formula(case), instead=True, prompt_length=len(IDS)) as seen, torch.no_grad():
        expected = it.hf(input_ids=torch.tensor([whole.ids])).logits[0]
    assert seen.moved > 1e-2
    # Norms of transformers round to float32 on the way, in double precision too.
    assert (steps - expected[len(IDS) - 1 : -1]).abs().max() < 2e-5


@across(OTHERS, FEW)
def test_decoding_equals_prefill_without_a_formula(of: str, case: Case, folder: Path) -> None:
    it = model(of, torch.float64)
    with it.edited(case.make(it, folder)):
        steps = it.trace(prompt(it), teacher=MORE).logits[0]
        expected = it.run(prompt(it, MORE)).logits[0]
    assert (steps - expected[len(IDS) - 1 : -1]).abs().max() < 2e-5


SHORT = IDS[:21]


@pytest.mark.parametrize("side", ["left", "right"])
@across(CASES, ["llama", "gemma3"])
def test_a_batch_equals_its_prompts_alone_on_either_side(side: Any, of: str, case: Case, folder: Path) -> None:
    it = model(of)
    method = case.make(it, folder)
    long, short = prompt(it), prompt(it, ids=SHORT)
    alone = [logits(it, method, p)[0] for p in (long, short)]
    both = logits(it, method, [long, short], side=side)
    rows = both[1, -len(SHORT) :] if side == "left" else both[1, : len(SHORT)]
    assert (both[0] - alone[0]).abs().max() < 1e-4
    assert (rows - alone[1]).abs().max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@across(ROWS, FEW)
def test_padded_batches_equal_the_formula(side: Any, of: str, case: Case, folder: Path) -> None:
    it = model(of, torch.float64)
    both = [prompt(it), prompt(it, ids=SHORT), prompt(it, ids=IDS[1:])]
    with watching(it, both, case.heads or (), formula(case), side=side) as seen:
        logits(it, case.make(it, folder), both, side=side)
    assert seen.moved > 1e-2
    assert max(seen.errors) < 1e-11


@pytest.fixture(scope="module")
def speaking() -> Any:
    tokenizer = hs.data.organism("llama", seed=0).tokenizer
    return hs.load(tiny("llama", vocab_size=len(tokenizer)), tokenizer=tokenizer, validate=False)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
@every_case
def test_every_step_of_a_generation_equals_the_formula(
    options: dict[str, Any], case: Case, folder: Path, speaking: Any
) -> None:
    """Greedy, beams and samples, of two prompts of different lengths padded on the left."""
    both = [prompt(speaking), prompt(speaking, ids=SHORT)]
    method = case.make(speaking, folder)
    with watching(speaking, both, case.heads or (), formula(case)) as seen:  # noqa: SIM117
        with speaking.edited(method):
            texts = speaking.generate(both, max_new_tokens=5, min_new_tokens=5, **options)
    assert len(texts) == 2
    if case.formula is not None:
        assert len(seen.errors) == 2 * 5
        assert seen.moved > 1e-2
        assert max(seen.errors) <= 4 * max(seen.eager) + 2e-6
    if not options:
        with speaking.edited(method):
            texts = speaking.generate(both, max_new_tokens=5)
            assert texts == [speaking.trace(p, max_new_tokens=5).text for p in both]


@every_case
def test_a_run_forgets_the_run_before_it(case: Case, folder: Path) -> None:
    """What was found in one prompt is not used for the next, inside one block too."""
    it = model("llama")
    other = prompt(it, ids=tuple(reversed(IDS)))
    method = case.make(it, folder)
    fresh = logits(it, method, other)
    with it.edited(method):
        it.run(prompt(it))
        assert torch.equal(it.run(other).logits, fresh)
        it.trace(prompt(it), teacher=MORE)
        assert torch.equal(it.run(other).logits, fresh)


# -- what a row may know -------------------------------------------------------------------------------------------


@across(CASES, FEW)
def test_later_tokens_do_not_leak(of: str, case: Case, folder: Path) -> None:
    it = model(of, torch.float64)
    method = case.make(it, folder)
    a, b = (logits(it, method, p)[0, : len(IDS) - 1] for p in (prompt(it), prompt(it, ids=(*IDS[:-1], 40))))
    if case.looks_ahead:  # by definition: its sinks are those of the whole prompt
        assert (a - b).abs().max() > 1e-6
    else:
        assert (a - b).abs().max() < 1e-6


@every_case
def test_what_is_generated_does_not_leak_into_the_prompt(case: Case, folder: Path) -> None:
    it = model("llama", torch.float64)
    with it.edited(case.make(it, folder)):
        a, b = (it.trace(prompt(it), teacher=[*MORE, last]).logits[0] for last in (7, 40))
    assert torch.equal(a, b)


# -- files ---------------------------------------------------------------------------------------------------------


@every_case
def test_files_hold_the_method_and_its_model(case: Case, folder: Path, tmp_path: Path) -> None:
    it, other = model("llama"), model("llama", seed=1)
    method = case.make(it, folder)
    path = save(tmp_path / "method.json", method, model=it)
    (back,) = load(path, it)
    assert type(back) is type(method)
    assert encode(back) == encode(method)
    assert torch.equal(logits(it, back), logits(it, method))
    with pytest.raises(CheckpointError, match="differ"):
        load(path, other)


@pytest.mark.parametrize("name", HEADWISE)
def test_heads_of_another_model_are_refused(case: Case, folder: Path) -> None:
    large, small = model("group 4"), model("llama")
    method = case.make(large, folder).with_heads([(0, 0), (0, 7), (1, 2)])
    with pytest.raises(RequestError, match="head"), small.edited(method):
        pass


@every_row_case
def test_a_second_method_acts_on_what_the_first_left(case: Case, folder: Path) -> None:
    it, then = model("llama", torch.float64), CASES["SpotLight"]
    assert case.formula is not None
    assert then.formula is not None
    one, two = case.formula, then.formula
    first, second = case.make(it, folder), then.make(it, folder)
    with watching(it, prompt(it), HEADS, lambda a, at: two(one(a, at), at)) as seen, it.edited(first, second):
        together = it.run(prompt(it)).logits
    assert max(seen.errors) < 1e-11
    with it.edited(first), it.edited(second):
        assert torch.equal(it.run(prompt(it)).logits, together)
