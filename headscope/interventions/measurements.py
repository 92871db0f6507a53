"""Everything that an evaluation measures, from the store where it is there, else run and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headscope.errors import ModelError
from headscope.files import canonical_json, sha256_text
from headscope.interventions.answers import Forced, answer
from headscope.interventions.drift import Neutral, losses
from headscope.interventions.reading import Written
from headscope.interventions.variants import Variant

if TYPE_CHECKING:
    from headscope.interventions.training import Example
    from headscope.probes.base import Progress
    from headscope.probes.store import Store


@dataclass(frozen=True)
class Answered:
    """What a variant answers: candidates forced, and text where it was written."""

    forced: Forced
    written: tuple[Written, ...] | None = None

    def difference(self, other: Answered, data: Sequence[Example]) -> str | None:
        """Say where two variants that should be equal to the bit are not; None if they are."""
        for name in ("totals", "entropy", "greedy"):
            a, b = (np.asarray(getattr(x.forced, name), dtype=np.float64) for x in (self, other))
            rows = (a != b) & ~(np.isnan(a) & np.isnan(b))
            if rows.any():
                i = int(rows.reshape(len(a), -1).any(1).argmax())
                gap = float(np.nanmax(np.abs(a - b)))
                return f"{name} differ by up to {gap:.3g}, first at item {data[i].id!r}"
        if self.written is not None and other.written is not None and self.written != other.written:
            pairs = zip(self.written, other.written, strict=True)
            i = next(i for i, (one, two) in enumerate(pairs) if one != two)
            return f"item {data[i].id!r} is answered {self.written[i].text!r}, not {other.written[i].text!r}"
        return None


class Measurements:
    """Runs variants over items, each once.

    Parameters
    ----------
    items
        Items of the task that ``data`` was made from: they tell when an answer is over.
    limit
        Most tokens of a written answer.
    store
        Keeps what is finished: one shard for each variant and ``"forced"``, ``"written"`` or ``"drift"``.
    part
        Which of the stored run's items these are, where they are not all.
    """

    def __init__(
        self,
        model: Any,
        data: Sequence[Example],
        items: Sequence[Any],
        *,
        limit: int,
        batch: int,
        store: Store | None,
        progress: Progress | None,
        part: tuple[int, ...] | None = None,
    ) -> None:
        self.model, self.data, self.items = model, data, items
        self.limit, self.batch, self.store, self.progress = limit, batch, store, progress
        self._suffix = "" if part is None else "-" + sha256_text(canonical_json(part))[:16]
        self._held: dict[str, Answered] = {}
        self._losses: dict[str, NDArray[np.float64]] = {}

    def part(self, places: tuple[int, ...]) -> Measurements:
        """Return the same over some of the items; itself, if these are all."""
        if len(places) == len(self.data):
            return self
        return Measurements(
            self.model,
            [self.data[i] for i in places],
            [self.items[i] for i in places],
            limit=self.limit,
            batch=self.batch,
            store=self.store,
            progress=self.progress,
            part=places,
        )

    def answers(self, variants: Sequence[Variant], *, write: bool, stage: str = "") -> list[Answered]:
        """Return what variants answer, with text if ``write``; ``stage`` is what progress calls it."""
        total, done = len(variants) * len(self.data), 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            if self.progress is not None and stage:
                self.progress(stage, done, total)

        told(0)
        out = []
        for variant in variants:
            found = self._known(variant, write)
            if found is None:
                found = self._run(variant, write, told)
            else:
                told(len(self.data))
            self._held[variant.key] = found
            out.append(found)
        return out

    def _known(self, variant: Variant, write: bool) -> Answered | None:
        held = self._held.get(variant.key)
        if held is not None and (held.written is not None or not write):
            return held
        if self.store is None:
            return None
        forced, written = self.store.read("forced", variant.key + self._suffix), None
        if forced is None:
            return None
        if write:
            texts = self.store.read("written", variant.key + self._suffix)
            if texts is None:
                return None
            written = tuple(
                Written(text, int(length), bool(ended))
                for text, length, ended in zip(
                    texts.meta["texts"], texts.arrays["length"], texts.arrays["ended"], strict=True
                )
            )
        first, second = forced.meta["idle"]
        arrays = forced.arrays
        return Answered(Forced(arrays["totals"], arrays["greedy"], arrays["entropy"], (first, second)), written)

    def _run(self, variant: Variant, write: bool, told: Any) -> Answered:
        stops = [item.stop for item in self.items] if write else None
        with self.model.edited(*variant.parts):
            forced, texts = answer(self.model, self.data, batch=self.batch, stops=stops, limit=self.limit, told=told)
        written = None if texts is None else tuple(texts)
        if self.store is not None:
            arrays = {"totals": forced.totals, "greedy": forced.greedy, "entropy": forced.entropy}
            self.store.write("forced", variant.key + self._suffix, {"idle": list(forced.idle)}, arrays)
            if written is not None:
                numbers = {
                    "length": np.array([said.length for said in written]),
                    "ended": np.array([said.ended for said in written]),
                }
                self.store.write(
                    "written", variant.key + self._suffix, {"texts": [said.text for said in written]}, numbers
                )
        return Answered(forced, written)

    def drift(
        self, variants: Sequence[Variant], texts: Sequence[Neutral], *, stage: str = ""
    ) -> list[NDArray[np.float64]]:
        """Return each variant's loss on neutral texts, in nats per token (texts,)."""
        digest = sha256_text(canonical_json([[text.prompt.ids, text.ids] for text in texts]))[:16]
        out = []
        for number, variant in enumerate(variants):
            out.append(self._loss(variant, texts, digest))
            if self.progress is not None and stage:
                self.progress(stage, number + 1, len(variants))
        return out

    def _loss(self, variant: Variant, texts: Sequence[Neutral], digest: str) -> NDArray[np.float64]:
        name = f"{variant.key}-{digest}"
        if name in self._losses:
            return self._losses[name]
        shard = None if self.store is None else self.store.read("drift", name)
        if shard is not None:
            found: NDArray[np.float64] = shard.arrays["loss"]
        else:
            with self.model.edited(*variant.parts):
                found = losses(self.model, texts, batch=self.batch)
            if not np.isfinite(found).all():
                raise ModelError(
                    f"Under {variant.title} neutral text has a likelihood that is not finite: the model breaks. Lower "
                    "its strength, or leave drift out (drift=False)."
                )
            if self.store is not None:
                self.store.write("drift", name, {}, {"loss": found})
        self._losses[name] = found
        return found
