"""What every test stands on: no network, few threads, fixed seeds, a cache of its own, and no hook left behind."""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import CHROMIUM, NO_CHROMIUM, chromium

# Before transformers is imported by any test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of one run of the fast tests; a test that fills a cache points HEADSCOPE_CACHE at its own ``tmp_path``."""
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


@pytest.fixture(scope="session", autouse=True)
def _models() -> Iterator[weakref.WeakSet[Any]]:
    """All models that the tests make."""
    from headscope.models.model import Model

    made: weakref.WeakSet[Any] = weakref.WeakSet()
    original = Model.__init__

    def remember(self: Any, **kwargs: Any) -> None:
        original(self, **kwargs)
        made.add(self)

    Model.__init__ = remember
    yield made
    Model.__init__ = original


@pytest.fixture(autouse=True)
def _nothing_left_behind(_models: weakref.WeakSet[Any]) -> Iterator[None]:
    """No test may leave an edit in force, a session open or a hook of ours on a module, whatever it raised."""
    from headscope.attention import engine

    yield
    assert engine._SESSION.get() is None, "a capture session was left open"
    for model in _models:
        assert not model.edits, f"edits left in force on {model}"
        left = [(name, hook) for name, part in model.hf.named_modules() for hook in _hooks(part) if _ours(hook)]
        assert not left, f"hooks left behind: {left}"


def _hooks(module: Any) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for kind in kinds for hook in getattr(module, kind).values()]


def _ours(hook: Any) -> bool:
    # transformers keeps hooks of its own on some modules.
    return str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith("headscope")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window. For slow tests."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M with its real weights, fetched into the user's cache if it is not there. For slow tests."""
    import headscope as hs
    from headscope.models.carried import fetch

    fetch("smollm2-135m")
    return hs.load("smollm2-135m")
