"""The tour: a prepared prompt, the heads that do something on it, and what to look at in which order.

Nothing in it is known beforehand but the prompt. Which heads rest on the first token, copy, or fetch the answer is
computed from the run, so it holds for whatever model the server was started with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from headscope.app.runs import Recipe
from headscope.errors import RequestError
from headscope.report.numbers import head_name, percent

if TYPE_CHECKING:
    from headscope.app.desk import Desk
    from headscope.report.view import View

NEEDLE = "The secret code of the lighthouse is 7421."
TEXT = f"""Captain Miller leaves the harbour at nine, with salt and rope for the island. Nobody on the quay spoke of \
the storm. {NEEDLE} In winter Captain Miller stays in the harbour, and the keeper walks to the island over the ice, \
with salt and rope on his back.
Question: What is the secret code of the lighthouse?
Answer: The secret code of the lighthouse is"""
NEW_TOKENS = 6

MODEL_VIEW, HEAD_VIEW, TEXT_VIEW, NEURON_VIEW = (f"[data-panel={name}]" for name in ("model", "head", "text", "neuron"))
"""Panels of the viewer."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One card: the page and state that it is shown on, what it says, and a selector of what it is about."""

    href: str
    title: str
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Copying:
    """A head that copies, and the pair of tokens where it does so best: from ``query`` back to ``key``."""

    head: Pair
    query: int
    key: int
    weight: float


def recipe(model: str) -> Recipe:
    """Return the prompt of the tour for a model."""
    at = TEXT.index(NEEDLE)
    return Recipe(model, TEXT, regions=(("needle", at, at + len(NEEDLE)),), new_tokens=NEW_TOKENS)


def cards(desk: Desk, run: str) -> list[dict[str, str]]:
    """Return the steps of a run of the tour's prompt.

    Raises
    ------
    Gone
        If the run is not in memory.
    RequestError
        If it is a run of another prompt.
    """
    from headscope.app.components.ranking_files import rankings
    from headscope.app.page import find_pages

    view = desk.runs.get(run)
    if Recipe.load(desk.workspace, run).text != TEXT:
        raise RequestError("The tour goes over its own prompt: begin it on the home page.")
    heads = view.meta()["heads"]
    shape = (len(heads), max(heads))
    ranked = next((found.file for found in rankings(desk) if found.shape == shape), None)
    steer = any(page.path == "/steer" for page in find_pages())
    made = [*_looking(view, run), _ranking(ranked), *([_steering(run)] if steer else []), _end()]
    return [asdict(step) for step in made]


def _looking(view: View, run: str) -> list[Step]:
    meta = view.meta()
    patterns = _Patterns(view)
    at = f"/explore?run={run}"
    found = _resting(view, meta, at)
    if (copy := induction(patterns, meta["tokens"])) is not None:
        found += _copying(copy, meta["tokens"], at)
    if meta["prompt_length"] < meta["length"] and "needle" in meta["regions"]:
        found.append(_fetching(patterns, meta, at))
    return found


def _resting(view: View, meta: dict[str, Any], at: str) -> list[Step]:
    sinks = view.stat("sink")
    sink, share = best(sinks)
    half = percent(float(np.nanmedian(sinks)), 0)
    return [
        Step(
            f"{at}&head={_dot(sink)}&stat=sink",
            "All heads at once",
            f"This is one run of {meta['length']} tokens through {meta['model']}. Each cell is one of its "
            f"{sum(meta['heads'])} heads. The colour says how much of a head's attention rests on the first token: "
            f"half of all heads leave more than {half} there, though there is nothing to read.",
            MODEL_VIEW,
        ),
        Step(
            f"{at}&head={_dot(sink)}&stat=sink&q={meta['length'] - 1}&k=0",
            "A sink",
            f"{head_name(*sink)} leaves most, {percent(share, 0)} in the mean over its rows. Heads that find nothing "
            "to do rest there: an attention sink. The arrow keys move to the heads beside, above and below.",
            HEAD_VIEW,
        ),
    ]


def _copying(copy: Copying, tokens: list[str], at: str) -> list[Step]:
    said, seen = _word(tokens[copy.query]), _word(tokens[copy.key])
    where = f"{at}&head={_dot(copy.head)}&stat=largest&q={copy.query}&k={copy.key}"
    return [
        Step(
            where,
            "A head that copies",
            f"{head_name(*copy.head)} does something. At the later {said} it looks, with {percent(copy.weight, 0)} of "
            f"its weight, at {seen}: what followed {said} the first time. That is an induction head, found by "
            "comparing all heads on this run.",
            HEAD_VIEW,
        ),
        Step(
            f"{where}&side=row",
            "The same row, in the text",
            f"What {said} attends to is shaded in the prompt itself. Point at a token to see it everywhere, click it "
            "to read its own row, or switch to the column: who attends to it.",
            TEXT_VIEW,
        ),
        Step(
            f"{where}&side=row",
            "Down to the neurons",
            f"Why that weight? The query of {said} is multiplied with the key of {seen}, dimension by dimension, after "
            "rotary position. The running sum is the logit; the softmax over the row makes it the weight.",
            NEURON_VIEW,
        ),
    ]


def _fetching(patterns: _Patterns, meta: dict[str, Any], at: str) -> Step:
    written = meta["prompt_length"]
    head, mass = retrieval(patterns, meta)
    return Step(
        f"{at}&head={_dot(head)}&stat=mass:needle&q={written}&wrote=1",
        "Where the answer came from",
        f"The model wrote “{''.join(meta['tokens'][written:]).strip()}”. In the row that wrote the first of these "
        f"tokens {head_name(*head)} puts {percent(mass, 0)} on the sentence with the code, more than any other head. "
        "That sentence is a marked region, and mass on it is a statistic now, as for any text that you mark.",
        TEXT_VIEW,
    )


def _ranking(file: str | None) -> Step:
    title, why = "From one run to evidence", "One prompt shows what a head can do, not what it does. "
    if file is None:
        return Step(
            "/rank?tab=new",
            title,
            f"{why}A ranking runs a probe over many samples, with intervals and controls, and removes the best heads "
            "to see whether it matters. There is none in the workspace yet: choose a probe and run it.",
        )
    return Step(
        f"/rank?file={quote(file, safe='/')}",
        title,
        f"{why}This ranking is over many samples: each head with its interval and its control. Pick heads in the table "
        "or on the map and save them as a set, which every page, Python and the command line can use.",
    )


def _steering(run: str) -> Step:
    return Step(
        f"/steer?run={run}&method=knockout&set.source=needle",
        "Change it",
        "Does it matter? KnockOut hides the marked sentence from all that follows: press Run, and read what the model "
        "writes without it, beside what it wrote. Each token shows how its probability moved. Other methods have a "
        "strength to sweep; any edit can be kept as a file, with the Python that does the same.",
        "#steer-go",
    )


def _end() -> Step:
    return Step(
        "/explore",
        "Your turn",
        "Paste a prompt of your own, up to the whole context. The address of a view is all that somebody else on this "
        "server needs to see it, and a reload loses nothing. ? lists the keys of a view.",
    )


# -- which heads ------------------------------------------------------------------------------------------------------


class _Patterns:
    """Whole patterns of one run, head by head; the prompt is short enough for that."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.heads = [(layer, head) for layer, count in enumerate(view.meta()["heads"]) for head in range(count)]
        self._kept: dict[Pair, Any] = {}

    def __getitem__(self, head: Pair) -> Any:
        if head not in self._kept:
            rows = [self.view.tile(*head, 0, row, 0, "max") for row in range(-(-self.view.length // 256))]
            self._kept[head] = np.concatenate(rows)
        return self._kept[head]


def best(values: Any) -> tuple[Pair, float]:
    """Return the head with the highest value, and the value; places without a head hold NaN."""
    place = int(np.nanargmax(values))
    layer, head = divmod(place, values.shape[1])
    return (layer, head), float(values.flat[place])


def repeats(tokens: list[str]) -> list[Pair]:
    """Return (query, key) pairs of induction: the key follows an earlier copy of the query and the token before."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for at in range(1, len(tokens)):
        two = (tokens[at - 1], tokens[at])
        if two in seen and seen[two] + 1 < at:
            found.append((at, seen[two] + 1))
        seen.setdefault(two, at)
    return found


def induction(patterns: _Patterns, tokens: list[str]) -> Copying | None:
    """Return the head that attends most to what followed an earlier copy, in the mean over all copies."""
    pairs = [(query, key) for query, key in repeats(tokens) if query < 256 and key < 256]
    if not pairs:
        return None
    queries, keys = np.array(pairs).T
    head = max(patterns.heads, key=lambda one: float(patterns[one][queries, keys].mean()))
    weights = patterns[head][queries, keys]
    # Of the pairs where it is nearly at its best, one with words that say something.
    good = [i for i in range(len(pairs)) if weights[i] >= 0.8 * weights.max()]
    at = max(good, key=lambda i: (len(tokens[queries[i]].strip()) > 3, len(tokens[keys[i]].strip()), weights[i]))
    return Copying(head, int(queries[at]), int(keys[at]), float(weights[at]))


def retrieval(patterns: _Patterns, meta: dict[str, Any]) -> tuple[Pair, float]:
    """Return the head that puts most of the row that wrote the first new token on the needle, and how much."""
    query = meta["prompt_length"] - 1
    keys = [key for start, end in meta["regions"]["needle"] for key in range(start, end)]

    def mass(head: Pair) -> float:
        return float(patterns[head][query, keys].sum())

    head = max(patterns.heads, key=mass)
    return head, mass(head)


def _dot(head: Pair) -> str:
    return f"{head[0]}.{head[1]}"


def _word(token: str) -> str:
    return f"“{token.strip() or repr(token)}”"
