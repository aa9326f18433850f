"""A base in 4 bits computes exactly what a dense base of its dequantised weights does; what cannot be is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters.methods import METHOD_CASES, VARIANT_CASES, MethodCase
from model.architectures import SETTINGS, config_of
from promise.world import Neighbour, Tenant, World, together
from torch import Tensor

from engine.bases import NEEDS_BITSANDBYTES, base_of, llama_config, model_of
from engine.one_step import member_of, step
from mlora_sched.errors import BaseError
from mlora_sched.memory.meter import PeakTensors
from mlora_sched.model import quantize
from mlora_sched.model.base import FrozenBase, hash_base, load_base
from mlora_sched.model.quantize import Nf4Site
from mlora_sched.model.support import check_config
from mlora_sched.model.verify import verify_base

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")
NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""The values of the paper's Appendix E."""


def dense_twin(nf4: FrozenBase, config: Any, dtype: torch.dtype) -> FrozenBase:
    """A dense base whose weights are the dequantised ones."""
    twin = base_of(config, dtype, scale=3.0)
    for name, site in twin.sites.items():
        site.weight.copy_(nf4.sites[name].dense())
    return twin


@NEEDS_BITSANDBYTES
@DTYPES
@pytest.mark.parametrize("case", [*METHOD_CASES, *VARIANT_CASES], ids=str)
def test_steps_are_those_of_the_dequantised_base(case: MethodCase, dtype: torch.dtype) -> None:
    config = llama_config(attention_bias=True)
    nf4 = base_of(config, dtype, scale=3.0, quantize="nf4")
    got: list[tuple[list[Any], dict[str, Tensor]]] = []
    for base in (nf4, dense_twin(nf4, config, dtype)):
        got.append(step(base, {name: member_of(base, case.adapter(dropout=0.1)) for name in ("one", "two")}))
    assert got[0][0] == got[1][0]
    for name, grad in got[0][1].items():
        assert float(grad.abs().max()) > 0
        assert torch.equal(grad, got[1][1][name])


@NEEDS_BITSANDBYTES
@DTYPES
@pytest.mark.parametrize("shape", [(64, 96), (97, 33), (128, 64), (33, 7)])
def test_a_weight_is_its_nearest_value_in_its_block(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Against the definition, block by block, whatever the width: also one that is no multiple of a block."""
    weight_OD = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    site = Nf4Site("s", weight_OD, None)
    flat = np.resize(weight_OD.float().numpy().reshape(-1), -(-weight_OD.numel() // 64) * 64)
    flat[weight_OD.numel() :] = 0
    blocks = flat.reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs(blocks[:, :, None] / scale[:, :, None] - np.array(NF4, np.float32)).argmin(axis=2)
    wanted = (np.array(NF4, np.float32)[nearest] * scale).reshape(-1)[: weight_OD.numel()].reshape(shape)
    assert site.dense().dtype is dtype
    np.testing.assert_allclose(site.dense().float().numpy(), wanted, atol=0.02 * float(scale.max()))


@NEEDS_BITSANDBYTES
def test_all_linears_but_the_head_are_quantised_and_counted() -> None:
    dense, nf4 = (base_of(llama_config(), quantize=how) for how in ("none", "nf4"))
    assert all(isinstance(site, Nf4Site) for site in nf4.sites.values())
    assert nf4.parameters == dense.parameters
    kept = {name.rpartition(".")[2] for name, _ in nf4.model.named_parameters()}
    assert kept == {"weight"}, "embeddings, norms, head"
    assert torch.equal(nf4.head.weight_VD, dense.head.weight_VD)
    size = sum(buffer.numel() * buffer.element_size() for site in nf4.sites.values() for buffer in site.buffers())
    assert 8 * size < 1.1 * sum(4 * site.weight.numel() * 1.0 for site in dense.sites.values())


@NEEDS_BITSANDBYTES
def test_the_hash_sees_the_quantised_weights() -> None:
    one, same, other = (base_of(llama_config(), seed=seed, quantize="nf4") for seed in (0, 0, 1))
    assert hash_base(one) == hash_base(same) != hash_base(other)
    assert hash_base(one) != hash_base(base_of(llama_config()))


@NEEDS_BITSANDBYTES
def test_no_dense_weight_is_kept() -> None:
    peaks = {}
    for how in ("none", "nf4"):
        base = base_of(llama_config(hidden=256, ff=704, layers=6), quantize=how)  # type: ignore[arg-type]
        member = member_of(base, {"method": "lora", "r": 2})
        with PeakTensors() as peak:
            step(base, {"job": member}, lengths=(5, 9))
        peaks[how] = peak.peak
    assert peaks["nf4"] < 0.5 * peaks["none"]


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("model_type", [name for name in SETTINGS if name not in MIXTURES])
def test_every_dense_architecture_can_be_quantised(model_type: str) -> None:
    base = base_of(config_of(model_type), scale=2.0, quantize="nf4")
    assert verify_base(base) < 5e-6
    grads = step(base, {"job": member_of(base, {"method": "lora"})})[1]
    assert float(grads["job"].abs().max()) > 0


@NEEDS_BITSANDBYTES
@DTYPES
def test_a_job_learns(dtype: torch.dtype) -> None:
    training = {"seed": 1, "max_steps": 25, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 25}
    tenant = Tenant("job", {"method": "lora", "r": 8, "alpha": 16}, training, (30, 22, 41, 28), validation=(30, 22))
    got = together(World(dtype=dtype, quantize="nf4"), [Neighbour(tenant)])["job"]
    assert got.finished
    losses = [float(line.split('"loss":')[1].split(",")[0]) for line in got.figures if '"kind":"step"' in line]
    assert losses[-1] < 0.7 * losses[0]
    assert b'"quantize": "nf4"' in got.files["provenance.json"]


# ---------------------------------------------------------------- refusals


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_mixture_is_refused(model_type: str) -> None:
    with pytest.raises(BaseError, match=r"--quantize nf4: base tiny is a mixture of experts.*serve it without"):
        base_of(config_of(model_type), quantize="nf4")


def test_without_bitsandbytes_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseError, match=r"bitsandbytes is not installed; pip install 'mlora_sched\[gpu\]'"):
        load_base("tiny", "/nowhere", torch.float32, torch.device("cpu"), "nf4")


@pytest.mark.parametrize("found", [{"quant_method": "gptq"}, {"quant_method": "bitsandbytes", "load_in_4bit": True}])
def test_a_base_that_is_quantised_already_is_refused(found: dict[str, Any]) -> None:
    config = llama_config()
    config.quantization_config = found
    with pytest.raises(BaseError, match=rf"quantization_config \({found['quant_method']}\).*with --quantize nf4"):
        check_config(config, "tiny")


@NEEDS_BITSANDBYTES
def test_a_library_that_gives_back_other_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Nf4Site.dense
    monkeypatch.setattr(Nf4Site, "dense", lambda site: real(site).flip(1))
    with pytest.raises(BaseError, match="comes back from 4 bits with other weights"):
        base_of(llama_config(), quantize="nf4")


@NEEDS_BITSANDBYTES
def test_it_loads_from_a_directory(tmp_path: Path) -> None:
    model_of(llama_config(), scale=3.0).save_pretrained(tmp_path)
    loaded = load_base("tiny", str(tmp_path), torch.float32, torch.device("cpu"), "nf4")
    wanted = base_of(llama_config(), scale=3.0, quantize="nf4")
    assert hash_base(loaded) == hash_base(wanted)


@NEEDS_BITSANDBYTES
def test_no_code_from_a_hub_is_run(tmp_path: Path) -> None:
    """Where the package `kernels` is there, bitsandbytes would fetch some with it. It asks once a process."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')\n", encoding="utf-8")
    program = "from mlora_sched.model.quantize import _functional; print(_functional().__name__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "bitsandbytes.functional"), done.stderr
