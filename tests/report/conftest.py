"""Scores as a probe of SmolLM2-135M would give them, with every detail that a report can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.probes.scores import HeadScores

WORDS = (
    "The morning train left the valley before the fog had lifted and nobody on the platform spoke of the storm "
    "that had closed the northern pass for three days while letters lay unsorted in the station office"
)


def synthetic(
    probe: str = "retrieval",
    *,
    layers: int = 30,
    heads: int = 9,
    seed: int = 0,
    model: str = "smollm2-135m",
    details: bool = True,
) -> HeadScores:
    """Sparse scores: a few strong heads in the middle layers, the rest near nothing."""
    random = np.random.default_rng(seed)
    size = layers * heads
    layer, head = np.divmod(np.arange(size), heads)
    score = random.beta(0.6, 30, size)
    strong = random.choice(size, max(1, round(0.063 * size)), replace=False)
    score[strong] = random.beta(2.2, 3, len(strong)) * 0.9 + 0.1
    if probe in ("sinks", "sink-tokens"):
        score = np.clip(random.beta(2.5, 1.6, size) * (0.25 + 0.75 * np.minimum(1, layer / 4)), 0, 1)
    wide = 0.02 + 0.12 * np.sqrt(score * (1 - score))
    null = random.beta(0.5, 60, size)
    p = np.where(score > 0.1, random.uniform(0, 0.004, size), random.uniform(0.01, 1, size))
    threshold = 0.3 if probe.startswith("sink") else 0.1
    selected = (score > threshold) & (p < 0.05)
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "score": score,
            "ci_low": np.clip(score - wide * random.uniform(0.7, 1.3, size), 0, 1),
            "ci_high": np.clip(score + wide * random.uniform(0.7, 1.3, size), 0, 1),
            "n": np.full(size, 54),
            "null_mean": null,
            "p_value": p,
            "selected": selected,
            "q_value": np.minimum(1, p * 4),
        }
    )
    if probe == "retrieval":
        table["historical"] = score * random.uniform(1, 1.3, size)
        table["active"] = np.clip(score * 1.4, 0, 1)
    scores = HeadScores(table, probe, provenance(probe, model, layers, heads, threshold))
    return scores.with_details(**all_details(scores, random)) if details else scores


def provenance(probe: str, model: str, layers: int, heads: int, threshold: float) -> dict[str, Any]:
    return {
        "probe": probe,
        "parameters": {"threshold": threshold, "span": "answer", "recall": 0.5, "always": 0.9},
        "model": {
            "name": model,
            "source": model,
            "revision": "93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
            "fingerprint": "5c1e" * 16,
            "family": "llama",
            "n_layers": layers,
            "n_heads": heads,
        },
        "data": {
            "name": "needles",
            "parameters": {"n": 60, "seed": 0, "lengths": [512, 1024, 2048]},
            "hash": "ab" * 32,
            "n": 60,
        },
        "seed": 0,
        "dtype": "float32",
        "engine": "headscope on sdpa",
        "versions": {"headscope": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"platform": "Linux x86_64", "threads": 2},
        "created": "2026-11-22T22:10:00Z",
        "notes": ["54 of 60 trials counted (ROUGE-1 recall of the answer above 0.5)."],
    }


def all_details(scores: HeadScores, random: np.random.Generator) -> dict[str, pd.DataFrame]:
    table = scores.table
    details: dict[str, pd.DataFrame] = {"by_factor": factor_table(random)}
    if scores.probe == "retrieval":
        active = table.assign(active=np.clip(table["score"] * 1.5, 0, 1), contexts=54)
        active = active[active["score"] > 0.04][["layer", "head", "score", "selected", "active", "contexts"]]
        details |= {
            "activation": active,
            "dose": dose_table(random),
            "samples": sample_table(scores, random),
            "claims": claim_table(),
        }
    if scores.probe == "sinks":
        details = {"domains": domain_table(table, random), "later": later_table(random), **details}
    if scores.probe == "sink-tokens":
        layer = np.arange(31)
        peak = 3 + 900 / (1 + np.exp(-(layer - 4) * 2)) * (layer < 29)
        details = {
            "tokens": pd.DataFrame(
                {
                    "token": ["<|endoftext|>", "Ċ", "Ġthe", "."],
                    "place": ["first", "later", "later", "later"],
                    "texts": [40, 12, 8, 3],
                    "head_share": [0.8, 0.12, 0.07, 0.06],
                    "drain": [8.2, 3.1, 1.4, 1.2],
                }
            ),
            "dimensions": pd.DataFrame(
                {
                    "layer": [3, 4, 5],
                    "dimension": [347, 347, 101],
                    "at_sinks": [21.5, 22.1, 9.7],
                    "at_others": [0.4, 0.6, 1.1],
                    "share": [1.0, 1.0, 0.95],
                    "massive": [True, True, False],
                }
            ),
            "residual": pd.DataFrame(
                {
                    "layer": layer,
                    "peak_ratio": peak,
                    "peak_low": peak * 0.9,
                    "peak_high": peak * 1.1,
                    "norm_ratio": peak / 5 + 1,
                }
            ),
        }
    return details


def factor_table(random: np.random.Generator) -> pd.DataFrame:
    rows = [
        {
            "length": length,
            "depth": depth,
            "score": 0.62 - 0.06 * i - 0.15 * np.sin(np.pi * depth) + random.normal(0, 0.02),
            "n": 6,
            "recall": 0.8,
        }
        for i, length in enumerate((512, 1024, 2048, 4096, 8000))
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return pd.DataFrame(rows)


def dose_table(random: np.random.Generator, controls: int = 20) -> pd.DataFrame:
    rows = [
        {
            "k": 0,
            "kind": "baseline",
            "replicate": 0,
            "value": 0.91,
            "ablation": "mean",
            "metric": "recall of the answer",
        }
    ]
    for k, value in ((1, 0.83), (5, 0.44), (10, 0.21), (20, 0.06)):
        rows.append(
            {
                "k": k,
                "kind": "top",
                "replicate": 0,
                "value": value,
                "ablation": "mean",
                "metric": "recall of the answer",
            }
        )
        rows += [
            {
                "k": k,
                "kind": "control",
                "replicate": i,
                "value": min(1, 0.91 - 0.004 * k + random.normal(0, 0.02)),
                "ablation": "mean",
                "metric": "recall of the answer",
            }
            for i in range(controls)
        ]
    return pd.DataFrame(rows)


def sample_table(scores: HeadScores, random: np.random.Generator) -> pd.DataFrame:
    rows = []
    words = WORDS.split()
    needle = ["ĠThe", "Ġsecret", "Ġcode", "Ġof", "Ġthe", "Ġlighthouse", "Ġis", "Ġ7", "4", "2", "1", ".", "Ċ"]
    for sample in ("needle-03/1024/0.50", "needle-11/2048/0.25"):
        context = ["<|endoftext|>"] + [f"Ġ{words[i % len(words)]}" for i in range(900)]
        context[412 : 412 + len(needle)] = needle
        for layer, head in scores.top(3):
            for step, answer in enumerate("742"):
                weight = random.dirichlet(np.full(len(context), 0.002)) * 0.12
                weight[0] += 0.2
                weight[412 + 7 + step] += 0.68
                rows += [
                    {
                        "sample": sample,
                        "layer": layer,
                        "head": head,
                        "query": 900 + step,
                        "query_token": answer,
                        "key": key,
                        "key_token": token,
                        "weight": weight[key],
                    }
                    for key, token in enumerate(context)
                ]
    return pd.DataFrame(rows)


def claim_table() -> pd.DataFrame:
    rows = [
        (
            "Retrieval heads are sparse (under 5 % of heads).",
            "17 of 270 heads pass (6.3 %).",
            "95 % interval of the share over needles: 4.8 to 7.4 %.",
            "different",
        ),
        (
            "The same few heads are always active.",
            "3 heads retrieve in at least 90 % of contexts.",
            "Of 54 contexts; see activation.",
            "same direction",
        ),
        (
            "Others are active by context.",
            "14 heads retrieve in some contexts only.",
            "Median share 0.35.",
            "same direction",
        ),
        (
            "Removing them breaks retrieval; random heads do not.",
            "Recall falls from 0.91 to 0.06; controls keep 0.83.",
            "20 disjoint controls of the same layers, mean ablation.",
            "same direction",
        ),
        (
            "Chain of thought suffers, intrinsic knowledge less.",
            "The model does not solve the chain-of-thought task at all.",
            "0 of 40 answers right before any removal.",
            "not testable at this scale",
        ),
    ]
    return pd.DataFrame(rows, columns=["claim", "answer", "evidence", "verdict"])


def domain_table(table: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    parts = []
    for domain, shift in (("code", -0.18), ("dialogue", 0.05), ("prose", 0.1), ("tables", 0.0)):
        change = shift * random.uniform(0, 1, len(table))
        mass = np.clip(table["score"] + change, 0, 1)
        parts.append(
            pd.DataFrame(
                {
                    "layer": table["layer"],
                    "head": table["head"],
                    "domain": domain,
                    "sink_mass": mass,
                    "ci_low": mass - 0.03,
                    "ci_high": mass + 0.03,
                    "difference": change,
                    "difference_low": change - 0.05,
                    "difference_high": change + 0.05,
                    "n": 10,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def later_table(random: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": [3, 7, 12],
            "head": [1, 0, 8],
            "token": ["Ċ", ".", "Ġ\u202eand"],
            "texts": [12, 9, 4],
            "sinks": [31, 12, 4],
            "earliest": [14, 33, 101],
            "mean": [0.31, 0.22, 0.13],
        }
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., HeadScores]:
    return synthetic


@pytest.fixture(scope="session")
def full() -> HeadScores:
    return synthetic()
