"""SpotLight: every row by itself, and only where the region has too little."""

from __future__ import annotations

import numpy as np
import pytest

from headscope.errors import RequestError
from headscope.interventions import SpotLight
from tests.interventions.small import patterns, prompt, small

HEAD = ((0, 1),)
PSI = 0.3


def test_each_row_is_raised_by_what_it_lacks_itself() -> None:
    """The published code adds one number to all rows of a layer; here each row has its own."""
    model = small()
    plain, edited = patterns(model)[1], patterns(model, SpotLight(HEAD, "span", PSI))[1]
    before, after = plain[:, 4:9].sum(-1), edited[:, 4:9].sum(-1)
    low = (before > 0) & (before < PSI)
    enough = before >= PSI
    assert low.sum() > 3
    assert enough.sum() > 3
    assert after[low] == pytest.approx(PSI / (PSI + 1 - before[low]), abs=1e-5)
    assert edited[enough] == pytest.approx(plain[enough], abs=1e-6)
    assert edited[:4] == pytest.approx(plain[:4], abs=1e-6)  # rows that cannot see the region
    added = np.log(after[low] / (1 - after[low])) - np.log(before[low] / (1 - before[low]))
    assert added == pytest.approx(np.log(PSI / before[low]), abs=1e-4)
    assert added.std() > 0.05


def test_regions_share_the_target() -> None:
    model = small()
    edited = patterns(model, SpotLight(HEAD, ("span", "tail"), PSI))[1]
    plain = patterns(model)[1]
    keys = [*range(4, 9), *range(15, 20)]
    before = plain[-1, keys].sum()
    assert edited[-1, keys].sum() == pytest.approx(PSI / (PSI + 1 - before) if before < PSI else before, abs=1e-5)


@pytest.mark.parametrize("psi", [-0.1, 1.1, float("nan")])
def test_senseless_targets(psi) -> None:
    with pytest.raises(RequestError, match="psi"):
        SpotLight(region="span", psi=psi)


def test_unknown_and_empty_regions() -> None:
    model = small()
    with model.edited(SpotLight(region="spam")), pytest.raises(RequestError, match="Did you mean 'span'"):
        model.run(prompt(model))
    with pytest.raises(RequestError, match="is empty"):
        SpotLight()
