"""What a page is, and where pages are found: one file each under ``pages``, with a ``PAGE``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dash import Dash
    from dash.development.base_component import Component

    from headscope.app.desk import Desk


@dataclass(frozen=True)
class Page:
    """One page of the application.

    Parameters
    ----------
    path
        Where it is, such as ``/rank``.
    name
        In the navigation and the title.
    order
        Its place in the navigation.
    about
        One line that says what it is for.
    layout
        Returns the page, given the desk and the values of the address's query.
    callbacks
        Registers the page's callbacks with an application.
    """

    path: str
    name: str
    order: int
    about: str
    layout: Callable[..., Component]
    callbacks: Callable[[Dash, Desk], None]


def find_pages() -> list[Page]:
    """Return all pages, in their order."""
    from headscope.app import pages

    modules = [
        importlib.import_module(f"{pages.__name__}.{found.name}") for found in pkgutil.iter_modules(pages.__path__)
    ]
    found: list[Any] = [module.PAGE for module in modules if hasattr(module, "PAGE")]
    return sorted(found, key=lambda page: page.order)
