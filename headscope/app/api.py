"""What the viewer in the browser fetches: numbers of one run, as they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import numpy as np
from flask import Blueprint, Response, request

from headscope.app.runs import Gone
from headscope.errors import HeadscopeError, RequestError

if TYPE_CHECKING:
    from headscope.app.desk import Desk

RANKING = "ranking:"
"""Before the file of a ranking, where a statistic is named."""


def blueprint(desk: Desk) -> Blueprint:
    """Return the routes of ``desk``."""
    routes = Blueprint("headscope", __name__)

    def get(rule: str) -> Callable[[Callable[..., Any]], None]:
        def register(work: Callable[..., Any]) -> None:
            routes.get(rule, endpoint=work.__name__)(_answered(work))

        return register

    @get("/api/run/<run>/meta")
    def meta(run: str) -> dict[str, Any]:
        found = desk.runs.get(run).meta()
        return {**found, "id": run}

    @get("/api/run/<run>/stat/<path:name>")
    def stat(run: str, name: str) -> Any:
        view = desk.runs.get(run)
        return _ranking(desk, view, name.removeprefix(RANKING)) if name.startswith(RANKING) else view.stat(name)

    @get("/api/run/<run>/thumbs/<int:layer>")
    def thumbs(run: str, layer: int) -> Any:
        return desk.runs.get(run).thumbs(layer)

    @get("/api/run/<run>/tile/<int:layer>/<int:head>/<int:level>/<int:row>/<int:col>")
    def tile(run: str, layer: int, head: int, level: int, row: int, col: int) -> Any:
        reduce: Any = request.args.get("reduce", "max")
        return desk.runs.get(run).tile(layer, head, level, row, col, reduce)

    @get("/api/run/<run>/row/<int:layer>/<int:head>/<int:query>")
    def row(run: str, layer: int, head: int, query: int) -> Any:
        return desk.runs.get(run).row(layer, head, query)

    @get("/api/run/<run>/column/<int:layer>/<int:head>/<int:key>")
    def column(run: str, layer: int, head: int, key: int) -> Any:
        return desk.runs.get(run).column(layer, head, key)

    @get("/api/run/<run>/neuron/<int:layer>/<int:head>/<int:query>/<int:key>")
    def neuron(run: str, layer: int, head: int, query: int, key: int) -> dict[str, Any]:
        found: dict[str, Any] = desk.runs.get(run).neuron(layer, head, query, key)
        return found

    @routes.get("/view/<name>")
    def viewer(name: str) -> Response:
        text = _resources().get(name)
        if text is None:
            return Response("Not found.", 404)
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(text, mimetype=kind, headers={"Cache-Control": "no-cache"})

    return routes


def _ranking(desk: Desk, view: Any, file: str) -> Any:
    from headscope.probes.scores import HeadScores

    scores = HeadScores.load(desk.workspace.existing(file, (".parquet", ".json", ".csv")))
    heads = view.meta()["heads"]
    grid = scores.map()
    if grid.shape != (len(heads), max(heads)):
        raise RequestError(
            f"{file} ranks {grid.shape[0]} layers × {grid.shape[1]} heads, this model has {len(heads)} × {max(heads)}: "
            "it was made for another model."
        )
    return grid


@cache
def _resources() -> dict[str, str]:
    from headscope.report.palette import css_of_scheme
    from headscope.report.view.assets import bundle

    return {"palette.css": css_of_scheme(), "view.js": bundle("js"), "view.css": bundle("css")}


def _answered(work: Callable[..., Any]) -> Callable[..., Response]:
    """Send arrays as little-endian float32 with their shape, mappings as JSON, and deliberate errors as messages."""

    @wraps(work)
    def answer(**asked: Any) -> Response:
        from flask import json

        try:
            found = work(**asked)
        except HeadscopeError as error:
            status = 410 if isinstance(error, Gone) else 404
            body = json.dumps({"error": str(error)})
            return Response(body, status, mimetype="application/json", headers={"Cache-Control": "no-store"})
        # A run never changes, but it may leave: the browser keeps what it has for a while.
        headers = {"Cache-Control": "private, max-age=600"}
        if isinstance(found, dict):
            return Response(json.dumps(found), mimetype="application/json", headers=headers)
        array = np.ascontiguousarray(found, dtype="<f4")
        headers["X-Shape"] = ",".join(map(str, array.shape))
        return Response(array.tobytes(), mimetype="application/octet-stream", headers=headers)

    return answer
