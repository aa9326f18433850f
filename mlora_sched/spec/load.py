"""How much work a job is, as its data says before it trains: what shares, forecasts and simulations are reckoned from.

Counted in tokens here; what they cost of a device depends on the base (`mlora_sched.sched.work`).
"""

from __future__ import annotations

from mlora_sched.spec.common import Frozen


class Load(Frozen):
    """Rows that are computed at one go, a step's batch or a whole evaluation, or their mean.

    Attributes:
        tokens: of all rows. squares: Σ L² over the rows' lengths. targets: tokens that carry loss.
        chunks: pieces that it is cut into.
    """

    tokens: float
    squares: float
    targets: float
    chunks: float = 1.0


class JobLoad(Frozen):
    """What a whole job computes.

    Attributes:
        step: the mean optimiser step. evaluation: one evaluation, None where there are no validation data.
        eval_steps: steps between two evaluations; there is one before the first step and one after the last.
        batches: of the first steps, the chunks of each, in order; what packs look like depends on how they vary.
        held_out: likewise of an evaluation; empty where those are too many to be kept.
    """

    step: Load
    evaluation: Load | None = None
    eval_steps: int | None = None
    batches: tuple[tuple[Load, ...], ...] = ()
    held_out: tuple[Load, ...] = ()

    def evaluations(self, done: int, total: int) -> int:
        """Evaluations still to come of a job that has done so many steps of all; see `evaluations_left`."""
        return 0 if self.eval_steps is None else evaluations_left(self.eval_steps, done, total)


def evaluations_left(every: int, done: int, total: int) -> int:
    """Evaluations, after each `every` steps and the last, that are still to come; one at `done` is not counted."""
    last = done < total and total % every > 0
    return total // every - done // every + last
