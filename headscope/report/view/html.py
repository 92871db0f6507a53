"""A run as one HTML file that opens offline and loads nothing: the viewer, and the data it needs.

Also as an element that a notebook shows in a cell: the same page in a frame of its own, which may run its scripts and
save files, and nothing else.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from headscope.errors import RequestError
from headscope.report import page as common
from headscope.report import palette
from headscope.report.numbers import plural
from headscope.report.tokens import clean
from headscope.report.view import assets
from headscope.report.view.embed import MB, Embedded, embed

if TYPE_CHECKING:
    from headscope.report.view.source import View

Theme = Literal["auto", "light", "dark"]
THEMES = ("auto", "light", "dark")
_START = "Headscope.openFile();"
_STYLE = """
html, body { margin: 0; height: 100%; background: var(--panel); color: var(--ink); }
#viewer { min-height: 560px; height: calc(100% - var(--note, 0px)); } :root:has(.file) { --note: 29px; }
#viewer:has(.hs-two, .hs-one) { height: auto; }
h1 { position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }
.file { padding: 5px 10px; border-top: 1px solid var(--line); color: var(--soft); background: var(--wash);
  font: 12px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.file code { font: 11.5px ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; color: var(--ink); }
"""


def view_page(
    view: View,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    layers: Iterable[int] | None = None,
    limit_mb: float = 25,
    theme: Theme = "auto",
    again: str = "model.view(prompt, heads=[{head}])",
) -> str:
    """Return a view as a whole HTML page.

    Parameters
    ----------
    heads, layers
        Heads to hold in full; see ``headscope.report.view.embed.embed``.
    limit_mb
        Most megabytes of data.
    theme
        Colours: of the reader's system, or always light or dark.
    again
        What to type to look at a head that is not held.

    Raises
    ------
    RequestError
        If there is no such head or theme, or the chosen heads do not fit.
    """
    if theme not in THEMES:
        raise RequestError(f"theme={theme!r}: choose 'auto', 'light' or 'dark'.")
    if not limit_mb > 0:
        raise RequestError(f"limit_mb={limit_mb}: give the most megabytes of data, as 25.")
    found = embed(view, heads=heads, layers=layers, limit=int(limit_mb * MB), again=again)
    document = {**found.document, "theme": theme, "state": found.first}
    scripts = [common.safe_script(assets.bundle("js")), _START]
    colours = palette.css() if theme == "auto" else palette.css_of_scheme()
    scheme = "" if theme == "auto" else f' data-mantine-color-scheme="{theme}"'
    title = f"{view.meta()['model']}: attention over {plural(view.length, 'token')}"
    blocks = "\n".join(
        f'<script type="text/plain" id="block-{name}">{text}</script>' for name, text in found.blocks.items()
    )
    return f"""<!doctype html>
<html lang="en"{scheme}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{common.policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="headscope">
<title>{html.escape(clean(title))}</title>
<link rel="icon" href="data:,">
<style>{colours}{assets.bundle("css")}{_STYLE}</style>
</head>
<body>
<header><h1>{html.escape(clean(title))}</h1></header>
<main id="viewer"><noscript>The viewer needs JavaScript.</noscript></main>
{_note(found, again)}
<script type="application/json" id="run">{common.safe_json(document)}</script>
{blocks}
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""


def frame(page: str, height: int, title: str) -> str:
    """Return a page as an element for a cell of a notebook: a frame that may run scripts and save files, no more."""
    # In ASCII alone the page is the same, hashes of its scripts too, whatever the encoding of what holds the cell.
    inner = html.escape(page).encode("ascii", "xmlcharrefreplace").decode("ascii")
    return (
        f'<iframe srcdoc="{inner}" sandbox="allow-scripts allow-downloads" title="{html.escape(title)}" '
        f'style="display:block;width:100%;height:{height}px;border:1px solid rgba(128,128,128,.35);border-radius:3px" '
        'allow="fullscreen" loading="lazy"></iframe>'
    )


def _note(found: Embedded, again: str) -> str:
    """Say what the file holds, where that is not everything."""
    if found.exact:
        return ""
    call = html.escape(again.replace("{head}", "(layer, head)"))
    return (
        f'<footer class="file">Of {found.heads} heads this file holds {plural(len(found.held), "head")} in full, those '
        f"with a dot; of the others statistics and small patterns. For more: <code>{call}</code> or a larger "
        "<code>limit_mb</code>.</footer>"
    )
