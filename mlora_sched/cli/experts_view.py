"""What `show --experts` prints: each router's load by expert, layer by layer, and what should worry its owner.

Pure drawing of records: lines out, it asks nobody and uses no colour. What is dead or collapsed `spec.experts` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlora_sched.cli.style import one_line
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.experts import ExpertsBrief, ExpertsRecord, LoadBy, RouterOverview, routers_of

_BLOCKS, _NOTHING = "▁▂▃▄▅▆▇█", "·"
_PLAIN_BLOCKS, _PLAIN_NOTHING = "12345678", "."
_MOST_WARNINGS = 10
"""What is printed of them; a base has hundreds of linears."""
_ROOM = 20
"""Columns of the blocks at least, on however narrow a terminal."""


class ExpertsView(Frozen):
    """`show --experts --json`: the routers of a job over its newest recorded steps.

    Attributes:
        steps: which; tokens: all that were trained on in them.
        warnings: what of it should worry the job's owner, in words.
    """

    job: str
    steps: tuple[int, ...]
    tokens: int
    routers: tuple[RouterOverview, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, job_id: str, records: Sequence[ExpertsRecord], setting: str = "num_experts") -> ExpertsView:
        """What is known from these records; `setting` is what the job's method calls the number of its experts."""
        routers, tokens = routers_of(records), sum(record.tokens for record in records)
        names = _names([one.router for one in routers])
        steps = "recorded step" if len(records) == 1 else f"{len(records)} recorded steps"
        said = _Said(f"in the last {steps} (of {tokens:,} tokens)", f"raise router_aux_loss_coef or lower {setting}")
        return cls(
            job=job_id,
            steps=tuple(record.step for record in records),
            tokens=tokens,
            routers=routers,
            warnings=tuple(text for one in routers for text in said.of(one, names[one.router])),
        )


def experts_lines(view: ExpertsView, width: int, *, plain: bool = False) -> Iterator[str]:
    """A line a router, or several where its experts need them; `plain` draws with ASCII only."""
    steps = f"step {view.steps[0]}"
    if len(view.steps) > 1:
        steps = f"the last {len(view.steps)} recorded steps ({view.steps[0]} to {view.steps[-1]})"
    yield f"{_counted(len(view.routers))} in {steps}, of {view.tokens:,} tokens"
    yield ""
    texts = [_row(name, one) for one, name in _named(view.routers)]
    margin = max(len("router"), *(len(row.name) for row in texts))
    beside = margin + len(_HEAD) + 4
    drawing = _Drawing(_PLAIN_BLOCKS if plain else _BLOCKS, _PLAIN_NOTHING if plain else _NOTHING)
    experts = max(len(one.share) for one in view.routers)
    with_shares = experts * _CELL <= width - beside
    room = experts * _CELL if with_shares else max(_ROOM, width - beside)
    yield f"{'router':<{margin}}  {_HEAD}  {drawing.head(experts, with_shares)}".rstrip()
    for row, one in zip(texts, view.routers, strict=True):
        begin = f"{row.name:<{margin}}  {row.figures}"
        for cells in drawing.cells(one, room, with_shares):
            yield f"{begin}  {cells}".rstrip()
            begin = " " * len(begin)
    yield ""
    yield from drawing.legend(view.routers)
    yield from (f"warning: {one_line(text)}" for text in view.warnings[:_MOST_WARNINGS])
    if len(view.warnings) > _MOST_WARNINGS:
        yield f"and {len(view.warnings) - _MOST_WARNINGS} warnings more, of other routers; --json has all of them"


def brief_text(brief: ExpertsBrief | None) -> str:
    """`32 routers, entropy 0.83, 2 dead`; empty where there are none."""
    if brief is None:
        return ""
    parts = [f"{_counted(brief.routers)}, entropy {brief.entropy:.2f}"]
    parts += [f"{brief.dead} dead"] if brief.dead else []
    parts += [f"{brief.collapsed} collapsed"] if brief.collapsed else []
    return ", ".join(parts)


_HEAD = "entropy    k  most"
_CELL = len("▄100% ")


@dataclass(frozen=True, slots=True)
class _Row:
    """What stands beside a router's blocks."""

    name: str
    figures: str


def _row(name: str, one: RouterOverview) -> _Row:
    return _Row(name, f"{one.entropy:>7.2f} {one.per_token:>4.3g} {max(one.share):>5.0%}")


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Characters for a share: the fourth of `blocks` is an equal one, the last twice that or more."""

    blocks: str
    nothing: str

    def head(self, experts: int, with_shares: bool) -> str:
        """The experts' numbers, where each has room for one."""
        return "".join(f"{expert:<{_CELL}}" for expert in range(experts)) if with_shares else "experts"

    def cells(self, one: RouterOverview, room: int, with_shares: bool) -> Iterator[str]:
        """The experts of one router, in lines that fit into the room."""
        blocks = [self._block(one, expert) for expert in range(len(one.share))]
        if with_shares:
            yield "".join(f"{block}{share:>4.0%} " for block, share in zip(blocks, one.share, strict=True))
            return
        yield from ("".join(blocks[start : start + room]) for start in range(0, len(blocks), room))

    def legend(self, routers: Sequence[RouterOverview]) -> Iterator[str]:
        """What the characters and figures mean."""
        dense = all(one.by is LoadBy.PROBABILITY for one in routers)
        what = "a router's probability" if dense else "a router's choices"
        equal, twice = self.blocks[3], self.blocks[-1]
        yield f"shares of {what}: {equal} an equal one, {twice} twice that or more, {self.nothing} none"
        yield "entropy: 1 where all experts are alike; k: experts a token goes to; most: the largest share"

    def _block(self, one: RouterOverview, expert: int) -> str:
        if expert in one.dead:
            return self.nothing
        equal = 1 / len(one.share)
        level = round(one.share[expert] / equal * 4) - 1
        return self.blocks[min(max(level, 0), len(self.blocks) - 1)]


def _named(routers: Sequence[RouterOverview]) -> list[tuple[RouterOverview, str]]:
    names = _names([one.router for one in routers])
    return [(one, one_line(names[one.router])) for one in routers]


def _names(routers: Sequence[str]) -> Mapping[str, str]:
    """The layer and the last part of each path, as in `3 q_proj`; two parts where layers have several of that name."""
    short = {router: _short(router, 1) for router in routers}
    said = list(short.values())
    return {router: name if said.count(name) == 1 else _short(router, 2) for router, name in short.items()}


def _short(router: str, parts: int) -> str:
    path = router.split(".")
    layer = next((part for part in path if part.isdigit()), "")
    return " ".join(part for part in (layer, ".".join(path[-parts:])) if part)


@dataclass(frozen=True, slots=True)
class _Said:
    """How warnings end: when it was seen, and what may help."""

    seen: str
    remedy: str

    def of(self, one: RouterOverview, name: str) -> Iterator[str]:
        """The warnings about a router."""
        by_choices, where = one.by is LoadBy.CHOICES, f"layer {name}" if name[0].isdigit() else name
        if one.dead:
            got = "got no token" if by_choices else "got next to none of the router's probability"
            yield f"{where}: {_listed('expert', one.dead)} {got} {self.seen}; {self.remedy}"
        if one.taken_by:
            what = "choices" if by_choices else "probability"
            took = f"took {sum(one.share[expert] for expert in one.taken_by):.0%} of the router's {what}"
            yield f"{where}: {_listed('expert', one.taken_by)} {took} {self.seen}; {self.remedy}"


def _counted(routers: int) -> str:
    return "1 router" if routers == 1 else f"{routers} routers"


def _listed(noun: str, numbers: Sequence[int]) -> str:
    """`expert 5`, `experts 1, 2 and 5`."""
    *others, last = map(str, numbers)
    return f"{noun}s {', '.join(others)} and {last}" if others else f"{noun} {last}"
