"""Reports: figures, one-file HTML, and how far two rankings agree.

``compare`` is at hand as ``headscope.compare``; here its name belongs to the module that defines it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headscope.report.agreement import Agreement as Agreement
    from headscope.report.compare import Comparison as Comparison
    from headscope.report.html import write_combined as write_combined
    from headscope.report.html import write_comparison as write_comparison
    from headscope.report.html import write_report as write_report

_HOME = {
    "Agreement": "headscope.report.agreement",
    "Comparison": "headscope.report.compare",
    "write_combined": "headscope.report.html",
    "write_comparison": "headscope.report.html",
    "write_report": "headscope.report.html",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'headscope.report' has no attribute {name!r}")
