"""What `show --experts` prints, word for word (`golden/`, written anew as for test_golden), and what it warns of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlora_sched.cli.experts_view import ExpertsView, brief_text, experts_lines
from mlora_sched.spec.experts import ExpertsBrief, ExpertsRecord, LoadBy, RouterLoad

GOLDEN = Path(__file__).parent / "golden"


def load(router: str, share: Sequence[float], per_token: float = 2.0, by: LoadBy = LoadBy.CHOICES) -> RouterLoad:
    return RouterLoad(router=router, by=by, share=tuple(share), per_token=per_token, entropy=0.834)


def view(*loads: RouterLoad, steps: int = 10, setting: str = "num_experts") -> ExpertsView:
    records = [ExpertsRecord(step=4 * step, tokens=120, routers=loads) for step in range(1, steps + 1)]
    return ExpertsView.of("j-1", records, setting)


MIXLORA = (
    load("model.layers.0.mlp", [0.125] * 8),
    load("model.layers.1.mlp", [0.2, 0.05, 0.3, 0.1, 0.15, 0.0, 0.12, 0.08]),
    load("model.layers.2.mlp", [0.5, 0.0, 0.0, 0.46, 0.02, 0.0, 0.01, 0.01]),
)
MOLA = tuple(
    load(f"model.layers.{layer}.self_attn.{name}", [1 / experts] * experts)
    for layer, experts in ((0, 2), (11, 4))
    for name in ("q_proj", "v_proj")
)
LORAMOE = tuple(
    load(f"transformer.h.{layer}.mlp.{name}", share, len(share), LoadBy.PROBABILITY)
    for layer, share in ((0, [0.4, 0.35, 0.25]), (1, [0.96, 0.0398, 0.0002]))
    for name in ("c_fc", "c_proj")
)
MANY = (load("model.layers.0.mlp", [0.0, *[1 / 126] * 126, 0.0]),)


@pytest.mark.parametrize(
    ("name", "shown", "width", "plain"),
    [
        ("experts", view(*MIXLORA), 80, False),
        ("experts_ascii", view(*MIXLORA), 80, True),
        ("experts_narrow", view(*MIXLORA), 50, False),
        ("experts_projections", view(*MOLA, setting="experts"), 80, False),
        ("experts_dense", view(*LORAMOE, steps=1), 80, False),
        ("experts_many", view(*MANY), 80, False),
    ],
)
def test_lines(name: str, shown: ExpertsView, width: int, plain: bool) -> None:
    text = "".join(f"{line}\n" for line in experts_lines(shown, width, plain=plain))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("MLORA_SCHED_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert not plain or text.isascii()


def test_warnings() -> None:
    assert view(*MIXLORA).warnings == (
        "layer 1 mlp: expert 5 got no token in the last 10 recorded steps (of 1,200 tokens); "
        "raise router_aux_loss_coef or lower num_experts",
        "layer 2 mlp: experts 1, 2 and 5 got no token in the last 10 recorded steps (of 1,200 tokens); "
        "raise router_aux_loss_coef or lower num_experts",
        "layer 2 mlp: experts 0 and 3 took 96% of the router's choices in the last 10 recorded steps "
        "(of 1,200 tokens); raise router_aux_loss_coef or lower num_experts",
    )
    assert view(*MIXLORA[:1]).warnings == ()
    (odd,) = view(load("model.layers.0.mlp", [1.0, 0.0], 1.0), steps=1, setting="experts").warnings[:1]
    assert odd == (
        "layer 0 mlp: expert 1 got no token in the last recorded step (of 120 tokens); "
        "raise router_aux_loss_coef or lower experts"
    )


def test_of_many_warnings_some_are_printed_and_the_rest_are_counted() -> None:
    idle = [load(f"model.layers.{layer}.mlp", [0.4, 0.3, 0.3, 0.0]) for layer in range(12)]
    for routers, printed, more in (
        (10, 10, []),
        (12, 10, ["and 2 warnings more, of other routers; --json has all of them"]),
    ):
        shown = view(*idle[:routers])
        lines = list(experts_lines(shown, 80))
        assert len(shown.warnings) == routers
        assert sum(line.startswith("warning: ") for line in lines) == printed
        assert [line for line in lines if line.startswith("and ")] == more


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=256).filter(any),
    width=st.integers(20, 200),
    plain=st.booleans(),
)
def test_every_expert_is_drawn_once_and_lines_fit(counts: list[int], width: int, plain: bool) -> None:
    shown = view(load("model.layers.0.mlp", [count / sum(counts) for count in counts], 1.0))
    lines = list(experts_lines(shown, width, plain=plain))
    drawn = lines[3 : lines.index("", 3)]
    margin = lines[2].index("0" if "0" in lines[2] else "experts")
    cells = "".join(line[margin:] for line in drawn)
    blocks = [char for char in cells if char in "▁▂▃▄▅▆▇█·"]
    if not plain:
        assert [block == "·" for block in blocks] == [count == 0 for count in counts]
    assert max(map(len, drawn)) <= max(width, margin + 20)


@pytest.mark.parametrize(
    ("brief", "text"),
    [
        (None, ""),
        (ExpertsBrief(routers=32, entropy=0.834, dead=2, collapsed=0), "32 routers, entropy 0.83, 2 dead"),
        (ExpertsBrief(routers=1, entropy=1.0, dead=0, collapsed=1), "1 router, entropy 1.00, 1 collapsed"),
    ],
)
def test_brief(brief: ExpertsBrief | None, text: str) -> None:
    assert brief_text(brief) == text
