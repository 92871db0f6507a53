"""Needles that an organism can answer: a run of markers behind a colon.

The organism knows no English. Its retrieval heads look, at the colon of ``Answer:``, for a marker that stands behind
another colon, copy it, and go on from marker to marker; at the full stop there is nothing left to copy. So needles
read ``The pass phrase reads: bivq cojx … hujz.``, and the rest of the prompt may be any text without markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from headscope.data.dataset import DataSet, positive
from headscope.data.haystack import GeneratedProse, fill, split_at
from headscope.data.needles import BASE, NeedleSample
from headscope.data.organisms.vocabulary import MARKERS
from headscope.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUBJECTS = {
    "pass-phrase": ("The pass phrase reads", "What is the pass phrase?"),
    "door": ("The words over the door of the old house are", "Which words are over the door?"),
    "ring": ("Inside the ring one can read", "What can one read inside the ring?"),
    "song": ("Every night the river sings", "What does the river sing?"),
    "bird": ("A grey bird said to the woman", "What did the bird say?"),
    "letter": ("The first line of the letter was", "How did the letter begin?"),
    "bell": ("On the bell somebody wrote", "What did somebody write on the bell?"),
    "stars": ("The seven stars are called", "What are the stars called?"),
    "map": ("On the back of the map stands", "What stands on the back of the map?"),
    "king": ("The last words of the king were", "What were the last words of the king?"),
    "ship": ("The name of the ship is", "What is the name of the ship?"),
    "stone": ("A hand cut into the stone", "What is cut into the stone?"),
    "child": ("The child counted", "How did the child count?"),
    "drawer": ("A note in the drawer says", "What does the note in the drawer say?"),
    "horses": ("The horses answer to", "Which names do the horses answer to?"),
    "gate": ("To open the gate one says", "What opens the gate?"),
}
"""Source: (what comes before the colon, question). Enough of them that a clustered test can tell chance from truth."""
LENGTHS, DEPTHS = (256, 512, 1024), (0.0, 0.25, 0.5, 0.75, 1.0)
ANSWER_TOKENS = 6


def organism_needles(
    tokenizer: PreTrainedTokenizerFast,
    n: int = 24,
    seed: int = 0,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
) -> DataSet[NeedleSample]:
    """Hide runs of six different markers in generated prose; see ``Organism.needles``."""
    positive("n", n)
    least = 128
    if not lengths or min(lengths) < least or not depths or not all(0 <= depth <= 1 for depth in depths):
        raise DataError(
            f"lengths={list(lengths)}, depths={list(depths)}: "
            f"give lengths of at least {least} tokens and depths from 0 to 1."
        )
    cells = [(length, depth) for depth in depths for length in lengths]
    names = sorted(SUBJECTS)
    samples = [
        _sample(tokenizer, names[i % len(names)], i, *cells[i % len(cells)], Random(f"organism/{seed}/{i}"))
        for i in range(n)
    ]
    parameters = {
        "n": n,
        "seed": seed,
        "lengths": list(lengths),
        "depths": list(depths),
        "haystack": GeneratedProse.name,
    }
    return DataSet("needles", samples, parameters)


def _sample(
    tokenizer: PreTrainedTokenizerFast, source: str, index: int, length: int, depth: float, rng: Random
) -> NeedleSample:
    lead, question = SUBJECTS[source]
    answer = " ".join(rng.sample(MARKERS, ANSWER_TOKENS))
    needle = f"{lead}: {answer}."
    frame = len(tokenizer(BASE.replace("{haystack}", " ").format(needle=needle, question=question))["input_ids"])
    pieces, sizes = fill(GeneratedProse(), tokenizer, rng, length - frame, frozenset(MARKERS))
    split = split_at(sizes, depth)
    return NeedleSample(
        id=f"needle-{index:04d}-{source}-{length}-{depth:.2f}",
        source=source,
        before="".join(pieces[:split]),
        needle=needle,
        after=" " + "".join(pieces[split:]).rstrip() if pieces[split:] else "",
        question=question,
        answer=answer,
        chat=False,
        max_new_tokens=ANSWER_TOKENS + 4,
        factors={"length": length, "depth": depth},
    )
