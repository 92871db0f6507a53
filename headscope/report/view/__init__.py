"""The view of one run: what the viewer in a browser, a notebook or a file may ask about it."""

from headscope.report.view.source import View

__all__ = ["View"]
