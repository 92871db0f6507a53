"""Features of sparse autoencoders: trained, chosen by contrast, and steered, through SAELens.

Any SAE that SAELens can read is served, on the residual stream or on z, the output of all heads of a layer side by
side. An edit moves the activation along a feature's decoder direction and leaves everything else as it was, the part
that the SAE does not reconstruct included. Choosing features by contrast follows LF-Steering (Yang et al. 2025,
"LF-Steering: latent feature activation steering for enhancing semantic consistency in large language models").
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from headscope.attention.edits.residual import changed_rows, check_stream_layer, checked_positions, on_stream
from headscope.errors import DataError, ModelError, OutputError, RequestError, UnsupportedError, WeightsError
from headscope.interventions.base import Method

if TYPE_CHECKING:
    import pandas as pd

    from headscope.attention.session import Session
    from headscope.attention.sites import Sites
    from headscope.models.model import Model
    from headscope.models.prompt import Prompt

logger = logging.getLogger(__name__)

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


# -- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaeReport:
    """How good an SAE is, on activations that it was not trained on unless it says so.

    Attributes
    ----------
    tokens_train, tokens_test
        Activations that it was trained on (each may be seen several times), and measured on.
    l0
        Mean number of features that fire per token.
    explained_variance
        1 − Σ‖x − x̂‖² / Σ‖x − mean‖².
    dead
        Features that never fired on the training activations.
    width
        Number of features.
    """

    tokens_train: int
    tokens_test: int
    l0: float
    explained_variance: float
    dead: int
    width: int


@dataclass(frozen=True, eq=False)
class TrainedSae:
    """A trained SAE with its report; ``save`` writes SAELens' format."""

    sae: Any = field(repr=False)
    report: SaeReport

    def save(self, folder: str | Path) -> Path:
        """Write the SAE."""
        return save_sae(self.sae, folder)


def train_sae(
    model: Model,
    texts: Sequence[str | Prompt],
    layer: int,
    *,
    site: Site = "head_output",
    width: int | None = None,
    architecture: Literal["topk", "standard"] = "topk",
    k: int = 16,
    l1_coefficient: float = 1.0,
    tokens: int = 50_000,
    steps: int = 2000,
    train_batch: int = 256,
    lr: float = 1e-3,
    skip_first: bool = True,
    test_share: float = 0.1,
    batch_size: int = 8,
    seed: int = 0,
) -> TrainedSae:
    """Train a small SAE with SAELens on what one layer's heads put out, or on the stream that a block reads.

    Parameters
    ----------
    texts
        Texts or prompts; each is cut to the model's context. Whole texts are held out for the report.
    layer, site
        Where: z of all heads of a layer side by side, or the input of a block.
    width
        Number of features; four times the activation's width by default.
    architecture, k, l1_coefficient
        ``"topk"`` with k features per token, or ``"standard"`` with an L1 penalty.
    tokens
        Most activations to hold in memory: 4 · width of the activation bytes each.
    steps, train_batch, lr
        Adam steps of ``train_batch`` activations, and the learning rate, which falls to 0 over the last fifth.
    skip_first
        Leave out each text's first token, whose activations are far larger than all others in most models.
    test_share
        Share of texts held out.

    Raises
    ------
    DataError
        If the texts give too few activations to train on and to test on.
    RequestError
        If a parameter is out of range.
    """
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    for name, count in (("tokens", tokens), ("steps", steps), ("train_batch", train_batch), ("batch_size", batch_size)):
        if count < 1:
            raise RequestError(f"train_sae({name}={count}) must be at least 1.")
    train, test = _split_activations(model, texts, layer, site, tokens, skip_first, test_share, batch_size, seed)
    d_in = train.shape[1]
    shared: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": width or 4 * d_in,
        "dtype": "float32",
        "device": str(model.device),
        "normalize_activations": "expected_average_only_in",
        "reshape_activations": "hook_z" if site == "head_output" else "none",  # as SAELens reads this hook
        "metadata": _metadata(model, layer, site),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae: Any
        if architecture == "topk":
            if not 0 < k <= shared["d_sae"]:
                raise RequestError(f"train_sae(k={k}): k must lie between 1 and the width {shared['d_sae']}.")
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=k, **shared))
        elif architecture == "standard":
            sae = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=l1_coefficient, **shared))
        else:
            raise RequestError(f"train_sae(architecture={architecture!r}): choose topk or standard.")
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=steps * train_batch,
            train_batch_size_samples=train_batch,
            lr=lr,
            lr_end=lr / 10,
            lr_decay_steps=steps // 5,
            dead_feature_window=max(20, steps // 20),  # silent for so long, a feature of TopK is revived
            device=str(model.device),
        ),
        sae,
        _batches(train, train_batch, seed),
    )
    scale = float(d_in**0.5 / train.norm(dim=-1).mean())
    trainer.activation_scaler.scaling_factor = scale
    for step in range(steps):
        # The trainer's own loop does the same under a progress bar that cannot be turned off.
        output = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        if step % max(1, steps // 10) == 0:
            logger.info("SAE step %d of %d: loss %.4f", step, steps, float(output.loss.detach()))
    sae.fold_activation_norm_scaling_factor(scale)
    trainer.set_final_sae_metadata()
    done = _for_inference(sae)
    return TrainedSae(done, measure_sae(done, train, test))


def measure_sae(sae: Any, train: Tensor, test: Tensor) -> SaeReport:
    """Return the report of an SAE on activations (N, d_in)."""
    fired = torch.zeros(int(sae.cfg.d_sae), dtype=torch.bool, device=sae.device)
    active, lost = 0.0, 0.0
    with torch.no_grad():
        for chunk in train.split(4096):
            fired |= (encode(sae, chunk.to(sae.device)) != 0).any(0)
        for chunk in test.split(4096):
            x = chunk.to(sae.device)
            f = encode(sae, x)
            active += float((f != 0).sum())
            lost += float((sae.decode(f).reshape(x.shape) - x).double().pow(2).sum())
    spread = float((test - test.mean(0)).double().pow(2).sum())
    return SaeReport(
        tokens_train=len(train),
        tokens_test=len(test),
        l0=active / len(test),
        explained_variance=1 - lost / spread if spread else float("nan"),
        dead=int((~fired).sum()),
        width=len(fired),
    )


def _split_activations(
    model: Model,
    texts: Sequence[str | Prompt],
    layer: int,
    site: Site,
    tokens: int,
    skip_first: bool,
    test_share: float,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return training and test activations, float32 (N, d_in), from different texts."""
    if site not in ("residual", "head_output"):
        raise RequestError(f"train_sae(site={site!r}): choose residual or head_output.")
    if not 0 < test_share < 1:
        raise RequestError(f"train_sae(test_share={test_share}) must lie between 0 and 1.")
    order = np.random.default_rng(seed).permutation(len(texts))
    held_out = max(1, round(test_share * len(texts)))
    parts = [[texts[i] for i in order[held_out:]], [texts[i] for i in order[:held_out]]]
    limits = [tokens, max(256, round(tokens * test_share))]
    found = [
        _activations(model, part, layer, site, limit, skip_first, batch_size)
        for part, limit in zip(parts, limits, strict=True)
    ]
    if min(map(len, found)) < 2:
        raise DataError(
            f"{len(texts)} texts give {len(found[0])} + {len(found[1])} activations to train and test: give more."
        )
    return found[0], found[1]


def _activations(
    model: Model, texts: Sequence[str | Prompt], layer: int, site: Site, limit: int, skip_first: bool, batch_size: int
) -> Tensor:
    from headscope.attention.requests import HeadOutput, Residual

    kept: list[Tensor] = []
    count = 0
    for start in range(0, len(texts), batch_size):
        if count >= limit:
            break
        prompts = [_cut(model, text) for text in texts[start : start + batch_size]]
        request = Residual(layers=[layer]) if site == "residual" else HeadOutput(layers=[layer])
        values = torch.from_numpy(model.run(prompts, [request], logits=False, side="right")[request.key].values[0])
        if site == "head_output":
            values = values.transpose(1, 2).flatten(2)
        for row, prompt in zip(values, prompts, strict=True):
            kept.append(row[int(skip_first) : len(prompt)].clone())
            count += len(kept[-1])
    return torch.cat(kept)[:limit].float() if kept else torch.zeros(0, 1)


def _cut(model: Model, text: str | Prompt) -> Prompt:
    from headscope.models.prompt import Prompt

    prompt = Prompt.from_text(model._need_tokenizer(), text) if isinstance(text, str) else text
    limit = model.spec.n_ctx
    if limit is None or len(prompt) <= limit:
        return prompt
    return Prompt.from_ids(prompt.ids[:limit], tokenizer=model.tokenizer)


def _batches(x: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Yield batches for ever, each epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.zeros(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(len(x), generator=generator)])
        yield x[left[:size]]
        left = left[size:]


def _metadata(model: Model, layer: int, site: Site) -> Any:
    from sae_lens.saes.sae import SAEMetadata

    if site == "head_output":
        hook = f"blocks.{layer}.attn.hook_z"
    elif layer < model.spec.n_layers:
        hook = f"blocks.{layer}.hook_resid_pre"
    else:
        hook = f"blocks.{layer - 1}.hook_resid_post"
    return SAEMetadata(model_name=model.name, hook_name=hook, model_fingerprint=model.fingerprint)


def _for_inference(sae: Any) -> Any:
    """Return SAELens' inference SAE of a trained one."""
    from sae_lens import SAE

    if sae.cfg.architecture() == "standard":
        sae.fold_W_dec_norm()
    weights = {name: x.detach().clone() for name, x in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(weights)
    done = SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    done.process_state_dict_for_loading(weights)
    done.load_state_dict(weights)
    return done.eval()
