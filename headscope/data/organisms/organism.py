"""An organism: a model whose heads are known, with its tokenizer, its ground truth and its data."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from headscope.data.organisms.blueprint import COUNTS, N_CTX, Kind, Pair, arrange
from headscope.data.organisms.checkpoint import build_model
from headscope.data.organisms.needles import DEPTHS, LENGTHS, organism_needles
from headscope.data.organisms.stream import MASSIVE
from headscope.data.organisms.vocabulary import Vocabulary, build_tokenizer, build_vocabulary
from headscope.data.organisms.weights import compile_weights
from headscope.errors import DataError, OutputError, nearest
from headscope.files import canonical_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from headscope.data.dataset import DataSet
    from headscope.data.needles import NeedleSample

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Organism:
    """A hand-compiled transformer and the truth about it.

    Attributes
    ----------
    kind, seed
        What it was made from; equal values give equal weights.
    model
        ``GPT2LMHeadModel`` or ``LlamaForCausalLM``, float32, 6 layers × 6 heads, 2048 positions.
    tokenizer
        Fast tokenizer without unknown tokens; puts ``<bos>`` first. The planted heads rely on ``<bos>`` at the start.
    vocabulary
        Ids of the token classes.
    planted
        (layer, head) pairs of each role: ``previous``, ``induction``, ``duplicate``, ``sink``, ``later_sink``,
        ``retrieval``, ``distractor``. Every head has exactly one role.
    planted_massive
        ``dimension`` of the residual stream that is massive behind block 0, ``token`` (id of ``<bos>``), its
        ``position`` 0, ``layer`` and MLP ``unit`` that write it, and its ``value``.
    expected
        What each probe must select, see `expected_heads`.
    """

    kind: Kind
    seed: int
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerFast = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    planted: dict[str, list[Pair]]
    planted_massive: dict[str, int | float]
    expected: dict[str, set[Pair]]

    @property
    def name(self) -> str:
        """``organism-<kind>-<seed>``."""
        return f"organism-{self.kind}-{self.seed}"

    def needles(
        self, n: int = 24, seed: int = 0, lengths: Sequence[int] = LENGTHS, depths: Sequence[float] = DEPTHS
    ) -> DataSet[NeedleSample]:
        """Hide runs of markers in generated prose, as needles that the organism can answer.

        Parameters
        ----------
        n
            Number of samples; they go round sixteen sources and the grid of lengths × depths.
        lengths
            Tokens of the whole prompt, about.
        depths
            Places of the needle, from 0, the start of the haystack, to 1, its end.

        Raises
        ------
        DataError
            If a length is below 128 or a depth outside 0 to 1.
        """
        return organism_needles(self.tokenizer, n, seed, lengths, depths)

    def truth(self) -> dict[str, Any]:
        """Return the ground truth as plain JSON values, as `save` writes it."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            "planted": {role: [list(pair) for pair in pairs] for role, pairs in self.planted.items()},
            "planted_massive": self.planted_massive,
            "expected": {probe: sorted(map(list, pairs)) for probe, pairs in self.expected.items()},
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write an ordinary checkpoint (config, safetensors, tokenizer) and the truth in ``organism.json``.

        Raises
        ------
        OutputError
            If the folder exists and is not empty, or cannot be written. Nothing is left half-written.
        """
        target = Path(folder)
        try:
            if target.exists() and any(target.iterdir()):
                raise OutputError(f"Cannot save {self.name} to {target}: it is not empty. Choose a new folder.")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
                whole = Path(temporary) / "whole"
                self.model.save_pretrained(whole)
                self.tokenizer.save_pretrained(whole)
                write_text(whole / "organism.json", canonical_json(self.truth()))
                whole.replace(target)
        except OSError as error:
            raise OutputError(
                f"Cannot save {self.name} to {target}: {error.strerror or error}. "
                "Choose a folder that is writable and has room."
            ) from error
        return target


def expected_heads(planted: dict[str, list[Pair]]) -> dict[str, set[Pair]]:
    """Return the heads that each probe must select, by probe name.

    * ``previous``, ``duplicate``: the planted heads. ``echo`` (attention to earlier copies of the current token
      in repeated random blocks) finds the duplicate-token heads.
    * ``induction`` on random tokens: the induction heads. Retrieval heads fire on markers alone, which are one in
      twenty of the vocabulary.
    * ``retrieval`` on `Organism.needles`, whose answers are runs of markers: the retrieval heads. Induction heads do
      not read markers.
    * ``sinks`` on English text: the sink heads; the later-sink heads, all of whose mass is on ``<bos>`` before the
      first newline and still a third of it behind the fourth; and the retrieval heads, which are *dormant* there:
      with no marker to read they rest on ``<bos>``. Induction and duplicate-token heads rest there only at tokens
      that have not occurred before, a minority in any text of some hundred tokens. ``sink-tokens`` selects the same
      heads: for all of them the value of ``<bos>`` is drained.
    """
    pairs = {role: set(slots) for role, slots in planted.items()}
    resting = pairs["sink"] | pairs["later_sink"] | pairs["retrieval"]
    return {
        "previous": pairs["previous"],
        "duplicate": pairs["duplicate"],
        "echo": pairs["duplicate"],
        "induction": pairs["induction"],
        "retrieval": pairs["retrieval"],
        "sinks": resting,
        "sink-tokens": resting,
    }


def organism(kind: str = "gpt2", seed: int = 0) -> Organism:
    """Compile a transformer with known heads.

    Parameters
    ----------
    kind
        ``gpt2`` (learned positions, LayerNorm) or ``llama`` (rotary positions, RMSNorm, two query heads per
        key-value head).
    seed
        Decides which slots hold which role, all directions of the residual stream, and the distractors.

    Raises
    ------
    DataError
        For an unknown kind or a negative seed.
    """
    known = {name: name for name in KINDS}
    if kind not in known:
        raise DataError(f"There is no organism of kind {kind!r}.{nearest(kind, KINDS)}")
    if seed < 0:
        raise DataError(f"The seed of an organism must be 0 or more, not {seed}.")
    rng = np.random.default_rng([seed, KINDS.index(known[kind])])
    vocabulary = build_vocabulary()
    plans = arrange(known[kind], rng)
    weights = compile_weights(known[kind], plans, vocabulary, rng)
    planted: dict[str, list[Pair]] = {role: [] for role in (*COUNTS, "distractor")}
    for slot, plan in plans.items():
        planted[plan.role].append(slot)
    return Organism(
        kind=known[kind],
        seed=seed,
        model=build_model(known[kind], weights, vocabulary),
        tokenizer=build_tokenizer(vocabulary, N_CTX),
        vocabulary=vocabulary,
        planted=planted,
        planted_massive={
            "dimension": weights.stream.dimension,
            "token": vocabulary.bos,
            "position": 0,
            "layer": 0,
            "unit": weights.unit,
            "value": MASSIVE,
        },
        expected=expected_heads(planted),
    )
