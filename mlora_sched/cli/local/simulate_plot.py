"""How `simulate --plot` draws a trace: how long jobs took, and how users were slowed, policy beside policy."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from mlora_sched.errors import UserError
from mlora_sched.sched.outcome import Comparison


def check_matplotlib() -> None:
    """Raises:
    UserError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot: plots need matplotlib; install it with: pip install 'mlora_sched[bench]'")


def draw(found: Comparison, folder: Path) -> Path:
    """Write one PNG, named after the trace, into the folder, which is made; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _turnarounds(left, found)
    _slowdowns(right, found)
    figure.suptitle(f"{found.trace}: {found.jobs} jobs of {found.users} users", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(found.trace).name)}.png"
    figure.savefig(path, dpi=110)
    return path


def _turnarounds(axes: Any, found: Comparison) -> None:
    """What share of the jobs had ended after so many seconds."""
    for one in found.outcomes:
        count = len(one.turnarounds)
        axes.step(one.turnarounds, [(at + 1) / count for at in range(count)], where="post", label=one.policy)
    axes.set_xscale("log")
    axes.set_xlabel("seconds from arrival to end")
    axes.set_ylabel("share of jobs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _slowdowns(axes: Any, found: Comparison) -> None:
    """Each user's slowdown by how many were active; on the line the machine was divided and nothing gained."""
    for one in found.outcomes:
        axes.scatter([user.active for user in one.users], [user.slowdown for user in one.users], s=18, label=one.policy)
    most = max(user.active for one in found.outcomes for user in one.users)
    axes.plot([1, most], [1, most], color="grey", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("users active meanwhile")
    axes.set_ylabel("slowdown against being alone")
    axes.grid(alpha=0.3)
