"""What a method can be told, read off its class: the fields of a form with types, defaults and explanations."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
import types
import typing
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin

from headscope.commands.methods import TRAINED, kinds_of, required
from headscope.interventions.registry import METHODS, find_method

Kind = Literal["keys", "region", "names", "number", "whole", "choice", "numbers", "pairs", "text"]

LEFT_OUT = ("heads", "values", "units", "active")
"""Heads have controls of their own; reference values are collected, not typed; what is not active is not run."""
RARE = ("stack", "seed")
LEARNT = {"var": {"dimensions": "learnt from the model", "tau": "learnt with the dimensions"}}
"""Fields that are found out where they are left empty, whatever default the class has."""
EMPTY = {
    ("knockout", "layers"): "all",
    ("act", "layers"): "all but 0, 1, last",
    ("pai", "layers"): "all but 0 and 1",
    ("var", "layers"): "all but 0 and 1",
    ("ablation", "layers"): "none",
    ("ablation", "mlps"): "none",
    ("ablation", "neurons"): "none, or 3.17, 4.1",
    ("ablation", "region"): "for mode mask",
}
"""What an empty control means."""
NEEDED = ("region", "source", "segments")
"""Fields without which a method is about nothing."""

MAIN = {
    "pasta": "alpha",
    "act": "beta",
    "zerotuning": "gamma",
    "spotlight": "psi",
    "var": "keep_fraction",
    "temperature": "temperature",
    "pai": "alpha",
}
"""The number that each method is neutral by; ``tests/app/test_steer.py`` holds it against the methods."""

TITLES = {
    "pasta": "PASTA: turn heads away from the rest of the prompt",
    "act": "ACT: attention calibration",
    "zerotuning": "ZeroTuning: scale the first token",
    "spotlight": "SpotLight: a floor under a region's attention",
    "knockout": "Knock-out: cut the way between tokens",
    "var": "VAR: from sinks to the rest of a region",
    "temperature": "Temperature: flatter or sharper rows",
    "pai": "PAI: raise a region's logits",
    "ablation": "Ablations",
    "lofit": "LoFiT",
    "iti": "ITI",
    "lora": "LoRA",
    "steering": "Steering vectors",
    "sae": "Features of sparse autoencoders",
    "pine": "PINE: the order of segments changes nothing",
}
"""Titles of the methods' pages, ``docs/interventions/NAME.md``."""

VALUED = tuple(name for name in METHODS if name not in TRAINED)
"""Methods that are made from values."""


@dataclass(frozen=True)
class Field:
    """One field of a form.

    Parameters
    ----------
    name
        As in Python, on the command line, and in the paper.
    kind
        What sort of control it needs.
    about
        What the class says of it.
    default
        As text, the way a command line writes it; empty where there is none.
    options
        Of a choice.
    placeholder
        What an empty control means.
    rare
        Whether it stands apart, among what is seldom touched.
    """

    name: str
    kind: Kind
    about: str
    default: str = ""
    options: tuple[str, ...] = ()
    placeholder: str = ""
    rare: bool = False

    @property
    def step(self) -> float:
        """How far one click moves a number."""
        if self.kind == "whole":
            return 1.0
        value = abs(float(self.default or 1)) or 0.1
        if 0.1 <= value < 1:
            return 0.05
        return float(10.0 ** (math.floor(math.log10(value)) - (1 if value >= 1 else 0)))


@dataclass(frozen=True)
class About:
    """What is said of a method: its name, what it does in a line and in full, and the paper."""

    label: str
    line: str
    text: str
    paper: str
    arxiv: str
    title: str


@functools.cache
def fields_of(name: str) -> tuple[Field, ...]:
    """Return the fields of a method that is made from values; what is about regions comes first."""
    method = find_method(name)
    kinds, about = kinds_of(method), parameters(method)
    found = [
        _field(name, field, kinds[field.name], about.get(field.name, ""))
        for field in fields(method)  # type: ignore[arg-type]
        if field.init and field.name not in LEFT_OUT
    ]
    return tuple(sorted(found, key=lambda field: (field.rare, field.kind not in ("keys", "region", "names"))))


def takes_heads(name: str) -> bool:
    """Whether a method acts on heads that one chooses."""
    return name in METHODS and any(field.name == "heads" for field in fields(find_method(name)))  # type: ignore[arg-type]


def _field(method: str, field: Any, kind: Any, about: str) -> Field:
    learnt = LEARNT.get(method, {}).get(field.name, "")
    factory = field.default_factory() if field.default_factory is not MISSING else None
    default = "" if required(field) or learnt else text_of(factory if factory is not None else field.default)
    which, options = _kind(field.name, kind)
    empty = learnt or EMPTY.get((method, field.name), "")
    return Field(field.name, which, about, default, options, empty, field.name in RARE)


def _kind(name: str, kind: Any) -> tuple[Kind, tuple[str, ...]]:
    if name == "stack":
        return "choice", ("encoder", "decoder", "cross")
    if name == "region" and kind is str:
        return "region", ()
    options = get_args(kind)
    if get_origin(kind) in (typing.Union, types.UnionType):
        # Of number or list the number, of a list or none the list: what is left empty is the default.
        kind = next(option for option in options if option is not type(None))
        options = get_args(kind)
    if get_origin(kind) is Literal:
        return "choice", tuple(map(str, options))
    if get_origin(kind) is tuple:
        inner = options[0]
        if inner is int:
            return "numbers", ()
        if get_origin(inner) is tuple:
            return "pairs", ()
        return ("names" if inner is str else "keys"), ()
    if kind is bool:
        return "choice", ("true", "false")
    return {int: "whole", float: "number"}.get(kind, "text"), ()  # type: ignore[return-value]


def text_of(value: Any) -> str:
    """Write a value as the command line reads it.

    >>> text_of(0.01), text_of(("a", 3)), text_of(True), text_of(None), text_of(((3, 17), (4, 1)))
    ('0.01', 'a,3', 'true', '', '3.17,4.1')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, (list, tuple)):
        pairs = value and all(isinstance(one, (list, tuple)) for one in value)
        return ",".join(".".join(map(str, one)) if pairs else text_of(one) for one in value)
    return str(value)


def parameters(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of each parameter, in one paragraph each."""
    _, _, part = (inspect.getdoc(cls) or "").partition("Parameters\n----------\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in part.split("\n"):
        if line and not line[0].isspace():
            if set(line) == {"-"}:
                break
            names = [name.strip() for name in line.split(",")]
        elif line.strip():
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: plain(text) for name, text in found.items()}


@functools.cache
def about(name: str) -> About:
    """Return what is said of a method."""
    method = find_method(name)
    module = importlib.import_module(method.__module__)
    first = (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
    line = first.partition(": ")[2] or first
    doc = inspect.getdoc(method) or ""
    text = plain(doc.partition("\nParameters\n")[0].strip())
    paper = re.search(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)", " ".join(text.split())) or re.search(
        r"([A-Z]\w+(?: et al\.| and \w+)? (?:19|20)\d\d[^.)]*)", first + " " + (inspect.getdoc(module) or "")
    )
    arxiv = re.search(r"arXiv (\d{4}\.\d{4,5})", paper[1]) if paper else None
    return About(
        method.__name__,
        line[:1].upper() + line[1:],
        text,
        " ".join(paper[1].split()) if paper else "",
        arxiv[1] if arxiv else "",
        TITLES[name],
    )


def plain(text: str) -> str:
    """Return text without the marks of code."""
    return text.replace("``", "")
