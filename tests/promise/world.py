"""Tenants and their company: a real trainer on a tiny base, real files, a real tokenizer, and a script of what happens.

What is compared is what a tenant gets: the bytes of its exported adapter and every figure it is told.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from engine.bases import base_of, llama_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlora_sched.artifacts.provenance import Origin
from mlora_sched.data.pack import PackedBatch, bucket_ladder
from mlora_sched.engine import loop
from mlora_sched.engine.loop import Trainer
from mlora_sched.engine.memory import TrainerMemory
from mlora_sched.engine.probe import probe
from mlora_sched.memory.formula import Formula
from mlora_sched.memory.profile import profile_base
from mlora_sched.model.base import FrozenBase
from mlora_sched.model.compiled import compile_rows
from mlora_sched.spec.job import parse_job
from mlora_sched.spec.numerics import Exactness, NumericsKey, Quantize
from mlora_sched.spec.wire import EvalDone, JobFailed, JobFinished, JobStart, Report, Slice, StepDone, Turn

PACK_TOKENS = 320


@dataclass(frozen=True)
class World:
    """What all runs of a comparison have in common."""

    ff: int = 96
    dtype: torch.dtype = torch.float32
    threads: int = 1
    pack_tokens: int = PACK_TOKENS
    quantize: Quantize = "none"
    compile: bool = False

    def __str__(self) -> str:
        kept = "" if self.quantize == "none" else f"-{self.quantize}"
        return f"ff{self.ff}-{str(self.dtype).removeprefix('torch.')}-{self.threads}threads{kept}"


@dataclass(frozen=True)
class Tenant:
    """A job: its adapter and training sections, the lengths (characters) of its rows, and their tasks in turn."""

    name: str
    adapter: dict[str, Any]
    training: dict[str, Any]
    lengths: tuple[int, ...]
    validation: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """A tenant in the company of another.

    Attributes:
        joins: packs that have run when it is attached. leaves: packs after which it is cancelled, None for never.
        parks: packs after which it is parked, and how many later it comes back.
        breaks: its adapter raises in the forward of this pack of its own, None for never.
    """

    tenant: Tenant
    joins: int = 0
    leaves: int | None = None
    breaks: int | None = None
    parks: tuple[tuple[int, int], ...] = ()

    @property
    def last(self) -> int:
        """Packs after which nothing more happens to it."""
        return max([self.joins, *(at + away for at, away in self.parks)])


@dataclass
class Got:
    """What a tenant got: the adapter's files and its figures, or why it failed."""

    files: dict[str, bytes] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    failed: str | None = None
    finished: bool = False

    @property
    def ended(self) -> bool:
        return self.finished or self.failed is not None


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens; a tokenizer that needs no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: at for at, symbol in enumerate(["<eos>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


@functools.cache
def base_in(world: World) -> FrozenBase:
    """The tiny base of a world; its matrices are large enough for attention and routing to matter."""
    config = llama_config(ff=world.ff)
    config.vocab_size = 260
    base = base_of(config, world.dtype, scale=3.0, quantize=world.quantize)
    if world.compile:
        compile_rows(base)
    return base


@functools.cache
def origin_in(world: World) -> Origin:
    """The probe's verdict on that base, which must be exact on a CPU."""
    torch.set_num_threads(world.threads)
    verdict = probe(base_in(world), bucket_ladder(world.pack_tokens))
    assert verdict.exactness is Exactness.EXACT, verdict
    numerics = NumericsKey(
        device="cpu",
        torch=torch.__version__,
        transformers="-",
        dtype=str(world.dtype),
        threads=world.threads,
        attention="-",
        buckets=verdict.buckets,
        quantize=world.quantize,
        compile=world.compile,
    )
    return Origin("tiny", "tiny", "-", numerics, verdict)


@functools.cache
def formula_in(world: World) -> Formula:
    """The closed form for that base."""
    base, buckets = base_in(world), origin_in(world).numerics.buckets
    return Formula(profile_base(base.model.config, world.dtype, quantize=world.quantize, buckets=buckets))


def write_rows(path: Path, lengths: Sequence[int], seed: int, tasks: Sequence[str] = ()) -> str:
    """Prompt/completion rows of about these lengths; returns the path."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij "))
    with path.open("w", encoding="utf-8") as file:
        for at, length in enumerate(lengths):
            text = "".join(rng.choice(letters, max(2, length)))
            half = len(text) // 2
            task = {"task": tasks[at % len(tasks)]} if tasks else {}
            file.write(json.dumps({"prompt": text[:half], "completion": text[half:], **task}) + "\n")
    return str(path)


class Run:
    """One trainer over some tenants; `step` runs one pack."""

    def __init__(self, world: World, folder: Path, memory: TrainerMemory | None = None) -> None:
        torch.set_num_threads(world.threads)
        self.folder = folder
        self.trainer = Trainer(base_in(world), tokenizer(), origin_in(world), world.pack_tokens, memory)
        self.starts: dict[str, JobStart] = {}
        self.got: dict[str, Got] = {}

    def attach(self, tenant: Tenant) -> None:
        folder = self.folder / tenant.name
        folder.mkdir(parents=True)
        seed = tenant.training["seed"]
        files = {"train.jsonl": write_rows(folder / "train.jsonl", tenant.lengths, seed, tenant.tasks)}
        data: dict[str, Any] = {"train": "train.jsonl", "template": "none"}
        if tenant.validation:
            files["held.jsonl"] = write_rows(folder / "held.jsonl", tenant.validation, seed + 1, tenant.tasks)
            data["validation"] = "held.jsonl"
        if tenant.tasks:
            data |= {"task_column": "task", "tasks": list(tenant.tasks)}
        raw = {"name": tenant.name, "adapter": tenant.adapter, "training": tenant.training, "data": data}
        start = JobStart(
            job_id=tenant.name,
            epoch=1,
            spec=parse_job(raw),
            files=files,
            cache_dir=str(self.folder / "cache"),
            job_dir=str(folder),
        )
        self.starts[tenant.name], self.got[tenant.name] = start, Got()
        self.take(self.trainer.attach(start))

    def park(self, name: str) -> None:
        """Let it rest in the host's memory, where it is still training."""
        self.take(self.trainer.detach(name, keep=True, park=True))

    def wake(self, name: str) -> None:
        """Let it go on, where it is parked."""
        if name in self.trainer.parking.jobs:
            self.take(self.trainer.attach(self.starts[name]))

    def break_adapter(self, name: str, at: int) -> None:
        """Make the `at`-th call of one of the adapter's ops raise."""
        op = next(iter(self.trainer.residents[name].state.adapter.site_ops.values()))
        forward, calls = op.forward, [0]

        def broken(*args: Any) -> Any:
            calls[0] += 1
            if calls[0] > at:
                raise RuntimeError("a bug of this tenant's own")
            return forward(*args)

        op.forward = broken  # type: ignore[method-assign]

    def step(self) -> bool:
        """Run one pack with everyone in it; False when there is no work."""
        turns = tuple(Turn(job_id=name) for name in self.trainer.residents)
        if not turns:
            return False
        packs = self.trainer.slice(Slice(slice_id=0, turns=turns, seconds=1000.0))
        self.take(next(packs))
        return True

    def take(self, reports: Sequence[Report]) -> None:
        for report in reports:
            match report:
                case StepDone() | EvalDone():
                    # a trainer that does not know its memory counts work otherwise
                    self.got[report.job_id].figures.append(report.model_dump_json(exclude={"seconds", "work"}))
                case JobFailed():
                    self.got[report.job_id].failed = f"{report.code.value}: {report.message}"
                case JobFinished():
                    got, adapter = self.got[report.job_id], self.folder / report.job_id / "adapter"
                    got.finished = True
                    got.files = {path.name: path.read_bytes() for path in adapter.iterdir()}
                case _:
                    pass


def alone(world: World, tenant: Tenant) -> Got:
    """What the tenant gets when nobody else is there."""
    return together(world, [Neighbour(tenant)])[tenant.name]


def together(
    world: World,
    members: Sequence[Neighbour],
    out_of_memory: Sequence[int] = (),
    until: str | None = None,
    memory: TrainerMemory | None = None,
) -> dict[str, Got]:
    """What everybody gets when they come, go and break as they do.

    Args:
        out_of_memory: packs (counted from 0) in whose course the device runs out of memory.
        until: stop when this tenant has ended; by default when all have.
        memory: what sizes the packs; by default nothing does.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Run(world, Path(folder), memory)
        packs, last = 0, max(member.last for member in members)
        worked = True
        while (worked or packs <= last) and not (until in run.got and run.got[until].ended):
            for member in members:
                _come_and_go(run, member, packs)
            worked = _step(run, fails=packs in out_of_memory)
            packs += 1
        return run.got


def _come_and_go(run: Run, member: Neighbour, packs: int) -> None:
    name = member.tenant.name
    if member.joins == packs:
        run.attach(member.tenant)
        if member.breaks is not None:
            run.break_adapter(name, member.breaks)
    for at, away in member.parks:
        if packs == at:
            run.park(name)
        if packs == at + away:
            run.wake(name)
    if member.leaves is not None and member.leaves <= packs:
        run.trainer.detach(name, keep=False)


def _step(run: Run, *, fails: bool) -> bool:
    """One pack; with `fails`, memory runs out at the end of its backward, when gradients have been added."""
    if not fails:
        return run.step()
    real = loop.run_pack

    def failing(base: Any, pack: PackedBatch, *args: Any, **kwargs: Any) -> Any:
        results = real(base, pack, *args, **kwargs)
        if len(pack.segments) == 1:  # a chunk that does not fit by itself would rightly fail its own job
            return results
        raise torch.OutOfMemoryError("injected")

    with mock.patch.object(loop, "run_pack", failing):
        return run.step()
