"""Control heads match the removed ones layer by layer and never are removed ones."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import HeadscopeError
from headscope.probes.controls import draw_controls

ALL = [(layer, head) for layer in range(4) for head in range(6)]


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(ALL), min_size=1, max_size=12), st.sets(st.sampled_from(ALL)), st.integers(0, 99))
def test_controls_are_disjoint_and_as_many(
    removed: set[tuple[int, int]], selected: set[tuple[int, int]], seed: int
) -> None:
    """Published defect: random controls that may hold the very heads under test."""
    for control in draw_controls(removed, ALL, 5, selected=selected, seed=seed):
        assert not removed & set(control.heads)
        assert len(control.heads) == len(set(control.heads)) == len(removed)
        assert control.from_selected == len(set(control.heads) & selected)
        want, have = (Counter(layer for layer, _ in heads) for heads in (removed, control.heads))
        assert control.from_other_layers == (want - have).total()
        fitting = all(number <= 6 - number for number in want.values())
        assert control.from_other_layers == 0 or not fitting
        for layer, number in want.items():
            unselected = [h for h in ALL if h[0] == layer and h not in removed and h not in selected]
            if control.from_other_layers == 0 and len(unselected) >= number:
                assert not [h for h in control.heads if h[0] == layer and h in selected]


def test_sets_differ_and_a_longer_list_continues_a_shorter() -> None:
    removed = [(1, 0), (1, 3), (2, 2)]
    few, many = (draw_controls(removed, ALL, n, seed=3) for n in (5, 20))
    assert many[:5] == few
    assert len({control.heads for control in many}) == 20
    assert draw_controls(removed, ALL[::-1], 5, seed=3) == few
    assert draw_controls(removed, ALL, 5, seed=4) != few


def test_fewer_sets_where_fewer_exist() -> None:
    found = draw_controls([(0, 0)], ALL, 20)
    assert sorted(control.heads for control in found) == [((0, head),) for head in range(1, 6)]


def test_full_layers_borrow_from_the_nearest() -> None:
    removed = [(2, head) for head in range(5)]
    control = draw_controls(removed, ALL, 1)[0]
    assert control.from_other_layers == 4
    assert {layer for layer, _ in control.heads} == {1, 2}


def test_selected_heads_serve_only_where_a_layer_has_no_others() -> None:
    selected = [(0, head) for head in range(5)]
    control = draw_controls([(0, 0), (0, 1)], ALL, 1, selected=selected)[0]
    assert (0, 5) in control.heads
    assert control.from_selected == 1
    assert control.from_other_layers == 0


def test_too_many_removed_heads_are_refused() -> None:
    with pytest.raises(HeadscopeError, match="at most 12"):
        draw_controls(ALL[:13], ALL, 1)
