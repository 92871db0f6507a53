"""Every tiny family gives a spec whose paths resolve and whose counts match the real modules."""

from __future__ import annotations

import pytest
import torch

from headscope.errors import RequestError, UnsupportedError
from headscope.models.discovery import discover
from headscope.models.families import LAYOUTS, _resolve, build_spec
from headscope.models.inputs import random_inputs
from headscope.models.tiny import FAMILIES, tiny

STACKS = {"bert": {"encoder"}, "vit": {"vision"}, "dinov2": {"vision"}, "t5": {"decoder", "encoder", "cross"},
          "whisper": {"decoder", "encoder", "cross"}}  # fmt: skip
KV_HEADS = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_oss"), 2)
HEAD_DIM = dict.fromkeys(("qwen3", "gemma2", "gemma3", "gpt_oss"), 16)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, tiny(request.param)


def test_spec_has_the_sizes_of_the_configuration(family):
    name, model = family
    spec = build_spec(model, name)
    assert spec.family == model.config.model_type
    assert set(spec.stacks) == STACKS.get(name, {"decoder"})
    assert (spec.n_layers, spec.n_heads, spec.n_kv_heads) == (2, 4, KV_HEADS.get(name, 4))
    assert (spec.head_dim, spec.d_model) == (HEAD_DIM.get(name, 8), 32)
    assert spec.d_mlp == (64 if name == "dinov2" else 48)
    assert spec.vocab_size == (None if spec.default_stack == "vision" else 97)
    assert spec.n_ctx == {"t5": None, "vit": 17, "dinov2": 17}.get(name, 128)
    assert spec.unserved == ()


def test_every_path_resolves_to_the_right_module(family):
    name, model = family
    spec = build_spec(model, name)
    for kind, stack in spec.stacks.items():
        assert [layer.index for layer in stack.layers] == list(range(len(stack)))
        for layer in stack.layers:
            for path in (layer.attn, layer.o_proj, layer.block):
                assert model.get_submodule(path) is not None
            assert (layer.mlp_act is None) == (name == "gpt_oss")
            assert layer.causal == (kind == "decoder")
            assert layer.position_bias == (name == "t5")
    for path in (spec.embed, spec.final_norm, spec.unembed):
        assert path is None or model.get_submodule(path) is not None
    assert (spec.final_norm is None) == (name == "bert")
    assert (spec.unembed is None) == (name == "dinov2")


def test_heads_match_the_shapes_that_attention_receives(family, monkeypatch):
    name, model = family
    spec = build_spec(model, name)
    seen = {}

    def spy(module, query, key, value, mask, **kwargs):
        seen[module] = (query.shape[1], key.shape[1], value.shape[-1], kwargs)
        heads = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
        return torch.zeros_like(query[..., : value.shape[-1]]).transpose(1, 2).contiguous(), None

    from transformers import AttentionInterface

    before = model.config._attn_implementation
    AttentionInterface.register("spy", spy)
    try:
        model.set_attn_implementation("spy")
        with torch.no_grad():
            model(**random_inputs(model))
    finally:
        model.set_attn_implementation(before)
    layers = [layer for stack in spec.stacks.values() for layer in stack.layers]
    assert {id(model.get_submodule(layer.attn)) for layer in layers} == set(map(id, seen))
    for layer in layers:
        heads, kv_heads, head_dim, kwargs = seen[model.get_submodule(layer.attn)]
        assert (layer.heads, layer.kv_heads, layer.head_dim) == (heads, kv_heads, head_dim)
        assert layer.softcap == kwargs.get("softcap")
        assert layer.window == kwargs.get("sliding_window")
        assert layer.sinks == (kwargs.get("s_aux") is not None)


def test_mlp_activation_is_the_input_of_the_down_projection(family):
    name, model = family
    spec = build_spec(model, name)
    for stack in spec.stacks.values():
        for layer in stack.layers:
            if layer.mlp_act is not None:
                weight = model.get_submodule(layer.mlp_act).weight
                assert sorted(weight.shape) == sorted((spec.d_model, spec.d_mlp))


def test_discovery_finds_what_the_table_says(family):
    _, model = family
    row = _resolve(model, LAYOUTS[model.config.model_type])
    found = discover(model)
    assert set(found.stacks) == set(row.stacks)
    assert (found.embed, found.final_norm, found.unembed) == (row.embed, row.final_norm, row.unembed)


def test_bare_models_without_a_head_are_served(family):
    name, model = family
    spec = build_spec(model.base_model, name)
    assert spec.n_layers == 2
    assert spec.final_norm is None or model.base_model.get_submodule(spec.final_norm) is not None
    if name not in ("t5", "whisper"):
        assert spec.unembed is None


def test_equal_seeds_give_equal_weights():
    one, two, other = tiny("llama"), tiny("llama"), tiny("llama", seed=1)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_sliding_and_full_layers_are_told_apart():
    spec = build_spec(tiny("gemma3"), "gemma3")
    assert [(layer.attention, layer.window) for layer in spec.layers()] == [("sliding", 6), ("full", None)]
    assert [layer.attention for layer in build_spec(tiny("mistral"), "m").layers()] == ["sliding", "sliding"]
    qwen = tiny("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1, num_hidden_layers=3)
    assert [layer.window for layer in build_spec(qwen, "q").layers()] == [None, 5, 5]


def test_bert_as_a_decoder_is_causal():
    spec = build_spec(tiny("bert", is_decoder=True), "bert")
    assert set(spec.stacks) == {"decoder"}


def test_a_family_without_a_row_is_discovered():
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

    small = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    star = Starcoder2ForCausalLM(Starcoder2Config(**small, num_key_value_heads=2, intermediate_size=48, pad_token_id=0,
                                                  bos_token_id=1, eos_token_id=2))  # fmt: skip
    spec = build_spec(star, "star")
    assert (spec.n_heads, spec.n_kv_heads, spec.d_mlp) == (4, 2, 48)
    assert (spec.embed, spec.final_norm, spec.unembed) == ("model.embed_tokens", "model.norm", "lm_head")
    code = GPTBigCodeForCausalLM(GPTBigCodeConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
                                                  eos_token_id=2))  # fmt: skip
    assert build_spec(code, "code").n_kv_heads == 1  # multi-query


def test_language_and_vision_parts_of_one_model_are_two_stacks():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
                              image_size=28, patch_size=7)  # fmt: skip
    text = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2)  # fmt: skip
    spec = build_spec(LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)), "llava")
    assert {kind: len(stack) for kind, stack in spec.stacks.items()} == {"decoder": 2, "vision": 3}
    assert spec.embed == "model.language_model.embed_tokens"
    assert spec.final_norm == "model.language_model.norm"


def _refused(config, model, **options):
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**options))


@pytest.mark.parametrize(
    ("family_", "config", "model", "options"),
    [
        ("bloom", "BloomConfig", "BloomForCausalLM", {"vocab_size": 97, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
        ("falcon", "FalconConfig", "FalconForCausalLM",
         {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}),
        ("mpt", "MptConfig", "MptForCausalLM", {"vocab_size": 97, "d_model": 32, "n_layers": 1, "n_heads": 4}),
        ("mamba", "MambaConfig", "MambaForCausalLM", {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1}),
        ("xglm", "XGLMConfig", "XGLMForCausalLM",
         {"vocab_size": 97, "d_model": 32, "ffn_dim": 48, "num_layers": 1, "attention_heads": 4}),
        ("deberta-v2", "DebertaV2Config", "DebertaV2Model",
         {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
          "intermediate_size": 48}),
        ("qwen3_next", "Qwen3NextConfig", "Qwen3NextForCausalLM",
         {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "num_experts": 2,
          "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
          "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8}),
    ],
)  # fmt: skip
def test_families_outside_the_interface_are_refused_by_name(family_, config, model, options):
    with pytest.raises(UnsupportedError, match=family_) as caught:
        build_spec(_refused(config, model, **options), family_)
    assert "not available" in str(caught.value)


def test_a_changed_class_that_leaves_the_interface_is_refused():
    """The door is looked for in the class itself, so a subclass that computes attention alone is not served."""
    from transformers.models.llama import modeling_llama

    class OwnAttention(torch.nn.Module):
        def __init__(self, inner: modeling_llama.LlamaAttention):
            super().__init__()
            self.o_proj, self.q_proj = inner.o_proj, inner.q_proj

    model = tiny("llama")
    model.model.layers[1].self_attn = OwnAttention(model.model.layers[1].self_attn)
    with pytest.raises(UnsupportedError, match=r"layers 1: OwnAttention"):
        build_spec(model, "changed")


def test_heads_out_of_range_are_named():
    spec = build_spec(tiny("llama"), "tiny-llama")
    assert spec.check_head(1, 3).index == 1
    with pytest.raises(RequestError, match="layers 0 to 1"):
        spec.check_head(2, 0)
    with pytest.raises(RequestError, match="heads 0 to 3"):
        spec.check_head(0, 4)
    with pytest.raises(UnsupportedError, match="no vision attention"):
        spec.stack("vision")


def test_spec_is_plain_data():
    import json

    spec = build_spec(tiny("t5"), "t5")
    assert json.loads(json.dumps(spec.to_dict()))["stacks"]["cross"]["layers"][0]["heads"] == 4
