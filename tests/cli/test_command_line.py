"""The command line itself: lazy verbs, help, exit codes, how answers look. No daemon runs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from mlora_sched.cli import table
from mlora_sched.cli.listing import job_columns, job_row
from mlora_sched.cli.main import SECTIONS, cli, run
from mlora_sched.cli.style import why
from mlora_sched.client import default_socket
from mlora_sched.daemon.admission import worker_config
from mlora_sched.errors import WaitTimeout
from mlora_sched.settings import DaemonSettings
from mlora_sched.spec.api import JobView
from mlora_sched.spec.state import ErrorCode, JobState, Request
from mlora_sched.spec.worker_config import WorkerConfig

HEAVY = {"torch", "transformers", "ray", "fastapi", "uvicorn", "sqlalchemy", "alembic", "peft", "numpy", "pyarrow"}
VERBS = [verb for verbs in SECTIONS.values() for verb in verbs]
Capture = pytest.CaptureFixture[str]


def modules_after(*lines: list[str]) -> set[str]:
    """Top-level modules that some command lines have loaded, in a fresh interpreter."""
    program = (
        "import json, sys; from mlora_sched.cli.main import run; "
        "[run(line) for line in json.loads(sys.argv[1])]; "
        "print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", program, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_next_to_nothing() -> None:
    assert modules_after(["--help"]) & (HEAVY | {"pydantic", "httpx", "rich", "yaml"}) == set()


def test_remote_verbs_never_load_the_engine() -> None:
    remote = [verb.name for verb in VERBS if ".remote." in verb.module]
    assert len(remote) == 16
    assert modules_after(*([name, "--help"] for name in remote)) & HEAVY == set()


def test_validate_without_a_base_loads_no_engine(tmp_path: Path) -> None:
    path = make_spec(tmp_path)
    assert modules_after(["validate", str(path)]) & HEAVY == set()


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_loads_and_helps(verb, capsys: Capture) -> None:  # type: ignore[no-untyped-def]
    command = cli.get_command(click.Context(cli), verb.name)
    assert command is not None
    assert command.name == verb.name
    assert run([verb.name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: mlora-sched {verb.name}")


def test_help_shows_every_verb_in_its_section(capsys: Capture) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"{title}:") for title in SECTIONS]
    assert places == sorted(places)
    for verb in VERBS:
        assert f"\n  {verb.name} " in text


def test_unknown_verbs_are_answered_with_the_nearest(capsys: Capture) -> None:
    assert run(["cancle"]) == 2
    assert "cancle: no such verb; did you mean cancel?" in capsys.readouterr().err
    assert run(["frobnicate"]) == 2
    assert "try `mlora-sched --help`" in capsys.readouterr().err


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mlora-sched, version ")


def test_interrupts_and_errors_have_their_codes(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail_with(error: BaseException) -> int:
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        def verb(as_json: bool) -> None:
            raise error

        monkeypatch.setattr(type(cli), "get_command", lambda *_: verb)
        return run(["ls", "--json"])

    assert fail_with(KeyboardInterrupt()) == 130
    assert json.loads(capsys.readouterr().err)["error"] == "Interrupted"
    assert fail_with(WaitTimeout("too long")) == 124
    assert json.loads(capsys.readouterr().err) == {"error": "WaitTimeout", "message": "too long"}
    with pytest.raises(ZeroDivisionError):  # a bug of ours is not dressed up as a user's mistake
        fail_with(ZeroDivisionError())


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ({"MLORA_SCHED_SOCKET": "/a/s", "XDG_RUNTIME_DIR": "/run/user/1"}, Path("/a/s")),
        ({"XDG_RUNTIME_DIR": "/run/user/1"}, Path("/run/user/1/mlora_sched.sock")),
        ({}, Path.home() / ".mlora_sched" / "daemon.sock"),
        ({"MLORA_SCHED_SOCKET": "", "XDG_RUNTIME_DIR": ""}, Path.home() / ".mlora_sched" / "daemon.sock"),
    ],
)
def test_the_default_socket(environment: dict[str, str], path: Path) -> None:
    assert default_socket(environment) == path


def make_spec(folder: Path, **keys: object) -> Path:
    (folder / "train.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 5)
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({"name": "toy", "data": {"train": "train.jsonl"}, **keys}))
    return path


def test_validate(tmp_path: Path, capsys: Capture) -> None:
    path = make_spec(tmp_path)
    assert run(["validate", str(path), "--json"]) == 0
    [checked] = json.loads(capsys.readouterr().out)
    assert (checked["name"], checked["method"], checked["files"]) == ("toy", "lora", ["train.jsonl"])
    assert (checked["rows_read"], checked["tokens"]) == (5, None)
    assert run(["validate", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok: toy, lora, 5 rows (tokens not counted: that takes --base)\n"
    (tmp_path / "train.jsonl").unlink()
    assert run(["validate", str(path)]) == 2
    assert "error: toy: data.train: train.jsonl: no such file" in capsys.readouterr().err
    assert run(["validate", str(path), "--base", str(tmp_path / "gone")]) == 2
    make_spec(tmp_path)
    for base in (str(tmp_path / "gone"), f"demo={tmp_path / 'gone'}"):
        assert run(["validate", str(path), "--base", base]) == 2
        assert "gone is no directory; write NAME=DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "train.jsonl: holds no rows"),
        ('{"text": "a"}\n{"text"', "train.jsonl, line 2: is not JSON"),
        ('{"question": "a"}', "train.jsonl, line 1: the columns question are of no known shape"),
        ('{"text": "a"}\n{"n": 1}', "train.jsonl, line 2: lacks the column text"),
        ('{"text": "a"}\n{"text": 1}', "train.jsonl, line 2: text: 1 is int, not text"),
        ('{"messages": [{"role": "user"}]}', "train.jsonl, line 1: message 1 (user): has neither content"),
    ],
)
def test_validate_reads_the_rows_without_a_base(tmp_path: Path, capsys: Capture, content: str, says: str) -> None:
    path = make_spec(tmp_path)
    (tmp_path / "train.jsonl").write_text(content)
    assert run(["validate", str(path)]) == 2
    assert f"error: {path}: {says}" in capsys.readouterr().err


def test_validate_reads_the_held_out_file_and_asks_no_shape_of_a_template_file(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "held-out.jsonl").write_text('{"question": "a"}\n')
    (tmp_path / "own.jinja").write_text("{{ question }}")
    data = {"train": "train.jsonl", "validation": "held-out.jsonl"}
    path = make_spec(tmp_path, data=data)
    assert run(["validate", str(path)]) == 2
    assert "held-out.jsonl, line 1: the columns question" in capsys.readouterr().err
    assert run(["validate", str(make_spec(tmp_path, data=data | {"template": "own.jinja"}))]) == 0
    assert "6 rows (tokens not counted" in capsys.readouterr().out


def test_validate_names_every_bad_spec_and_every_good_one(tmp_path: Path, capsys: Capture) -> None:
    paths = {name: tmp_path / name / "toy.yaml" for name in ("key", "good", "rows", "file")}
    for path in paths.values():
        path.parent.mkdir()
        make_spec(path.parent)
    make_spec(paths["key"].parent, lora_r=8)
    (paths["rows"].parent / "train.jsonl").write_text("{")
    (paths["file"].parent / "train.jsonl").unlink()
    assert run(["validate", *map(str, paths.values()), str(tmp_path / "gone.yaml"), "--json"]) == 2
    printed = capsys.readouterr()
    assert [item["spec"] for item in json.loads(printed.out)] == [str(paths["good"])]
    lines = json.loads(printed.err)["message"].splitlines()
    starts = [f"{paths['key']}: lora_r", f"{paths['rows']}: train.jsonl, line 1", "toy: data.train", str(tmp_path)]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "Missing option '--base'"),
        (["--base", "demo=/nowhere"], 2, "Missing option '--state'"),
        (["--base", "demo=/nowhere", "--state", "{tmp}"], 2, "/nowhere is no directory"),
        (["--base", "a={tmp}", "--base", "a={tmp}", "--state", "{tmp}/s"], 2, "two bases are called a"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--base-slice", "0m"], 2, "'0m' is no duration; write a number"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--threads", "-1"], 2, "--threads"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--policy", "best"], 2, "'best' is not one of"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--min-slice", "-1"], 2, "--min-slice"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--weight", "ann"], 2, "--weight ann: write USER=WEIGHT"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--weight", "ann=0"], 2, "--weight ann=0: write USER=WEIGHT"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--weight", "ann=nan"], 2, "with a number above 0"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--max-jobs", "0"], 2, "--max-jobs"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--pack-seconds", "0"], 2, "--pack-seconds"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--policy", "mine"], 2, "'mine' is not"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--quantize", "int8"], 2, "'int8' is not"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--memory-budget", "20"], 2, "'20' is no size; write a number"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--memory-margin", "1"], 2, "--memory-margin"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--idle-unload", "0m"], 2, "'0m' is no duration; write a number"),
        (["--base", "a={tmp}", "--state", "{tmp}/s", "--socket", "/tmp/" + "x" * 200], 2, "longer than 107 bytes"),
    ],
)
def test_serve_refuses(tmp_path: Path, capsys: Capture, args: list[str], code: int, message: str) -> None:
    assert run(["serve", *(arg.replace("{tmp}", str(tmp_path)) for arg in args)]) == code
    assert message in capsys.readouterr().err


def test_options_of_serve_reach_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[DaemonSettings] = []
    monkeypatch.setattr("mlora_sched.cli.local.serve.run_daemon", lambda settings, *_: started.append(settings))
    options = ["--pack-tokens", "512", "--max-jobs", "3", "--policy", "aspen", "--threads", "2", "--dtype", "bfloat16"]
    options += ["--checkpoint-activations", "--quantize", "nf4", "--compile"]
    options += ["--memory-budget", "20GiB", "--memory-margin", "0.1", "--host-memory", "512 MiB"]
    options += ["--idle-unload", "15m", "--base", f"b={tmp_path}", "--base-slice", "2m", "--pack-seconds", "0.25"]
    options += ["--min-slice", "7s", "--weight", "ann=2", "--weight", "bob=0.5"]
    assert run(["serve", "--base", f"a={tmp_path}", "--state", str(tmp_path / "s"), *options]) == 0
    (settings,) = started
    assert (settings.pack_tokens, settings.pack_seconds) == (512, 0.25)
    assert (settings.max_resident_jobs, settings.policy) == (3, "aspen")
    assert (settings.min_slice, settings.weights) == (7.0, {"ann": 2.0, "bob": 0.5})
    assert (settings.threads, settings.dtype) == (2, "bfloat16")
    assert (settings.checkpoint_activations, settings.quantize, settings.compile) == (True, "nf4", True)
    assert (settings.memory_budget, settings.memory_margin) == (20 << 30, 0.1)
    assert (settings.host_memory, settings.idle_unload) == (512 << 20, 900.0)
    assert ([base.name for base in settings.bases], settings.base_slice) == (["a", "b"], 120.0)
    config = worker_config(settings, settings.bases[1])
    assert config.base_name == "b"
    shared = settings.model_dump(include=set(WorkerConfig.model_fields) & set(DaemonSettings.model_fields))
    assert config.model_dump(exclude={"base_name", "base", "corrections"}) == shared, (
        "every option of the worker's reaches it"
    )


def test_choices_are_shown_as_they_are_written(capsys: Capture) -> None:
    assert run(["pull", "--help"]) == 0
    assert "--checkpoint STEP|best|last" in capsys.readouterr().out


JOB = JobView(
    id="j-0123456789abcdef",
    name="toy",
    owner="ann",
    base="demo",
    state=JobState.RUNNING,
    request=Request.CANCEL,
    reason="",
    method="lora",
    priority="normal",
    step=3,
    total_steps=None,
    loss=1.5,
    eval_loss=None,
    tokens=10,
    error_code=None,
    error=None,
    stopped_by=None,
    created=0.0,
    started=None,
    ended=None,
)
FAILED = JOB.model_copy(
    update={
        "state": JobState.FAILED,
        "request": Request.NONE,
        "error_code": ErrorCode.BAD_DATA,
        "error": "a.jsonl, line 3:\tno \x1b[2J'text'\nadd it",
    }
)


def test_tables_in_a_pipe_are_one_line_a_job(capsys: Capture) -> None:
    table.print_rows(job_columns(owners=True), [job_row(job, owners=True, now=0.0) for job in (JOB, FAILED)])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["ID", "NAME", "OWNER", "STATE", "METHOD", "STEP", "LOSS", "EVAL", "TOKENS", "ETA", "REASON"]
    assert lines[1] == ["j-01234567", "toy", "ann", "RUNNING (cancelling)", "lora", "3", "1.5000", "", "10", "?", ""]
    assert lines[2][-1] == "bad_data: a.jsonl, line 3: no [2J'text' add it"


@pytest.mark.parametrize("no_color", [True, False])
def test_tables_on_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    table.print_rows(
        job_columns(owners=False), [job_row(JOB.model_copy(update={"name": "[bold]x"}), owners=False, now=0.0)]
    )
    text = capsys.readouterr().out
    assert "RUNNING (cancelling)" in text
    assert "[bold]x" in text  # a name is never markup
    assert ("\x1b[36m" in text) is not no_color


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["--help"], ["validate", "SPEC"]])
def test_a_full_disk_behind_standard_output_is_told(tmp_path: Path, args: list[str], unbuffered: str) -> None:
    spec = make_spec(tmp_path)
    given = [str(spec) if arg == "SPEC" else arg for arg in args]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mlora_sched", *given]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: No space left on device\n")


def test_reasons() -> None:
    assert why(JOB.model_copy(update={"reason": "slots"})) == "slots"
    assert why(JOB.model_copy(update={"stopped_by": "early stop"})) == "stopped by early stop"
