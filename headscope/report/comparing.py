"""The parts of a report that set several results side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headscope.report import blocks, figures, words
from headscope.report.agreement import TOP, Agreement, agreement, labels
from headscope.report.blocks import Block, Part, Section
from headscope.report.numbers import fixed, interval, number, plural

if TYPE_CHECKING:
    from headscope.probes.scores import HeadScores
    from headscope.report.compare import Comparison


def agreement_section(scores: Sequence[HeadScores]) -> Section | None:
    """How far several rankings of the same heads agree; None if there is nothing to compare."""
    found = agreement(scores)
    if found is None:
        return None
    names = labels(scores)
    by_name = dict(zip(names, scores, strict=True))
    parts: list[Block] = [blocks.Text(_agreement_text(found))]
    if len(found.labels) > 2:
        for values, caption in ((found.spearman, "Spearman’s ρ of the scores."), (found.kendall, "Kendall’s τ.")):
            parts.append(blocks.Picture(figures.matrix(values, found.labels), caption, half=True))
    parts.append(_overlap_table(found))
    pairs = [(a, b) for i, a in enumerate(found.labels) for b in found.labels[i + 1 :]][:6]
    parts += [
        blocks.Picture(
            figures.agreement_scatter(by_name[a], by_name[b], names=(a, b)),
            f"{a} and {b}: every dot is a head.",
            half=len(pairs) > 1,
        )
        for a, b in pairs
    ]
    if found.left_out:
        parts.append(blocks.Text(f"Not compared, because the model has other heads: {words.joined(found.left_out)}."))
    if found.unscored:
        parts.append(blocks.Text(f"Not compared, because no head has a score: {words.joined(found.unscored)}."))
    return Section("agreement", "Agreement between probes", tuple(parts))


def comparison_part(found: Comparison) -> Part:
    """Everything that a comparison of two results says."""
    spearman, kendall = found.correlations["spearman"], found.correlations["kendall"]
    of = "of the scores" if found.matched else "of the depth profiles"
    tiles = [
        (fixed(item.value), f"{name} {of} {interval(item.low, item.high)}".strip())
        for name, item in (("Spearman’s ρ", spearman), ("Kendall’s τ", kendall))
    ]
    sections = [Section("summary", "", (blocks.Tiles(tuple(tiles)), blocks.Text(found.statement)))]
    if found.matched:
        caption = f"Every dot is a head; {found.a} across, {found.b} up."
        sections.append(Section("scatter", "Head by head", (blocks.Picture(found.plot(), caption),)))
        sets = found.overlaps[
            ["set", "size_a", "size_b", "shared", "expected", "jaccard", "expected_jaccard", "p_value"]
        ]
        caption = "Heads in both sets, beside what two random sets of these sizes share (hypergeometric)."
        sections.append(Section("overlap", "Shared heads", (blocks.table(sets, caption),)))
        caption = "Largest changes first; apart: the two 95\u202f% intervals do not meet."
        sections.append(Section("movers", "Heads that moved", (blocks.table(found.movers, caption),)))
    profile = blocks.Picture(
        figures.depth_profile(found.profile, names=(found.a, found.b)),
        "Mean score of the heads in equal parts of the depth.",
    )
    caption = "Mean score and share of selected heads by depth (middle of each part)."
    sections.append(Section("depth", "Over depth", (profile, blocks.table(found.profile, caption, folded=True))))
    for side, name, scores in zip("ab", (found.a, found.b), found.scores, strict=True):
        facts = blocks.Facts(tuple(words.provenance_rows(scores.provenance)))
        if facts.rows:
            sections.append(Section(f"provenance-{side}", f"Provenance of {name}", (facts,)))
    return Part("comparison", f"{found.a} and {found.b}", _comparison_headline(found), tuple(sections))


def _comparison_headline(found: Comparison) -> str:
    rho = found.correlations["spearman"].value
    if not found.matched:
        return (
            f"{found.a} and {found.b} have different heads; over relative depth their scores correlate "
            f"with ρ = {fixed(rho)}."
        )
    row = found.overlaps[found.overlaps["set"] == "selected"].iloc[0]
    return (
        f"{found.a} and {found.b} rank heads with ρ = {fixed(rho)} and share {number(int(row['shared']))} of "
        f"{number(int(row['size_a']))} and {number(int(row['size_b']))} selected heads; chance would share "
        f"{number(float(row['expected']))}."
    )


def _agreement_text(found: Agreement) -> str:
    clear = found.overlaps[found.overlaps["top_p_value"] < 0.05]
    text = f"{plural(len(found.overlaps), 'pair')} of rankings over the same heads. "
    if clear.empty:
        return text + f"No pair shares more of its {TOP} best heads than chance would at p\u202f<\u202f0.05."
    pairs = [f"{a} × {b} ({shared})" for a, b, shared in zip(clear["a"], clear["b"], clear["top_shared"], strict=True)]
    return (
        text + f"More of the {TOP} best heads are shared than by chance (p\u202f<\u202f0.05) by {words.joined(pairs)}."
    )


def _overlap_table(found: Agreement) -> blocks.Table:
    frame = found.overlaps.drop(columns="total")
    index = {name: i for i, name in enumerate(found.labels)}
    for name, matrix in (("rho", found.spearman), ("tau", found.kendall)):
        frame[name] = [matrix[index[a], index[b]] for a, b in zip(frame["a"], frame["b"], strict=True)]
    names = {
        "a": "a",
        "b": "b",
        "rho": "ρ",
        "tau": "τ",
        "top_shared": f"top {TOP} shared",
        "top_expected": "by chance",
        "top_p_value": "p of that",
        "size_a": "selected a",
        "size_b": "selected b",
        "shared": "both",
        "expected": "expected",
        "jaccard": "Jaccard",
        "expected_jaccard": "expected Jaccard",
        "p_value": "p_value",
    }
    caption = (
        f"Rank correlation of all heads (ρ Spearman, τ Kendall), and heads shared by the {TOP} best and by the "
        "selected ones, beside what two random sets of these sizes share (hypergeometric)."
    )
    return blocks.table(frame[list(names)].rename(columns=names), caption)
