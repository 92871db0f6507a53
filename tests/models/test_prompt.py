from __future__ import annotations

import pytest

from headscope.errors import PromptError
from headscope.models.prompt import Prompt, build_prompt, partition
from headscope.models.template import Template

KINDS = ["byte_level", "byte_level_bos", "wordpiece", "unigram", "sentencepiece"]


def read(tokenizer, prompt, name):
    return tokenizer.decode([prompt.ids[i] for i in prompt.regions[name]])


@pytest.mark.parametrize("kind", KINDS)
def test_regions_hold_the_fill_and_nothing_of_the_words_around_it(make_tokenizer, kind):
    tokenizer = make_tokenizer(kind)
    prompt = build_prompt(tokenizer, "one two {needle} three four", fills={"needle": "the vault is quiet"})
    shown = prompt.region_text("needle").strip()
    assert shown == "the vault is quiet"
    assert prompt.regions["bos"] == (0,)
    assert prompt.ids == tuple(tokenizer("one two the vault is quiet three four")["input_ids"])
    assert len(prompt) == len(prompt.tokens) == len(prompt.offsets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fill_that_also_occurs_elsewhere_is_found_at_its_place(make_tokenizer, kind):
    prompt = build_prompt(make_tokenizer(kind), "code code {x} code code", fills={"x": "code"})
    positions = {name: prompt.find("code", occurrence=i) for i, name in enumerate("abcde")}
    assert prompt.regions["x"] == positions["c"]
    assert not set(prompt.regions["x"]) & set(positions["b"] + positions["d"])


def test_a_name_used_twice_is_the_union_of_its_places(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    prompt = build_prompt(tokenizer, "{x} and {x}.", fills={"x": "code"})
    assert prompt.regions["x"] == tuple(sorted(prompt.find("code", 0) + prompt.find("code", 1)))
    listed = build_prompt(tokenizer, "{x} and {x}.", fills={"x": ["one", "two"]})
    assert listed.text == "one and two."
    assert listed.regions["x"] == tuple(sorted(listed.find("one") + listed.find("two")))
    with pytest.raises(PromptError, match=r"lists 3 texts.*occurs 2 times"):
        build_prompt(tokenizer, "{x} and {x}.", fills={"x": ["a", "b", "c"]})


def test_fills_may_have_regions_of_their_own(make_tokenizer):
    needle = Template("The code is {answer}.", answer="7421")
    prompt = build_prompt(make_tokenizer("byte_level"), "7421 {needle} 7421", fills={"needle": needle})
    assert prompt.text == "7421 The code is 7421. 7421"
    assert prompt.regions["answer"] == prompt.find("7421", 1)
    assert set(prompt.regions["answer"]) < set(prompt.regions["needle"])


def test_adjacent_fills_do_not_share_tokens_where_the_tokenizer_splits_there(make_tokenizer):
    prompt = build_prompt(make_tokenizer("byte_level"), "{a}{b}", fills={"a": "code.", "b": " The harbour"})
    assert not set(prompt.regions["a"]) & set(prompt.regions["b"])
    assert prompt.region_text("b").strip() == "The harbour"


def test_a_token_across_a_border_belongs_to_both_regions(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    assert len(tokenizer("secret")["input_ids"]) == 1 or len(tokenizer(" secret")["input_ids"]) == 1
    prompt = build_prompt(tokenizer, "the {a}{b} code", fills={"a": "sec", "b": "ret"})
    assert set(prompt.regions["a"]) & set(prompt.regions["b"])
    with pytest.raises(PromptError, match=r"'a' and 'b' share token"):
        partition(prompt, ["a", "b"])


def test_all_tokens_of_a_split_character_belong_to_its_region(make_tokenizer):
    for kind in ("byte_level", "byte_level_bos", "sentencepiece"):
        tokenizer = make_tokenizer(kind)
        prompt = build_prompt(tokenizer, "code {x}the code", fills={"x": "🦊"})
        assert len(prompt.regions["x"]) >= 2
        assert read(tokenizer, prompt, "x").strip() == "🦊"


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos"])
def test_white_space_fills_find_the_token_that_carries_them(make_tokenizer, kind):
    tokenizer = make_tokenizer(kind)
    prompt = build_prompt(tokenizer, "code{gap}is", fills={"gap": "     "})
    assert "  " in prompt.region_text("gap")
    merged = build_prompt(tokenizer, "code{gap}is", fills={"gap": " "})
    assert merged.region_text("gap") in ("is", " is", " ")


def test_a_fill_that_the_tokenizer_drops_is_an_error(make_tokenizer):
    with pytest.raises(PromptError, match=r"no token of region 'gap'"):
        build_prompt(make_tokenizer("wordpiece"), "code {gap} is", fills={"gap": "\u0007"})


def test_literal_braces_and_braces_in_fills(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    prompt = build_prompt(tokenizer, "{{x}} = {x}", fills={"x": "{y} {{z}}"})
    assert prompt.text == "{x} = {y} {{z}}"
    assert prompt.region_text("x").strip() == "{y} {{z}}"


@pytest.mark.parametrize(
    ("template", "fills", "message"),
    [
        ("{needel}", {"needle": "a"}, r"place \{needel\}.*Did you mean 'needle'"),
        ("{a}", {"a": "x", "ab": "y"}, r"fill 'ab' has no place"),
        ("{a}", {"a": ""}, r"\{a\} is empty"),
        ("{a} {a}", {"a": ["", ""]}, r"\{a\} is empty"),
        ("{a", {"a": "x"}, r"cannot be read.*\{\{ and \}\}"),
        ("{}", {}, r"is no place"),
        ("{a:>5}", {"a": "x"}, r"\{a:>5\}.*is no place"),
        ("{a.b}", {"a": "x"}, r"is no place"),
        ("{rest}", {"rest": "x"}, r"cannot be called 'rest'"),
        ("{bos}", {"bos": "x"}, r"cannot be called 'bos'"),
        ("{a}", {"a": 5}, r"is no text: 5"),
        ("", {}, r"makes no token"),
    ],
)
def test_templates_and_fills_that_do_not_fit_are_named(make_tokenizer, template, fills, message):
    with pytest.raises(PromptError, match=message):
        build_prompt(make_tokenizer("byte_level"), template, fills=fills)


def test_tokenizers_without_offsets_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(PromptError, match=r"Slow gives no character offsets.*from_ids"):
        build_prompt(Slow(), "{a}", fills={"a": "x"})
    with pytest.raises(PromptError, match="no tokenizer"):
        build_prompt(None, "{a}", fills={"a": "x"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_truncation_keeps_the_regions_and_the_added_tokens(make_tokenizer, kind, side):
    tokenizer = make_tokenizer(kind)
    filler = "one two three four five six seven eight nine ten " * 6
    template = {
        "left": filler + "{x} the end",
        "right": "the code {x} " + filler,
        "middle": "{x} " + filler + "{y}",
    }[side]
    fills = {"x": "harbour 🙂 code", "y": "quiet morning"} if side == "middle" else {"x": "harbour 🙂 code"}
    whole = build_prompt(tokenizer, template, fills=fills)
    cut = build_prompt(tokenizer, template, fills=fills, max_length=60, truncate=side)
    assert len(cut) == 60 < len(whole)
    for name in fills:
        assert [cut.ids[i] for i in cut.regions[name]] == [whole.ids[i] for i in whole.regions[name]]
        assert cut.region_text(name).strip() == whole.region_text(name).strip()
    assert cut.ids[0] == whole.ids[0] or side == "left"
    if kind in ("byte_level_bos", "wordpiece"):
        assert (cut.ids[0], cut.ids[-1]) == (whole.ids[0], whole.ids[-1])
    assert cut.find("harbour 🙂 code") == cut.regions["x"]


def test_truncation_never_halves_a_character(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    for length in range(6, 30):
        prompt = build_prompt(tokenizer, "{x}" + "🦊" * 8, fills={"x": "code"}, max_length=length, truncate="right")
        assert length - 3 <= len(prompt) <= length
        assert "\ufffd" not in tokenizer.decode(prompt.ids)
        assert tokenizer.decode(prompt.ids) == prompt.text


def test_losing_any_part_of_a_region_is_an_error_that_names_it(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    with pytest.raises(PromptError, match=r"would lose \d+ of the \d+ tokens of region 'x'"):
        build_prompt(tokenizer, "the code {x}", fills={"x": "one two three"}, max_length=5, truncate="right")
    with pytest.raises(PromptError, match="leaves none of the text"):
        build_prompt(tokenizer, "the code {x}", fills={"x": "one"}, max_length=0, truncate="left")


def test_too_long_prompts_name_both_lengths(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    length = len(build_prompt(tokenizer, "the code {x}", fills={"x": "one two"}))
    with pytest.raises(PromptError, match=rf"{length} tokens, max_length is 3"):
        build_prompt(tokenizer, "the code {x}", fills={"x": "one two"}, max_length=3)
    with pytest.raises(PromptError, match=rf"{length} tokens, the model's context holds 4"):
        build_prompt(tokenizer, "the code {x}", fills={"x": "one two"}, n_ctx=4)
    with pytest.raises(PromptError, match="truncate= needs max_length="):
        build_prompt(tokenizer, "{x}", fills={"x": "one"}, truncate="left")
    with pytest.raises(PromptError, match="none of 'left'"):
        build_prompt(tokenizer, "{x}", fills={"x": "one"}, truncate="top", max_length=3)
    fitted = build_prompt(tokenizer, "the code of {x}", fills={"x": "one"}, truncate="left", n_ctx=3)
    assert len(fitted) <= 3


def test_find_asks_which_occurrence(make_tokenizer):
    prompt = Prompt.from_text(make_tokenizer("byte_level"), "code one code two code")
    with pytest.raises(PromptError, match=r"'code' 3 times: choose one with occurrence=0 to 2"):
        prompt.find("code")
    assert prompt.find("code", -1) == prompt.find("code", 2) == (len(prompt) - 1,)
    with pytest.raises(PromptError, match="occurrence=3 is out of range"):
        prompt.find("code", 3)
    with pytest.raises(PromptError, match="does not hold 'lamp'"):
        prompt.find("lamp")
    with pytest.raises(PromptError, match="empty string"):
        prompt.find("")
    inner = build_prompt(make_tokenizer("byte_level"), "code {x} code", fills={"x": "the code is"})
    assert inner.find("code", within="x") == inner.find("code", 1)


def test_prompts_from_text_and_ids(make_tokenizer):
    tokenizer = make_tokenizer("byte_level_bos")
    text = "the secret code is 7421"
    prompt = Prompt.from_text(tokenizer, text, {"a": (4, 10), "b": [(0, 3), (19, 23)]})
    assert prompt.region_text("a").strip() == "secret"
    assert prompt.region_text("b").replace(" ", "") == "the7421"
    with pytest.raises(PromptError, match=r"\[5, 99\)"):
        Prompt.from_text(tokenizer, text, {"a": (5, 99)})
    again = Prompt.from_ids(prompt.ids, {"a": prompt.regions["a"]}, tokenizer)
    assert again.regions["a"] == prompt.regions["a"]
    assert "".join(again.tokens) == again.text
    bare = Prompt.from_ids([5, 6, 7], {"end": [-1]})
    assert bare.regions == {"bos": (0,), "end": (2,)}
    assert bare.tokens == ["⟨5⟩", "⟨6⟩", "⟨7⟩"]
    with pytest.raises(PromptError, match="position 3 is outside"):
        Prompt.from_ids([5, 6, 7], {"end": [3]})
    with pytest.raises(PromptError, match="at least one token"):
        Prompt.from_ids([])
    with pytest.raises(PromptError, match="3 tokens, the model's context holds 2"):
        Prompt.from_ids([5, 6, 7], n_ctx=2)
    assert bare.with_regions({"mid": [1]}).positions("mid") == (1,)


def test_prompts_are_values(make_tokenizer):
    tokenizer = make_tokenizer("byte_level")
    first, second = (build_prompt(tokenizer, "{x} code", fills={"x": "one"}) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != build_prompt(tokenizer, "{y} code", fills={"y": "one"})


def test_partition_is_disjoint_and_covers_all(make_tokenizer):
    prompt = build_prompt(make_tokenizer("byte_level"), "one {x} two {y}.", fills={"x": "code", "y": "harbour"})
    parts = partition(prompt, ["x", "y"])
    assert sorted(i for part in parts for i in part) == list(range(len(prompt)))
    assert parts[:2] == [prompt.regions["x"], prompt.regions["y"]]
    assert partition(prompt, ["rest", "x"])[1] == prompt.regions["x"]
    assert partition(prompt, ["all"]) == [prompt.positions("all"), ()]
    assert prompt.positions("last") == (len(prompt) - 1,)
    with pytest.raises(PromptError, match=r"no region 'z'.*Known"):
        partition(prompt, ["z"])
