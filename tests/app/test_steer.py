"""The Steer page without a browser: what it runs and keeps, what it shows for an address, and what it says."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headscope.app import steering, steering_sweeps
from headscope.app.components import continuations, method_asked, steer_examples, sweep, sweep_task
from headscope.app.components.method_asked import SAVED, Asked
from headscope.app.components.method_fields import VALUED
from headscope.app.jobs import Cancelled
from headscope.app.pages import steer
from headscope.app.runs import Recipe
from headscope.app.steering_sweeps import Range, Trial
from headscope.errors import HeadscopeError, RequestError
from headscope.interventions import PASTA, compare_continuations
from headscope.interventions.store import load, save
from headscope.report.continuations import fragment
from tests.app.test_explore import parts, words
from tests.app.test_method_form import asked, recipe
from tests.interventions.methods import CASES

quiet = lambda *said: None  # noqa: E731


@pytest.fixture
def desk(make_app: Any) -> Any:
    return make_app()[1]


@pytest.fixture
def pasta(desk: Any) -> Asked:
    return asked(desk, "pasta", {"region": ["name"], "alpha": 0.05}, {"kind": "all"})


# -- comparing -----------------------------------------------------------------------------------------------------


def test_a_result_is_the_comparison_and_is_kept(desk: Any, pasta: Asked) -> None:
    name = steering.compare(desk, pasta, quiet)
    document = steering.found(desk, name, "texts")
    assert document is not None
    with desk.model(desk.settings.model) as model:
        own = compare_continuations(
            model, pasta.recipe.prompt(model), PASTA(region="name", alpha=0.05), max_new_tokens=3
        )
        (kept,) = load(desk.workspace.path(f"{steering.FOLDER}/{name}.edit.json"), model)
    assert kept == PASTA(region="name", alpha=0.05)
    for side in ("base", "steered"):
        part = getattr(own, side)
        assert document[side]["text"] == part.text
        assert document[side]["tokens"] == list(part.tokens)
        np.testing.assert_array_equal(document[side]["base"], part.base)
        np.testing.assert_array_equal(document[side]["steered"], part.steered)
    assert document["kl"] == own.kl
    assert document["diverges"] == own.diverges
    assert Recipe.load(desk.workspace, document["run"]) == pasta.recipe
    # Asked again, it is there: nothing runs.
    assert steering.compare(desk, pasta, lambda *said: pytest.fail("it ran again")) == name
    assert steering.found(desk, name, "sweep") is None
    assert steering.found(desk, "../../x") is None


def test_cancelled_work_leaves_nothing(desk: Any, pasta: Asked) -> None:
    def stop(task: str, done: int, total: int) -> None:
        if task.startswith("Writing under"):
            raise Cancelled

    with pytest.raises(Cancelled):
        steering.compare(desk, pasta, stop)
    assert steering.found(desk, pasta.name(desk, "texts")) is None
    with desk.model(desk.settings.model) as model:
        assert not model.edits


def test_an_edit_that_does_nothing_is_said_so_plainly(desk: Any) -> None:
    found = steering.compare(desk, asked(desk, "zerotuning", {"gamma": 1}, {"kind": "all"}), quiet)
    document = steering.found(desk, found)
    assert document is not None
    assert not document["changed"]
    said = words(continuations.shown(document))
    assert "The edit changed nothing." in said
    assert "Both texts are the same, to the last bit." in said


def test_what_the_engine_warns_of_stands_above_the_texts(desk: Any) -> None:
    never = asked(desk, "act", {"threshold": 0.99, "layers": "2"}, {"kind": "all"})
    document = steering.found(desk, steering.compare(desk, never, quiet))
    assert document is not None
    assert any("found no key to edit" in note for note in document["notes"])
    assert "found no key to edit" in words(continuations.shown(document))


def test_warnings_are_heard_in_their_own_thread_only() -> None:
    other: list[str] = []

    def warn() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("of another thread", stacklevel=1)
        other.extend(str(one.message) for one in caught)

    with steering.warned() as notes:
        thread = threading.Thread(target=warn)
        thread.start()
        thread.join()
        warnings.warn("mine", stacklevel=1)
        warnings.warn("mine", stacklevel=1)
    assert notes == ["mine"]
    assert other == ["of another thread"]


def test_a_prompt_that_does_not_fit_is_refused_by_the_desk(desk: Any) -> None:
    with pytest.raises(HeadscopeError, match="pass the context"):
        steering.compare(desk, asked(desk, "act", {}, {"kind": "all"}, new_tokens=10**6), quiet)


# -- edits ---------------------------------------------------------------------------------------------------------


def test_an_edit_is_saved_opened_stacked_and_explored(desk: Any, pasta: Asked) -> None:
    name = steering.compare(desk, pasta, quiet)
    file = steering.keep_edit(desk, name, "bivq")
    assert file == "edits/bivq.json"
    address = steering.explored(desk, name, file)
    explored = Recipe.load(desk.workspace, address.removeprefix("/explore?run="))
    assert explored.edit == file
    assert (explored.text, explored.regions) == (pasta.recipe.text, pasta.recipe.regions)

    document = {"recipe": pasta.recipe.__dict__, "method": SAVED, "file": file}
    opened = steering.found(desk, steering.compare(desk, Asked.read(document), quiet))
    first = steering.found(desk, name)
    assert opened is not None
    assert first is not None
    assert opened["steered"] == first["steered"]

    both = asked(desk, "temperature", {"temperature": 0.5}, {"kind": "all"})
    stacked = Asked.read({**both.document(), "before": file})
    made = steering.compare(desk, stacked, quiet)
    with desk.model(desk.settings.model) as model:
        methods = load(desk.workspace.path(f"{steering.FOLDER}/{made}.edit.json"), model)
    assert [method.name for method in methods] == ["pasta", "temperature"]
    kept = steering.found(desk, made)
    assert kept is not None
    assert kept["command"] is None
    assert "one method" in kept["no_command"]
    space: dict[str, Any] = {}
    exec(kept["cell"], space)
    assert list(space["found"].steered.steered) == kept["steered"]["steered"]


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.method not in VALUED])
def test_trained_edits_run_sweep_and_are_told_in_python(case: str, desk: Any, tmp_path: Any) -> None:
    file = f"edits/{case}.json"
    with desk.model(desk.settings.model) as model:
        save(desk.workspace.path(file), CASES[case].make(model, tmp_path), model=model)
    prompt = recipe(desk, regions=(("span", 4, 8), ("next", 9, 12)))
    wanted = Asked.read({"recipe": prompt.__dict__, "method": CASES[case].method, "file": file})
    assert method_asked.wrong(desk, wanted) == {}
    found = steering.found(desk, steering.compare(desk, wanted, quiet))
    assert found is not None
    base, steered = (np.array(found["steered"][state]) for state in ("base", "steered"))
    assert np.abs(base - steered).max() > 1e-3
    exec(found["cell"], space := {})
    assert list(space["found"].steered.steered) == found["steered"]["steered"]
    half = Range(steering_sweeps.STRENGTH, (0.5,))
    if case in ("LoFiT", "SAE"):
        with pytest.raises(RequestError, match="no strength that is a number"):
            steering_sweeps.sweep(desk, wanted, half, quiet)
    else:
        swept = steering.found(desk, steering_sweeps.sweep(desk, wanted, half, quiet))
        assert swept is not None
        assert [row["kl"] > 0 for row in swept["rows"] if not row["neutral"]] == [True]


def test_a_name_that_is_taken_has_to_be_asked_for_twice(desk: Any, pasta: Asked) -> None:
    name = steering.compare(desk, pasta, quiet)
    other = steering.compare(desk, asked(desk, "act", {}, {"kind": "all"}), quiet)
    steering.keep_edit(desk, name, "mine")
    assert steering.keep_edit(desk, name, "mine") == "edits/mine.json"
    with pytest.raises(RequestError, match="already"):
        steering.keep_edit(desk, other, "mine")
    steering.keep_edit(desk, other, "mine", replace=True)
    for wrong in ("", "../x", "a/b"):
        with pytest.raises(RequestError):
            steering.keep_edit(desk, name, wrong)
    with pytest.raises(RequestError, match="run it again"):
        steering.keep_edit(desk, "0" * 16, "x")


def test_edit_files_are_told_by_what_they_hold(desk: Any, tmp_path: Any) -> None:
    (desk.workspace.root / "edits").mkdir(parents=True)
    (desk.workspace.root / "edits/broken.json").write_text('{"format": "headscope-interventions", ')
    (desk.workspace.root / "other.json").write_text("[1, 2]")
    with desk.model(desk.settings.model) as model:
        save(desk.workspace.path("edits/a.json"), PASTA(region="name"), model=model)
    assert [(one.file, one.kinds) for one in method_asked.edit_files(desk)] == [("edits/a.json", ("pasta",))]
    assert method_asked.edit_files(desk, "lofit") == []
    assert sweep.choices(desk, SAVED, "edits/a.json") == [
        {"value": steering_sweeps.STRENGTH, "label": "alpha of PASTA"}
    ]
    assert sweep.choices(desk, SAVED, "edits/broken.json") == []


def test_an_edit_of_another_model_is_refused_where_it_is_run(desk: Any) -> None:
    with desk.model(desk.settings.model) as model:
        save(desk.workspace.path("edits/a.json"), PASTA(region="name"), model=model)
    path = desk.workspace.path("edits/a.json")
    document = json.loads(path.read_text())
    document["model"]["fingerprint"] = "another"
    path.write_text(json.dumps(document))
    wanted = Asked.read({"recipe": asked(desk, "act").recipe.__dict__, "method": SAVED, "file": "edits/a.json"})
    with pytest.raises(HeadscopeError, match="weights differ"):
        steering.compare(desk, wanted, quiet)


# -- command lines that cannot be ----------------------------------------------------------------------------------


def test_regions_in_several_places_need_the_same_occurrence(desk: Any) -> None:
    text = "The name is: bivq. The word is: bivq. The answer:"
    second = (("name", 32, 36),)
    document = steering.found(
        desk, steering.compare(desk, asked(desk, "pasta", {"region": ["name"]}, text=text, regions=second), quiet)
    )
    assert document is not None
    assert "--occurrence 1" in document["command"]
    mixed = (("name", 13, 17), ("word", 32, 36))
    several = asked(desk, "pasta", {"region": ["name", "word"]}, text=text, regions=mixed)
    document = steering.found(desk, steering.compare(desk, several, quiet))
    assert document is not None
    assert document["command"] is None
    assert "several places" in document["no_command"]


@pytest.mark.parametrize("text", ["@home is: bivq. The answer:", "The name is: bivq. " * 40 + "The answer:"])
def test_prompts_that_no_option_can_hold_lie_in_a_file(text: str, desk: Any) -> None:
    made = steering.compare(desk, asked(desk, "act", {}, {"kind": "all"}, text=text, regions=()), quiet)
    document = steering.found(desk, made)
    assert document is not None
    path = document["command"].split("--prompt ")[1].split()[0]
    assert path.startswith("@")
    assert Path(path[1:]).read_text(encoding="utf-8") == text


# -- sweeps --------------------------------------------------------------------------------------------------------


def test_a_sweep_is_kept_shown_and_told_in_python(desk: Any, pasta: Asked) -> None:
    name = steering_sweeps.sweep(desk, pasta, Range("alpha", (0.01, 0.3), " cojx"), quiet)
    document = steering.found(desk, name, "sweep")
    assert document is not None
    rows = document["rows"]
    assert [row["value"] for row in rows] == [0.01, 0.3, 1.0]
    assert [row["neutral"] for row in rows] == [False, False, True]
    assert rows[2]["gain"] == rows[2]["target_gain"] == rows[2]["kl"] == 0
    alone = steering.compare(desk, asked(desk, "pasta", {"region": ["name"], "alpha": 0.3}, {"kind": "all"}), quiet)
    single = steering.found(desk, alone)
    assert single is not None
    assert rows[1]["kl"] == single["kl"]
    assert rows[1]["text"] == single["steered"]["text"]
    figure = sweep.drawn(document)
    assert figure is not None
    assert {trace.name for trace in figure.data} >= {"target text", "KL of the first token"}
    said = words(sweep.shown(document))
    for fact in ("0.3", "1 (neutral)", "without", "target gain", "repeats"):
        assert fact in said
    space: dict[str, Any] = {}
    exec(document["python"].replace("print(found.table)", ""), space)
    np.testing.assert_array_equal(space["found"].table["kl"], [row["kl"] for row in rows])


def test_another_number_has_a_neutral_row_without_a_value(desk: Any) -> None:
    wanted = asked(desk, "act", {}, {"kind": "all"})
    document = steering.found(desk, steering_sweeps.sweep(desk, wanted, Range("threshold", (0.2,)), quiet))
    assert document is not None
    assert document["rows"][0]["value"] is None
    assert "neutral" in words(sweep.shown(document))


def test_a_saved_edit_is_swept_by_its_strength(desk: Any, pasta: Asked) -> None:
    file = steering.keep_edit(desk, steering.compare(desk, pasta, quiet), "a")
    wanted = Asked.read({"recipe": pasta.recipe.__dict__, "method": SAVED, "file": file})
    document = steering.found(desk, steering_sweeps.sweep(desk, wanted, Range(steering_sweeps.STRENGTH, (0.3,)), quiet))
    direct = steering.found(desk, steering_sweeps.sweep(desk, pasta, Range("alpha", (0.3,)), quiet))
    assert document is not None
    assert direct is not None
    assert document["range"]["field"] == "alpha"
    assert document["rows"] == direct["rows"]
    exec(document["python"].replace("print(found.table)", ""), space := {})
    assert list(space["found"].table["kl"]) == [row["kl"] for row in document["rows"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"values": ""}, "at least one number"),
        ({"values": "a, b"}, "'a' is no number"),
        ({"values": "1e999"}, "at least one number"),
        ({"values": "0.1, 0.2, 0.10000001"}, "first six digits"),
        ({"values": ",".join(str(i) for i in range(50))}, "40 are taken at most"),
    ],
)
def test_values_that_are_none_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Range.read({"field": "alpha", **given})
    assert Range.read({"field": "alpha", "values": "0.1; 0.2 0.1"}).values == (0.1, 0.2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "magic"}, "Task"),
        ({"task": "topic", "split": "all"}, "Split"),
        ({"task": "topic", "n": 1}, "Items"),
        ({"task": "topic", "n": 2.5}, "Items"),
        ({"task": "topic", "controls": 1000}, "Controls"),
    ],
)
def test_trials_that_are_none_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Trial.read(given)
    assert Trial.read({"task": "topic", "n": "", "drift": False}) == Trial("topic", drift=False)


def test_values_to_begin_with_stand_around_the_default() -> None:
    assert sweep.values_of("pasta", "alpha").startswith("0.001, 0.01")
    assert sweep.values_of("pai", "alpha") == "0.05, 0.1, 0.2, 0.3, 0.4"
    assert sweep.values_of("var", "keep_fraction") == "0.15, 0.3, 0.6, 0.9, 1"
    assert sweep.values_of(SAVED, steering_sweeps.STRENGTH)


# -- the page ------------------------------------------------------------------------------------------------------


def test_an_address_brings_everything_back(desk: Any, pasta: Asked) -> None:
    texts = steering.compare(desk, pasta, quiet)
    swept = steering_sweeps.sweep(desk, pasta, Range("alpha", (0.3,)), quiet)
    query = {
        "run": pasta.recipe.id,
        "method": "pasta",
        "set.alpha": "0.05",
        "set.region": "name",
        "heads": "2.1,3.*",
        "texts": texts,
        "swept": swept,
        "tab": "sweep",
        "sweep": "alpha",
        "values": "0.3",
        "target": "cojx",
    }
    found = parts(steer.layout(desk, **query))
    assert found["steer-method"].value == "pasta"
    assert found["steer-fields"].data == {"pasta": {"alpha": 0.05, "region": ["name"]}}
    assert found["steer-heads"].data == {"kind": "typed", "text": "2.1,3.*", "file": None, "top": None}
    assert found["steer-draft"].data["fields"]["text"] == pasta.recipe.text
    assert found["steer-draft"].data["base"] == pasta.recipe.id
    assert found["steer-texts"].data["name"] == texts
    assert found["steer-tab"].value == "sweep"
    assert not found["steer-sweep-box"].hidden
    assert found["steer-sweep-values"].value == "0.3"
    assert found["steer-target"].value == "cojx"
    document = steering.found(desk, texts)
    assert document is not None
    assert found["steer-python"].children == document["python"]
    assert "without" in words(found["steer-sweep-found"])
    assert found["steer-base-0"].children


@pytest.mark.parametrize(
    "query",
    [
        {"run": "0" * 16, "texts": "0" * 16, "swept": "../x", "judged": "zz"},
        {"method": "magic", "tab": "nowhere", "heads": "../../etc/passwd", "set.alpha": "<b>", "task": "x", "n": "y"},
        {"edit": "../../secret.json", "before": "../x.json"},
    ],
)
def test_addresses_that_lead_nowhere_give_a_page_that_works(query: dict[str, str], desk: Any) -> None:
    found = parts(steer.layout(desk, **query))
    assert found["steer-go"]
    if query.get("run"):
        assert "Run its prompt again" in words(steer.layout(desk, **query))


def test_a_run_under_an_edit_goes_on_under_it(desk: Any) -> None:
    recipe = Recipe(desk.settings.model, "the cat", edit="edits/a.json")
    recipe.save(desk.workspace)
    found = parts(steer.layout(desk, run=recipe.id))
    assert found["steer-method"].value == SAVED
    assert found["steer-draft"].data["fields"]["new_tokens"] == steer.NEW_TOKENS


def test_a_head_set_of_rank_is_chosen(desk: Any) -> None:
    found = parts(steer.layout(desk, heads="heads/mine.json"))
    assert found["steer-heads"].data["kind"] == "set"
    assert found["steer-heads"].data["file"] == "heads/mine.json"


def test_faults_of_a_task_leave_out_the_regions_of_the_prompt(desk: Any) -> None:
    document = asked(desk, "pasta", {}, {"kind": "all"}, text="", regions=()).document()
    want = {"kind": "task", "asked": document, "range": {"field": "alpha", "values": "0.1"}, "trial": {"task": "topic"}}
    assert steer.faults(desk, want) == {}
    assert set(steer.faults(desk, {**want, "kind": "sweep"})) == {"prompt", "region"}
    with pytest.raises(RequestError, match="no number to vary"):
        steer.faults(desk, {**want, "kind": "sweep", "range": {}})


@pytest.mark.parametrize("key", steer_examples.EXAMPLES)
def test_examples_are_valid_requests(key: str, desk: Any) -> None:
    given = method_asked.from_query(steer_examples.query(key))
    fields = steer_examples.fields(key)
    wanted = Asked.read({**given, "recipe": {"model": desk.settings.model, **fields}})
    assert method_asked.wrong(desk, wanted) == {}
    for name, start, end in fields["regions"]:
        assert fields["text"][start:end].strip(), name
    found = parts(steer.layout(desk, example=key))
    assert found["steer-draft"].data["fields"]["text"] == fields["text"]
    assert found["steer-method"].value == given["method"]


# -- what is said --------------------------------------------------------------------------------------------------


def made(base: Any, steered: Any, diverges: int | None, **more: Any) -> dict[str, Any]:
    def part(rows: Any) -> dict[str, Any]:
        return {
            "text": "".join(row[0] for row in rows),
            "tokens": [row[0] for row in rows],
            "base": [row[1] for row in rows],
            "steered": [row[2] for row in rows],
        }

    plain = {"kl": 0.25, "changed": True, "notes": []}
    return {"base": part(base), "steered": part(steered), "diverges": diverges, **plain, **more}


def test_the_sentence_says_by_how_much_each_state_preferred_its_own_token() -> None:
    document = made(
        [(" the", -1.0, -1.0), (" cat", -0.5, -2.0)], [(" the", -1.0, -1.0), (" dog", -1.25, -0.25), ("\n", -1, -1)], 1
    )
    said = words(continuations.sentence(document))
    assert "part at token 2 of 3" in said
    assert "leads there by 0.75 nats" in said
    assert "leads by 1.75 nats" in said
    shown = continuations.shown(document)
    found = parts(shown)
    assert found["steer-base-1"].style == {"--m": "1.000"}
    assert found["steer-base-1"].className == "tok down"
    assert found["steer-steered-1"].className == "tok up"
    assert found["steer-steered-0"].className == "tok common"
    assert "−1.50" in words(shown)
    assert "+1.00" in words(shown)


def test_a_text_that_ends_first_is_said_to_end() -> None:
    document = made([(" the", -1.0, -1.5)], [(" the", -1.0, -1.5), (" dog", -3.0, -2.0)], 1)
    assert "one of them has ended" in words(continuations.sentence(document))
    assert "ends" in words(continuations.shown(document))


def test_impossible_tokens_and_blanks_are_drawn_all_the_same() -> None:
    document = made([(" ", float("-inf"), -1.0)], [("x", -1.0, float("-inf"))], 0)
    said = words(continuations.shown(document))
    assert "␣" in said
    assert "−∞" in said


def test_a_comparison_shows_itself_in_a_notebook(desk: Any) -> None:
    with desk.model(desk.settings.model) as model:
        prompt = model.prompt("The name is: {name}. The word is: cojx. The answer:", name="bivq")
        found = compare_continuations(model, prompt, PASTA(region="name"), max_new_tokens=3)
        calm = compare_continuations(model, prompt, PASTA(region="name", alpha=1), max_new_tokens=3)
    text = found._repr_html_()
    assert text == fragment(found)
    assert "<script" not in text
    assert f"{found.steered.gain:+.2f}".replace("-", "−") in text
    assert "changed nothing" in fragment(calm)


def test_the_summary_names_what_is_not_as_usual() -> None:
    facts = {"name": "pasta", "heads": "all", "region": ["a"], "alpha": 0.01, "mode": "exclude", "generated": "rest"}
    assert continuations.summary([facts], 12) == (
        "PASTA · region a · alpha 0.01 · generated rest · all heads · prompt of 12 tokens"
    )
    assert "ablation" not in continuations.summary([{"name": "AttentionEdit"}], 1)


def test_one_neutral_row_stands_for_all(desk: Any) -> None:
    base = {"kind": "base", "method": "base", "accuracy": 0.5, "valid": 1.0, "accuracy_low": 0.2, "accuracy_high": 0.8}
    base |= {"accuracy_among_valid": 0.5, "constrained": 0.5, "constrained_baseline": 0.5, "length": 3.0}
    gain = {"accuracy_gain": 0.1, "accuracy_gain_low": 0.05, "accuracy_gain_high": 0.15, "perplexity_ratio": 1.2}
    rows = [base]
    for value in (0.1, 0.3):
        rows += [
            {**base, **gain, "kind": "method", "method": f"alpha={value}"},
            {**base, "kind": "neutral", "method": f"alpha={value}, neutral"},
        ]
    document = {
        "trial": {"task": "topic"},
        "range": {"field": "alpha", "values": [0.1, 0.3]},
        "values": {"alpha=0.1": 0.1, "alpha=0.3": 0.3},
        "rows": rows,
        "notes": ["A note."],
        "report": "reports/x.html",
    }
    table = sweep_task.rows(document)
    assert list(table["kind"]) == ["base", "neutral", "method", "method"]
    said = words(sweep_task.shown(document))
    assert said.count("neutral") >= 1
    assert "+0.100" in said
    assert "×1.2" in said
    assert "A note." in said
    assert sweep_task.drawn(document) is not None
    assert sweep_task.drawn({**document, "range": None, "values": {}}) is None


def test_no_two_parts_of_the_page_have_one_id(desk: Any, pasta: Asked) -> None:
    name = steering.compare(desk, pasta, quiet)
    page = steer.layout(desk, texts=name, method="lofit")
    ids = [str(found.id) for found in page._traverse() if getattr(found, "id", None) is not None]
    assert sorted(ids) == sorted(set(ids))
    # The editor of the prompt makes more of them in the browser.
    assert not {f"steer-{part}" for part in ("file", "text", "find", "mark", "mono", "status")} & set(ids)
