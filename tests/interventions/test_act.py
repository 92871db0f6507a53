"""ACT: which keys are sinks, in which layers, and what is kept for decoding."""

from __future__ import annotations

import numpy as np
import pytest

from headscope.errors import RequestError
from headscope.interventions import ACT
from tests.interventions.small import patterns, small

HEAD = ((0, 1),)


def sinks(a: np.ndarray, threshold: float) -> np.ndarray:
    """Return ACT's sinks of one head's pattern (T, T), the first one left out."""
    seen = np.arange(len(a), 0, -1)
    found = np.flatnonzero(a.sum(0) / seen > threshold)
    return found[1:]


def test_the_first_sink_stays_and_rows_keep_their_sum() -> None:
    model = small()
    plain, edited = patterns(model)[1], patterns(model, ACT(HEAD, threshold=0.08, beta=0.25))[1]
    keys = sinks(plain, 0.08)
    assert len(keys) > 1
    first = int(np.flatnonzero(plain.sum(0) / np.arange(24, 0, -1) > 0.08)[0])
    assert edited.sum(-1) == pytest.approx(np.ones(24), abs=1e-5)
    rest = np.setdiff1d(np.arange(24), keys)
    for row in range(24):
        s = plain[row, keys].sum()
        if s > 0.999:
            continue
        assert edited[row, keys] == pytest.approx(0.25 * plain[row, keys], abs=1e-6)
        assert edited[row, rest] == pytest.approx(plain[row, rest] * (1 + 0.75 * s / (1 - s)), abs=1e-5)
        assert edited[row, first] >= plain[row, first] - 1e-6


def test_all_heads_leave_out_the_first_two_layers_and_the_last() -> None:
    model = small(layers=5)
    (edit,) = ACT().edits(model)
    assert {layer for layer, _ in edit.heads} == {2, 3}
    (edit,) = ACT(layers=(0, 4)).edits(model)
    assert {layer for layer, _ in edit.heads} == {0, 4}
    (edit,) = ACT(((0, 1), (4, 2))).edits(model)  # named heads are meant
    assert edit.heads == ((0, 1), (4, 2))
    (edit,) = ACT(((0, 1), (4, 2)), layers=(4,)).edits(model)
    assert edit.heads == ((4, 2),)
    with pytest.raises(RequestError, match="leaves out layers"):
        ACT().edits(small())
    with pytest.raises(RequestError, match="there is no layer 9"):
        ACT(layers=(9,)).edits(model)
    with pytest.raises(RequestError, match="none of heads="):
        ACT(((0, 1),), layers=(3,)).edits(model)


def test_no_sink_is_a_warning() -> None:
    model = small()
    with pytest.warns(UserWarning, match="found no key"):
        edited = patterns(model, ACT(HEAD, threshold=0.99))
    assert edited == pytest.approx(patterns(model), abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": -0.1}, "beta"),
        ({"threshold": 0}, "above 0"),
        ({"threshold": 1.2}, "at most 1"),
        ({"layers": ()}, "names no layer"),
    ],
)
def test_senseless_fields(fields, message) -> None:
    with pytest.raises(RequestError, match=message):
        ACT(**fields)
