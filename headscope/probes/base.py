"""What a probe is: parameters as data, one pure observation per sample, one summary over all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np

from headscope.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.requests import Request
    from headscope.probes.scores import HeadScores

Observation: TypeAlias = Mapping[str, np.ndarray]
"""Small arrays that say all that a probe needs to know of one sample: floats, integers, booleans or strings."""

Factor: TypeAlias = str | int | float


class Progress(Protocol):
    """Told after every finished step: ``progress("needles", done, total)``."""

    def __call__(self, task: str, done: int, total: int, /) -> None:
        """Show that ``done`` of ``total`` steps of ``task`` are finished."""


class Sample(Protocol):
    """One sample of a data set: it knows how it is run once, so that probes can share the forward pass."""

    @property
    def id(self) -> str:
        """Unique, stable name."""

    @property
    def source(self) -> str:
        """Cluster for the bootstrap."""

    @property
    def kind(self) -> str:
        """Kind of data, such as ``"needles"``."""

    @property
    def factors(self) -> Mapping[str, Factor]:
        """Properties to break results down by."""

    def forward(self, model: Any, capture: list[Request]) -> Any:
        """Run the sample once and capture what is asked: a ``Run`` or a ``Trace``."""


class DataSet(Protocol):
    """Samples with a name, the parameters that made them, and a hash of their content."""

    name: str
    parameters: Any

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical content."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class SampleMeta:
    """What is known of a sample beside its observation.

    Parameters
    ----------
    index
        Place in the data set; summaries receive observations in this order.
    id
        Unique, stable name.
    source
        Cluster for the bootstrap: samples of one source are not independent.
    kind
        Kind of data: ``"needles"``, ``"texts"``, ``"repeats"``, …
    factors
        Properties of the sample to break results down by, such as length, depth, domain.
    """

    index: int
    id: str
    source: str
    kind: str
    factors: Mapping[str, Factor] = field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample, index: int) -> SampleMeta:
        """Describe ``sample``, at place ``index`` of its data set."""
        return cls(index, str(sample.id), str(sample.source), str(sample.kind), dict(sample.factors))


@dataclass(frozen=True)
class Context:
    """What a summary may know beside the observations.

    Parameters
    ----------
    n_layers, n_heads
        Size of the map of heads.
    provenance
        Model, data, versions and machine; the probe's own part is added by ``scores``.
    seed
        Seed of the bootstrap and of the permutations.
    spec
        The model's ``ModelSpec``.
    """

    n_layers: int
    n_heads: int
    provenance: Mapping[str, Any]
    seed: int = 0
    spec: Any = None

    def scores(
        self,
        probe: Probe,
        table: pd.DataFrame,
        details: Mapping[str, pd.DataFrame] | None = None,
        notes: Sequence[str] = (),
    ) -> HeadScores:
        """Bind a table of heads to the probe and the provenance of this run."""
        from headscope.probes.scores import HeadScores

        provenance = {
            **self.provenance,
            "probe": probe.name,
            "parameters": probe.parameters(),
            "notes": [*self.provenance.get("notes", ()), *notes],
        }
        return HeadScores(table=table, probe=probe.name, provenance=provenance, details=dict(details or {}))


@dataclass(frozen=True)
class Probe(ABC):
    """Base of all probes: a frozen dataclass whose fields are the method's parameters.

    A subclass names itself and its kind of data, asks for captures, turns one run into small arrays, and turns
    all of those into scores. ``observe`` is pure and deterministic: the arrays are stored, and a resumed run must
    end in the same bytes as an undisturbed one. Floats in an observation must be finite, except under keys named
    in ``may_be_nan``; a trial that does not count says so with a boolean array of its own.
    """

    name: ClassVar[str]
    data: ClassVar[str]
    may_be_nan: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def requests(self, spec: Any) -> list[Request]:
        """Return the captures that ``observe`` reads, given the model's ``ModelSpec``."""

    @abstractmethod
    def observe(self, run: Any, sample: Any) -> Observation:
        """Reduce one sample's ``Run`` or ``Trace`` to small arrays."""

    @abstractmethod
    def summarise(self, observations: list[tuple[SampleMeta, Observation]], context: Context) -> HeadScores:
        """Turn the observations of all samples, in sample order, into scores."""

    def parameters(self) -> dict[str, Any]:
        """Fields as JSON-able values, for provenance and for the identity of a run."""
        return {f.name: jsonable(getattr(self, f.name)) for f in fields(self)}

    def dataset(self, model: Any) -> DataSet:
        """Make the data that ``rank`` uses when it is given none: ``headscope.data.<kind>(model)``."""
        import headscope.data as data

        make = getattr(data, self.data, None)
        if make is None:
            raise DataError(f"There is no default data of kind {self.data!r} for the probe {self.name!r}: pass data=.")
        made: DataSet = make(model)
        return made

    def rank(
        self,
        model: Any,
        data: DataSet | None = None,
        *,
        out: str | Path | None = None,
        progress: Progress | None = None,
        fresh: bool = False,
        seed: int = 0,
    ) -> HeadScores:
        """Score every head of ``model``; see ``headscope.probes.runner.rank_all`` for ``out``, resume and errors."""
        from headscope.probes.runner import rank_all

        chosen = self.dataset(model) if data is None else data
        return rank_all([self], model, {self.data: chosen}, out=out, progress=progress, fresh=fresh, seed=seed)[
            self.name
        ]


def jsonable(value: Any) -> Any:
    """Return ``value`` in types that JSON knows: mappings and sequences recursively, numpy scalars as numbers."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(v) for v in value), key=repr)
    if isinstance(value, (list, tuple, range)):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
