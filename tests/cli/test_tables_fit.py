"""Tables on a terminal: one line a row that fits, what matters most stays; times and patterns as people write them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from test_golden import TRAINS, WAITS

from mlora_sched.cli.listing import job_columns, job_row, queue_columns
from mlora_sched.cli.style import one_line
from mlora_sched.cli.table import Cell, Column, fitted
from mlora_sched.cli.times import arrival, parse_since, span
from mlora_sched.errors import UserError
from mlora_sched.spec.state import ErrorCode, JobState

CELLS = st.text(st.sampled_from("abc …漢\t\n\x1b"), max_size=40)
COLUMNS = st.lists(
    st.builds(
        Column,
        title=st.sampled_from(["ID", "A-LONG-TITLE"]),
        right=st.booleans(),
        least=st.none() | st.integers(1, 8),
        spare=st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@given(COLUMNS, st.data(), st.integers(1, 200))
def test_no_line_is_wider_than_the_terminal_while_anything_can_go(
    columns: list[Column], data: st.DataObject, width: int
) -> None:
    rows = data.draw(st.lists(st.lists(CELLS.map(Cell), min_size=len(columns), max_size=len(columns)), max_size=4))
    lines = fitted(columns, rows, width)
    assert len(lines) == 1 + len(rows)
    assert all(line.plain.isprintable() for line in lines)
    natural = [
        max(cell_len(one_line(text)) for text in (column.title, *(row[at].text for row in rows)))
        for at, column in enumerate(columns)
    ]
    least = [
        wide if column.least is None else min(column.least, wide)
        for column, wide in zip(columns, natural, strict=True)
        if not column.spare
    ]
    assert max(cell_len(line.plain) for line in lines) <= max(width, sum(least) + 2 * (len(least) - 1))
    if sum(natural) + 2 * (len(columns) - 1) <= width:
        assert all(one_line(cell.text) in line.plain for row, line in zip(rows, lines[1:], strict=True) for cell in row)


@pytest.mark.parametrize("columns", [job_columns(owners=False), job_columns(owners=True), queue_columns()])
@pytest.mark.parametrize("width", [80, 100, 160])
def test_ls_fits_usual_terminals_and_keeps_what_says_why(columns: tuple[Column, ...], width: int) -> None:
    cells = {
        "ID": WAITS.id[:10],
        "NAME": WAITS.name,
        "OWNER": "ann",
        "STATE": "RUNNING",
        "STEP": "120/2000",
        "LOSS": "1.2345",
        "REASON": "memory: needs 3.0 GiB, free 1.5 GiB and more",
    }
    rows = [[Cell(cells.get(column.title, "1h 05m")) for column in columns]]
    titles, line = (text.plain for text in fitted(columns, rows, width))
    assert max(len(titles), len(line)) <= width
    assert {"ID", "NAME", "STATE", "REASON"} <= set(titles.split())
    assert "memory: needs 3.0" in line
    assert width < 160 or cells["REASON"] in line
    assert "a-name-that" in line


def test_why_a_job_has_ended_takes_no_figures_of_those_that_train() -> None:
    long = {"state": JobState.FAILED, "error_code": ErrorCode.BAD_DATA, "error": "train.jsonl, line 7: is not JSON"}
    trains, ended = TRAINS.model_copy(update={"reason": ""}), TRAINS.model_copy(update=long)
    columns = job_columns(owners=False)
    alone, _ = (line.plain for line in fitted(columns, [job_row(trains, owners=False, now=NOW)], 80))
    rows = [job_row(job, owners=False, now=NOW) for job in (trains, ended)]
    titles, *lines = (line.plain for line in fitted(columns, rows, 80))
    assert {"LOSS", "EVAL", "ETA"} <= set(alone.split())
    assert {"LOSS", "EVAL", "ETA", "REASON"} <= set(titles.split())
    assert "bad_data" in lines[1]
    assert max(len(line) for line in (titles, *lines)) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "0.2s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (60, "1m"),
        (65, "1m 05s"),
        (3599.9, "1h"),
        (3900, "1h 05m"),
        (86_399, "24h"),
        (90_000, "1d 01h"),
        (30 * 86_400, "30d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.floats(0.01, 100), st.none() | st.floats(0, 3), st.integers(0, 200))
def test_an_arrival_lies_between_early_and_late(pace: float, spread: float | None, step: int) -> None:
    comes = arrival(TRAINS.model_copy(update={"pace": pace, "pace_spread": spread, "step": step}))
    assert comes is not None
    assert comes.likely == (200 - step) / pace
    assert comes.early <= comes.likely <= comes.late <= 2 * comes.likely + 1e-9
    assert arrival(WAITS) is None


NOW = 1_767_225_600.0


@given(st.floats(1, 3e8))
def test_since_takes_spans_dates_and_times(ago: float) -> None:
    assert parse_since(f"{ago:.3f}s", NOW) == pytest.approx(NOW - ago, abs=1e-3)
    whole = int(NOW - ago)
    assert parse_since(time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(whole)), NOW) == whole
    assert parse_since(time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(whole)), NOW) == whole


@pytest.mark.parametrize("text", ["", "yesterday", "2h30", "2026-13-01", "-3h", "99999-01-01"])
def test_what_is_no_time_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(UserError, match="is no time; write how long ago"):
        parse_since(text, NOW)
    with pytest.raises(UserError, match="lies in the future"):
        parse_since("2199-01-01", NOW)
