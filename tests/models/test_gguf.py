"""GGUF files give the weights that went in, for every family that is read here."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from headscope.errors import UnsupportedError, WeightsError
from headscope.models.gguf import read_gguf
from headscope.models.load import load
from headscope.models.tiny import tiny


def _bytes_to_unicode():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())


def _permute(weight, heads):
    """Reorder rotary halves into pairs, as converters to GGUF do for Llama."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, architecture, *, quantise=None, drop=(), extra=None):
    """Write a tiny model as GGUF."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.hidden_size // config.num_attention_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*_bytes_to_unicode(), "ab", "<s>", "</s>", "<unk>", "<pad>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 4)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_unk_token_id(259)
    writer.add_pad_token_id(260)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in state.items():
        if name in drop or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        array = tensor.numpy().astype(np.float32)
        if architecture == "llama" and name.endswith("q_proj.weight"):
            array = _permute(array, config.num_attention_heads)
        if architecture == "llama" and name.endswith("k_proj.weight"):
            array = _permute(array, config.num_key_value_heads)
        base, _, suffix = name.rpartition(".")
        stored = f"{names.get_name(base)}.{suffix}"
        if quantise is not None and array.ndim == 2:
            writer.add_tensor(stored, gguf.quantize(array, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(stored, array)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=["llama", "qwen2"])
def family(request):
    return request.param, tiny(request.param, vocab_size=261)


def test_weights_come_back_exactly(family, tmp_path):
    name, model = family
    loaded = load(write(tmp_path / "tiny.gguf", model, name))
    assert loaded.name == "tiny"
    state = loaded.hf.state_dict()
    assert set(state) == set(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(state[key], tensor), key
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.hf(ids).logits, model(ids).logits, atol=1e-4)


def test_quantised_weights_are_as_near_as_their_format(tmp_path):
    model = tiny("llama", vocab_size=261, intermediate_size=64)
    read = read_gguf(write(tmp_path / "q.gguf", model, "llama", quantise=gguf.GGMLQuantizationType.Q8_0))
    for key, tensor in model.state_dict().items():
        assert torch.allclose(read.weights[key], tensor, atol=float(tensor.abs().max()) / 100), key


def test_the_tokenizer_and_its_template_come_along(tmp_path):
    loaded = load(write(tmp_path / "t.gguf", tiny("llama", vocab_size=261), "llama"))
    assert loaded.tokenizer.decode(loaded.tokenizer("hello").input_ids, skip_special_tokens=True) == "hello"
    assert loaded.tokenizer.chat_template


def test_tied_embeddings_need_no_second_table(tmp_path):
    model = tiny("llama", vocab_size=261, tie_word_embeddings=True)
    loaded = load(write(tmp_path / "tied.gguf", model, "llama"))
    assert loaded.hf.lm_head.weight.data_ptr() == loaded.hf.model.embed_tokens.weight.data_ptr()


def test_the_header_is_read_slowly_once(tmp_path, monkeypatch):
    import transformers

    path = write(tmp_path / "twice.gguf", tiny("llama", vocab_size=261), "llama")
    load(path, validate=False)

    def forbidden(*_args, **_kwargs):
        raise AssertionError("the header was read again")

    import transformers.modeling_gguf_pytorch_utils as slow

    monkeypatch.setattr(slow, "load_gguf_checkpoint", forbidden)
    monkeypatch.setattr(transformers.configuration_utils, "load_gguf_checkpoint", forbidden, raising=False)
    load(path, validate=False)


def test_gemma_norms_are_stored_one_higher():
    from headscope.models.gguf import _FIXES

    weight = np.array([1.0, 2.0])
    assert _FIXES["gemma3"]("model.layers.0.input_layernorm.weight", weight, None).tolist() == [0.0, 1.0]
    assert _FIXES["gemma3"]("model.layers.0.mlp.up_proj.weight", weight, None).tolist() == [1.0, 2.0]


def test_damaged_files_are_refused(tmp_path):
    path = write(tmp_path / "t.gguf", tiny("llama", vocab_size=261), "llama")
    whole = path.read_bytes()
    for length in (len(whole) - 4000, len(whole) // 2, 100, 3, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="truncated"):
            load(path)
    path.write_bytes(b"NOPE" + whole[4:])
    with pytest.raises(WeightsError, match="not a GGUF"):
        load(path)


def test_missing_and_surplus_tensors_are_named(tmp_path):
    model = tiny("llama", vocab_size=261)
    lacks = write(tmp_path / "a.gguf", model, "llama", drop=("model.layers.1.mlp.up_proj.weight",))
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight \(blk\.1\.ffn_up\.weight\)"):
        load(lacks)
    more = write(tmp_path / "b.gguf", model, "llama", extra={"rope_freqs.weight": np.ones(4, np.float32)})
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight"):
        load(more)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny("llama", vocab_size=261)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(WeightsError, match=r"model\.norm\.weight"):
        load(write(tmp_path / "n.gguf", model, "llama"))
