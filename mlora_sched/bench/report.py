"""A result for people: tables for the terminal, one picture for a page. The JSON is the record itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from mlora_sched.bench.profile import Part
from mlora_sched.bench.record import Bar, Ratio, Result, Series, Unit, quartiles
from mlora_sched.errors import UserError

_MIB = 2**20
_WIDE = 500
"""Times as large as the smallest bar: the largest one that is drawn on a plain scale."""


def print_result(console: Console, result: Result) -> None:
    """Ratios with their bars, then the series behind them."""
    console.print(
        Group(
            Text(f"\n{result.scenario}: {result.question}", style="bold"),
            _ratios(result.ratios),
            _series(result.series),
            _conditions(result),
        )
    )


def _conditions(result: Result) -> Text:
    where, rounds = result.machine, len(result.series[0].samples)
    return Text(
        f"{where.cpu}, {where.threads} threads, {where.dtype}; medians of {rounds} rounds, quartiles; "
        f"load {where.load_before:.1f} before, {where.load_after:.1f} after"
    )


def print_profile(console: Console, scenario: str, parts: Sequence[Part]) -> None:
    """Where a step's time goes."""
    table = Table("KIND", "SHARE", "SECONDS", "CALLS", box=None, header_style="bold")
    total = sum(part.seconds for part in parts)
    for part in parts:
        table.add_row(part.kind.value, f"{part.seconds / total:.1%}", f"{part.seconds:.4f}", str(part.calls))
    console.print(Group(Text(f"\n{scenario}: one step, under the profiler", style="bold"), table))


def _ratios(ratios: Iterable[Ratio]) -> Table:
    table = Table("RATIO", "VALUE", "QUARTILES", "BAR", "", box=None, header_style="bold")
    for ratio in ratios:
        verdict = {True: "met", False: "missed", None: ""}[ratio.verdict]
        table.add_row(
            ratio.name, f"{ratio.value:.3f}", f"[{ratio.low:.3f}, {ratio.high:.3f}]", _bar(ratio.bar), verdict
        )
    return table


def _bar(bar: Bar | None) -> str:
    return "" if bar is None else f"{bar.sense.value} {bar.limit:g}"


def _series(series: Iterable[Series]) -> Table:
    table = Table("SYSTEM", "AT", "MEDIAN", "QUARTILES", "TOKENS/S", box=None, header_style="bold")
    for one in series:
        low, high = quartiles(one.samples)
        table.add_row(
            one.system,
            "" if one.at is None else str(one.at),
            _amount(one.median, one.unit),
            f"[{_amount(low, one.unit)}, {_amount(high, one.unit)}]",
            _rate(one),
        )
    return table


def _amount(value: float, unit: Unit) -> str:
    return f"{value:.4f} s" if unit is Unit.SECONDS else f"{value / _MIB:,.0f} MiB"


def _rate(series: Series) -> str:
    return f"{sum(series.tokens) / sum(series.samples):,.0f}" if series.tokens else ""


def require_plotting() -> None:
    """Raises:
    UserError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--out: plots need matplotlib; install it with: pip install 'mlora_sched[bench]'")


def plot(result: Result, path: Path) -> None:
    """One PNG: curves where the series have places on an axis, else bars, with quartiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unit = result.series[0].unit
    series = [one for one in result.series if one.unit is unit]
    curves = any(one.at is not None for one in series)
    (_draw_curves if curves else _draw_bars)(axes, series)
    first = result.ratios[0]
    axes.set_title(f"{result.scenario}: {first.name} = {first.value:.2f}", fontsize=10)
    axes.set_ylabel("GiB" if unit is Unit.BYTES else "seconds a round")
    where = result.machine
    figure.supxlabel(f"{where.cpu}, {where.threads} threads, {where.dtype}; medians, quartiles", fontsize=7)
    figure.savefig(path, dpi=150)


def _draw_curves(axes: Any, series: Sequence[Series]) -> None:
    for system in dict.fromkeys(one.system for one in series):
        points = sorted((one for one in series if one.system == system), key=lambda one: one.at or 0)
        medians = [point.median for point in points]
        axes.errorbar(
            [point.at for point in points], medians, yerr=_spread(points, 1.0), marker="o", capsize=3, label=system
        )
    places = sorted({one.at for one in series if one.at is not None})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_bars(axes: Any, series: Sequence[Series]) -> None:
    scale = 1 / (1024 * _MIB) if series[0].unit is Unit.BYTES else 1.0
    names = [one.system.replace("_", "\n").replace(", ", ",\n") for one in series]
    medians = [one.median * scale for one in series]
    axes.bar(names, medians, yerr=_spread(series, scale), capsize=4, color="tab:blue", alpha=0.8)
    if max(medians) > _WIDE * min(medians):
        axes.set_yscale("log")
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(alpha=0.3, axis="y")


def _spread(series: Sequence[Series], scale: float) -> list[list[float]]:
    """How far the quartiles lie below and above the medians."""
    pairs = [(one.median, *quartiles(one.samples)) for one in series]
    return [
        [(median - low) * scale for median, low, _ in pairs],
        [(high - median) * scale for median, _, high in pairs],
    ]
