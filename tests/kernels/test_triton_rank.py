"""The command line on Triton's kernels, interpreted: the numbers of the usual engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of SmolLM2's shape, two layers deep, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from headscope.models.carried import fetch

    tokenizer = AutoTokenizer.from_pretrained(fetch("smollm2-135m"))
    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3, intermediate_size=256,
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rank(folder: Path, out: Path, **environment: str) -> pd.DataFrame:
    """Return the table of ``headscope rank sinks``."""
    command = [sys.executable, "-m", "headscope", "rank", "sinks", "--model", str(folder), "--out", str(out)]
    sizes = ["--n", "4", "--length", "64", "--no-verify", "--device", "cpu"]
    done = subprocess.run(
        [*command, *sizes], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return pd.read_parquet(out / "sinks.parquet")


@pytest.mark.slow
def test_sinks_by_the_interpreted_kernels_are_those_of_the_usual_engine(folder, tmp_path):
    mine = rank(folder, tmp_path / "triton", TRITON_INTERPRET="1", HEADSCOPE_KERNEL="triton")
    usual = rank(folder, tmp_path / "usual", HEADSCOPE_KERNEL="sdpa")
    assert '"kernel": "triton"' in (tmp_path / "triton" / "sinks.json").read_text()
    assert len(mine) == 18
    numbers = usual.select_dtypes("number").columns
    assert (mine[numbers] - usual[numbers]).abs().to_numpy().max() < 1e-6


@pytest.mark.slow
def test_triton_asked_for_where_it_cannot_run_is_an_error(folder, tmp_path):
    command = [sys.executable, "-m", "headscope", "rank", "sinks", "--model", str(folder), "--device", "cpu"]
    environment = {**os.environ, "HEADSCOPE_KERNEL": "triton", "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), "--n", "4", "--length", "64"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "need a GPU" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
