"""Where numbers come from: model, data, versions, machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from headscope.kernels.dispatch import engine
from headscope.probes.base import DataSet, jsonable

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "pandas")


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    import headscope

    found = {"headscope": headscope.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def machine(model: Any) -> dict[str, Any]:
    """Hardware and threads: what may change the last bits of a sum, and nothing that varies with load."""
    import torch

    device = str(getattr(model, "device", "cpu"))
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(model.device)
    return facts


def describe_model(model: Any) -> dict[str, Any]:
    """Name, source, revision, hash of the weights, family and size."""
    return {
        "name": str(model.name),
        "source": str(getattr(model, "source", model.name)),
        "revision": getattr(model, "revision", None),
        "fingerprint": str(model.fingerprint),
        "family": str(getattr(model.spec, "family", "unknown")),
        "n_layers": int(model.spec.n_layers),
        "n_heads": int(model.spec.n_heads),
    }


def describe_data(data: DataSet) -> dict[str, Any]:
    """Name, parameters, hash and number of samples."""
    return {"name": data.name, "parameters": jsonable(data.parameters), "hash": str(data.hash), "n": len(data)}


def provenance(model: Any, data: DataSet, *, seed: int, created: str) -> dict[str, Any]:
    """Everything about a run but the probe."""
    return {
        "model": describe_model(model),
        "data": describe_data(data),
        "seed": seed,
        "dtype": dtype_name(model),
        "engine": str(
            getattr(getattr(getattr(model, "hf", None), "config", None), "_attn_implementation", "headscope")
        ),
        "kernel": engine(getattr(model, "device", None)),
        "versions": versions(),
        "machine": machine(model),
        "created": created,
        "notes": [],
    }


def identity(model: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stored observations depend on: runs that differ in any of it never share a folder."""
    used = {name: version for name, version in versions().items() if name in ("headscope", "torch", "transformers")}
    return {
        "model": str(model.fingerprint),
        "dtype": dtype_name(model),
        "device": str(getattr(model, "device", "cpu")).partition(":")[0],
        "kernel": engine(getattr(model, "device", None)),
        "versions": used,
        **{name: jsonable(part) for name, part in parts.items()},
    }


def dtype_name(model: Any) -> str:
    """Precision of the model, such as ``float32``."""
    return str(getattr(model, "dtype", "float32")).removeprefix("torch.")


def now() -> str:
    """UTC time to the second; always of the same length, so that it changes no other byte of a file."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
