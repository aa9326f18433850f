"""`check_config`: refused from the config alone, with the reason; and the longest sequence a base may train on."""

from __future__ import annotations

from typing import Any

import pytest
from engine.bases import llama_config
from transformers import AutoConfig

from mlora_sched.errors import BaseError
from mlora_sched.model.support import check_config
from model.architectures import config_of


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt_oss", "attention sinks"),
        ("qwen3_next", "linear_attention"),
        ("falcon_h1", "hybrid"),
        ("mamba", "linear_attention"),
        ("bamba", "linear_attention"),
        ("llama4_text", "chunked_attention"),
        ("t5", "encoder-decoder"),
        ("bart", "encoder-decoder"),
    ],
)
def test_refused_with_the_reason(model_type: str, reason: str) -> None:
    with pytest.raises(BaseError, match=f"base lab: .*{reason}"):
        check_config(AutoConfig.for_model(model_type), "lab")


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (config_of("llama"), 512),
        (config_of("gpt2"), 512),
        (llama_config(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}), 512),
        (llama_config(rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}), 512),
        (config_of("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=64), 64),
        (config_of("llama", rope_parameters={**LONGROPE, "original_max_position_embeddings": 128}), 128),
    ],
)
def test_longest_sequence(config: Any, longest: int) -> None:
    """Beyond it dynamic and longrope frequencies would depend on the longest sequence of the pack."""
    assert check_config(config, "lab") == longest


def test_convolution_layers_are_refused() -> None:
    config = config_of("lfm2", layer_types=["conv", "full_attention"])
    with pytest.raises(BaseError, match="layers of type conv"):
        check_config(config, "lab")
