"""Who may ask and what they did: tokens, and the record of requests, as the API shows them. Nothing is checked here."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from mlora_sched.spec.common import MAX_DURATION_SECONDS, Frozen

USER_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}$"


class Via(StrEnum):
    """The door a request came through."""

    SOCKET = "socket"
    TCP = "tcp"


class TokenRequest(Frozen):
    """Make a token with which `user` may ask over TCP; it holds for `seconds`, None for until it is revoked."""

    user: str = Field(pattern=USER_PATTERN)
    admin: bool = Field(default=False, strict=True)
    note: str = Field(default="", max_length=200)
    seconds: float | None = Field(default=None, gt=0, le=MAX_DURATION_SECONDS, strict=True)


class TokenView(Frozen):
    """A token as administrators see it: never the secret. Times are seconds since the Unix epoch."""

    id: str
    user: str
    admin: bool
    note: str
    created: float
    expires: float | None
    revoked: float | None

    def holds(self, now: float) -> bool:
        """Whether it lets its holder in."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class NewToken(TokenView):
    """A token that was made just now, with its secret, which is not kept and shown this once."""

    token: str


class AuditEntry(Frozen):
    """One request that changed something, or was refused.

    Attributes:
        id: ascending in the order of what happened.
        time: seconds since the Unix epoch.
        caller: the user; `?` for somebody whom the daemon does not know.
        via: the door they came through.
        action: the verb that asks for it, such as `submit` or `token revoke`; `upload` for a file, `connect`
            for who was not let in.
        target: what it was about: a job's or token's id, or what was given for one.
        detail: what else is worth knowing, without secrets; of a refusal its reason.
        outcome: `ok`, or the error's class in `mlora_sched.errors`.
    """

    id: int
    time: float
    caller: str
    via: Via
    action: str
    target: str
    detail: str
    outcome: str


class AuditPage(Frozen):
    """Entries, newest first; ask again with `cursor` for older ones, None when there are none."""

    entries: tuple[AuditEntry, ...]
    cursor: int | None
