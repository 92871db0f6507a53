"""Defects of published code that concern a method of intervention: each is a test that ours does not have it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import headscope as hs
from headscope.interventions.ablation import Ablation
from headscope.interventions.act import ACT
from headscope.interventions.pasta import PASTA
from headscope.interventions.pine import PINE
from headscope.interventions.spotlight import SpotLight
from headscope.interventions.var import VAR
from headscope.models.tiny import tiny
from tests.interventions import eager
from tests.interventions.eager import watching
from tests.interventions.methods import CASES, HEADS, IDS, MORE, model, prompt


def rows(of: Any, method: Any = None, given: Any = None) -> torch.Tensor:
    """Return the rows of the first layer, (H, T, T), as captures hold them: in single precision."""
    with of.edited(*(() if method is None else (method,))):
        found = of.run(prompt(of) if given is None else given, [hs.Rows(queries="all", layers=[0])])["rows"].values
    return torch.from_numpy(found[0, 0]).double()


# -- PASTA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_pasta_is_one_bias_for_any_number_of_spans(n: int) -> None:
    """Published: n spans add up to n log alpha outside them and n − 1 log alpha inside."""
    it = model("llama", torch.float64)
    spans = {f"span{i}": list(range(4 * i + 1, 4 * i + 4)) for i in range(n)}
    given = it.prompt_from_ids(IDS, spans)
    inside = sorted(position for span in spans.values() for position in span)
    outside = [position for position in range(len(IDS)) if position not in inside]
    plain = rows(it, None, given)[1]
    edited = rows(it, PASTA(heads=HEADS, region=tuple(spans), alpha=0.03), given)[1]
    for row in range(2, len(IDS)):
        bias = edited[row, : row + 1].log() - plain[row, : row + 1].log()
        bias = bias - bias[inside[0]]  # the softmax forgets what all keys share
        assert bias[[k for k in inside if k <= row]].abs().max() < 1e-6
        assert (bias[[k for k in outside if k <= row]] - math.log(0.03)).abs().max() < 1e-6


def test_pasta_leaves_spans_their_weight_beside_what_is_generated() -> None:
    """The same where it shows after the softmax: beside generated tokens, for two spans as for one."""
    it = model("llama", torch.float64)
    wanted = [hs.Rows(queries="last", layers=[0])]
    plain = it.trace(prompt(it), wanted, teacher=MORE)["rows"].values[0, 0, 1, -1]
    for region in ("span", ("span", "tail")):
        with it.edited(PASTA(heads=HEADS, region=region, alpha=0.03)):
            edited = it.trace(prompt(it), wanted, teacher=MORE)["rows"].values[0, 0, 1, -1]
        new = len(IDS) + 1
        assert edited[5] / edited[new] == pytest.approx(plain[5] / plain[new], rel=1e-6)


@pytest.mark.parametrize("padded", [False, True], ids=["no mask", "mask"])
def test_pasta_needs_no_mask_and_remembers_no_precision(padded: bool) -> None:
    """Published: crashes where SDPA gets no mask, and keeps the bias of the first precision that it sees."""
    method = PASTA(heads=HEADS, region="span", alpha=0.03)
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        it = model("llama", dtype)
        given = [prompt(it), prompt(it, ids=IDS[:21])] if padded else prompt(it)
        with watching(it, given, HEADS, eager.pasta(("span",), 0.03)) as seen, it.edited(method):
            it.run(given)
        assert len(seen.spread) == 2
        assert max(seen.spread) <= 2 * max(seen.eager_spread) + 1e-12


# -- ACT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["llama", "gpt2", "mistral", "gemma3"])
def test_act_says_the_same_step_by_step_as_in_one_pass(of: str) -> None:
    """Published: a step of one row is normalised as if it were the first row of a prompt."""
    it = model(of, torch.float64)
    method, formula = ACT(heads=HEADS, threshold=0.06, beta=0.2), eager.act(0.06, 0.2)
    whole = prompt(it, MORE)
    with it.edited(method):
        steps = it.trace(prompt(it), teacher=MORE).logits[0]
        shorter = it.trace(prompt(it), teacher=MORE[:2]).logits[0]
    with watching(it, whole, HEADS, formula, instead=True, prompt_length=len(IDS)), torch.no_grad():
        expected = it.hf(input_ids=torch.tensor([whole.ids])).logits[0, len(IDS) - 1 : -1]
    plain = it.trace(prompt(it), teacher=MORE).logits[0]
    assert (steps - expected).abs().max() < 2e-5
    assert (steps - plain).abs().amax(-1).min() > 1e-3  # in effect at every step
    assert torch.equal(steps[:2], shorter)


def test_act_has_an_effect_on_mistral() -> None:
    """Published: Mistral's patch goes to the class of Llama, and nothing happens."""
    it = model("mistral")
    plain = it.run(prompt(it)).logits
    with it.edited(ACT(heads=HEADS, threshold=0.06, beta=0.2)):
        assert (it.run(prompt(it)).logits - plain).abs().max() > 1e-3


def test_act_counts_sinks_of_each_query_head() -> None:
    """Column means belong to query heads; a mean over the heads that share keys would mix their sinks."""
    it = model("group 4", torch.float64)
    a = rows(it)
    mean = a.sum(1) / (len(IDS) - torch.arange(len(IDS)))
    sinks = [torch.nonzero(mean[head] > 0.06).flatten()[1:].tolist() for head in range(4)]
    assert len({tuple(found) for found in sinks}) > 1
    edited = rows(it, ACT(heads=[(0, head) for head in range(4)], threshold=0.06, beta=0.0))
    for head, found in enumerate(sinks):
        gone = torch.nonzero((edited[head] == 0).all(0) & (a[head] > 0).any(0)).flatten().tolist()
        # Key 0 of the first row has nowhere else to go; no other column keeps a row that sees its sinks alone.
        assert gone == found


def test_one_head_of_a_group_is_edited_alone() -> None:
    """keys_values: what belongs to one query head is not shared with those that have the same keys."""
    it = model("group 8", torch.float64)
    plain = rows(it)
    edited = rows(it, PASTA(heads=[(0, 3)], region="span"))
    others = [head for head in range(8) if head != 3]
    assert torch.equal(plain[others], edited[others])
    assert (plain[3] - edited[3]).abs().max() > 1e-2


# -- VAR -----------------------------------------------------------------------------------------------------------


def test_var_has_names_that_say_which_way_they_run() -> None:
    """Published: p and rho of the code are one minus those of the paper. Ours say what is kept and what is allowed."""
    names = {field.name: field.default for field in dataclasses.fields(VAR)}
    assert names["keep_fraction"] == 0.6
    assert names["max_sink_portion"] == 0.5
    assert not {"p", "rho"} & set(names)
    documented = VAR.__doc__ or ""
    assert "1 − p of the paper" in documented
    assert "1 − ρ of the paper" in documented
    it = model("llama", torch.float64)
    common = {"dimensions": (0, 1, 2), "region": "span", "heads": HEADS, "tau": 1.2, "min_total": 0.0}
    plain = rows(it)[1]
    none = rows(it, VAR(**common, keep_fraction=0.0, max_sink_portion=1.0))[1]
    some = rows(it, VAR(**common, keep_fraction=0.75, max_sink_portion=1.0))[1]
    lost = (plain > 0) & (none == 0)
    assert lost.any()
    assert (some[lost] / plain[lost] - 0.75).abs().max() < 1e-6
    assert torch.equal(rows(it, VAR(**common, keep_fraction=0.0, max_sink_portion=0.0))[1], plain)


# -- SpotLight -----------------------------------------------------------------------------------------------------


def test_spotlight_lifts_each_row_by_its_own_need() -> None:
    """Published: one factor for a whole layer."""
    it = model("llama", torch.float64)
    span = list(range(4, 9))
    plain = rows(it)[1]
    mass = plain[:, span].sum(-1)
    target = float(mass[12:].median())
    edited = rows(it, SpotLight(heads=HEADS, region="span", psi=target))[1]
    low = (mass > 0) & (mass < target)
    assert 3 < int(low[9:].sum()) < len(IDS) - 9
    assert (edited[~low] - plain[~low]).abs().max() < 1e-6
    expected = target / (target + 1 - mass[low])
    assert (edited[low][:, span].sum(-1) - expected).abs().max() < 1e-6
    lifts = expected / mass[low]
    assert lifts.max() / lifts.min() > 1.2  # no single factor would do


# -- ablations -----------------------------------------------------------------------------------------------------


def _ablations(it: Any) -> dict[str, Any]:
    reference = [prompt(it, ids=tuple(reversed(IDS)))]
    return {
        "zero": Ablation(heads=HEADS),
        "mean": Ablation.fit(it, reference, mode="mean", heads=HEADS),
        "resample": Ablation.fit(it, reference, mode="resample", heads=HEADS),
        "mask": Ablation(heads=HEADS, mode="mask", region="tail"),
        "mask of what is to come": Ablation(heads=HEADS, mode="mask", region=(-1,)),
        "MLP": Ablation(mlps=(0,)),
        "layer": Ablation(layers=(1,)),
        "neurons": Ablation.fit(it, reference, mode="resample", neurons=[(0, 3), (1, 4)]),
    }


@pytest.mark.parametrize("of", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("name", _ablations(model("llama")))
def test_no_ablation_lets_a_row_see_the_future(of: str, name: str) -> None:
    """visual-head: logits set to 0 instead of −∞ made masked heads attend to every key, those to come among them."""
    it = model(of, torch.float64)
    method = _ablations(it)[name]
    with it.edited(method):
        a, b = (it.run(p).logits[0, :-1] for p in (prompt(it), prompt(it, ids=(*IDS[:-1], 40))))
    assert (a - b).abs().max() < 1e-6
    assert rows(it, method).triu(1).abs().max() == 0


def test_masked_heads_do_not_attend_evenly() -> None:
    """Retrieval_Head: 'masked' heads attended to all keys alike. Ours renormalise what is left, as declared."""
    it = model("llama", torch.float64)
    plain, edited = rows(it)[1], rows(it, Ablation(heads=HEADS, mode="mask", region="span"))[1]
    left = plain.clone()
    left[:, 4:9] = 0
    assert (edited - left / left.sum(-1, keepdim=True)).abs().max() < 1e-6
    assert "renormalised" in Ablation(heads=HEADS, mode="mask", region="span").semantics


@pytest.mark.parametrize("name", ["ACT", "ablation, resample", "ZeroTuning, up"])
def test_a_second_trial_is_the_first_one_again(name: str, tmp_path: Path) -> None:
    """Ablation loops: a trial on a cache that the trial before it has grown.

    Nothing is carried from one prompt to the next where transformers is called inside a block either.
    """
    it = model("llama")
    method, other = CASES[name].make(it, tmp_path), torch.tensor([IDS[::-1][:18]])
    with torch.no_grad():
        with it.edited(method):
            fresh = it.hf(input_ids=other).logits
        with it.edited(method):
            out = it.hf(input_ids=torch.tensor([IDS]), use_cache=True)
            it.hf(input_ids=torch.tensor([[9]]), past_key_values=out.past_key_values)
            assert torch.equal(it.hf(input_ids=other).logits, fresh)


def test_sinks_found_in_the_prompt_hold_while_transformers_generates() -> None:
    it = model("llama")
    method = ACT(heads=HEADS, threshold=0.06, beta=0.2)
    with it.edited(method):
        steps = it.trace(prompt(it), teacher=MORE).logits[0]
        with torch.no_grad():
            out = it.hf(input_ids=torch.tensor([IDS]), use_cache=True)
            found = [out.logits[0, -1]]
            for token in MORE[:-1]:
                out = it.hf(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
                found.append(out.logits[0, -1])
    assert (torch.stack(found) - steps).abs().max() < 1e-5


def test_pine_is_no_edit_of_rows() -> None:
    """It gives rows other keys; nothing says of it that it changed nothing."""
    import warnings

    it = hs.load(tiny("llama"), validate=False)
    with warnings.catch_warnings(), it.edited(PINE(segments=("span", "next"))):
        warnings.simplefilter("error")
        it.run(prompt(it))
