"""`docs/operations.md` and the unit it describes: systemd takes it, its options are the program's, its times agree."""

from __future__ import annotations

import configparser
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from docs.pages import ROOT, quoted, text_of
from mlora_sched.cli.local.serve import serve
from mlora_sched.cli.main import cli
from mlora_sched.daemon.systemd import LONGEST_TICK_SECONDS
from mlora_sched.settings import DaemonSettings
from mlora_sched.worker.local import SHUTDOWN_SECONDS, TERMINATE_SECONDS

PAGE = text_of("operations.md")
UNIT = ROOT / "docker" / "mlora-sched.service"


def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8").replace("Environment=HF_HOME", "Environment.HF_HOME"))
    return parser["Service"]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    me = pwd.getpwuid(0).pw_name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/mlora/bin/mlora-sched", sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^(User|Group)=mlora$", rf"\1={me}", text, flags=re.MULTILINE))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_call_is_one_of_the_programs() -> None:
    program, verb, *arguments = service()["ExecStart"].split()
    options = {option for param in serve.params for option in param.opts}
    assert (Path(program).name, verb) == ("mlora-sched", "serve")
    assert {word for word in arguments if word.startswith("--")} <= options
    state, socket = arguments[arguments.index("--state") + 1], arguments[arguments.index("--socket") + 1]
    assert state == f"/var/lib/{service()['StateDirectory']}"
    assert Path(socket).parent == Path("/run") / service()["RuntimeDirectory"]
    assert state in PAGE
    assert socket in PAGE


def test_times_agree() -> None:
    ends = 2 * (SHUTDOWN_SECONDS + TERMINATE_SECONDS)  # a worker and a preparer that do not react
    assert ends < LONGEST_TICK_SECONDS
    assert DaemonSettings.model_fields["drain_seconds"].default + ends < int(service()["TimeoutStopSec"])
    assert f"{service()['WatchdogSec']} s (`WatchdogSec`)" in PAGE
    assert f"{DaemonSettings.model_fields['drain_seconds'].default:.0f} s (`serve --drain-time`)" in PAGE
    assert f"{DaemonSettings.model_fields['keep_uploads'].default / 86400:.0f} days without use" in PAGE


def test_verbs_and_options_are_the_programs() -> None:
    """But for those of the package manager and the system."""
    for words in (text.split() for text in quoted(PAGE) if text.startswith(("mlora-sched ", "serve "))):
        command: click.Command = cli
        for word in words if words[0] == "serve" else words[1:]:
            if word.startswith("--"):
                assert word in {option for param in command.params for option in param.opts}, words
            elif isinstance(command, click.Group):
                found = command.get_command(click.Context(command), word)
                assert found is not None, words
                command = found
