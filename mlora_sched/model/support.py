"""What the engine can serve faithfully, told from a base's config before it is loaded.

Anything it cannot is refused here with the reason, never run silently wrong. What a config cannot tell is caught by
`mlora_sched.model.verify`, which compares the loaded base with transformers' own forward.
"""

from __future__ import annotations

from typing import Any

from mlora_sched.errors import BaseError

_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}


def check_config(config: Any, name: str) -> int:
    """Refuse what cannot be packed; return the longest sequence (tokens) a job may train on.

    Args:
        config: the transformers config of the whole model.
        name: the base's name, for messages.

    Raises:
        BaseError: the architecture, its attention or its positions cannot be handled.
    """
    text = config.get_text_config()
    quantized = getattr(config, "quantization_config", None)
    if quantized:
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized.quant_method
        raise BaseError(
            f"base {name}: its config.json has a quantization_config ({getattr(method, 'value', method)}), so its "
            f"weights are packed already; serve the weights it was made of, with --quantize nf4 for 4 bits"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise BaseError(f"base {name}: {config.model_type} is an encoder-decoder; the engine packs decoders only")
    odd = sorted(set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES)
    if odd:
        raise BaseError(
            f"base {name}: {config.model_type} has layers of type {', '.join(odd)}, whose state runs across the pack; "
            f"only softmax attention over each sequence can be packed"
        )
    if text.model_type.startswith("gpt_oss"):
        raise BaseError(
            f"base {name}: {config.model_type} uses attention sinks, which packed attention does not compute"
        )
    return _longest(text, name)


def _longest(text: Any, name: str) -> int:
    limit = int(getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or 2**31)
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk:
        limit = min(limit, int(chunk))
    for rope in _ropes(text):
        kind = rope.get("rope_type", "default")
        if kind not in ("dynamic", "longrope"):
            continue
        original = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if original is None and kind == "longrope":
            raise BaseError(
                f"base {name}: its RoPE is of type longrope and names no original_max_position_embeddings; beyond that "
                f"length a pack's frequencies would depend on its longest sequence, so it must be known"
            )
        limit = min(limit, int(original or limit))
    return limit


def _ropes(text: Any) -> list[dict[str, Any]]:
    """Every RoPE description of the config (one, or one a layer type)."""
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope and all(isinstance(value, dict) for value in rope.values()):
        return list(rope.values())
    return [rope]
