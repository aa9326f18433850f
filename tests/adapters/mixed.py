"""One `MixedOp` on a few rows, beside the plain reference: what the tests of DynMoLE, MoLA and LoRAMoE share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from engine.bases import prepared
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.reference_mixed import LOSSES, PlainMixed, Seen
from adapters.reference_now import Now
from mlora_sched.adapters.mixed_rank import MixedOp, Mixing
from mlora_sched.adapters.params import Params, ParamSpec
from mlora_sched.adapters.part import SegmentPart
from mlora_sched.data.token_set import Prepared

GROUP = "model.layers.0.mlp.gate_up"
SITES = ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
CLOSE = 1e-9
"""Largest difference allowed, relative to the tensor's largest number."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Of one chunk. `lengths`: in tokens. `levels`: inputs and routers are whole numbers below it, and ties many; 0:
    they are drawn from a normal distribution. `pull`: what the first expert's logits gain.
    """

    lengths: tuple[int, ...]
    levels: int = 0
    pull: float = 0.0
    seed: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Sizes(Rows):
    """Of one op, and the rows that it is given."""

    experts: int
    rank: int
    inputs: int
    outputs: tuple[int, ...]


def sizes(experts: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Sizes]:
    """One linear or two, one token and more, ties, experts without tokens, all tokens at one expert."""
    return st.builds(
        Sizes,
        experts=st.integers(1, 7) if experts is None else experts,
        rank=st.integers(1, 4),
        inputs=st.integers(1, 9),
        outputs=st.lists(st.integers(1, 8), min_size=1, max_size=2).map(tuple),
        lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
        levels=st.sampled_from([0, 0, 1, 2, 3]),
        pull=st.sampled_from([0.0, 0.0, 40.0]),
        seed=st.integers(0, 2**31),
    )


def drawn(shape: Sequence[int], levels: int, generator: torch.Generator) -> Tensor:
    if levels:
        return torch.randint(levels, tuple(shape), generator=generator).double()
    return torch.randn(tuple(shape), dtype=torch.float64, generator=generator)


def values_of(sizes: Sizes) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters by name, and an input."""
    generator = torch.Generator().manual_seed(sizes.seed)
    x = drawn((sizes.tokens, sizes.inputs), sizes.levels, generator)
    x[:, 0] = 1.0
    found = {}
    for site, outputs in zip(SITES, sizes.outputs, strict=False):
        router = drawn((sizes.experts, sizes.inputs), sizes.levels, generator)
        router[0, 0] += sizes.pull
        found[f"{site}.moe_gate.weight"] = router
        found[f"{site}.lora_A.weight"] = drawn((sizes.experts, sizes.rank, sizes.inputs), 0, generator)
        found[f"{site}.lora_B.weight"] = drawn((sizes.experts, outputs, sizes.rank), 0, generator)
    return found, x


def op_of(values: dict[str, Tensor], mixing: Mixing, spec: Any) -> tuple[MixedOp, Params]:
    """The op over parameters laid out as the adapter lays them out."""
    sites = mixing.sites
    specs = []
    for half, transposed in (("moe_gate", False), ("lora_A", False), ("lora_B", True)):
        for at, site in enumerate(sites):
            name = f"{site}.{half}.weight"
            joined = at > 0 and not transposed
            specs.append(ParamSpec(name, values[name], transposed=transposed, joined=joined))
    params = Params(specs, torch.device("cpu"), torch.float64)
    routers, a = (params.joined([f"{site}.{half}.weight" for site in sites]) for half in ("moe_gate", "lora_A"))
    bs = [params[f"{site}.lora_B.weight"] for site in sites]
    places = list(range(len(sites)))
    return MixedOp(a, routers, bs, places, mixing, spec.alpha / spec.r, spec.dropout, GROUP), params


def part_of(sizes: Sizes, tasks: tuple[int, ...] = ()) -> SegmentPart:
    return SegmentPart(
        "job",
        0,
        sizes.tokens,
        training=True,
        stream=(1, 2, 3),
        beta=0.0,
        aux_weight=0.7,
        lengths=sizes.lengths,
        tasks=tasks,
    )


def compare(
    spec: Any, sizes: Sizes, mixing: Mixing, tasks: tuple[int, ...] = (), *, losses_alone: bool = False
) -> None:
    """Outputs, and the gradients of everything by outputs and auxiliary losses; or by the losses alone."""
    values, x = values_of(sizes)
    op, params = op_of(values, mixing, spec)
    generator = torch.Generator().manual_seed(sizes.seed + 1)
    dys = [drawn((sizes.tokens, outputs), 0, generator) * (0.0 if losses_alone else 1.0) for outputs in sizes.outputs]
    part, ys = part_of(sizes, tasks), [torch.zeros_like(dy) for dy in dys]
    saved = op.forward(x, ys, part)
    dx = torch.zeros_like(x)
    op.add_dx(op.backward(dys, x, saved, part), dx, part)
    expected_ys, expected = _plainly(spec, sizes, values, x, dys, tasks)
    for y, wanted in zip(ys, expected_ys, strict=True):
        assert_close(y, wanted, "y")
    assert_close(dx, expected.pop("x"), "x")
    for name, wanted in expected.items():
        assert_close(params[name].grad, wanted, name)


def _plainly(
    spec: Any, sizes: Sizes, values: dict[str, Tensor], x: Tensor, dys: Sequence[Tensor], tasks: Sequence[int]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients by name."""
    now, seen, leaf = Now(part=part_of(sizes), tokens=sizes.tokens), list[Seen](), x.clone().requires_grad_()
    ys, trained = [], {"x": leaf}
    for site, dy in zip(SITES, dys, strict=False):
        linear = nn.Linear(sizes.inputs, dy.shape[1], bias=False, dtype=torch.float64)
        nn.init.zeros_(linear.weight)
        own = {name: value for name, value in values.items() if name.startswith(f"{site}.")}
        plain = PlainMixed(site, linear.requires_grad_(False), own, spec, now, seen)
        pieces = []
        for row, at in enumerate(np.cumsum((0, *sizes.lengths[:-1]))):
            now.at, now.task = int(at), tasks[row] if tasks else None
            pieces.append(plain(leaf[None, now.at : now.at + sizes.lengths[row]])[0])
        ys.append(torch.cat(pieces))
        trained |= plain.trained
    total = sum((y * dy).sum() for y, dy in zip(ys, dys, strict=True)) + part_of(sizes).aux_weight * LOSSES[
        spec.method
    ](seen, spec)
    found = torch.autograd.grad(total, list(trained.values()), materialize_grads=True)
    return [y.detach() for y in ys], dict(zip(trained, found, strict=True))


def assert_close(found: Tensor, wanted: Tensor, name: str) -> None:
    limit = CLOSE * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=limit, msg=lambda text: f"{name}: {text}")


def with_tasks(data: Prepared, tasks: Sequence[int]) -> Prepared:
    """The same training rows, each of a task."""
    return dataclasses.replace(data, train=dataclasses.replace(data.train, tasks=np.array(tasks, np.int64)))


def rows_with_tasks(lengths: Sequence[int], seed: int) -> Prepared:
    """Rows of the first task and of the second in turn."""
    return with_tasks(prepared(lengths, seed), [at % 2 for at in range(len(lengths))])
