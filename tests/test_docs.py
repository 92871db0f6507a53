"""What the documentation says is true: snippets run, links lead somewhere, every error and request has an entry."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import headscope as hs
from headscope import errors
from headscope.attention import requests

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def docs_model() -> Any:
    """A model with known heads and a tokenizer, in place of the real one."""
    made = hs.data.organism("llama", seed=0)
    return hs.load(made.model, tokenizer=made.tokenizer)


@pytest.mark.parametrize("page", [page for page in PAGES if CODE.search(page.read_text())], ids=name)
def test_snippets_run(page: Path, docs_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All snippets of a page, in order, in one namespace, on a tiny model in place of the one they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(vars(hs), "load", lambda *_, **__: docs_model)
    namespace: dict[str, Any] = {}
    for match in CODE.finditer(page.read_text()):
        line = page.read_text()[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def commands() -> list[str]:
    lines = [line for page in PAGES for block in CONSOLE.findall(page.read_text()) for line in block.splitlines()]
    return sorted({line.removeprefix("$ ").split("#")[0].strip() for line in lines if line.startswith("$ headscope")})


@pytest.mark.parametrize("command", commands())
def test_commands_and_options_exist(command: str) -> None:
    import typer.main

    from headscope.cli import app

    words = shlex.split(command)[1:]
    here: Any = typer.main.get_command(app)
    while words and words[0] in getattr(here, "commands", {}):
        here = here.commands[words.pop(0)]
    known = {option for parameter in here.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert not getattr(here, "commands", {}), f"{command}: not a whole command"
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known | {"--help"}


def public_classes(module: Any, base: type) -> list[type]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, base)]


@pytest.mark.parametrize("kind", public_classes(errors, errors.HeadscopeError))
def test_every_error_has_an_entry(kind: type) -> None:
    assert f"`{kind.__name__}`" in (ROOT / "docs" / "errors.md").read_text()


def literals() -> str:
    """All text constants of the package, f-strings with … in their gaps."""
    texts = []
    for path in (ROOT / "headscope").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
    return "\n".join(texts)


def test_quoted_messages_exist() -> None:
    """Each message in the page on errors is one that the package can print: all its fixed parts, in one text."""
    page = (ROOT / "docs" / "errors.md").read_text()
    quoted = [quote for line in page.splitlines() if line.startswith("`") for quote in re.findall(r"`([^`]+)`", line)]
    known = literals()
    for quote in quoted:
        parts = [re.escape(part.strip()) for part in quote.split("…") if part.strip()]
        assert re.search(r"[^\n]*?".join(parts), known), f"no message reads {quote!r}"


@pytest.mark.parametrize("kind", [k for k in public_classes(requests, requests.Request) if k is not requests.Request])
def test_every_request_has_an_entry(kind: type) -> None:
    assert f"| `{kind.__name__}(" in (ROOT / "docs" / "requests.md").read_text()


def test_every_probe_has_a_page() -> None:
    for probe in hs.probes.PROBES:
        page = (ROOT / "docs" / "probes" / f"{probe}.md").read_text()
        assert page.startswith("# ")
        assert f"`{probe}`" in page
