"""Knock-out: who may not read what, in which layers."""

from __future__ import annotations

import numpy as np
import pytest

from headscope.errors import RequestError
from headscope.interventions import KnockOut, window
from tests.interventions.small import patterns, prompt, small, steps


def blocked(method: KnockOut, model=None) -> np.ndarray:
    """Which entries of layer 0 the method sets to 0, where the plain model has some attention (H, T, T)."""
    model = small() if model is None else model
    return (patterns(model, method) == 0) & (patterns(model) > 0)


def square(queries, keys) -> np.ndarray:
    found = np.zeros((4, 24, 24), dtype=bool)
    for q in queries:
        found[:, q, [k for k in keys if k <= q]] = True
    return found


@pytest.mark.parametrize(
    ("source", "target", "queries", "keys"),
    [
        ("span", "tail", range(15, 20), range(4, 9)),
        ("span", "last", [23], range(4, 9)),
        (("span", "tail"), "last", [23], [*range(4, 9), *range(15, 20)]),
        ("span", ("tail", "last"), [*range(15, 20), 23], range(4, 9)),
        ("span", "after:span", range(9, 24), range(4, 9)),
        ((2, 3), "all", range(24), [2, 3]),
        ("last", "last", [23], [23]),
    ],
)
def test_targets_do_not_read_sources(source, target, queries, keys) -> None:
    method = KnockOut(source, target)
    assert (blocked(method) == square(queries, keys)).all()
    edited = patterns(small(), method)
    assert edited.sum(-1) == pytest.approx(np.ones((4, 24)), abs=1e-5)
    rest = np.where(blocked(method), 0, patterns(small()))
    assert edited == pytest.approx(rest / rest.sum(-1, keepdims=True), abs=1e-5)


def test_a_row_that_sees_only_the_source_keeps_its_attention() -> None:
    model = small()
    edited, plain = patterns(model, KnockOut((0, 1, 2))), patterns(model)
    assert edited[:, :3] == pytest.approx(plain[:, :3], abs=1e-6)
    assert (edited[:, 3:, :3] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_row_of_a_padded_prompt_is_its_own(side) -> None:
    model = small()
    short = prompt(model, 20)
    with model.edited(KnockOut("span", "last")):
        alone = model.run(short).logits[0, -1]
        both = model.run([prompt(model), short], side=side).logits[1]
    assert (both[-1] if side == "left" else both[19]) == pytest.approx(alone, abs=1e-4)


def test_the_last_row_moves_on_while_generating() -> None:
    model = small()
    plain, edited = steps(model), steps(model, KnockOut("span", "last"))
    assert (abs(plain - edited).max(-1) > 1e-4).all()
    only = steps(model, KnockOut("span", "generated"))
    assert np.array_equal(only[0], plain[0])
    assert (abs(only[1:] - plain[1:]).max(-1) > 1e-4).all()


def test_layers_heads_and_windows() -> None:
    model = small(layers=6)
    (edit,) = KnockOut("span", layers=window(model, 2, 3)).edits(model)
    assert {layer for layer, _ in edit.heads} == {1, 2, 3}
    assert len(edit.heads) == 12
    (edit,) = KnockOut("span", layers=(1, 2), heads=[(1, 3), (5, 0)]).edits(model)
    assert edit.heads == ((1, 3),)
    assert window(model, 0) == (0, 1, 2, 3, 4)  # 9 layers around 0, cut at the end, as published
    assert window(model, 5, 1) == (5,)
    assert window(model, 5, 4) == (3, 4, 5)
    with pytest.raises(RequestError, match="give a layer from 0 to 5"):
        window(model, 6)


def test_senseless_fields() -> None:
    with pytest.raises(RequestError, match="is empty"):
        KnockOut()
    with pytest.raises(RequestError, match="named by regions"):
        KnockOut("span", target=3)
    with pytest.raises(RequestError, match="names no layer"):
        KnockOut("span", layers=())
    model = small()
    with model.edited(KnockOut("span", "spam")), pytest.raises(RequestError, match="no region 'spam'"):
        model.run(prompt(model))
