"""What happens to one job in the fake worker, as it says itself under `metadata.fake`. Nothing is done here."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.state import ErrorCode


class FakeScript(Frozen):
    """What happens to one job.

    Attributes:
        steps: how long it is.
        fail_at: the step that fails with `code`; 0 for the preparation, which fails with `prepare_code`.
        crash_at: the step at which the worker dies; 0 for the preparation.
        crash_times: how often it dies there, None for every time.
        crash_beside: it dies there, and at every later step, when the job of this name is in the pack, and else not.
        crash_attached: it dies when the job is attached.
        hang_at: the step that never ends, as often as it would die.
        step_tokens: tokens of a step.
        step_seconds: how long a step takes.
        prepare_hangs: its preparation never ends.
        chunk_tokens, longest: what its preparation finds: tokens of the largest chunk and the longest row.
        bytes: what it holds of the device, or of the host's memory while it is parked.
    """

    steps: int = Field(default=4, ge=1)
    fail_at: int | None = None
    code: ErrorCode = ErrorCode.NON_FINITE_LOSS
    prepare_code: ErrorCode = ErrorCode.BAD_DATA
    crash_at: int | None = None
    crash_times: int | None = None
    crash_beside: str | None = None
    crash_attached: bool = False
    hang_at: int | None = None
    step_tokens: int = 100
    step_seconds: float = 0.0
    prepare_hangs: bool = False
    chunk_tokens: int = 100
    longest: int = 50
    bytes: int = 1000

    @classmethod
    def of(cls, spec: JobSpec) -> FakeScript:
        """What a job says."""
        return cls.model_validate(spec.metadata.get("fake", {}))

    def crashes(self, step: int, names: Collection[str]) -> bool:
        """Whether the worker is to die at a step, in a pack with the jobs of these names."""
        if self.crash_beside is None:
            return step == self.crash_at
        return self.crash_at is not None and step >= self.crash_at and self.crash_beside in names
