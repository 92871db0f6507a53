from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headscope import data
from headscope.data.answers import telling, words
from headscope.data.haystack import FolderText
from headscope.data.needles import recall
from headscope.data.prose import sentences, split_sentences
from headscope.errors import DataError

KINDS = ["byte_level", "wordpiece", "unigram"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [False, True])
def test_regions_hold_what_their_names_say(make_model, kind, chat):
    model = make_model(kind, n_ctx=900, chat=chat)
    for sample in data.needles(model, n=26 if kind == "byte_level" else 6, lengths=(500, 600)):
        assert sample.chat is chat
        prompt = sample.prompt(model)
        # A tokenizer may fuse characters that it does not know, across the border too.
        slack = 6 if kind == "unigram" else 0
        for name, text in (("needle", sample.needle), ("question", sample.question), ("answer", sample.answer)):
            shown = prompt.region_text(name).strip()
            assert text in shown
            assert len(shown) <= len(text) + slack + (name == "answer")
        assert set(prompt.regions["answer"]) < set(prompt.regions["needle"])
        assert not set(prompt.regions["haystack"]) & set(prompt.regions["needle"])
        assert prompt.text.count(sample.needle) == 1
        assert not telling(sample.answer) & set(words(sample.before + sample.after))
        assert prompt.text.endswith("assistant\n" if chat else "Answer:")


@pytest.mark.parametrize("kind", KINDS)
def test_length_and_depth_are_what_was_asked_for(make_model, kind):
    model = make_model(kind, n_ctx=800)
    made = data.needles(model, n=11, lengths=(600,), depths=[k / 10 for k in range(11)])
    for sample in made:
        prompt = sample.prompt(model)
        assert sample.factors["length"] - 30 <= len(prompt) <= sample.factors["length"]
        haystack, first = prompt.regions["haystack"], prompt.regions["needle"][0]
        depth = sum(position < first for position in haystack) / len(haystack)
        longest = max(map(len, islice(sentences(random.Random(0)), 500))) / 3
        assert abs(depth - sample.factors["depth"]) < longest / len(haystack)
    ends = {sample.factors["depth"]: sample for sample in made}
    assert ends[0.0].before == ""
    assert ends[1.0].after == ""


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_ctx=st.integers(300, 900), n=st.integers(1, 4), seed=st.integers(0, 99))
def test_prompt_and_answer_fit_into_any_context(make_model, n_ctx, n, seed):
    model = make_model("byte_level", n_ctx=n_ctx)
    try:
        made = data.needles(model, n=n, seed=seed)
    except DataError:
        made = None
    if made is None:
        assert n_ctx < 450
        return
    assert all(len(sample.prompt(model)) + sample.max_new_tokens - 1 <= n_ctx for sample in made)


def test_the_grid_is_balanced_at_any_size(make_model):
    model = make_model(n_ctx=900)
    made = data.needles(model, n=40, lengths=(450, 460, 470, 480), depths=(0, 0.25, 0.5, 0.75, 0.9, 1))
    for n in (7, 24, 40):
        part = made[:n]
        for factor in ("length", "depth"):
            counts = Counter(sample.factors[factor] for sample in part)
            assert max(counts.values()) - min(counts.values()) <= 1
    cells = {(sample.factors["length"], sample.factors["depth"]) for sample in made[:24]}
    assert len(cells) == 24
    assert len({sample.source for sample in made[:26]}) == 26
    assert max(Counter(sample.source for sample in made).values()) == 2


def test_default_lengths_follow_the_context(make_model):
    assert max(data.needles(make_model(n_ctx=None), n=1).parameters["lengths"]) == 2048
    small = data.needles(make_model(n_ctx=700), n=1).parameters["lengths"]
    assert len(small) == 5
    assert 600 < max(small) < 700
    assert data.needles(make_model(n_ctx=100_000), n=1).parameters["lengths"] == [256, 704, 1152, 1600, 2048]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (40,)}, "40 tokens are too few"),
        ({"lengths": (690,)}, r"690 tokens leave no room for an answer in the context; at most 6\d\d do"),
        ({"lengths": ()}, r"lengths=\[\]"),
        ({"lengths": (0,)}, "lengths=0"),
        ({"depths": (0.5, 1.5)}, r"depths=\[0.5, 1.5\]"),
        ({"depths": ()}, r"depths=\[\]"),
        ({"haystack": "/no/such/folder"}, "There is no folder"),
    ],
)
def test_grids_that_make_no_sense(model, options, message):
    with pytest.raises(DataError, match=message):
        data.needles(model, n=2, **options)


def test_contexts_that_are_too_small(make_model):
    with pytest.raises(DataError, match=r"do not fit this model, even without a haystack.*context holds 90"):
        data.needles(make_model(n_ctx=90), n=2)
    with pytest.raises(DataError, match=r"context leaves \d+ tokens for a prompt"):
        data.needles(make_model(n_ctx=200), n=2)


def test_haystacks_of_the_user(make_model, tmp_path):
    model = make_model(n_ctx=800)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(islice(sentences(random.Random(name)), 40)))
    made = data.needles(model, n=6, lengths=(500,), haystack=tmp_path)
    known = {part.strip() for name in "abc" for part in split_sentences((tmp_path / f"{name}.txt").read_text())}
    for sample in made:
        parts = [part.strip() for part in split_sentences(sample.before) + split_sentences(sample.after)]
        assert known.issuperset(part for part in parts if part)
    assert len({sample.before for sample in made if sample.before}) > 1
    assert made.parameters["haystack"] == str(tmp_path)
    (tmp_path / "a.txt").write_text("Short.")
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").unlink()
    with pytest.raises(DataError, match=r"ends after \d+ of the \d+ tokens"):
        data.needles(model, n=2, lengths=(500,), haystack=tmp_path)


def test_sentences_that_give_an_answer_away_are_left_out(make_model, tmp_path):
    model = make_model(n_ctx=800)
    plain = [sentence.strip() for sentence in islice(sentences(random.Random(1)), 80)]
    answers = {word for sample in data.needles(model, n=26, lengths=(500,)) for word in telling(sample.answer)}
    spoiled = " ".join(f"{sentence} He saw {answer}." for sentence, answer in zip(plain, sorted(answers), strict=False))
    (tmp_path / "spoiled.txt").write_text(spoiled + " " + " ".join(plain))
    for sample in data.needles(model, n=26, lengths=(500,), haystack=tmp_path):
        assert not telling(sample.answer) & set(words(sample.before + sample.after))


def test_a_folder_is_gone_round_once(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two. Three.")
    (tmp_path / "b.txt").write_text("Four. Five.")
    whole = {"One.", "Two.", "Three.", "Four.", "Five."}
    for seed in range(10):
        stream = [sentence.strip() for sentence in FolderText(tmp_path).stream(random.Random(seed))]
        assert len(stream) == 5
        assert set(stream) == whole


def test_forward_follows_the_answer_to_the_end_of_its_line(model):
    sample = data.needles(model, n=1, lengths=(450,))[0]
    trace = sample.forward(model, ("top",))
    assert trace.prompt == sample.prompt(model)
    assert trace.capture == ["top"]
    assert trace.max_new_tokens == sample.max_new_tokens > len(sample.answer.split())
    assert not trace.stop("\n the answer")
    assert trace.stop("\n the answer\n")


def test_recall_counts_words():
    assert recall("It is the Amber  BADGER, they say", "amber badger") == 1
    assert recall("amber", "amber badger") == 0.5
    assert recall("amberbadger", "amber badger") == 0
    assert recall("", "amber badger") == 0
    assert recall("tea", "tea tea") == 0.5


def test_answered_needs_more_than_half(model):
    sample = data.needles(model, n=1, lengths=(450,))[0]
    assert sample.answered(SimpleNamespace(text=f"It is {sample.answer}."))
    assert not sample.answered(SimpleNamespace(text="I do not know."))
