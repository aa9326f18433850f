"""Completion as shells really do it: the script that `completion` prints, run by the shell, against a served daemon."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from serving import Served, SpecMaker

from mlora_sched.cli.main import cli, run
from mlora_sched.client import Client

BASH = """
eval "$(mlora-sched completion bash)"
for line in "$@"; do
    COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    _mlora_sched_completion mlora-sched
    echo "${COMPREPLY[*]}"
done
"""
FISH = 'mlora-sched completion fish | source; complete -C "$argv"'
ZSH = 'autoload -U compinit; compinit -u; eval "$(mlora-sched completion zsh)"; whence _mlora_sched_completion'


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with the command on it."""
    program = tmp_path / "bin" / "mlora-sched"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlora_sched "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def in_shell(path: str, *command: str) -> list[str]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


def test_bash_completes_verbs_jobs_and_options(served: Served, spec: SpecMaker, client: Client, path: str) -> None:
    ids = {name: client.submit(spec(name)).id for name in ("mood", "triage")}
    lines = ["mlora-sched re", "mlora-sched show mo", f"mlora-sched show {ids['triage'][:8]}"]
    assert in_shell(path, "bash", "--norc", "-c", BASH, "bash", *lines) == ["resume", "mood", ids["triage"]]


def test_fish_completes_jobs(served: Served, spec: SpecMaker, client: Client, path: str) -> None:
    client.submit(spec("mood"))
    assert [line.split("\t")[0] for line in in_shell(path, "fish", "-c", FISH, "mlora-sched show mo")] == ["mood"]


def test_zsh_takes_its_script(path: str) -> None:
    assert in_shell(path, "zsh", "-fc", ZSH) == ["_mlora_sched_completion"]


def completed(*words: str) -> list[str]:
    """What the command answers to a shell."""
    environment = {
        "_MLORA_SCHED_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["mlora-sched", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(cli, prog_name="mlora-sched", env=environment)
    assert result.stderr == ""
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_only_jobs_that_the_verb_can_be_about(served: Served, spec: SpecMaker, client: Client) -> None:
    ended, live = client.submit(spec("ended")).id, client.submit(spec("live")).id
    served.cancel_unstarted(ended)
    assert completed("show", "") == ["live", "ended"]
    assert completed("cancel", "") == ["live"]
    assert completed("rm", "") == ["ended"]
    assert completed("resume", "") == []
    assert completed("show", "j-") == [live, ended]


def test_names_that_several_jobs_have_are_completed_as_ids(served: Served, spec: SpecMaker, client: Client) -> None:
    ids = [client.submit(spec("mood")).id for _ in range(2)]
    assert sorted(completed("show", "")) == sorted(ids)
    assert completed("show", "mo") == []


def test_other_daemons_are_asked_where_the_line_names_them(served: Served, spec: SpecMaker, client: Client) -> None:
    client.submit(spec("mood"))
    assert completed("show", "--socket", str(served.socket), "") == ["mood"]
    assert completed("show", "--socket", "/nowhere/s", "") == []


def test_a_silent_daemon_keeps_nobody_waiting(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "s"))
        listener.listen()
        before = time.monotonic()
        assert completed("show", "--socket", str(short_dir / "s"), "") == []
        assert time.monotonic() - before < 30  # not the minute that a verb would wait


def test_shells_that_are_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_completing_loads_nothing_heavy() -> None:
    program = (
        "import os, sys; from mlora_sched.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    heavy = {"torch", "transformers", "fastapi", "sqlalchemy", "numpy"}
    for words, absent in (("sh", heavy | {"pydantic", "httpx", "rich"}), ("show x", heavy)):
        environment = {
            "_MLORA_SCHED_COMPLETE": "bash_complete",
            "COMP_WORDS": f"mlora-sched {words}",
            "COMP_CWORD": str(len(words.split())),
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        assert set(done.stderr.split()) & absent == set()
