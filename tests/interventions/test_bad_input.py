"""Bad input of steering methods: a clear error, or, where the edit has no effect, a warning that says so."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import HeadscopeError, PromptError, RequestError
from headscope.interventions import find_method
from headscope.interventions.lofit import LoFiT
from tests.interventions.methods import HEADS, IDS, REGIONS, model, prompt

NEED_REGION = {
    "pasta": "region",
    "spotlight": "region",
    "pai": "region",
    "knockout": "source",
    "zerotuning": "token",
}


def method(name: str, **fields: Any) -> Any:
    return find_method(name)(**{"heads": HEADS, **fields})


def run(edit: Any, given: Any = None, of: str = "llama") -> torch.Tensor:
    it = model(of)
    with it.edited(edit):
        found: torch.Tensor = it.run(prompt(it) if given is None else given).logits
    return found


# -- regions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "field"), NEED_REGION.items())
@pytest.mark.parametrize("empty", [(), "", [""]], ids=repr)
def test_no_region(name: str, field: str, empty: Any) -> None:
    with pytest.raises(RequestError, match=rf"\({field}=.*empty"):
        method(name, **{field: empty})


@pytest.mark.parametrize(("name", "field"), NEED_REGION.items())
def test_regions_that_are_not_in_the_prompt(name: str, field: str) -> None:
    with pytest.raises(RequestError, match=r"no region 'spam'\. Did you mean 'span'"):
        run(method(name, **{field: "spam"}))
    with pytest.raises(RequestError, match="position 24 is outside the 24 tokens"):
        run(method(name, **{field: (24,)}))


def test_var_needs_its_region() -> None:
    with pytest.raises(RequestError, match="name one region"):
        find_method("var")(dimensions=(0,), region="")
    with pytest.raises(RequestError, match="Did you mean 'span'"):
        run(method("var", dimensions=(0,), region="spam"))


def test_regions_beyond_the_prompt_or_empty_are_no_prompt() -> None:
    it = model("llama")
    with pytest.raises(PromptError, match="'span': token position 24 is outside the prompt of 24"):
        it.prompt_from_ids(IDS, {"span": [23, 24]})
    with pytest.raises(PromptError, match="'span' holds no token"):
        it.prompt_from_ids(IDS, {"span": []})


def test_a_region_of_one_prompt_of_a_batch_only() -> None:
    it = model("llama")
    with pytest.raises(RequestError, match="no region 'span'"):
        run(method("pasta", region="span"), [prompt(it), it.prompt_from_ids(IDS)])


def test_overlapping_regions_are_their_union_for_one_weight() -> None:
    """PASTA gives all regions one weight, so that a token in two of them is in no doubt."""
    it = model("llama")
    regions = {name: list(found) for name, found in REGIONS.items()} | {
        "wide": list(range(6, 13)),
        "whole": range(4, 13),
    }
    given = it.prompt_from_ids(IDS, regions)
    both = run(method("pasta", region=("span", "wide")), given)
    assert torch.equal(both, run(method("pasta", region="whole"), given))
    assert torch.equal(both, run(method("pasta", region=("span", "wide", 5)), given))


def test_overlapping_groups_are_refused_where_each_has_its_weight() -> None:
    from headscope.attention.edits import AttentionEdit, Group, Scale

    it = model("llama")
    twice = AttentionEdit(HEADS, (Group("a", ("span",)), Group("b", ("next", 5))), Scale((2.0, 3.0)))
    with pytest.raises(RequestError, match="'b' belong to another group"):
        run(twice)
    assert not it.edits


def test_a_span_lost_by_truncation() -> None:
    made = hs.data.organism("llama", seed=0)
    it = hs.load(made.model, tokenizer=made.tokenizer, validate=False)
    words = [word for word in made.tokenizer.get_vocab() if word.isalpha()][:8]
    text = " ".join(words)
    whole = it.prompt("{span} {tail}", span=text, tail=text)
    for side in ("left", "right", "middle"):
        with pytest.raises(PromptError, match="region"):
            it.prompt("{span} {tail}", span=text, tail=text, max_length=len(whole) - 6, truncate=side)
    with pytest.raises(PromptError, match="max_length"):
        it.prompt("{span} {tail}", span=text, tail=text, max_length=len(whole) - 6)


# -- heads ---------------------------------------------------------------------------------------------------------

ON_HEADS: dict[str, dict[str, Any]] = {
    "pasta": {"region": "span"},
    "act": {},
    "zerotuning": {},
    "spotlight": {"region": "span"},
    "knockout": {"source": "span"},
    "var": {"region": "span", "dimensions": (0,)},
    "temperature": {},
    "pai": {"region": "span"},
    "ablation": {},
}


@pytest.mark.parametrize(("name", "fields"), ON_HEADS.items())
def test_heads_of_another_model(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="layers of this model go from 0 to 1"):
        run(find_method(name)(heads=[(29, 0)], **fields))
    with pytest.raises(RequestError, match="layer 1 has heads 0 to 3"):
        run(find_method(name)(heads=[(0, 1), (1, 8)], **fields))


@pytest.mark.parametrize(("name", "fields"), ON_HEADS.items())
@pytest.mark.parametrize("heads", [(), "al", [3, 4], [(0,)], None], ids=repr)
def test_what_is_no_head(name: str, fields: dict[str, Any], heads: Any) -> None:
    with pytest.raises(HeadscopeError):
        find_method(name)(heads=heads, **fields)


def test_vectors_of_another_model() -> None:
    rows = tuple(np.ones(16, dtype="f") for _ in HEADS)  # the model's heads are 8 wide
    with pytest.raises(RequestError, match="shape"):
        run(LoFiT(HEADS, v=rows))
    with pytest.raises(RequestError, match="48 numbers, the stream of this model 32"):
        run(find_method("steering")(layer=1, vector=np.ones(48)))
    with pytest.raises(RequestError, match="outside the residual stream of width 32"):
        run(method("var", dimensions=(2533, 1415), region="span"))


@pytest.mark.parametrize("name", ["act", "pai", "var"])
def test_a_model_too_shallow_for_all_heads(name: str) -> None:
    with pytest.raises(RequestError, match="name heads="):
        run(find_method(name)(**ON_HEADS[name]))


# -- strengths -----------------------------------------------------------------------------------------------------

BAD = [float("nan"), float("inf"), "much", None]


@pytest.mark.parametrize(
    ("name", "field", "wrong"),
    [
        ("pasta", "alpha", [0, -0.5, *BAD]),
        ("act", "beta", [-0.1, *BAD]),
        ("act", "threshold", [0, -1, 1.5, *BAD]),
        ("zerotuning", "gamma", [-1, *BAD]),
        ("spotlight", "psi", [-0.1, 1.1, *BAD]),
        ("var", "keep_fraction", [-0.1, 1.1, *BAD]),
        ("var", "tau", [0, *BAD]),
        ("temperature", "temperature", [0, -1, *BAD]),
        ("pai", "alpha", [-0.1, *BAD]),
    ],
)
def test_senseless_strengths(name: str, field: str, wrong: list[Any]) -> None:
    for value in wrong:
        with pytest.raises(RequestError, match=f"{field}=.*finite number"):
            method(name, **{**ON_HEADS[name], field: value})


# -- no effect -----------------------------------------------------------------------------------------------------

POINTLESS: dict[str, Any] = {
    "gamma 0 with all mass on the tokens": method("zerotuning", gamma=0.0, token=tuple(range(len(IDS)))),
    "a region that is the whole prompt": method("pasta", region="all"),
    "generation without generated tokens": method("pasta", mode="generation"),
    "a share that every row has": method("spotlight", region="all", psi=0.3),
    "a source that no target sees": method("knockout", source="tail", target="span"),
    "a source that is all there is": method("knockout", source="all"),
    "a target that is not there yet": method("knockout", source="span", target="generated"),
    "no sink": method("act", threshold=0.99),
    "no sink in the region": method("var", dimensions=(0,), region="span", tau=100.0),
    "no row that looks at the region": method("var", dimensions=(0, 1, 2), region="span", tau=1.2, min_total=1.0),
    "a mask of everything": find_method("ablation")(heads=HEADS, mode="mask", region="all"),
}


@pytest.mark.parametrize("edit", POINTLESS.values(), ids=POINTLESS)
def test_an_edit_without_effect_says_so(edit: Any) -> None:
    it = model("llama")
    plain = it.run(prompt(it)).logits
    with pytest.warns(UserWarning, match=r"nothing"):
        edited = run(edit)
    assert (edited - plain).abs().max() < 1e-5
    assert torch.isfinite(edited).all()


def test_gamma_zero_on_a_prompt_of_one_token() -> None:
    """All mass is on it and stays there."""
    it = model("llama")
    one = it.prompt_from_ids([5])
    with pytest.warns(UserWarning, match="changed nothing"):
        assert (run(method("zerotuning", gamma=0.0), one) - it.run(one).logits).abs().max() < 1e-6


def test_a_window_that_hides_the_region_from_the_rows() -> None:
    with pytest.warns(UserWarning, match="changed nothing"):
        run(method("pai", region="span", queries="last"), of="mistral")


def test_an_effect_while_generating_only_is_an_effect() -> None:
    it = model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with it.edited(method("pasta", mode="generation")):
            it.trace(prompt(it), teacher=[7, 8, 9])


@pytest.mark.parametrize(("name", "fields"), ON_HEADS.items())
def test_an_edit_with_an_effect_says_nothing(name: str, fields: dict[str, Any]) -> None:
    more = {"act": {"threshold": 0.06}, "var": {"dimensions": (0, 1, 2), "tau": 1.2, "max_sink_portion": 0.9}}
    it = model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit = method(name, **{**fields, **more.get(name, {})})
        run(edit)
        run(edit, [prompt(it), prompt(it, ids=IDS[:21])])


def test_padding_is_no_effect() -> None:
    """Rows of padding hold anything; only real rows tell whether an edit did something."""
    it = model("llama")
    both = [prompt(it), prompt(it, ids=IDS[:21])]
    for side in ("left", "right"):
        with it.edited(method("pasta", region="all")), pytest.warns(UserWarning, match="changed nothing"):
            it.run(both, side=side)
