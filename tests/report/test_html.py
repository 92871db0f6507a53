from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.errors import DataError, OutputError
from headscope.probes.scores import HeadScores
from headscope.report import write_combined, write_report
from headscope.report.compare import compare
from headscope.report.html import plotly_js
from headscope.report.numbers import fixed, head_name

Make = Callable[..., HeadScores]
EVIL = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' {{ 7 * 7 }} {% raw %}",
    "שלום \u202e reversed",
    "👩‍🚀🇫🇷",
    "line\nbreak\r\n\ttab",
    "\x00\x01\x1b[31m\x7f\x85",
    "&amp; &lt;b&gt;",
)


PLOTLY = "plotly.js v"


class Reader(HTMLParser):
    """Collects elements, attributes, and the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"[ \n\t]+", " ", "".join(self.text))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path, *, whole: bool = False) -> Reader:
    """Parse a report; all but the first tests pass over the five megabytes of plotly.js."""
    text = path.read_text(encoding="utf-8")
    assert text.count(plotly_js()) == 1
    reader = Reader()
    reader.feed(text if whole else text.replace(plotly_js(), PLOTLY))
    reader.close()
    assert not reader.unbalanced
    assert not reader.open
    return reader


@pytest.fixture(scope="module")
def page(full: HeadScores, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return read(write_report(full, tmp_path_factory.mktemp("report") / "r.html"), whole=True)


def test_nothing_is_loaded(page: Reader) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, value)
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "http" not in policy


def test_no_address_stands_outside_of_plotly(page: Reader) -> None:
    others = [text for text in page.scripts if PLOTLY not in text[:200]]
    assert len(others) == len(page.scripts) - 1
    assert not any(re.search(r"https?://", text) for text in [*others, page.words])


def test_policy_allows_the_two_scripts_and_no_other(page: Reader) -> None:
    import base64
    import hashlib

    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv")) or ""
    running = [a for a in page.named("script") if a.get("type") != "application/json"]
    assert len(running) == 2
    for text in page.scripts[-2:]:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy


def test_every_head_is_in_the_table_with_its_numbers(page: Reader, full: HeadScores) -> None:
    names = [row["data-head"] for row in page.named("tr") if "data-head" in row]
    assert names == [head_name(a, b) for a, b in zip(full.ranked()["layer"], full.ranked()["head"], strict=True)]
    for row in full.table.to_dict("records"):
        assert fixed(row["score"]) in page.words
        assert f"[{fixed(row['ci_low'])}, {fixed(row['ci_high'])}]" in page.words
    values = {cell.get("data-v") for cell in page.named("td")}
    assert {str(score) for score in full.table["score"]} <= values


def test_every_detail_has_its_section(page: Reader) -> None:
    for title in (
        "Published claims",
        "Map of heads",
        "Best heads",
        "What removing them does",
        "Where the score holds",
        "Always active or by context",
        "What they read",
        "All heads",
        "Provenance",
        "Reproduce",
    ):
        assert title in page.words
    assert "21 of 270 heads (7.8\u202f%) of smollm2-135m copy the answer" in page.words
    assert "With the 20 best heads removed, recall of the answer is 0.06, against 0.91 with all heads" in page.words
    assert page.words.count("same direction") == 3
    assert (
        "headscope rank retrieval --model smollm2-135m --n 60 --lengths 512,1024,2048 --ablation mean --controls 20 "
        "--seed 0 --out runs/retrieval"
    ) in page.words
    assert "data = hs.data.needles(model, lengths=[512, 1024, 2048])" in page.words
    assert "93efa2f097d58c2a74874c7e644dbc9b0cee75a2" in page.words


def test_headings_are_in_order_and_anchors_exist(full: HeadScores, make: Make, tmp_path: Path) -> None:
    page = read(write_combined([full, make("sinks"), make("sink-tokens")], tmp_path / "r.html"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-4]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.named("a"):
        assert (link["href"] or "")[1:] in ids
    drawn = [plot["data-figure"] for plot in page.named("div") if "data-figure" in plot]
    assert set(drawn) <= set(ids)
    assert {plot.get("data-table") for plot in page.named("div")} - {None} <= set(ids)
    for column in page.named("th"):
        assert column["scope"] in ("col", "row")


def test_combined_report_has_plotly_once_and_agreement_first(full: HeadScores, make: Make, tmp_path: Path) -> None:
    page = read(write_combined([full, make("sinks"), make("induction", seed=3)], tmp_path / "r.html"))
    assert sum(PLOTLY in text[:200] for text in page.scripts) == 1
    titles = page.words
    assert titles.index("Agreement between probes") < titles.index("Always active or by context")
    assert "Spearman’s ρ" in titles
    for title in ("Retrieval heads", "Sink heads", "Induction heads", "Active and dormant by domain", "Later sinks"):
        assert title in titles


def test_others_are_compared_with_it(full: HeadScores, make: Make, tmp_path: Path) -> None:
    page = read(full.report(tmp_path / "r.html", others=[make("sinks"), make(layers=2, heads=2, model="tiny")]))
    assert "Agreement between probes" in page.words
    assert "Not compared, because the model has other heads" in page.words


def test_rankings_without_scores_are_named_not_compared(full: HeadScores, make: Make, tmp_path: Path) -> None:
    table = make("echo", details=False).table.assign(score=np.nan, selected=False)
    nothing = HeadScores(table, "echo", full.provenance)
    page = read(write_combined([nothing, full, make("sinks", details=False)], tmp_path / "r.html"))
    assert "Not compared, because no head has a score: echo." in page.words
    assert "1 pair of rankings" in page.words
    assert "Agreement" not in read(write_combined([nothing, full], tmp_path / "s.html")).words


def test_parameters_that_the_command_line_lacks_are_given_in_python(make: Make, tmp_path: Path) -> None:
    scores = make(details=False)
    provenance = {**scores.provenance, "parameters": {"threshold": 0.25}}
    page = read(write_report(HeadScores(scores.table, "retrieval", provenance), tmp_path / "r.html"))
    assert "RetrievalHeads(threshold=0.25)" in page.words
    assert "headscope rank" not in page.words


def test_a_model_from_a_package_is_loaded_by_its_name(make: Make, tmp_path: Path) -> None:
    scores = make(details=False)
    model = {**scores.provenance["model"], "source": "package:some-wheel==1.0"}
    page = read(
        write_report(HeadScores(scores.table, "retrieval", {**scores.provenance, "model": model}), tmp_path / "r")
    )
    assert "--model smollm2-135m" in page.words
    assert "hs.load('smollm2-135m')" in page.words


def test_removal_says_how_many_controls_did_as_much(full: HeadScores, tmp_path: Path) -> None:
    dose = full.details["dose"].assign(p_value=np.nan, ci_low=np.nan, ci_high=np.nan)
    dose.loc[dose["kind"] == "top", "p_value"] = 3 / 21
    page = read(write_report(full.with_details(dose=dose), tmp_path / "r.html"))
    assert "2 of 20 controls did as much damage (p = 0.143)." in page.words


def test_one_result_is_no_combination(make: Make, tmp_path: Path) -> None:
    page = read(write_combined([make(details=False)], tmp_path / "r.html"))
    assert "Agreement" not in page.words
    with pytest.raises(DataError, match="no result"):
        write_combined([], tmp_path / "none.html")


def test_absent_details_make_no_section(make: Make, tmp_path: Path) -> None:
    scores = HeadScores(make(details=False).table, "my_probe", {})
    page = read(write_report(scores, tmp_path / "r.html"))
    assert "of an unnamed model pass the my_probe probe" in page.words
    for title in ("Published claims", "What removing", "Where the score", "Always active", "Provenance", "Reproduce"):
        assert title not in page.words


def test_empty_details_make_no_section(full: HeadScores, tmp_path: Path) -> None:
    empty = {name: frame.iloc[:0] for name, frame in full.details.items()}
    page = read(write_report(full.with_details(**empty), tmp_path / "r.html"))
    for title in ("Published claims", "What removing", "Where the score", "Always active or", "What they read"):
        assert title not in page.words


def hostile(make: Make) -> HeadScores:
    scores = make(layers=2, heads=2)
    samples = pd.DataFrame(
        {
            "sample": EVIL[0],
            "layer": 0,
            "head": 1,
            "query": 40,
            "query_token": EVIL[1],
            "key": range(len(EVIL)),
            "key_token": list(EVIL),
            "weight": 1 / len(EVIL),
        }
    )
    words = pd.DataFrame({"claim": EVIL, "answer": EVIL, "evidence": EVIL, "verdict": EVIL})
    factor = pd.DataFrame({EVIL[0]: list(EVIL), "score": 0.1, "n": 1})
    extra = pd.DataFrame({EVIL[2]: list(EVIL), "token": list(EVIL)})
    provenance: dict[str, Any] = {
        "model": {"name": EVIL[1], "source": EVIL[0], "n_layers": 2, "n_heads": 2},
        "notes": list(EVIL),
        "parameters": {EVIL[0]: EVIL[1]},
        "data": {"parameters": {"n": EVIL[3]}, "n": 3},
        "odd": "lone \ud800 surrogate",
    }
    details = {"samples": samples, "claims": words, "by_factor": factor, EVIL[0]: extra}
    return HeadScores(scores.table, "retrieval", provenance, details)


def test_hostile_text_stays_text(make: Make, tmp_path: Path) -> None:
    scores = hostile(make)
    path = write_report(scores, tmp_path / "r.html", others=[make("sinks", layers=2, heads=2)], title=EVIL[1])
    page = read(path)
    assert not page.named("img")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    running = [a for a in page.named("script") if a.get("type") != "application/json"]
    assert len(running) == 2
    assert "<script>alert(1)</script>" in page.words
    assert "49" not in re.findall(r"' (\S+) \{%", page.words)
    raw = path.read_text(encoding="utf-8").replace(plotly_js(), "")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85]", raw)
    assert "👩‍🚀🇫🇷" in raw


def test_scores_that_are_missing(make: Make, tmp_path: Path) -> None:
    scores = make(details=False)
    nan = scores.table.assign(
        score=np.nan, ci_low=np.nan, ci_high=np.nan, null_mean=np.nan, p_value=np.nan, selected=False
    )
    page = read(write_report(HeadScores(nan, "retrieval", scores.provenance), tmp_path / "r.html"))
    assert "No head of smollm2-135m has a score, on 60 samples: no sample counted." in page.words
    assert "nan" not in page.words.lower().split()
    partly = scores.table.assign(score=scores.table["score"].where(scores.table["layer"] > 3))
    assert len(read(write_report(HeadScores(partly, "p", {}), tmp_path / "p.html")).named("tr")) > 270


def test_a_single_head(make: Make, tmp_path: Path) -> None:
    page = read(write_report(make(layers=1, heads=1, details=False), tmp_path / "r.html"))
    assert "1 of 1 head (100.0\u202f%) of smollm2-135m copies the answer" in page.words.replace(
        "100.0 %", "100.0\u202f%"
    )


def test_more_than_a_thousand_heads(make: Make, tmp_path: Path) -> None:
    path = write_report(make(layers=48, heads=25), tmp_path / "r.html")
    assert sum("data-head" in row for row in read(path).named("tr")) == 1200
    assert path.stat().st_size < 8e6


def test_comparison_has_its_report(full: HeadScores, make: Make, tmp_path: Path) -> None:
    found = compare(full, make(seed=2, model="smollm2-135m-it", details=False), draws=20)
    page = read(found.report(tmp_path / "c.html"))
    for title in ("Head by head", "Shared heads", "Heads that moved", "Over depth", "Provenance of smollm2-135m-it"):
        assert title in page.words
    assert "The weights differ" in page.words


def test_same_scores_give_the_same_bytes(full: HeadScores, tmp_path: Path) -> None:
    a, b = (write_report(full, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert a == b


def test_a_folder_that_cannot_be_made_is_an_output_error(full: HeadScores, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Cannot write"):
        write_report(full, tmp_path / "file" / "r.html")


def test_a_full_disk_leaves_the_old_report(full: HeadScores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_report(full, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
