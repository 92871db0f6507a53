"""The cases of the contract. A method earns all tests of ``test_contract.py`` by adding itself to ``CASES``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headscope as hs
from headscope.interventions.registry import find_method
from headscope.models.tiny import tiny
from tests.interventions import eager
from tests.interventions.eager import Formula, Place

HEADS = ((0, 1), (1, 0), (1, 2))
IDS = tuple(range(5, 29))
MORE = (7, 8, 9, 60, 61)
"""How a prompt goes on, where its continuation is forced."""
REGIONS = {"span": range(4, 9), "next": range(9, 13), "tail": range(15, 20)}

_EIGHT = {"num_attention_heads": 8, "hidden_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "group 1": ("llama", {**_EIGHT, "num_key_value_heads": 8}),
    "group 4": ("llama", {**_EIGHT, "num_key_value_heads": 2}),
    "group 8": ("llama", {**_EIGHT, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {}),  # a sliding window in every layer
    "gemma2": ("gemma2", {}),  # soft-cap, and a window in the first layer
    "gemma3": ("gemma3", {}),
    "gpt_oss": ("gpt_oss", {}),  # learned sinks
}


@cache
def model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    family, options = MODELS[name]
    hf = tiny(family, seed=seed, **options)
    if family == "gpt_oss":
        hf.set_experts_implementation("eager")  # the fused one knows no double precision
    return hs.load(hf.to(dtype), validate=False)


def prompt(of: Any, more: tuple[int, ...] = (), ids: tuple[int, ...] = IDS) -> Any:
    return of.prompt_from_ids([*ids, *more], {name: list(found) for name, found in REGIONS.items()})


Make = Callable[[Any, Path], Any]
"""Makes a method for a model; what it keeps in files goes into the folder."""


@dataclass(frozen=True)
class Case:
    """One method at full strength.

    Parameters
    ----------
    method
        Its name in the registry.
    formula
        What it does to the pattern of a head, after the softmax; None for methods that leave patterns alone.
    heads
        The heads that it edits; None where it edits no head by itself.
    looks_ahead
        Whether rows depend on what follows them in the prompt, by the method's own definition.
    unserved
        Models that it refuses.
    """

    method: str
    make: Make
    formula: Formula | None = None
    heads: tuple[tuple[int, int], ...] | None = HEADS
    looks_ahead: bool = False
    unserved: tuple[str, ...] = ()


def of(method: str, **fields: Any) -> Make:
    return lambda model, folder: find_method(method)(**fields)


def per_head(method: str, *names: str, **fields: Any) -> Make:
    """A method with random vectors of each head under ``names``."""

    def make(model: Any, folder: Path) -> Any:
        rng = np.random.default_rng(0)
        widths = [model.sites.stack(None)[layer].output_weight().shape[1] for layer, _ in HEADS]
        vectors = {name: tuple(rng.normal(size=width).astype("f") for width in widths) for name in names}
        return find_method(method)(heads=HEADS, **vectors, **fields)

    return make


def stream_width(model: Any) -> int:
    return model.sites.stack(None)[0].output_weight().shape[2]


def ablation(mode: str) -> Make:
    """Heads replaced by random vectors, or by draws from random banks."""

    def make(model: Any, folder: Path) -> Any:
        rng = np.random.default_rng(0)
        sites = model.sites.stack(None)
        shape = {"mean": (), "resample": (9,)}[mode]
        everywhere = [(layer, head) for layer, site in sites.items() for head in range(site.heads)]
        values = {
            pair: rng.normal(size=(*shape, sites[pair[0]].output_weight().shape[1])).astype("f") for pair in everywhere
        }
        return find_method("ablation")(heads=HEADS, mode=mode, values=values)

    return make


def steering(model: Any, folder: Path) -> Any:
    vector = np.random.default_rng(0).normal(size=stream_width(model))
    return find_method("steering")(layer=1, vector=vector, positions="span")


def lora(model: Any, folder: Path) -> Any:
    """An adapter as peft writes it, on one projection of the second layer."""
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(0)
    path, module = next(
        (name, part)
        for name, part in model.hf.named_modules()
        if name.startswith(model.spec.layers()[1].attn + ".") and hasattr(part, "weight") and part.weight.dim() == 2
    )
    rows, columns = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.T.shape
    made = folder / model.fingerprint[:12]
    made.mkdir(exist_ok=True)
    tensors = {"A": torch.randn(2, columns, generator=g), "B": torch.randn(rows, 2, generator=g)}
    save_file(
        {f"base_model.model.{path}.lora_{k}.weight": x for k, x in tensors.items()}, made / "adapter_model.safetensors"
    )
    (made / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1}))
    (made / "headscope.json").write_text(json.dumps({"fingerprint": model.fingerprint, "name": model.name}))
    return find_method("lora")(str(made))


def sae(model: Any, folder: Path) -> Any:
    """A random SAE of the stream that the second layer reads."""
    from sae_lens.saes.sae import SAE, SAEMetadata

    from headscope.interventions.sae import save_sae

    config = {"architecture": "standard", "d_in": stream_width(model), "d_sae": 40}
    made = SAE.from_dict({**config, "metadata": SAEMetadata(hook_name="blocks.1.hook_resid_pre").to_dict()})
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return find_method("sae")(str(save_sae(made, folder / f"sae{stream_width(model)}")), 3, "clamp", 2.0)


def from_the_last_on(at: Place) -> torch.Tensor:
    """The row of the prompt's last real token, and each row after it."""
    return at.q >= max(position for position in at.real if position < at.prompt)


CASES: dict[str, Case] = {
    "PASTA": Case("pasta", of("pasta", heads=HEADS, region="span"), eager.pasta(("span",), 0.01)),
    "PASTA, two regions": Case(
        "pasta", of("pasta", heads=HEADS, region=("span", "tail"), alpha=0.2), eager.pasta(("span", "tail"), 0.2)
    ),
    "PASTA, include": Case(
        "pasta",
        of("pasta", heads=HEADS, region="span", alpha=30.0, mode="include"),
        eager.pasta(("span",), 30.0, "include"),
    ),
    "ACT": Case("act", of("act", heads=HEADS, threshold=0.06, beta=0.2), eager.act(0.06, 0.2), looks_ahead=True),
    "ZeroTuning, up": Case("zerotuning", of("zerotuning", heads=HEADS, gamma=6.0), eager.zerotuning(6.0)),
    "ZeroTuning, down": Case("zerotuning", of("zerotuning", heads=HEADS, gamma=0.1), eager.zerotuning(0.1)),
    "ZeroTuning, off": Case("zerotuning", of("zerotuning", heads=HEADS, gamma=0.0), eager.zerotuning(0.0)),
    "SpotLight": Case(
        "spotlight", of("spotlight", heads=HEADS, region="span", psi=0.6), eager.spotlight(("span",), 0.6)
    ),
    "knock-out": Case("knockout", of("knockout", heads=HEADS, source="span"), eager.knockout(("span",))),
    "knock-out, one target": Case(
        "knockout", of("knockout", heads=HEADS, source=("span",), target="next"), eager.knockout(("span",), ("next",))
    ),
    "temperature": Case("temperature", of("temperature", heads=HEADS, temperature=0.4), eager.temperature(0.4)),
    "PAI": Case("pai", of("pai", heads=HEADS, region="span", alpha=0.7), eager.pai(("span",), 0.7)),
    "PAI, last rows": Case(
        "pai",
        of("pai", heads=HEADS, region="tail", alpha=0.7, queries="last"),
        eager.only_rows(eager.pai(("tail",), 0.7), from_the_last_on),
    ),
    "VAR": Case(
        "var",
        of(
            "var",
            dimensions=(0, 1, 2),
            region="span",
            heads=HEADS,
            tau=1.2,
            keep_fraction=0.1,
            max_sink_portion=0.9,
            min_total=0.05,
        ),
        eager.var("span", (0, 1, 2), 1.2, 0.1, 0.9, 0.05),
    ),
    "ablation, zero": Case("ablation", of("ablation", heads=HEADS)),
    "ablation, mean": Case("ablation", ablation("mean")),
    "ablation, resample": Case("ablation", ablation("resample")),
    "ablation, mask": Case(
        "ablation", of("ablation", heads=HEADS, mode="mask", region="span"), eager.knockout(("span",))
    ),
    "ablation, neurons": Case(
        "ablation", of("ablation", neurons=[(0, 3), (0, 5), (1, 7)]), heads=None, unserved=("gpt_oss",)
    ),
    "LoFiT": Case("lofit", per_head("lofit", "v", "A")),
    "ITI": Case("iti", per_head("iti", "directions", sigma=(0.3, 0.2, 0.1))),
    "steering": Case("steering", steering, heads=None),
    "LoRA": Case("lora", lora, heads=None),
    "SAE": Case("sae", sae, heads=None),
    "PINE": Case(
        "pine",
        of("pine", segments=("span", "next")),
        heads=None,
        unserved=("gpt2", "mistral", "gemma2", "gemma3", "gpt_oss"),  # rotary positions and full attention
    ),
}
