"""Figures of a strength: every value is where the table has it, and the neutral one is told apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.report.palette import LIGHT
from headscope.report.strength import continuation_curve, task_curve


def swept(values: list[float], neutral: float, **columns: list[float]) -> pd.DataFrame:
    """A table of a sweep, its rows in no order."""
    made = {name: [float(i) / 10 for i in range(len(values))] for name in ("gain", "base_gain", "kl")}
    table = pd.DataFrame({"value": values, "neutral": [value == neutral for value in values], **made, **columns})
    return table.sample(frac=1, random_state=0)


def judged() -> pd.DataFrame:
    """Rows of an evaluation: the base, two values and the neutral one; accuracy has intervals."""
    return pd.DataFrame(
        {
            "kind": ["base", "method", "neutral", "method"],
            "value": [math.nan, 0.5, 1.0, 2.0],
            "neutral": [False, False, True, False],
            "accuracy": [0.5, 0.4, 0.5, 0.75],
            "accuracy_low": [0.3, 0.2, 0.3, 0.6],
            "accuracy_high": [0.7, 0.6, 0.7, 0.8],
            "valid": [1.0, 0.9, 1.0, 1.0],
            "constrained": [math.nan] * 4,
        }
    )


def lines(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_gains_and_shift_are_drawn_in_the_order_of_the_values() -> None:
    table = swept([0.01, 0.1, 1.0], 1.0)
    drawn = lines(continuation_curve(table, "alpha"))
    assert list(drawn) == ["text written at this value", "text written without the edit", "KL of the first token"]
    for name, column in (("text written at this value", "gain"), ("KL of the first token", "kl")):
        assert list(drawn[name].x) == [0.01, 0.1, 1.0]
        assert list(drawn[name].y) == list(table.sort_values("value")[column])


def test_a_target_has_a_line_where_there_is_one() -> None:
    drawn = lines(continuation_curve(swept([0.5, 2.0], 1.0, target_gain=[-1.0, 3.0]), "gamma"))
    assert sorted(drawn["target text"].y) == [-1.0, 3.0]


@pytest.mark.parametrize(
    ("values", "neutral", "kind", "at"), [([0.01, 0.1, 1.0], 0.1, "log", -1.0), ([0.0, 0.5, 1.0], 0.5, "linear", 0.5)]
)
def test_the_neutral_value_is_hollow_and_named_where_it_is(
    values: list[float], neutral: float, kind: str, at: float
) -> None:
    figure = continuation_curve(swept(values, neutral), "psi")
    assert figure.layout.xaxis.type == kind
    colours = figure.data[0].marker.color
    assert [colour == LIGHT["paper"] for colour in colours] == [value == neutral for value in values]
    (named,) = figure.layout.annotations
    assert named.text == "neutral"
    assert named.x == pytest.approx(at)
    # Shapes of a logarithmic axis stand at values.
    assert [shape.x0 for shape in figure.layout.shapes if shape.yref == "paper"] == [neutral]


def test_the_name_of_the_neutral_value_stands_under_the_legend() -> None:
    layout = continuation_curve(swept([0.1, 1.0], 1.0), "psi").layout
    assert (layout.legend.yref, layout.legend.yanchor, layout.legend.y) == ("container", "top", 1.0)
    assert layout.margin.t >= 2 * 20  # a line for the legend, and one for the name


def test_a_task_has_a_line_for_each_measure_that_is_known_and_the_base_behind_it() -> None:
    figure = task_curve(judged(), "gamma")
    drawn = lines(figure)
    assert list(drawn) == ["accuracy", "valid answers"]
    assert list(drawn["accuracy"].y) == [0.4, 0.5, 0.75]
    np.testing.assert_allclose(drawn["accuracy"].error_y.array, [0.2, 0.2, 0.05])
    np.testing.assert_allclose(drawn["accuracy"].error_y.arrayminus, [0.2, 0.2, 0.15])
    assert drawn["valid answers"].error_y.array is None
    base = [shape.y0 for shape in figure.layout.shapes if shape.yref != "paper"]
    assert base == [0.5, 1.0]


def test_intervals_of_several_lines_do_not_hide_each_other() -> None:
    drawn = lines(task_curve(judged(), "gamma"))
    apart = np.array(drawn["valid answers"].x) - np.array(drawn["accuracy"].x)
    assert (apart > 0).all()
    assert (apart < 0.05).all()


def test_names_of_fields_are_text_and_not_markup() -> None:
    figure = continuation_curve(swept([0.1, 1.0], 1.0), "<b>x</b>")
    assert figure.layout.xaxis.title.text == "&lt;b&gt;x&lt;/b&gt;"


def test_a_sweep_without_values_cannot_be_drawn() -> None:
    table = swept([math.nan], 1.0)
    with pytest.raises(DataError, match="nothing to draw"):
        continuation_curve(table, "alpha")
