from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError
from headscope.probes.scores import HeadScores
from headscope.report import figures, palette

Make = Callable[..., HeadScores]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def mixed(colours: tuple[str, ...], share: float) -> str:
    """Colour of a ramp between its steps, as plotly interpolates."""
    place = share * (len(colours) - 1)
    i = min(int(place), len(colours) - 2)
    parts = [
        round(int(colours[i][k : k + 2], 16) * (1 - place + i) + int(colours[i + 1][k : k + 2], 16) * (place - i))
        for k in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02x}" for part in parts)


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_reaches_aa_and_marks_reach_three(colours: dict[str, str]) -> None:
    for paper in ("paper", "panel", "wash"):
        for text in ("ink", "soft", "accent", "good", "bad"):
            assert contrast(colours[text], colours[paper]) >= 4.5, (text, paper)
        for mark in ("accent", "warm", "grey", "gold"):
            assert contrast(colours[mark], colours[paper]) >= 3, (mark, paper)
    assert contrast(colours["ink"], colours["heat"]) >= 4.5


@pytest.mark.parametrize("diverging", [False, True])
def test_text_on_cells_is_as_clear_as_black_or_white_can_be(diverging: bool) -> None:
    light = palette.DIVERGING_LIGHT if diverging else palette.RAMP_LIGHT
    dark = palette.DIVERGING_DARK if diverging else palette.RAMP_DARK
    for share in np.linspace(0, 1, 201):
        ink = palette.on_ramp(float(share), diverging=diverging)
        assert contrast(ink, mixed(light, float(share))) >= 4.35
        assert contrast(palette.dark_of().get(ink, ink), mixed(dark, float(share))) >= 4.35


def test_ramps_are_monotonic_in_lightness() -> None:
    assert (np.diff([luminance(colour) for colour in palette.RAMP_LIGHT]) < 0).all()
    assert (np.diff([luminance(colour) for colour in palette.RAMP_DARK]) > 0).all()


def test_every_colour_of_a_figure_has_a_dark_partner(full: HeadScores) -> None:
    import re

    known = {*palette.dark_of(), palette.ON_MIDDLE}
    made = [
        figures.head_map(full),
        figures.ranked_intervals(full),
        figures.dose_response(full.details["dose"]),
        figures.by_factor(full.details["by_factor"]),
        figures.activation(full.details["activation"]),
        figures.agreement_scatter(full, full),
        figures.matrix(np.eye(3), ["a", "b", "c"]),
    ]
    for figure in made:
        assert set(re.findall(r"#[0-9a-f]{6}\b", figure.to_json().lower())) <= known


def test_map_shows_all_heads_and_outlines_the_selected(full: HeadScores) -> None:
    figure = full.plot()
    heat, outline = figure.data
    assert np.array_equal(np.asarray(heat.z), full.map().T)
    assert "21 of 270" in figure.layout.title.text
    assert outline.mode == "lines"


def test_outline_is_the_border_of_the_selected_region(make: Make) -> None:
    scores = make(layers=2, heads=2, details=False)
    everything = HeadScores(scores.table.assign(selected=True), "p", {})
    edges = [x for x in figures.head_map(everything).data[1].x if x is None]
    assert len(edges) == 8  # four sides of two cells each, nothing inside


def test_map_of_differences_is_centred_on_zero(make: Make) -> None:
    scores = make(details=False)
    shifted = HeadScores(scores.table.assign(score=scores.table["score"] - 0.3), "p", {})
    axis = figures.head_map(shifted).layout.coloraxis
    assert axis.cmin == -axis.cmax


def test_missing_scores_and_single_heads_are_drawn(make: Make) -> None:
    scores = make(layers=1, heads=1, details=False)
    nothing = HeadScores(scores.table.assign(score=np.nan, selected=False), "p", {})
    for one in (scores, nothing):
        figures.head_map(one).to_json()
        figures.ranked_intervals(one).to_json()


def test_names_cannot_smuggle_tags_into_plotly(make: Make) -> None:
    evil = "<b onmouseover=alert(1)>x</b>"
    scores = make(details=False, model=evil)
    other = make("sinks", details=False, model=evil)
    drawn = [
        scores.plot(),
        figures.agreement_scatter(scores, other, names=(evil, evil)),
        figures.by_factor(pd.DataFrame({evil: [evil, "b"], "score": [0.1, 0.2]})),
        figures.matrix(np.eye(2), [evil, "b"]),
    ]
    for figure in drawn:
        assert "<b on" not in figure.to_json().replace("\\u003c", "<")


def test_doses_show_every_control(full: HeadScores) -> None:
    figure = figures.dose_response(full.details["dose"])
    dots = next(trace for trace in figure.data if trace.name == "each control")
    assert len(dots.x) == 80
    assert figures.dose_response(full.details["dose"].query("kind == 'top'")).data


def test_factors_stand_before_the_score_and_vary() -> None:
    frame = pd.DataFrame(
        {"domain": ["a", "b"], "length": [1, 1], "score": [0.1, 0.2], "n": [3, 3], "recall": [1.0, 0.5]}
    )
    assert figures.factors_of(frame) == ["domain"]
    assert figures.factors_of(pd.DataFrame({"depth": [0, 1], "length": [1, 2], "score": [0, 0]})) == ["length", "depth"]


def test_nothing_to_draw_is_said(full: HeadScores, make: Make) -> None:
    with pytest.raises(DataError, match="no row"):
        figures.dose_response(full.details["dose"].iloc[:0])
    with pytest.raises(DataError, match="no factor"):
        figures.by_factor(pd.DataFrame({"score": [0.1]}))
    with pytest.raises(DataError, match="same heads"):
        figures.agreement_scatter(full, make(layers=3, details=False))
