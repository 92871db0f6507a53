"""What load accepts, and how it refuses the rest."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import headscope as hs
from headscope.errors import ModelError, UnsupportedError, WeightsError
from headscope.models import hub
from headscope.models.describe import info
from headscope.models.fingerprint import fingerprint
from headscope.models.load import load
from headscope.models.tiny import FAMILIES, tiny


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama as a local folder."""
    tiny("llama").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_from_a_folder_and_passes_validation(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path / family)
    loaded = load(tmp_path / family)
    assert loaded.name == family
    assert loaded.tokenizer is None
    assert loaded.hf.config._attn_implementation == "headscope"
    assert fingerprint(loaded.hf) == fingerprint(model) == loaded.fingerprint
    assert type(loaded.hf) is type(model)


def test_a_model_in_memory_is_taken_as_it_is():
    model = tiny("llama")
    loaded = hs.load(model)
    assert loaded.hf is model
    assert loaded.name == "llama"
    assert "in memory" in loaded.source


def test_dtype_and_device_are_taken_or_refused(folder):
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load(tiny("gpt2"), dtype=torch.float64).dtype == torch.float64
    assert load(folder).dtype == torch.float32
    with pytest.raises(ModelError, match="int8"):
        load(folder, dtype="int8")
    with pytest.raises(ModelError, match="not available"):
        load(folder, device="nonsense:7")
    with pytest.raises(ModelError, match="backend"):
        load(folder, backend="jax")


def test_a_tokenizer_comes_along(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?").save_pretrained(folder)
    loaded = load(folder)
    assert loaded.tokenizer("b a").input_ids == [1, 0]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer"):
        load(folder)


def test_pickle_weights_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin.*pickle|pickle.*pytorch_model\.bin"):
        load(folder)


def test_a_folder_without_weights_or_configuration_says_so(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="has no weights"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(folder)
    with pytest.raises(ModelError, match="no file or folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, bad):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 "):
        load(folder)


def test_large_finite_weights_are_not_mistaken_for_infinity():
    from headscope.models.weights import check_finite

    check_finite([("x", torch.full((8,), 3e38))])


def test_a_truncated_file_is_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in (len(whole) - 7, len(whole) // 2, 5, 0):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"model\.safetensors is truncated or damaged"):
            load(folder)


def test_a_tampered_header_is_refused(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[9:40] = b"\xff" * 31
    file.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="damaged"):
        load(folder)


def test_missing_and_misshapen_tensors_are_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    gone = weights.pop("model.layers.0.self_attn.k_proj.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack model\.layers\.0\.self_attn\.k_proj\.weight"):
        load(folder)
    weights["model.layers.0.self_attn.k_proj.weight"] = gone[:, :7].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="k_proj"):
        load(folder)


def test_a_missing_shard_is_named(tmp_path):
    tiny("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    load(tmp_path)
    shards[1].unlink()
    with pytest.raises(WeightsError, match=shards[1].name):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[1]")
    with pytest.raises(WeightsError, match="not an index"):
        load(tmp_path)


def test_refused_families_are_named_before_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="bloom"):
        load(tmp_path)
    with pytest.raises(UnsupportedError, match="bloom"):
        info(str(tmp_path))


def test_unknown_model_types_and_code_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(ModelError, match=r"not known.*llama"):
        load(folder)
    code = {**config, "model_type": "own", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}}
    (folder / "config.json").write_text(json.dumps(code))
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not"):
        load(folder)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ModelError, match="Did you mean 'smollm2-135m'"):
        load("smolm2-135m")


def test_offline_says_what_to_do_and_does_not_wait():
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"offline.*smollm2-135m"):
        load("some-lab/some-model")
    assert time.monotonic() - start < 5


def test_an_unreachable_hub_is_found_out_within_seconds(monkeypatch):
    import httpx
    from huggingface_hub import constants

    def blocks(*_args, **_kwargs):
        time.sleep(30)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(httpx, "head", blocks)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    hub.online.cache_clear()
    try:
        start = time.monotonic()
        with pytest.raises(ModelError, match="cannot be reached"):
            load("some-lab/some-model")
        assert time.monotonic() - start < 5
    finally:
        hub.online.cache_clear()


def test_things_that_are_no_model_are_refused(folder):
    with pytest.raises(ModelError, match="not int"):
        load(3)
    with pytest.raises(ModelError, match="not a GGUF file"):
        load(folder / "config.json")


def test_info_describes_a_folder_without_reading_weights(folder):
    (folder / "model.safetensors").unlink()
    facts = info(str(folder))
    assert (facts["layers"], facts["heads"], facts["kv heads"]) == (2, 4, 2)
    assert facts["decoder"] == "layers 0-1: full, causal"


@pytest.mark.parametrize("family", FAMILIES)
def test_info_and_load_agree(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    from headscope.models.describe import spec_of
    from headscope.models.families import build_spec
    from headscope.models.load import find

    origin = find(tmp_path)
    assert spec_of(origin) == build_spec(model, origin.name)


def test_fingerprints_tell_weights_apart():
    one, other = tiny("llama"), tiny("llama", seed=1)
    assert fingerprint(one) != fingerprint(other)
    changed = tiny("llama")
    with torch.no_grad():
        changed.model.norm.weight[0] += 1e-3
    assert fingerprint(changed) != fingerprint(one)
    assert fingerprint(one) == fingerprint(tiny("llama"))


def test_adopting_a_refused_model_leaves_it_alone():
    from transformers import MptConfig, MptForCausalLM

    model = MptForCausalLM(MptConfig(vocab_size=97, d_model=32, n_layers=1, n_heads=4))
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedError, match="mpt"):
        load(model)
    assert model.config._attn_implementation == before
