"""Train many LoRA and mixture-of-LoRA jobs of many people at once on one shared frozen base model.

For Python programs there are two functions: `load_adapter` puts a finished adapter on a transformers model, and
`unload_adapter` takes it off. Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from os import PathLike
from typing import TypeVar

from mlora_sched.version import __version__

__all__ = ["__version__", "load_adapter", "unload_adapter"]

Model = TypeVar("Model")
"""A causal language model of transformers."""


def load_adapter(model: Model, directory: str | PathLike[str]) -> Model:
    """Put an exported adapter on a transformers model, in place, to run it as training's evaluation ran it.

    `model(…)` and `model.generate(…)` then work as before, with padding, caches and any attention implementation. The
    model is frozen and in evaluation mode from then on; move it to its device and dtype before.

        model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B", dtype="bfloat16", device_map="cuda")
        mlora_sched.load_adapter(model, "arc-adapter")
        model.generate(**tokenizer("Is ice cold?", return_tensors="pt").to(model.device), max_new_tokens=20)

    It has to be the base that the adapter was trained on (`base_model_name_or_path` in `adapter_config.json`). One of
    other shapes is refused; another of the same shapes is not noticed, and gives worse answers.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` gives, not quantised, on one device.
        directory: with `adapter_config.json` and `adapter_model.safetensors`, as `pull` and `run` make them, or PEFT
            for a LoRA.

    Returns:
        The same model.

    Raises:
        UserError: (a ValueError) there is no adapter that can be read, or it belongs to another base.
        BaseError: (a ValueError) the model cannot take an adapter: it carries one, is quantised, lies on many devices.
    """
    from mlora_sched import inference

    return inference.load_adapter(model, directory)


def unload_adapter(model: Model) -> Model:
    """Take off what `load_adapter` has put on: the model has its own modules again, and stays frozen.

    Returns:
        The same model.

    Raises:
        BaseError: (a ValueError) it carries no adapter.
    """
    from mlora_sched import inference

    return inference.unload_adapter(model)
