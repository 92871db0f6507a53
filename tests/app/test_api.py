"""What the viewer fetches: the view's own numbers, and errors that it can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.app.runs import Recipe
from headscope.probes.scores import HeadScores

TEXT = "The man said the code is bivq cojx. What is the code? It is bivq"
BASE = {"base_url": "http://127.0.0.1"}


@pytest.fixture(scope="module")
def run(tiny: Any) -> tuple[str, Any]:
    recipe = Recipe(tiny.model, TEXT, regions=(("code", 25, 34),))
    return recipe.id, tiny.desk.look(recipe)


@pytest.fixture
def ask(tiny: Any, run: tuple[str, Any]) -> Any:
    client = tiny.client

    def get(path: str, **options: Any) -> Any:
        return client.get(f"/api/run/{run[0]}/{path}", **BASE, **options)

    return get


def array(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.mimetype == "application/octet-stream"
    shape = tuple(int(n) for n in answer.headers["X-Shape"].split(","))
    return np.frombuffer(answer.data, "<f4").reshape(shape)


def ranking(path: Path, layers: int = 6, heads: int = 6, **model: Any) -> Path:
    layer, head = np.divmod(np.arange(layers * heads), heads)
    score = np.linspace(0, 1, layers * heads)
    table = pd.DataFrame({"layer": layer, "head": head, "score": score, "ci_low": score, "ci_high": score, "n": 3})
    table = table.assign(null_mean=0.0, p_value=0.5, selected=score > 0.9)
    path.parent.mkdir(parents=True, exist_ok=True)
    HeadScores(table, "retrieval", {"model": {"name": "other", **model}}).save(path)
    return path


def test_meta_says_what_there_is(ask: Any, run: tuple[str, Any]) -> None:
    found = ask("meta").json
    assert found == {**run[1].meta(), "id": run[0]}
    assert found["layers"] == 6
    assert found["heads"] == [6] * 6
    assert len(found["tokens"]) == found["length"]
    assert "".join(found["tokens"][slice(*found["regions"]["code"][0])]).split() == ["bivq", "cojx"]


def test_numbers_are_those_of_the_view(ask: Any, run: tuple[str, Any]) -> None:
    view, length = run[1], run[1].length
    for stat in view.meta()["stats"]:
        np.testing.assert_array_equal(array(ask(f"stat/{stat['name']}")), view.stat(stat["name"]))
    np.testing.assert_array_equal(array(ask("thumbs/2")), view.thumbs(2))
    for reduce in ("max", "mean"):
        np.testing.assert_array_equal(array(ask(f"tile/1/2/0/0/0?reduce={reduce}")), view.tile(1, 2, 0, 0, 0, reduce))
    np.testing.assert_array_equal(array(ask(f"row/3/4/{length - 1}")), view.row(3, 4, length - 1))
    np.testing.assert_array_equal(array(ask("column/3/4/2")), view.column(3, 4, 2))
    neuron = ask("neuron/3/4/5/2")
    assert neuron.json["weight"] == pytest.approx(view.row(3, 4, 5)[2], abs=1e-5)
    assert neuron.json == view.neuron(3, 4, 5, 2)


def test_every_row_sums_to_one_and_columns_cross_rows(ask: Any, run: tuple[str, Any]) -> None:
    length = run[1].length
    rows = np.stack([array(ask(f"row/4/1/{q}")) for q in range(length)])
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(np.stack([array(ask(f"column/4/1/{k}")) for k in range(length)]).T, rows, atol=1e-6)
    np.testing.assert_allclose(array(ask("tile/4/1/0/0/0?reduce=mean"))[:length, :length], rows, atol=1e-6)


def test_pairs_that_no_query_sees_have_numbers_that_json_knows(ask: Any) -> None:
    answer = ask("neuron/0/0/2/5")
    assert answer.status_code == 200
    assert "Infinity" not in answer.text
    assert "NaN" not in answer.text
    assert answer.json["visible"] is False
    assert answer.json["weight"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "stat/nothing",
        "stat/mass:nothing",
        "thumbs/6",
        "thumbs/999999999",
        "tile/6/0/0/0/0",
        "tile/0/6/0/0/0",
        "tile/0/0/9/0/0",
        "tile/0/0/999999999/0/0",
        "tile/0/0/0/1/0",
        "tile/0/0/0/0/999999999",
        "tile/0/0/0/0/0?reduce=sum",
        "tile/0/0/0/0/0?reduce=" + "x" * 3000,
        "row/0/0/999999999",
        "row/0/99/0",
        "row/99/0/0",
        "column/0/0/4096",
        "neuron/0/0/0/4096",
        "neuron/0/0/999999999/0",
        # What is no number at all
        "row/0/0/-1",
        "row/0/0/1e9",
        "row/0/0/" + "9" * 5000,
        "thumbs/99999999999999999999",
        "tile/0/0/0/0",
        "tile/0/0/0/0/0/0",
        "row/0/0/٣",
        "",
    ],
)
def test_what_there_is_not_is_told_as_json(ask: Any, path: str) -> None:
    answer = ask(path)
    assert answer.status_code == 404
    assert answer.mimetype == "application/json"
    assert list(answer.json) == ["error"]
    assert len(answer.json["error"]) < 400
    assert "no-store" in answer.headers["Cache-Control"]


@pytest.mark.parametrize("path", ["meta", "stat/sink", "thumbs/0", "tile/0/0/0/0/0", "row/0/0/0", "neuron/0/0/0/0"])
@pytest.mark.parametrize("name", ["0" * 16, "x", "..", "%2e%2e", "<script>"])
def test_a_run_that_is_not_kept_is_gone(tiny: Any, name: str, path: str) -> None:
    answer = tiny.client.get(f"/api/run/{name}/{path}", **BASE)
    assert answer.status_code == 410 if name not in ("..", "%2e%2e") else answer.status_code in (404, 410)
    assert "error" in answer.json


def test_browsers_keep_what_belongs_to_one_view_and_ask_again(tiny: Any, run: tuple[str, Any]) -> None:
    path = f"/api/run/{run[0]}/row/0/0/3"
    first = tiny.client.get(path, **BASE)
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "private, no-cache"
    again = tiny.client.get(path, headers={"If-None-Match": tag}, **BASE)
    assert (again.status_code, again.data) == (304, b"")
    recipe = Recipe.load(tiny.desk.workspace, run[0])
    tiny.desk.runs.put(recipe.id, run[1])  # made anew, as after a change of its edit
    changed = tiny.client.get(path, headers={"If-None-Match": tag}, **BASE)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag


def test_a_run_that_left_is_not_answered_from_a_browsers_memory(tiny: Any) -> None:
    recipe = Recipe(tiny.model, TEXT + " house")
    tiny.desk.look(recipe)
    tag = tiny.client.get(f"/api/run/{recipe.id}/meta", **BASE).headers["ETag"]
    with tiny.desk.runs.room(tiny.desk.runs.limit):
        pass
    answer = tiny.client.get(f"/api/run/{recipe.id}/meta", headers={"If-None-Match": tag}, **BASE)
    assert answer.status_code == 410


# -- rankings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_a_ranking_colours_the_model_view(tiny: Any, run: tuple[str, Any], ask: Any, suffix: str) -> None:
    tiny.desk.look(Recipe.load(tiny.desk.workspace, run[0]))
    weights = tiny.desk.runs.weights(run[0])
    ranking(tiny.desk.workspace.path(f"rankings/own{suffix}"), fingerprint=weights)
    answer = ask(f"stat/ranking:rankings/own{suffix}")
    np.testing.assert_allclose(array(answer), np.linspace(0, 1, 36).reshape(6, 6), atol=1e-6)
    assert "no-store" in answer.headers["Cache-Control"]  # the file may be written anew


def test_a_ranking_of_another_model_is_refused(tiny: Any, ask: Any) -> None:
    ranking(tiny.desk.workspace.path("rankings/other.json"), fingerprint="f" * 64)
    ranking(tiny.desk.workspace.path("rankings/large.json"), layers=7)
    for name, says in (("other", "not of the model of this run"), ("large", "made for another model")):
        answer = ask(f"stat/ranking:rankings/{name}.json")
        assert answer.status_code == 404
        assert says in answer.json["error"]


@pytest.mark.parametrize(
    "file",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "rankings/none.json",
        "..%2f..%2fsecret.json",
        ".app/recipes/x.json",
        "%00.json",
        "",
    ],
)
def test_rankings_are_files_of_the_workspace(ask: Any, file: str) -> None:
    answer = ask(f"stat/ranking:{file}")
    assert answer.status_code in (404, 308)
    if answer.status_code == 404:
        assert "error" in answer.json


def test_a_file_that_is_no_ranking_is_told(tiny: Any, ask: Any) -> None:
    path = tiny.desk.workspace.path("rankings/damaged.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    answer = ask("stat/ranking:rankings/damaged.json")
    assert answer.status_code == 404
    assert "damaged.json" in answer.json["error"]


def test_status_says_what_the_server_holds(tiny: Any, run: tuple[str, Any]) -> None:
    tiny.desk.look(Recipe.load(tiny.desk.workspace, run[0]))
    found = tiny.client.get("/api/status", **BASE).json
    assert found["models"] == [tiny.model]
    assert found["jobs"] == 0
    assert 0 < found["bytes"] == tiny.desk.runs.nbytes <= found["limit"] == tiny.desk.settings.cache_bytes


# -- the viewer's own files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("view.js", "text/javascript"), ("view.css", "text/css"), ("palette.css", "text/css")]
)
def test_the_viewer_is_served_as_what_it_is(tiny: Any, name: str, kind: str) -> None:
    answer = tiny.client.get(f"/view/{name}", **BASE)
    assert (answer.status_code, answer.mimetype) == (200, kind)


@pytest.mark.parametrize("name", ["none.js", "..%2fapi.py", "%2e%2e%2fapi.py", "view.js%00"])
def test_nothing_else_is_served(tiny: Any, name: str) -> None:
    answer = tiny.client.get(f"/view/{name}", **BASE)
    # With a slash in it the address is one of a page, and pages are drawn in the browser.
    assert answer.status_code == 404 or 'id="react-entry-point"' in answer.text
    assert "def blueprint" not in answer.text
    assert tiny.client.get(f"/api/{name}", **BASE).status_code == 404


def test_an_edited_run_is_served_under_its_own_name(tiny: Any, run: tuple[str, Any]) -> None:
    import headscope as hs
    from headscope.interventions.store import save

    with tiny.desk.model(tiny.model) as model:
        save(tiny.desk.workspace.path("edits/api.json"), hs.HeadEdit([(0, h) for h in range(6)]), model=model)
    recipe = replace(Recipe.load(tiny.desk.workspace, run[0]), edit="edits/api.json")
    tiny.desk.look(recipe)
    rows = [array(tiny.client.get(f"/api/run/{name}/row/1/0/9", **BASE)) for name in (run[0], recipe.id)]
    assert not np.allclose(rows[0], rows[1])
