"""Everything one resident job is: adapter, optimiser, place in its data, accumulators of the unfinished step.

A job goes through phases: it evaluates (where it has validation data, before the first step, at its interval and at
the end) and it trains. Either way it offers chunks in order and takes their results in order; when all are in, the
phase is finished by `finish_step` or `finish_evaluation`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mlora_sched.adapters.base import Adapter
from mlora_sched.adapters.router_figures import loads_of
from mlora_sched.artifacts.provenance import versions_now
from mlora_sched.data.pack import Chunk, RowLike, cut_chunks
from mlora_sched.data.tokens import Cursor, Prepared, TokenSet
from mlora_sched.engine.guards import Stalled, Watched, limit_reached
from mlora_sched.engine.step import SegmentResult
from mlora_sched.errors import JobFault
from mlora_sched.optim.adamw import JobAdamW
from mlora_sched.optim.schedules import learning_rate
from mlora_sched.sched.phases import Phase
from mlora_sched.sched.work import WorkModel
from mlora_sched.spec.experts import RouterLoad, is_recorded
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.limits import Metric
from mlora_sched.spec.state import ErrorCode, StoppedBy
from mlora_sched.spec.training import interval_steps


@dataclass(frozen=True)
class StepFigures:
    """What an optimiser step is reported with; `diverged` says why the job must not go on after it."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    target_tokens: int
    extra: dict[str, float]
    work: float
    routers: tuple[RouterLoad, ...] = ()
    diverged: str | None = None

    def check(self) -> None:
        """Go on only if the job may.

        Raises:
            JobFault: the job's guards find that it diverges.
        """
        if self.diverged is not None:
            raise JobFault(ErrorCode.DIVERGED, self.diverged)


@dataclass(frozen=True)
class EvalFigures:
    """What an evaluation is reported with."""

    step: int
    loss: float
    accuracy: float
    tokens: int
    work: float
    best: bool


@dataclass
class Progress:
    """The counters of a job: with the tensors, all that a checkpoint holds.

    Attributes:
        step: finished optimiser steps. evaluated: the last step an evaluation was made after, -1 for none.
        tokens: trained tokens so far. best_loss, best_step: of the best evaluation.
        resumes: how often the job went on from a checkpoint.
        other_numerics: at least once it went on under another numerics key, so its bits are no longer those of one run.
        seconds: on the device, where `limits.max_time` is set. stopped_by: what ended it before its last step.
        watched: what its guards remember. stalled: what early stopping does.
        version_history: under which versions it trained; see `goes_on_under`.
    """

    step: int = 0
    evaluated: int = -1
    tokens: int = 0
    best_loss: float = math.inf
    best_step: int = -1
    resumes: int = 0
    other_numerics: bool = False
    seconds: float = 0.0
    stopped_by: StoppedBy | None = None
    watched: Watched = field(default_factory=Watched)
    stalled: Stalled = field(default_factory=Stalled)
    version_history: list[dict[str, Any]] = field(default_factory=list)

    def goes_on_under(self, versions: Mapping[str, str]) -> None:
        """Note what the next step is made with, where that has changed: entries of `step` and a version by package."""
        last = self.version_history[-1] if self.version_history else {}
        if {name: last.get(name) for name in versions} != versions:
            self.version_history.append({"step": self.step, **versions})

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint holds it; JSON has no infinity."""
        return dataclasses.asdict(self) | {"best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> Progress:
        """Read what `to_json` gave, of this release or of one whose progress had fewer fields."""
        stopped_by = saved.get("stopped_by")
        read = {
            "best_loss": math.inf if saved["best_loss"] is None else saved["best_loss"],
            "stopped_by": None if stopped_by is None else StoppedBy(stopped_by),
            "watched": Watched(**saved.get("watched", {})),
            "stalled": Stalled(**saved.get("stalled", {})),
        }
        return cls(**{**saved, **read})


@dataclass
class _Unfinished:
    """The chunks of the running phase and the results that are in."""

    chunks: tuple[Chunk, ...] = ()
    work: tuple[float, ...] = ()
    tokens: int = 0
    targets: int = 0
    results: list[SegmentResult] = field(default_factory=list)


class TrainState:
    """One resident job.

    Args:
        work: says what its chunks cost; without it a token counts as 1.
    """

    def __init__(
        self, job_id: str, spec: JobSpec, data: Prepared, adapter: Adapter, work: WorkModel | None = None
    ) -> None:
        training = spec.training
        self._work = work
        self.job_id, self.spec, self.data, self.adapter = job_id, spec, data, adapter
        self.seed = training.seed
        self.progress = Progress()
        self.progress.goes_on_under(versions_now())
        self.cursor = Cursor.of(spec, len(data.train))
        self.total_steps = training.total_steps(self.cursor.steps_per_epoch)
        self._judge_steps = training.eval_steps(self.cursor.steps_per_epoch)
        self.eval_steps = None if data.validation is None else self._judge_steps
        self.save_steps = interval_steps(training.save_every, self.cursor.steps_per_epoch)
        self.optimizer = JobAdamW(adapter.params, adapter.lr_scales, training.weight_decay, training.max_grad_norm)
        self._open = _Unfinished()
        self._begun = False
        self._begin()

    # ------------------------------------------------------------------ what the packed step asks

    @property
    def step(self) -> int:
        """Finished optimiser steps."""
        return self.progress.step

    @property
    def batch_targets(self) -> int:
        """Target tokens of the running phase."""
        return self._open.targets

    @property
    def batch_tokens(self) -> int:
        """Tokens of the running phase."""
        return self._open.tokens

    @property
    def recorded(self) -> bool:
        """What its routers do in the running phase is recorded."""
        return self.phase is Phase.TRAIN and is_recorded(self.step + 1, self.total_steps)

    def tensors(self) -> Iterator[Tensor]:
        """Everything that the job holds on the device for as long as it is attached."""
        for flat in self.adapter.params.groups.values():
            yield from (flat.value, flat.grad, flat.compute)
        yield from self.optimizer.state().values()
        yield from self.adapter.derived()

    def kept(self) -> dict[str, Tensor]:
        """What of it must not be lost, by its name in a checkpoint: values and moments."""
        values = {f"value/{name}": flat.value for name, flat in self.adapter.params.groups.items()}
        return values | self.optimizer.state()

    # ------------------------------------------------------------------ phases

    @property
    def phase(self) -> Phase:
        """What comes next."""
        at = self.progress
        over = at.step == self.total_steps or at.stopped_by is not None
        due = self.eval_steps is not None and (at.step % self.eval_steps == 0 or over)
        if due and at.evaluated < at.step:
            return Phase.EVALUATE
        return Phase.DONE if over else Phase.TRAIN

    @property
    def save_due(self) -> bool:
        """A checkpoint is asked for after the step that was just finished."""
        return self.save_steps is not None and self.step > 0 and self.step % self.save_steps == 0

    @property
    def waiting_chunks(self) -> Sequence[Chunk]:
        """Chunks of the running phase that have no result yet, in order."""
        return self._open.chunks[len(self._open.results) :]

    def work(self, chunk: Chunk) -> float:
        """What a chunk of the running phase costs, in the unit of `sched.work`."""
        return self._open.work[chunk.index]

    def targets(self, chunk: Chunk) -> int:
        """Tokens of a chunk that carry loss."""
        counts = self._set().targets
        return sum(int(counts[row]) for row in chunk.rows)

    @property
    def unfinished_work(self) -> float:
        """Of the running phase, the chunks that have run."""
        return sum(self._open.work[: len(self._open.results)])

    @property
    def phase_work(self) -> float:
        """Of the running phase, all chunks."""
        return sum(self._open.work)

    def lengths(self, chunk: Chunk) -> list[int]:
        """Tokens of each row of a chunk."""
        return [int(self._set().lengths[row]) for row in chunk.rows]

    def rows(self, chunk: Chunk) -> list[RowLike]:
        """The tokenised rows of a chunk of the running phase."""
        rows = self._set()
        return [rows.row(index) for index in chunk.rows]

    def restart_phase(self) -> None:
        """Back to chunk 0, which writes over the accumulators: after a failed pack, a pause, a preemption."""
        self._begin()

    def begin_step(self) -> None:
        """Let the adapter begin the running phase, unless it has: to be called before each of its packs.

        It takes memory; where that runs out, it can be called again.
        """
        if not self._begun:
            self.adapter.begin_step()
            self._begun = True

    def take(self, result: SegmentResult) -> bool:
        """Take the next chunk's result; True when the phase is complete.

        Raises:
            JobFault: the chunk's loss is not finite.
        """
        assert result.chunk == len(self._open.results), "chunks come back in order"
        if not math.isfinite(result.loss_sum):
            where = (
                f"held-out loss is {result.loss_sum} after step {self.step}"
                if self.phase is Phase.EVALUATE
                else f"loss is {result.loss_sum} at step {self.step + 1}"
            )
            raise JobFault(
                ErrorCode.NON_FINITE_LOSS, f"{where}; lower training.learning_rate, or look at the rows it is of"
            )
        self._open.results.append(result)
        return len(self._open.results) == len(self._open.chunks)

    def finish_step(self, seconds: float = 0.0) -> StepFigures:
        """Step the optimiser on the complete batch and go to the next phase, the last one when a limit is reached.

        Args:
            seconds: on the device since the last phase was finished.

        Raises:
            JobFault: the gradient is not finite.
        """
        grad_norm = self.optimizer.grad_norm()
        if not math.isfinite(grad_norm):
            raise JobFault(
                ErrorCode.NON_FINITE_LOSS,
                f"gradient norm is {grad_norm} at step {self.step + 1}; lower training.learning_rate",
            )
        lr = learning_rate(self.spec.training, self.step, self.total_steps)
        self.optimizer.step(lr, grad_norm)
        if self.optimizer.may_overflow(lr) and not self.adapter.params.finite:
            raise JobFault(
                ErrorCode.NON_FINITE_LOSS,
                f"step {self.step + 1} made weights that are not finite; lower training.learning_rate",
            )
        done, at, loss = self._open, self.progress, _mean_loss(self._open)
        at.step, at.tokens = at.step + 1, at.tokens + done.tokens
        self._spend(seconds)
        diverged = at.watched.look(self.spec.guards, at.step, loss, grad_norm)
        if at.step < self.total_steps:
            at.stopped_by = limit_reached(self.spec.limits, at.tokens, at.seconds)
        if self.spec.early_stopping is not None:
            at.stalled.step(loss)
            if self.data.validation is None and at.step % self._judge_steps == 0:
                self._judge({})
        figures = StepFigures(
            step=at.step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens=done.tokens,
            target_tokens=done.targets,
            extra=_weighted_figures(done),
            work=sum(done.work),
            routers=loads_of([result.routers for result in done.results]),
            diverged=diverged,
        )
        self._begin()
        return figures

    def finish_evaluation(self, seconds: float = 0.0) -> EvalFigures:
        """Close the evaluation and go to the next phase. `seconds` is as for `finish_step`."""
        done = self._open
        self._spend(seconds)
        loss = _mean_loss(done)
        accuracy = sum(result.correct for result in done.results) / done.targets
        best = loss < self.progress.best_loss
        if best:
            self.progress.best_loss, self.progress.best_step = loss, self.step
        self.progress.evaluated = self.step
        self._judge({Metric.EVAL_LOSS: loss, Metric.EVAL_ACCURACY: accuracy})
        self._begin()
        return EvalFigures(self.step, loss, accuracy, done.targets, sum(done.work), best)

    def stop(self, why: StoppedBy) -> None:
        """End after the last finished step, once it has been evaluated; only between two steps."""
        assert self.phase is Phase.TRAIN
        self.progress.stopped_by = why
        self._begin()

    def restore(self, progress: Progress) -> None:
        """Go on from a checkpoint whose tensors have been loaded."""
        self.progress = progress
        self.progress.goes_on_under(versions_now())
        self.restart_phase()

    # ------------------------------------------------------------------

    def _judge(self, evaluated: Mapping[Metric, float]) -> None:
        """End the job where it has got no better for as long as it may; one that ends anyway is not judged."""
        rule, at = self.spec.early_stopping, self.progress
        going = at.step < self.total_steps and at.stopped_by is None
        if rule is not None and going and at.stalled.judge(rule, evaluated):
            at.stopped_by = StoppedBy.EARLY_STOPPING

    def _spend(self, seconds: float) -> None:
        """Count time where it is limited: without a limit, equal jobs have equal checkpoints."""
        if self.spec.limits.max_time is not None:
            self.progress.seconds += seconds

    def _set(self) -> TokenSet:
        if self.phase is Phase.EVALUATE:
            assert self.data.validation is not None
            return self.data.validation
        return self.data.train

    def _begin(self) -> None:
        """Lay out the chunks of the phase that comes now; its adapter has yet to begin it."""
        self._begun = False
        phase, rows = self.phase, self._set()
        if phase is Phase.DONE:
            self._open = _Unfinished()
            return
        batch = range(len(rows)) if phase is Phase.EVALUATE else self.cursor.batch(self.step)
        chunks = cut_chunks(self.job_id, batch, rows.lengths, self.spec.training.chunk_tokens)
        targets = sum(int(rows.targets[row]) for row in batch)
        work = tuple(self._cost(chunk, rows, training=phase is Phase.TRAIN) for chunk in chunks)
        self._open = _Unfinished(chunks, work, sum(chunk.tokens for chunk in chunks), targets)

    def _cost(self, chunk: Chunk, rows: TokenSet, *, training: bool) -> float:
        if self._work is None:
            return float(chunk.tokens)
        at = list(chunk.rows)
        squares, targets = float((rows.lengths[at] ** 2).sum()), float(rows.targets[at].sum())
        return self._work.of_segment(self.spec.adapter, chunk.tokens, squares, targets, training)


def _mean_loss(done: _Unfinished) -> float:
    """Mean over the targets, the chunks' sums added in chunk order."""
    return sum(result.loss_sum for result in done.results) / done.targets


def _weighted_figures(done: _Unfinished) -> dict[str, float]:
    """The chunks' own figures, each weighted by its share of the tokens."""
    names = dict.fromkeys(name for result in done.results for name in result.figures)
    return {name: sum(result.figures[name] * result.tokens for result in done.results) / done.tokens for name in names}
