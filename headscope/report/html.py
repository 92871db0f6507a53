"""Reports as one HTML file that opens offline and loads nothing.

The page carries its own style, script, plotly.js (once) and data. A content security policy with the hashes of its
two scripts makes the browser refuse anything else, whatever a token string or a model's name may hold.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.errors import DataError
from headscope.report import blocks, comparing, palette, sections, words
from headscope.report import page as common
from headscope.report.blocks import Page
from headscope.report.tokens import clean

if TYPE_CHECKING:
    import jinja2

    from headscope.probes.scores import HeadScores
    from headscope.report.compare import Comparison


def write_report(
    scores: HeadScores, path: str | Path, *, others: Sequence[HeadScores] = (), title: str | None = None
) -> Path:
    """Write the report of one result.

    Parameters
    ----------
    scores
        Result of a probe.
    path
        File to write; replaced whole or not at all.
    others
        Further results that the rankings are compared with, such as other probes of the same model.
    title
        Heading; by default the kind of heads and the model.

    Returns
    -------
    The path.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    part = sections.probe_part(scores, "p1")
    compared = comparing.agreement_section([scores, *others]) if others else None
    page = Page(
        title=title or f"{words.title_of(scores)} of {words.model_of(scores)}",
        subtitle=_created([scores]),
        parts=(part,),
        opening=(compared,) if compared else (),
    )
    return _write(page, path)


def write_combined(scores: Sequence[HeadScores], path: str | Path, *, title: str | None = None) -> Path:
    """Write one report of several results, agreement between them on top.

    Raises
    ------
    DataError
        If there is no result.
    OutputError
        If the file cannot be written.
    """
    if not scores:
        raise DataError("There is no result to report. Rank at least one probe.")
    if len(scores) == 1:
        return write_report(scores[0], path, title=title)
    compared = comparing.agreement_section(scores)
    models = list(dict.fromkeys(words.model_of(item) for item in scores))
    page = Page(
        title=title or f"Heads of {words.joined(models)}",
        subtitle=_created(scores),
        parts=tuple(sections.probe_part(item, f"p{i}") for i, item in enumerate(scores, start=1)),
        opening=(compared,) if compared else (),
    )
    return _write(page, path)


def write_comparison(found: Comparison, path: str | Path) -> Path:
    """Write the report of a comparison; see ``headscope.report.compare``.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    part = comparing.comparison_part(found)
    return _write(Page(title=part.title, subtitle=_created(found.scores), parts=(part,)), path)


def render(page: Page) -> str:
    """Return the whole HTML of a page."""
    store = _Figures()
    html: str = (
        environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            policy=policy(),
            scripts=_scripts(),
            style=palette.css() + resource("report.css"),
            palette=common.safe_json(palette.dark_of()),
            figure=store.add,
            figures=store.texts,
        )
    )
    return html.lstrip()


@cache
def policy() -> str:
    """Return the content security policy of a report: its own two scripts, and nothing else."""
    return common.policy(_scripts().values())


def _scripts() -> dict[str, str]:
    return {"plotly": plotly_js(), "report": resource("tables.js") + resource("report.js")}


class _Figures:
    """Figures of a page in the order in which the template meets them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, picture: blocks.Picture) -> int:
        """Keep a figure and return its number."""
        # Plotly writes arrays as base64 and NaN as null; "<" must not end the script element that holds it.
        self.texts.append(common.escape(picture.figure.to_json(engine="json")))
        return len(self.texts) - 1


def _write(page: Page, path: str | Path) -> Path:
    from headscope.files import write_text

    return write_text(path, render(page))


def _created(scores: Sequence[HeadScores]) -> str:
    """Model, its shape and the day, as far as they are known."""
    parts = []
    model = scores[0].provenance.get("model", {})
    if all(words.model_of(item) == words.model_of(scores[0]) for item in scores):
        layers, heads = scores[0].shape
        parts.append(f"{words.model_of(scores[0])}, {layers} layers × {heads} heads")
        if model.get("revision"):
            parts.append(f"revision {str(model['revision'])[:12]}")
    days = [str(item.provenance["created"])[:10] for item in scores if item.provenance.get("created")]
    parts += sorted(set(days))[-1:]
    return " · ".join(parts)


@cache
def environment() -> jinja2.Environment:
    """Return what pages are written with: everything is escaped, and what no file may hold is replaced."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headscope.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # Every value that is written passes here: what no HTML file may hold is replaced.
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters["plain"] = repr
    return environment


@cache
def plotly_js() -> str:
    """Return the text of plotly.js as a script element holds it."""
    from plotly.offline import get_plotlyjs

    return common.safe_script(str(get_plotlyjs()))


def resource(name: str) -> str:
    """Return a text file that pages are made of."""
    return importlib.resources.files("headscope.report").joinpath("template", name).read_text(encoding="utf-8")
