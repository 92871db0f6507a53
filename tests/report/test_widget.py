"""What notebooks show: frames that hold everything, files, and what to do where there is nothing to show."""

from __future__ import annotations

import ast
import gc
import html
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import headscope as hs
from headscope.attention.edits import KnockOut
from headscope.errors import HeadscopeError, OutputError, PromptError, RequestError
from headscope.models.tiny import tiny
from headscope.report.view.widget import Shown
from tests.report.test_view_html import Page

IDS = list(range(5, 29))


@pytest.fixture
def model() -> Any:
    return hs.load(tiny("llama"), validate=False)


@pytest.fixture
def speaking() -> Any:
    """A model with a tokenizer."""
    made = hs.data.organism("llama", seed=0)
    return hs.load(made.model, tokenizer=made.tokenizer)


def framed(shown: Shown) -> str:
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" ([^>]*)></iframe>', shown._repr_html_(), re.DOTALL)
    assert found is not None
    assert 'sandbox="allow-scripts allow-downloads"' in found[2]
    assert "allow-same-origin" not in found[2]
    assert shown._repr_html_().isascii()
    return html.unescape(found[1])


def test_a_cell_holds_the_whole_page_in_a_frame(model, tmp_path) -> None:
    shown = model.view(model.prompt_from_ids(IDS), height=500)
    assert framed(shown) == shown.html
    assert "height:500px" in shown._repr_html_()
    assert shown.save(tmp_path / "deep" / "view.html").read_text(encoding="utf-8") == shown.html
    assert "MB of HTML" in repr(shown)
    assert len(repr(shown)) < 200


def test_html_is_the_page_as_text(model) -> None:
    page = model.view(model.prompt_from_ids(IDS), html=True)
    assert page.startswith("<!doctype html>")
    assert Page(page).data["meta"]["length"] == len(IDS)


def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing(model, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose a folder"):
        model.view(model.prompt_from_ids(IDS)).save(tmp_path / "file" / "view.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_text_is_read_by_the_tokenizer(speaking) -> None:
    word = speaking.tokenizer.decode([7]).strip() or "a"
    page = Page(speaking.view(word, html=True))
    assert page.data["meta"]["length"] >= 1
    assert page.data["meta"]["model"] == speaking.name


def test_tokens_that_the_model_writes_are_a_region(model) -> None:
    prompt = model.prompt_from_ids(IDS)
    page = Page(model.view(prompt, max_new_tokens=3, html=True))
    trace = model.trace(prompt, max_new_tokens=3)
    meta = page.data["meta"]
    assert meta["length"] == len(IDS) + 3
    assert meta["prompt_length"] == len(IDS)
    assert meta["regions"]["generated"] == [[len(IDS), len(IDS) + 3]]
    assert meta["tokens"][-3:] == [f"⟨{token}⟩" for token in trace.tokens]


def test_edits_hold_for_what_is_written_and_read(model) -> None:
    prompt = model.prompt_from_ids(IDS, {"span": range(4, 9)})
    edit = KnockOut(((0, 1),), ("span",))
    page = Page(model.view(prompt, edits=[edit], html=True))
    assert page.pattern(0, 1)[10, 4:9].max() == 0
    with model.edited(edit):
        assert Page(model.view(prompt, html=True)).pattern(0, 1)[10, 4:9].max() == 0
    assert Page(model.view(prompt, html=True)).pattern(0, 1)[10, 4:9].max() > 0


def test_a_run_that_kept_queries_and_keys_is_shown(model) -> None:
    run = model.run(model.prompt_from_ids(IDS), [hs.QK(), hs.Entropy(), hs.Mass(["bos"])])
    page = Page(run.show(html=True))
    assert {stat["name"] for stat in page.data["meta"]["stats"]} >= {"entropy", "sink"}
    assert len(page.data["heads"]) == 8
    assert isinstance(run.show(), Shown)


def test_a_run_of_queries_and_keys_alone_is_shown(model) -> None:
    run = model.run(model.prompt_from_ids(IDS), [hs.QK()])
    page = Page(run.show(html=True, heads=[(0, 1)]))
    assert list(page.data["heads"]) == ["0.1"]
    assert page.data["again"] == "run.show(heads=[{head}])"
    assert "run.show(heads=[(layer, head)])" in run.show(html=True, heads=[(0, 1)])


def test_a_run_without_them_says_what_to_capture(model) -> None:
    run = model.run(model.prompt_from_ids(IDS), [hs.Entropy()])
    with pytest.raises(RequestError, match=r"hs\.QK\(\).*model\.view\(prompt\)"):
        run.show()


def test_a_batch_cannot_be_shown(model) -> None:
    run = model.run([model.prompt_from_ids(IDS), model.prompt_from_ids(IDS)], [hs.QK()])
    with pytest.raises(RequestError, match="one prompt"):
        run.show()


def test_a_run_keeps_no_model_in_memory() -> None:
    model = hs.load(tiny("llama"), validate=False)
    run = model.run(model.prompt_from_ids(IDS), [hs.QK()])
    whole = run.show(html=True)
    del model
    gc.collect()
    with pytest.raises(RequestError, match=r"show\(model=model\)"):
        run.show()
    assert Page(run.show(model=hs.load(tiny("llama"), validate=False), html=True)).data == Page(whole).data


def test_a_run_can_be_pickled(model) -> None:
    run = model.run(model.prompt_from_ids(IDS), [hs.Entropy()])
    again = pickle.loads(pickle.dumps(run))
    assert (again["entropy"].values == run["entropy"].values).all()


@pytest.mark.parametrize(
    ("give", "error", "message"),
    [
        (lambda m: m.view(m.prompt_from_ids(IDS), height=20), RequestError, "at least 120 pixels"),
        (lambda m: m.view([m.prompt_from_ids(IDS)]), RequestError, "one prompt"),
        (lambda m: m.view("text"), PromptError, "without a tokenizer"),
        (lambda m: m.view(m.prompt_from_ids(range(5, 95)), max_new_tokens=100), PromptError, "context"),
        (lambda m: hs.load(tiny("t5")).view(m.prompt_from_ids(IDS), max_new_tokens=2), RequestError, "encoder"),
        (lambda m: hs.load(tiny("vit")).view(m.prompt_from_ids(IDS)), HeadscopeError, "reads no text"),
    ],
)
def test_what_cannot_be_shown_is_told(model, give, error, message) -> None:
    with pytest.raises(error, match=message):
        give(model)


def test_scores_are_shown_as_map_and_table(make, tmp_path) -> None:
    scores = make()
    shown = scores.show()
    page = framed(shown)
    assert page == shown.html == scores.show(html=True)
    assert len(page) < 1_000_000
    names = re.findall(r'<rect [^>]*data-head="(L\d+H\d+)"', page)
    assert len(names) == len(set(names)) == 270
    assert len(re.findall(r'<tr data-head="', page)) == 270
    assert page.count('class="selected"/>') == len(scores.selected)
    assert Path(shown.save(tmp_path / "heads.html")).stat().st_size > 0


def test_colours_of_the_map_follow_a_column(make) -> None:
    scores = make()
    by_score, by_active = scores.show(html=True), scores.show(column="active", html=True)
    assert by_score != by_active
    colours = dict(re.findall(r'fill="var\(--c(\d+)\)" data-head="(L\d+H\d+)"', by_score))
    assert len(set(colours)) > 5
    at = {name: int(colour) for colour, name in re.findall(r'fill="var\(--c(\d+)\)" data-head="(L\d+H\d+)"', by_score)}
    ranked = scores.ranked()
    names = [f"L{layer}H{head}" for layer, head in zip(ranked["layer"], ranked["head"], strict=True)]
    assert [at[name] for name in names] == sorted((at[name] for name in names), reverse=True)
    with pytest.raises(HeadscopeError, match=r"no column 'actve'.*active"):
        scores.show(column="actve")
    with pytest.raises(RequestError, match="theme"):
        scores.show(theme="pink")


def test_scores_below_zero_and_without_a_number(make) -> None:
    table = make(layers=3, heads=3, details=False).table
    table.loc[0, "score"] = -0.4
    table.loc[1, ["score", "ci_low", "ci_high", "p_value"]] = float("nan")
    page = hs.HeadScores(table, "odd").show(html=True)
    assert "#9b4805" in page  # the low end of the diverging colours
    assert re.search(r'class="none" data-head="L0H1"', page)


def test_hostile_names_stay_text(make) -> None:
    scores = make(layers=2, heads=2, model="</title><img src=x onerror=alert(1)>", details=False)
    assert "<img" not in scores.show(html=True)


@pytest.mark.slow
def test_the_notebook_runs_and_every_figure_shows_itself(smollm2) -> None:
    """Cells one after the other, as a kernel does; each last line that is a figure can be shown."""
    notebook = json.loads((Path(__file__).parents[2] / "notebooks" / "view.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "the notebook is kept without its outputs, which are the size of its figures"
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "view.ipynb", "exec"), namespace)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "view.ipynb", "eval"), namespace))
    figures = [one for one in shown if isinstance(one, Shown)]
    assert len(figures) == 4
    for figure in figures[:3]:
        assert Page(framed(figure)).data["meta"]["model"] == "smollm2-135m"
    assert "Induction heads" in framed(figures[3])


@pytest.mark.slow
def test_thousands_of_tokens_fit_and_are_exact(smollm2) -> None:
    sample = hs.data.needles(smollm2, n=1, lengths=[2048], seed=0)[0]
    run = smollm2.run(sample.prompt(smollm2), [hs.QK()], logits="last")
    shown = run.show(limit_mb=6)
    assert 2e6 < len(shown.html) < 7e6
    page = Page(shown.html)
    assert 2 <= len(page.data["heads"]) <= 8
    name = next(iter(page.data["heads"]))
    layer, head = map(int, name.split("."))
    rows = run.qk["qk"].tile(layer, head, rows=range(2040, 2048)).numpy()
    assert abs(page.pattern(layer, head)[2040:] - rows).max() < 1e-5
