"""`admin quota`: what users may use of the daemon, and what they use. For administrators."""

from __future__ import annotations

import contextlib
import pwd
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.text import Text

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import daemon_options
from mlora_sched.cli.table import print_table
from mlora_sched.client import Client, Where
from mlora_sched.errors import Refused, UserError
from mlora_sched.memory.sizes import parse_size
from mlora_sched.quotas import amount
from mlora_sched.spec.query import JobQuery
from mlora_sched.spec.quota import MAX_LIMIT, QuotaChange, QuotaKind, QuotaLine, QuotaPage, QuotaView

_COUNT = re.compile(r"^(\d{1,19})([kMG]?)$")
_TIMES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_NO_LIMIT = "none"


class _Word(StrEnum):
    """What may stand in the place of a limit."""

    NONE = _NO_LIMIT
    DEFAULT = "default"


class _Limit(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A limit of a kind: a number or a size, or a `_Word`."""

    name = "limit"

    def __init__(self, kind: QuotaKind) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | _Word:
        """The limit, read unless it was before."""
        if not isinstance(value, str) or isinstance(value, _Word):
            found: int | _Word = value  # click gives what this has returned
            return found
        if value in list(_Word):
            return _Word(value)
        try:
            limit = parse_size(value) if self._kind.in_bytes else _parse_count(value)
        except UserError as error:
            self.fail(f"{error.message}, or `none`, or `default`", param, ctx)
        if limit > MAX_LIMIT:
            self.fail(f"{value!r} is more than can be counted; write `none` for no limit", param, ctx)
        return limit


def _parse_count(text: str) -> int:
    match = _COUNT.match(text)
    if match is None:
        raise UserError(f"{text!r} is no number; write digits, with k, M or G where you like, such as 20 or 1M")
    return int(match[1]) * _TIMES[match[2]]


_ABOUT = {
    QuotaKind.LIVE_JOBS: "Jobs that have not ended.",
    QuotaKind.QUEUED_JOBS: "Jobs that are being prepared or wait to be attached.",
    QuotaKind.DEVICE: "What attached jobs hold of the device, such as 4GiB.",
    QuotaKind.TOKENS_PER_DAY: "Tokens trained from 00:00 UTC on, such as 1M.",
    QuotaKind.SPOOL: "Uploaded files.",
    QuotaKind.ARTIFACTS: "Adapters and checkpoints on disk.",
    QuotaKind.DATA: "The files of any one job.",
}


def _limit_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Add `--live-jobs` and so on, a keyword for each kind of quota."""
    for kind in reversed(QuotaKind):
        flag = f"--{kind.value.replace('_', '-')}"
        verb = click.option(flag, kind.value, type=_Limit(kind), metavar="LIMIT", help=_ABOUT[kind])(verb)
    return verb


@click.group()
def quota() -> None:
    """Bound what users may use."""


@quota.command()
@click.argument("user", required=False, metavar="[USER]")
@daemon_options
def show(user: str | None, socket: Where, as_json: bool) -> None:
    """Show what users have used of what they may: everybody, or USER; you alone where you are no administrator."""
    with Client(socket) as client:
        try:
            page: QuotaPage | QuotaView = client.quotas(user)
        except Refused:
            if user is not None:
                raise
            page = client.quota()
    if as_json:
        print_json(page)
    elif isinstance(page, QuotaView):
        print_quota(page)
    elif user is None:
        _print_users(page)
    else:
        print_quota(page.users[0])


@quota.command("set")
@click.argument("user", required=False, metavar="[USER]")
@click.option("--default", "by_default", is_flag=True, help="For everybody of whom nothing else is set.")
@_limit_options
@daemon_options
def set_(user: str | None, by_default: bool, socket: Where, as_json: bool, **limits: int | _Word | None) -> None:
    """Set limits of USER, or by default; those that are not named stay as they are.

    A LIMIT is a number or a size, `none` for no limit, or for a user `default`.
    """
    change = _change(user, by_default, {QuotaKind(name): limit for name, limit in limits.items() if limit is not None})
    with Client(socket) as client:
        page = client.set_quota(change)
        unheard = user is not None and isinstance(socket, Path) and not _is_known(user, client)
    if as_json:
        print_json(page)
    elif user is None:
        _print_users(page)
    else:
        print_quota(page.users[0])
    if unheard and not as_json:
        told = "neither this machine nor the daemon knows such a user; the quota is set all the same"
        click.echo(f"{user}: {told}", err=True)


def _is_known(user: str, client: Client) -> bool:
    """Whether this machine, which the daemon is on, has a Unix user of that name, or the daemon a job or a token."""
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    if any(one.user == user for one in client.tokens()):
        return True
    return bool(client.jobs_page(JobQuery(user=user, limit=1), everyone=True).jobs)


def _change(user: str | None, by_default: bool, limits: dict[QuotaKind, int | _Word]) -> QuotaChange:
    if bool(user) is by_default:
        raise click.UsageError("whose quota? name a USER, or --default for what holds for everybody else")
    if not limits:
        raise click.UsageError("no limit is named, such as --live-jobs 20")
    inherit = tuple(kind for kind, limit in limits.items() if limit is _Word.DEFAULT)
    if by_default and inherit:
        raise click.UsageError("--default has no default of its own; write `none` to lift a limit")
    numbers = {kind: limit if isinstance(limit, int) else None for kind, limit in limits.items() if kind not in inherit}
    try:
        return QuotaChange(user=user or None, limits=numbers, inherit=inherit)
    except ValidationError as error:
        raise click.UsageError(f"{user}: {error.errors()[0]['msg']}") from None


def print_quota(view: QuotaView) -> None:
    """One user's quotas, a row for each."""
    print_table(["QUOTA", "USED", "LIMIT", "SET"], [_cells(line) for line in view.lines], numbers=["USED", "LIMIT"])


def _cells(line: QuotaLine) -> list[Text]:
    used = "" if line.used is None else amount(line.kind, line.used)
    source = "" if line.limit is None and not line.own else "for the user" if line.own else "by default"
    return [Text(line.kind.words), Text(used), Text(_limit(line.kind, line.limit)), Text(source)]


def _print_users(page: QuotaPage) -> None:
    """A row for each user, `used/limit`; the first says what holds by default."""
    rows = [[Text("(default)"), *(Text(_limit(kind, page.default.limit(kind))) for kind in QuotaKind)]]
    for view in page.users:
        rows.append([Text(view.user), *(_standing(line) for line in view.lines)])
    titles = ["USER", *(kind.words.upper() for kind in QuotaKind)]
    print_table(titles, rows, numbers=titles[1:])


def _standing(line: QuotaLine) -> Text:
    limit = _limit(line.kind, line.limit)
    full = line.limit is not None and line.used is not None and line.used >= line.limit
    return Text(limit if line.used is None else f"{amount(line.kind, line.used)}/{limit}", style="red" if full else "")


def _limit(kind: QuotaKind, limit: int | None) -> str:
    return _NO_LIMIT if limit is None else amount(kind, limit)
