"""Small sparse autoencoders, trained with SAELens on the outputs of one layer's heads or on the residual stream."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from headscope.errors import DataError, RequestError
from headscope.interventions.sae import Site, encode, save_sae

if TYPE_CHECKING:
    from headscope.models.model import Model
    from headscope.models.prompt import Prompt

logger = logging.getLogger(__name__)


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
