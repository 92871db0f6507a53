"""What the package hands on: every name loads, and none hides a module of the same name."""

from __future__ import annotations

import importlib
import pkgutil

import headscope as hs
from headscope.interventions.registry import METHODS, find_method


def test_every_public_name_loads() -> None:
    for name in hs.interventions.__all__:
        assert getattr(hs.interventions, name) is not None
    modules = {found.name for found in pkgutil.iter_modules(hs.interventions.__path__)}
    assert not modules & set(hs.interventions.__all__)  # the module would take the place of the function


def test_every_method_is_a_public_name() -> None:
    for name in METHODS:
        method = find_method(name)
        assert method.name == name
        assert getattr(hs.interventions, method.__name__) is method
        assert getattr(importlib.import_module(method.__module__), method.__name__) is method
