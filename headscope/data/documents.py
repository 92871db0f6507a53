"""Documents of several kinds, grown from a seed: what attention does in prose it need not do in code or tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from headscope.data.dataset import resource
from headscope.data.prose import capital, sentences

WORDS: dict[str, Any] = resource("words.json")
NOUNS, VERBS, NAMES, UNITS = (WORDS[kind] for kind in ("nouns", "verbs", "names", "units"))

Blocks = Iterator[str]


def document(domain: str, rng: Random) -> Blocks:
    """Yield the blocks of one document, without end; their join is its text."""
    return DOMAINS[domain](rng)


def prose(rng: Random) -> Blocks:
    """English prose."""
    return sentences(rng)


def german(rng: Random) -> Blocks:
    """German prose."""
    return sentences(rng, "german")


def french(rng: Random) -> Blocks:
    """French prose."""
    return sentences(rng, "french")


def dialogue(rng: Random) -> Blocks:
    """Conversations between two or three people."""
    speakers = rng.sample(NAMES, rng.randint(2, 3))
    lines = sentences(rng)
    openings = [
        "Did you hear that",
        "Are you sure that",
        "Who told you that",
        "Do you remember how",
        "I never knew that",
    ]
    replies = [
        "Yes, I was there.",
        "No, that must have been somebody else.",
        "Hm. And then?",
        "You told me the same thing yesterday!",
        "I would rather not talk about it.",
        "That is what they say, at least.",
        "Really? I had no idea.",
        "Let me think... perhaps.",
    ]
    last = ""
    while True:
        speaker = rng.choice([name for name in speakers if name != last])
        last = speaker
        sentence = next(lines).strip()
        draw = rng.random()
        if draw < 0.3:
            other = rng.choice([name for name in speakers if name != speaker])
            text = f"{rng.choice(openings)} {sentence[:1].lower()}{sentence[1:].rstrip('.')}, {other}?"
        elif draw < 0.6:
            text = f"{rng.choice(replies)} {sentence}"
        elif draw < 0.8:
            text = rng.choice(replies)
        else:
            text = sentence
        yield f"{speaker}: {text}\n"


def code(rng: Random) -> Blocks:
    """Python functions."""
    yield rng.choice(
        ["import math\nimport re\n\n\n", "from dataclasses import dataclass\n\n\n", "import json\nimport os\n\n\n"]
    )
    used: set[str] = set()
    while True:
        noun, other = rng.sample(NOUNS, 2)
        verb = rng.choice(VERBS)
        name = f"{verb}_{noun}"
        if name in used:
            continue
        used.add(name)
        number, second = rng.randint(2, 99), rng.randint(2, 9)
        yield (
            "\n".join([*rng.choice(WORDS["functions"]), "", "", ""])
            .replace("NAME", name)
            .replace("CLASS", capital(noun) + capital(other))
            .replace("NOUN", noun)
            .replace("OTHER", other)
            .replace("VERB", verb)
            .replace("SECOND", str(second))
            .replace("NUMBER", str(number))
        )


def tables(rng: Random) -> Blocks:
    """Tables, lists and records."""
    while True:
        yield rng.choice([_markdown_table, _bullets, _csv, _record])(rng)


def _markdown_table(rng: Random) -> str:
    columns = rng.sample(NOUNS, rng.randint(2, 4))
    rows = [
        f"| {rng.choice(NOUNS)} | " + " | ".join(str(rng.randint(1, 999)) for _ in columns) + " |"
        for _ in range(rng.randint(3, 7))
    ]
    head = "| item | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n"
    return head + "\n".join(rows) + "\n\n"


def _bullets(rng: Random) -> str:
    items = [f"{n}. {capital(rng.choice(VERBS))} the {rng.choice(NOUNS)}" for n in range(1, rng.randint(4, 8))]
    return f"Things to do with the {rng.choice(NOUNS)}:\n" + "\n".join(items) + "\n\n"


def _csv(rng: Random) -> str:
    columns = rng.sample(NOUNS, 3)
    rows = [
        f"{rng.choice(NAMES)},{rng.randint(1, 31):02d}.{rng.randint(1, 12):02d}.,{rng.randint(100, 9999) / 100:.2f}"
        for _ in range(rng.randint(4, 8))
    ]
    return ",".join(columns) + "\n" + "\n".join(rows) + "\n\n"


def _record(rng: Random) -> str:
    fields = [f"{capital(noun)}: {rng.randint(1, 500)} {rng.choice(UNITS)}" for noun in rng.sample(NOUNS, 4)]
    return f"{rng.choice(NAMES)}, no. {rng.randint(10, 99)}\n" + "\n".join(f"  - {field}" for field in fields) + "\n\n"


def mathematics(rng: Random) -> Blocks:
    """Worked exercises, all right."""
    number = 0
    while True:
        number += 1
        yield f"Exercise {number}. " + rng.choice(_EXERCISES)(rng) + "\n\n"


def _linear(rng: Random) -> str:
    a, x, b = rng.randint(2, 12), rng.randint(-9, 9), rng.randint(1, 40)
    return f"Solve {a}x + {b} = {a * x + b}. Subtract {b}: {a}x = {a * x}. Divide by {a}: x = {x}."


def _quadratic(rng: Random) -> str:
    p, q = rng.randint(1, 9), rng.randint(1, 9)
    return (
        f"Find the roots of $x^2 - {p + q}x + {p * q} = 0$. We need two numbers with sum {p + q} and product {p * q}: "
        f"they are {p} and {q}, so $(x - {p})(x - {q}) = 0$."
    )


def _derivative(rng: Random) -> str:
    a, n, b = rng.randint(2, 9), rng.randint(3, 7), rng.randint(2, 20)
    return f"Let $f(x) = {a}x^{{{n}}} + {b}x$. Then $f'(x) = {a * n}x^{{{n - 1}}} + {b}$, and $f'(1) = {a * n + b}$."


def _sum(rng: Random) -> str:
    n = rng.randint(10, 200)
    return f"The sum $1 + 2 + \\dots + {n}$ is $\\frac{{{n} \\cdot {n + 1}}}{{2}} = {n * (n + 1) // 2}$."


def _product(rng: Random) -> str:
    a, b = rng.randint(12, 99), rng.randint(12, 99)
    tens, ones = b // 10 * 10, b % 10
    return f"Compute {a} × {b}: {a} × {tens} = {a * tens}, {a} × {ones} = {a * ones}, together {a * b}."


def _remainder(rng: Random) -> str:
    a, m = rng.randint(100, 999), rng.randint(3, 19)
    return f"What is {a} modulo {m}? Since {m} · {a // m} = {a // m * m}, the remainder is {a % m}."


_EXERCISES: list[Callable[[Random], str]] = [_linear, _quadratic, _derivative, _sum, _product, _remainder]

DOMAINS: dict[str, Callable[[Random], Blocks]] = {
    "prose": prose,
    "code": code,
    "dialogue": dialogue,
    "tables": tables,
    "mathematics": mathematics,
    "german": german,
    "french": french,
}
