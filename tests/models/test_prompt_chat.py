from __future__ import annotations

import pytest

from headscope.errors import PromptError
from headscope.models.prompt import build_prompt


@pytest.mark.parametrize("style", ["chatml", "stripping", "merging"])
@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos", "sentencepiece"])
@pytest.mark.parametrize("system", [None, "You are helpful.", "user", "  padded  "])
def test_regions_in_a_chat(make_tokenizer, style, kind, system):
    tokenizer = make_tokenizer(kind, style)
    # Every fill also occurs in the markup or in the system message.
    fills = {"a": "user", "b": "assistant"}
    prompt = build_prompt(tokenizer, "  what is a {a} and {b}?\n", fills=fills, chat=True, system=system)
    messages = [{"role": "user", "content": "  what is a user and assistant?\n"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt.ids == tuple(expected)
    at = prompt.text.index("what is a user and assistant?")
    for name, offset in (("a", len("what is a ")), ("b", len("what is a user and "))):
        first, last = prompt.regions[name][0], prompt.regions[name][-1]
        span = (prompt.offsets[first][0], prompt.offsets[last][1])
        assert prompt.text[slice(*span)].strip() == fills[name]
        assert span[1] == at + offset + len(fills[name])
    if system is not None:
        assert system.strip() in prompt.region_text("system")


def test_no_second_bos_in_a_chat(make_tokenizer):
    prompt = build_prompt(make_tokenizer("byte_level_bos", "stripping"), "the {a}", fills={"a": "code"}, chat=True)
    assert prompt.ids.count(0) == 1
    assert prompt.regions["bos"] == (0,)


def test_fills_at_the_trimmed_edges(make_tokenizer):
    tokenizer = make_tokenizer("byte_level", "stripping")
    prompt = build_prompt(tokenizer, "{a} is {b}", fills={"a": " \n code", "b": "harbour \n"}, chat=True)
    assert prompt.region_text("a").strip() == "code"
    assert prompt.region_text("b").strip() == "harbour"
    with pytest.raises(PromptError, match="trims region 'a' away"):
        build_prompt(tokenizer, "{a}code", fills={"a": "  "}, chat=True)


def test_templates_that_rewrite_or_refuse_are_named(make_tokenizer):
    fills = {"a": "code"}
    with pytest.raises(PromptError, match=r"user message 0 times|rewrites"):
        build_prompt(make_tokenizer("byte_level", "shouting"), "the {a}", fills=fills, chat=True)
    with pytest.raises(PromptError, match="user message 2 times"):
        build_prompt(make_tokenizer("byte_level", "echoing"), "the {a}", fills=fills, chat=True)
    with pytest.raises(PromptError, match=r"no system role.*leave out system="):
        build_prompt(make_tokenizer("byte_level", "no_system"), "the {a}", fills=fills, chat=True, system="s")
    with pytest.raises(PromptError, match="no chat template"):
        build_prompt(make_tokenizer("byte_level"), "the {a}", fills=fills, chat=True)
    with pytest.raises(PromptError, match="needs chat=True"):
        build_prompt(make_tokenizer("byte_level", "chatml"), "the {a}", fills=fills, system="s")


@pytest.mark.parametrize("style", ["chatml", "stripping", "merging"])
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_truncation_leaves_the_markup_alone(make_tokenizer, style, side):
    tokenizer = make_tokenizer("byte_level", style)
    filler = "one two three four five six seven " * 8
    template = {"left": filler + "{a}", "right": "{a} " + filler, "middle": "{a} " + filler + "{b}"}[side]
    fills = {"a": "harbour", "b": "quiet"} if side == "middle" else {"a": "harbour"}
    frame = build_prompt(tokenizer, "@", fills={}, chat=True).text.split("@")
    prompt = build_prompt(tokenizer, template, fills=fills, chat=True, max_length=80, truncate=side)
    assert len(prompt) == 80
    assert prompt.text.startswith(frame[0])
    assert prompt.text.endswith(frame[1])
    for name, fill in fills.items():
        assert prompt.region_text(name).strip() == fill
