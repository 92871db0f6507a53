"""Which blocks the kernels take: a table that fits every target, and what tuning remembers."""

from __future__ import annotations

import itertools

import pytest
import torch

from headscope.kernels import dispatch
from headscope.kernels.triton import config, failure, unavailable
from headscope.kernels.triton.config import Card, Config, Shape
from headscope.models.load import load
from headscope.models.tiny import tiny

CARDS = [Card(80, 163 << 10), Card(90, 227 << 10), Card(100, 227 << 10), Card(0, 64 << 10)]
SHAPES = [
    Shape(dtype, width, rows, entropy, top, channels, pair, given)
    for dtype, width, rows, (entropy, top, channels), (pair, given) in itertools.product(
        [torch.float16, torch.bfloat16, torch.float32],
        [32, 64, 80, 128, 256],
        [1, 16, 4096],
        [(False, False, 0), (True, True, 16), (False, False, 16)],
        [(False, False), (True, False), (False, True)],
    )
]


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_what_tuning_tries_fits_the_shared_memory(card):
    for shape in SHAPES:
        first, *others = config.candidates(shape, card)
        assert first == config.usual(shape, card)
        assert len(set(others)) == len(others)
        assert all(config.shared(shape, other) <= card.limit for other in others)


def test_blocks_are_powers_of_two_that_a_warp_can_hold():
    for shape, card in itertools.product(SHAPES, CARDS):
        chosen = config.usual(shape, card)
        for size in (chosen.m, chosen.n, chosen.warps):
            assert size & (size - 1) == 0
        assert min(chosen.m, chosen.n) >= 16
        assert (chosen.m == 16) == (shape.rows <= 16)


def test_without_being_asked_nothing_is_measured(monkeypatch):
    monkeypatch.delenv("HEADSCOPE_AUTOTUNE", raising=False)
    monkeypatch.setattr(config, "card", lambda _: CARDS[1])
    shape = SHAPES[-1]
    assert config.choose(shape, torch.device("cuda"), lambda _: 1 / 0) == config.usual(shape, CARDS[1])


def test_what_was_measured_is_remembered_by_shape_class(monkeypatch, tmp_path):
    measured = []

    def fastest(shape, card, measure):
        measured.append(shape)
        return Config(64, 128, 4, 4)

    monkeypatch.setenv("HEADSCOPE_AUTOTUNE", "1")
    monkeypatch.setattr(config, "card", lambda _: CARDS[1])
    monkeypatch.setattr(config, "_fastest", fastest)
    monkeypatch.setattr(config, "_path", lambda _: tmp_path / "deep" / "triton.json")
    config._known.cache_clear()
    device = torch.device("cuda")
    one, near, other = (Shape(torch.float16, 64, rows) for rows in (1000, 1024, 4000))
    try:
        for shape in (one, near, one):
            assert config.choose(shape, device, lambda _: None) == Config(64, 128, 4, 4)
        assert measured == [one]
        config.choose(other, device, lambda _: None)
        assert measured == [one, other]
        config._known.cache_clear()  # another process
        assert config.choose(near, device, lambda _: None) == Config(64, 128, 4, 4)
        assert len(measured) == 2
        (tmp_path / "deep" / "triton.json").write_text("{ damaged")
        config._known.cache_clear()
        config.choose(one, device, lambda _: None)
        assert len(measured) == 3
    finally:
        config._known.cache_clear()


def test_a_kernel_of_another_name_is_refused(monkeypatch):
    monkeypatch.setenv("HEADSCOPE_KERNEL", "flash")
    with pytest.raises(dispatch.RequestError, match="auto, triton, sdpa, reference"):
        dispatch.chosen()
    with pytest.raises(dispatch.RequestError, match=r"^There is no kernel 'flash'"):
        load(tiny("llama"))


def test_only_failures_to_compile_are_taken_for_such():
    from triton.runtime.errors import OutOfResources

    assert "shared memory" in failure(OutOfResources(2, 1, "shared memory"))
    assert failure(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
    assert failure(torch.OutOfMemoryError("out of memory")) is None


def test_why_the_kernels_are_not_to_be_had(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "GPU" in unavailable(torch.device("cpu"))
    monkeypatch.setattr("headscope.kernels.triton.installed", lambda: False)
    assert "pip install triton" in unavailable(torch.device("cuda"))
