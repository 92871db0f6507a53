"""LoRA, the baseline of tuned heads: low-rank updates of query and value projections, trained through peft."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from headscope.errors import CheckpointError, HeadscopeError, OutputError, RequestError, UnsupportedError
from headscope.files import sha256_file, write_text
from headscope.interventions.base import Method
from headscope.interventions.lofit import Tuned
from headscope.interventions.training import Example, Loss, Recipe, frozen, open_store, train

if TYPE_CHECKING:
    from headscope.attention.edits import Edit
    from headscope.attention.session import Session
    from headscope.attention.sites import Site, Sites
    from headscope.probes.base import Progress

WEIGHTS, CONFIG, RECORD = "adapter_model.safetensors", "adapter_config.json", "headscope.json"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

Update = tuple[int, str, Tensor, Tensor]
"""Layer, path of the projection inside the attention module, A (r, in), and B (out, r) with all factors in it."""


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adaptation (Hu et al. 2022): a projection W x becomes W x + (alpha / rank) · B A x.

    Made by ``tune_lora``. The adapter is a folder as peft writes it; running it needs no peft.

    Parameters
    ----------
    folder
        Where the adapter is.
    sha256
        Hash of its weights; a folder with other weights is refused. By default that of the folder as it is.
    scale
        Multiplies the update; 0 changes nothing.
    """

    folder: str
    sha256: str = ""
    scale: float = 1.0
    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))
        path = Path(self.folder) / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"There is no adapter in {self.folder}: it has no {WEIGHTS}.")
        found = sha256_file(path)
        if self.sha256 and found != self.sha256:
            raise CheckpointError(f"The adapter in {self.folder} is not the one that was saved: train it again.")
        object.__setattr__(self, "sha256", found)

    @property
    def neutral(self) -> bool:
        """Whether the update is switched off."""
        return self.scale == 0

    def neutralised(self) -> Self:
        """Return the method with ``scale=0``."""
        return type(self)(self.folder, self.sha256, 0.0)

    def edits(self, model: Any) -> tuple[Edit, ...]:
        """Return one edit that adds the updates.

        Raises
        ------
        CheckpointError
            If the adapter was trained on other weights, or is damaged.
        """
        record = Path(self.folder) / RECORD
        if record.is_file():
            made_for = json.loads(record.read_text(encoding="utf-8"))
            if made_for["fingerprint"] != model.fingerprint:
                raise CheckpointError(
                    f"The adapter in {self.folder} was trained on {made_for['name']!r}, whose weights differ from "
                    f"those of {model.name!r}. Train it again for this model."
                )
        places = {layer.attn: layer.index for layer in model.spec.layers()}
        updates = []
        for path, (down, up) in _read(self.folder, self.sha256).items():
            found = next((at for at in places if path.startswith(f"{at}.")), None)
            if found is None:
                raise UnsupportedError(f"The adapter in {self.folder} changes {path}, which is in no attention layer.")
            updates.append((places[found], path.removeprefix(f"{found}."), down, up * self.scale))
        return (LowRankEdit(tuple(updates)),)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class LowRankEdit:
    """Add low-rank updates B A x to linear projections W x inside attention modules.

    Parameters
    ----------
    updates
        Layer, path of the projection inside the attention module, A (r, in), and B (out, r).
    stack
        Which attention; the model's own by default.
    """

    updates: tuple[Update, ...] = field(repr=False)
    stack: str | None = None

    @property
    def neutral(self) -> bool:
        """Whether all updates are 0."""
        return not any(bool(up.any()) and bool(down.any()) for _, _, down, up in self.updates)

    def validate(self, sites: Sites) -> None:
        """Raise RequestError if a projection is not in the model, or is of another size."""
        found = sites.stack(self.stack)
        for layer, path, down, up in self.updates:
            modules = dict(found[layer].attention.named_modules()) if layer in found else {}
            if path not in modules or _size(modules[path]) != (down.shape[1], up.shape[0]):
                size = "nothing" if path not in modules else _size(modules[path])
                raise RequestError(
                    f"An update of {path} in layer {layer} maps {down.shape[1]} to {up.shape[0]} numbers; "
                    f"this model has {size} there."
                )

    def hooks(self, session: Session) -> list[Any]:
        """Install the updates; return the handles."""
        found = session.sites.stack(self.stack)
        return [
            found[layer].attention.get_submodule(path).register_forward_hook(_adding(down, up))
            for layer, path, down, up in self.updates
        ]


def _adding(down: Tensor, up: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        low = x.to(down.dtype) @ down.to(x.device).T
        changed: Tensor = output + (low @ up.to(x.device).T).to(output.dtype)
        return changed

    return hook


@lru_cache(maxsize=8)
def _read(folder: str, sha256: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Read A and (alpha / rank) · B by path of the projection; ``sha256`` is part of the key of the cache."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(Path(folder) / WEIGHTS)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        plain = not any(config.get(name) for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"))
        paths = [name.removeprefix(_PREFIX).removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]
        if not plain or not paths or 2 * len(paths) != len(tensors):
            raise UnsupportedError(
                f"The adapter in {folder} is more than LoRA of linear projections with one rank: only that is run here."
            )
        return {
            path: (tensors[_PREFIX + path + _DOWN].float(), tensors[_PREFIX + path + _UP].float() * (alpha / rank))
            for path in paths
        }
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"The adapter in {folder} is damaged: {type(error).__name__}: {error}.") from error


@dataclass(frozen=True)
class LoRARecipe:
    """How LoRA is trained.

    Parameters
    ----------
    budget
        How many numbers to train, about: rank, layers and projections are chosen to meet it, see ``plan``.
    alpha
        The update is multiplied by alpha / rank; by default alpha is twice the rank.
    lr, epochs, batch, seed, loss, beta
        As in ``Recipe``.
    """

    budget: int
    alpha: float | None = None
    lr: float = 1e-3
    epochs: int = 5
    batch: int = 8
    seed: int = 42
    loss: Loss = "sft"
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise RequestError(f"budget={self.budget}: train at least one number.")
        _ = self.stage

    @property
    def stage(self) -> Recipe:
        """The recipe of the training loop."""
        return Recipe(self.lr, self.epochs, self.batch, self.seed, self.loss, self.beta)


@dataclass(frozen=True)
class Plan:
    """Which projections get updates, and of which rank.

    Attributes
    ----------
    rank
        Rank of every update.
    modules
        Paths of the projections in the model.
    parameters
        How many numbers that trains.
    words
        The same, in words.
    """

    rank: int
    modules: tuple[str, ...]
    parameters: int
    words: str


def plan(model: Any, budget: int) -> Plan:
    """Return the LoRA whose number of trained parameters comes nearest to a budget.

    Queries and values of all layers come first, with the rank that fits. Where rank 1 is too much, as many layers
    as fit, evenly spread; where one layer is too much or far off, its values or queries alone. Models whose
    projections are fused get updates of the fused ones.
    """
    best: Plan | None = None
    for roles in (("q", "v"), ("v",), ("q",)):
        by_layer = [_targets(model.sites.stack(None)[layer.index], roles) for layer in _layers(model)]
        costs = [sum(sum(_size(module)) for module in found.values()) for found in by_layer]
        if not all(costs):
            continue
        total = sum(costs)
        rank = max(1, round(budget / total))
        count = len(costs) if budget >= total else max(1, round(budget * len(costs) / total))
        chosen = [round((i + 0.5) * len(costs) / count - 0.5) for i in range(count)]
        layers = [_layers(model)[i] for i in chosen]
        found = Plan(
            rank,
            tuple(f"{layer.attn}.{name}" for layer, i in zip(layers, chosen, strict=True) for name in by_layer[i]),
            rank * sum(costs[i] for i in chosen),
            f"rank {rank} of {', '.join(by_layer[chosen[0]])} in {count} of {len(costs)} layers",
        )
        if best is None or abs(found.parameters - budget) < abs(best.parameters - budget) / 2:
            best = found
    if best is None:
        raise UnsupportedError(f"{model.name} has no linear query or value projection that LoRA could update.")
    return best


def tune_lora(
    model: Any,
    data: Sequence[Example],
    recipe: LoRARecipe,
    folder: str | Path,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    stage: str = "lora",
) -> Tuned:
    """Train a LoRA of about ``recipe.budget`` numbers, and save it in ``folder`` as peft does.

    Parameters
    ----------
    folder
        Where the adapter goes: a new folder, an empty one, or that of an earlier adapter, which is replaced.
    out, fresh, progress
        Checkpoints, whether to discard earlier ones, and who is told of each step.
    stage
        Name of the progress bar and of the checkpoints.

    Raises
    ------
    HeadscopeError
        If peft is not installed.
    OutputError
        If the folder holds something else, or cannot be written.
    """
    peft, began = require(), time.perf_counter()
    folder, found = Path(folder), plan(model, recipe.budget)
    _writable(folder)
    fingerprint = model.fingerprint  # of the model without adapter
    model.sites.by_module  # noqa: B018 - find the modules before peft wraps some of them
    config = peft.LoraConfig(
        r=found.rank,
        lora_alpha=2 * found.rank if recipe.alpha is None else recipe.alpha,
        lora_dropout=0.0,
        target_modules=list(found.modules),
        fan_in_fan_out=_conv1d(model.hf.get_submodule(found.modules[0])),
    )
    store = open_store(model, out, stage, data, recipe, fresh, modules=found.modules, rank=found.rank)
    with frozen(model.hf):
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
            torch.manual_seed(recipe.seed)
            adapted = peft.get_peft_model(model.hf, config)
        adapted.peft_config["default"].base_model_name_or_path = model.name
        try:
            tensors = {name: p for name, p in adapted.named_parameters() if ".lora_" in name}
            history = train(
                model,
                tensors,
                data,
                recipe.stage,
                under=lambda mask: contextlib.nullcontext(),
                stage=stage,
                store=store,
                progress=progress,
            )
            _save(adapted, folder, {"name": model.name, "fingerprint": fingerprint})
        finally:
            adapted.unload()
            vars(model.hf).pop("peft_config", None)
    trained = sum(tensor.numel() for tensor in tensors.values())
    return Tuned(
        LoRA(str(folder)), trained, {stage: history}, seconds=time.perf_counter() - began, notes=(found.words,)
    )


def available() -> bool:
    """Whether peft, which trains LoRA, is installed."""
    return importlib.util.find_spec("peft") is not None


def require() -> Any:
    """Return peft, which trains LoRA; HeadscopeError if it is not installed."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise HeadscopeError("Training LoRA needs peft: pip install 'headscope[lora]'.") from error


def _writable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"Cannot save an adapter to {folder}: it is a file. Choose a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise OutputError(f"Cannot save an adapter to {folder}: it holds something else. Choose a new folder.")


def _save(adapted: Any, folder: Path, record: dict[str, str]) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole = Path(temporary) / "whole"
            adapted.save_pretrained(whole, save_embedding_layers=False)
            (whole / "README.md").unlink(missing_ok=True)  # a form to fill in
            write_text(whole / RECORD, json.dumps(record, indent=1) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
            whole.replace(folder)
    except OSError as error:
        raise OutputError(
            f"Cannot save an adapter to {folder}: {error.strerror or error}. Choose a folder that is writable."
        ) from error


def _layers(model: Any) -> list[Any]:
    return [layer for layer in model.spec.layers() if layer.attention != "linear"]


def _targets(site: Site, roles: tuple[str, ...]) -> dict[str, nn.Module]:
    """Linear projections of an attention module by role; all that are fused or unnamed for queries and values."""
    linear = {
        name: module
        for name, module in site.attention.named_modules()
        if name and module is not site.output and (isinstance(module, nn.Linear) or _conv1d(module))
    }
    role = {name: _role(name.rpartition(".")[2]) for name in linear}
    if {"q", "v"} <= set(role.values()):
        return {name: module for name, module in linear.items() if role[name] in roles}
    return linear if roles == ("q", "v") else {}


def _role(name: str) -> str:
    fused = name.startswith(("qkv", "query_key"))
    return "" if fused else next((role for role in ("q", "v") if name.startswith(role)), "")


def _conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _size(module: nn.Module) -> tuple[int, int]:
    """Numbers in and out."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return 0, 0
    rows, columns = weight.shape
    return (rows, columns) if _conv1d(module) else (columns, rows)
