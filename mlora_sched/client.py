"""A typed, synchronous client of the daemon's native API over its Unix socket.

It uploads what a spec names, submits, watches and fetches adapters; errors of the daemon come back as the classes of
`mlora_sched.errors`. It prints nothing and knows no command line. Unpacking a fetched adapter is `archive`'s work.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from mlora_sched.archive import prepare_target, unpack
from mlora_sched.errors import (
    MloraError,
    NotFound,
    Refused,
    SpecError,
    Unreachable,
    UserError,
    WaitTimeout,
    from_name,
)
from mlora_sched.files import DISK, DRAFT
from mlora_sched.settings import MAX_SOCKET_PATH
from mlora_sched.spec.api import (
    BackupView,
    DaemonView,
    ErrorBody,
    EventsPage,
    EventView,
    GcRequest,
    GcView,
    JobDetail,
    JobView,
    MemoryView,
    MetricsLine,
    MetricsPage,
    ReleaseRequest,
    Submission,
)
from mlora_sched.spec.common import Frozen
from mlora_sched.spec.job import JobSpec, load_job, local_files
from mlora_sched.spec.state import JobState, Request, WorkerPhase

SOCKET_VARIABLE = "MLORA_SCHED_SOCKET"
_PREFIX = "/api/v1"
_BLOCK = 1 << 20
_REFERENCE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_JOB_LIST = TypeAdapter(list[JobView])
_Parsed = TypeVar("_Parsed")
_Record = TypeVar("_Record", bound=Frozen)


def default_socket(environment: Mapping[str, str] = os.environ) -> Path:
    """Where client and daemon meet when nobody says otherwise: in a directory that only this user can enter."""
    if named := environment.get(SOCKET_VARIABLE):
        return Path(named)
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "mlora_sched.sock"
    return Path.home() / ".mlora_sched" / "daemon.sock"


class Client:
    """Speaks to the daemon at `socket`; close it, or use it as a context manager.

    Args:
        socket: path of the daemon's Unix socket.
        timeout: seconds of silence after which a request is given up.
        transport: how requests travel; the Unix socket unless a test gives another.

    Every method raises the errors of `mlora_sched.errors` that the daemon answers with, and `Unreachable` when
    nobody answers.
    """

    def __init__(self, socket: Path, *, timeout: float = 60.0, transport: httpx.BaseTransport | None = None) -> None:
        self.socket = socket
        self._http = httpx.Client(
            # there is no TLS on this socket: verify=False only spares reading all certificate authorities
            transport=transport or httpx.HTTPTransport(uds=str(socket), verify=False),
            base_url="http://daemon",
            timeout=timeout,
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    # ------------------------------------------------------------------ submitting

    def submit(self, spec_path: Path) -> JobView:
        """Read a spec, upload the files it names and submit it.

        Raises:
            SpecError: the spec is malformed or names a missing file; nothing has been sent.
        """
        spec = load_job(spec_path)
        return self.submit_spec(spec, local_files(spec, spec_path.parent))

    def submit_spec(self, spec: JobSpec, files: Mapping[str, Path]) -> JobView:
        """Upload `files` (local path by the name the spec uses) and submit `spec`."""
        uploaded = {name: self.upload(path) for name, path in files.items()}
        body = Submission(spec=spec, files=uploaded)
        return self._record(JobView, "POST", "/jobs", json=body.model_dump(mode="json"))

    def upload(self, path: Path) -> str:
        """Give the daemon a file, unless this user gave it before; returns its sha256 in hex."""
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if not self._holds(digest):
                    size = file.seek(0, os.SEEK_END)
                    file.seek(0)
                    self._answer(
                        "PUT", f"/files/{digest}", content=_blocks(file), headers={"content-length": str(size)}
                    )
        except OSError as error:
            raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
        return digest

    def _holds(self, digest: str) -> bool:
        """Whether the daemon says that it has the file; where it cannot, sending it brings out why."""
        return self._send("HEAD", f"/files/{digest}").is_success

    # ------------------------------------------------------------------ looking

    def daemon(self) -> DaemonView:
        """Who answers, and how busy it is."""
        return self._record(DaemonView, "GET", "/daemon")

    def memory(self) -> MemoryView:
        """What holds the device's memory; of other people's jobs no more than bytes."""
        return self._record(MemoryView, "GET", "/daemon/memory")

    def jobs(self, states: Sequence[JobState] = (), *, everyone: bool = False) -> list[JobView]:
        """The caller's jobs, newest first; `everyone` asks for all jobs, which administrators may see."""
        params = {"state": [state.value for state in states], "everyone": everyone}
        answer = self._answer("GET", "/jobs", params=params)
        return self._parsed(_JOB_LIST.validate_json, answer)

    def get(self, ref: str) -> JobView:
        """A job by id, shortened id or unambiguous name."""
        return self._record(JobView, "GET", _job(ref))

    def detail(self, ref: str) -> JobDetail:
        """A job with its spec, checkpoints and newest events."""
        return self._record(JobDetail, "GET", _job(ref, "/detail"))

    def metrics(self, ref: str, after: int = 0) -> MetricsPage:
        """Metrics past the cursor `after`."""
        return self._record(MetricsPage, "GET", _job(ref, "/metrics"), params={"after": after})

    def events(self, ref: str, after: int = 0) -> EventsPage:
        """Events past the cursor `after`."""
        return self._record(EventsPage, "GET", _job(ref, "/events"), params={"after": after})

    def logs(self, ref: str, *, follow: bool = False, poll: float = 0.5) -> Iterator[EventView | MetricsLine]:
        """Events and metrics of a job as they come; with `follow`, until it ends. `poll` is in seconds."""
        seen_events = seen_metrics = 0
        while True:
            ended = self.get(ref).state.is_final  # asked first: what is read below is then complete
            events = self.events(ref, seen_events)
            metrics = self.metrics(ref, seen_metrics)
            yield from events.events
            yield from metrics.lines
            if events.cursor > seen_events or metrics.cursor > seen_metrics:
                seen_events, seen_metrics = events.cursor, metrics.cursor
            elif ended or not follow:
                return
            else:
                time.sleep(poll)

    def wait(self, refs: Sequence[str], *, timeout: float | None = None, poll: float = 0.5) -> list[JobView]:
        """Block until every job has ended; returns them in the order asked. `timeout` and `poll` are in seconds.

        Raises:
            WaitTimeout: time ran out; the jobs go on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        jobs = [self.get(ref) for ref in refs]
        while open_jobs := [job for job in jobs if not job.state.is_final]:
            left = poll if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"after {timeout:g} s still going on: {_named(open_jobs)}; they go on")
            time.sleep(min(poll, left))
            jobs = [job if job.state.is_final else self.get(job.id) for job in jobs]
        return jobs

    # ------------------------------------------------------------------ asking for something

    def request(self, ref: str, request: Request) -> JobView:
        """Ask for a pause, a resume or a cancel; the answer shows it as pending until the daemon has done it."""
        return self._record(JobView, "POST", _job(ref, f"/{request.value}"))

    def remove(self, ref: str) -> JobView:
        """Remove a job that has ended, with everything of it; returns it as it was."""
        return self._record(JobView, "DELETE", _job(ref))

    def release(self, seconds: float | None = None, *, poll: float = 0.5) -> DaemonView:
        """Have every job saved and the device let go, for `seconds` or until it is reclaimed; wait until it is so.

        Raises:
            Refused: the caller is no administrator, or somebody reclaimed the device or the time ran out meanwhile.
        """
        body = ReleaseRequest(seconds=seconds)
        asked = time.time()
        view = self._record(DaemonView, "POST", "/daemon/release", json=body.model_dump())
        while view.phase is not WorkerPhase.RELEASED:
            if view.release is None:
                if seconds is not None and time.time() >= asked + seconds:
                    raise Refused(
                        f"the time of the release, {seconds:g} s, ran out before every job was saved; ask for more"
                    )
                raise Refused("the release was taken back before it had happened")
            time.sleep(poll)
            view = self.daemon()
        return view

    def reclaim(self, *, poll: float = 0.5) -> DaemonView:
        """Have the device taken back; wait until the base is loaded, or is not because no job wants to train.

        Raises:
            Refused: the caller is no administrator, or somebody released the device meanwhile.
            MloraError: the base cannot be loaded.
        """
        view = self._record(DaemonView, "POST", "/daemon/reclaim")
        while view.phase in (WorkerPhase.RELEASED, WorkerPhase.LOADING):
            if view.release is not None:
                raise Refused(f"the device was released anew by {view.release.caller}")
            time.sleep(poll)
            view = self.daemon()
        if view.phase is WorkerPhase.FAILED:
            raise MloraError(f"the worker cannot serve: {view.worker}")
        return view

    def backup(self, target: Path) -> BackupView:
        """Write a consistent copy of the daemon's database to `target`, which only this user may read.

        Raises:
            Refused: `target` is there already, or the caller is no administrator.
            UserError: it cannot be written.
        """
        if target.exists():
            raise Refused(f"{target}: is there already; choose another file")
        try:
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=DRAFT) as draft:  # made with mode 0600
                self._download("/daemon/backup", {}, draft)
                draft.flush()
                DISK.sync(Path(draft.name))
                os.link(draft.name, target)  # unlike a rename it replaces nothing
            DISK.sync(target.parent)
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror}; choose another place") from None
        return BackupView(file=str(target), size=target.stat().st_size)

    def drain(self, *, wait: bool = False, poll: float = 0.5) -> DaemonView:
        """Have waiting jobs held back; with `wait`, return when no job is attached any more.

        Raises:
            Refused: the caller is no administrator, or somebody let the jobs start again meanwhile.
        """
        view = self._record(DaemonView, "POST", "/daemon/drain")
        while wait and (view.drain is None or view.drain.attached != 0):
            if view.drain is None:
                raise Refused("the drain was taken back before the last job had ended")
            time.sleep(poll)
            view = self.daemon()
        return view

    def undrain(self) -> DaemonView:
        """Have waiting jobs started again.

        Raises:
            Refused: the caller is no administrator.
        """
        return self._record(DaemonView, "POST", "/daemon/undrain")

    def collect_garbage(self, *, dry_run: bool = False) -> GcView:
        """Have what is of no more use removed, or learn what that is; takes as long as the daemon's disk needs.

        Raises:
            Refused: the caller is no administrator.
        """
        body = GcRequest(dry_run=dry_run)
        return self._record(GcView, "POST", "/daemon/gc", json=body.model_dump(), timeout=None)

    def pull(self, ref: str, folder: Path, checkpoint: str | None = None) -> list[Path]:
        """Fetch a job's adapter into `folder`, which must not exist or be empty; returns the files written.

        Args:
            checkpoint: a step, "best" or "last"; None for the finished adapter.
        """
        params = {} if checkpoint is None else {"checkpoint": checkpoint}
        prepare_target(folder)
        with tempfile.TemporaryFile(dir=folder.parent) as archive:
            self._download(_job(ref, "/adapter"), params, archive)
            archive.seek(0)
            return unpack(archive, folder)

    # ------------------------------------------------------------------ HTTP

    def _download(self, path: str, params: Mapping[str, str], target: IO[bytes]) -> None:
        try:
            with self._http.stream("GET", _PREFIX + path, params=params) as answer:
                if answer.is_error:
                    answer.read()
                    raise self._error(answer)
                for block in answer.iter_bytes(_BLOCK):
                    target.write(block)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _record(self, kind: type[_Record], method: str, path: str, **request: Any) -> _Record:
        return self._parsed(kind.model_validate_json, self._answer(method, path, **request))

    def _parsed(self, parse: Callable[[bytes], _Parsed], answer: httpx.Response) -> _Parsed:
        try:
            return parse(answer.content)
        except ValidationError:
            raise MloraError(
                f"the daemon at {self.socket} answers in a form this client does not know; install the same version"
            ) from None

    def _answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        answer = self._send(method, path, **request)
        if answer.is_error:
            raise self._error(answer)
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """What the daemon answers, be it an error."""
        try:
            return self._http.request(method, _PREFIX + path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _error(self, answer: httpx.Response) -> MloraError:
        try:
            body = ErrorBody.model_validate_json(answer.content)
        except ValidationError:
            return MloraError(f"the daemon at {self.socket} answers {answer.status_code} {answer.reason_phrase}")
        return from_name(body.error, body.message)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        length = len(os.fsencode(self.socket))
        if length > MAX_SOCKET_PATH:
            return Unreachable(f"{self.socket}: {length} bytes are too long for a socket's path ({MAX_SOCKET_PATH})")
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(f"the daemon at {self.socket} does not answer; is it overloaded or stopped?")
        if not isinstance(error, httpx.ConnectError):
            return Unreachable(f"the daemon at {self.socket} broke off in the middle of an answer ({error}); try again")
        return Unreachable(
            f"no daemon answers at {self.socket} ({error}); start one with `mlora-sched serve`, "
            f"or name its socket with --socket or {SOCKET_VARIABLE}"
        )


def _job(ref: str, rest: str = "") -> str:
    """The path of a job; what cannot be an id or a name is not sent, lest it become another path."""
    if not _REFERENCE.match(ref):
        raise NotFound(f"{ref!r}: no job has such an id or name; `mlora-sched ls` lists yours")
    return f"/jobs/{quote(ref, safe='')}{rest}"


def _named(jobs: Sequence[JobView]) -> str:
    return ", ".join(f"{job.name} ({job.id}, {job.shown_state})" for job in jobs)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block
