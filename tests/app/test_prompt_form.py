"""The prompt's form: files, examples, counting, and the regions that follow the text in the browser."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from headscope.app import examples, prompts
from headscope.app.components.prompt import opened
from headscope.app.reading import Reader, Readers, Spec
from headscope.app.runs import Recipe
from headscope.app.workspace import Workspace
from headscope.errors import PromptError, RequestError

ASSETS = Path(__file__).parents[2] / "headscope/app/assets"
LIMIT = 1 << 20


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def reader(tiny_folder: Path) -> Reader:
    from headscope import load

    model = load(str(tiny_folder))
    return Reader(model.name, model.tokenizer, Spec(model.spec.n_ctx))


# -- files ---------------------------------------------------------------------------------------------------------


def test_text_files_are_read_with_one_kind_of_line_end() -> None:
    assert prompts.read("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n", LIMIT) == {"text": "one\ntwo\nthree\n"}


def test_a_saved_prompt_comes_back_whole(workspace: Workspace) -> None:
    recipe = Recipe("m", "A needle 🪡 here.", True, "Be brief.", (("needle", 2, 10),), 4)
    file = prompts.save(workspace, "mine", recipe)
    assert prompts.saved(workspace) == [file] == ["prompts/mine.json"]
    fields = prompts.open_saved(workspace, file, LIMIT)
    assert Recipe.read(fields) == recipe


def test_saving_over_a_prompt_asks_first(workspace: Workspace) -> None:
    prompts.save(workspace, "mine", Recipe("m", "one"))
    with pytest.raises(RequestError, match="Save again to replace it"):
        prompts.save(workspace, "mine", Recipe("m", "two"))
    prompts.save(workspace, "mine", Recipe("m", "two"), replace=True)
    assert prompts.open_saved(workspace, "prompts/mine.json", LIMIT)["text"] == "two"


def test_an_empty_prompt_is_not_saved(workspace: Workspace) -> None:
    with pytest.raises(PromptError, match="no text"):
        prompts.save(workspace, "mine", Recipe("m", " \n"))


def test_other_json_is_text_like_any() -> None:
    for text in ('{"a": 1}', "[1, 2]", "{not json", '{"text": 3}'):
        assert prompts.read("a.json", text.encode(), LIMIT) == {"text": text}


def test_regions_of_a_file_that_lie_outside_its_text_are_left_out() -> None:
    document = json.dumps({"text": "short", "regions": [["r", 2, 50]]})
    assert prompts.read("a.json", document.encode(), LIMIT) == {"text": "short", "regions": []}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.pdf", b"text", "choose one of .txt, .md, .json"),
        ("a.txt", b"x" * (LIMIT + 1), "MB"),
        ("a.txt", "née".encode("latin-1"), "not UTF-8 text \\(byte 1"),
        ("a.txt", b"a\x00b", "no text"),
        ("a.txt", b" \n ", "holds no text"),
    ],
)
def test_what_cannot_be_opened_says_why(name: str, data: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        prompts.read(name, data, LIMIT)


def test_files_outside_the_workspace_are_not_opened(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(RequestError, match="outside"):
        prompts.open_saved(workspace, "../secret.txt", LIMIT)


def test_an_upload_is_looked_at_on_the_server_too(make_app: Any) -> None:
    _, desk = make_app(upload_bytes=1000)
    readers = Readers(desk)

    def upload(name: str, data: bytes) -> Any:
        return opened(readers, {"upload": {"name": name, "data": base64.b64encode(data).decode()}}, lambda *_: None)

    assert upload("a.md", b"# Title")["text"] == "# Title"
    with pytest.raises(RequestError, match=r"a prompt may have 0\.0"):
        upload("a.txt", b"x" * 1001)
    with pytest.raises(RequestError, match="did not arrive whole"):
        opened(readers, {"upload": {"name": "a.txt", "data": "%%%"}}, lambda *_: None)
    with pytest.raises(RequestError, match="nothing to open"):
        opened(readers, {}, lambda *_: None)


# -- examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [example.key for example in examples.EXAMPLES if not example.lengths])
def test_every_example_is_a_prompt_whose_regions_have_tokens(key: str, reader: Reader) -> None:
    fields = examples.make(reader, key)
    recipe = Recipe.read({"model": "m", **fields})
    prompt = recipe.prompt(reader)
    for name in {region[0] for region in recipe.regions}:
        assert prompt.regions[name]


@pytest.mark.parametrize("length", [512, 2048 - examples.ANSWER_ROOM, None])
def test_a_needle_has_the_length_that_was_asked_for_and_its_parts_are_marked(
    length: int | None, reader: Reader
) -> None:
    recipe = Recipe.read({"model": "m", **examples.make(reader, "needle", length)})
    prompt = recipe.prompt(reader)
    wanted = length or 2048 - examples.ANSWER_ROOM
    assert wanted - 16 <= len(prompt) <= wanted
    parts = {name: recipe.text[start:end] for name, start, end in recipe.regions}
    assert parts["answer"] in parts["needle"]
    assert parts["question"].endswith("?")
    assert recipe.text.count(parts["needle"]) == 1


def test_a_needle_longer_than_the_context_says_so(reader: Reader) -> None:
    with pytest.raises(RequestError, match="too many for a context of 2048"):
        examples.make(reader, "needle", 4096)


def test_unknown_examples_say_so(reader: Reader) -> None:
    with pytest.raises(RequestError, match="no example"):
        examples.make(reader, "nonsense")


# -- counting ------------------------------------------------------------------------------------------------------


def test_tokens_and_regions_are_counted_as_the_run_will_have_them(make_app: Any) -> None:
    _, desk = make_app()
    readers = Readers(desk)
    recipe = Recipe(desk.settings.model, "the cat saw the dog", regions=(("cat", 4, 7),), chat=True)
    assert readers.count(recipe) == {"state": "unread", "loaded": False}, "counting loads no model"
    with desk.model(desk.settings.model) as model:
        prompt = recipe.prompt(model)
    counted = readers.count(recipe)
    assert counted["state"] == "counted"
    assert counted["tokens"] == len(prompt)
    assert counted["regions"]["cat"] == len(prompt.regions["cat"])
    assert (counted["limit"], counted["chats"]) == (2048, True)


def test_a_prompt_that_is_too_long_is_counted_and_one_that_makes_none_says_why(make_app: Any) -> None:
    _, desk = make_app()
    readers = Readers(desk)
    name = desk.settings.model
    readers.get(name)
    assert readers.count(Recipe(name, "word " * 5000))["tokens"] > 2048
    assert "far more than the context" in readers.count(Recipe(name, "x" * 200_000))["error"]
    assert readers.count(Recipe(name, ""))["tokens"] == 0
    wrong = readers.count(Recipe(name, "some text", regions=(("all", 0, 4),)))
    assert wrong["state"] == "wrong"
    assert "cannot be called 'all'" in wrong["error"]


def test_counting_goes_on_while_the_model_is_at_work(make_app: Any) -> None:
    import threading

    _, desk = make_app()
    readers = Readers(desk)
    name = desk.settings.model
    readers.get(name)
    counted: list[Any] = []
    with desk.model(name):
        asking = threading.Thread(target=lambda: counted.append(readers.count(Recipe(name, "the cat"))))
        asking.start()
        asking.join(10)
    assert counted[0]["tokens"] >= 2


# -- in the browser: pure functions --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pure(browser: Any) -> Any:
    """Call the editor's pure functions: ``pure(name, [arguments, …])`` returns their results."""
    page = browser.new_page()
    page.add_script_tag(path=ASSETS / "30-prompt.js")

    def call(name: str, calls: list[Any]) -> Any:
        return page.evaluate(
            "([name, calls]) => calls.map((given) => headscopePrompt.pure[name](...given))", [name, calls]
        )

    yield call
    page.close()


def followed(length: int, region: tuple[int, int], edit: dict[str, int]) -> tuple[int, int] | None:
    """Where a region's characters are after an edit, character by character."""
    start, end = region
    at, removed, inserted = edit["at"], edit["removed"], edit["inserted"]
    inside = [start <= i < end for i in range(length)]
    around = at > start and at + removed < end
    after = inside[:at] + [around] * inserted + inside[at + removed :]
    where = [i for i, own in enumerate(after) if own]
    return (where[0], where[-1] + 1) if where else None


@pytest.mark.slow
def test_regions_follow_their_characters_through_any_edit(pure: Any) -> None:
    rng = Random(0)
    cases, expected = [], []
    for _ in range(3000):
        length = rng.randint(1, 30)
        start = rng.randint(0, length - 1)
        region = (start, rng.randint(start + 1, length))
        at = rng.randint(0, length)
        edit = {"at": at, "removed": rng.randint(0, length - at), "inserted": rng.randint(0, 4)}
        cases.append([[["r", *region]], edit])
        found = followed(length, region, edit)
        expected.append([] if found is None else [["r", *found]])
    assert pure("shifted", cases) == expected


@pytest.mark.slow
def test_an_edit_is_found_where_the_caret_says_that_it_was(pure: Any) -> None:
    rng = Random(1)
    cases, made = [], []
    for _ in range(3000):
        before = "".join(rng.choices("aab ", k=rng.randint(0, 20)))  # few letters: edits are ambiguous
        at = rng.randint(0, len(before))
        removed = rng.randint(0, len(before) - at)
        typed = "".join(rng.choices("ab", k=rng.randint(0, 3)))
        after = before[:at] + typed + before[at + removed :]
        cases.append([before, after, at + len(typed)])
        made.append((before, after, at, removed, typed))
    for (before, after, at, removed, typed), found in zip(made, pure("difference", cases), strict=True):
        put = after[found["at"] : found["at"] + found["inserted"]]
        assert before[: found["at"]] + put + before[found["at"] + found["removed"] :] == after
        if not removed and typed:
            assert (found["at"], found["inserted"]) == (at, len(typed))


@pytest.mark.slow
def test_an_edit_far_from_the_caret_is_found_all_the_same(pure: Any) -> None:
    assert pure("difference", [["abXYcd", "abcd", 4]]) == [{"at": 2, "removed": 2, "inserted": 0}]


@pytest.mark.slow
def test_offsets_count_characters_as_python_does(pure: Any) -> None:
    text = "a🪡b👩‍👩‍👧 c𝔻"
    spans = [["r", start, end] for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    units = pure("toUnits", [[text, spans]])[0]
    for (_, start, end), (_, first, last) in zip(spans, units, strict=True):
        assert text.encode("utf-16-le")[2 * first : 2 * last].decode("utf-16-le") == text[start:end]
    assert pure("toPoints", [[text, units]])[0] == spans


@pytest.mark.slow
def test_marks_of_one_name_that_touch_become_one(pure: Any) -> None:
    assert pure("marked", [[[["a", 0, 4], ["b", 2, 6]], "a", 4, 8]]) == [[["a", 0, 8], ["b", 2, 6]]]
    assert pure("renamed", [[[["a", 0, 4], ["b", 2, 6], ["c", 7, 9]], "b", "a"]]) == [[["a", 0, 6], ["c", 7, 9]]]


@pytest.mark.slow
def test_names_become_what_templates_can_have(pure: Any) -> None:
    asked = ["the answer", "  Größe ", "1st", "a-b.c", "!!"]
    assert pure("tidyName", [[name] for name in asked]) == ["the_answer", "Größe", "r1st", "a_b_c", ""]


@pytest.mark.slow
def test_every_character_is_drawn_once_and_the_shortest_mark_lies_on_top(pure: Any) -> None:
    cut = pure("segments", [["abcdefgh", [["needle", 1, 7], ["answer", 3, 5]], [[0, 2]]]])[0]
    assert cut == [
        [0, 1, None, True],
        [1, 2, "needle", True],
        [2, 3, "needle", False],
        [3, 5, "answer", False],
        [5, 7, "needle", False],
        [7, 8, None, False],
    ]
