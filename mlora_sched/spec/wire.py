"""What daemon and worker say to one another: JSON lines over a private socket pair, no pickle.

Row lengths never cross this pipe, nor does the database: the daemon names jobs and shares, the worker forms packs
and reports results. Each message is one of these records; `kind` tells which. `epoch` counts how often a job was
attached, so that a report of an earlier attachment is recognised as stale and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from mlora_sched.spec.common import Frozen
from mlora_sched.spec.experts import RouterLoad
from mlora_sched.spec.job import JobSpec
from mlora_sched.spec.load import JobLoad
from mlora_sched.spec.memory import BaseShape, MemoryReport
from mlora_sched.spec.numerics import NumericsKey, ProbeVerdict
from mlora_sched.spec.state import ErrorCode, StoppedBy
from mlora_sched.spec.worker_config import WorkerConfig

# ---------------------------------------------------------------- shared by worker and embedded run


class Recorded(Frozen):
    """How far a job's figures are in the database: up to this step, and up to the evaluation after that one."""

    step: int
    evaluated: int = -1


class GroupAccount(Frozen):
    """What a group has paid by what is recorded, divided by its `weight`: who has least goes first.

    `waits`: jobs of it have no place. `new`: it had no work before.
    """

    group: str
    paid: float
    weight: float = Field(default=1.0, gt=0)
    waits: bool = False
    new: bool = False


class JobStart(Frozen):
    """Everything a worker needs to train one job.

    Attributes:
        job_id: the job.
        epoch: attachment count, echoed in every report.
        spec: the job's spec.
        files: local path of every file of `spec.files`, by the name the spec uses.
        cache_dir: where tokenised data is kept, by content.
        job_dir: the job's own directory; the worker writes `adapter/` and `checkpoints/step-NNNNNN/` below it.
        resume: go on from the newest checkpoint below `job_dir` where there is one …
        recorded: … whose figures the daemon has; None where nobody keeps any.
        account: of the group with which the job takes turns in packs, as recorded when it was sent.
        until: the job is let go after this step, and the evaluation after it; None for its last …
        stop: … or ends there, for this reason. With a step that it has finished already it ends as it is.
    """

    job_id: str
    epoch: int
    spec: JobSpec
    files: dict[str, str]
    cache_dir: str
    job_dir: str
    resume: bool = True
    recorded: Recorded | None = None
    account: GroupAccount | None = None
    until: int | None = None
    stop: StoppedBy | None = None


# ---------------------------------------------------------------- daemon → worker


class Init(Frozen):
    """First message: load the base, probe the device, answer `Ready` or `Fatal`."""

    kind: Literal["init"] = "init"
    config: WorkerConfig


class Prepare(Frozen):
    """Read, check and tokenise a job's data into the cache; answer `Prepared`, `JobFailed` or `NoTokenizer`.

    `base` is where the job's base lies, as in `WorkerConfig`. Never touches a pack.
    """

    kind: Literal["prepare"] = "prepare"
    start: JobStart
    base: str


class Attach(Frozen):
    """Make a prepared job resident; answer `Attached` or `JobFailed`. A parked job goes on where it was parked."""

    kind: Literal["attach"] = "attach"
    start: JobStart


class Detach(Frozen):
    """Let a job go after the current pack; answer `Detached`. The partial batch is dropped.

    save=True writes a checkpoint of its last finished step (pause); save=False drops it (cancel). With `park`, a job
    that is to come back (preemption) stays in the host's memory where there is room, and is saved only where there
    is none. Of a parked job `Detach` without `park` saves or drops what is parked.
    """

    kind: Literal["detach"] = "detach"
    job_id: str
    save: bool
    park: bool = False


class Turn(Frozen):
    """A job that takes part in a slice: its `group` takes turns with others, and within it jobs of a lower `level` go
    before, those of the same one beside it. `step` is the last one whose figures the daemon has recorded."""

    job_id: str
    group: str = ""
    level: int = 0
    step: int = Field(default=0, ge=0)


class Slice(Frozen):
    """Train the named jobs for at most `seconds`; answer `SliceDone`.

    `accounts` are those of the jobs' groups, and of who waits for a place and has paid least; `thin`: the disk is
    nearly full, so fewer checkpoints are kept.
    """

    kind: Literal["slice"] = "slice"
    slice_id: int
    turns: tuple[Turn, ...]
    accounts: tuple[GroupAccount, ...] = ()
    seconds: float = Field(gt=0)
    thin: bool = False


class Shutdown(Frozen):
    """Finish the current pack and exit 0."""

    kind: Literal["shutdown"] = "shutdown"


Command = Annotated[Init | Prepare | Attach | Detach | Slice | Shutdown, Field(discriminator="kind")]


# ---------------------------------------------------------------- worker → daemon


class Ready(Frozen):
    """The base is loaded and probed; `shape` and `memory` say what jobs will take of the device and what there is."""

    kind: Literal["ready"] = "ready"
    verdict: ProbeVerdict
    numerics: NumericsKey
    parameters: int
    base_hash: str
    shape: BaseShape | None = None
    memory: MemoryReport | None = None


class Prepared(Frozen):
    """A job's data is tokenised. `largest_chunk` bounds the tokens of a chunk, `longest` is the longest row's.

    `cache_entry` is the name of the file in the cache that holds the tokens, `load` how much work they are.
    """

    kind: Literal["prepared"] = "prepared"
    job_id: str
    epoch: int
    rows: int
    validation_rows: int
    tokens: int
    truncated: int
    total_steps: int
    largest_chunk: int = 0
    longest: int = 0
    cache_entry: str = ""
    load: JobLoad | None = None


class NoTokenizer(Frozen):
    """A job's data cannot be tokenised yet: its base's tokenizer cannot be loaded. The job has not failed."""

    kind: Literal["no_tokenizer"] = "no_tokenizer"
    job_id: str
    epoch: int
    message: str


class Attached(Frozen):
    """A job is resident; it goes on after `step` finished steps (0 at first).

    `other_numerics` when it has gone on under another `NumericsKey` at least once.
    """

    kind: Literal["attached"] = "attached"
    job_id: str
    epoch: int
    step: int
    total_steps: int
    trainable_parameters: int
    other_numerics: bool = False


class StepDone(Frozen):
    """One optimiser step is committed. `extra` holds a method's own figures (aux_loss, …); `routers`, at steps of which
    that is recorded (`spec.experts.is_recorded`), what each of its routers did.

    `seconds` of the device's time went into the job since it was attached or its last step or evaluation was told: its
    part, by tokens, of the packs it shared. The one figure that depends on who else is there. `work` is what its owner
    is charged for the step, see `mlora_sched.sched.work`.
    """

    kind: Literal["step"] = "step"
    job_id: str
    epoch: int
    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    target_tokens: int
    extra: dict[str, float] = Field(default_factory=dict)
    routers: tuple[RouterLoad, ...] = ()
    seconds: float = Field(default=0.0, ge=0)
    work: float = Field(default=0.0, ge=0)


class EvalDone(Frozen):
    """Held-out loss after `step` steps; `tokens` are target tokens, `accuracy` is of greedy next tokens.

    `seconds` and `work` as in `StepDone`.
    """

    kind: Literal["eval"] = "eval"
    job_id: str
    epoch: int
    step: int
    loss: float
    accuracy: float
    tokens: int
    seconds: float = Field(default=0.0, ge=0)
    work: float = Field(default=0.0, ge=0)


class CheckpointSaved(Frozen):
    """`checkpoints/step-NNNNNN` is complete on disk.

    `best` when it has the lowest held-out loss so far, `asked` when the job's spec asked for it. `kept` are the steps
    of all checkpoints that are there now.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    job_id: str
    epoch: int
    step: int
    best: bool
    asked: bool = True
    kept: tuple[int, ...]


class JobFinished(Frozen):
    """The adapter is exported to `adapter/` below the job's directory; `kept` are its checkpoints' steps.

    `stopped_by` when it was not the last planned step that ended it.
    """

    kind: Literal["finished"] = "finished"
    job_id: str
    epoch: int
    step: int
    kept: tuple[int, ...] = ()
    stopped_by: StoppedBy | None = None


class JobFailed(Frozen):
    """This job cannot go on; every other does."""

    kind: Literal["failed"] = "failed"
    job_id: str
    epoch: int
    code: ErrorCode
    message: str


class Detached(Frozen):
    """A job has been let go after `step` finished steps; `parked` when its state stays in the host's memory."""

    kind: Literal["detached"] = "detached"
    job_id: str
    epoch: int
    step: int
    parked: bool = False


class StepTime(Frozen):
    """How long a pack takes, as learned from those that ran: seconds for any pack, for a unit of work (as in
    `StepDone`), for a row of padding and for a job in it; `spread` is by what part (0.1: a tenth) packs are off as a
    rule, `packs` how many were seen."""

    pack: float = 0.0
    work: float = 0.0
    padding: float = 0.0
    job: float = 0.0
    spread: float = 0.0
    packs: int = 0


class SliceDone(Frozen):
    """A slice has ended. `tokens` are real tokens, `rows` all rows computed (real and padding).

    `step_time` is what is known by then of how long packs take, None before there is something to know; `lifted` what
    groups count as having paid by now that got all they asked for (`mlora_sched.sched.ledger`).
    """

    kind: Literal["slice_done"] = "slice_done"
    slice_id: int
    packs: int
    tokens: int
    rows: int
    seconds: float
    step_time: StepTime | None = None
    lifted: Mapping[str, float] = Field(default_factory=dict)


class AtWork(Frozen):
    """Whose code runs from now on: the jobs of a pack, one that is attached or let go, those that are being written.

    Said when that changes, so that a worker's death says who can have caused it. Nobody's: it waits for commands.
    """

    kind: Literal["at_work"] = "at_work"
    job_ids: tuple[str, ...]


class Beat(Frozen):
    """A sign of life, about once a second, from a thread of its own, also while the base is loaded.

    `turns` counts how often the main thread has looked for commands: between packs, and once a second when idle.
    """

    kind: Literal["beat"] = "beat"
    turns: int


class Note(Frozen):
    """Something an administrator should read (a pack restarted, a checkpoint skipped)."""

    kind: Literal["note"] = "note"
    message: str
    job_id: str | None = None


class Fatal(Frozen):
    """The worker cannot go on at all; `error` is a class name, of `mlora_sched.errors` unless it is a bug of ours."""

    kind: Literal["fatal"] = "fatal"
    error: str
    message: str


JobReport = Prepared | Attached | StepDone | EvalDone | CheckpointSaved | JobFinished | JobFailed | Detached
Report = Annotated[
    Ready
    | Prepared
    | NoTokenizer
    | Attached
    | StepDone
    | EvalDone
    | CheckpointSaved
    | JobFinished
    | JobFailed
    | Detached
    | SliceDone
    | MemoryReport
    | AtWork
    | Beat
    | Note
    | Fatal,
    Field(discriminator="kind"),
]

COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
REPORTS: TypeAdapter[Report] = TypeAdapter(Report)
