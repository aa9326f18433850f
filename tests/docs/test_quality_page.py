"""What `docs/benchmarks.md` says of quality is what its record says."""

from __future__ import annotations

from docs.pages import ROOT, rows, section, text_of
from mlora_sched.bench.quality.plan import CONTESTANTS, Plan
from mlora_sched.bench.quality.record import UNTRAINED, Quality, figure_rows, method_rows, tables, task_rows

PART = section(text_of("benchmarks.md"), "Quality on real rows")
RECORD = Quality.model_validate_json((ROOT / "docs" / "benchmarks" / "quality.json").read_text(encoding="utf-8"))


def test_the_page_shows_the_record() -> None:
    assert tables(RECORD).strip() in PART
    on_page = {tuple(cells) for cells in rows(PART)}
    assert on_page == {*task_rows(RECORD), *method_rows(RECORD), *figure_rows(RECORD)}


def test_every_method_data_set_and_seed_is_there() -> None:
    told = {(it.method, it.task, it.seed) for it in RECORD.trained}
    assert [it.name for it in RECORD.methods] == [it.name for it in CONTESTANTS]
    assert [it.name for it in RECORD.tasks] == list(Plan().tasks)
    assert told == {(it.name, task, seed) for it in CONTESTANTS for task in Plan().tasks for seed in Plan().seeds}
    assert UNTRAINED in PART


def test_the_page_tells_how_it_was_measured() -> None:
    words = " ".join(PART.split())
    assert RECORD.machine.cpu.split()[0] in words
    for setting in ("batch_size", "epochs", "choice_rows", "choice_judged"):
        assert f"`{setting}` {RECORD.settings[setting]}" in words
    assert f"{RECORD.base.parameters:,} parameters" in words
    assert RECORD.base.toy == ("toy base" in words)
