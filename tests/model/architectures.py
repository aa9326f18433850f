"""Tiny random configs of many decoder architectures, each with the settings that could go wrong in a pack."""

from __future__ import annotations

from typing import Any

from engine.bases import VOCAB
from transformers import AutoConfig

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD_16 = {"head_dim": 16}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": _HEAD_16,
    "mistral": {"sliding_window": 16, **_HEAD_16},
    "gemma": _HEAD_16,
    "gemma2": {
        "sliding_window": 16,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 3.0,
        **_HEAD_16,
    },
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], **_HEAD_16},
    "phi3": {"sliding_window": 16},
    "phi": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "olmo2": {},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.25},
    "glm4": _HEAD_16,
    "starcoder2": {"sliding_window": 16},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 96},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "qwen3_moe": {**_MIXTURE, **_HEAD_16, "norm_topk_prob": True},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
}
"""By model type, what differs from the common settings."""


def config_of(model_type: str, **more: Any) -> Any:
    """A config with two small layers; `more` overrides."""
    settings = {**_COMMON, **SETTINGS.get(model_type, {}), **more}
    if model_type == "gpt2":  # it names the common sizes in its own way
        settings = {"vocab_size": VOCAB, **SETTINGS["gpt2"], **more}
    return AutoConfig.for_model(model_type, **settings)
