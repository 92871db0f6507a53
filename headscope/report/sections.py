"""From results to parts of a report. What a result does not have makes no section."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from headscope.report import blocks, figures, words
from headscope.report.blocks import Block, Cell, Part, Section
from headscope.report.numbers import fixed, head_name, interval, number, p_value, percent, plural
from headscope.report.tokens import readings

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores

TOP = 25
_OWN = {"by_factor", "activation", "dose", "samples", "claims", "domains", "residual"}
_TITLES = {
    "dimensions": "Massive dimensions",
    "tokens": "Sink tokens",
    "later": "Later sinks",
    "kv_heads": "Key-value heads",
}
_CAPTIONS = {
    "dimensions": "Coordinates of the residual stream that are largest at sink tokens, by layer (0 is the embedding), "
    "as RMS-normalised size at sinks and at other tokens.",
    "tokens": "Tokens that are sinks: in how many texts, for what share of heads, and how they look there.",
    "later": "Keys behind the first that are sinks of a head, the commonest first.",
    "kv_heads": "Largest score of the query heads that share a key-value head.",
}


def probe_part(scores: HeadScores, key: str) -> Part:
    """Everything that one result says; ``key`` keeps the anchors of several parts apart."""
    makers: list[tuple[str, str, Callable[[HeadScores, str], list[Block]]]] = [
        ("claims", "Published claims", _claims),
        ("map", "Map of heads", _map),
        ("best", "Best heads", _best),
        ("removal", "What removing them does", _removal),
        ("conditions", "Where the score holds", _conditions),
        ("activation", "Always active or by context", _activation),
        ("domains", "Active and dormant by domain", _domains),
        ("residual", "Residual stream of the first token", _residual),
        ("reading", "What they read", _reading),
        *((name, _TITLES.get(name) or name.replace("_", " ").capitalize(), _extra(name)) for name in _others(scores)),
        ("heads", "All heads", all_heads),
        ("provenance", "Provenance", _provenance),
        ("reproduce", "Reproduce", _reproduce),
    ]
    made = [(name, title, maker(scores, key)) for name, title, maker in makers]
    sections = tuple(Section(f"{key}-{name}", title, tuple(found)) for name, title, found in made if found)
    opening = Section(f"{key}-summary", "", (blocks.Tiles(tuple(words.tiles(scores))), *_text(words.rule(scores))))
    notes = tuple(str(note) for note in scores.provenance.get("notes", ()) or ())
    return Part(key, words.title_of(scores), words.headline(scores), (opening, *sections), notes)


def _claims(scores: HeadScores, key: str) -> list[Block]:
    frame = scores.details.get("claims")
    if frame is None or frame.empty:
        return []
    names = ("claim", "answer", "evidence", "verdict")
    rows = []
    for record in frame.fillna("").to_dict("records"):
        row = {name: str(record.get(name, "")) for name in names}
        rows.append({**row, "tone": words.tone(row["verdict"])})
    return [blocks.Claims(tuple(rows))]


def _map(scores: HeadScores, key: str) -> list[Block]:
    if len(scores.table) < 2:
        return []
    caption = (
        "Every cell is a head, coloured by score; outlined heads are selected. Choose a head to find it in the table."
    )
    return [blocks.Picture(figures.head_map(scores, title=""), caption, f"{key}-table")]


def _best(scores: HeadScores, key: str) -> list[Block]:
    shown = min(TOP, int(scores.table["score"].notna().sum()))
    if not shown:
        return []
    caption = (
        f"The {plural(shown, 'best head')} with 95\u202f% intervals" if shown > 1 else "The head with its interval"
    )
    if scores.table["null_mean"].notna().any():
        caption += "; a stroke marks the mean score of the same head on its null"
    return [blocks.Picture(figures.ranked_intervals(scores, TOP, title=""), f"{caption}.")]


def _removal(scores: HeadScores, key: str) -> list[Block]:
    dose = scores.details.get("dose")
    if dose is None or dose.empty:
        return []
    splits = [name for name in ("metric", "ablation") if name in dose.columns]
    groups = list(dose.groupby(splits, sort=False)) if splits else [((), dose)]
    found: list[Block] = [block for _, part in groups for block in _text(words.dose_sentence(part))]
    for names, part in groups:
        caption = " · ".join(f"{split}: {name}" for split, name in zip(splits, names, strict=True))
        caption = f"{caption}. Controls: {_controls(part)}."
        found.append(blocks.Picture(figures.dose_response(part), caption, half=len(groups) > 1))
    summary = dose.dropna(subset=["value"]).groupby([*splits, "k", "kind"], sort=False)["value"]
    table = summary.agg(mean="mean", lowest="min", highest="max", runs="size").reset_index()
    constant = [name for name in splits if table[name].nunique() == 1]
    return [*found, blocks.table(table.drop(columns=constant), "The same as numbers", folded=True)]


def _controls(dose: pd.DataFrame) -> str:
    """Say what the control heads are, as the table has it."""
    text = "as many other heads of the same layers"
    if "from_other_layers" in dose and dose["from_other_layers"].max() > 0:
        text += ", or of near layers where these have too few"
    if "from_selected" in dose and dose.loc[dose["kind"] == "control", "from_selected"].max() > 0:
        text += "; some pass the rule themselves, for want of others"
    return text


def _conditions(scores: HeadScores, key: str) -> list[Block]:
    frame = scores.details.get("by_factor")
    if frame is None or frame.empty or "score" not in frame or not figures.factors_of(frame):
        return []
    if len(frame) < 2 or not frame["score"].notna().any():
        return []
    factors = figures.factors_of(frame)
    over = "selected heads" if scores.selected else "all heads"
    caption = f"Mean score over {over} by {words.joined(factors[:2])}."
    table = blocks.table(frame, f"Mean score by {words.joined(factors)}, as numbers", folded=True)
    return [blocks.Picture(figures.by_factor(frame), caption), table]


def _activation(scores: HeadScores, key: str) -> list[Block]:
    frame = scores.details.get("activation")
    if frame is None or not {"layer", "head", "active"} <= set(frame.columns) or not (frame["active"] > 0).any():
        return []
    always = words.always_from(scores)
    active = frame[frame["active"] > 0].sort_values(["active", "layer", "head"], ascending=[False, True, True])
    steady, other = active[active["active"] >= always], active[active["active"] < always]
    contexts = f" of {number(int(frame['contexts'].max()))}" if "contexts" in frame and len(frame) else ""
    text = (
        f"{plural(len(steady), 'head')} {'is' if len(steady) == 1 else 'are'} active in at least {percent(always, 0)}"
        f"{contexts} contexts; {number(len(other))} more {'is' if len(other) == 1 else 'are'} active in some."
    )
    found: list[Block] = [blocks.Text(text)]
    for label, part in (("Always active", steady), ("By context", other)):
        if len(part):
            shares = [f"{name} {percent(share, 0)}" for name, share in zip(_names(part), part["active"], strict=True)]
            more = [f"and {number(len(shares) - 40)} more"] if len(shares) > 40 else []
            found.append(blocks.Chips(label, (*shares[:40], *more)))
    caption = "Share of contexts in which each head is active"
    caption += f"; the 60 most active of {len(active)}." if len(active) > 60 else "."
    return [*found, blocks.Picture(figures.activation(frame, always=always), caption)]


def _domains(scores: HeadScores, key: str) -> list[Block]:
    frame = scores.details.get("domains")
    if frame is None or frame.empty:
        return []
    values = [name for name in ("active", "sink_mass", "share", "score") if name in frame.columns]
    if not ({"layer", "head", "domain"} <= set(frame.columns) and values):
        return [blocks.table(frame, "By domain.")]
    heads = frame.groupby(["layer", "head"]).ngroups
    caption = f"{values[0].replace('_', ' ').capitalize()} by domain of text"
    caption += "; the 40 heads that differ most between domains." if heads > 40 else "."
    found: list[Block] = [blocks.Picture(figures.head_grid(frame, "domain", values[0]), caption)]
    if {"difference", "difference_low", "difference_high"} <= set(frame.columns):
        clear = frame[(frame["difference_low"] > 0) | (frame["difference_high"] < 0)]
        clear = clear.reindex(clear["difference"].abs().sort_values(ascending=False, kind="stable").index)
        of = clear[["layer", "head"]].drop_duplicates()
        text = (
            f"{plural(len(of), 'head')} of {number(heads)} {'differs' if len(of) == 1 else 'differ'} between a domain "
            f"and the others: {number(len(clear))} of {number(len(frame))} intervals of 95\u202f% leave out zero; by "
            f"chance about {number(round(0.05 * len(frame)))} would."
        )
        found.append(blocks.Text(text))
        return (
            [*found, blocks.table(clear, "Differences from the other domains, largest first.", 60)]
            if len(clear)
            else found
        )
    return [*found, blocks.table(frame, "By domain.", 60)]


def _residual(scores: HeadScores, key: str) -> list[Block]:
    frame = scores.details.get("residual")
    if frame is None or frame.empty:
        return []
    ratios = [str(name) for name in frame.columns if str(name).endswith("_ratio")]
    drawn = "layer" in frame and bool(ratios)
    table = blocks.table(frame, "The same as numbers" if drawn else "By layer.", folded=drawn)
    if not drawn:
        return [table]
    caption = (
        "First token against the median of the others, by layer: largest coordinate and norm of the residual stream."
    )
    return [blocks.Picture(figures.layer_profile(frame, ratios), caption), table]


def _reading(scores: HeadScores, key: str) -> list[Block]:
    frame = scores.details.get("samples")
    needed = {"sample", "layer", "head", "query", "query_token", "key", "key_token", "weight"}
    if frame is None or frame.empty or not needed <= set(frame.columns):
        return []
    found, left_out = readings(frame)
    return [blocks.Readings(tuple(found), left_out)]


def _extra(name: str) -> Callable[[HeadScores, str], list[Block]]:
    def make(scores: HeadScores, key: str) -> list[Block]:
        frame = scores.details[name]
        return [] if frame.empty else [blocks.table(frame, _CAPTIONS.get(name, "As the probe gave it."))]

    return make


def _others(scores: HeadScores) -> list[str]:
    return [name for name in scores.details if name not in _OWN]


def all_heads(scores: HeadScores, key: str) -> list[Block]:
    """Return the table of all heads, best first."""
    ranked = scores.ranked()
    extras = [str(name) for name in ranked.columns[9:] if name != "q_value"]
    shown = [name for name in ("null_mean", "p_value", "q_value") if name in ranked and ranked[name].notna().any()]
    columns = (
        "rank",
        "head",
        "score",
        "interval",
        "95\u202f%",
        "n",
        *({"null_mean": "null", "p_value": "p", "q_value": "q"}[c] for c in shown),
    )
    columns = (*columns, "selected", *(name.replace("_", " ") for name in extras))
    written = [blocks.column(ranked[name]) for name in extras]
    low, high = _bounds(ranked)
    rows = []
    for rank, row in enumerate(ranked.to_dict("records"), start=1):
        name = head_name(row["layer"], row["head"])
        cells = [
            Cell(str(rank), rank),
            Cell(name, row["layer"] * 10_000 + row["head"]),
            blocks.score_cell(row["score"]),
            Cell("", None if row["score"] != row["score"] else row["score"]),
            Cell(interval(row["ci_low"], row["ci_high"]), None if row["ci_low"] != row["ci_low"] else row["ci_low"]),
            blocks.cell(row["n"]),
            *(_statistic(column, row[column]) for column in shown),
            Cell("yes" if row["selected"] else "", float(row["selected"])),
            *(column[rank - 1] for column in written),
        ]
        marks = {
            mark: round(100 * (row[column] - low) / (high - low), 2)
            for mark, column in (("x", "score"), ("lo", "ci_low"), ("hi", "ci_high"), ("null", "null_mean"))
            if np.isfinite(row[column])
        }
        rows.append(blocks.HeadRow(name, row["selected"], tuple(cells), marks))
    return [blocks.Heads(f"{key}-table", columns, tuple(rows))]


def _statistic(column: str, value: float) -> Cell:
    text = fixed(value) if column == "null_mean" else p_value(value)
    return Cell(text, None if value != value else value)


def _bounds(table: pd.DataFrame) -> tuple[float, float]:
    values = table[["score", "ci_low", "ci_high", "null_mean"]].to_numpy(dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), float(finite.max())) if finite.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _provenance(scores: HeadScores, key: str) -> list[Block]:
    rows = words.provenance_rows(scores.provenance)
    return [blocks.Facts(tuple(rows))] if rows else []


def _reproduce(scores: HeadScores, key: str) -> list[Block]:
    return [blocks.Code(label, text) for label, text in words.reproduce(scores)]


def _names(frame: pd.DataFrame) -> list[str]:
    return [head_name(layer, head) for layer, head in zip(frame["layer"], frame["head"], strict=True)]


def _text(text: str) -> list[Block]:
    return [blocks.Text(text)] if text else []
