"""The arrows of the design point down, and kernels stay small enough to be lifted out."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "headscope"


def test_import_contracts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == EXIT_STATUS_SUCCESS


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports; headscope's own as ``headscope.part``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {".".join(name.split(".")[: 2 if name.startswith("headscope") else 1]) for name in names}


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_need_torch_alone(path: Path) -> None:
    # platformdirs says where compiled code is kept.
    allowed = {"torch", "platformdirs", "headscope.kernels", "headscope.errors", *sys.stdlib_module_names}
    if path.parent.name == "triton":
        allowed.add("triton")
    assert imported(path) <= allowed


def test_no_print_in_the_package() -> None:
    """Output goes through logging or rich, so that --json stays machine readable."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path
