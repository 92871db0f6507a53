"""Load any model: by short name, hub id, local folder, GGUF file, or as it is."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ModelError, UnsupportedError, WeightsError, nearest
from headscope.models import carried, hub
from headscope.models.families import build_spec, refuse_family
from headscope.models.fingerprint import fingerprint
from headscope.models.gguf import read_gguf, read_tokenizer
from headscope.models.weights import check_finite, check_folder, check_loaded

if TYPE_CHECKING:
    import os

    import torch
    from transformers import PreTrainedModel

    from headscope.models.model import Model

log = logging.getLogger(__name__)

ATTENTION = "headscope"


@dataclass(frozen=True)
class Source:
    """Where a model comes from: its folder or GGUF file, and its names."""

    path: Path
    name: str
    source: str
    revision: str | None = None


def load(
    source: str | os.PathLike[str] | PreTrainedModel,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    backend: str = "transformers",
    trust_remote_code: bool = False,
    validate: bool = True,
    tokenizer: Any | None = None,
) -> Model:
    """Load a model with the headscope attention function in every layer.

    Parameters
    ----------
    source
        A short name of weights that a package carries (``headscope models list``), a hub id, a local folder, a
        GGUF file, or a transformers model that is already built (it is taken as it is, not copied).
    device
        By default the GPU if there is one, else the CPU.
    dtype
        By default float32 on the CPU and the weights' own type elsewhere; e.g. ``"bfloat16"``.
    revision
        Branch, tag or commit of a hub model.
    backend
        ``"transformers"``.
    trust_remote_code
        Allow a model's own Python code to run.
    validate
        Check after loading that captures are right and edits take effect, on eight random tokens.
    tokenizer
        A tokenizer to use in place of the model's own.

    Raises
    ------
    ModelError
        If the model cannot be found, fetched or understood.
    WeightsError
        If its weights are pickled, truncated, incomplete or not finite.
    UnsupportedError
        If its family, or a part of it, cannot be served; the message names the part.

    Examples
    --------
    >>> model = load("smollm2-135m")  # doctest: +SKIP
    >>> model.spec.n_layers  # doctest: +SKIP
    30
    """
    if backend != "transformers":
        raise ModelError(f"There is no backend {backend!r}.{nearest(backend, ['transformers'])}")
    from headscope.attention import engine  # noqa: F401 - registers the attention function
    from headscope.kernels import dispatch
    from headscope.models.model import Model

    where = _device(device)
    dispatch.chosen()  # a kernel that there is not is told before seconds of loading
    hf: Any = _built(source)
    if hf is not None:
        origin = Source(Path(), *_names(hf), revision)
        _adopt(hf, device, dtype)
    else:
        origin = find(str(source), revision=revision, code=trust_remote_code)
        hf, own = _read(origin, where, _dtype(dtype, where), trust_remote_code, need_tokenizer=tokenizer is None)
        tokenizer = tokenizer if tokenizer is not None else own
    check_finite(hf.state_dict().items())
    hf.eval().requires_grad_(False)
    spec = build_spec(hf, origin.name)
    if spec.unserved:
        log.warning("%s: not captured or edited: %s.", origin.name, ", ".join(spec.unserved))
    model = Model(
        hf=hf, tokenizer=tokenizer, spec=spec, source=origin.source, revision=origin.revision, name=origin.name
    )
    if validate:
        from headscope.models.validate import validate as check

        check(model)
    return model


def find(source: str | os.PathLike[str], *, revision: str | None = None, code: bool = False) -> Source:
    """Return where a model lies on this machine, after fetching it if it has to be fetched.

    Raises
    ------
    ModelError
        If there is no such model, or it cannot be fetched.
    """
    text = str(source)
    if text in carried.CARRIED:
        return Source(carried.ensure(text), text, f"package:{carried.CARRIED[text].origin}", None)
    path = Path(text).expanduser()
    if path.exists():
        name = path.resolve().stem if path.is_file() else path.resolve().name
        return Source(path.resolve(), name, str(path.resolve()), revision)
    if (
        path.is_absolute()
        or text.startswith((".", "~"))
        or path.suffix in (".gguf", ".safetensors")
        or len(path.parts) > 2
    ):
        raise ModelError(f"There is no file or folder {path}.")
    folder = hub.snapshot(text, revision, code=code)
    return Source(folder, text, text, folder.name)


def read_config(origin: Source, *, code: bool = False) -> Any:
    """Return the configuration of a model; refuses families that cannot be served before weights are read.

    Raises
    ------
    ModelError
        If the configuration cannot be read or asks for code of its own.
    UnsupportedError
        If the family cannot be served.
    """
    if origin.path.is_file():
        return _gguf(origin, tokenizer=False).config
    from transformers import CONFIG_MAPPING, AutoConfig

    file = origin.path / "config.json"
    if not file.is_file():
        check_folder(origin.path)  # says what is wrong with the folder
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        family = str(raw["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is not a model's configuration: {error!r}.") from error
    refuse_family(family)
    if family not in CONFIG_MAPPING and not code:
        what = (
            "comes with its own Python code. If you trust its authors, pass trust_remote_code=True"
            if "auto_map" in raw
            else f"is not known to this version of transformers.{nearest(family, CONFIG_MAPPING)}"
        )
        raise ModelError(f"{origin.name}: model type {family!r} {what}")
    try:
        return AutoConfig.from_pretrained(origin.path, local_files_only=True, trust_remote_code=code)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ModelError(f"{file} is not a configuration of {family}: {error}") from error


def model_class(config: Any) -> Any:
    """Return the transformers class for a configuration: the one that its weights were saved from."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if getattr(config, "auto_map", None):
        kinds = [kind for kind in config.auto_map if kind.startswith("AutoModel")]
        return getattr(transformers, next(iter(kinds), "AutoModel"))
    for names in (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES):
        found = names.get(config.model_type)
        if found is not None:
            return getattr(transformers, found if isinstance(found, str) else found[0])
    raise UnsupportedError(f"transformers has no model class for {config.model_type}.")


def _read(origin: Source, device: Any, dtype: Any, code: bool, *, need_tokenizer: bool) -> tuple[Any, Any]:
    """Read weights and tokenizer of a folder or GGUF file."""
    if origin.path.is_file():
        return _read_gguf(origin, device, dtype, need_tokenizer)
    config = read_config(origin, code=code)
    check_folder(origin.path)
    cls = model_class(config)
    options: dict[str, Any] = {"trust_remote_code": True} if code else {}
    hf = _build(cls, origin, origin.path, config, dtype, **options, use_safetensors=True, local_files_only=True)
    tokenizer = _tokenizer(origin, code) if need_tokenizer else None
    return hf.to(device), tokenizer


def _read_gguf(origin: Source, device: Any, dtype: Any, need_tokenizer: bool) -> tuple[Any, Any]:
    made = _gguf(origin, tokenizer=need_tokenizer)
    refuse_family(made.config.model_type)
    cls = model_class(made.config)
    if made.weights is not None:
        hf = _build(cls, origin, None, made.config, dtype, state_dict=made.weights)
    else:
        hf = _build(cls, origin, origin.path.parent, None, dtype, gguf_file=origin.path.name, local_files_only=True)
    return hf.to(device), made.tokenizer


def _gguf(origin: Source, *, tokenizer: bool) -> Any:
    if origin.path.suffix != ".gguf":
        raise ModelError(f"{origin.path} is not a GGUF file. Pass the folder that holds config.json and the weights.")
    return read_gguf(origin.path, tokenizer=tokenizer)


def _build(cls: Any, origin: Source, path: Path | None, config: Any, dtype: Any, **options: Any) -> Any:
    if config is not None:
        options["config"] = config
    try:
        hf, info = cls.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=ATTENTION,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by name below
            **options,
        )
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"The weights of {origin.source} cannot be loaded: {error}") from error
    unused = check_loaded(info, origin.source)
    for name in unused:  # random values would change the fingerprint with every load
        hf.get_parameter(name).data.zero_()
    if unused:
        log.warning("%s: %s are not in its files and are zero.", origin.name, ", ".join(unused))
    return hf


def _tokenizer(origin: Source, code: bool) -> Any:
    files = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
    if not any((origin.path / name).is_file() for name in files):
        return None
    try:
        if code:
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(origin.path, local_files_only=True, trust_remote_code=True)
        return read_tokenizer(origin.path)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"The tokenizer in {origin.path} cannot be read: {error}. Fetch it again, or pass tokenizer= to load()."
        ) from error


def _built(source: Any) -> Any:
    """Return the source if it is a model already, None if it names one."""
    if isinstance(source, (str, Path)) or hasattr(source, "__fspath__"):
        return None
    from transformers import PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source
    raise ModelError(f"load() takes a name, a path or a transformers model, not {type(source).__name__}.")


def _names(model: Any) -> tuple[str, str]:
    """Name and source of a model that was built elsewhere: what it was made from, else its class and weights."""
    name = str(model.config._name_or_path or "")
    if name:
        return name, name
    return model.config.model_type, f"{type(model).__name__} in memory, weights {fingerprint(model)[:12]}"


def _adopt(model: Any, device: Any, dtype: Any) -> None:
    """Give a model that was built elsewhere the headscope attention function."""
    refuse_family(model.config.model_type)
    build_spec(model, model.config.model_type)  # say what is unsupported before anything is changed
    if device is not None or dtype is not None:
        model.to(device=_device(device) if device is not None else None, dtype=_dtype(dtype, None) if dtype else None)
    try:
        model.set_attn_implementation(ATTENTION)
    except ValueError as error:
        raise UnsupportedError(
            f"{model.config.model_type} does not take another attention function: {error}"
        ) from error


def _device(device: Any) -> Any:
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"Device {device!r} is not available: {error}") from error
    return chosen


def _dtype(dtype: Any, device: Any) -> Any:
    import torch

    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ModelError(f"dtype {dtype!r} is not a floating-point type, such as 'float32', 'bfloat16' or 'float16'.")
    return chosen
