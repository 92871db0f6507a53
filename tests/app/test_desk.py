"""What pages share: models one thread at a time, runs within limits, files that belong to a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headscope as hs
from headscope.app import jobs
from headscope.app.desk import Desk
from headscope.app.jobs import Cancelled
from headscope.app.runs import Recipe
from headscope.app.settings import Settings
from headscope.data.organisms import organism
from headscope.errors import CheckpointError, MemoryBudgetError, ModelError, PromptError, RequestError
from headscope.interventions.store import save
from headscope.report.view import View, capture
from tests.app.harness import wait_for

TEXT = "The man said the code is bivq cojx. What is the code? It is bivq"


@pytest.fixture
def make_desk(tiny_folder: Path, tmp_path: Path) -> Any:
    made: list[Desk] = []

    def make(**settings: Any) -> Desk:
        desk = Desk(Settings(**{"model": str(tiny_folder), "workspace": tmp_path / "workspace", **settings}))
        made.append(desk)
        return desk

    yield make
    for desk in made:
        desk.jobs.seal()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


@pytest.fixture
def recipe(tiny_folder: Path) -> Recipe:
    return Recipe(str(tiny_folder), TEXT)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """More models, with other weights."""
    folder = tmp_path_factory.mktemp("models")
    return [str(organism("gpt2", seed).save(folder / f"gpt2-{seed}")) for seed in (1, 2)]


# -- models -----------------------------------------------------------------------------------------------------------


def test_pages_choose_from_the_list_only(make_desk: Callable[..., Desk], others: list[str], tiny_folder: Path) -> None:
    desk = make_desk(allowed=(others[0],))
    assert desk.names()[:2] == [str(tiny_folder), others[0]]
    assert desk.check_model(f" {others[0]} ") == others[0]
    refused = [
        others[1],
        "",
        "  ",
        "gpt2",
        "../" + others[0],
        others[0] + "/",
        str(Path(others[0]) / "model.safetensors"),
    ]
    for name in refused:
        with pytest.raises(ModelError, match="--allow"):
            desk.check_model(name)
        with pytest.raises(ModelError), desk.model(name):
            pass
    assert desk.loaded() == []


def test_any_model_is_allowed_where_the_user_said_so(make_desk: Callable[..., Desk], others: list[str]) -> None:
    desk = make_desk(any_model=True)
    with desk.model(others[1]) as model:
        assert model.spec.family == "gpt2"
    with pytest.raises(ModelError), desk.model("/etc"):
        pass
    with pytest.raises(ModelError), desk.model("no/such-model"):
        pass
    assert desk.loaded() == [others[1]]
    assert list(desk._models) == [others[1]]  # names that load nothing are not collected


def test_a_model_is_loaded_once_and_is_one_threads_at_a_time(desk: Desk, recipe: Recipe) -> None:
    inside, most, seen = 0, 0, set()

    def use() -> None:
        nonlocal inside, most
        with desk.model(recipe.model) as model:
            inside += 1
            most = max(most, inside)
            seen.add(id(model))
            threading.Event().wait(0.02)
            inside -= 1

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, len(seen)) == (1, 1)


def test_a_thread_may_take_the_model_that_it_has_but_no_other(
    make_desk: Callable[..., Desk], others: list[str]
) -> None:
    desk = make_desk(allowed=tuple(others))
    with desk.model(others[0]) as outer:
        with desk.model(others[0]) as inner:
            assert inner is outer
        with pytest.raises(ModelError, match="let it go"), desk.model(others[1]):
            pass
        # The block is still the thread's own.
        assert desk._models[others[0]].depth == 1
    with desk.model(others[1]):
        pass


def test_models_used_least_recently_are_let_go_but_never_one_in_use(
    make_desk: Callable[..., Desk], others: list[str], tiny_folder: Path
) -> None:
    desk = make_desk(allowed=tuple(others), models_kept=1)
    first, second, third = str(tiny_folder), *others
    with desk.model(first):
        pass
    with desk.model(second):
        assert desk.loaded() == [second]
        here, go = threading.Event(), threading.Event()

        def use() -> None:
            with desk.model(third):
                here.set()
                go.wait(30)

        thread = threading.Thread(target=use)
        thread.start()
        assert here.wait(30)
        assert desk.loaded() == [second, third]
    with desk.model(first):
        assert desk.loaded() == [third, first]
    go.set()
    thread.join(5)


def test_a_job_that_waits_for_a_model_can_be_cancelled(desk: Desk, recipe: Recipe) -> None:
    ended: list[type[BaseException]] = []
    job = jobs._Job("key")

    def wait() -> None:
        jobs._JOB.set(job)
        try:
            desk.look(recipe)
        except Cancelled as error:
            ended.append(type(error))

    with desk.model(recipe.model):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        job.stop.set()
        thread.join(5)
    assert ended == [Cancelled]
    assert recipe.id not in desk.runs


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_made_once_and_kept_with_its_recipe(desk: Desk, recipe: Recipe) -> None:
    told: list[tuple[str, int, int]] = []
    view = desk.look(recipe, lambda *step: told.append(step))
    assert isinstance(view, View)
    assert told[0][0] == "Waiting for the model"
    assert ("Reading layers", 6, 6) in told
    told.clear()
    assert desk.look(recipe, lambda *step: told.append(step)) is view
    assert told == []
    assert Recipe.load(desk.workspace, recipe.id) == recipe


def test_a_run_that_is_kept_waits_for_nobody(desk: Desk, recipe: Recipe) -> None:
    view, found = desk.look(recipe), []
    thread = threading.Thread(target=lambda: found.append(desk.look(recipe)))
    with desk.model(recipe.model):
        thread.start()
        thread.join(5)
        assert found == [view]


def test_what_the_model_writes_is_a_region(desk: Desk, recipe: Recipe) -> None:
    plain = desk.look(recipe).meta()
    meta = desk.look(replace(recipe, new_tokens=5)).meta()
    assert meta["prompt_length"] == plain["length"] == plain["prompt_length"]
    assert plain["length"] < meta["length"] <= plain["length"] + 5
    assert meta["tokens"][: plain["length"]] == plain["tokens"]
    assert meta["regions"]["generated"] == [[plain["length"], meta["length"]]]
    assert "generated" not in plain["regions"]


def test_a_prompt_that_cannot_fit_is_not_even_tokenised(
    desk: Desk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk.model(recipe.model):
        pass
    monkeypatch.setattr(Recipe, "prompt", lambda *_: pytest.fail("was tokenised"))
    monkeypatch.setattr(capture, "look", lambda *_, **__: pytest.fail("was run"))
    long = "a" * (64 * 2048 + 1)
    for wrong in (replace(recipe, text=long), replace(recipe, chat=True, system=long)):
        with pytest.raises(PromptError, match="characters"):
            desk.look(wrong)


def test_a_prompt_over_the_context_is_refused_before_it_runs(
    desk: Desk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "look", lambda *_, **__: pytest.fail("was run"))
    for wrong in (replace(recipe, text="house " * 3000), replace(recipe, new_tokens=5000)):
        with pytest.raises(PromptError, match=r"2048|context"):
            desk.look(wrong)


def test_a_view_over_the_limit_is_refused_before_it_runs(
    make_desk: Callable[..., Desk], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk(cache_bytes=100_000)
    monkeypatch.setattr(capture, "look", lambda *_, **__: pytest.fail("was run"))
    with pytest.raises(MemoryBudgetError, match="--cache-gb"):
        desk.look(recipe)


def test_estimates_are_near_what_is_kept(desk: Desk, recipe: Recipe) -> None:
    view = desk.look(replace(recipe, text="The man came out of the house. " * 60))
    with desk.model(recipe.model) as model:
        assert 0.95 * view.nbytes <= capture.estimate(model, view.length) <= 1.5 * view.nbytes


def test_many_runs_stay_within_the_limit(make_desk: Callable[..., Desk], recipe: Recipe) -> None:
    size = make_desk().look(recipe).nbytes
    desk = make_desk(cache_bytes=int(3.5 * size))
    made = [replace(recipe, text=f"{TEXT} {word}") for word in ("one", "two", "man", "day", "city")]
    for one in made:
        desk.look(one)
        assert desk.runs.nbytes <= desk.runs.limit
    assert [one.id in desk.runs for one in made][:1] == [False]
    assert made[-1].id in desk.runs


def test_a_run_whose_recipe_cannot_be_written_is_shown_all_the_same(
    desk: Desk, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    desk.workspace.root.parent.mkdir(exist_ok=True)
    desk.workspace.root.write_text("a file where the folder should be")
    view = desk.look(recipe)
    assert desk.runs.get(recipe.id) is view
    assert "Cannot write" in caplog.text


def test_a_cancelled_run_leaves_nothing(desk: Desk, recipe: Recipe) -> None:
    def tell(task: str, done: int, total: int) -> None:
        if task == "Reading layers" and done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        desk.look(recipe, tell)
    assert recipe.id not in desk.runs
    assert desk.runs.nbytes == desk.runs._promised == 0
    with pytest.raises(RequestError):
        Recipe.load(desk.workspace, recipe.id)
    assert desk.look(recipe).length > 3  # and the model is free


# -- edits ------------------------------------------------------------------------------------------------------------


def knock(desk: Desk, model: str, name: str, heads: list[tuple[int, int]]) -> str:
    with desk.model(model) as loaded:
        save(desk.workspace.path(name), hs.HeadEdit(heads), model=loaded)
    return name


def test_an_edit_changes_the_run_and_a_changed_edit_changes_it_again(desk: Desk, recipe: Recipe) -> None:
    plain = desk.look(recipe)
    edited = replace(recipe, edit=knock(desk, recipe.model, "edits/a.json", [(0, 0), (0, 1), (0, 2)]))
    first = desk.look(edited)
    assert first is desk.look(edited)
    assert not np.array_equal(first.stat("entropy"), plain.stat("entropy"))
    knock(desk, recipe.model, "edits/a.json", [(0, 3), (0, 4), (0, 5), (1, 0)])
    second = desk.look(edited)
    assert second is not first
    assert not np.array_equal(first.stat("entropy"), second.stat("entropy"))


def test_edits_of_another_model_or_that_are_none_are_refused(
    make_desk: Callable[..., Desk], recipe: Recipe, others: list[str]
) -> None:
    desk = make_desk(allowed=tuple(others))
    other = knock(desk, others[0], "edits/other.json", [(0, 0)])
    desk.workspace.path("edits/none.json").write_text("{}")
    for name, kind in ((other, CheckpointError), ("edits/none.json", CheckpointError), ("edits/x.json", RequestError)):
        with pytest.raises(kind):
            desk.look(replace(recipe, edit=name))
    for name in ("../x.json", "/etc/passwd", ".app/x.json"):
        with pytest.raises(RequestError):
            desk.look(replace(recipe, edit=name))


def test_threads_with_edits_of_their_own_do_not_mix(desk: Desk, recipe: Recipe) -> None:
    texts = [f"{TEXT} {word}" for word in ("one", "two", "man", "day")]
    edits = [None, *(knock(desk, recipe.model, f"edits/{h}.json", [(0, h), (1, h), (2, h)]) for h in range(3))]
    wanted = [replace(recipe, text=text, edit=edit) for text, edit in zip(texts, edits, strict=True)]
    alone = [desk.look(one).stat("entropy") for one in wanted]
    desk.runs.__init__(desk.runs.limit)
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.setdefault(i, desk.look(wanted[i]).stat("entropy"))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(found[i], expected)
    wait_for(lambda: not desk._models[recipe.model].depth)
