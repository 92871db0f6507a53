"""What an organism is made of: its features, its heads, and which slot holds which head.

A head's attention score is a sum of three terms, each a plain number per (query, key) pair:

* *match*: ``gain · ⟨code(token at q), code(content at k)⟩``, where the content of a key is its own token or,
  once a previous-token head has written it, the token before it;
* *bias*: a number per class of key (``ordinary``, ``marker``, ``delimiter``, ``bos``);
* *kernel*: a function of the distance q − k, a sum of cosines over the rotary frequencies.

Both architectures compile the same plans; see ``docs/organisms.md`` for the algebra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["gpt2", "llama"]
Pair = tuple[int, int]

N_LAYERS, N_HEADS, HEAD_DIM, D_MODEL, D_MLP, N_CTX = 6, 6, 64, 384, 64, 2048
KV_HEADS: dict[str, int] = {"gpt2": 6, "llama": 3}
ROPE_THETA = 1e9
POSITION_PAIRS = 15
"""Of the 32 rotary pairs the first 15 turn and carry positions; the last 17 turn by less than 0.13 radians
over the whole context and carry content."""
FREQUENCIES: Array = ROPE_THETA ** (-np.arange(POSITION_PAIRS) * 2.0 / HEAD_DIM)
CODE_DIM = 32

COUNTS = {"previous": 1, "induction": 2, "duplicate": 1, "sink": 2, "later_sink": 1, "retrieval": 2}
LAYERS = {
    "previous": range(2),
    "induction": range(2, N_LAYERS),
    "retrieval": range(2, N_LAYERS),
    "duplicate": range(2, N_LAYERS),
    "sink": range(1, N_LAYERS),
    "later_sink": range(1, N_LAYERS),
}
"""Layers a role may live in: composition needs the previous-token head first, the duplicate-token head the norm of
rows that it has written to, and the attention sink appears in the residual stream after the first block."""

Style = Literal["plain", "uniform", "random", "local"]


@dataclass(frozen=True)
class HeadPlan:
    """One head, in numbers.

    Attributes
    ----------
    role
        Key of ``Organism.planted``.
    style
        ``plain`` for planted heads; else the kind of distractor.
    content
        What the keys are matched on: the token at the key, or the token before it.
    match
        Gain of the match term (natural-log units, like every score here).
    bias
        Score per feature of the key.
    kernel
        Weight of each rotary pair in the distance term, ``Σ_j kernel[j] cos(θ_j (q − k − offset))``.
    offset
        Distance at which the kernel peaks.
    writes, gain
        Subspace that receives the code of the attended token, and how strongly; ``None`` writes noise.
    """

    role: str
    style: Style = "plain"
    content: Literal["token", "previous"] = "token"
    match: float = 0.0
    bias: dict[str, float] = field(default_factory=dict)
    kernel: tuple[float, ...] = (0.0,) * POSITION_PAIRS
    offset: float = 0.0
    writes: Literal["previous", "output"] | None = None
    gain: float = 0.0


def spike(gap: float) -> tuple[tuple[float, ...], float, float, float]:
    """Return kernel weights whose value at distance 0 exceeds every other distance by ``gap``.

    The weights fall off geometrically, 0.7 per rotary pair, which keeps the value at every distance of
    the context apart from the peak.

    Returns
    -------
    weights, peak, runner_up, lowest
        The weights per pair and the kernel's value at 0, its largest and its smallest value elsewhere.
    """
    shape = 0.7 ** np.arange(POSITION_PAIRS)
    values = np.cos(np.outer(np.arange(N_CTX), FREQUENCIES)) @ shape
    scale = gap / (values[0] - values[1:].max())
    weights = tuple(float(weight) for weight in scale * shape)
    return weights, float(scale * values[0]), float(scale * values[1:].max()), float(scale * values[1:].min())


def planted_heads() -> dict[str, HeadPlan]:
    """Return the plan of each planted role.

    Intended keys score some 12 above all other keys, less 3 for the spread of norms, so that 98 % or more of the
    mass is where it should be.
    """
    weights, peak, runner_up, _ = spike(gap=24.0)
    previous = HeadPlan(
        "previous",
        kernel=weights,
        offset=1.0,
        # Behind the first block the sink's key has lost its position; half way between peak and runner-up
        # it wins for the second token, whose previous token it is, and for no other.
        bias={"bos": (peak + runner_up) / 2},
        writes="previous",
        gain=1.0,
    )
    weights, peak, runner_up, lowest = spike(gap=26.0)
    repulsion = tuple(-weight for weight in weights)
    # self: match − peak < sink: match − peak + 13 < earlier duplicates: at least match − runner_up;
    # codes of different tokens overlap by at most one half.
    match = 2 * (peak - 13 - lowest + 10)
    return {
        "previous": previous,
        "duplicate": HeadPlan("duplicate", match=match, kernel=repulsion, bias={"bos": match - peak + 13}),
        "induction": HeadPlan(
            "induction",
            content="previous",
            match=48.0,
            bias={"ordinary": 24.0, "bos": 60.0},
            writes="output",
            gain=0.25,
        ),
        "retrieval": HeadPlan(
            "retrieval", content="previous", match=48.0, bias={"marker": 24.0, "bos": 60.0}, writes="output", gain=0.5
        ),
        "sink": HeadPlan("sink", bias={"bos": 30.0}),
        "later_sink": HeadPlan("later_sink", bias={"bos": 30.0 + math.log(2.0), "delimiter": 30.0}),
    }


def distractor(rng: np.random.Generator) -> HeadPlan:
    """Return a head that attends everywhere, by random preference between tokens, or to its neighbourhood."""
    styles: tuple[Style, ...] = ("uniform", "random", "local")
    style = styles[int(rng.integers(len(styles)))]
    if style != "local":
        return HeadPlan("distractor", style)
    kernel = np.zeros(POSITION_PAIRS)
    kernel[2:9] = rng.uniform(1.0, 2.0, size=7)
    return HeadPlan("distractor", style, kernel=tuple(map(float, kernel)), offset=float(rng.integers(2, 6)))


def arrange(kind: Kind, rng: np.random.Generator) -> dict[Pair, HeadPlan]:
    """Return the plan of every (layer, head), planted roles in random slots.

    Heads that share keys and values hold at most one planted role between them.
    """
    plans = planted_heads()
    n_groups = KV_HEADS[kind]
    group_size = N_HEADS // n_groups
    taken: dict[Pair, HeadPlan] = {}
    groups: set[Pair] = set()
    for role, count in COUNTS.items():
        for _ in range(count):
            free = [(layer, group) for layer in LAYERS[role] for group in range(n_groups)]
            free = [slot for slot in free if slot not in groups]
            layer, group = free[int(rng.integers(len(free)))]
            groups.add((layer, group))
            taken[layer, group * group_size + int(rng.integers(group_size))] = plans[role]
    slots = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    return {slot: taken[slot] if slot in taken else distractor(rng) for slot in slots}


def token_codes(n: int, rng: np.random.Generator) -> Array:
    """Return ``n`` unit vectors of 32 dimensions whose pairwise products are at most one half in size.

    They are words of the second-order Reed-Muller code RM(2, 5) without the constant term: the signs of
    different quadratic forms in five bits, which differ in 8 to 24 of 32 places.

    Returns
    -------
    array (n, 32)
    """
    bits = (np.arange(CODE_DIM)[:, None] >> np.arange(5)) & 1
    pairs = [(i, j) for i in range(5) for j in range(i, 5)]
    monomials = np.stack([bits[:, i] * bits[:, j] for i, j in pairs])
    chosen = rng.choice(2 ** len(pairs), size=n, replace=False)
    coefficients = (chosen[:, None] >> np.arange(len(pairs))) & 1
    signs: Array = 1.0 - 2.0 * ((coefficients @ monomials) % 2)
    return signs / math.sqrt(CODE_DIM)
