"""`docs/benchmarks.md` says what its records say, and the records follow from their samples."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from docs.pages import ROOT, rows, section, text_of
from mlora_sched.bench.record import Result
from mlora_sched.cli.local.bench import NAMES

PAGE = text_of("benchmarks.md")
FOLDER = ROOT / "docs" / "benchmarks"
RECORDS = sorted(FOLDER.glob("*/*.json"))


def results() -> dict[str, Result]:
    return {path.stem: Result.model_validate_json(path.read_text(encoding="utf-8")) for path in RECORDS}


def shown(result: Result) -> set[tuple[str, ...]]:
    """A record's ratios as the page writes them."""
    return {
        (
            result.scenario,
            ratio.name,
            f"{ratio.value:.3f}",
            f"{ratio.low:.3f} – {ratio.high:.3f}",
            "" if ratio.bar is None else f"{ratio.bar.sense.value} {ratio.bar.limit:g}",
            {True: "met", False: "missed", None: ""}[ratio.verdict],
        )
        for ratio in result.ratios
    }


def test_every_scenario_has_its_record() -> None:
    assert set(results()) == set(NAMES)


def test_records_follow_from_their_samples() -> None:
    """By the script that knows nothing of the package."""
    command = [sys.executable, str(FOLDER / "recompute.py"), *map(str, RECORDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_page_shows_every_ratio_as_it_is_recorded() -> None:
    on_page = {tuple(cells) for cells in rows(section(PAGE, "Figures"))}
    assert on_page == set().union(*(shown(result) for result in results().values()))


def test_the_page_names_the_machines_of_its_records() -> None:
    machines = [result.machine for result in results().values()]
    assert len({(it.threads, it.dtype, tuple(it.versions.items())) for it in machines}) == 1
    for name, result in results().items():
        assert result.machine.cpu in PAGE
        others = {it.cpu for it in machines} - {machines[0].cpu}
        assert result.machine.cpu not in others or f"`{name}`: {result.machine.cpu}" in PAGE
    assert all(f"{name} {version}" in PAGE for name, version in machines[0].versions.items() if name != "mlora_sched")


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_is_explained_and_drawn(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert f"](benchmarks/cpu/{name}.png)" in PAGE
    assert (FOLDER / "cpu" / f"{name}.png").is_file()


def test_what_was_counted_is_what_the_page_says() -> None:
    counts: Any = results()["ceiling"].counts
    text = " ".join(PAGE.split())
    fewer = 1 - counts["flops_ours"] / counts["flops_ceiling"]
    assert fewer > 0
    assert f"asks for {fewer:.1%}".replace("%", " %") + " fewer floating-point operations" in text
    missing = counts["base_gemms_ceiling"] - counts["base_gemms_ours"]
    assert missing == 3
    assert f"three of the ceiling's {counts['base_gemms_ceiling']} base products" in text
    assert f"there are {counts['adapter_gemms_ours']:,} of them" in text
