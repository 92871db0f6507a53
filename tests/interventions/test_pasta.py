"""PASTA's modes, the union of its spans, and what becomes of generated tokens."""

from __future__ import annotations

import numpy as np
import pytest

from headscope.errors import RequestError
from headscope.interventions import PASTA
from headscope.interventions.base import Method
from tests.interventions.small import patterns, prompt, small, steps

HEAD = ((0, 1),)


def bias(method: Method) -> np.ndarray:
    """What the method adds to log A of head (0, 1) in the last row, up to the row's constant (T,)."""
    model = small()
    added = np.log(patterns(model, method)[1, -1]) - np.log(patterns(model)[1, -1])
    return added - added[4]


def expected(keys: set[int], inside: float, outside: float) -> np.ndarray:
    return np.array([inside if k in keys else outside for k in range(24)])


SPAN, TAIL, OVER = set(range(4, 9)), set(range(15, 20)), set(range(7, 12))


@pytest.mark.parametrize(
    ("regions", "keys"),
    [
        (("span",), SPAN),
        (("span", "tail"), SPAN | TAIL),
        (("span", "over", "tail"), SPAN | OVER | TAIL),
        (("span", "span"), SPAN),
        (("span", 4, 5), SPAN),
    ],
)
def test_any_number_of_spans_is_one_bias(regions, keys) -> None:
    """0 inside the union and log α outside, exactly: the published code adds log α once for each span."""
    assert bias(PASTA(HEAD, regions, alpha=0.03)) == pytest.approx(expected(keys, 0, np.log(0.03)), abs=1e-4)


def test_include_with_a_hundred_is_exclude_with_a_hundredth() -> None:
    one, other = PASTA(HEAD, "span", 0.01), PASTA(HEAD, "span", 100, "include")
    assert bias(one) == pytest.approx(bias(other), abs=1e-4)
    assert bias(other) == pytest.approx(expected(SPAN, 0, -np.log(100)), abs=1e-4)


def test_generation_weighs_the_prompt_against_what_is_generated() -> None:
    model = small()
    plain = patterns(model)
    method = PASTA(HEAD, alpha=0.5, mode="generation")
    assert np.array_equal(patterns(model, method), plain)  # all of a prompt has one weight
    before, after = steps(model), steps(model, method)
    assert np.array_equal(before[0], after[0])
    assert abs(before[1:] - after[1:]).max() > 1e-3


def test_generated_tokens_count_as_the_region_or_as_the_rest() -> None:
    """As the rest they are what they would be in a longer prompt; as the region they are not."""
    model = small()
    longer = model.prompt_from_ids([*prompt(model).ids, 7, 8, 9], {"span": list(SPAN)})
    rest, region = PASTA(HEAD, "span", 0.05, generated="rest"), PASTA(HEAD, "span", 0.05)
    for method, same in ((rest, True), (region, False)):
        with model.edited(method):
            read = model.run(longer).logits[0, -4:].numpy()
        assert (abs(read - steps(model, method)).max() < 1e-4) == same
    whole = PASTA(HEAD, ("span", "generated"), 0.05, generated="rest")
    assert steps(model, whole) == pytest.approx(steps(model, region), abs=1e-5)


def test_cross_attention_takes_regions_of_the_encoder() -> None:
    model = small("t5")
    given = prompt(model)
    method = PASTA(((0, 1),), "span", 0.01, stack="cross")
    plain = model.run(given).logits
    with model.edited(method):
        assert (model.run(given).logits - plain).abs().max() > 1e-4
        assert model.trace(given, max_new_tokens=4).tokens
    with pytest.raises(RequestError, match="nothing is generated"):
        PASTA(HEAD, alpha=0.1, mode="generation", stack="cross")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"region": "span", "alpha": 0}, "above 0"),
        ({"region": "span", "alpha": -1}, "above 0"),
        ({"region": "span", "alpha": float("nan")}, "finite number"),
        ({"region": "span", "alpha": "much"}, "finite number"),
        ({"region": ()}, "is empty"),
        ({"region": ""}, "is empty"),
        ({}, "is empty"),
        ({"region": (0.5,)}, "neither the name of a region"),
        ({"region": "span", "mode": "boost"}, "choose exclude"),
        ({"region": "span", "generated": "no"}, "choose region"),
        ({"region": "span", "mode": "include", "alpha": 0.01}, "turn away"),
        ({"region": "span", "mode": "generation"}, "leave out region"),
        ({"mode": "generation", "generated": "rest"}, "every token alike"),
        ({"region": "span", "heads": ()}, "names no head"),
        ({"region": "span", "heads": "some"}, "or 'all'"),
        ({"region": "span", "heads": [1, 2]}, "pairs"),
    ],
)
def test_senseless_fields(fields, message) -> None:
    with pytest.raises(RequestError, match=message):
        PASTA(**fields)


def test_all_heads_are_all_of_the_model() -> None:
    model = small()
    (edit,) = PASTA(region="span").edits(model)
    assert edit.heads == tuple((layer, head) for layer in range(2) for head in range(4))
    assert PASTA([(1, 2), (0, 3), (1, 2)], "span").heads == ((0, 3), (1, 2))
