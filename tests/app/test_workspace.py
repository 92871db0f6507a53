"""Files of the workspace, and nothing else, whatever a page asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.app.workspace import DEEPEST, Workspace
from headscope.errors import RequestError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "secret.json").write_text("outside")
    home = tmp_path / "workspace"
    (home / "edits").mkdir(parents=True)
    (home / "edits" / "one.json").write_text("inside")
    (home / ".app").mkdir()
    (home / ".app" / "hidden.json").write_text("hidden")
    return Workspace(home)


def test_files_inside_are_found(workspace: Workspace) -> None:
    assert workspace.existing("edits/one.json", (".json",)).read_text() == "inside"
    assert workspace.existing("edits/../edits/one.json", (".json",)).read_text() == "inside"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.json",
        "edits/../../secret.json",
        "./.././secret.json",
        "edits/..//../secret.json",
        "/etc/passwd",
        "//etc/passwd",
        "/",
        ".",
        "edits/..",
        "",
        "edits/one.json\x00.txt",
        "\x00",
    ],
)
def test_ways_out_are_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(RequestError):
        workspace.path(name)


@pytest.mark.parametrize(
    "name", ["%2e%2e/secret.json", "..%2fsecret.json", "..\\secret.json", "\uff0e\uff0e/secret.json"]
)
def test_what_only_looks_like_a_way_out_stays_inside(workspace: Workspace, name: str) -> None:
    assert workspace.path(name).is_relative_to(workspace.root)
    with pytest.raises(RequestError, match="file"):
        workspace.existing(name, (".json",))


def test_an_absolute_name_of_a_file_inside_is_that_file(workspace: Workspace) -> None:
    assert workspace.existing(str(workspace.root / "edits/one.json"), (".json",)).read_text() == "inside"


def test_links_that_lead_out_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.root / "link.json").symlink_to(tmp_path / "secret.json")
    (workspace.root / "up").symlink_to(tmp_path)
    (workspace.root / "round.json").symlink_to(workspace.root / "round.json")
    for name in ("link.json", "up/secret.json", "round.json", "round.json/x.json"):
        with pytest.raises(RequestError):
            workspace.existing(name, (".json",))
    assert workspace.files(".json") == ["edits/one.json"]


def test_links_inside_lead_where_they_say(workspace: Workspace) -> None:
    (workspace.root / "again.json").symlink_to(workspace.root / "edits/one.json")
    assert workspace.existing("again.json", (".json",)).read_text() == "inside"


@pytest.mark.parametrize("name", ["edits/one.json", "edits", "nothing.json", "x" * 5000 + ".json", "\ud800.json"])
def test_what_is_of_another_kind_or_not_there_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(RequestError):
        workspace.existing(name, (".parquet",) if name == "edits/one.json" else (".json",))


def test_hidden_files_cannot_be_opened(workspace: Workspace) -> None:
    with pytest.raises(RequestError, match="can be opened"):
        workspace.existing(".app/hidden.json", (".json",))
    assert workspace.path(".app/hidden.json").read_text() == "hidden"


@given(name=st.text(st.characters() | st.sampled_from("./\\~%\x00:"), max_size=60))
def test_no_name_leads_out(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp() / "workspace")
    try:
        found = workspace.path(name)
    except RequestError:
        return
    assert found.is_relative_to(workspace.root.resolve())
    assert found != workspace.root.resolve()


@given(name=st.text(max_size=90))
def test_files_that_users_name_lie_in_their_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp() / "workspace")
    try:
        found = workspace.new("heads", name, ".json")
    except RequestError:
        return
    assert found.parent == (workspace.root / "heads").resolve()
    assert found.suffix == ".json"
    assert not found.name.startswith(".")


@pytest.mark.parametrize("name", ["my heads", "L18.H6", "a", "9-b_c"])
def test_ordinary_names_are_taken(workspace: Workspace, name: str) -> None:
    assert workspace.new("heads", f" {name} ", ".json").name == f"{name}.json"


def test_files_are_listed_newest_first(workspace: Workspace) -> None:
    for age, name in enumerate(("c.json", "edits/b.json", "a.parquet")):
        (workspace.root / name).write_text("")
        os.utime(workspace.root / name, (1000 - age, 1000 - age))
    assert workspace.files(".json", ".parquet") == ["edits/one.json", "c.json", "edits/b.json", "a.parquet"]
    assert workspace.files(".json", under="edits") == ["edits/one.json", "edits/b.json"]
    assert workspace.files(".json", under="nowhere") == []
    with pytest.raises(RequestError):
        workspace.files(".json", under="..")


def test_a_workspace_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert Workspace(tmp_path / "none").files(".json") == []


def test_lists_end_in_deep_and_unreadable_folders(workspace: Workspace) -> None:
    deep = workspace.root
    for _ in range(DEEPEST + 3):
        deep = deep / "d"
        deep.mkdir()
        (deep / "f.json").write_text("")
    assert len(workspace.files(".json")) == DEEPEST + 1
