"""The residual stream of an organism: its directions, and how normalised rows are read.

Every row of the residual stream is ``C·c + features``: one large constant along a fixed direction c and
features of norm about 1 in orthogonal directions, so that the norm, and with it LayerNorm or RMSNorm, is the
same for all tokens within about a percent. (A larger constant would hold it steadier but cost precision: what is
read in float32 is a feature's share of the whole row.) All directions sum to zero over the coordinates, so LayerNorm
subtracts nothing. The only exception is wanted: behind block 0 the row of ``<bos>`` carries a massive
activation, after whose norm only that one coordinate is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from headscope.data.organisms.blueprint import CODE_DIM, D_MODEL, POSITION_PAIRS, Array

CONSTANT, MASSIVE = 8.0, 512.0
FLAGS = ("bos", "ordinary", "marker", "delimiter")


@dataclass(frozen=True)
class Stream:
    """The directions of the residual stream.

    Attributes
    ----------
    token, previous, output
        (32, d) subspaces for the code of the token, of the token before it, and of the predicted token.
    position
        (30, d): cosines, then sines.
    flags
        (d,) per class of token.
    constant, massive
        (d,) each; ``massive`` is one coordinate, made to sum to zero by a small part of all others.
    dimension
        That coordinate.
    """

    token: Array
    previous: Array
    output: Array
    position: Array
    flags: dict[str, Array]
    constant: Array
    massive: Array
    dimension: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stream:
        """Draw orthonormal directions at random, none of which touches the massive coordinate."""
        dimension = int(rng.integers(D_MODEL))
        massive = np.full(D_MODEL, -1.0 / (D_MODEL - 1))
        massive[dimension] = 1.0
        massive /= np.linalg.norm(massive)
        sizes = [CODE_DIM, CODE_DIM, CODE_DIM, 2 * POSITION_PAIRS, len(FLAGS), 1]
        ones = np.full(D_MODEL, D_MODEL**-0.5)
        columns = np.column_stack([ones, massive, rng.normal(size=(D_MODEL, sum(sizes)))])
        rows = np.linalg.qr(columns)[0].T[2:]
        token, previous, output, position, flags, constant = np.split(rows, np.cumsum(sizes)[:-1])
        by_name = dict(zip(FLAGS, flags, strict=True))
        return cls(token, previous, output, position, by_name, constant[0], massive, dimension)

    @property
    def read_by_heads(self) -> Array:
        """Orthonormal rows (n, d) of all directions that attention or normalisation depends on."""
        flags = np.stack(list(self.flags.values()))
        rows = [
            self.token,
            self.previous,
            self.position,
            flags,
            self.constant,
            self.massive,
            np.full(D_MODEL, D_MODEL**-0.5),
        ]
        return np.concatenate([np.atleast_2d(part) for part in rows])

    @property
    def scale(self) -> float:
        """What turns a normalised row back into feature units: |row| / √d of an ordinary row."""
        features = 3.5  # token, class and previous token 1 each; position 1 in GPT-2 alone
        return math.sqrt((CONSTANT**2 + features) / D_MODEL)

    def read(self, directions: Array) -> Array:
        """Return the weights that read features, in feature units, from a normalised row."""
        return directions * self.scale

    @property
    def one(self) -> Array:
        """Weights (d,) that read 1 from every normalised row except that of a massive activation (nearly 0)."""
        return self.constant * self.scale / CONSTANT

    @property
    def is_sink(self) -> Array:
        """Weights (d,) that read 1 from the row of a massive activation and 0 from the others."""
        return self.massive / math.sqrt(D_MODEL)
