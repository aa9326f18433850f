"""The demo as a user sees it. The whole of it takes minutes and is marked slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlora_sched.cli.local.demo import DEMO_SPECS, demo
from mlora_sched.demo.host import running_daemon
from mlora_sched.errors import MloraError, UserError
from mlora_sched.spec.job import load_job

ROOT = Path(__file__).parents[2]


def test_demo_specs_show_every_method_and_hold_rows_out() -> None:
    specs = [load_job(ROOT / "jobs" / f"{name}.yaml") for name in DEMO_SPECS]
    methods = [spec.adapter.method for spec in specs]
    assert len(specs) >= 8
    assert set(methods) == {"lora", "rslora", "loraplus", "dora", "mixlora"}
    assert methods.count("mixlora") == 2
    assert all(isinstance(spec.data.validation, str) for spec in specs)


def test_examples_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--jobs .*nowhere: no such directory"):
        CliRunner().invoke(demo, ["--jobs", str(tmp_path / "nowhere")], catch_exceptions=False)


def test_a_daemon_that_ends_tells_why(tmp_path: Path) -> None:
    with (
        pytest.raises(MloraError, match=r"did not become ready.*\n.*no directory"),
        running_daemon(Path("./nowhere"), tmp_path / "state", 1),
    ):
        pass


@pytest.mark.slow
def test_whole_demo(tmp_path: Path) -> None:
    arguments = ["demo", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--threads", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "mlora_sched", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same") >= len(DEMO_SPECS)
    assert "PEFT loads mood and agrees" in done.stdout
    for name in DEMO_SPECS:
        spec = load_job(ROOT / "jobs" / f"{name}.yaml")
        assert (tmp_path / "out" / "001" / "adapters" / spec.name / "adapter_model.safetensors").is_file()
