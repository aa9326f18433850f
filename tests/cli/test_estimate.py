"""`estimate`: what it says of a base it has never loaded is what a loaded one takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from engine.bases import llama_config, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from model.architectures import config_of
from transformers import LlamaConfig

from mlora_sched.cli.main import run
from mlora_sched.data.pack import bucket_ladder
from mlora_sched.memory.formula import PackPlan, SegmentPlan
from mlora_sched.memory.meter import bytes_of
from mlora_sched.memory.outlook import MOST_TOKENS, Forecast, Wanted
from mlora_sched.memory.profile import profile_base
from mlora_sched.memory.trace import Chunked, weigh
from mlora_sched.model.base import FrozenBase, load_base
from mlora_sched.model.recompute import checkpoint_activations
from mlora_sched.spec.job import JobSpec, parse_job

Capture = pytest.CaptureFixture[str]
PACK = 256
BUCKETS = bucket_ladder(PACK)
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 16, "dropout": 0.1},
    "dora": {"method": "dora", "target_modules": ["q_proj", "down_proj"]},
    "mixlora": {"method": "mixlora", "r": 4},
}
OPTIONS = [
    ("bfloat16", False),
    pytest.param("float32", False, marks=pytest.mark.slow),
    pytest.param("float32", True, marks=pytest.mark.slow),
]


def small_config() -> Any:
    """Large enough that nothing is lost in rounding."""
    config = llama_config(hidden=256, ff=640, layers=4)
    config.vocab_size = 1000
    return config


def real_base(folder: Path, config: Any, dtype: str = "float32", recompute: bool = False) -> FrozenBase:
    """A base with numbers, loaded as a worker loads it."""
    model_of(config).save_pretrained(folder / "full")
    base = load_base("real", str(folder / "full"), getattr(torch, dtype), torch.device("cpu"))
    if recompute:
        checkpoint_activations(base)
    base.slot.buckets = BUCKETS
    return base


def written(folder: Path, config: Any) -> Path:
    """A directory with a config and nothing else."""
    config.save_pretrained(folder / "bare")
    return folder / "bare"


def spec_of(name: str, max_length: int = 50, batch_size: int = 5, **keys: Any) -> dict[str, Any]:
    """Of a job whose largest chunk is 250 tokens, which do not fill their bucket."""
    data = {"train": "nowhere.jsonl", "max_length": max_length}
    return {"name": name, "data": data, "training": {"batch_size": batch_size, "chunk_tokens": PACK}, **keys}


def specs(folder: Path, **adapters: dict[str, Any]) -> list[str]:
    """Spec files, by name of the job."""
    paths = []
    for name, adapter in adapters.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec_of(name, adapter=adapter)))
        paths.append(str(path))
    return paths


def asked(capsys: Capture, *args: str | Path) -> Any:
    assert run(["estimate", *map(str, args), "--pack-tokens", str(PACK), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("dtype", "recompute"), OPTIONS)
def test_it_says_what_a_real_step_takes(tmp_path: Path, capsys: Capture, dtype: str, recompute: bool) -> None:
    config = small_config()
    args = [*specs(tmp_path, **ADAPTERS), "--base", written(tmp_path, config), "--dtype", dtype, "--trace"]
    answer = asked(capsys, *args, *["--checkpoint-activations"] * recompute)
    base = real_base(tmp_path, config, dtype, recompute)
    assert answer["checkpoint_activations"] is recompute
    for job, wanted in zip(answer["jobs"], ADAPTERS.values(), strict=True):
        adapter = parse_job(spec_of("job", adapter=wanted)).adapter
        real = weigh(base, [Chunked(adapter, (50,) * 5)], BUCKETS)
        assert answer["weights"] == real.base
        taken = real.jobs + real.pack
        assert job["resident"] + job["chunk"] == pytest.approx(taken, rel=0.02), job["name"]
        assert job["traced"]["traced"] == pytest.approx(taken, rel=0.02), job["name"]
        assert job["resident"] - job["derived"] == real.jobs
        assert job["chunk_tokens"] == 250


def test_a_config_file_a_directory_and_a_name_are_the_same_base(tmp_path: Path, capsys: Capture) -> None:
    folder, (spec,) = written(tmp_path, small_config()), specs(tmp_path, lora={})
    answers = [asked(capsys, spec, "--base", base) for base in (folder, folder / "config.json")]
    assert answers[0] == answers[1]
    assert answers[0]["base"] == "bare"
    assert asked(capsys, spec, "--base", f"mine={folder / 'config.json'}")["base"] == "mine"


@pytest.mark.slow
def test_bases_that_fit_no_machine_of_ours(tmp_path: Path, capsys: Capture) -> None:
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80}
    config = LlamaConfig(vocab_size=128256, hidden_size=8192, intermediate_size=28672, **heads)
    args = [*specs(tmp_path, lora={}), "--base", written(tmp_path, config), "--dtype", "bfloat16"]
    plain, packed = asked(capsys, *args), asked(capsys, *args, "--quantize", "nf4")
    assert plain["weights"] == pytest.approx(2 * 70.55e9, rel=1e-3)
    outside = 2 * 2 * 128256 * 8192
    assert packed["weights"] == pytest.approx(outside + (plain["weights"] - outside) * 4.127 / 16, rel=1e-3)
    assert plain["jobs"][0]["trained"] == 103_546_880


@pytest.mark.parametrize("architecture", ["mixtral", "gpt2"])
def test_other_architectures(tmp_path: Path, capsys: Capture, architecture: str) -> None:
    config = config_of(architecture)
    answer = asked(capsys, *specs(tmp_path, lora={}), "--base", written(tmp_path, config), "--trace")
    (job,) = answer["jobs"]
    assert job["traced"]["estimated"] == pytest.approx(job["traced"]["traced"], rel=0.03)
    model = real_base(tmp_path, config).model
    assert answer["weights"] == bytes_of([*model.parameters(), *model.buffers()])


# ---------------------------------------------------------------------- what fits

SHAPE = profile_base(small_config(), torch.float32, buckets=BUCKETS)


def forecast(device: int | None, margin: float = 0.05) -> Forecast:
    return Forecast(SHAPE, PACK, margin, device)


def wanted(max_length: int = 50, batch_size: int = 5, **keys: Any) -> Wanted:
    return Wanted("job.yaml", parse_job(spec_of("job", max_length, batch_size, **keys)))


@settings(max_examples=60, deadline=None)
@given(
    r=st.integers(1, 64),
    method=st.sampled_from(["lora", "dora", "mixlora"]),
    max_length=st.integers(8, 300),
    batch_size=st.integers(1, 8),
    margin=st.floats(0, 0.5),
)
def test_a_job_fits_the_device_that_it_is_said_to_need_and_no_smaller_one(
    r: int, method: str, max_length: int, batch_size: int, margin: float
) -> None:
    job = wanted(max_length, batch_size, adapter={"method": method, "r": r})
    need = forecast(None, margin).job(job)
    assert (need.fits, need.count, need.largest_pack) == (None, None, None)
    enough, short = (forecast(size, margin).job(job) for size in (need.alone + 2, need.alone - 8))
    assert (enough.fits, enough.refusal, enough.count) == (True, None, 1)
    assert enough.largest_pack is not None
    assert enough.largest_pack >= need.chunk_tokens
    assert (short.fits, short.count, short.largest_pack) == (False, 0, 0)
    assert short.refusal is not None
    assert f"a chunk of {need.chunk_tokens} tokens" in short.refusal


@settings(max_examples=40, deadline=None)
@given(r=st.integers(1, 64), mib=st.integers(60, 4000), names=st.lists(st.sampled_from(sorted(ADAPTERS)), min_size=1))
def test_counts_and_packs_are_the_largest_that_fit(r: int, mib: int, names: list[str]) -> None:
    there = forecast(mib << 20)
    assert there.device is not None
    budget = there.device.budget
    jobs = [wanted(adapter={**ADAPTERS[name], "r": r}) for name in names]
    for found in map(there.job, jobs):
        if found.fits:
            assert found.count is not None
            assert (
                found.count * found.resident + found.chunk <= budget < (found.count + 1) * found.resident + found.chunk
            )
    together = there.together([job.spec for job in jobs])
    assert together.resident == sum(there.job(job).resident for job in jobs)
    assert together.fits is (together.resident + together.chunk <= budget)
    assert together.largest_pack is not None
    if together.fits and len(jobs) == 1:
        assert together.largest_pack == there.job(jobs[0]).largest_pack


def test_the_largest_pack_is_one_that_is_full() -> None:
    """Beside a job there is memory for a pack of so many tokens, and for none of the next length."""
    lengths = bucket_ladder(MOST_TOKENS)
    for mib in (40, 100, 700):
        there, job = forecast(mib << 20), wanted(max_length=64, batch_size=4)  # chunks of 256 tokens
        found = there.job(job)
        assert there.device is not None
        assert found.largest_pack
        free = there.device.budget - found.resident
        longer = lengths[lengths.index(found.largest_pack) + 1]
        takes = [there.formula.pack(chunks(job.spec, rows)) for rows in (found.largest_pack, longer)]
        assert takes[0] <= free < takes[1]


def chunks(spec: JobSpec, rows: int) -> PackPlan:
    """A pack of chunks of 256 tokens and what is left."""
    tokens = [PACK] * (rows // PACK) + [rows % PACK] * (rows % PACK > 0)
    segments = tuple(SegmentPlan(spec.adapter, n, n) for n in tokens)
    return PackPlan(rows, segments, True, rows * 64, 64)


def test_a_chunk_that_no_pack_holds_is_told(tmp_path: Path, capsys: Capture) -> None:
    spec = tmp_path / "long.yaml"
    spec.write_text(yaml.safe_dump(spec_of("long", max_length=500)))
    (job,) = asked(capsys, spec, "--base", written(tmp_path, small_config()), "--trace")["jobs"]
    assert job["chunk_tokens"] == 500
    assert job["warning"].startswith("a chunk of this job may have 500 tokens, a pack holds 256; lower")
    assert job["traced"]["traced"] == pytest.approx(job["resident"] + job["chunk"], rel=0.1)


# ---------------------------------------------------------------------- what people see


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    paths = specs(tmp_path, **ADAPTERS)
    base = ["--base", str(written(tmp_path, small_config())), "--device-memory", "64MiB", "--trace"]
    assert run(["estimate", *paths, *base]) == 0
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    tables = [" ".join(line.split()) for line in lines]
    assert "NAME TRAINED PARAMS GRADIENTS OPTIMISER COPY TOGETHER" in tables
    assert "NAME METHOD CHUNK TAKES HEAD DEVICE FIT PACK" in tables
    assert "NAME METHOD TRACED ESTIMATED DIFFERENCE" in tables
    for name in ADAPTERS:
        assert sum(line.startswith(f"{name} ") for line in lines) == 3, name
    assert "--pack-tokens" in lines[-1] + lines[-2] + lines[-3]


def test_a_pipe_gets_lines(tmp_path: Path, capsys: Capture) -> None:
    args = [*specs(tmp_path, lora={}), "--base", str(written(tmp_path, small_config()))]
    assert run(["estimate", *args, "--device-memory", "28MiB"]) == 0
    text = capsys.readouterr().out
    assert "NAME\tMETHOD\tCHUNK\tTAKES\tHEAD\tDEVICE\tFIT\tPACK\nlora\tlora\t250\t" in text
    refusal = next(line for line in text.splitlines() if line.startswith("lora: memory: needs "))
    assert "have the daemon started with --checkpoint-activations" in refusal
    assert run(["estimate", *args, "--device-memory", "1MiB"]) == 0
    text = capsys.readouterr().out
    assert "lora: memory: the base alone does not fit: " in text
    assert "of margin, 1.0 MiB in all; use a larger device" in text
    assert "-" not in text.splitlines()[-1].partition("base alone")[2]
    assert run(["estimate", *args]) == 0
    assert "FIT" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "adapter", "says"),
    [
        (["--base", "{tmp}/gone"], {}, "gone is no directory"),
        (
            ["--base", "{tmp}/gone/config.json"],
            {},
            "config.json is no file; name a base's directory, or its config.json",
        ),
        (["--base", "{tmp}"], {}, "cannot be loaded"),
        (["--base", "{base}", "--device-memory", "80"], {}, "'80' is no size"),
        (["--base", "{base}"], {"r": 0}, "job.yaml: adapter.r"),
        (
            ["--base", "{base}"],
            {"target_modules": ["q_proj", "c_attn"]},
            "job.yaml: adapter.target_modules: 'c_attn' is no linear of base bare; choose from down_proj, gate_proj",
        ),
        (["--base", "{base}"], {"method": "mixlora", "target_modules": ["q_proj"]}, "q_proj names no part of the FFN"),
        (["--base", "{other}"], {"method": "mixlora"}, "base t5: t5 is an encoder-decoder"),
        (["--base", "{clip}"], {}, "base clip: "),
    ],
)
def test_it_refuses(tmp_path: Path, capsys: Capture, args: list[str], adapter: dict[str, Any], says: str) -> None:
    folders = {"tmp": tmp_path, "base": written(tmp_path, small_config()), "other": tmp_path / "t5"}
    folders["clip"] = tmp_path / "clip"
    for name in ("t5", "clip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": name}))
    (spec,) = specs(tmp_path, job=adapter)
    assert run(["estimate", spec, *(arg.format_map(folders) for arg in args)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said) < 600
