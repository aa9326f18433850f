"""What a daemon is started with: its bases, its state directory and how it runs its worker.

Nothing of one job: that is `mlora_sched.spec.job`. Nothing here reads the environment; the CLI fills the record in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from mlora_sched.errors import UserError
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.numerics import Quantize

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_LISTEN = re.compile(r"^(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})$")


class BaseRef(Frozen):
    """A base model the daemon serves.

    Attributes:
        name: what job specs call it.
        location: an absolute directory, or a hub repository with an optional "@revision".
    """

    name: str
    location: str


class BaseSource(NamedTuple):
    """What transformers' `from_pretrained` needs to load a base.

    Attributes:
        place: a directory or a file, or the name of a hub repository.
        options: keyword arguments that go with it.
    """

    place: str
    options: Mapping[str, Any]


def source_of(location: str) -> BaseSource:
    """Read a directory or a config's own file, or a hub repository with an optional "@revision"."""
    path = Path(location).expanduser()
    if path.is_dir() or path.is_file():
        return BaseSource(str(path), {"local_files_only": True})
    repository, _, revision = location.partition("@")
    return BaseSource(repository, {"revision": revision} if revision else {})


def parse_weights(texts: Iterable[str]) -> dict[str, float]:
    """What `--weight USER=WEIGHT` says, given once for each user.

    Raises:
        UserError: one is not of that form, its weight is no number above 0, or a user is there twice.
    """
    weights: dict[str, float] = {}
    for text in texts:
        user, weight = _parse_weight(text)
        if user in weights:
            raise UserError(f"--weight {text}: {user} has the weight {weights[user]:g} already; keep one")
        weights[user] = weight
    return weights


def _parse_weight(text: str) -> tuple[str, float]:
    """Read `USER=WEIGHT`.

    Raises:
        UserError: it is not of that form, or the weight is no number above 0.
    """
    user, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not user or not 0 < weight < math.inf:
        raise UserError(f"--weight {text}: write USER=WEIGHT, with a number above 0, such as ann=2")
    return user, weight


def parse_base(text: str) -> BaseRef:
    """Read `NAME=DIR`, `NAME=REPO[@REV]`, or a plain `DIR` or `REPO` which keeps its last part as the name.

    Raises:
        UserError: the name is unusable, or a path was written that is no directory.
    """
    named = "=" in text and not Path(text).expanduser().is_dir()
    name, location = text.split("=", 1) if named else ("", text)
    path = Path(location).expanduser()
    if location and path.is_dir():
        location = str(path.resolve())
    elif not location or location.startswith(("/", ".", "~")):
        raise UserError(f"--base {text}: {location or 'nothing'} is no directory; write NAME=DIR or NAME=REPO[@REV]")
    if not named:
        name = Path(source_of(location).place).name
    if not _NAME.match(name):
        raise UserError(
            f"--base {text}: {name!r} cannot be a base's name (letters, digits, '.', '_', '-'); write NAME=DIR"
        )
    return BaseRef(name=name, location=location)


class Listen(Frozen):
    """A TCP address to answer at; `host` is an address or a name of this machine, port 0 any that is free."""

    host: str
    port: int = Field(ge=0, le=65535)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """Read `HOST:PORT`, with an IPv6 address in brackets.

    Raises:
        UserError: it is not of that form.
    """
    match = _LISTEN.match(text)
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise UserError(f"--listen {text}: write HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return Listen(host=match["v6"] or match["host"], port=int(match["port"]))


class DaemonSettings(Frozen):
    """How one daemon runs.

    Attributes:
        state_dir: where the database, the spool, the cache and every job's directory live; the daemon's own.
        socket: the Unix socket it answers at; `mlora.sock` in the state directory unless told otherwise.
        bases: the bases it serves, at least one, with distinct names; the worker holds one at a time.
        base_slice: seconds after which a base that has work makes room for another that has, too.
        device, dtype, quantize, threads, pack_tokens, pack_seconds, checkpoint_activations, compile: as in
            `mlora_sched.spec.worker_config.WorkerConfig`.
        memory_budget, memory_margin, host_memory: likewise.
        checkpoint_seconds, checkpoint_steps: likewise.
        disk_reserve: bytes of the state directory's disk that are kept free, see `daemon.disk`; None for its default.
        worker_silence: seconds without a sign of life after which a worker or preparer is ended.
        worker_hang: seconds after which a worker is ended that shows signs of life and does not get on.
        idle_unload: seconds without a job that wants to train after which the worker is ended; None for never.
        drain_seconds: how long jobs may take to save their state, without progress, when the daemon stops or lets its
            device go.
        keep_artifacts: seconds after its end when a job's adapter, checkpoints and uploads go; None for never.
        keep_uploads: seconds without use after which uploads and cached tokens go that no live job needs.
        max_resident_jobs: most jobs that are attached to the worker at once.
        slice_seconds: longest time between two decisions of the scheduler.
        policy: name of the scheduling policy, of `mlora_sched.sched.policies`.
        min_slice: seconds for which an attached job keeps its place at least.
        weights: of users, 1 for those who are missing: who has twice the weight gets twice the work.
        socket_group: the Unix group whose members may connect to the socket; None for the daemon's user alone.
        admin_group: the Unix group whose members are administrators beside root and the daemon's user.
        listen: where it answers over TCP, to tokens; None for nowhere.
        allow_hosts: names by which it may be asked over TCP, beside the address and name it listens at.
    """

    state_dir: Path
    socket: Path
    bases: tuple[BaseRef, ...] = Field(min_length=1)
    base_slice: float = Field(default=600.0, gt=0)
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Quantize = "none"
    threads: int = Field(default=0, ge=0)
    pack_tokens: int = Field(default=2048, ge=64)
    pack_seconds: float = Field(default=1.0, gt=0)
    checkpoint_activations: bool = False
    compile: bool = False
    memory_budget: int | None = Field(default=None, ge=1)
    memory_margin: float = Field(default=0.05, ge=0, lt=1)
    host_memory: int | None = Field(default=None, ge=0)
    checkpoint_seconds: float | None = Field(default=60.0, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    disk_reserve: int | None = Field(default=None, ge=0)
    worker_silence: float = Field(default=60.0, ge=5)
    worker_hang: float = Field(default=900.0, ge=5)
    idle_unload: float | None = Field(default=None, gt=0)
    drain_seconds: float = Field(default=30.0, gt=0)
    keep_artifacts: float | None = Field(default=None, gt=0)
    keep_uploads: float = Field(default=7 * 86_400.0, ge=60)
    max_resident_jobs: int = Field(default=64, ge=1)
    slice_seconds: float = Field(default=1.0, gt=0)
    policy: str = "fair"
    min_slice: float = Field(default=10.0, ge=0)
    weights: Mapping[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    socket_group: str | None = None
    admin_group: str | None = None
    listen: Listen | None = None
    allow_hosts: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _socket_in_state_dir(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("socket") is None and values.get("state_dir") is not None:
            return {**values, "socket": Path(values["state_dir"]) / "mlora.sock"}
        return values

    @field_validator("bases")
    @classmethod
    def _distinct_names(cls, bases: tuple[BaseRef, ...]) -> tuple[BaseRef, ...]:
        names = [base.name for base in bases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two bases are called {name}; write --base NAME=DIR with different names")
        return bases

    def location(self, base: str) -> str:
        """Where one of the bases lies, by its name."""
        return next(each.location for each in self.bases if each.name == base)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.state_dir / "mlora.sqlite"

    @property
    def spool_dir(self) -> Path:
        """Uploaded files, each named by its sha256."""
        return self.state_dir / "spool"

    @property
    def cache_dir(self) -> Path:
        """Tokenised data, by content; may be deleted while no daemon runs."""
        return self.state_dir / "cache"

    @property
    def log_dir(self) -> Path:
        """What the worker processes print."""
        return self.state_dir / "logs"

    @property
    def jobs_dir(self) -> Path:
        """The directories of all jobs."""
        return self.state_dir / "jobs"

    def job_dir(self, job_id: str) -> Path:
        """One job's adapter, checkpoints and logs."""
        return self.jobs_dir / job_id
