"""Everything else that a ranking says: what removing its heads did, where it holds, where it comes from; its report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import html
from flask import Blueprint, Response, send_file

from headscope.app.components.ranking_files import read
from headscope.app.components.report_blocks import shown
from headscope.errors import RequestError
from headscope.report.sections import probe_part

if TYPE_CHECKING:
    from dash import Dash

    from headscope.app.desk import Desk

GROUP = "rank-details"
"""Group of the ids of the figures."""
REPORTS = "reports"
_ELSEWHERE = ("map", "heads")
"""Sections that the page shows as its own map and table."""


def details(desk: Desk, file: str | None) -> Any:
    """Return the sections of a ranking's report that are not on the page already.

    Raises
    ------
    DataError, RequestError
        If the file is not there, or holds no scores.
    """
    if not file:
        return html.P("Open a ranking first: choose one on the left.", className="soft empty")
    scores = read(desk, file)
    part = probe_part(scores, "d")
    sections = [section for section in part.sections if section.id.partition("-")[2] not in _ELSEWHERE]
    notes = [html.Ul([html.Li(note) for note in part.notes], className="report-notes")] if part.notes else []
    links = [
        html.Nav(
            [html.A(section.title, href=f"#{section.id}") for section in sections if section.title],
            className="report-contents",
            **{"aria-label": "Sections"},
        )
    ]
    made = shown(sections, GROUP, file=scores.probe)
    for section, found in zip(made, sections, strict=True):
        section.id = found.id
    return html.Div([*links, *notes, *made], className="report-body", **{"data-title": part.title})


def report_buttons() -> html.Div:
    """Return what writes the one-file report and the place where its links appear."""
    return html.Div(
        [
            dmc.Button("Write the full report", id="rank-report", variant="default", size="xs"),
            html.Span(id="rank-report-links", className="small", role="status"),
        ],
        className="report-buttons",
    )


def write(desk: Desk, file: str) -> str:
    """Write the report of a ranking into the workspace and return its file.

    Raises
    ------
    DataError, OutputError, RequestError
        If the ranking cannot be read, or the report not written.
    """
    from headscope.report.html import write_report

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.rpartition(".")[0]).strip("-.")[:80] or "report"
    path = desk.workspace.new(REPORTS, name, ".html")
    write_report(read(desk, file), path)
    return f"{REPORTS}/{path.name}"


def links(file: str) -> list[Any]:
    """Return links that open and download a report."""
    address = f"/rank/report/{quote(file.removeprefix(REPORTS + '/'))}"
    return [
        html.A("Open", href=address, target="_blank", rel="noopener"),
        " · ",
        html.A("Download", href=f"{address}?download=1", download=file.rpartition("/")[2]),
        html.Span(f" {file}", className="soft"),
    ]


def report_policy() -> str:
    """Return the policy under which a report is shown: its own two scripts, nothing else, and no part of this site."""
    from headscope.report.html import policy

    return f"{policy()}; sandbox allow-scripts allow-downloads allow-popups; frame-ancestors 'none'"


def routes(app: Dash, desk: Desk) -> None:
    """Register the address of reports."""
    from flask import request

    blueprint = Blueprint("headscope-reports", __name__)

    @blueprint.get("/rank/report/<name>")
    def report(name: str) -> Response:
        try:
            path = desk.workspace.existing(f"{REPORTS}/{name}", (".html",))
        except RequestError as error:
            return Response(str(error), 404, mimetype="text/plain")
        answer = send_file(path, mimetype="text/html", as_attachment="download" in request.args, download_name=name)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    app.server.register_blueprint(blueprint)

    @app.server.after_request  # type: ignore[untyped-decorator]
    def own_policy(response: Response) -> Response:
        # Set by the last hand: the policy of the pages would refuse the scripts of a report.
        if request.path.startswith("/rank/report/") and response.status_code == 200:
            response.headers["Content-Security-Policy"] = report_policy()
        return response
