"""The preparer's own process against templates that never end and templates that eat memory."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlora_sched.spec.job import parse_job
from mlora_sched.spec.state import ErrorCode
from mlora_sched.spec.wire import Beat, Init, JobFailed, JobStart, NoTokenizer, Prepare, Prepared, Report
from mlora_sched.spec.worker_config import WorkerConfig
from mlora_sched.worker.local import LocalWorker, Role
from mlora_sched.worker.prepare import prepare_job

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ text }}"
GREEDY = (
    "{% set all = namespace(x=text) %}{% for a in range(60) %}{% set all.x = all.x ~ all.x %}{% endfor %}{{ all.x }}"
)
BOUND = 1 << 30

PROGRAM = """
    import sys
    from pathlib import Path
    from mlora_sched.data.tokens import load_tokenizer
    from mlora_sched.spec.wire import JobStart
    from mlora_sched.worker.prepare import prepare_job, yield_memory

    yield_memory(int(sys.argv[1]))
    assert Path("/proc/self/oom_score_adj").read_text().strip() == "1000"
    yield_memory(2 * int(sys.argv[1]))  # a bound that is there already is kept
    print(prepare_job(JobStart.model_validate_json(sys.argv[2]), load_tokenizer(sys.argv[3])).model_dump_json())
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory that holds a tokenizer and nothing else."""
    core = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[UNK]").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def start_of(folder: Path, name: str, template: str | None) -> JobStart:
    """A job of one row, with a template of its own or none."""
    files = {"a.jsonl": json.dumps({"text": "a a a"}), "own.jinja": template or ""}
    for file, content in files.items():
        (folder / f"{name}-{file}").write_text(content)
    data = {"train": "a.jsonl", "template": "own.jinja" if template else "none", "train_on": "all"}
    spec = parse_job({"name": name, "data": data})
    paths = {file: str(folder / f"{name}-{file}") for file in spec.files}
    return JobStart(
        job_id=name, epoch=0, spec=spec, files=paths, cache_dir=str(folder / "cache"), job_dir=str(folder / name)
    )


@pytest.fixture
def preparer(base: Path, tmp_path: Path) -> Iterator[LocalWorker]:
    worker = LocalWorker(Role.PREPARE, tmp_path / "logs")
    worker.send(Init(config=WorkerConfig(base_name="demo", base=str(base))))
    yield worker
    worker.kill()


def answers(worker: LocalWorker, seconds: float = 120.0) -> list[Report]:
    deadline = time.monotonic() + seconds
    while not (found := told(worker, 0.5)) and time.monotonic() < deadline:
        assert worker.alive
    return found


def told(worker: LocalWorker, seconds: float) -> list[Report]:
    """What it says but for its signs of life."""
    return [report for report in worker.poll(seconds) if not isinstance(report, Beat)]


def test_a_template_that_never_ends_keeps_its_process_busy_until_it_is_killed(
    preparer: LocalWorker, base: Path, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone")
    preparer.send(Prepare(start=start_of(tmp_path, "good", None), base=gone))
    (first,) = answers(preparer)
    assert isinstance(first, NoTokenizer), "it is not the job's fault, and the process goes on"
    assert gone in first.message
    preparer.send(Prepare(start=start_of(tmp_path, "good", None), base=str(base)))
    (first,) = answers(preparer)
    assert isinstance(first, Prepared)
    assert first.largest_chunk == first.longest == first.tokens, "it has one row"
    preparer.send(Prepare(start=start_of(tmp_path, "endless", ENDLESS), base=str(base)))
    process = psutil.Process(preparer._process.pid)
    spent = process.cpu_times().user
    while process.cpu_times().user < spent + 1.0:  # it renders, and will for hours
        assert told(preparer, 0.1) == []
    preparer.kill()
    assert not psutil.pid_exists(process.pid)
    assert not preparer.alive
    preparer.close()


def test_a_row_on_which_the_tokenizer_raises_is_named(tmp_path: Path) -> None:
    """The tokenizer of a base without an unknown token; rows before it are read."""
    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    start = start_of(tmp_path, "strange", None)
    rows = [{"text": "a a"}, {"text": "a b a"}, {"text": "a"}]
    Path(start.files["a.jsonl"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    failed = prepare_job(start, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="a"))
    assert isinstance(failed, JobFailed)
    assert failed.code is ErrorCode.BAD_DATA
    assert failed.message.startswith("a.jsonl, line 2: the base's tokenizer cannot read it: WordLevel error: Missing")


def test_a_template_that_eats_memory_fails_its_job(base: Path, tmp_path: Path) -> None:
    start = start_of(tmp_path, "greedy", GREEDY)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(BOUND), start.model_dump_json(), str(base)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    failed = JobFailed.model_validate_json(answer.stdout)
    assert failed.code is ErrorCode.BAD_DATA
    assert "too much memory; look for a template" in failed.message
