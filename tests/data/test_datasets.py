"""What all data sets have in common, and the prose, folders and texts that they are made of."""

from __future__ import annotations

import ast
import random
import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope import data
from headscope.data import prose
from headscope.data.answers import fact, sources, telling, words
from headscope.data.dataset import DataSet
from headscope.data.documents import DOMAINS, document
from headscope.data.folder import read_folder
from headscope.data.prose import sentences, split_sentences
from headscope.errors import DataError

MAKERS = {
    "needles": lambda model, **options: data.needles(model, **{"n": 6, "lengths": (450, 500), **options}),
    "texts": lambda model, **options: data.texts(model, **{"n": 7, "length": 60, **options}),
    "repeats": lambda model, **options: data.repeats(model, **{"n": 5, "length": 20, **options}),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_data_sets_are_reproducible_and_their_hash_follows_their_content(model, kind):
    make = MAKERS[kind]
    first, again, other = make(model), make(model), make(model, seed=1)
    assert first.samples == again.samples
    assert first.hash == again.hash
    assert first.hash != other.hash
    assert first[:2].hash not in (first.hash, first[1:3].hash)
    assert first.name == kind
    assert {sample.kind for sample in first} == {kind}
    assert len({sample.id for sample in first}) == len(first)
    assert not {sample.id for sample in first} & {sample.id for sample in other} or kind == "needles"
    assert first.parameters["seed"] == 0
    assert isinstance(hash(first[0]), int)
    assert kind in repr(first)


@pytest.mark.parametrize("kind", MAKERS)
def test_more_samples_leave_the_first_as_they_are(model, kind):
    few, many = MAKERS[kind](model, n=3), MAKERS[kind](model, n=6)
    assert many.samples[:3] == few.samples


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3"])
def test_numbers_of_samples_that_make_no_sense(model, kind, n):
    with pytest.raises(DataError, match="n="):
        MAKERS[kind](model, n=n)


def test_public_names():
    assert all(callable(getattr(data, name)) for name in data.__all__)
    with pytest.raises(AttributeError, match="needle_s"):
        data.needle_s


def test_empty_data_sets_and_double_ids_are_refused(model):
    samples = data.repeats(model, n=1, length=4).samples
    with pytest.raises(DataError, match="is empty"):
        DataSet("repeats", [])
    with pytest.raises(DataError, match="two samples with the id 'repeat-0-0000'"):
        DataSet("repeats", samples * 2)


def test_prose_does_not_repeat_itself():
    stream = list(islice(sentences(random.Random(0)), 1500))
    plain = [sentence.strip() for sentence in stream]
    assert len(set(plain)) == len(plain)
    assert sum(len(sentence.split()) for sentence in plain) > 15_000
    assert all(sentence[0].isupper() and sentence[-1] in ".!?" for sentence in plain)
    assert not re.search(r"[{}\d]|  ", " ".join(plain))
    vocabulary = {word for sentence in plain for word in words(sentence)}
    assert len(vocabulary) > 900
    paragraphs = "".join(stream).split("\n\n")
    assert all(4 <= len(split_sentences(p)) <= 7 for p in paragraphs[:50])


def test_prose_says_when_it_ends(monkeypatch):
    topic = {"agents": ["a", "b"], "acts": ["c", "d"], "settings": ["e"], "remarks": ["F."]}
    monkeypatch.setattr(prose, "_grammar", lambda _: {"frames": ["{Agent} {act} {setting}."], "topics": {"t": topic}})
    seen = []
    with pytest.raises(DataError, match=r"exhausted after [45] sentences"):
        seen.extend(sentences(random.Random(0)))


@pytest.mark.parametrize("language", ["english", "german", "french"])
def test_prose_holds_no_word_of_any_answer(language):
    told = {word for sentence in islice(sentences(random.Random(1), language), 3000) for word in words(sentence)}
    rng = random.Random(0)
    for name in sources():
        for _ in range(40):
            assert not telling(fact(name, rng).answer) & told


def test_facts():
    assert len(sources()) >= 20
    rng = random.Random(0)
    for name in sources():
        drawn = [fact(name, rng) for _ in range(60)]
        assert len({found.answer for found in drawn}) >= 10, f"{name} can be guessed"
        assert len({found.needle.replace(found.answer, "…") for found in drawn}) >= 2
        for found in drawn:
            assert found.needle.count(found.answer) == 1
            assert not telling(found.answer) & set(words(found.question))
            assert not telling(found.answer) & set(words(found.needle.replace(found.answer, "")))
            assert found.question.endswith("?")
            assert "{" not in found.needle + found.question


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_splitting_sentences_loses_nothing(text):
    assert "".join(split_sentences(text)) == text
    assert all(len(part.split()) <= 60 for part in split_sentences(text))


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no text.*\.txt or \.md"):
        read_folder(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "other.rst").write_text("text")
    with pytest.raises(DataError, match="holds no text"):
        read_folder(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text \(byte 3 is 0xe9\)"):
        read_folder(tmp_path)


def test_folders_are_read_in_order(tmp_path):
    (tmp_path / "law").mkdir()
    (tmp_path / "law" / "b.md").write_text("Law.", encoding="utf-8-sig")
    (tmp_path / "a.TXT").write_text("Top.")
    found = read_folder(tmp_path)
    assert [(document.name, document.text, document.domain) for document in found] == [
        ("a.TXT", "Top.", "folder"),
        ("law/b.md", "Law.", "law"),
    ]
    assert read_folder(tmp_path / "a.TXT")[0].name == "a.TXT"


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_are_long_varied_and_deterministic(domain):
    first, again, other = ("".join(islice(document(domain, random.Random(s)), 200)) for s in (0, 0, 1))
    assert first == again != other
    lines = [line for line in re.split(r"\n+|(?<=[.?!]) ", first) if line.strip()]
    assert len(set(lines)) > 0.5 * len(lines)


def test_generated_code_is_python():
    for seed in range(5):
        ast.parse("".join(islice(document("code", random.Random(seed)), 60)))


def test_texts_have_the_length_and_domain_asked_for(model):
    made = data.texts(model, n=14, length=64)
    assert [sample.domain for sample in made][:7] == list(DOMAINS)
    for sample in made:
        prompt = sample.prompt(model)
        assert 61 <= len(prompt) <= 64
        assert prompt.text == sample.text
        assert sample.factors == {"length": 64, "domain": sample.domain}
    assert len({sample.source for sample in made}) == 14
    assert len({sample.text for sample in made}) == 14
    run = made[0].forward(model, ["a"])
    assert run == ("run", made[0].prompt(model), ["a"], False)


def test_texts_of_some_domains(model):
    made = data.texts(model, n=4, length=30, domains=["code", "french"])
    assert made.parameters["domains"] == ["code", "french"]
    with pytest.raises(DataError, match=r"no domain 'frensh'.*'french'"):
        data.texts(model, domains=["frensh"])
    with pytest.raises(DataError, match=r"domains=\[\]"):
        data.texts(model, domains=[])
    with pytest.raises(DataError, match=r"length=9999 passes the model's context of 700"):
        data.texts(model, length=9999)
    assert data.texts(model, n=1).parameters["length"] == 512


def test_texts_of_a_folder(model, tmp_path):
    for name in ("law/a.txt", "law/b.txt", "novel/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{{{name}}} " + "".join(islice(sentences(random.Random(name)), 12)))
    made = data.texts(model, n=6, length=50, folder=tmp_path)
    assert {sample.source for sample in made} == {"law/a.txt", "law/b.txt", "novel/c.txt"}
    assert [sample.domain for sample in made[:2]] == ["law", "novel"]
    assert len({sample.text for sample in made}) == 6
    assert all(47 <= len(sample.prompt(model)) <= 50 for sample in made)
    assert {sample.domain for sample in data.texts(model, n=2, length=50, folder=tmp_path, domains=["novel"])} == {
        "novel"
    }
    with pytest.raises(DataError, match=r"gives \d+ texts of 600 tokens, asked for 30"):
        data.texts(model, n=30, length=600, folder=tmp_path)
    with pytest.raises(DataError, match=r"no subfolder 'novels'.*'novel'"):
        data.texts(model, n=2, length=50, folder=tmp_path, domains=["novels"])


def test_text_needs_a_tokenizer(model):
    model.tokenizer = None
    for make in (data.texts, data.needles):
        with pytest.raises(DataError, match="no tokenizer"):
            make(model)
