"""`bench`: measure the engine beside the frozen base and beside PEFT, on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlora_sched.cli.remote.options import json_option
from mlora_sched.environment import prepare_process
from mlora_sched.errors import NotFound

if TYPE_CHECKING:
    from mlora_sched.bench.record import Result
    from mlora_sched.bench.setting import Setting

NAMES = ("mix", "ceiling", "flat", "small", "moe", "memory", "options", "saving", "decisions")
"""Of the scenarios, here so that help loads no torch; a test holds them to `mlora_sched.bench.scenarios`."""


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(NAMES), metavar="[SCENARIO]...")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of *.jsonl rows; else rows are generated.")
@click.option("--base", type=click.Path(path_type=Path), help="Directory of a base; else the bench base is made once.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="CPU threads of torch.")
@click.option("--pairs", type=click.IntRange(min=1), default=7, show_default=True, help="Measured rounds.")
@click.option("--out", type=click.Path(path_type=Path), help="Write SCENARIO.json and SCENARIO.png here.")
@click.option("--profile", is_flag=True, help="Show where one step's time goes, instead of measuring.")
@json_option
def bench(
    scenarios: tuple[str, ...],
    data: Path | None,
    base: Path | None,
    threads: int,
    pairs: int,
    out: Path | None,
    profile: bool,
    as_json: bool,
) -> None:
    """Measure training together, side by side with what one would do instead.

    \b
    mix        jobs of several ranks on uneven rows, against PEFT
    ceiling    a packed step against the frozen base's own forward and backward
    flat       the same tokens divided among 1 to 32 jobs
    small      from 16 to 2048 tokens a step, against PEFT
    moe        routed methods against LoRA of as many parameters
    memory     jobs in one process against a process for each
    options    the daemon's options, each against the plain daemon
    saving     saving every job at the default interval, against not saving
    decisions  who trains next with 10,000 jobs waiting, and scheduling's share of a step

    All of them when none is named. All systems run in turn in every round; figures are medians over the rounds. With
    --json, one object; with several scenarios, one object that holds theirs by name.
    """
    if base is not None and not base.is_dir():
        raise NotFound(f"--base: {base} is no directory; `mlora-sched base make {base} --size bench` makes one")
    prepare_process()  # before torch is loaded: what is measured runs as a worker runs
    names = scenarios or NAMES
    if out is not None:
        from mlora_sched.bench.report import require_plotting

        require_plotting()
    with tempfile.TemporaryDirectory(prefix="mlora-bench-") as work:
        setting = _setting(base, data, threads, pairs, Path(work))
        if profile:
            _profile(names, setting, as_json=as_json)
        else:
            _measure(names, setting, out, as_json=as_json)


def _setting(base: Path | None, data: Path | None, threads: int, pairs: int, work: Path) -> Setting:
    from mlora_sched.bench.setting import Setting, cached_base, start

    _say("loading and probing the base")
    location = cached_base(threads) if base is None else base
    return Setting(location, start(location, threads), threads, pairs, data, work, _say)


def _measure(names: Sequence[str], setting: Setting, out: Path | None, *, as_json: bool) -> None:
    from rich.console import Console

    from mlora_sched.bench.report import print_result
    from mlora_sched.bench.run import measure, write

    results: list[Result] = []
    for name in names:
        results.append(measure(name, setting))
        if out is not None:
            write(results[-1], out)
        if not as_json:
            print_result(Console(), results[-1])
    if as_json:
        _print_json({result.scenario: result.model_dump(mode="json") for result in results})


def _profile(names: Sequence[str], setting: Setting, *, as_json: bool) -> None:
    from rich.console import Console

    from mlora_sched.bench.profile import profile
    from mlora_sched.bench.report import print_profile
    from mlora_sched.bench.scenarios import SCENARIOS

    found = {name: profile(SCENARIOS[name].step(setting)) for name in names}
    if as_json:
        _print_json({name: {"scenario": name, "parts": [asdict(it) for it in parts]} for name, parts in found.items()})
        return
    for name, parts in found.items():
        print_profile(Console(), name, parts)


def _print_json(by_name: dict[str, dict[str, Any]]) -> None:
    """One scenario is the object itself."""
    one = next(iter(by_name.values())) if len(by_name) == 1 else {"scenarios": by_name}
    click.echo(json.dumps(one, indent=1, ensure_ascii=False))


def _say(what: str) -> None:
    """Progress, for whoever watches; answers go to stdout alone."""
    click.echo(f"bench: {what}", err=True)
