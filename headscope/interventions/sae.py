"""Features of sparse autoencoders: read from SAELens, chosen by contrast, and steered.

Any SAE that SAELens can read is served, on the residual stream or on z, the output of all heads of a layer side by
side. An edit moves the activation along a feature's decoder direction and leaves everything else as it was, the part
that the SAE does not reconstruct included. Choosing features by contrast follows LF-Steering (Yang et al. 2025,
"LF-Steering: latent feature activation steering for enhancing semantic consistency in large language models").
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from headscope.attention.edits.residual import changed_rows, check_stream_layer, checked_positions, on_stream
from headscope.errors import ModelError, OutputError, RequestError, UnsupportedError, WeightsError
from headscope.interventions.base import Method

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.session import Session
    from headscope.attention.sites import Sites
    from headscope.models.model import Model

Site = Literal["residual", "head_output"]

_WEIGHTS, _CONFIG = "sae_weights.safetensors", "cfg.json"  # SAELens' own names
_HOOKS = {
    r"blocks\.(\d+)\.attn\.hook_z": ("head_output", 0),
    r"blocks\.(\d+)\.hook_resid_pre": ("residual", 0),
    r"blocks\.(\d+)\.hook_resid_post": ("residual", 1),
}


@dataclass(frozen=True, eq=False)
class SaeFeature(Method):
    """Steer one feature of a sparse autoencoder, or set it to a value.

    Parameters
    ----------
    sae
        A folder in SAELens' format, or an SAE object. Only a folder can be saved with the method.
    feature
        Index of the feature.
    mode
        ``"add"``: the activation x becomes x + value · d, d the feature's decoder direction. ``"clamp"``: x becomes
        x + (value − f(x)) · d, so that the feature reads ``value`` in the reconstruction while its error is kept.
    value
        In units of the feature's activation. 0 is neutral under ``"add"``; under ``"clamp"`` it switches the feature
        off.
    positions
        Everywhere, or at regions of the prompt; see ``ResidualEdit``.
    layer, site
        Where the SAE reads; by default what its metadata say. A layer counts as in ``Residual()`` and ``HeadOutput()``.
    sha256
        Of the weights file; when the method is read back, a file that has changed since is refused.
    """

    name: ClassVar[str] = "sae"

    sae: Any
    feature: int
    mode: Literal["add", "clamp"] = "add"
    value: float = 0.0
    positions: str | tuple[str | int, ...] | None = None
    layer: int | None = None
    site: Site | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("add", "clamp"):
            raise RequestError(f"SaeFeature(mode={self.mode!r}): choose add or clamp.")
        if self.site not in (None, "residual", "head_output"):
            raise RequestError(f"SaeFeature(site={self.site!r}): choose residual or head_output.")
        if not np.isfinite(self.value):
            raise RequestError(f"SaeFeature(value={self.value}) is not finite.")
        object.__setattr__(self, "positions", checked_positions(self.positions, "SaeFeature"))
        if isinstance(self.sae, (str, Path)):
            object.__setattr__(self, "sae", str(self.sae))
            found = weights_hash(self.sae)
            if self.sha256 not in (None, found):
                raise WeightsError(f"The SAE in {self.sae} is not the one that this feature was saved with.")
            object.__setattr__(self, "sha256", found)

    @property
    def neutral(self) -> bool:
        """Whether nothing is added."""
        return self.mode == "add" and self.value == 0

    def neutralised(self) -> Self:
        """Return the method that adds nothing."""
        return replace(self, mode="add", value=0.0)

    def edits(self, model: Model) -> tuple[Any, ...]:
        """Return the edit, checked against the model that the SAE was trained on."""
        sae = load_sae(self.sae, str(model.device)) if isinstance(self.sae, str) else self.sae
        if sae.device.type != model.device.type:
            raise RequestError(f"The SAE is on {sae.device}, the model on {model.device}: use sae.to(device=…).")
        held = sae.cfg.metadata.get("model_fingerprint")
        if held is not None and held != model.fingerprint:
            raise RequestError(
                f"This SAE belongs to a model of other weights ({str(held)[:12]}… is not {model.fingerprint[:12]}…)."
            )
        site, layer = place(sae, self.site, self.layer)
        return (SaeEdit(layer, site, sae, int(self.feature), self.mode, float(self.value), self.positions),)


@dataclass(frozen=True, eq=False)
class SaeEdit:
    """Move an activation along one feature of an SAE: made by ``SaeFeature.edits``."""

    layer: int
    site: Site
    sae: Any = field(repr=False)
    feature: int
    mode: Literal["add", "clamp"]
    value: float
    positions: str | tuple[str | int, ...] | None = None
    heads: ClassVar[tuple[tuple[int, int], ...]] = ()
    stack: ClassVar[str | None] = None

    @property
    def neutral(self) -> bool:
        """Whether nothing is added."""
        return self.mode == "add" and self.value == 0

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if the SAE does not fit the layer or has no such feature."""
        width, count = int(self.sae.cfg.d_in), int(self.sae.cfg.d_sae)
        found = sites.stack(None)
        if self.site == "residual":
            check_stream_layer(sites, None, self.layer, "SaeFeature")
            expected = next(iter(found.values())).output_weight().shape[2]
        else:
            if self.layer not in found:
                raise RequestError(f"SaeFeature(layer={self.layer}): layers go from {min(found)} to {max(found)}.")
            expected = found[self.layer].output_weight().flatten(0, 1).shape[0]
        if width != expected:
            raise RequestError(
                f"The SAE reads {width} numbers, the {self.site.replace('_', ' ')} of layer {self.layer} has "
                f"{expected}. It may belong to another model, layer or site."
            )
        if not 0 <= self.feature < count:
            raise RequestError(f"SaeFeature(feature={self.feature}): this SAE has features 0 to {count - 1}.")

    def hooks(self, session: Session) -> list[Any]:
        """Install the edit; return what removes it."""
        change = partial(self.apply, direction=decoder_direction(self.sae, self.feature))
        if self.site == "residual":
            return [on_stream(session, None, self.layer, self.positions, change)]
        output = session.sites.stack(None)[self.layer].output

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (changed_rows(session, session.sites.default, self.positions, args[0], change), *args[1:])

        return [output.register_forward_pre_hook(hook)]

    def apply(self, x: Tensor, direction: Tensor | None) -> Tensor:
        """Return activations (…, d_in) edited at every position; ``direction`` as ``decoder_direction`` gives it."""
        if direction is None:
            return x + self._by_row(x).to(x)
        if self.mode == "add":
            return x + self.value * direction.to(x)
        return x + ((self.value - encode(self.sae, x)[..., self.feature, None]) * direction).to(x)

    def _by_row(self, x: Tensor) -> Tensor:
        """Return decode(f') − decode(f) where the SAE normalises each row."""
        # Encoding keeps the scale of each row, decoding uses it up: each decoding needs an encoding of its own.
        before = self.sae.decode(encode(self.sae, x)).reshape(x.shape)
        moved = encode(self.sae, x).clone()
        moved[..., self.feature] = self.value + (moved[..., self.feature] if self.mode == "add" else 0)
        change: Tensor = self.sae.decode(moved).reshape(x.shape) - before
        return change


@torch.no_grad()
def decoder_direction(sae: Any, feature: int) -> Tensor | None:
    """Return what one unit of a feature adds to the activation (d_in,), or None where that differs from row to row."""
    if sae.cfg.normalize_activations not in ("none", "expected_average_only_in"):
        return None
    one = torch.zeros(1, int(sae.cfg.d_sae), dtype=sae.dtype, device=sae.device)
    encode(sae, torch.zeros(1, int(sae.cfg.d_in), dtype=sae.dtype, device=sae.device))  # sets the shape to decode to
    none = sae.decode(one)
    one[0, feature] = 1
    found: Tensor = (sae.decode(one) - none).reshape(-1)
    return found


def encode(sae: Any, x: Tensor) -> Tensor:
    """Return the features (…, d_sae) of activations (…, d_in)."""
    # SAEs of SAELens' hook_z read (…, heads, Dv) and flatten it: one head as wide as all comes to the same.
    found: Tensor = sae.encode(x[..., None, :] if getattr(sae, "hook_z_reshaping_mode", False) else x)
    return found.to_dense() if found.is_sparse else found


def place(sae: Any, site: Site | None = None, layer: int | None = None) -> tuple[Site, int]:
    """Return the site and layer that an SAE reads, by its metadata where they are not given."""
    hook = str(sae.cfg.metadata.get("hook_name") or "")
    for pattern, (known, step) in _HOOKS.items():
        if found := re.fullmatch(pattern, hook):
            return site or known, int(found[1]) + step if layer is None else layer  # type: ignore[return-value]
    if site is None or layer is None:
        raise RequestError(
            f"The SAE does not say where it reads (hook_name {hook!r}): pass layer= and site=, 'residual' or "
            "'head_output'. SAEs of MLP outputs and transcoders are not served."
        )
    return site, layer


# -- files ---------------------------------------------------------------------------------------------------------


def load_sae(folder: str | Path, device: str = "cpu") -> Any:
    """Return the SAE of a folder in SAELens' format: ``cfg.json`` and ``sae_weights.safetensors``.

    Raises
    ------
    ModelError
        If the folder holds no SAE; WeightsError if it is damaged or not finite.
    """
    from sae_lens import SAE, Transcoder
    from safetensors import SafetensorError

    path = Path(folder)
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ModelError(
            f"There is no SAE in {path}: {' and '.join(missing)} missing. Pass a folder that SAELens wrote."
        )
    try:
        sae = SAE.load_from_disk(path, device=device)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"The SAE in {path} cannot be read: {error}. Its files may be damaged.") from error
    if isinstance(sae, Transcoder):
        raise UnsupportedError(
            f"{path} holds a transcoder, which writes elsewhere than it reads: only SAEs are served."
        )
    if not all(bool(torch.isfinite(x).all()) for x in sae.state_dict().values()):
        raise WeightsError(f"The SAE in {path} has weights that are not finite.")
    return sae.eval()


def save_sae(sae: Any, folder: str | Path) -> Path:
    """Write an SAE in SAELens' format, each file whole or not at all."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".part-") as part:
            sae.save_model(part)
            for name in (_WEIGHTS, _CONFIG):
                (Path(part) / name).replace(target / name)
    except OSError as error:
        raise OutputError(
            f"Cannot write an SAE to {target}: {error.strerror or error}. Choose another folder."
        ) from error
    return target


def weights_hash(folder: str | Path) -> str:
    """Return the SHA-256 of an SAE's weights file."""
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise ModelError(f"There is no SAE in {folder}: {_WEIGHTS} is missing.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- choosing features ---------------------------------------------------------------------------------------------


def contrast_features(
    model: Model,
    sae: Any,
    pairs: Sequence[Any],
    *,
    position: str = "last",
    q_max: float = 0.05,
    layer: int | None = None,
    site: Site | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank features by how differently they fire in the two prompts of contrast pairs.

    Parameters
    ----------
    pairs
        As for ``SteeringVector.fit``.
    position
        Where to read: ``"last"``, or a region, whose activations are averaged before encoding.
    q_max
        Features above this false discovery rate are not ``selected``. The test flips the signs of whole sources.

    Returns
    -------
    pandas.DataFrame
        Columns feature, difference (positive − negative), positive, negative (means), fires (share of prompts),
        p_value, q_value, selected; largest absolute difference first, selected ones before all others.
    """
    import pandas as pd

    from headscope.interventions.steering import activations, as_pairs
    from headscope.probes.statistics import false_discovery, sign_flip

    where, at = place(sae, site, layer)
    kind: Literal["residual", "head"] = "residual" if where == "residual" else "head"
    held = activations(model, pairs, [at], site=kind, position=position, batch_size=batch_size)[at]
    with torch.no_grad():
        x = torch.from_numpy(held.reshape(len(held), 2, -1)).to(sae.device, sae.dtype)
        f = encode(sae, x).double().cpu().numpy()
    difference = f[:, 0] - f[:, 1]
    sources = [pair.source or str(i) for i, pair in enumerate(as_pairs(pairs))]
    live = np.flatnonzero(difference.any(axis=0))
    p = np.ones(f.shape[-1])
    if len(live):
        p[live] = sign_flip(difference[:, live], sources, seed=seed)
    table = pd.DataFrame(
        {
            "feature": np.arange(f.shape[-1]),
            "difference": difference.mean(axis=0),
            "positive": f[:, 0].mean(axis=0),
            "negative": f[:, 1].mean(axis=0),
            "fires": (f != 0).mean(axis=(0, 1)),
            "p_value": p,
            "q_value": false_discovery(p),
        }
    )
    table["selected"] = (table["q_value"] <= q_max) & (table["difference"] != 0)
    size = table["difference"].abs()
    return (
        table.assign(size=size)
        .sort_values(["selected", "size"], ascending=False)
        .drop(columns="size")
        .reset_index(drop=True)
    )
