"""What every test stands on: no network, few threads, fixed seeds, a cache of its own, and no hook left behind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before transformers is imported by any test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of this session's fast tests; a test that fills a cache points HEADSCOPE_CACHE at its own ``tmp_path``."""
    return tmp_path_factory.mktemp("headscope-cache")


@pytest.fixture(autouse=True)
def _cache(request: pytest.FixtureRequest, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast tests never touch the user's cache; slow ones share it, so that weights are fetched once."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("HEADSCOPE_CACHE", str(session_cache))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, alone or in a crowd."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may use the legacy generator
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture
def no_hooks_left() -> Iterator[Any]:
    """Register modules with the fixture's value; the test fails if it leaves a hook on any of them."""
    watched: list[Any] = []
    yield watched.append
    for module in watched:
        left = [name or "(root)" for name, part in module.named_modules() if _hooks(part)]
        assert not left, f"hooks left behind on {left}"


def _hooks(module: Any) -> bool:
    return any(getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M with its real weights, fetched into the user's cache if it is not there. For slow tests."""
    import headscope as hs
    from headscope.models.fetch import fetch

    fetch("smollm2-135m")
    return hs.load("smollm2-135m")
