"""PAI: logits of the region grow by a part of their size."""

from __future__ import annotations

import numpy as np
import pytest

import headscope as hs
from headscope.errors import RequestError
from headscope.interventions import PAI
from tests.interventions.small import patterns, prompt, small

HEAD = ((0, 1),)


def logits(model) -> np.ndarray:
    """Logits of head (0, 1), (T, T), −∞ where a key lies ahead: log A + the row's log-normaliser."""
    run = model.run(prompt(model), [hs.Logsumexp(layers=[0])])
    with np.errstate(divide="ignore"):
        return np.log(patterns(model)[1]) + run["logsumexp"].values[0, 0, 1][:, None]


def test_negative_logits_grow_too() -> None:
    model = small()
    s = logits(model)
    span = np.zeros(24, dtype=bool)
    span[4:9] = True
    assert (s[:, 4:9] < 0).any()
    seen = np.isfinite(s)
    raised = np.exp(np.where(span & seen, s + 0.5 * abs(np.where(seen, s, 0)), s))
    expected = raised / raised.sum(-1, keepdims=True)
    assert patterns(model, PAI(HEAD, "span", 0.5))[1] == pytest.approx(expected, abs=1e-5)
    last = patterns(model, PAI(HEAD, "span", 0.5, queries="last"))[1]
    assert last[-1] == pytest.approx(expected[-1], abs=1e-5)
    assert last[:-1] == pytest.approx(patterns(model)[1, :-1], abs=1e-6)


def test_all_heads_leave_out_the_first_two_layers() -> None:
    model = small(layers=4)
    (edit,) = PAI(region="span").edits(model)
    assert {layer for layer, _ in edit.heads} == {2, 3}
    with pytest.raises(RequestError, match="leaves out layers"):
        PAI(region="span").edits(small())


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"alpha": -0.1}, "alpha"), ({"queries": "first"}, "choose all"), ({"region": ()}, "is empty")],
)
def test_senseless_fields(fields, message) -> None:
    with pytest.raises(RequestError, match=message):
        PAI(**{"region": "span", **fields})
