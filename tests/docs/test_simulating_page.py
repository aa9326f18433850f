"""`docs/simulating.md` shows the figures that are recorded, and every kind of trace."""

from __future__ import annotations

from pydantic import TypeAdapter

from docs.pages import ROOT, rows, section, text_of
from mlora_sched.sched.outcome import Comparison
from mlora_sched.sched.policies import policy_names
from mlora_sched.sched.traces import KINDS

PAGE = text_of("simulating.md")
FOLDER = ROOT / "docs" / "simulating"
FIGURES = TypeAdapter(list[Comparison]).validate_json((FOLDER / "figures.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_is_recorded() -> None:
    shown = [cells for cells in rows(section(PAGE, "Figures")) if len(cells) == 11]
    recorded = [
        [
            found.trace,
            one.policy,
            f"{one.mean_turnaround:,.1f}",
            f"{one.p95_turnaround:,.1f}",
            f"{one.worst.slowdown:.2f}",
            f"{one.worst.active:.2f}",
            f"{one.makespan:,.0f}",
            f"{one.fill:.3f}",
            f"{one.jain:.2f}",
            f"{one.largest_gap:,.1f}",
            str(one.preemptions),
        ]
        for found in FIGURES
        for one in found.outcomes
    ]
    assert shown == recorded


def test_comparisons_follow_from_it() -> None:
    shown = [cells for cells in rows(section(PAGE, "Figures")) if len(cells) == 4]
    for cells, found in zip(shown, FIGURES, strict=True):
        by_name = {one.policy: one for one in found.outcomes}
        fair = by_name["fair"]
        less = [f"{1 - fair.mean_turnaround / by_name[it].mean_turnaround:.0%}" for it in ("sequential", "fifo")]
        worst = f"{fair.worst.slowdown / fair.worst.active:.2f}"
        assert [cell.replace(" %", "%") for cell in cells] == [found.trace, *less, worst]


def test_every_kind_is_described_recorded_and_drawn() -> None:
    assert {found.trace for found in FIGURES} == set(KINDS)
    assert {cells[0] for cells in rows(section(PAGE, "Synthetic traces"))} == {f"`{name}`" for name in KINDS}
    assert all(tuple(one.policy for one in found.outcomes) == policy_names() for found in FIGURES)
    assert all(f"](simulating/{name}.png)" in PAGE and (FOLDER / f"{name}.png").is_file() for name in KINDS)
