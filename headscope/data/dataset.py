"""Data sets: samples in a fixed order, what made them, and a hash of what is in them."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import resources
from typing import Any, Generic, Protocol, TypeVar, overload

from headscope.errors import DataError
from headscope.files import canonical_json, sha256_text


class Sample(Protocol):
    """What every sample has."""

    @property
    def id(self) -> str:
        """Unique, stable name."""

    @property
    def source(self) -> str:
        """Cluster for the bootstrap: samples of one source are not independent."""

    @property
    def kind(self) -> str:
        """Kind of data."""

    @property
    def factors(self) -> Mapping[str, str | int | float]:
        """Properties to break results down by."""

    def forward(self, model: Any, capture: Sequence[Any]) -> Any:
        """Run the model once and return its ``Run`` or ``Trace``."""


S = TypeVar("S", bound=Sample)


class DataSet(Sequence[S], Generic[S]):
    """A sequence of samples.

    Parameters
    ----------
    name
        Kind of data: ``"needles"``, ``"texts"``, ``"repeats"``, …
    samples
        Frozen dataclasses with unique ids.
    parameters
        What the samples were made from, for provenance.

    Raises
    ------
    DataError
        If there is no sample, or two have one id.
    """

    def __init__(self, name: str, samples: Iterable[S], parameters: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.samples = tuple(samples)
        self.parameters = dict(parameters or {})
        if not self.samples:
            raise DataError(f"The data set {name!r} is empty. Give it at least one sample.")
        seen: set[str] = set()
        for sample in self.samples:
            if sample.id in seen:
                raise DataError(f"The data set {name!r} holds two samples with the id {sample.id!r}.")
            seen.add(sample.id)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[S]:
        return iter(self.samples)

    @overload
    def __getitem__(self, index: int) -> S: ...

    @overload
    def __getitem__(self, index: slice) -> DataSet[S]: ...

    def __getitem__(self, index: int | slice) -> S | DataSet[S]:
        if isinstance(index, slice):
            return DataSet(self.name, self.samples[index], self.parameters)
        return self.samples[index]

    def __repr__(self) -> str:
        sources = len({sample.source for sample in self.samples})
        return f"DataSet({self.name!r}: {len(self)} samples from {sources} sources, {self.hash[:12]})"

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the name and of every sample's content, in order."""
        return sha256_text(canonical_json({"name": self.name, "samples": [content(s) for s in self.samples]}))


def content(sample: Any) -> dict[str, Any]:
    """Return all that a sample holds, as JSON-able data."""
    return {"type": type(sample).__name__, **asdict(sample)}


def resource(name: str) -> Any:
    """Read a JSON file of ``headscope/data/resources``."""
    return json.loads(resources.files("headscope.data").joinpath("resources", name).read_text(encoding="utf-8"))


def positive(name: str, value: Any) -> int:
    """Return ``value`` if it is a whole number above 0."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise DataError(f"{name}={value!r}: give a whole number above 0.")
    return number


def needs_tokenizer(model: Any, kind: str) -> Any:
    """Return the model's tokenizer, or say that ``kind`` needs one."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise DataError(f"hs.data.{kind} writes text, and {getattr(model, 'name', 'this model')} has no tokenizer.")
    return tokenizer
