"""Temperature: one for all heads, or one for each."""

from __future__ import annotations

import numpy as np
import pytest

from headscope.errors import RequestError
from headscope.interventions import Temperature
from tests.interventions.small import patterns, small


def tempered(a: np.ndarray, temperature: float) -> np.ndarray:
    raised = a ** (1 / temperature)
    return raised / raised.sum(-1, keepdims=True)


def test_each_head_has_its_own() -> None:
    model = small()
    plain = patterns(model)
    edited = patterns(model, Temperature([(0, 3), (0, 1), (0, 2)], (0.5, 2.0, 1.0)))
    assert edited[1] == pytest.approx(tempered(plain[1], 2.0), abs=1e-5)
    assert edited[3] == pytest.approx(tempered(plain[3], 0.5), abs=1e-5)
    assert edited[[0, 2]] == pytest.approx(plain[[0, 2]], abs=1e-6)


def test_heads_keep_theirs_when_some_are_chosen() -> None:
    method = Temperature([(0, 3), (0, 1)], (0.5, 2.0))
    assert method.heads == ((0, 1), (0, 3))
    assert method.temperature == (2.0, 0.5)
    assert method.with_heads([(0, 3)]) == Temperature([(0, 3)], (0.5,))
    with pytest.raises(RequestError, match=r"none for \(1, 1\)"):
        method.with_heads([(1, 1)])
    assert method.neutralised().neutral
    assert not method.neutral
    assert Temperature([(0, 1), (0, 2)], (1.0, 1.0)).neutral
    assert Temperature("all", 3).with_heads([(1, 1)]) == Temperature([(1, 1)], 3.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0}, "above 0"),
        ({"temperature": (1.0, -1.0), "heads": [(0, 0), (0, 1)]}, "above 0"),
        ({"temperature": (1.0,)}, "0 named heads"),
        ({"temperature": (1.0, 2.0), "heads": [(0, 0), (0, 0)]}, "no head twice"),
        ({"temperature": (1.0,), "heads": [(0, 0), (0, 1)]}, "1 values for 2"),
    ],
)
def test_senseless_fields(fields, message) -> None:
    with pytest.raises(RequestError, match=message):
        Temperature(**fields)
