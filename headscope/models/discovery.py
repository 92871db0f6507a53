"""Find the attention of any transformers model by looking at its modules.

An attention module is one whose class refers to ``ALL_ATTENTION_FUNCTIONS``, transformers' table of attention
functions: that is the only door through which the engine is called. Attention that computes itself is
recognised by its name and its projections, and reported, so that nothing is ever silently left out.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headscope.errors import UnsupportedError
from headscope.models.spec import Kind

if TYPE_CHECKING:
    from torch import nn

_DOOR = "ALL_ATTENTION_FUNCTIONS"
_CROSS = re.compile(r"encoder_attn|EncDecAttention|cross_?att", re.IGNORECASE)
_VISION = re.compile(r"vision|visual|image|vit\b", re.IGNORECASE)

O_PROJ = ("o_proj", "out_proj", "c_proj", "dense", "o", "wo", "proj", "projection", "out_lin", "linear_out")
MLP_ACT = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "fc2", "mlp.fc_out", "mlp.dense_2", "mlp.Wo",
           "mlp.proj_2", "feed_forward.w2", "feed_forward.down_proj", "ffn.lin2", "output.dense",
           "layer.2.DenseReluDense.wo", "layer.1.DenseReluDense.wo", "mlp.weights_out", "linear2")  # fmt: skip
EMBED = ("embed_tokens", "wte", "embed_in", "word_embeddings", "shared", "tok_embeddings", "embeddings")
FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "layer_norm", "layernorm",
              "post_layernorm")  # fmt: skip


@dataclass(frozen=True)
class StackLayout:
    """Where one stack lives: ``blocks`` is the list of blocks, the others are relative to a block."""

    kind: Kind
    blocks: str
    attn: str
    o_proj: str
    mlp_act: str | None


@dataclass(frozen=True)
class Layout:
    """Where everything lives. Paths are of the model with its head; ``None`` means: the model has no such part."""

    stacks: tuple[StackLayout, ...]
    embed: str | None
    final_norm: str | None
    unembed: str | None


def uses_interface(cls: type[Any]) -> bool:
    """Tell whether a module class calls attention through transformers' table of attention functions."""
    from torch import nn
    from transformers import PreTrainedModel

    if issubclass(cls, PreTrainedModel):  # whole models name the table when they choose from it
        return False
    for base in cls.__mro__:
        if base is nn.Module:
            break
        for member in vars(base).values():
            function = inspect.unwrap(member) if callable(member) else member
            code = getattr(function, "__code__", None)
            if code is not None and _DOOR in code.co_names:
                return True
    return False


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that call the attention interface, by path."""
    return {path: module for path, module in model.named_modules() if uses_interface(type(module))}


def unserved_modules(model: nn.Module) -> dict[str, str]:
    """Return attention modules that compute their attention themselves: path → class name."""
    served = set(attention_modules(model))
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        name = type(module).__name__
        if "Attention" not in name and not name.endswith(("Mixer", "DeltaNet", "TimeMix")):
            continue
        inside = any(other == path or other.startswith(f"{path}.") for other in served)
        wraps = any(other.startswith(f"{path}.") for other in found)
        weights = any(parameter.dim() > 1 for parameter in module.parameters())
        if not inside and not wraps and weights and not any(path.startswith(f"{s}.") for s in served):
            found[path] = name
    return {path: name for path, name in found.items() if not any(path.startswith(f"{other}.") for other in found)}


def get(model: nn.Module, path: str | None) -> nn.Module | None:
    """Return the submodule at ``path``, or None if there is none."""
    if path is None:
        return None
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _split(model: nn.Module, path: str) -> tuple[str, int, str] | None:
    """Split a path at the outermost list of blocks: (blocks, index, path within the block)."""
    from torch import nn

    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() and isinstance(get(model, ".".join(parts[:i])), (nn.ModuleList, nn.Sequential)):
            return ".".join(parts[:i]), int(part), ".".join(parts[i + 1 :])
    return None


def _kind(model: Any, path: str, module: Any) -> Kind:
    if _CROSS.search(path.rsplit(".", 3)[-1]) or _CROSS.search(".".join(path.split(".")[-3:])):
        return "cross"
    if getattr(module, "is_causal", True):
        return "decoder"
    if _VISION.search(path) or model.main_input_name == "pixel_values":
        return "vision"
    return "encoder"


def _o_proj(model: nn.Module, block: str, attn: str) -> str:
    for name in O_PROJ:
        if get(model, f"{block}.{attn}.{name}") is not None:
            return f"{attn}.{name}"
    # BERT and its kin: attention.self beside attention.output.dense
    parent = attn.rpartition(".")[0]
    for name in ("output.dense", "output.out_proj"):
        if parent and get(model, f"{block}.{parent}.{name}") is not None:
            return f"{parent}.{name}"
    children = ", ".join(name for name, _ in model.get_submodule(f"{block}.{attn}").named_children())
    raise UnsupportedError(
        f"Cannot tell which module of {block}.{attn} is its output projection (it has: {children or 'none'}). "
        "Add a row for this family to headscope.models.families.LAYOUTS."
    )


def _mlp_act(model: nn.Module, block: str) -> str | None:
    return next((name for name in MLP_ACT if get(model, f"{block}.{name}") is not None), None)


def discover(model: Any) -> Layout:
    """Find the layout of a model that no table describes.

    Raises
    ------
    UnsupportedError
        If the model has no attention that the engine can serve; the message names what it has instead.
    """
    family = model.config.model_type
    patterns: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in attention_modules(model):
        split = _split(model, path)
        if split is not None:
            patterns[split[0], split[2]].append(path)
    stacks: dict[str, StackLayout] = {}
    for (blocks, attn), paths in sorted(patterns.items(), key=lambda item: -len(item[1])):
        kind = _kind(model, paths[0], model.get_submodule(paths[0]))
        same = stacks.get(kind)
        if same is not None and same.blocks == blocks:
            raise UnsupportedError(
                f"{family}: blocks {blocks} hold more than one self-attention ({same.attn} and {attn}): hierarchical "
                "or mixed blocks are not supported."
            )
        if same is None:
            block = paths[0][: len(paths[0]) - len(attn) - 1]
            stacks[kind] = StackLayout(kind, blocks, attn, _o_proj(model, block, attn), _mlp_act(model, block))
    if not stacks:
        raise UnsupportedError(no_attention(model))
    main = next(stacks[kind] for kind in ("decoder", "encoder", "vision", "cross") if kind in stacks)
    return Layout(tuple(stacks.values()), _embed(model, main), _final_norm(model, main), _unembed(model))


def no_attention(model: Any) -> str:
    """Say what a model has in place of attention that the engine can serve."""
    family, others = model.config.model_type, unserved_modules(model)
    if others:
        path, name = next(iter(others.items()))
        return (
            f"{family} computes its attention itself ({name} at {path}) and does not go through transformers' "
            "attention interface: captures and edits of attention are not available. Choose a family that does, such "
            "as llama, qwen3 or gpt2 (docs/models.md lists them)."
        )
    return (
        f"{family} has no attention layers that headscope knows ({type(model).__name__}): there is no attention "
        "pattern to capture or edit."
    )


def _embed(model: Any, stack: StackLayout) -> str | None:
    """Find the token embedding: the table that transformers itself names, if it is one."""
    if stack.kind == "vision":
        return None
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if module is table and path]
    root = stack.blocks.rpartition(".")[0]
    own = [path for path in paths if path.startswith(f"{root}.")]
    for name in EMBED:  # the stack's own table may share its weight with the model's
        module = get(model, f"{root}.{name}" if root else name)
        if module is not None and getattr(module, "weight", None) is getattr(table, "weight", table):
            return f"{root}.{name}" if root else name
    return next(iter(own or paths), None)


def _final_norm(model: Any, stack: StackLayout) -> str | None:
    """Find the norm after the last block: beside the list of blocks, or beside the module that holds it."""
    roots = [stack.blocks.rpartition(".")[0]]
    roots.append(roots[0].rpartition(".")[0])
    for root in dict.fromkeys(roots):
        for name in FINAL_NORM:
            path = f"{root}.{name}" if root else name
            module = get(model, path)
            if module is not None and hasattr(module, "weight"):
                return path
    return None


def _unembed(model: Any) -> str | None:
    """Find the map from the last hidden state to logits."""
    try:
        head = model.get_output_embeddings()
    except (NotImplementedError, AttributeError):
        head = None
    if head is not None:
        return next((path for path, module in model.named_modules() if module is head), None)
    return next(
        (name for name in ("classifier", "score", "lm_head") if hasattr(getattr(model, name, None), "weight")), None
    )
