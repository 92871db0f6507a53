"""Buttons that copy a text: Python, a command line, a link."""

from __future__ import annotations

from typing import Any

from dash import html


def copy_button(
    target: str, label: str, *, title: str = "", said: str = "Copied", look: str = "bar-button"
) -> html.Button:
    """Return a button that copies the text of the element called ``target`` (see ``copied``), or else the address.

    Parameters
    ----------
    label
        What it says, and says again a moment after ``said``.
    title
        What is copied, in a few words more.
    look
        Its class.
    """
    names: dict[str, Any] = {"data-copies": target, "data-said": said}
    return html.Button(label, type="button", className=look, title=title or label, **names)


def copied(target: str, text: str = "") -> html.Pre:
    """Return the hidden element that holds what a button copies."""
    return html.Pre(text, id=target, hidden=True)
