"""What others wrote is shown, and never obeyed, by the terminal of whoever looks at it."""

from __future__ import annotations

import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from mlora_sched.cli.main import cli, run
from mlora_sched.cli.output import print_log
from mlora_sched.cli.style import printable
from mlora_sched.cli.table import print_table
from mlora_sched.errors import MloraError
from mlora_sched.spec.log import EventView, MetricsLine

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b2Jb\u202e\r\x08c"
HARMLESS = "a ]0;title [2J 2Jb c"
Capture = pytest.CaptureFixture[str]


@given(st.text())
def test_printable_texts_stay_and_no_character_moves(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(now == char or (now == " " and not char.isprintable()) for now, char in zip(shown, text, strict=True))
    assert all(char.isprintable() or char in "\n\t" for char in shown)


def test_tables(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "dumb")
    cell = Text(f"{EVIL}\n[bold]d")
    print_table(["NOTE"], [[cell]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["NOTE"], [*HARMLESS.split(), "[bold]d"]]
    assert all(line.isprintable() for line in lines)
    assert "\x1b" in cell.plain  # what was given is not changed


@pytest.mark.parametrize("as_json", [False, True])
def test_logs(capsys: Capture, as_json: bool) -> None:
    print_log(EventView(time=0.0, job_id=None, message=EVIL), as_json=as_json)
    print_log(MetricsLine(event="step", step=1, loss=1.0, tokens=1, extra={EVIL: 1.0}), as_json=as_json)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("error", "label"),
    [(MloraError(f"{EVIL}\nsecond"), "error"), (click.UsageError(f"{EVIL}\nsecond"), "Error")],
    ids=["ours", "of the command line"],
)
def test_errors(error: Exception, label: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    @click.command()
    def verb() -> None:
        raise error

    monkeypatch.setattr(type(cli), "get_command", lambda *_: verb)
    assert run(["ls"]) in (1, 2)
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert first.startswith(f"{label}: a ]0;title ")
    assert first.isprintable()
    assert second == "second"
