"""From plans to matrices: what each head reads and writes, still independent of the classes of transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headscope.data.organisms.blueprint import (
    CODE_DIM,
    D_MLP,
    D_MODEL,
    FREQUENCIES,
    HEAD_DIM,
    KV_HEADS,
    N_CTX,
    N_HEADS,
    N_LAYERS,
    POSITION_PAIRS,
    Array,
    HeadPlan,
    Kind,
    Pair,
    token_codes,
)
from headscope.data.organisms.stream import CONSTANT, MASSIVE, Stream

if TYPE_CHECKING:
    from headscope.data.organisms.vocabulary import Vocabulary

LOGIT_GAIN, EOS_LOGIT = 20.0, 3.0
NOISE = 0.1
CONTENT_DIMS = [*range(POSITION_PAIRS, HEAD_DIM // 2), *range(HEAD_DIM // 2 + POSITION_PAIRS, HEAD_DIM)]
"""Dimensions of a head that carry content: both halves of the slow rotary pairs; 32 for codes, one for biases."""
COSINE_DIMS = list(range(POSITION_PAIRS))
SINE_DIMS = [HEAD_DIM // 2 + j for j in COSINE_DIMS]


@dataclass(frozen=True)
class Codebook:
    """The tokens' codes.

    Attributes
    ----------
    codes
        (V, 32) unit vectors.
    delimiter
        (32,) the code of the newline.
    plain
        (32, 32) projection that no marker's code survives.
    """

    codes: Array
    delimiter: Array
    plain: Array

    @classmethod
    def draw(cls, vocabulary: Vocabulary, rng: np.random.Generator) -> Codebook:
        """Give every token a code at random."""
        codes = token_codes(len(vocabulary), rng)
        basis = np.linalg.svd(codes[list(vocabulary.marker)])[2][: len(vocabulary.marker)]
        return cls(codes, codes[vocabulary.delimiter], np.eye(CODE_DIM) - basis.T @ basis)


@dataclass(frozen=True)
class Layer:
    """Weights of one block as (outputs, inputs) matrices; ``up`` is Llama's alone, GPT-2's MLP reads with ``gate``."""

    q: Array
    k: Array
    v: Array
    o: Array
    gate: Array
    up: Array
    down: Array


def query(plan: HeadPlan, stream: Stream, book: Codebook, kind: Kind, rng: np.random.Generator) -> Array:
    """Return the query weights (64, d) of one head, with the 1/√64 of attention already undone."""
    weights = np.zeros((HEAD_DIM, D_MODEL))
    token = stream.read(stream.token)
    code_dims, bias_dim = CONTENT_DIMS[:CODE_DIM], CONTENT_DIMS[CODE_DIM]
    if plan.style == "random":
        # One part is a taste for certain keys, one depends on the pair of tokens. Neither is for markers: by luck a
        # head could have a taste for those that a needle consists of, and would look like a weak retrieval head.
        taste = book.plain * math.sqrt(CODE_DIM / np.trace(book.plain))
        weights[code_dims] = taste @ (
            rng.normal(size=(CODE_DIM, CODE_DIM)) @ token + np.outer(0.5 * rng.normal(size=CODE_DIM), stream.one)
        )
    else:
        weights[code_dims] = plan.match * token
    weights[bias_dim] = stream.one if plan.bias else 0.0
    kernel, turn = np.array(plan.kernel), FREQUENCIES * plan.offset
    if kind == "llama":
        weights[COSINE_DIMS] = np.outer(kernel * np.cos(turn), stream.one)
        weights[SINE_DIMS] = np.outer(-kernel * np.sin(turn), stream.one)
    else:
        cosine, sine = np.split(stream.read(stream.position) * math.sqrt(POSITION_PAIRS), 2)
        cos, sin = (kernel * np.cos(turn))[:, None], (kernel * np.sin(turn))[:, None]
        weights[COSINE_DIMS] = cos * cosine + sin * sine
        weights[SINE_DIMS] = cos * sine - sin * cosine
    return weights * math.sqrt(HEAD_DIM)


def key(plan: HeadPlan, stream: Stream, kind: Kind) -> Array:
    """Return the key weights (64, d) of one head, or of a group of heads led by the head of ``plan``."""
    weights = np.zeros((HEAD_DIM, D_MODEL))
    weights[CONTENT_DIMS[:CODE_DIM]] = stream.read(stream.previous if plan.content == "previous" else stream.token)
    for name, bias in plan.bias.items():
        reader = stream.is_sink if name == "bos" else stream.read(stream.flags[name])
        weights[CONTENT_DIMS[CODE_DIM]] += bias * reader
    if kind == "llama":
        weights[COSINE_DIMS] = stream.one  # the rotary embedding turns it by the position
    else:
        weights[COSINE_DIMS + SINE_DIMS] = stream.read(stream.position) * math.sqrt(POSITION_PAIRS)
    return weights


def value(plan: HeadPlan, stream: Stream, book: Codebook, rng: np.random.Generator) -> Array:
    """Return the value weights (64, d): the token's code, then a random view of it."""
    code = stream.read(stream.token)
    if plan.role == "later_sink":  # the delimiter's value is drained to a tenth
        code = code - 0.9 * np.outer(book.delimiter, book.delimiter @ code)
    return np.concatenate([code, rng.normal(size=(HEAD_DIM - CODE_DIM, CODE_DIM)) / math.sqrt(CODE_DIM) @ code])


def output(plan: HeadPlan, stream: Stream, rng: np.random.Generator) -> Array:
    """Return the output weights (d, 64): a copy of the code into a subspace, or faint noise everywhere."""
    if plan.writes is None:
        return faint(HEAD_DIM, stream, rng)
    weights = np.zeros((D_MODEL, HEAD_DIM))
    weights[:, :CODE_DIM] = plan.gain * (stream.previous if plan.writes == "previous" else stream.output).T
    return weights


def faint(n: int, stream: Stream, rng: np.random.Generator) -> Array:
    """Return ``n`` random columns (d, n) of norm below 0.1, in the directions that no planted head reads.

    They reach the logits, through the ``output`` subspace, but not the patterns of the planted heads, whose
    large gains would make much of little noise.
    """
    noise = rng.normal(size=(D_MODEL, n))
    noise -= stream.read_by_heads.T @ (stream.read_by_heads @ noise)
    return NOISE * noise / math.sqrt(D_MODEL)


def block(
    layer: int,
    plans: dict[Pair, HeadPlan],
    stream: Stream,
    kind: Kind,
    book: Codebook,
    unit: int,
    rng: np.random.Generator,
) -> Layer:
    """Return the weights of one block; in block 0, MLP unit ``unit`` writes the massive activation at ``<bos>``."""
    heads = [plans[layer, head] for head in range(N_HEADS)]
    size = N_HEADS // KV_HEADS[kind]
    groups = [heads[start : start + size] for start in range(0, N_HEADS, size)]
    leads = [next((plan for plan in group if plan.style == "plain"), group[0]) for group in groups]

    reader = np.concatenate([stream.read(stream.token), stream.one[None]])
    gate, up = rng.normal(size=(2, D_MLP, len(reader))) @ reader
    down = faint(D_MLP, stream, rng) / math.sqrt(D_MLP)
    if layer == 0:
        bos = stream.read(stream.flags["bos"])
        gate[unit] = 24.0 * bos - 12.0 * stream.one  # 12 at <bos>, −12 elsewhere, where the unit is silent
        up[unit] = bos if kind == "llama" else gate[unit]
        down[:, unit] = MASSIVE / 12.0 * stream.massive
    return Layer(
        q=np.concatenate([query(plan, stream, book, kind, rng) for plan in heads]),
        k=np.concatenate([key(plan, stream, kind) for plan in leads]),
        v=np.concatenate([value(plan, stream, book, rng) for plan in leads]),
        o=np.concatenate([output(plan, stream, rng) for plan in heads], axis=1),
        gate=gate,
        up=up,
        down=down,
    )


@dataclass(frozen=True)
class Weights:
    """All weights of an organism.

    Attributes
    ----------
    stream
        The directions that they are written in.
    embed, positions, unembed
        (V, d), (T, d) and (V, d); Llama ignores ``positions``.
    layers
        The blocks.
    unit
        The MLP unit of block 0 that writes the massive activation.
    """

    stream: Stream
    embed: Array
    positions: Array
    layers: list[Layer]
    unembed: Array
    unit: int


def compile_weights(
    kind: Kind, plans: dict[Pair, HeadPlan], vocabulary: Vocabulary, rng: np.random.Generator
) -> Weights:
    """Write down every weight of the organism in float64."""
    stream = Stream.draw(rng)
    book = Codebook.draw(vocabulary, rng)
    embed = book.codes @ stream.token + CONSTANT * stream.constant
    members = {
        "bos": [vocabulary.bos],
        "ordinary": list(vocabulary.ordinary),
        "marker": list(vocabulary.marker),
        "delimiter": [vocabulary.delimiter],
    }
    for name, ids in members.items():
        embed[ids] += stream.flags[name]
    angles = np.outer(np.arange(N_CTX), FREQUENCIES)
    positions = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) @ stream.position / math.sqrt(POSITION_PAIRS)
    unembed = LOGIT_GAIN * book.codes @ stream.read(stream.output)
    unembed[vocabulary.eos] += EOS_LOGIT * stream.one  # what the model says when no head has anything to copy
    unit = int(rng.integers(D_MLP))
    layers = [block(layer, plans, stream, kind, book, unit, rng) for layer in range(N_LAYERS)]
    return Weights(stream, embed, positions, layers, unembed, unit)
