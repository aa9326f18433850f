"""Who is let in: every request becomes that of a `Caller` here, or is answered here. What a caller may do, routes say.

Over the Unix socket the kernel says who asks, and tokens are not looked at; over TCP the token does.
"""

from __future__ import annotations

import time
from dataclasses import replace

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlora_sched.errors import MloraError, TooManyAttempts, Unauthorized
from mlora_sched.server.answers import answer_of
from mlora_sched.server.attempts import Attempts
from mlora_sched.server.auth import Caller, Names, Peer, Remote, Unknown
from mlora_sched.server.groups import AdminGroup
from mlora_sched.server.tcp import Hosts
from mlora_sched.server.turns import Turns
from mlora_sched.spec.access import Via
from mlora_sched.store.jobs import JobStore
from mlora_sched.store.tokens import hash_of

_HOW = "ask an administrator for one (`mlora-sched admin token create USER`) and put it into MLORA_SCHED_TOKEN"


class Door:
    """ASGI middleware: puts the `Caller` of a request into the scope's state, in the place of its `Peer`.

    Those who are no administrators wait inside for their turn: one user's requests take a share of the threads only.

    Args:
        app: what answers those who are let in.
        store: where tokens are.
        admins: who is an administrator beside those the kernel's word makes one.
        hosts: the names by which the daemon may be asked over TCP.
        attempts: what counts those who are not let in.
    """

    def __init__(self, app: ASGIApp, store: JobStore, admins: AdminGroup, hosts: Hosts, attempts: Attempts) -> None:
        self._app = app
        self._store = store
        self._admins = admins
        self._hosts = hosts
        self._attempts = attempts
        self._turns = Turns()
        self._names = Names()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            try:
                caller = scope["state"]["caller"] = await self._admit(scope)
            except MloraError as error:
                answer = answer_of(self._counted(error, scope["state"]["caller"]))
                answer.headers["connection"] = "close"  # rather than read what else a stranger has to say
                await answer(scope, receive, send)
                return
            if not caller.is_admin:
                async with self._turns.turn((caller.user, _is_transfer(scope))):
                    await self._app(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _counted(self, error: MloraError, peer: Peer) -> MloraError:
        """The error, or that there have been too many of its kind."""
        if not isinstance(error, Unauthorized):
            return error
        address = peer.address if isinstance(peer, Remote) else "the socket"
        wait = self._attempts.failed(address)
        if not wait:
            return error
        return TooManyAttempts(f"nobody known has asked from {address} too often; wait {wait:.0f} s, then {_HOW}")

    async def _admit(self, scope: Scope) -> Caller:
        peer = scope["state"]["caller"]
        if isinstance(peer, Remote):
            headers = Headers(scope=scope)
            self._hosts.check(headers, scope["server"])
            holder = await self._holder(headers)
            scope["state"]["known"]()
            return holder
        if isinstance(peer, Unknown):
            raise Unauthorized(peer.why)
        assert isinstance(peer, Caller)
        caller = self._names.known(peer)
        if caller.is_admin or caller.is_nameless:  # digits are nobody's name: a group knows people by name
            return caller
        return replace(caller, is_admin=await self._admins.has(caller.user))

    async def _holder(self, headers: Headers) -> Caller:
        """Whose token it is. It is found by its hash, so that nothing can be learnt from how long that takes."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Unauthorized(f"no token: over TCP each request needs one; {_HOW}")
        now = time.time()
        found = await run_in_threadpool(self._store.token_of, hash_of(secret.strip()))
        if found is not None and found.holds(now):
            return Caller(found.user, found.admin, Via.TCP)
        if found is None:
            raise Unauthorized(f"the daemon knows no such token; {_HOW}")
        why = "was revoked" if found.revoked is not None else "has expired"
        raise Unauthorized(f"token {found.id} of {found.user} {why}; {_HOW}")


def _is_transfer(scope: Scope) -> bool:
    """Whether a request takes as long as its client's line does; such ones have a share of their own."""
    return scope["method"] == "PUT" or bool(scope["path"].endswith("/adapter"))
