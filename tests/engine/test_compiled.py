"""Compiled row-wise pieces compute what they compute uncompiled, exactly in every company, and are compiled once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.methods import METHOD_CASES, case_of
from model.architectures import config_of
from promise.world import Neighbour, Tenant, World, together

from engine.bases import base_of, llama_config
from engine.one_step import member_of, step
from mlora_sched.engine.probe import probe
from mlora_sched.errors import BaseError
from mlora_sched.model import compiled
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.compiled import check_compiler, compile_rows
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.model.verify import verify_base
from mlora_sched.spec.numerics import Exactness

CPU = torch.device("cpu")
COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler g++")


@pytest.fixture(scope="module")
def inductor_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def pair(request: pytest.FixtureRequest, inductor_cache: None) -> tuple[FrozenBase, FrozenBase]:
    """The same base as it is and with compiled pieces."""
    plain, fast = (base_of(llama_config(), request.param, scale=3.0) for _ in range(2))
    compile_rows(fast)
    return plain, fast


@COMPILES
def test_forward_and_backward_are_those_of_the_plain_base(pair: tuple[FrozenBase, FrozenBase]) -> None:
    plain, fast = pair
    verify_base(fast)
    limit = 1e-4 if plain.dtype is torch.float32 else 0.1
    for case in METHOD_CASES:
        if case.method == "mixlora" and plain.dtype is torch.bfloat16:
            continue  # a rounding may send a token to another expert
        (wanted, grads), (found, grads_found) = (
            step(base, {"job": member_of(base, case.adapter(dropout=0.1))}) for base in pair
        )
        for one, other in zip(wanted, found, strict=True):
            assert one.loss_sum == pytest.approx(other.loss_sum, rel=limit)
        assert float((grads["job"] - grads_found["job"]).abs().max()) <= limit * float(grads["job"].abs().max())


@COMPILES
def test_the_probe_finds_it_exact(pair: tuple[FrozenBase, FrozenBase]) -> None:
    verdict = probe(pair[1], (32, 64, 160))
    assert (verdict.exactness, verdict.buckets) == (Exactness.EXACT, (32, 64, 160))


@COMPILES
def test_nothing_is_compiled_once_jobs_train(pair: tuple[FrozenBase, FrozenBase]) -> None:
    """Every length, method and kind of pass runs on the graphs that were made at the start."""
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ((5,), (9, 14), (30, 31), (100,), (64, 64)):
            for targets in ("all-linear", ["layers.1.mlp.down_proj"]):
                member = member_of(pair[1], {"method": "lora", "target_modules": targets})
                for training in (True, False):
                    step(pair[1], {"job": member}, training=training, lengths=lengths)


@COMPILES
def test_with_checkpointed_activations_the_bits_are_the_same(inductor_cache: None) -> None:
    fast, thrifty = (base_of(llama_config(), scale=3.0) for _ in range(2))
    for base in (fast, thrifty):
        compile_rows(base)
    checkpoint_activations(thrifty)
    case = case_of("mixlora").adapter(dropout=0.1)
    with torch.compiler.set_stance("fail_on_recompile"):
        one, other = (step(base, {"job": member_of(base, case)}) for base in (fast, thrifty))
    assert one[0] == other[0]
    assert torch.equal(one[1]["job"], other[1]["job"])


@COMPILES
@pytest.mark.usefixtures("inductor_cache")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_job_is_as_alone(dtype: torch.dtype) -> None:
    """Alone it has no adapter in the first layer; in company the neighbours have, so that other graphs run there."""
    world = World(dtype=dtype, compile=True)
    training = {"seed": 1, "max_steps": 3, "batch_size": 4, "chunk_tokens": 64, "learning_rate": 1e-2}
    targets = ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"]
    lengths = (30, 22, 41, 28, 55)
    tenant = Tenant("job", {"method": "lora", "target_modules": targets}, training, lengths, validation=(30, 22))
    company = [
        Neighbour(Tenant(str(case), case.adapter(dropout=0.1), training, lengths), joins=at)
        for at, case in enumerate(METHOD_CASES)
    ]
    alone, found = (together(world, members)["job"] for members in ([Neighbour(tenant)], [Neighbour(tenant), *company]))
    assert alone.finished
    assert alone.figures == found.figures
    assert alone.files == found.files


# ---------------------------------------------------------------- refusals


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BaseError, match=r"--compile: there is no C\+\+ compiler no-such-compiler; install it"):
        check_compiler(CPU)


@COMPILES
def test_without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(BaseError, match=r"Python\.h is not there; install Python's headers"):
        check_compiler(CPU)


@COMPILES
def test_a_piece_that_cannot_be_compiled(inductor_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(llama_config())
    norm = type(base.model.base_model.norm)
    real = norm.forward

    def breaks(self: Any, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        out: torch.Tensor = real(self, x)
        return out

    monkeypatch.setattr(norm, "forward", breaks)
    with pytest.raises(BaseError, match=r"cannot make the row-wise pieces of base tiny.*serve it without --compile"):
        compile_rows(base)


def test_a_base_with_nothing_to_compile() -> None:
    with pytest.raises(BaseError, match=r"base tiny \(gpt2\) has neither norms.* serve it without --compile"):
        compile_rows(base_of(config_of("gpt2")))


@COMPILES
@pytest.mark.usefixtures("inductor_cache")
def test_graphs_that_round_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of(llama_config())
    real = compiled._try
    monkeypatch.setattr(compiled, "_try", lambda base: [x * (1 + 1e-6 * at) for at, x in enumerate(real(base))])
    with pytest.raises(BaseError, match="a job's results would depend on its company"):
        compile_rows(base)


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BaseError, match="where compiled code is kept, cannot be made"):
        compiled._settle()


def test_a_cache_that_others_can_write_to_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies there is run."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "mlora_sched" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(BaseError, match="not this user's alone"):
        compiled._settle()


def test_a_compiler_with_arguments_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env g++")
    check_compiler(CPU)
