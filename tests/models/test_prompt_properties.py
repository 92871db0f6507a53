"""Whatever the text, the tokens of a region are those whose characters lie in it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from headscope.errors import PromptError
from headscope.models.prompt import build_prompt

TEXT = st.text(
    st.one_of(
        st.sampled_from(list("ab secrt.\n 7é🙂東\u200d\u0301")),
        st.characters(exclude_categories=["Cs"], max_codepoint=0x1FAFF),
    ),
    min_size=1,
    max_size=20,
)
LITERAL = TEXT.map(lambda text: text.replace("{", "(").replace("}", ")"))
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos", "sentencepiece"])
@many
@given(before=LITERAL, fill=TEXT, middle=LITERAL, other=TEXT, after=LITERAL)
def test_the_tokens_of_a_region_spell_the_fill(make_tokenizer, kind, before, fill, middle, other, after):
    assume(fill.strip() and other.strip())
    assume("▁" not in before + fill + middle + other + after)
    tokenizer = make_tokenizer(kind)
    prompt = build_prompt(tokenizer, before + "{a}" + middle + "{b}" + after, fills={"a": fill, "b": other})
    assert prompt.text == before + fill + middle + other + after
    decoder = tokenizer.backend_tokenizer
    for name, text in (("a", fill), ("b", other)):
        positions = prompt.regions[name]
        assert positions == tuple(range(positions[0], positions[-1] + 1))
        assert text.strip() in decoder.decode([prompt.ids[i] for i in positions], skip_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_bos", "sentencepiece", "unigram", "wordpiece"])
@many
@given(before=LITERAL, fill=TEXT, after=LITERAL)
def test_regions_agree_with_the_definition(make_tokenizer, kind, before, fill, after):
    assume(fill.strip())
    tokenizer = make_tokenizer(kind)
    try:
        prompt = build_prompt(tokenizer, before + "{a}" + after, fills={"a": fill})
    except PromptError:
        assume(False)
    start, end = len(before), len(before) + len(fill)
    inside = set(prompt.regions["a"])
    for i, (a, b) in enumerate(prompt.offsets):
        visible = {k for k in range(a, b) if not prompt.text[k].isspace()}
        if visible:
            touches = bool(visible & set(range(start, end)))
            # Between two visible characters of a token, white space counts as the token's own.
            inner = min(visible) < end and start <= max(visible)
            assert touches <= (i in inside) <= inner
        elif a == b:
            assert i not in inside


@many
@given(fill=TEXT, noise=st.integers(0, 12), limit=st.integers(1, 40), side=st.sampled_from(["left", "right", "middle"]))
def test_truncation_fits_and_keeps_the_region_or_says_why_not(make_tokenizer, fill, noise, limit, side):
    assume(fill.strip())
    tokenizer = make_tokenizer("byte_level_bos")
    template = "the 🙂 code " * noise + "{a}" + " harbour 東京" * noise
    whole = build_prompt(tokenizer, template, fills={"a": fill})
    refused = None
    try:
        cut = build_prompt(tokenizer, template, fills={"a": fill}, max_length=limit, truncate=side)
    except PromptError as error:
        refused = str(error)
    if refused is not None:
        assert "region 'a'" in refused or "none of the text" in refused
        return
    assert len(cut) <= limit
    assert [cut.ids[i] for i in cut.regions["a"]] == [whole.ids[i] for i in whole.regions["a"]]
    assert fill.strip() in cut.text
    assert all(0 <= a <= b <= len(cut.text) for a, b in cut.offsets)
