"""Active-dormant heads: heads that work on one domain of text and rest on their sink on another (Guo et al. 2024).

Attention at rest is a candidate; that removing the head changes nothing there, and something elsewhere, is the
evidence. Both are measured here, and a head is called active-dormant only if they agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.errors import DataError
from headscope.probes.statistics import bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from headscope.probes.base import DataSet, Progress
    from headscope.probes.scores import HeadScores


LEAST_DIFFERENCE = 0.05
COLUMNS = (
    "layer", "head", "domain", "sink_mass", "loss_change", "ci_low", "ci_high", "n", "state", "active_dormant"
)  # fmt: skip


def candidates(scores: HeadScores, k: int) -> list[tuple[int, int]]:
    """Return the ``k`` heads whose sink mass differs most between one domain and the others.

    Only heads whose interval excludes 0 and whose difference is at least ``LEAST_DIFFERENCE``.
    """
    domains = scores.details.get("domains")
    if domains is None or domains.empty:
        raise DataError(
            "These scores compare no domains. Rank SinkHeads on texts of at least two domains "
            "(hs.data.texts(model, domains=…))."
        )
    clear = domains[(domains["difference_low"] > 0) | (domains["difference_high"] < 0)]
    spread = clear.assign(size=clear["difference"].abs()).groupby(["layer", "head"])["size"].max()
    best = spread[spread >= LEAST_DIFFERENCE].sort_values(ascending=False, kind="stable").head(k)
    return [(int(layer), int(head)) for layer, head in best.index]


def active_dormant(
    model: Any,
    scores: HeadScores,
    data: DataSet,
    *,
    heads: Iterable[tuple[int, int]] | None = None,
    k: int = 8,
    dormant: float = 0.5,
    tolerance: float = 0.001,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Zero heads one at a time and compare the loss on each domain with the sink mass there.

    Parameters
    ----------
    scores
        Of ``SinkHeads``, with ``details["domains"]``.
    data
        Texts, as the scores were made of.
    heads
        Heads to test; by default the ``k`` whose sink mass differs most between domains.
    dormant
        Least sink mass of a dormant head.
    tolerance
        Change of the loss, in nats per token, below which a head does not matter on a domain.

    Returns
    -------
    One row per head and domain: layer, head, domain, sink_mass, loss_change (nats per token when the head's output is
    set to 0, with ci_low and ci_high over documents), n, state (``"dormant"``: at rest, and the whole interval of the
    change lies below the tolerance; ``"active"``: not at rest, and the whole interval lies above it; ``"unclear"``
    otherwise), active_dormant (the head is dormant on one domain and active on another).
    """
    import pandas as pd

    from headscope.attention.edits import HeadEdit

    chosen = candidates(scores, k) if heads is None else [(int(layer), int(head)) for layer, head in heads]
    if not chosen:
        return pd.DataFrame(columns=list(COLUMNS))
    samples = [data[i] for i in range(len(data))]
    base = _losses(model, samples)
    names = np.array([str(sample.factors.get("domain", "")) for sample in samples])
    sources = [str(sample.source) for sample in samples]
    mass = scores.details["domains"].set_index(["layer", "head", "domain"])["sink_mass"]
    rows = []
    for done, (layer, head) in enumerate(chosen, start=1):
        with model.edited(HeadEdit(heads=((layer, head),), mode="zero")):
            change = _losses(model, samples) - base
        for domain in sorted(set(names)):
            inside = names == domain
            here = [source for source, kept in zip(sources, inside, strict=True) if kept]
            found = bootstrap(change[inside][:, None], here, seed=seed)
            low, high = float(found.low[0]), float(found.high[0])
            resting = float(mass.get((layer, head, domain), float("nan")))
            state = "unclear"
            if resting >= dormant and high < tolerance:
                state = "dormant"
            elif resting < dormant and low > tolerance:
                state = "active"
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "domain": domain,
                    "sink_mass": resting,
                    "loss_change": float(found.mean[0]),
                    "ci_low": low,
                    "ci_high": high,
                    "n": int(found.n[0]),
                    "state": state,
                }
            )
        if progress is not None:
            progress("active-dormant", done, len(chosen))
    table = pd.DataFrame(rows)
    states = table.groupby(["layer", "head"])["state"].transform(lambda found: {"active", "dormant"} <= set(found))
    return table.assign(active_dormant=states.astype(bool))


def _losses(model: Any, samples: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean next-token loss of every text, in nats."""
    from headscope.probes.tasks import text_task

    losses: np.ndarray[Any, np.dtype[np.float64]] = text_task(samples).evaluate(model)[:, 0]
    return losses
