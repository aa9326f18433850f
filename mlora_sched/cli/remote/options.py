"""What every remote verb shares: how the daemon is found and how a client to it is made. No verb lives here."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mlora_sched.cli.output import print_job_line, print_json
from mlora_sched.client import HOST_VARIABLE, SOCKET_VARIABLE, Client, HttpTarget, SshTarget, Where, default_where
from mlora_sched.client.sweeping import is_sweep_id
from mlora_sched.errors import NotFound, UserError
from mlora_sched.memory.sizes import parse_size
from mlora_sched.spec.api import JobView
from mlora_sched.spec.duration import parse_duration
from mlora_sched.spec.state import JobState, Request

if TYPE_CHECKING:
    from mlora_sched.spec.sweep_view import SweepDetail

_Function = TypeVar("_Function", bound=Callable[..., Any])

EXIT_JOB_ENDED_BADLY = 1
"""A job that was waited for failed or was cancelled."""
EXIT_TERMINATED = 128 + signal.SIGTERM
"""What a shell says of a process that SIGTERM has ended."""


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A value that a function reads; what it raises is a mistake in the command line."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, read unless it was before."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UserError as error:
            self.fail(error.message, param, ctx)


SIZE = Parsed("size", parse_size)
"""Bytes, written as `20GiB`."""
DURATION = Parsed("duration", parse_duration)
"""Seconds, written as `15m`."""

json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")


def _place() -> Where:
    """Where the daemon is. ssh is to end with the verb that needs it, however that ends: SIGTERM unwinds it, too."""
    where = default_where()
    if isinstance(where, SshTarget):
        signal.signal(signal.SIGTERM, _terminated)
    return where


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


class _Socket(click.Path):
    """The path of a socket; where the environment names a daemon elsewhere, that is left as it is.

    Whether it may be used is not looked at here: the client says why not, and what helps.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A path, or the address."""
        return value if isinstance(value, SshTarget | HttpTarget) else super().convert(value, param, ctx)


def daemon_options(verb: _Function) -> _Function:
    """Add `--socket` (a `Where`) and `--json` (`as_json`) to a verb."""
    socket = click.option(
        "--socket",
        type=_Socket(path_type=Path, readable=False),
        default=_place,
        show_default="the user's own",
        help=f"Socket of the daemon; else {HOST_VARIABLE} or {SOCKET_VARIABLE}.",
    )
    return json_option(socket(verb))


def outcome(jobs: Sequence[JobView]) -> int:
    """Exit code for jobs that have ended: 0 when every one succeeded."""
    return 0 if all(job.state is JobState.SUCCEEDED for job in jobs) else EXIT_JOB_ENDED_BADLY


def send_request(ref: str, request: Request, socket: Where, *, as_json: bool) -> None:
    """Ask for a pause, resume or cancel of a job, or of all trials of a sweep, and print how it stands now."""
    with Client(socket) as client:
        asked = _asked(client, ref, request)
    if as_json:
        print_json(asked)
    elif isinstance(asked, JobView):
        print_job_line(asked)
    else:
        from mlora_sched.cli.output import print_sweep_line

        print_sweep_line(asked.sweep)


def _asked(client: Client, ref: str, request: Request) -> JobView | SweepDetail:
    """A name is a sweep's where no job has it."""
    if is_sweep_id(ref):
        return client.request_of_sweep(ref, request)
    try:
        return client.request(ref, request)
    except NotFound as missing:
        try:
            return client.request_of_sweep(ref, request)
        except NotFound:
            raise missing from None
