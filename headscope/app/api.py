"""What the viewer in the browser fetches: numbers of one run, as they are asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import numpy as np
from flask import Blueprint, Response, json, request
from werkzeug.routing import IntegerConverter

from headscope import __version__
from headscope.app.runs import Gone
from headscope.errors import HeadscopeError, RequestError

if TYPE_CHECKING:
    from headscope.app.desk import Desk

log = logging.getLogger(__name__)

RANKING = "ranking:"
"""Before the file of a ranking, where a statistic is named."""


class _Index(IntegerConverter):
    """A number that no layer, head or token can pass; Python would take seconds over a million digits."""

    regex = "[0-9]{1,9}"


def blueprint(desk: Desk) -> Blueprint:
    """Return the routes of ``desk``."""
    routes = Blueprint("headscope", __name__)
    routes.record(lambda state: state.app.url_map.converters.update(index=_Index))

    def get(rule: str) -> Callable[[Callable[..., Any]], None]:
        def register(work: Callable[..., Any]) -> None:
            routes.get(rule, endpoint=work.__name__)(_answered(desk, work))

        return register

    @get("/api/run/<run>/meta")
    def meta(run: str) -> dict[str, Any]:
        found = desk.runs.get(run).meta()
        return {**found, "id": run}

    @get("/api/run/<run>/stat/<path:name>")
    def stat(run: str, name: str) -> Any:
        view = desk.runs.get(run)
        if name.startswith(RANKING):
            return _ranking(desk, run, view.meta()["heads"], name.removeprefix(RANKING))
        return view.stat(name)

    @get("/api/run/<run>/thumbs/<index:layer>")
    def thumbs(run: str, layer: int) -> Any:
        return desk.runs.get(run).thumbs(layer)

    @get("/api/run/<run>/tile/<index:layer>/<index:head>/<index:level>/<index:row>/<index:col>")
    def tile(run: str, layer: int, head: int, level: int, row: int, col: int) -> Any:
        reduce: Any = request.args.get("reduce", "max")
        if reduce not in ("max", "mean"):
            raise RequestError(f"reduce={reduce!r:.40}: a tile is the max or the mean of its tokens.")
        return desk.runs.get(run).tile(layer, head, level, row, col, reduce)

    @get("/api/run/<run>/row/<index:layer>/<index:head>/<index:query>")
    def row(run: str, layer: int, head: int, query: int) -> Any:
        return desk.runs.get(run).row(layer, head, query)

    @get("/api/run/<run>/column/<index:layer>/<index:head>/<index:key>")
    def column(run: str, layer: int, head: int, key: int) -> Any:
        return desk.runs.get(run).column(layer, head, key)

    @get("/api/run/<run>/neuron/<index:layer>/<index:head>/<index:query>/<index:key>")
    def neuron(run: str, layer: int, head: int, query: int, key: int) -> dict[str, Any]:
        found: dict[str, Any] = desk.runs.get(run).neuron(layer, head, query, key)
        return found

    @get("/api/tour/<run>")
    def tour(run: str) -> dict[str, Any]:
        from headscope.app.tour import cards

        return {"steps": cards(desk, run)}

    @get("/api/status")
    def status() -> dict[str, Any]:
        return {
            "version": __version__,
            "models": desk.loaded(),
            "jobs": desk.jobs.at_work,
            "bytes": desk.runs.nbytes,
            "limit": desk.runs.limit,
        }

    @get("/api/<path:other>")
    def nothing(other: str) -> Any:
        raise RequestError(f"There is nothing at /api/{other:.80}.")

    @routes.get("/view/<name>")
    def viewer(name: str) -> Response:
        text = _resources().get(name)
        if text is None:
            return Response("Not found.", 404)
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(text, mimetype=kind, headers={"Cache-Control": "no-cache"})

    return routes


def _ranking(desk: Desk, run: str, heads: list[int], file: str) -> Any:
    from headscope.app.components.ranking_files import read

    scores = read(desk, file)
    made_for = scores.provenance.get("model") or {}
    if made_for.get("fingerprint") not in (None, desk.runs.weights(run)):
        raise RequestError(f"{file} ranks the heads of {made_for.get('name')!r}, not of the model of this run.")
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


def _answered(desk: Desk, work: Callable[..., Any]) -> Callable[..., Response]:
    """Send arrays as little-endian float32 with their shape, mappings as JSON, and errors as JSON that says why."""

    @wraps(work)
    def answer(**asked: Any) -> Response:
        try:
            tag = desk.runs.tag(asked["run"]) if "run" in asked and RANKING not in request.path else None
            if tag is not None and tag in request.if_none_match:
                return _sealed(Response(status=304), tag)
            found = work(**asked)
        except HeadscopeError as error:
            return _trouble(str(error), 410 if isinstance(error, Gone) else 404)
        except Exception as error:  # whatever it is, the viewer must be able to say so
            log.exception("Unforeseen error at %s", request.path)
            return _trouble(f"Something went wrong inside the server ({type(error).__name__}).", 500)
        if isinstance(found, dict):
            return _sealed(Response(json.dumps(_finite(found)), mimetype="application/json"), tag)
        array = np.ascontiguousarray(found, dtype="<f4")
        shape = ",".join(map(str, array.shape))
        return _sealed(Response(array.tobytes(), mimetype="application/octet-stream", headers={"X-Shape": shape}), tag)

    return answer


def _finite(value: Any) -> Any:
    """Return JSON values without what JSON has no word for: an infinite logit of a masked pair becomes null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sealed(answer: Response, tag: str | None) -> Response:
    """Let browsers keep what belongs to one view of a run, and ask whether it is still that view."""
    if tag is None:
        answer.headers["Cache-Control"] = "no-store"
    else:
        answer.headers["Cache-Control"] = "private, no-cache"
        answer.set_etag(tag)
    return answer


def _trouble(why: str, status: int) -> Response:
    return Response(
        json.dumps({"error": why}), status, mimetype="application/json", headers={"Cache-Control": "no-store"}
    )
