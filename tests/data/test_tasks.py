from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from headscope import data
from headscope.data.answers import words
from headscope.data.organisms.vocabulary import build_tokenizer, build_vocabulary
from headscope.data.tasks import SPLITS, TASKS, Task, Verdict, facts, make
from headscope.data.tasks.formatting import JsonItem
from headscope.data.tasks.instruction import FORMS, InstructionItem
from headscope.data.tasks.pronouns import GENDERED, PronounItem
from headscope.data.tasks.task import TaskItem, named
from headscope.data.tasks.truthful import closest
from headscope.errors import DataError

KINDS = ["byte_level", "wordpiece", "unigram"]
SHARED = {
    "sentiment": ("positive", "negative"),
    "topic": ("sports", "science", "business", "music"),
}
FREE = {"json", "pronouns"}


@pytest.fixture
def long(make_model: Any) -> Any:
    return make_model(n_ctx=3000)


_MADE: dict[str, Task] = {}


def hundred(name: str, model: Any) -> Task:
    """A hundred items of a task, made once for all tests that only read them."""
    if name not in _MADE:
        _MADE[name] = make(name, model, n=100)
    return _MADE[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_regions_hold_what_their_names_say(make_model, name, kind, chat):
    model = make_model(kind, n_ctx=3000, chat=True)
    task = make(name, model, n=8, chat=chat)
    for item in task.items:
        prompt = item.prompt(model)
        assert task.region in prompt.regions
        assert prompt.text.endswith("assistant\n") is chat
        assert len(prompt) + task.max_new_tokens - 1 <= 3000
        for region, fill in item.fills.items():
            shown = "".join(prompt.region_text(region).split())
            parts = ["".join(part.split()) for part in ([fill] if isinstance(fill, str) else fill)]
            assert all(part in shown for part in parts)
            # A tokenizer may fuse characters across a border: marks, and those that it does not know.
            slack = 6 if kind == "unigram" else 2
            assert len(shown) <= sum(map(len, parts)) + slack * len(parts)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_fit_a_tokenizer_of_bytes(make_model, name):
    model = make_model(n_ctx=2048)
    model.tokenizer = build_tokenizer(build_vocabulary(), 2048)
    task = make(name, model, n=8)
    for item in task.items:
        prompt = item.prompt(model)
        assert prompt.region_text(task.region).strip()
        assert not item.chat


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_and_the_options_are_all_that_counts(long, name):
    task = make(name, long, n=10)
    assert task.hash == make(name, long, n=10, seed=0).hash
    assert task.items == data.task(name, long, n=10).items
    assert task.hash != make(name, long, n=10, seed=1).hash
    assert task.hash != make(name, long, n=12).hash
    assert task.parameters == {**task.parameters, "n": 10, "seed": 0, "chat": False}
    json.dumps(dict(task.parameters))


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_neither_source_nor_prompt(long, name):
    first, second = hundred(name, long), make(name, long, n=15, seed=1)
    assert [len(first.split(split)) for split in SPLITS] == [40, 20, 40]
    assert sum((first.split(split) for split in SPLITS), ()) == first.items
    assert len({item.id for item in first}) == len({item.prompt(long).text for item in first}) == 100
    # Whatever the seed: what a method was trained on is never what it is measured on.
    for a, b in combinations(SPLITS, 2):
        for task in (first, second):
            assert not {item.source for item in first.split(a)} & {item.source for item in task.split(b)}
            assert not {item.source for item in second.split(a)} & {item.source for item in task.split(b)}


@pytest.mark.parametrize("name", TASKS)
def test_there_are_many_sources(long, name):
    task = hundred(name, long)
    for split in SPLITS:
        assert len({item.source for item in task.split(split)}) == {"train": 40, "validation": 20, "test": 40}[split]
        assert task.parameters[f"{split}_sources"] == {"train": 40, "validation": 20, "test": 40}[split]


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_passes_and_wrong_ones_do_not(long, name):
    task = hundred(name, long)
    assert task.answers == SHARED.get(name)
    for item in task.items:
        assert item.verdict(f" {item.gold}\n\nQuestion: and then?") == Verdict(
            True, True, None if name in FREE else item.gold
        )
        assert item.verdict("") == item.verdict("\n \n") == Verdict(False, False)
        assert item.verdict("I would rather talk about something else.").correct is False
        assert item.stop(f" {item.gold}\n\n")
        assert not item.stop("") | item.stop("\n") | item.stop(" The")
        if name in FREE:
            assert item.answers == ()
            continue
        assert len(set(item.answers)) == len(item.answers) >= 2
        assert item.gold in item.answers
        for answer in item.answers:
            assert item.verdict(f"{answer}\n") == Verdict(True, answer == item.gold, answer)


# -- balance and variety ---------------------------------------------------------------------------------------------


def even(counts: Counter[Any], kinds: int) -> bool:
    return len(counts) == kinds and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", SHARED)
def test_labels_and_demonstrations_are_balanced(long, name):
    task = make(name, long, n=40, shots=5)
    labels = SHARED[name]
    first: Counter[str] = Counter()
    for split in SPLITS:
        assert even(Counter(item.gold for item in task.split(split)), len(labels))
    for item in task.items:
        shown = item.fills["demonstrations"].split("\n\n")
        given = [example.rsplit(": ", 1)[1] for example in shown]
        assert even(Counter(given), len(labels))
        assert len({example.rsplit("\n", 1)[0] for example in shown}) == 5
        assert item.fills["text"] not in item.fills["demonstrations"]
        first[given[0]] += 1
    assert min(first[label] for label in labels) > 0


@pytest.mark.parametrize(("name", "factor", "kinds"), [("instruction", "form", 6), ("pronouns", "pronoun", 2)])
def test_other_classes_are_balanced_too(long, name, factor, kinds):
    task = hundred(name, long)
    for split in SPLITS:
        assert even(Counter(item.factors[factor] for item in task.split(split)), kinds)


def test_either_statement_may_come_first(long):
    for item in make("counterfactual", long, n=20):
        text = item.prompt(long).text
        assert (text.index("Previously") < text.index("Currently")) is (item.factors["first"] == "previous")
    assert even(Counter(item.factors["first"] for item in make("counterfactual", long, n=20)), 2)
    assert {item.factors["first"] for item in make("counterfactual", long, n=20, order="previous")} == {"previous"}


@pytest.mark.parametrize("name", ["needles", "counterfactual", "truthful"])
def test_the_place_among_the_candidates_says_nothing(long, name):
    places = Counter(item.answers.index(item.gold) for item in hundred(name, long))
    assert len(places) == len(hundred(name, long)[0].answers)
    assert max(places.values()) < 65


@pytest.mark.parametrize("name", SHARED)
def test_texts_do_not_repeat(long, name):
    texts = [item.fills["text"] for item in make(name, long, n=500)]
    assert len(set(texts)) > 450


def test_no_telling_word_of_a_test_review_was_trained_on(long):
    from headscope.data.tasks.sentiment import LABELS, _words, review

    pools = _words()
    for label in LABELS:
        for part in ("words", "remarks"):
            found = [set(pools[split][f"{label} {part}"]) for split in SPLITS]
            assert sum(map(len, found)) == len(set().union(*found))
    praise = {split: set(pools[split]["positive words"]) for split in SPLITS}
    task = make("sentiment", long, n=200)
    for split in SPLITS:
        read = " ".join(item.prompt(long).text for item in task.split(split))
        assert any(word in read for word in praise[split])
    train = " ".join(item.prompt(long).text for item in task.split("train"))
    assert not set(words(train)) & {word for word in praise["test"] if " " not in word and "-" not in word}
    assert review.__doc__


# -- what the contexts hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_fact_is_told_once_among_others_of_its_form(make_model, kind):
    model = make_model(kind, n_ctx=3000)
    task = make("needles", model, n=12, length=700, distractors=4)
    for item in task.items:
        prompt = item.prompt(model)
        assert 650 <= len(prompt) <= 700
        (fact,) = item.fills["fact"]
        others = item.fills["distractors"]
        assert len(item.answers) == 5
        assert item.gold in fact
        told = " ".join(words(prompt.text.split("\n\nQuestion")[0]))
        for answer in item.answers:
            assert told.split().count(answer.lower()) == 1
            assert answer == item.gold or sum(answer in other for other in others) == 1
        thing = item.source.split("/")[1].removeprefix("the ")
        assert thing in item.fills["question"]
        assert not any(f" {thing} " in other for other in others)
    depths = {item.factors["depth"] for item in task.items}
    assert min(depths) < 0.4
    assert max(depths) > 0.6


def test_facts_of_two_splits_are_about_different_things():
    found = {split: {name.split("/")[1] for name in names} for split, names in facts.sources().items()}
    for a, b in combinations(SPLITS, 2):
        assert not found[a] & found[b]


def test_an_instruction_stands_at_the_top(make_model):
    for chat in (False, True):
        model = make_model(n_ctx=3000, chat=True)
        for item in make("instruction", model, n=12, length=1000, chat=chat):
            prompt = item.prompt(model)
            assert min(prompt.regions["instruction"]) <= (0 if not chat else 20)
            assert min(prompt.regions["question"]) > len(prompt) - 100
            assert 900 < len(prompt) <= 1000
            assert isinstance(item, InstructionItem)
            assert FORMS[item.form].write(item.value) == item.gold
            shown, question = max(prompt.regions["examples"]), min(prompt.regions["question"])
            prose = prompt.regions["haystack"]
            assert shown < min(prose) if item.factors["place"] == "top" else max(prose) < shown < question
            read = prompt.text.replace(item.fills["instruction"], "")
            assert item.value.lower() not in words(read)


def test_json_is_asked_for_in_another_order_than_shown(long):
    task = make("json", long, n=20, keys=4, shots=2)
    orders = set()
    for item in task.items:
        assert isinstance(item, JsonItem)
        asked = [key for key, _ in item.values]
        shown = [list(json.loads(part.split("JSON: ")[1])) for part in item.fills["demonstrations"].split("\n\n")]
        assert all(sorted(keys) == sorted(asked) for keys in shown)
        assert shown[-1] != asked
        assert list(json.loads(item.gold)) == asked
        orders.add(tuple(asked))
        for key, value in item.values:
            assert str(value) in item.fills["text"]
            assert key in item.fills["instruction"]
    assert len(orders) > 10


@pytest.mark.parametrize("deeds", [1, 4])
def test_rewritings_change_pronouns_alone(long, deeds):
    for item in make("pronouns", long, n=60, deeds=deeds, shots=4):
        assert isinstance(item, PronounItem)
        before, after = words(item.text), words(item.gold)
        assert len(before) == len(after)
        assert set(before) & GENDERED
        assert not set(after) & GENDERED
        assert "[" not in item.text + item.gold + item.fills["demonstrations"]
        changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert not [(a, b) for a, b in changed if not (a in GENDERED or a == f"{b}s" or (a, b) in VERBS)]


VERBS = set(
    zip(
        ["is", "was", "has", "goes", "teaches", "carries", "dries", "fixes", "tries", "misses"],
        ["are", "were", "have", "go", "teach", "carry", "dry", "fix", "try", "miss"],
        strict=True,
    )
)


def test_truthful_pairs_are_many_and_tell_apart_by_words():
    from headscope.data.tasks.truthful import _resource

    pairs = _resource()["pairs"]
    assert len(pairs) >= 80
    assert len({question for pair in pairs.values() for question in pair[:2]}) == 2 * len(pairs)
    for *_, true, believed in pairs.values():
        assert closest(true, (true, believed)) == true
        assert closest(believed, (true, believed)) == believed
    # Neither answer is given away by its length.
    shorter = sum(len(true) < len(believed) for *_, true, believed in pairs.values())
    assert 0.35 < shorter / len(pairs) < 0.65


# -- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (" Positive.", "positive"),
        ("The sentiment is **negative**!", "negative"),
        ("not positive", None),
        ("It isn't really positive", None),
        ("It is not a very positive review", None),
        ("positive or negative", None),
        ("positive, positive", "positive"),
        ("positively", None),
        ("non-positive", None),
        ("neutral", None),
        ("positive, although it is not long", "positive"),
        ("", None),
    ],
)
def test_labels_are_read(text, label):
    assert named(text, ("positive", "negative")) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("12", "12"),
        ("3.12", None),
        ("12.", "12"),
        ("12.5", None),
        ("1,123", None),
        ("it is New York", "New York"),
        ("York", "York"),
        ("New York, not York", None),
        ("NEW YORK", "New York"),
    ],
)
def test_candidates_are_whole_and_the_longest(text, label):
    assert named(text, ("12", "123", "York", "New York")) == label


def test_only_the_first_line_counts():
    item = TaskItem("a", "s", "test", "positive", "{text}", {"text": "x"}, ("positive", "negative"))
    assert item.verdict("\n positive\n\nReview: bad\nSentiment: negative") == Verdict(True, True, "positive")
    assert item.verdict("Well.\npositive") == Verdict(False, False)
    assert item.stop(" positive\nReview")
    assert not item.stop("\n positive")


def json_item() -> JsonItem:
    values = (("city", "Oslo"), ("age", 30), ("name", "Emma Kim"))
    return JsonItem("a", "s", "test", "", "{text}", {"text": "x"}, values=values)


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ('{"city": "Oslo", "age": 30, "name": "Emma Kim"}', ""),
        ('Sure!\n```json\n{\n  "city": "oslo",\n  "age": "30",\n  "name": " Emma  Kim"\n}\n```', ""),
        ('{"age": 30, "city": "Oslo", "name": "Emma Kim"}', "order"),
        ('{"city": "Oslo", "age": 31, "name": "Emma Kim"}', "values"),
        ('{"city": "Oslo", "age": true, "name": "Emma Kim"}', "values"),
        ('{"city": "Oslo", "age": 30}', "keys order values"),
        ('{"city": "Oslo", "age": 30, "name": "Emma Kim", "pet": "cat"}', "keys order"),
        ('{"city": "Rome", "city": "Oslo", "age": 30, "name": "Emma Kim"}', "keys order"),
        ('{"City": "Oslo", "age": 30, "name": "Emma Kim"}', "keys order values"),
        ('{"city": "Oslo", "age": 30, "name": "Emma Kim"', "parses keys order values"),
        ("{city: Oslo, age: 30, name: Emma Kim}", "parses keys order values"),
        ("Oslo, 30, Emma Kim", "parses keys order values"),
        ("{" * 5000 + "}" * 5000, "parses keys order values"),
        ("{}", "keys order values"),
    ],
)
def test_json_is_read(text, failed):
    item = json_item()
    checks = item.checks(text)
    assert {name for name, met in checks.items() if not met} == set(failed.split())
    assert item.verdict(text) == Verdict("parses" not in failed, not failed)


def test_json_ends_with_its_object():
    item = json_item()
    assert item.stop('{"a": "}", "b": {}}')
    assert not item.stop('{"a": "}", "b": {')
    assert not item.stop('{"a": "\\"}"')
    assert item.stop("I cannot.\n\nText:")
    assert not item.stop('Sure.\n{"a": 1,\n\n')


def pronoun_item() -> PronounItem:
    text = "Emma Kim is a baker. She opens her shop at six. The mayor often visits her."
    gold = "Emma Kim is a baker. They open their shop at six. The mayor often visits them."
    return PronounItem("a", "s", "test", gold, "{text}", {"text": text}, text=text)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Emma Kim is a baker. They open their shop at six. The mayor often visits them.", Verdict(True, True)),
        ("Emma Kim is a baker. They opens their shop at six. The mayor often visits them.", Verdict(True, True)),
        ("Emma Kim is a baker. She opens her shop at six. The mayor often visits her.", Verdict(True, False)),
        ("Emma Kim is a baker. They open her shop at six. The mayor often visits them.", Verdict(True, False)),
        ("Emma Kim is a baker. They open the shop at six. The mayor often visits.", Verdict(True, False)),
        ("They are here.", Verdict(False, False)),
        ("Emma Kim is a baker who opens a shop at six and whom the mayor often visits.", Verdict(False, False)),
    ],
)
def test_rewritings_are_read(text, verdict):
    assert pronoun_item().verdict(text) == verdict


@pytest.mark.parametrize(
    ("form", "text", "verdict"),
    [
        ("capitals", "OSLO", Verdict(True, True, "OSLO")),
        ("capitals", "IT IS OSLO.", Verdict(True, True, "OSLO")),
        ("capitals", "It is Oslo.", Verdict(True, False)),
        ("capitals", "It is OSLO.", Verdict(True, False)),
        ("capitals", "[OSLO]", Verdict(True, True, "OSLO")),
        ("capitals", "Rome", Verdict(False, False)),
        ("brackets", "It is in [the city of Oslo].", Verdict(True, True, "[Oslo]")),
        ("brackets", "[Rome] Oslo", Verdict(True, False)),
        ("quotes", "“Oslo”", Verdict(True, True, '"Oslo"')),
        ("quotes", '"Oslo', Verdict(True, False)),
        ("twice", "Oslo Oslo", Verdict(True, True, "Oslo Oslo")),
        ("twice", "Oslo Oslo Oslo", Verdict(True, False)),
        ("exclamation", "Oslo!", Verdict(True, True, "Oslo!")),
        ("exclamation", "Surely Oslo", Verdict(True, False, "Surely Oslo")),
        ("word", "Surely, it is Oslo.", Verdict(True, True, "Surely Oslo")),
        ("word", "Oslo, surely", Verdict(True, False)),
    ],
)
def test_forms_are_read(form, text, verdict):
    item = InstructionItem("a", "s", "test", "", "{text}", {"text": "x"}, value="Oslo", form=form)
    assert item.verdict(text) == verdict


def test_answers_in_other_words_are_read():
    true, believed = "It leaves the body within some days.", "It stays in the stomach for seven years."
    assert closest("It will leave your body within days", (true, believed)) == true
    assert closest("seven years in the stomach", (true, believed)) == believed
    assert closest("It does not stay in the stomach for seven years", (true, believed)) is None
    assert closest("It is a sweet.", (true, believed)) is None
    assert closest("", (true, believed)) is None


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "sentimant"}, "Did you mean 'sentiment'"),
        ({"name": "needles", "lenght": 300}, "no option 'lenght'.*Did you mean 'length'"),
        ({"name": "topic", "n": 7}, "at least 8"),
        ({"name": "topic", "n": 0}, "whole number above 0"),
        ({"name": "topic", "n": 10.5}, "whole number above 0"),
        ({"name": "topic", "shots": 17}, "from 0 to 16"),
        ({"name": "topic", "chat": True}, "no chat template"),
        ({"name": "needles", "length": 5000}, "at most .* does"),
        ({"name": "needles", "length": 60}, "too short"),
        ({"name": "needles", "length": 0}, "whole number above 0"),
        ({"name": "needles", "distractors": 7}, "from 1 to 6"),
        ({"name": "instruction", "length": 5000}, "at most .* does"),
        ({"name": "instruction", "place": "middle"}, "no place 'middle'"),
        ({"name": "instruction", "forms": ["capitals"]}, "at least two"),
        ({"name": "instruction", "forms": ["capital", "quotes"]}, "Did you mean 'capitals'"),
        ({"name": "counterfactual", "order": "last"}, "no order 'last'"),
        ({"name": "json", "keys": 7}, "from 2 to 6"),
        ({"name": "json", "shots": True}, "from 0 to 4"),
        ({"name": "pronouns", "deeds": 0}, "from 1 to 4"),
        ({"name": "truthful", "shots": 9}, "from 0 to 8"),
        ({"name": "truthful", "shots": 0, "n": 3000}, "Ask for fewer items"),
    ],
)
def test_bad_input_is_explained(long, call, message):
    with pytest.raises(DataError, match=message):
        make(call.pop("name"), long, **{"n": 10, **call})


def test_a_short_context_is_explained(make_model):
    with pytest.raises(DataError, match=r"does not fit|Lower shots="):
        make("sentiment", make_model(n_ctx=100), n=8)
    with pytest.raises(DataError, match=r"do not fit|takes"):
        make("needles", make_model(n_ctx=60), n=8)
    model = make_model()
    model.tokenizer = None
    with pytest.raises(DataError, match="no tokenizer"):
        make("json", model, n=8)
    with pytest.raises(DataError, match="no split 'dev'"):
        make("topic", make_model(n_ctx=3000), n=8).split("dev")


def test_prompts_fill_a_context_and_no_more(make_model):
    """A context that just holds prompt and answer is enough, one token less is not."""
    free = make("topic", make_model(n_ctx=None), n=8)
    model = make_model(n_ctx=3000)
    longest = max(len(item.prompt(model)) for item in free.items)
    need = longest + free.max_new_tokens - 1
    assert isinstance(make("topic", make_model(n_ctx=need), n=8), Task)
    with pytest.raises(DataError, match="context of fake"):
        make("topic", make_model(n_ctx=need - 1), n=8)
