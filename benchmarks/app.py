"""The application beside BertViz, on SmolLM2-135M: ``python benchmarks/app.py --out app.json``.

BertViz is measured where ``--libraries FOLDER`` holds the three libraries that its pages fetch from a content network
(require.min.js 2.3.6, d3.min.js 5.7.0, jquery.min.js 2); see ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OURS, THEIRS = (512, 2048, 8192), (128, 512, 2048)
MEMORY = 20 << 30
"""Bytes that BertViz may take: more would make the machine swap."""


def prompts(lengths: tuple[int, ...], workspace: Path) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Write recipes for prose of so many tokens; return their names, and the token ids."""
    import headscope as hs
    from headscope.app.runs import Recipe
    from headscope.app.workspace import Workspace
    from headscope.data import texts

    model = hs.load("smollm2-135m", validate=False)
    names, ids = {}, {}
    for length in lengths:
        made = texts(model, n=1, length=length)[0].prompt(model)
        recipe = Recipe("smollm2-135m", made.text)
        recipe.save(Workspace(workspace))
        names[length], ids[length] = recipe.id, list(made.ids)
    return names, ids


def table(found: list[dict[str, Any]]) -> str:
    """Return the measurements as two tables in Markdown."""
    rows = [
        "| tokens | first view, run included | view of a kept run | head change, median / p95 | hover, p95 | "
        "tile, slowest level: median / p95 | server | browser |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in (item for item in found if item["tool"] == "headscope"):
        tile = max(item["tiles_ms"].values(), key=lambda level: level["median"])
        rows.append(
            f"| {item['tokens']} | {item['first_view_s']:.1f} s | {item['kept_view_s']:.1f} s | "
            f"{item['head_ms']['median']:.0f} / {item['head_ms']['p95']:.0f} ms | {item['hover_ms']['p95']:.0f} ms | "
            f"{tile['median']:.0f} / {tile['p95']:.0f} ms | {item['server_bytes'] / 1e9:.2f} GB | "
            f"{item['renderer_bytes'] / 1e6:.0f} MB |"
        )
    rows += ["", "| view | tokens | page | making | load | browser |", "|---|---|---|---|---|---|"]
    for item in (item for item in found if item["tool"] != "headscope"):
        size = f"{item['page_bytes'] / 1e6:.0f} MB" if "page_bytes" in item else "–"
        making = f"{item['make_s']:.1f} s" if "make_s" in item else "–"
        if "failed" in item:
            rows.append(f"| {item['tool']} | {item['tokens']} | {size} | {making} | fails: {item['failed']} | – |")
        else:
            rows.append(
                f"| {item['tool']} | {item['tokens']} | {size} | {making} | {item['load_s']:.1f} s | "
                f"{item['renderer_bytes'] / 1e9:.2f} GB |"
            )
    return "\n".join(rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    parser.add_argument("--libraries", type=Path, help="folder of the libraries of BertViz's pages")
    parser.add_argument("--only", choices=("headscope", "bertviz"))
    parser.add_argument("--lengths", help="tokens, such as 512,2048")
    asked = parser.parse_args()
    from benchmarks.app_parts import bertviz, ours
    from tests.chromium import CHROMIUM, NO_CHROMIUM

    if CHROMIUM is None:
        raise SystemExit(NO_CHROMIUM)

    given = tuple(int(part) for part in asked.lengths.split(",")) if asked.lengths else None
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.only != "bertviz":
            names, _ = prompts(given or OURS, folder)
            found += ours.measure(names, folder)
        if asked.only != "headscope" and asked.libraries is not None:
            _, ids = prompts(given or THEIRS, folder)
            for length, tokens in ids.items():
                for view in ("head", "model"):
                    found.append(bertviz.measure(view, length, tokens, asked.libraries.resolve(), folder, MEMORY))
                    sys.stderr.write(json.dumps(found[-1]) + "\n")
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
