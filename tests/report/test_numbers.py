from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.report import numbers, tokens, words


@pytest.mark.parametrize("module", [numbers, tokens, words], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_is_written_without_a_hyphen(value: float) -> None:
    for text in (numbers.number(value), numbers.fixed(value), numbers.percent(value)):
        assert text
        assert "-" not in text


@given(st.floats(1e-3, 1e4))
def test_three_digits_are_right(value: float) -> None:
    shown = float(numbers.number(value).replace("\u202f", ""))
    assert shown == pytest.approx(value, rel=5.1e-3)


def test_probabilities_are_never_zero() -> None:
    assert numbers.p_value(0.0) == "<\u202f0.001"


def test_missing_is_a_dash() -> None:
    assert {numbers.number(None), numbers.number(float("nan")), numbers.fixed(float("nan"))} == {numbers.MISSING}
    assert numbers.interval(float("nan"), 1.0) == ""
