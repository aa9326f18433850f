"""Small bases of every architecture, hollow and real, and the script that compares estimates."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from docs.pages import ROOT
from model.architectures import config_of
from transformers import AutoModelForCausalLM

from mlora_sched.bench import estimate_grid
from mlora_sched.memory.hollow import HollowBase, hollow_base
from mlora_sched.memory.profile import profile_base
from mlora_sched.model.base import FrozenBase, adopt
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.spec.memory import BaseShape

LADDER = estimate_grid.LADDER
DTYPES = (torch.float32, torch.bfloat16)


def _script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


estimates: Any = _script(ROOT / "docs" / "benchmarks" / "estimates.py")


@functools.cache
def shape_small(model_type: str) -> BaseShape:
    """The shape of a small base of an architecture, in float32, with the lengths of `LADDER` in use."""
    return profile_base(config_of(model_type), torch.float32, buckets=LADDER)


@functools.cache
def hollow_small(model_type: str, dtype: torch.dtype = torch.float32, recompute: bool = False) -> HollowBase:
    """A small base of an architecture, without numbers."""
    return hollow_base(config_of(model_type), dtype, recompute=recompute)


@functools.cache
def real_small(model_type: str, dtype: torch.dtype = torch.float32, recompute: bool = False) -> FrozenBase:
    """The same base with random numbers, as `load_base` lays it out."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(model_type), dtype=dtype)
    base = adopt(model.eval(), name="tiny", location="tiny")
    if recompute:
        checkpoint_activations(base)
    return base
