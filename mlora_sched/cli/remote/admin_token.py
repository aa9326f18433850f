"""`admin token`: make, list and revoke the tokens with which people ask over TCP."""

from __future__ import annotations

import time

import click
from rich.text import Text

from mlora_sched.cli.output import print_json
from mlora_sched.cli.remote.options import DURATION, daemon_options
from mlora_sched.cli.style import say
from mlora_sched.cli.table import print_table
from mlora_sched.client import Client, Where
from mlora_sched.client.administration import token_request
from mlora_sched.spec.access import TokenView


@click.group()
def token() -> None:
    """Tokens, with which people ask over TCP (`serve --listen`)."""


@token.command()
@click.argument("user")
@click.option("--admin", is_flag=True, help="Whoever has it is an administrator.")
@click.option("--note", default="", metavar="TEXT", help="What it is for.")
@click.option("--expires", "seconds", type=DURATION, help="How long it holds, such as 30d; until revoked if left out.")
@daemon_options
def create(user: str, admin: bool, note: str, seconds: float | None, socket: Where, as_json: bool) -> None:
    """Make a token for USER, whose jobs are those of the Unix user of that name. It is shown this once."""
    request = token_request(user, admin=admin, note=note, seconds=seconds)
    with Client(socket) as client:
        made = client.create_token(request)
    if as_json:
        print_json(made)
        return
    click.echo(made.token)
    click.echo(
        f"token {made.id} of {made.user}, {_until(made)}. It is not shown again: put it into MLORA_SCHED_TOKEN, or "
        "into ~/.config/mlora_sched/token with mode 0600",
        err=True,
    )


@token.command()
@daemon_options
def ls(socket: Where, as_json: bool) -> None:
    """List all tokens, without their secrets."""
    with Client(socket) as client:
        tokens = client.tokens()
    if as_json:
        print_json(tokens)
        return
    print_table(["ID", "USER", "ADMIN", "HOLDS", "MADE", "NOTE"], [_cells(one) for one in tokens])


@token.command()
@click.argument("token_id", metavar="ID")
@daemon_options
def revoke(token_id: str, socket: Where, as_json: bool) -> None:
    """Let a token hold no more, from the next request on."""
    with Client(socket) as client:
        revoked = client.revoke_token(token_id)
    if as_json:
        print_json(revoked)
    else:
        say(f"token {revoked.id} of {revoked.user}: {_until(revoked)}")


def _cells(one: TokenView) -> list[Text]:
    made = time.strftime("%Y-%m-%d", time.localtime(one.created))
    return [Text(text) for text in (one.id, one.user, "yes" if one.admin else "", _until(one), made, one.note)]


def _until(one: TokenView) -> str:
    if one.revoked is not None:
        return "revoked"
    if one.expires is None:
        return "until revoked"
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.expires))
    return f"until {day}" if one.holds(time.time()) else f"expired {day}"
