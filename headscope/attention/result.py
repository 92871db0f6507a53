"""What a run gives back: labelled arrays that know their layers, heads, positions and tokens."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from torch import Tensor

from headscope.errors import RequestError, nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from headscope.attention.tiles import QKStore


class Stat(xr.DataArray):
    """An ``xarray.DataArray`` with named dimensions: ``stat.sel(layer=3)``, ``stat.mean("query")``.

    Dimensions are among layer, head (or pair), batch, query (or step), key, region, group, rank, slot, row, col,
    channel, dim and unit. ``query`` and ``key`` carry token positions and, for a single prompt, the coordinates
    ``query_token`` and ``key_token``. Rows of padding are NaN (positions: −1) and left out of means.
    """

    __slots__ = ()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per number, with a column per dimension and the value under the stat's name."""
        frame = self.to_dataframe(name="value" if self.name is None else str(self.name)).reset_index()
        return frame.drop(columns="pair", errors="ignore")

    def plot(self, **kwargs: Any) -> go.Figure:  # type: ignore[override]
        """Return a plotly figure of a stat of one or two dimensions (of length above one).

        Raises
        ------
        RequestError
            If more dimensions are left: reduce or select some first.
        """
        import plotly.express as px

        left = self.squeeze(drop=False)
        if left.ndim == 0:
            left = left.expand_dims("value")
        if left.ndim > 2:
            raise RequestError(
                f"{self.name} has dimensions {', '.join(map(str, left.dims))}: reduce it to one or two first, for "
                'example .mean("query").sel(batch=0), then .plot().'
            )
        labels = [str(d) for d in left.dims]
        if left.ndim == 1:
            figure = px.line(x=self._labels(left, labels[0]), y=left.values, **kwargs)
            figure.update_layout(xaxis_title=labels[0], yaxis_title=str(self.name))
            return figure
        figure = px.imshow(
            left.values,
            x=self._labels(left, labels[1]),
            y=self._labels(left, labels[0]),
            color_continuous_scale="Viridis",
            aspect="auto",
            **kwargs,
        )
        figure.update_layout(xaxis_title=labels[1], yaxis_title=labels[0], coloraxis_colorbar_title=str(self.name))
        return figure

    @staticmethod
    def _labels(array: xr.DataArray, dim: str) -> list[Any]:
        token = f"{dim}_token"
        if token in array.coords and array.coords[token].dims == (dim,):
            return [f"{p} {t}" for p, t in zip(array.coords[dim].values, array.coords[token].values, strict=True)]
        return list(array.coords[dim].values) if dim in array.coords else list(range(array.sizes[dim]))


def label(
    name: str,
    values: np.ndarray[Any, Any],
    dims: Sequence[str],
    *,
    layers: Sequence[int],
    pairs: Sequence[tuple[int, int]] | None,
    axes: Mapping[str, Sequence[Any]],
    tokens: Mapping[str, Sequence[str]],
) -> Stat:
    """Build a stat.

    Parameters
    ----------
    layers, pairs
        Labels of the ``layer`` or ``pair`` dimension.
    axes
        Labels of other dimensions; those left out count from 0.
    tokens
        Token strings of the ``query``, ``step`` or ``key`` dimension.
    """
    coords: dict[str, Any] = {}
    for dim, size in zip(dims, values.shape, strict=True):
        if dim == "layer":
            coords["layer"] = list(layers)
        elif dim == "pair" and pairs is not None:
            coords["layer"] = ("pair", [layer for layer, _ in pairs])
            coords["head"] = ("pair", [head for _, head in pairs])
        else:
            coords[dim] = list(axes[dim]) if dim in axes else list(range(size))
        if dim in tokens:
            coords[f"{dim}_token"] = (dim, list(tokens[dim]))
    return Stat(values, dims=tuple(dims), coords=coords, name=name)


class MissingError(RequestError, KeyError):
    """A run holds nothing of that name; as a ``KeyError``, so that ``in`` and ``get`` work as in any mapping."""

    __str__ = Exception.__str__


class Run(Mapping[str, Stat]):
    """Results of one forward pass: ``run["entropy"]``.

    Attributes
    ----------
    logits
        (B, T, vocabulary), or the last position's only (B, 1, vocabulary), or None.
    prompt
        What was run.
    qk
        Stored queries and keys, by the key of their ``QK`` request.
    """

    def __init__(
        self,
        stats: dict[str, Stat],
        *,
        logits: Tensor | None,
        prompt: Any,
        qk: dict[str, QKStore] | None = None,
        model: Any = None,
    ) -> None:
        self._stats = stats
        self.logits = logits
        self.prompt = prompt
        self.qk = qk or {}
        # Results do not keep a model in memory.
        self._model = None if model is None else weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    def show(self, *, model: Any = None, **options: Any) -> Any:
        """Show the run in a notebook: heads, patterns, tokens, and why one attends to another.

        Needs ``hs.QK()`` among the captures of a run of one prompt; other captures become statistics of heads.
        ``model.view(prompt)`` captures all that the viewer can show.

        Parameters
        ----------
        model
            The model that ran; needed only if it was deleted since.
        options
            heads, layers, html, height, limit_mb and theme, as for ``Model.view``.

        Raises
        ------
        RequestError
            If the run kept no queries and keys, or is not of one prompt.
        """
        held = model if model is not None or self._model is None else self._model()
        return importlib.import_module("headscope.report.view.widget").show_run(self, held, **options)

    def __getitem__(self, key: str) -> Stat:
        if key not in self._stats:
            if key in self.qk:
                raise MissingError(f"{key!r} holds queries and keys, not an array: use run.qk[{key!r}].tile(…).")
            raise MissingError(f"This run captured no {key!r}.{nearest(key, self._stats)}")
        return self._stats[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stats)

    def __len__(self) -> int:
        return len(self._stats)

    def __repr__(self) -> str:
        held = ", ".join(f"{key} {dict(stat.sizes)}" for key, stat in self._stats.items())
        return f"{type(self).__name__}({held or 'nothing captured'})"


class Trace(Run):
    """Results of a generation: dimension ``step`` stands in place of ``query``.

    Step t is the row that *produced* generated token t; step 0 is the last row of the prompt.

    Attributes
    ----------
    tokens
        Generated token ids.
    text
        Their text.
    """

    def __init__(
        self, stats: dict[str, Stat], *, logits: Tensor | None, prompt: Any, tokens: list[int], text: str
    ) -> None:
        super().__init__(stats, logits=logits, prompt=prompt)
        self.tokens = tokens
        self.text = text
