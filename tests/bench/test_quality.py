"""The study of quality: whole and small on a tiny base, and its scores beside plain transformers'."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mlora_sched.bench.quality.__main__ import main
from mlora_sched.bench.quality.plan import CONTESTANTS, Contestant, Plan
from mlora_sched.bench.quality.questions import chance, commonest, drawn, read_questions
from mlora_sched.bench.quality.record import Quality, figure_rows, method_rows
from mlora_sched.bench.quality.study import run
from mlora_sched.bench.setting import Setting
from mlora_sched.data.token_set import Row
from mlora_sched.data.tokens import prepare
from mlora_sched.engine.loop import Trainer
from mlora_sched.errors import DataError, NotFound, UserError
from mlora_sched.inference import load_adapter
from mlora_sched.spec.job import parse_job

SMALL = Plan(
    contestants=(
        Contestant("plain", "LoRA", {"method": "lora", "r": 2, "alpha": 4}),
        Contestant("routed", "MixLoRA", {"method": "mixlora", "r": 2, "alpha": 4, "num_experts": 3}),
    ),
    tasks=("sky", "sea"),
    train_rows=6,
    questions=5,
    seeds=(1, 2),
    rates=(1e-2, 3e-2),
    choice_rows=3,
    choice_judged=2,
    epochs=3,
    batch_size=3,
    max_length=256,
)
NAMES = [it.name for it in SMALL.contestants]


def row(question: str, options: tuple[str, ...], right: int, **other: Any) -> dict[str, Any]:
    """As the files of --data have them."""
    answer = options[right]
    instruction = f"{question}?\n\nAnswer format: {'/'.join(options)}"
    return {"instruction": instruction, "input": "", "output": answer, "answer": answer} | other


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(it) + "\n" for it in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets with two and with three options, whose rows all differ."""
    folder = tmp_path_factory.mktemp("data")
    for task, options in (("sky", ("true", "false")), ("sea", ("one", "two", "three"))):
        for part, count in (("train", 9), ("test", 7)):
            rows = [row(f"{part} {task} {at}", options, at % len(options)) for at in range(count)]
            write(folder / f"{task}_{part}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def study(setting: Setting, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, Quality]:
    """One run, and where its files are; packs are not measured, which takes longer than they do."""
    known = setting.trainer
    trainer = Trainer(known.base, known.tokenizer, known.origin, pack_tokens=512)
    here = dataclasses.replace(setting, trainer=trainer, data=data, work=tmp_path_factory.mktemp("study"))
    return here, run(here, SMALL)


def test_every_method_has_figures_of_every_seed_and_data_set(study: tuple[Setting, Quality]) -> None:
    _, found = study
    told = {(it.method, it.task, it.seed) for it in found.trained}
    assert told == {(name, task, seed) for name in NAMES for task in SMALL.tasks for seed in SMALL.seeds}
    assert len(found.trained) == len(told)
    assert Quality.model_validate_json(found.model_dump_json()) == found
    assert len({it.figures.loss for it in found.trained}) == len(told)
    assert any(0 < it.figures.answer_accuracy < 1 for it in found.trained), "else it could be anything"


def test_the_rate_with_the_lowest_loss_is_chosen(study: tuple[Setting, Quality]) -> None:
    for method in study[1].methods:
        assert [it.learning_rate for it in method.tried] == list(SMALL.rates)
        best = min(method.tried, key=lambda it: sum(it.losses.values()))
        assert method.learning_rate == best.learning_rate


@pytest.mark.parametrize("name", [None, *NAMES])
@pytest.mark.parametrize("task", SMALL.tasks)
def test_figures_are_those_of_plain_transformers(name: str | None, task: str, study: tuple[Setting, Quality]) -> None:
    """Of the base alone, and of an exported adapter on it: a row at a time, from the model's logits."""
    setting, found = study
    model = AutoModelForCausalLM.from_pretrained(setting.base)
    if name is None:
        expected = next(it for it in found.tasks if it.name == task).untrained
    else:
        key = next(it.key for it in SMALL.contestants if it.name == name)
        load_adapter(model, setting.work / "jobs" / f"{key}-{task}-2" / "adapter")
        expected = found.of(name, task)[1]
    loss, hits = zip(*(of_row(setting, model, it) for it in held_out(setting, task)), strict=True)
    assert expected.loss == pytest.approx(torch.cat(loss).mean().item(), abs=1e-4)
    assert expected.token_accuracy == pytest.approx(torch.cat(hits).double().mean().item())
    assert expected.answer_accuracy == sum(bool(it.all()) for it in hits) / SMALL.questions


def held_out(setting: Setting, task: str) -> list[Row]:
    """The tokens of the questions that are asked."""
    assert setting.data is not None
    questions = drawn(read_questions(setting.data / f"{task}_test.jsonl"), SMALL.questions, 0, task)
    file = write(setting.work / "asked.jsonl", [dict(it.row) for it in questions])
    spec = parse_job({"name": "asked", "data": {"train": "asked.jsonl", "max_length": SMALL.max_length}})
    rows = prepare(spec, {"asked.jsonl": file}, setting.trainer.tokenizer, setting.work / "asked").train
    return [rows.row(at) for at in range(len(rows))]


def of_row(setting: Setting, model: Any, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a row's target tokens: cross-entropy, and whether the most probable token is the right one."""
    ids = torch.from_numpy(row.input_ids).long()
    with torch.inference_mode():
        logits = model(input_ids=ids[None]).logits[0, :-1]
    targets = torch.from_numpy(row.loss_mask)[1:]
    loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    return loss[targets], (logits.argmax(-1) == ids[1:])[targets]


@pytest.mark.slow
def test_how_many_train_at_once_changes_no_figure(study: tuple[Setting, Quality], tmp_path: Path) -> None:
    setting, together = study
    two_at_once = run(dataclasses.replace(setting, work=tmp_path), dataclasses.replace(SMALL, together=2))
    assert two_at_once.trained == together.trained
    assert two_at_once.methods == together.methods


def test_tables_show_means_and_ranges(study: tuple[Setting, Quality]) -> None:
    _, found = study
    rows = list(figure_rows(found))
    assert len(rows) == len(SMALL.tasks) * (1 + len(NAMES))
    low, high = sorted(it.loss for it in found.of("MixLoRA", "sea"))
    assert ("sea", "MixLoRA", f"{(low + high) / 2:.4f} ({low:.4f} – {high:.4f})") in {it[:3] for it in rows}
    assert [it[0] for it in method_rows(found)] == NAMES


def test_what_needs_no_model(tmp_path: Path) -> None:
    rows = [
        row("a", ("x", "y"), 0),
        row("b", ("x", "y"), 0),
        row("c", ("x", "y"), 1),
        row("d", ("x", "y", "u", "v"), 3),
    ]
    questions = read_questions(write(tmp_path / "q.jsonl", rows))
    assert chance(questions) == pytest.approx((3 / 2 + 1 / 4) / 4)
    assert commonest(questions) == 0.5
    assert [it.answer for it in questions] == ["x", "x", "y", "v"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (row("a", ("x", "y"), 0, answer="z"), "answer: 'z'"),
        (row("a", ("x",), 0), "one of the options"),
        (row("a", ("x", "x"), 0), "different options"),
        (row("a", ("x", "y"), 0, output="x."), "output:"),
        (row("a", ("x", "y"), 0, answer=3), "answer: is 3"),
    ],
)
def test_rows_that_ask_nothing_are_refused(fault: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as refused:
        read_questions(write(tmp_path / "q.jsonl", [row("a", ("x", "y"), 1), fault]))
    assert refused.value.line == 2


def test_what_cannot_be_studied_is_said(setting: Setting, data: Path, tmp_path: Path) -> None:
    here = dataclasses.replace(setting, work=tmp_path)
    with pytest.raises(UserError, match="--data"):
        run(here, SMALL)
    here = dataclasses.replace(here, data=data)
    with pytest.raises(NotFound, match=r"air_train\.jsonl"):
        run(here, dataclasses.replace(SMALL, tasks=("air",)))
    with pytest.raises(UserError, match="has 7 rows, 8 are asked for"):
        run(here, dataclasses.replace(SMALL, questions=8))
    with pytest.raises(UserError, match=r"--max-length: \d rows of sky"):
        run(here, dataclasses.replace(SMALL, max_length=34))


def test_the_published_adapters_are_of_the_papers_sizes() -> None:
    sections = [it.adapter for it in CONTESTANTS]
    sizes = {it["method"]: (it["r"], it["alpha"], it.get("num_experts", 1)) for it in sections}
    assert sizes == {"lora": (80, 160, 1), "mixlora": (16, 32, 8), "dynmole": (24, 48, 6)}


def test_the_command_says_where_a_base_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", str(tmp_path / "none"), "--data", str(tmp_path)]) == 3
    assert "base make" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--base", str(tmp_path), "--data", str(tmp_path), "--questions", "0"])
    assert "--questions" in capsys.readouterr().err
