"""The sentences of a report: what was asked, of which model, and what came out, with the numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headscope.report.numbers import head_name, interval, number, p_value, percent, plural

if TYPE_CHECKING:
    import pandas as pd

    from headscope.probes.scores import HeadScores

TITLES = {
    "retrieval": "Retrieval heads",
    "echo": "Echo heads",
    "induction": "Induction heads",
    "previous": "Previous-token heads",
    "duplicate": "Duplicate-token heads",
    "sinks": "Sink heads",
    "sink-tokens": "Drained sink heads",
}
QUESTIONS = {
    "retrieval": "copy the answer out of a long context",
    "echo": "attend to earlier copies of the present token",
    "induction": "attend to the token that followed an earlier copy of the current one",
    "previous": "attend to the token before",
    "duplicate": "attend to earlier copies of the current token",
    "sinks": "rest their attention on the first token",
    "sink-tokens": "rest on a first token whose value is drained",
}
SCORES = {
    "retrieval": "share of distinct answer tokens that the head’s most attended key retrieved",
    "echo": "attention on earlier copies of the current token",
    "induction": "attention on the tokens that followed earlier copies of the current one",
    "previous": "attention on the token before",
    "duplicate": "attention on earlier copies of the current token",
    "sinks": "mean attention that the first token receives from the queries that can see it",
    "sink-tokens": "median output norm of other tokens over that of the first token",
}


def title_of(scores: HeadScores) -> str:
    """Name of the kind of head."""
    return TITLES.get(scores.probe, scores.probe.replace("-", " ").replace("_", " ").capitalize())


def model_of(scores: HeadScores) -> str:
    """Name of the model, or a phrase where it has none."""
    return str(scores.provenance.get("model", {}).get("name") or "an unnamed model")


def headline(scores: HeadScores) -> str:
    """One sentence: how many heads of which model do what, on how much data."""
    chosen, total = len(scores.selected), len(scores.table)
    does = QUESTIONS.get(scores.probe)
    what = f"{does}" if does else f"pass the {scores.probe} probe"
    data = scores.provenance.get("data", {})
    n = data.get("n")
    on = f", on {plural(int(n), 'sample')}" if isinstance(n, int) else ""
    if not scores.table["score"].notna().any():
        return f"No head of {model_of(scores)} has a score{on}: no sample counted."
    if not chosen:
        # A head may do it and yet not pass, for want of samples: say no more than was found.
        kind = title_of(scores).lower()
        return f"None of the {plural(total, 'head')} of {model_of(scores)} passes the rule for {kind}{on}."
    verb = _singular(what) if chosen == 1 else what
    return f"{number(chosen)} of {plural(total, 'head')} ({percent(chosen / total)}) of {model_of(scores)} {verb}{on}."


def rule(scores: HeadScores) -> str:
    """Say what the score is, and what it takes to be selected, in one or two sentences."""
    threshold = scores.provenance.get("parameters", {}).get("threshold")
    parts = []
    if scores.probe in SCORES:
        parts.append(f"Score: {SCORES[scores.probe]}.")
    conditions = []
    if isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        conditions.append(f"a score above {threshold:g}")
    if "q_value" in scores.table and scores.table["q_value"].notna().any():
        conditions.append("more than its own null at a false discovery rate of 5\u202f%")
    if conditions and scores.probe != "echo":
        parts.append(f"Selected: {' and '.join(conditions)}.")
    if scores.table["ci_low"].notna().any():
        parts.append("Intervals: 95\u202f%, bootstrap over whole sources of samples.")
    return " ".join(parts)


def tiles(scores: HeadScores) -> list[tuple[str, str]]:
    """Pick the numbers that say the most, each with what it is."""
    chosen, total = len(scores.selected), len(scores.table)
    found = [(f"{number(chosen)} / {number(total)}", f"heads selected, {percent(chosen / total)}")]
    best = scores.ranked().dropna(subset=["score"]).head(1)
    if not best.empty:
        row = best.iloc[0]
        bounds = interval(row["ci_low"], row["ci_high"])
        label = f"best head, {head_name(int(row['layer']), int(row['head']))} {bounds}".strip()
        found.append((number(float(row["score"])), label))
    activation = scores.details.get("activation")
    if activation is not None and {"active", "layer", "head"} <= set(activation.columns) and len(activation):
        always = int((activation["active"] >= always_from(scores)).sum())
        some = int((activation["active"] > 0).sum()) - always
        found.append((f"{number(always)} + {number(some)}", "heads always active + active by context"))
    if chosen:
        deepest = sum(layer for layer, _ in scores.selected) / chosen
        found.append((percent((deepest + 0.5) / scores.shape[0], 0), "mean depth of the selected heads"))
    return found


def always_from(scores: HeadScores) -> float:
    """Share of contexts from which a head counts as always active."""
    value = scores.provenance.get("parameters", {}).get("always")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.9


def dose_sentence(dose: pd.DataFrame) -> str:
    """Say what removing the most heads did, beside the controls; ``dose`` holds one metric and one ablation."""
    top = dose[(dose["kind"] == "top")].dropna(subset=["value"])
    if top.empty:
        return ""
    metric = str(dose["metric"].iloc[0]) if "metric" in dose else "the value"
    k = int(top["k"].max())
    after = float(top[top["k"] == k]["value"].mean())
    controls = dose[(dose["kind"] == "control") & (dose["k"] == k)]["value"].dropna()
    base = dose[(~dose["kind"].isin(["top", "control"])) | (dose["k"] == 0)]["value"].dropna()
    text = (
        f"With the {plural(k, 'best head')} removed, {metric} is {number(after)}"
        if k > 1
        else (f"With the best head removed, {metric} is {number(after)}")
    )
    if len(base):
        text += f", against {number(float(base.mean()))} with all heads"
    if len(controls):
        beyond = max(int((controls > after).sum()), int((controls < after).sum()))
        text += (
            f"; with as many control heads removed it is {number(float(controls.mean()))} on average "
            f"({number(float(controls.min()))} to {number(float(controls.max()))} over "
            f"{plural(len(controls), 'control')})."
        )
        p = top.loc[top["k"] == k, "p_value"].dropna() if "p_value" in top else top["k"].iloc[:0]
        if len(p):
            as_much = round(float(p.iloc[0]) * (len(controls) + 1)) - 1
            did = f"{number(as_much)} of {plural(len(controls), 'control')} did as much damage"
            text += f" {did} (p = {p_value(float(p.iloc[0]))})."
        elif beyond == len(controls):
            text += f" The best heads lie outside all {number(len(controls))} controls."
        else:
            text += f" The best heads lie outside {number(beyond)} of {number(len(controls))} controls."
    else:
        text += "."
    return text


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flatten provenance into readable (name, value) pairs; notes are shown elsewhere."""
    order = ["probe", "parameters", "model", "data", "seed", "dtype", "engine"]
    names = [*(name for name in order if name in provenance), *(name for name in provenance if name not in order)]
    return [row for name in names if name != "notes" for row in _flat(str(name), provenance[name])]


def reproduce(scores: HeadScores) -> list[tuple[str, str]]:
    """Lines to type that make the same scores again: (where, what)."""
    from headscope.probes.registry import PROBES, find

    source = scores.provenance
    # A model that came in a package is loaded by its short name.
    described = source.get("model", {})
    origin = str(described.get("source") or "")
    model = described.get("name") if not origin or origin.startswith("package:") else origin
    if not model or scores.probe not in PROBES:
        return []
    data, seed = source.get("data", {}), source.get("seed", 0)
    name, defaults = PROBES[scores.probe][1], find(scores.probe).parameters()
    changed = {key: value for key, value in source.get("parameters", {}).items() if defaults.get(key, value) != value}
    # The command line has no option for a probe's own parameters.
    lines = [] if changed else [("Command line", _command(scores, str(model), data, seed))]
    arguments = ", ".join(f"{key}={value!r}" for key, value in changed.items())
    kind, made = _data_call(scores.probe, data)
    python = [
        "import headscope as hs",
        "",
        f"model = hs.load({str(model)!r})",
        f"data = hs.data.{kind}({', '.join(['model', *made])})",
        f"scores = hs.probes.{name}({arguments}).rank(model, data, seed={seed!r})",
    ]
    return [*lines, ("Python", "\n".join(python))]


def tone(verdict: str) -> str:
    """How a verdict is to be coloured: ``good``, ``bad`` or ``open``; the words say it too."""
    text = verdict.strip().lower()
    if any(text.startswith(word) for word in ("same", "yes", "confirmed", "holds", "agree", "supported")):
        return "good"
    if any(text.startswith(word) for word in ("different", "no,", "no ", "refuted", "contradict", "fails", "opposite")):
        return "bad"
    return "bad" if text == "no" else "open"


def joined(names: Sequence[str]) -> str:
    """Join names as prose does.

    >>> joined(["a"]), joined(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _command(scores: HeadScores, model: str, data: Mapping[str, Any], seed: Any) -> str:
    parameters = data.get("parameters") or {}
    command = ["headscope", "rank", scores.probe, "--model", shlex.quote(model)]
    if isinstance(data.get("n"), int):
        command += ["--n", str(data["n"])]
    if isinstance(parameters.get("lengths"), (list, tuple)):
        command += ["--lengths", ",".join(map(str, parameters["lengths"]))]
    elif isinstance(parameters.get("length"), int):
        command += ["--length", str(parameters["length"])]
    if scores.provenance.get("dtype", "float32") != "float32":
        command += ["--dtype", shlex.quote(str(scores.provenance["dtype"]))]
    dose = scores.details.get("dose")
    if dose is None or dose.empty:
        command.append("--no-verify")
    elif {"kind", "k", "ablation"} <= set(dose.columns):
        controls = dose[dose["kind"] == "control"].drop_duplicates([*({"k", "replicate"} & set(dose.columns))])
        most = controls.groupby("k").size().max() if len(controls) else 1
        command += ["--ablation", str(dose["ablation"].iloc[0]), "--controls", str(int(most))]
    return " ".join([*command, "--seed", str(seed), "--out", f"runs/{scores.probe}"])


def _data_call(probe: str, data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Name of the function that made the data, and its arguments, as far as it takes what was recorded."""
    import inspect

    import headscope.data
    from headscope.probes.registry import find

    kind = find(probe).data
    known = inspect.signature(getattr(headscope.data, kind)).parameters
    recorded = {"n": data.get("n"), **(data.get("parameters") or {})}
    given = {
        name: value
        for name, value in recorded.items()
        if name in known and value is not None and value != known[name].default and value != "generated prose"
    }
    return kind, [f"{name}={value!r}" for name, value in given.items()]


def _singular(phrase: str) -> str:
    verb, _, rest = phrase.partition(" ")
    return f"{ {'copy': 'copies', 'pass': 'passes'}.get(verb, verb + 's') } {rest}"


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in _flat(f"{name} · {key}", item)]
    if isinstance(value, str):
        return [(name, value)]
    if value is None:
        return [(name, "not recorded")] if name.count("·") == 0 else [(name, "none")]
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return [(name, ", ".join(str(item) for item in value) or "none")]
    return [(name, json.dumps(value, ensure_ascii=False, default=str))]
