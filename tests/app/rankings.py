"""Rankings made up for tests: known scores of known heads, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headscope.probes.scores import HeadScores


def ranking(
    probe: str = "induction",
    *,
    layers: int = 6,
    heads: int = 4,
    seed: int = 0,
    model: str = "toy",
    created: str = "2025-03-01T10:00:00+00:00",
    best: tuple[tuple[int, int], ...] = ((3, 2), (4, 1)),
    **details: Any,
) -> HeadScores:
    """Return scores below 0.2 but for ``best``, which score 0.9 and less, in their order, and pass."""
    rng = np.random.default_rng(seed)
    layer, head = np.divmod(np.arange(layers * heads), heads)
    score = rng.uniform(0.01, 0.2, layers * heads)
    for place, (i, j) in enumerate(best):
        score[i * heads + j] = 0.9 - 0.1 * place
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "score": score,
            "ci_low": score - 0.04,
            "ci_high": score + 0.05,
            "n": 12,
            "null_mean": 0.02,
            "p_value": np.where(score > 0.5, 0.001, 0.4),
            "selected": score > 0.5,
            "q_value": np.where(score > 0.5, 0.02, 0.7),
            "kind": ["late" if i > layers // 2 else "early" for i in layer],
        }
    )
    source = {
        "model": {"name": model, "fingerprint": f"print-{model}", "n_layers": layers, "n_heads": heads},
        "data": {"name": "repeats", "n": 12, "parameters": {}, "hash": "h"},
        "created": created,
        "parameters": {"threshold": 0.3},
        "notes": ["Only 12 independent sources."],
    }
    return HeadScores(table, probe, source, details)


def dose() -> pd.DataFrame:
    """Return what removing heads did: the best cost more than each of three controls."""
    rows = [{"k": 0, "kind": "base", "replicate": 0, "value": 0.9}]
    for k in (1, 2):
        rows.append({"k": k, "kind": "top", "replicate": 0, "value": 0.9 - 0.3 * k})
        rows += [{"k": k, "kind": "control", "replicate": i, "value": 0.88 - 0.01 * i} for i in range(3)]
    frame = pd.DataFrame(rows)
    return frame.assign(metric="accuracy", ablation="mean", ci_low=frame["value"] - 0.05, ci_high=frame["value"] + 0.05)


def put(workspace: Path, file: str, scores: HeadScores) -> Path:
    """Save scores in a workspace."""
    path = workspace / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return scores.save(path)
