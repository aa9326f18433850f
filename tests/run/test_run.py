"""`mlora-sched run` as people call it: a process of its own, files on disk, exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import yaml
from e2e.program import JOBS, MODEL, call, command, environment, lines_of, listing, run_args, spoil_row, write_spec
from engine.bases import NEEDS_BITSANDBYTES
from promise.world import tokenizer
from transformers import AutoModelForCausalLM

from mlora_sched.cli import main
from mlora_sched.data.tokens import prepare
from mlora_sched.spec.job import load_job, local_files

EXPORTED = ["adapter_config.json", MODEL, "metrics.jsonl", "provenance.json", "timing.jsonl"]


@dataclass(frozen=True)
class Company:
    """Four jobs of different methods, one with a bad row and one with a rate that explodes, trained together."""

    specs: dict[str, Path]
    out: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def company(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Company:
    folder = tmp_path_factory.mktemp("company")
    specs = {name: write_spec(folder / "specs", name) for name in JOBS}
    specs["bad-row"] = write_spec(folder / "specs", "bad-row", {"method": "lora"})
    spoil_row(specs["bad-row"])
    specs["explodes"] = write_spec(folder / "specs", "explodes", {"method": "lora"}, learning_rate=1e30)
    args = run_args(base, folder / "out", list(specs.values()))
    return Company(specs, folder / "out", call(*args, "--json"))


def test_exit_code_is_1_and_the_rest_are_written(company: Company) -> None:
    assert company.done.returncode == 1, company.done.stderr
    assert listing(company.out) == sorted(company.specs)


def test_json_is_alone_on_stdout(company: Company) -> None:
    summary = {job["name"]: job for job in json.loads(company.done.stdout)}
    assert list(summary) == list(company.specs)
    states = {name: job["state"] for name, job in summary.items()}
    assert states == dict.fromkeys(JOBS, "SUCCEEDED") | {"bad-row": "FAILED", "explodes": "FAILED"}
    assert summary["bad-row"]["error"].startswith("bad_data: bad-row.jsonl, line 3: ")
    assert summary["explodes"]["error"].startswith("non_finite_loss: ")
    assert all(job["same_as_alone"] == "exact" for job in summary.values())
    assert summary["lora"]["steps"] == 6
    assert all(job["notes"] == [] for job in summary.values())
    assert Path(summary["lora"]["out"]) == company.out / "lora"


def test_people_are_told_on_stderr(company: Company) -> None:
    assert "base tiny · same as alone: exact" in company.done.stderr
    assert "lora: SUCCEEDED" in company.done.stderr
    assert "bad-row: bad_data: bad-row.jsonl, line 3" in company.done.stderr
    assert "Traceback" not in company.done.stderr


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_directory(company: Company, name: str) -> None:
    folder = company.out / name
    assert listing(folder) == sorted(EXPORTED + (["adapter_model.bin"] if name == "mixlora" else []))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == ("MIXLORA" if name == "mixlora" else "LORA")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["spec"] == load_job(company.specs[name]).model_dump(mode="json")
    assert (provenance["steps"], provenance["resumes"], provenance["same_as_alone"]) == (6, 0, "exact")


@pytest.mark.parametrize("name", JOBS)
def test_metrics_and_timing(company: Company, name: str) -> None:
    metrics, timing = lines_of(company.out / name / "metrics.jsonl"), lines_of(company.out / name / "timing.jsonl")
    told = [(line["event"], line["step"]) for line in metrics]
    steps = [("step", step) for step in range(1, 7)]
    assert told == [("eval", 0), *steps[:3], ("eval", 3), *steps[3:], ("eval", 6)]
    assert [(line["event"], line["step"]) for line in timing] == told
    routed = {"aux_loss", "router_entropy", "experts"} if name == "mixlora" else set()
    wanted = {"event", "step", "loss", "lr", "grad_norm", "tokens"} | routed
    assert all(line.keys() == wanted for line in metrics if line["event"] == "step")
    assert all(line.keys() == {"event", "step", "loss", "accuracy", "tokens"} for line in metrics if "lr" not in line)
    seconds = [line["seconds"] for line in timing]
    assert seconds == sorted(seconds)


def test_what_routers_did_is_of_every_layer_and_adds_up(company: Company) -> None:
    for line in lines_of(company.out / "mixlora" / "metrics.jsonl"):
        if line["event"] == "step":
            config = json.loads((company.out / "mixlora" / "adapter_config.json").read_text())
            for router in line["experts"]:
                assert len(router["share"]) == config["num_experts"]
                assert sum(router["share"]) == pytest.approx(1.0, abs=1e-5)
                assert router["per_token"] == config["top_k"]
                assert all(0 <= share <= 1 / config["top_k"] for share in router["share"])
            entropies = [router["entropy"] for router in line["experts"]]
            assert [router["router"] for router in line["experts"]] == ["model.layers.0.mlp", "model.layers.1.mlp"]
            assert line["router_entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-5)


def test_a_failed_job_leaves_its_reason(company: Company) -> None:
    assert listing(company.out / "bad-row") == ["error.txt", "metrics.jsonl", "timing.jsonl"]
    assert "line 3" in (company.out / "bad-row" / "error.txt").read_text()
    assert (company.out / "bad-row" / "metrics.jsonl").read_text() == ""
    assert "lower training.learning_rate" in (company.out / "explodes" / "error.txt").read_text()
    assert lines_of(company.out / "explodes" / "metrics.jsonl")[0]["event"] == "eval"


@pytest.mark.parametrize("name", ["lora", "mixlora"])
def test_alone_everything_is_the_same(
    company: Company, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """All files but the timing; the probe has seen the same lengths, so provenance is the same too."""
    with pytest.raises(SystemExit) as ended:
        main.run([str(arg) for arg in run_args(base, tmp_path / "out", [company.specs[name]])])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert listing(tmp_path / "out") == [name]
    alone, together = tmp_path / "out" / name, company.out / name
    assert listing(alone) == listing(together)
    for file in listing(alone):
        if file != "timing.jsonl":
            assert (alone / file).read_bytes() == (together / file).read_bytes(), file
    assert f"{name}: SUCCEEDED → {alone}" in said
    assert "held-out loss" in said


def test_what_a_user_of_an_adapter_should_know_is_said_at_the_end(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, "dynamic", {"method": "mixlora", "num_experts": 2, "routing": "dynamic"}, max_steps=1)
    with pytest.raises(SystemExit) as ended:
        main.run([str(arg) for arg in run_args(base, tmp_path / "out", [spec])])
    assert ended.value.code == 0
    (note,) = json.loads((tmp_path / "out" / "dynamic" / "provenance.json").read_text())["notes"]
    _, _, at_the_end = capsys.readouterr().out.partition("SUCCEEDED →")
    assert f"dynamic: {note}" in " ".join(at_the_end.split())


def test_checkpointed_activations_change_no_byte(company: Company, base: Path, tmp_path: Path) -> None:
    """Not even of the provenance: the option is no part of a job's numerics."""
    args = [*map(str, run_args(base, tmp_path / "out", [company.specs["mixlora"]])), "--checkpoint-activations"]
    with pytest.raises(SystemExit) as ended:
        main.run(args)
    assert ended.value.code == 0
    for file in listing(tmp_path / "out" / "mixlora"):
        if file != "timing.jsonl":
            one, other = (out / "mixlora" / file for out in (tmp_path / "out", company.out))
            assert one.read_bytes() == other.read_bytes(), file


@NEEDS_BITSANDBYTES
@pytest.mark.slow
def test_on_a_base_in_4_bits_a_job_is_as_alone_and_says_so(company: Company, base: Path, tmp_path: Path) -> None:
    names = ["mixlora", "dora"]
    for at, jobs in enumerate((names, names[:1])):
        args = run_args(base, tmp_path / f"out{at}", [company.specs[name] for name in jobs])
        with pytest.raises(SystemExit) as ended:
            main.run([*map(str, args), "--quantize", "nf4", "--dtype", "bfloat16"])
        assert ended.value.code == 0
    together, alone = (tmp_path / out / "mixlora" for out in ("out0", "out1"))
    for file in ("adapter_model.safetensors", "metrics.jsonl", "provenance.json"):
        assert (together / file).read_bytes() == (alone / file).read_bytes()
    numerics = json.loads((alone / "provenance.json").read_text())["numerics"]
    assert (numerics["quantize"], numerics["dtype"]) == ("nf4", "bfloat16")


def test_without_a_compiler_nothing_is_compiled(
    company: Company, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    args = run_args(base, tmp_path / "out", [company.specs["lora"]])
    assert main.run([*map(str, args), "--compile"]) == 2
    assert "--compile: there is no C++ compiler no-such-compiler; install it" in capsys.readouterr().err


@pytest.mark.slow
@NEEDS_BITSANDBYTES
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler g++")
def test_all_options_together(company: Company, base: Path, tmp_path: Path) -> None:
    options = ["--compile", "--checkpoint-activations", "--quantize", "nf4"]
    for at, names in enumerate((["lora"], ["dora", "lora"])):
        args = run_args(base, tmp_path / f"out{at}", [company.specs[name] for name in names])
        done = call(*args, *options, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled"))
        assert (done.returncode, done.stderr.count("Warning")) == (0, 0), done.stderr
    alone, together = (tmp_path / out / "lora" for out in ("out0", "out1"))
    assert (alone / MODEL).read_bytes() == (together / MODEL).read_bytes()
    provenance = json.loads((alone / "provenance.json").read_text())
    assert (provenance["numerics"]["compile"], provenance["same_as_alone"]) == (True, "exact")


def test_4_bits_without_the_library_are_refused(
    company: Company, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    args = run_args(base, tmp_path / "out", [company.specs["lora"]])
    assert main.run([*map(str, args), "--quantize", "nf4"]) == 2
    assert "pip install 'mlora_sched[gpu]'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", ["lora", "loraplus", "dora"])
def test_peft_loads_the_adapter_and_finds_the_held_out_loss(
    company: Company, base: Path, tmp_path: Path, name: str
) -> None:
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), company.out / name).eval()
    spec = load_job(company.specs[name])
    rows = prepare(spec, local_files(spec, company.specs[name].parent), tokenizer(), tmp_path).validation
    assert rows is not None
    total, targets = 0.0, 0
    for at in range(len(rows)):
        row = rows.row(at)
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        counts = torch.from_numpy(np.ascontiguousarray(row.loss_mask[1:]))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits[counts], ids[1:][counts], reduction="sum"))
        targets += int(counts.sum())
    last = lines_of(company.out / name / "metrics.jsonl")[-1]
    first = lines_of(company.out / name / "metrics.jsonl")[0]
    assert last["loss"] == pytest.approx(total / targets, rel=1e-5)
    assert abs(last["loss"] - first["loss"]) > 1e-3, "the adapter does something"


# ---------------------------------------------------------------- what cannot be run


def edited(path: Path, **change: object) -> Path:
    """The spec with keys set; dots lead into sections."""
    raw = yaml.safe_load(path.read_text())
    for key, value in change.items():
        section, _, name = key.rpartition("__")
        (raw[section] if section else raw)[name] = value
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"training__learning_rat": 1}, "did you mean training.learning_rate?"),
        ({"training__batch_size": 0}, "training.batch_size"),
        ({"adapter__method": "loha"}, "adapter.method"),
        ({"data__train": "nowhere.jsonl"}, "data.train: nowhere.jsonl: no such file"),
        ({"base_model": "other"}, "base_model: other is not the base of this run, tiny"),
    ],
    ids=str,
)
def test_a_bad_spec_is_exit_code_2(base: Path, tmp_path: Path, change: dict[str, object], says: str) -> None:
    good, bad = write_spec(tmp_path, "lora"), edited(write_spec(tmp_path, "dora"), **change)
    done = call(*run_args(base, tmp_path / "out", [good, bad]))
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert not (tmp_path / "out").exists(), "nothing is begun when one spec is wrong"


def test_what_is_there_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "lora")
    (tmp_path / "out" / "lora").mkdir(parents=True)
    done = call(*run_args(base, tmp_path / "out", [spec]))
    assert done.returncode == 2
    assert "is there already; choose another --out" in done.stderr
    assert listing(tmp_path / "out" / "lora") == []


def test_the_same_name_twice(base: Path, tmp_path: Path) -> None:
    specs = [write_spec(tmp_path / folder, "lora") for folder in ("one", "two")]
    done = call(*run_args(base, tmp_path / "out", specs))
    assert done.returncode == 2
    assert "lora is the name of another spec here too" in done.stderr


@pytest.mark.parametrize("kind", ["missing", "empty", "no weights"])
def test_a_base_that_is_no_model(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    spec, folder = write_spec(tmp_path, "lora"), tmp_path / "model"
    if kind != "missing":
        folder.mkdir()
    if kind == "no weights":
        (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    code = main.run([str(arg) for arg in (*run_args(folder, tmp_path / "out", [spec]), "--json")])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    error = json.loads(said.err.splitlines()[-1])
    assert str(folder) in error["message"]
    assert error["error"] == ("UserError" if kind == "missing" else "BaseError")
    assert not (tmp_path / "out").exists() or listing(tmp_path / "out") == []


def test_a_limit_is_told_wherever_a_run_tells_of_its_jobs(base: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "lora")
    spec.write_text(spec.read_text() + "limits: {max_tokens: 1, max_time: 1h}\n")
    done = call(*run_args(base, tmp_path / "out", [spec]), "--json")
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(done.stdout)
    assert (job["state"], job["steps"], job["stopped_by"]) == ("SUCCEEDED", 1, "max_tokens")
    assert f"lora: SUCCEEDED, stopped by max_tokens → {tmp_path / 'out' / 'lora'}" in done.stderr
    made = json.loads((tmp_path / "out" / "lora" / "provenance.json").read_text())
    assert (made["steps"], made["planned_steps"], made["stopped_by"]) == (1, 6, "max_tokens")
    metrics = [json.loads(line) for line in (tmp_path / "out" / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in metrics] == [("eval", 0), ("step", 1), ("eval", 1)]


def test_ctrl_c(base: Path, tmp_path: Path) -> None:
    """A job that has ended is there whole, the one that trains leaves nothing."""
    short, endless = write_spec(tmp_path, "lora", max_steps=1), write_spec(tmp_path, "dora", max_steps=1_000_000)
    args = command(*run_args(base, tmp_path / "out", [short, endless]))
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        for line in process.stdout:
            if line.startswith("lora: SUCCEEDED") or time.monotonic() > deadline:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.endswith("error: interrupted\n")
    assert "Traceback" not in err
    assert listing(tmp_path / "out") == ["lora"]
    assert listing(tmp_path / "out" / "lora") == EXPORTED
