"""Options that every command has which loads a model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import typer

MACHINE = "Model and machine"
"""Heading of the options about both, in the help."""


class Precision(StrEnum):
    """Number format of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


Dtype: TypeAlias = Annotated[Precision, typer.Option(help="Precision of the model.", rich_help_panel=MACHINE)]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is", rich_help_panel=MACHINE),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", show_default="all", rich_help_panel=MACHINE)
]
Revision: TypeAlias = Annotated[
    str | None, typer.Option(help="Revision of a hub model.", show_default="newest", rich_help_panel=MACHINE)
]
