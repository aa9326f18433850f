"""The baselines do the same work as ours: the first loss of a fresh adapter is the base's own, whoever computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mlora_sched.bench.experts_loop import LoopedMixLora
from mlora_sched.bench.jobs import BenchJob, bench_job, even_rows, lora, random_rows
from mlora_sched.bench.ours import OurJobs
from mlora_sched.bench.peft_side import Batching, PeftJobs, collate, plain_model
from mlora_sched.bench.phases import Clocked
from mlora_sched.bench.rows import read_rows, row_files, rows_tokenizer
from mlora_sched.bench.setting import Setting
from mlora_sched.errors import NotFound, UserError
from mlora_sched.memory.meter import PeakTensors
from mlora_sched.spec.wire import StepDone
from mlora_sched.toybase.train import RECIPE_FILE

LENGTHS = (5, 17, 9, 12)
MIXLORA = {"method": "mixlora", "r": 4, "alpha": 8, "num_experts": 4, "top_k": 2}


def job(adapter: dict[str, Any]) -> BenchJob:
    return bench_job("job", adapter, random_rows(LENGTHS, 300, seed=3), batch_size=2)


def our_losses(setting: Setting, measured: BenchJob, steps: int) -> list[float]:
    ours = OurJobs(setting.trainer, [measured], 256)
    losses: list[float] = []
    take = ours.trainer._take

    def spying(*args: Any) -> Any:
        reports = take(*args)
        losses.extend(report.loss for report in reports if isinstance(report, StepDone))
        return reports

    ours.trainer._take = spying  # type: ignore[method-assign]
    assert ours.advance(steps) == sum(LENGTHS[: 2 * steps])
    return losses


@pytest.mark.parametrize("batching", Batching)
def test_peft_computes_our_loss(setting: Setting, batching: Batching) -> None:
    measured = job(lora(4))
    theirs = PeftJobs(plain_model(setting.base), [measured], 2, batching)
    with torch.no_grad():
        loss = theirs.model(**collate(measured.batch(0), batching).inputs, use_cache=False).loss.item()
    assert loss == pytest.approx(our_losses(setting, measured, 1)[0], rel=1e-5)


def test_peft_trains_its_adapters_only_and_moves_them(setting: Setting) -> None:
    jobs = [bench_job(f"job-{r}", lora(r), random_rows(LENGTHS, 300, seed=r), 2) for r in (2, 4)]
    theirs = PeftJobs(plain_model(setting.base), jobs, 2, Batching.PADDED)
    before = {name: value.clone() for name, value in theirs.model.named_parameters()}
    assert theirs.advance(Batching.PADDED, 0) == 2 * sum(LENGTHS[:2])
    moved = {name for name, value in theirs.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert {"job-2", "job-4"} == {name.split(".")[-2] for name in moved}


def test_experts_one_by_one_compute_our_loss(setting: Setting) -> None:
    measured = job(MIXLORA)
    loop = LoopedMixLora(plain_model(setting.base), measured, 2)
    with torch.no_grad():
        with_balance = loop.loss(0).item()
        balance = loop.spec.router_aux_loss_coef * loop.spec.num_experts
        loss = with_balance - balance * sum_of_products(loop)
    assert loss == pytest.approx(our_losses(setting, measured, 1)[0], rel=1e-4)
    assert loop.advance(0) == sum(LENGTHS[:2])
    trained = {name for name, value in loop.model.named_parameters() if value.requires_grad}
    assert not any("ffn." in name or "embed" in name for name in trained)


def sum_of_products(loop: LoopedMixLora) -> float:
    chosen = torch.stack([experts.chosen_E for experts in loop.experts]).mean(dim=0)
    mean = torch.stack([experts.mean_E for experts in loop.experts]).mean(dim=0)
    return float((chosen * mean).sum())


def test_time_outside_is_part_of_the_whole(setting: Setting) -> None:
    clocked = Clocked(OurJobs(setting.trainer, [job(lora(4))], 256).advance)
    assert clocked(0) == sum(LENGTHS[:2])
    assert clocked.outside[0] >= 0
    assert clocked.last.inside > 0


def test_peak_tensors_counts_what_lives_at_once() -> None:
    with PeakTensors() as peak:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b * 2
    assert peak.peak == 2 * 4000
    assert peak.live == b.nbytes + c.nbytes


def test_peak_tensors_counts_what_autograd_keeps() -> None:
    x = torch.zeros(1000, requires_grad=True)
    with PeakTensors() as peak:
        y = x.exp().exp()  # the inner result lives on for the backward alone
        assert peak.live == 3 * 4000
        y.sum().backward()
        del y
    assert peak.live == 2 * 4000  # x and its gradient


def test_rows_come_from_the_files_of_a_directory(setting: Setting, tmp_path: Path) -> None:
    rows = '{"instruction": "Add.", "input": "1 and 2", "output": "3"}\n{"instruction": "Go.", "output": "gone"}\n'
    (tmp_path / "some.jsonl").write_text(rows, encoding="utf-8")
    (file,) = row_files(tmp_path, setting.work)
    found = read_rows(file, setting.trainer.tokenizer, setting.work, count=5, seed=0)
    assert len(found) == 5
    assert len({row.input_ids.tobytes() for row in found}) == 2


def test_rows_for_an_untrained_base_have_the_lengths_of_ordinary_text(setting: Setting, tmp_path: Path) -> None:
    text = "photosynthesis turns sunlight into sugar while chloroplasts absorb carbon dioxide " * 4
    rows = [json.dumps({"instruction": text, "output": text}) for _ in range(20)]
    (tmp_path / "some.jsonl").write_text("\n".join(rows), encoding="utf-8")
    files = row_files(tmp_path, setting.work)
    own = setting.trainer.tokenizer
    better = rows_tokenizer(setting.base, own, files, setting.vocabulary)
    assert len(better) <= setting.vocabulary
    few, many = (len(tokenizer(text)["input_ids"]) for tokenizer in (better, own))
    assert few <= 1.5 * len(text.split()) < many
    recipe = json.loads((setting.base / RECIPE_FILE).read_text(encoding="utf-8"))
    (tmp_path / RECIPE_FILE).write_text(json.dumps({**recipe, "steps": 10}), encoding="utf-8")
    assert rows_tokenizer(tmp_path, own, files, setting.vocabulary) is own


def test_a_directory_without_rows_is_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \*\.jsonl"):
        row_files(tmp_path, setting.work)
    with pytest.raises(NotFound, match="no directory"):
        row_files(tmp_path / "missing", setting.work)


def test_generated_rows_are_uneven(setting: Setting) -> None:
    (file,) = row_files(None, setting.work)
    words = sorted(len(line.split()) for line in file.read_text(encoding="utf-8").splitlines())
    assert words[0] < 30 < words[len(words) // 2] < 80 < 150 < words[-1]


@pytest.mark.parametrize(("tokens", "longest"), [(16, 128), (128, 128), (129, 128), (2048, 128), (7, 3)])
def test_even_rows_add_up(tokens: int, longest: int) -> None:
    rows = even_rows(tokens, longest)
    assert sum(rows) == tokens
    assert max(rows) <= longest
    assert max(rows) - min(rows) <= 1
