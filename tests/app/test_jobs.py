"""Background work on threads: results, errors, progress, cancelling, and nothing left behind."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from headscope.app import jobs
from headscope.app.components.trouble import told
from headscope.app.components.work import job, teller, working
from headscope.app.jobs import ThreadManager, check
from headscope.errors import PromptError
from tests.app.harness import wait_for


class Bench:
    """An application with one background callback that a test steers, spoken to as Dash's renderer does."""

    def __init__(self) -> None:
        self.jobs = ThreadManager()
        self.app = Dash("bench", background_callback_manager=self.jobs, suppress_callback_exceptions=True)
        self.app.layout = html.Div([html.Button(id="go"), html.Div(id="out"), html.Div(id="said"), working("w")])
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.ended: list[str] = []

        @self.app.callback(
            Output("out", "children"),
            Output("said", "children"),
            Input("go", "n_clicks"),
            State("go", "title"),
            **job("w", "go"),
        )
        @told(1)
        def work(set_progress: Any, clicks: int, what: str) -> Any:
            tell = teller(set_progress)
            tell("Beginning", 0, 1)
            self.begun.set()
            try:
                for step in range(2000):
                    if self.go_on.wait(0.005):
                        break
                    tell("Waiting", step, 2000)
            finally:
                self.ended.append(what)
            if what == "deliberate":
                raise PromptError("The prompt is empty: type some text.")
            if what == "unforeseen":
                raise ZeroDivisionError("/home/secret")
            if what == "nothing":
                raise PreventUpdate
            return f"{what} by {threading.current_thread().name}"

        self.client = self.app.server.test_client()

    def tab(self) -> Tab:
        page = self.client.get("/").text
        # As the renderer does; from here on Dash takes this application for the one of this thread.
        self.client.get("/_dash-dependencies")
        return Tab(self, re.search(r'"end_id":"([^"]+)"', page).group(1))

    def threads(self) -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("job-")]

    def stored(self) -> list[str]:
        return [key for key in self.jobs.handle if key != self.jobs.SIGNING_SECRET_KEY]


class Tab:
    """One page load; handles are its own."""

    def __init__(self, bench: Bench, end: str) -> None:
        self.bench, self.end = bench, end

    def start(self, what: str = "done", **more: Any) -> dict[str, Any]:
        return self._ask({"endId": self.end, **more}, what)

    def poll(self, handle: dict[str, Any], what: str = "done") -> dict[str, Any]:
        return self._ask({"endId": self.end, "cacheKey": handle["cacheKey"], "job": handle["job"]}, what)

    def result(self, handle: dict[str, Any], what: str = "done") -> dict[str, Any]:
        found: dict[str, Any] = {}

        def ready() -> bool:
            found.update(self.poll(handle, what))
            return "response" in found

        wait_for(ready)
        return found["response"]

    def cancel(self, handle: dict[str, Any]) -> None:
        body = {
            "output": "w-cancel.id",
            "outputs": {"id": "w-cancel", "property": "id"},
            "inputs": [{"id": "w-cancel", "property": "n_clicks", "value": 1}],
            "changedPropIds": ["w-cancel.n_clicks"],
        }
        answer = self.bench.client.post(
            "/_dash-update-component", query_string={"endId": self.end, "cancelJob": handle["job"]}, json=body
        )
        assert answer.status_code in (200, 204), answer.text

    def _ask(self, query: dict[str, Any], what: str) -> dict[str, Any]:
        key = next(key for key in self.bench.app.callback_map if "out.children" in key)
        body = {
            "output": key,
            "outputs": [{"id": "out", "property": "children"}, {"id": "said", "property": "children"}],
            "inputs": [{"id": "go", "property": "n_clicks", "value": 1}],
            "state": [{"id": "go", "property": "title", "value": what}],
            "changedPropIds": ["go.n_clicks"],
        }
        answer = self.bench.client.post("/_dash-update-component", query_string=query, json=body)
        if answer.status_code == 204:
            return {"response": None}
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.go_on.set()
    wait_for(lambda: made.jobs.at_work == 0)
    made.jobs.seal()


def test_a_result_is_fetched_and_nothing_stays(bench: Bench) -> None:
    tab = bench.tab()
    handle = tab.start()
    assert bench.begun.wait(5)
    assert "response" not in tab.poll(handle)
    bench.go_on.set()
    found = tab.result(handle)
    assert found["out"]["children"].startswith("done by job-")
    assert found["said"]["children"] is None
    wait_for(lambda: not bench.threads())
    assert bench.stored() == []
    assert bench.jobs._jobs == {}


def test_progress_is_told_while_it_works(bench: Bench) -> None:
    tab = bench.tab()
    handle = tab.start()
    seen: list[Any] = []

    def told_often() -> bool:
        seen.extend([tab.poll(handle).get("progress")])
        return len([one for one in seen if one]) > 2

    wait_for(told_often)
    last = [one for one in seen if one][-1]
    assert 0 < last["w-bar.value"] < 100
    assert re.fullmatch(r"Waiting · \d+ of 2000", last["w-said.children"])


def test_progress_is_told_no_more_often_than_a_browser_asks() -> None:
    said: list[Any] = []
    tell = teller(said.append)
    for step in range(5000):
        tell("Reading", step, 5000)
    tell("Reading", 5000, 5000)
    tell("Writing", 0, 1)
    assert 3 <= len(said) < 60
    assert said[-2:] == [(100, "Reading · 5000 of 5000"), (0, "Writing")]


@pytest.mark.parametrize(
    ("what", "says"),
    [("deliberate", "The prompt is empty: type some text."), ("unforeseen", "(ZeroDivisionError)")],
)
def test_errors_are_shown_in_place_and_tell_no_more_than_they_should(bench: Bench, what: str, says: str) -> None:
    bench.go_on.set()
    tab = bench.tab()
    found = tab.result(tab.start(what), what)
    assert "out" not in found
    assert says in json.dumps(found["said"])
    assert "secret" not in json.dumps(found)


def test_a_callback_that_changes_nothing_ends(bench: Bench) -> None:
    bench.go_on.set()
    tab = bench.tab()
    assert tab.result(tab.start("nothing"), "nothing") is None


def test_cancelling_ends_the_thread_and_leaves_nothing(bench: Bench) -> None:
    tab = bench.tab()
    handle = tab.start()
    assert bench.begun.wait(5)
    tab.cancel(handle)
    wait_for(lambda: not bench.threads())
    assert bench.ended == ["done"]
    assert bench.jobs.at_work == 0
    assert tab.poll(handle)["response"] is None
    assert bench.stored() == []


def test_a_result_that_is_cancelled_before_it_is_fetched_goes(bench: Bench) -> None:
    bench.go_on.set()
    tab = bench.tab()
    handle = tab.start()
    wait_for(lambda: bench.jobs.at_work == 0 and bench.stored())
    tab.cancel(handle)
    assert tab.poll(handle)["response"] is None
    assert [key for key in bench.stored() if not key.endswith("-progress")] == []


def test_a_new_job_of_a_page_ends_its_old_one(bench: Bench) -> None:
    tab = bench.tab()
    old = tab.start("old")
    assert bench.begun.wait(5)
    new = tab.start("new", oldJob=old["job"])
    wait_for(lambda: bench.ended == ["old"])
    bench.go_on.set()
    assert tab.result(new, "new")["out"]["children"].startswith("new")


def test_two_tabs_with_equal_arguments_each_get_their_own_result(bench: Bench) -> None:
    tabs = [bench.tab() for _ in range(4)]
    handles = [tab.start() for tab in tabs]
    bench.go_on.set()
    found = [tab.result(handle)["out"]["children"] for tab, handle in zip(tabs, handles, strict=True)]
    assert len(set(found)) == 4


def test_a_tab_cannot_fetch_or_cancel_the_work_of_another(bench: Bench) -> None:
    mine, other = bench.tab(), bench.tab()
    handle = mine.start()
    assert bench.begun.wait(5)
    other.cancel(handle)
    assert other.poll(handle)["response"] is None
    bench.go_on.set()
    assert mine.result(handle)["out"]["children"].startswith("done")


def test_a_job_whose_page_was_closed_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ABANDONED", 0.2)
    tab = bench.tab()
    handle = tab.start()
    for _ in range(30):  # a page that asks keeps its job alive
        tab.poll(handle)
        time.sleep(0.02)
    assert bench.jobs.at_work == 1
    wait_for(lambda: not bench.threads(), 3)
    assert bench.ended == ["done"]


def test_a_result_that_nobody_fetches_is_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.go_on.set()
    left = bench.tab().start()
    wait_for(lambda: bench.jobs.at_work == 0 and bench.stored())
    monkeypatch.setattr(jobs, "ABANDONED", 0.0)
    tab = bench.tab()
    handle = tab.start()
    monkeypatch.setattr(jobs, "ABANDONED", 600.0)
    tab.result(handle)
    assert left != handle
    assert bench.stored() == []
    assert bench.jobs._jobs == {}


def test_too_many_jobs_are_told_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    tabs = [bench.tab() for _ in range(3)]
    handles = [tab.start() for tab in tabs]
    assert "2 jobs at work" in json.dumps(tabs[2].result(handles[2])["said"])
    bench.go_on.set()
    for tab, handle in zip(tabs[:2], handles, strict=False):
        assert tab.result(handle)["out"]["children"].startswith("done")


def test_outside_a_job_there_is_nothing_to_cancel() -> None:
    check()


def test_a_manager_that_is_sealed_hears_of_no_other_application(make_app: Callable[..., Any]) -> None:
    first, second = make_app()[1].jobs, make_app()[1].jobs
    assert first not in ThreadManager.managers
    before = dict(first.func_registry)
    Bench().jobs.seal()
    assert first.func_registry == before
    assert set(first.func_registry) == set(second.func_registry)
    for key, work in first.func_registry.items():
        assert work is not second.func_registry[key]


def test_its_folder_goes_with_it() -> None:
    import gc
    from pathlib import Path

    manager = ThreadManager()
    manager.seal()
    folder = Path(manager.handle.directory)
    assert folder.is_dir()
    del manager
    gc.collect()
    assert not folder.exists()
