"""A base without numbers: the engine's own modules over tensors that have shapes and no memory.

Made from a config on the meta device, then moved under a `FakeTensorMode`, where operators run with their shapes
alone; so a step of a 70B base is traced on a laptop. Nothing here can be trained or compared.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.model.head import head_of
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.spec.numerics import Quantize


@dataclasses.dataclass(frozen=True)
class HollowBase:
    """A base and the mode under which all work on it must run."""

    mode: FakeTensorMode
    base: FrozenBase


def hollow_base(
    config: Any,
    dtype: torch.dtype,
    *,
    name: str = "base",
    device: str = "cpu",
    quantize: Quantize = "none",
    recompute: bool = False,
) -> HollowBase:
    """The base that a transformers config describes, as the engine would lay it out.

    Args:
        device: the kind of device whose operators are traced; "cuda" where torch can.
        quantize, recompute: options of the daemon that change what lies in memory.

    Raises:
        BaseError: a model that the engine cannot serve.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    base = adopt(model, name=name, quantize=quantize)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _settle(model, torch.device(device))
        base = dataclasses.replace(base, head=head_of(model), device=torch.device(device))
    if recompute:
        checkpoint_activations(base)
    return HollowBase(mode, base)


def _settle(model: nn.Module, device: torch.device) -> None:
    """Give every parameter and buffer a fake tensor of its own on `device`; what is shared stays shared."""
    settled: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for held in places:
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in settled:
                    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                    made = nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake
                    settled[id(tensor)] = (made, tensor)  # with the tensor, whose id must not be given away
                held[name] = settled[id(tensor)][0]
