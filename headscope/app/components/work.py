"""Long work on a page: how far it is, and a button that ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dash_mantine_components as dmc
from dash import Input, Output, html

from headscope.app.jobs import check

EVERY = 0.15
"""Seconds between two notices of progress; a browser asks no more often."""


def working(name: str) -> html.Div:
    """Return the place where work called ``name`` shows its progress; hidden while there is none."""
    return html.Div(
        [
            dmc.Progress(id=f"{name}-bar", value=0, size="xs", **{"aria-label": "Progress"}),
            html.Div(
                [
                    html.Span(id=f"{name}-said", className="soft small", role="status"),
                    dmc.Button("Cancel", id=f"{name}-cancel", variant="subtle", size="compact-xs"),
                ],
                className="working-line",
            ),
        ],
        id=f"{name}-working",
        className="working",
        hidden=True,
    )


def job(name: str, button: str) -> dict[str, Any]:
    """Return what makes a callback background work called ``name``, shown in ``working(name)``.

    ``button`` is the id of what starts it, which rests meanwhile. The callback's first argument tells the progress:
    pass it to ``teller``.
    """
    return {
        "background": True,
        "prevent_initial_call": True,
        "interval": 250,
        "running": [
            (Output(button, "disabled"), True, False),
            (Output(f"{name}-working", "hidden"), False, True),
        ],
        "progress": [Output(f"{name}-bar", "value"), Output(f"{name}-said", "children")],
        "progress_default": [0, ""],
        "cancel": [Input(f"{name}-cancel", "n_clicks")],
    }


def teller(set_progress: Callable[[Any], None]) -> Callable[[str, int, int], None]:
    """Return a function of (task, done, total) that shows progress, and raises ``Cancelled`` once that is asked."""
    last = ("", 0.0)

    def tell(task: str, done: int, total: int) -> None:
        nonlocal last
        check()
        now = time.monotonic()
        if task == last[0] and done < total and now - last[1] < EVERY:
            return
        last = task, now
        share = 100 * done / max(total, 1)
        set_progress((share, f"{task} · {done} of {total}" if total > 1 else task))

    return tell
