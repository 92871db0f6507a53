"""Errors, shown where they arose, with what to do."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import dash_mantine_components as dmc
from dash import html, no_update
from dash.exceptions import PreventUpdate

from headscope.app.jobs import Cancelled
from headscope.errors import HeadscopeError

log = logging.getLogger(__name__)


def notice(text: str, *, title: str | None = None, kind: str = "error") -> html.Div:
    """Return a box with a message; ``kind`` is ``"error"``, ``"warning"`` or ``"note"``."""
    head = [html.Strong(title)] if title else []
    role = "alert" if kind == "error" else "status"
    return html.Div([*head, dmc.Text(text, size="sm")], className=f"notice notice-{kind}", role=role)


def said(error: Exception) -> str:
    """Return what a user is told about an error; of one that nobody foresaw, no more than its kind."""
    if isinstance(error, HeadscopeError):
        return str(error)
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate", str(error)):
        return "There was not enough memory. Shorten the prompt, or start the server with a smaller --cache-gb."
    log.error("Unforeseen error in a page", exc_info=error)
    return f"Something went wrong inside the server ({type(error).__name__}); its log in the terminal says more."


def told(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a callback show errors: it gains one more output, the last, that holds the message.

    ``outputs`` is how many the callback returns itself. When it fails they stay as they are, and the last one is a
    ``notice``; when it succeeds the last one becomes empty. A cancelled job says nothing.
    """

    def wrap(work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                found = work(*args, **kwargs)
            except PreventUpdate:
                raise
            except Cancelled:
                return (*[no_update] * outputs, None)
            except Exception as error:  # noqa: BLE001 - whatever it is, the page must go on and say so
                return (*[no_update] * outputs, notice(said(error)))
            return (found, None) if outputs == 1 else (*found, None)

        return guarded

    return wrap
