"""Figures of a page: their parts, and the one-file HTML that they leave as."""

from __future__ import annotations

import re
from typing import Any

import plotly.graph_objects as go
import pytest
from dash import dcc

from headscope.app.components.figure import as_page, figure, figure_data
from headscope.errors import DataError
from headscope.report.palette import DARK, LIGHT


def drawn() -> go.Figure:
    return go.Figure(
        go.Bar(x=["a", "b"], y=[1.0, 2.5]), {"height": 222, "title": {"text": "<script>alert(1)</script>"}}
    )


def parts(component: Any) -> dict[str, Any]:
    found = [component, *component._traverse()]
    return {str(part.id): part for part in found if getattr(part, "id", None) is not None}


def test_a_figure_is_hidden_until_there_is_something_to_draw() -> None:
    assert parts(figure("f"))["f-frame"].hidden is True
    assert parts(figure("f", drawn()))["f-frame"].hidden is False


def test_the_browser_is_given_the_figure_in_light_colours_and_every_dark_partner() -> None:
    made = parts(figure("f", drawn()))
    assert made[figure_data("f")].data["layout"]["height"] == 222
    assert made["f-dark"].data[LIGHT["accent"]] == DARK["accent"]
    assert isinstance(made["f"], dcc.Graph)


def test_figures_of_a_group_have_ids_of_their_own() -> None:
    ids = {str(part.id) for i in (0, 1) for part in parts(figure({"figure": "g", "index": i})).values()}
    assert len(ids) == 10
    assert figure_data({"figure": "g", "index": 1}) == {"figure": "g", "index": 1, "part": "figure"}


def test_the_page_of_a_figure_holds_it_and_loads_nothing() -> None:
    page = as_page(drawn().to_plotly_json(), "A <b>title</b>", "A caption & more")
    assert "<script>alert(1)" not in page
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "A caption &amp; more" in page
    assert "height:222px" in page
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', outside)
    assert "default-src &#39;none&#39;" in page


@pytest.mark.parametrize("asked", [{}, {"data": 3, "layout": {}}, {"data": [{"type": "no such"}], "layout": {}}])
def test_what_is_no_figure_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Plotly does not take it"):
        as_page(asked, "", "")


def test_the_server_answers_with_a_file_or_with_what_is_wrong(make_app: Any) -> None:
    client = make_app()[0].server.test_client()
    good = client.post("/figure/page", json={"figure": drawn().to_plotly_json(), "title": "t", "caption": "c"})
    assert good.status_code == 200
    assert good.headers["Content-Disposition"].startswith("attachment")
    for wrong in ({}, {"figure": 7}, [1]):
        assert client.post("/figure/page", json=wrong).status_code == 400
    assert client.post("/figure/page", data="no json").status_code == 400
    assert client.post("/figure/page", json={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
