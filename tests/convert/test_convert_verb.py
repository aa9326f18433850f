"""`convert` as people meet it: what it prints for whole configs, where the spec goes, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mlora_sched.cli.main import run
from mlora_sched.convert.build import convert
from mlora_sched.convert.result import Source
from mlora_sched.convert.trainer import epoch_share, warmup_share
from mlora_sched.errors import SpecError
from mlora_sched.optim.schedules import learning_rate
from mlora_sched.spec.job import load_job
from mlora_sched.spec.training import TrainingSpec, interval_steps

HERE = Path(__file__).parent
CONFIGS = sorted((HERE / "configs").glob("*.y*ml"))
Capture = pytest.CaptureFixture[str]
AXOLOTL = {"adapter": "lora", "datasets": [{"path": "rows.jsonl"}]}
LLAMAFACTORY = {"stage": "sft", "dataset": "rows.jsonl"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_plain_output_is_what_is_expected(config: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec on standard output, the account on standard error."""
    monkeypatch.chdir(config.parent)
    assert run(["convert", config.name]) == 0
    printed = capsys.readouterr()
    text = f"{printed.out}--- standard error\n{printed.err}"
    assert text == (HERE / "expected" / f"{config.stem}.txt").read_text(encoding="utf-8")


def test_output_goes_to_a_new_file_only(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "job.yaml"
    assert run(["convert", str(CONFIGS[0]), "-o", str(target), "--name", "mine"]) == 0
    assert capsys.readouterr().out == ""
    assert load_job(target).name == "mine"
    before = target.read_bytes()
    assert run(["convert", str(CONFIGS[0]), "-o", str(target)]) == 4
    assert "is there already" in capsys.readouterr().err
    assert target.read_bytes() == before


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_json_is_one_object_with_the_same_spec(config: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "job.yaml"
    assert run(["convert", str(config), "--json", "-o", str(target)]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert printed.err == ""
    assert set(answer) == {"source", "spec", "mapped", "changed", "dropped", "filled"}
    assert answer["spec"] == yaml.safe_load(target.read_text())


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("a: [", 2, "is not YAML"),
        ("- 1\n", 2, "no mapping"),
        ("seed: 1\n", 2, "--from"),
        ("seed: 1\nseed: 2\n", 2, "written twice"),
        ("adapter: lora\nlora_r: 8\n", 2, "datasets: is missing"),
    ],
)
def test_what_is_no_config_is_refused_with_the_remedy(
    text: str, code: int, says: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "c.yml"
    path.write_text(text)
    assert run(["convert", str(path)]) == code
    assert says in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(capsys: Capture) -> None:
    assert run(["convert", "nowhere.yml"]) == 2
    assert "nowhere.yml" in capsys.readouterr().err


def test_a_broken_list_of_data_sets_is_named(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text("[")
    (tmp_path / "c.yml").write_text("stage: sft\ndataset: one\n")
    assert run(["convert", str(tmp_path / "c.yml")]) == 2
    assert "dataset_info.json: is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("document", "key"),
    [
        (AXOLOTL | {"adapter": None}, "adapter"),
        (AXOLOTL | {"lora_modules_to_save": ["lm_head"]}, "lora_modules_to_save"),
        (AXOLOTL | {"optimizer": "lion_pytorch"}, "optimizer"),
        (AXOLOTL | {"lora_target_modules": ["q_proj", "lm_head"]}, "lora_target_modules"),
        (AXOLOTL | {"lora_target_modules": [r"layers.\d+.q_proj"]}, "lora_target_modules"),
        (AXOLOTL | {"datasets": [{"path": "a.jsonl", "type": "jeopardy"}]}, "datasets.0.type"),
        (AXOLOTL | {"peft_use_dora": True, "peft_use_rslora": True}, "peft_use_dora"),
        (AXOLOTL | {"micro_batch_size": 0}, "micro_batch_size"),
        (AXOLOTL | {"lora_r": True}, "lora_r"),
        (LLAMAFACTORY | {"stage": "dpo"}, "stage"),
        (LLAMAFACTORY | {"finetuning_type": "full"}, "finetuning_type"),
        (LLAMAFACTORY | {"additional_target": "embed_tokens"}, "additional_target"),
        (LLAMAFACTORY | {"mask_history": True, "train_on_prompt": True}, "mask_history"),
    ],
)
def test_what_would_train_something_else_is_refused(document: dict[str, object], key: str) -> None:
    source = Source.AXOLOTL if "datasets" in document else Source.LLAMAFACTORY
    with pytest.raises(SpecError, match=rf"(?m)^config: {key}\b"):
        convert(document, "job", source=source)


def test_a_ranked_data_set_is_refused() -> None:
    info = {"rows.jsonl": {"file_name": "r.jsonl", "ranking": True}}
    with pytest.raises(SpecError, match=r"dataset: .*ranking"):
        convert(LLAMAFACTORY, "job", source=Source.LLAMAFACTORY, dataset_info=info)


def test_defaults_of_the_trainer_are_filled_in_where_they_are_not_ours() -> None:
    """Their documentation's defaults: one epoch, one row, 512 tokens; three epochs, eight rows, 5e-5, linear."""
    axolotl = convert(AXOLOTL, "job", source=Source.AXOLOTL).spec
    assert axolotl["training"] == {"epochs": 1.0, "batch_size": 1, "save_every": "epoch"}
    assert axolotl["data"] == {"train": ["rows.jsonl"], "max_length": 512}
    other = convert(LLAMAFACTORY | {"lora_rank": 4}, "job", source=Source.LLAMAFACTORY).spec
    assert other["adapter"] == {"r": 4, "alpha": 8}
    assert other["training"] == {
        "epochs": 3.0,
        "batch_size": 8,
        "learning_rate": 5e-5,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.0,
        "save_every": 500,
    }


@pytest.mark.parametrize(
    ("set_by", "steps"),
    [
        ({"eval_steps": 7, "max_steps": 100}, 7),
        ({"eval_steps": 0.25, "max_steps": 100}, 25),
        ({"eval_steps": 0.05, "num_epochs": 4}, 10),
        ({"evals_per_epoch": 4}, 12),
        ({"eval_strategy": "epoch"}, 50),
        ({"evals_per_epoch": 1, "eval_strategy": "steps"}, 50),
    ],
)
def test_evaluation_happens_as_often(set_by: dict[str, object], steps: int) -> None:
    """In an epoch of 50 steps, by arithmetic on what the keys mean."""
    result = convert(AXOLOTL | {"val_set_size": 0.1} | set_by, "job", source=Source.AXOLOTL)
    training = TrainingSpec.model_validate(result.spec["training"])
    assert interval_steps(training.eval_every, 50) == steps


@given(st.integers(1, 5000), st.integers(0, 5000))
@example(275, 77)
def test_warm_up_keeps_its_steps(total: int, steps: int) -> None:
    share = warmup_share(steps, total)
    assert math.ceil(share * total) == min(steps, total)
    training = TrainingSpec(warmup_ratio=share, lr_scheduler="constant", learning_rate=1.0)
    rising = [step for step in range(min(total, 50)) if learning_rate(training, step, total) < 1.0]
    assert rising == list(range(min(steps, total, 50)))


@given(st.floats(1e-9, 50))
def test_every_share_of_an_epoch_is_an_interval(share: float) -> None:
    """To the nearest millionth; between two of them either is right."""
    steps = interval_steps(TrainingSpec(eval_every=epoch_share(share)).eval_every, 10**6)
    assert steps is not None
    assert abs(steps - max(1.0, share * 10**6)) <= 0.5 + 1e-6
