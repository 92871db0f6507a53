"""What a method does to text that has nothing to do with the task: perplexity drift.

The neutral text stands behind a prompt of the task. So a method that acts on a region of the prompt has that region,
the text is treated as generated tokens are, and one number means the same for all methods. The text is decoded token by
token, as generation would: what a method finds in the prompt stays found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.errors import DataError
from headscope.interventions.reading import Reading

if TYPE_CHECKING:
    from headscope.models.prompt import Prompt

TEXTS = 14
"""Neutral texts, two of each of the seven domains of ``headscope.data.texts``."""
LENGTH = 64
"""Tokens of each that are scored."""
LEAST = 16
"""Fewest tokens worth scoring."""


@dataclass(frozen=True)
class Neutral:
    """A neutral text behind a prompt of the task, as tokens."""

    id: str
    prompt: Prompt
    ids: tuple[int, ...]


def neutral_texts(model: Any, prompts: Sequence[Prompt], seed: int = 0) -> list[Neutral] | str:
    """Return neutral texts behind prompts of the task, or why drift cannot be measured."""
    from headscope.data import texts

    if model.hf.config.is_encoder_decoder:
        return "an encoder-decoder reads no text behind its prompt"
    chosen = [prompts[i % len(prompts)] for i in range(TEXTS)]
    longest = max(map(len, chosen))
    room = LENGTH if model.spec.n_ctx is None else min(LENGTH, int(model.spec.n_ctx) - longest)
    if room < LEAST:
        return f"behind prompts of {longest} tokens the context of {model.spec.n_ctx} has no room for neutral text"
    try:
        data = texts(model, n=TEXTS, length=room + 4, seed=seed)  # a text may come out 3 tokens short
    except DataError as error:
        return f"no neutral text can be made ({error})"
    found = []
    for prompt, sample in zip(chosen, data, strict=True):
        ids = model.tokenizer.encode(f"\n\n{sample.text}", add_special_tokens=False)
        found.append(Neutral(sample.id, prompt, tuple(int(i) for i in ids[:room])))
    return found


def losses(model: Any, data: Sequence[Neutral], *, batch: int = 8) -> NDArray[np.float64]:
    """Mean negative log-likelihood per token of each text under the edits in force, in nats (texts,)."""
    order = sorted(range(len(data)), key=lambda i: (len(data[i].prompt), i))
    found = np.empty(len(data))
    for start in range(0, len(data), batch):
        part = order[start : start + batch]
        longest = max(len(data[i].ids) for i in part)
        reading = Reading(model, [data[i].prompt for i in part], longest + 1)
        logits, branch = reading.logits, reading.branch()
        total = np.zeros(len(part))
        for at in range(longest):
            logs = logits.cpu().double().log_softmax(-1)
            for row, i in enumerate(part):
                if at < len(data[i].ids):
                    total[row] -= float(logs[row, data[i].ids[at]])
            if at < longest - 1:
                logits = branch.step([data[i].ids[min(at, len(data[i].ids) - 1)] for i in part])
        found[part] = total / [len(data[i].ids) for i in part]
    return found
