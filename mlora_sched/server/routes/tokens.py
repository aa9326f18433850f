"""Tokens over HTTP, for administrators: make one, list them, revoke one. What a token is good for, `door` says."""

from __future__ import annotations

import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Path, status

from mlora_sched.server.auth import CallerOf
from mlora_sched.server.context import ContextOf
from mlora_sched.server.records import JsonRoute
from mlora_sched.spec.access import NewToken, TokenRequest, TokenView
from mlora_sched.spec.redact import redact

router = APIRouter(prefix="/tokens", tags=["tokens"], route_class=JsonRoute)

PREFIX = "mlora_"
"""Of every secret, so that what scans for leaked ones can find it."""
_SECRET_BYTES = 32


@router.post("", status_code=status.HTTP_201_CREATED)
def create_token(body: TokenRequest, context: ContextOf, caller: CallerOf) -> NewToken:
    """Make a token; its secret is in this answer and nowhere else."""
    caller.must_be_admin("make tokens")
    now = time.time()
    token = TokenView(
        id=f"t-{secrets.token_hex(8)}",
        user=body.user,
        admin=body.admin,
        note=redact(body.note),
        created=now,
        expires=None if body.seconds is None else now + body.seconds,
        revoked=None,
    )
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    context.store.add_token(token, secret)
    context.note.target, context.note.detail = token.id, f"for {body.user}{', an administrator' if body.admin else ''}"
    return NewToken(**dict(token), token=secret)


@router.get("")
def list_tokens(context: ContextOf, caller: CallerOf) -> list[TokenView]:
    """All tokens, oldest first, without their secrets."""
    caller.must_be_admin("list tokens")
    return list(context.store.tokens())


@router.delete("/{token_id}")
def revoke_token(
    token_id: Annotated[str, Path(pattern=r"^t-[0-9a-f]{16}$")], context: ContextOf, caller: CallerOf
) -> TokenView:
    """Let a token hold no more, from the next request on."""
    caller.must_be_admin("revoke tokens")
    return context.store.revoke_token(token_id, time.time())
