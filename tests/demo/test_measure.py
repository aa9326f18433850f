"""The demo's measurements against plain transformers: loss row by row, answers by generating."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlora_sched.demo.measure import Meter
from mlora_sched.demo.training import DemoJob
from mlora_sched.spec.job import load_job, local_files
from mlora_sched.toybase.train import Recipe, Size, make_base

SPEC = Path(__file__).parents[2] / "jobs" / "lora-r8-mood.yaml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases") / "tiny"
    make_base(directory, Recipe(Size.TINY, steps=0))
    return directory


@pytest.fixture(scope="module")
def job() -> DemoJob:
    spec = load_job(SPEC)
    return DemoJob(SPEC, spec, local_files(spec, SPEC.parent))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter that does something: fresh ones change nothing."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    directory = tmp_path_factory.mktemp("adapters") / "random"
    model.save_pretrained(directory)
    return directory


def _plain_loss(base: Path, job: DemoJob) -> float:
    """The held-out loss from the row's chat text and transformers' own loss."""
    import json

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    for line in job.files[str(job.spec.data.validation)].read_text().splitlines():
        row = json.loads(line)
        question = {"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}
        turns = [question, {"role": "assistant", "content": row["output"]}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=True)["input_ids"]
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        answer = ids.shape[1] - len(prompt)
        with torch.no_grad():
            total += model(ids, labels=labels).loss.item() * answer
        count += answer
    return total / count


def test_loss_of_the_base_is_that_of_plain_transformers(base: Path, job: DemoJob, tmp_path: Path) -> None:
    assert Meter(base, tmp_path).score(job, None).loss == pytest.approx(_plain_loss(base, job), rel=1e-5)


def test_peft_finds_the_same(base: Path, job: DemoJob, adapter: Path, tmp_path: Path) -> None:
    meter = Meter(base, tmp_path)
    proof = meter.prove_with_peft(job, adapter)
    assert proof.agrees
    assert abs(proof.ours.loss - meter.score(job, None).loss) > 1e-2, "the adapter must do something"


def test_a_disagreement_is_seen(base: Path, job: DemoJob, adapter: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    proof = Meter(base, tmp_path).prove_with_peft(job, adapter)
    assert not replace(proof, peft=replace(proof.peft, loss=proof.peft.loss * 1.001)).agrees
    assert not replace(proof, peft=replace(proof.peft, exact=proof.peft.exact + 0.1)).agrees
