"""What administrators ask of a daemon: its device, its queue, its disk. The base of `Client`."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pydantic import ValidationError

from mlora_sched.client.connection import Connection
from mlora_sched.errors import MloraError, NotFound, Refused, UserError, shown
from mlora_sched.files import DISK, DRAFT
from mlora_sched.spec.daemon import DaemonView
from mlora_sched.spec.state import WorkerPhase

if TYPE_CHECKING:
    from mlora_sched.spec.access import AuditEntry, NewToken, TokenRequest, TokenView
    from mlora_sched.spec.quota import QuotaChange, QuotaPage, QuotaView
    from mlora_sched.spec.upkeep import BackupView, GcView


_AUDIT_PAGE = 500
_TOKEN_ID = re.compile(r"^t-[0-9a-f]{16}$")


class Administration(Connection):
    """Calls that the daemon answers to administrators only, and how it stands."""

    def daemon(self) -> DaemonView:
        """Who answers, and how busy it is."""
        return self._record(DaemonView, "GET", "/daemon")

    def release(self, seconds: float | None = None, *, poll: float = 0.5) -> DaemonView:
        """Have every job saved and the device let go, for `seconds` or until it is reclaimed; wait until it is so.

        Raises:
            Refused: the caller is no administrator, or somebody reclaimed the device or the time ran out meanwhile.
        """
        from mlora_sched.spec.daemon import ReleaseRequest

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
        from mlora_sched.spec.upkeep import BackupView

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

    def trace(self, target: IO[bytes], *, anonymous: bool = False) -> None:
        """Write what has been scheduled so far into a file, as `simulate` reads it.

        Raises:
            Refused: the caller is no administrator, or there is nothing to export yet.
        """
        self._download("/daemon/trace", {"anonymous": "true"} if anonymous else {}, target)

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
        from mlora_sched.spec.upkeep import GcRequest, GcView

        body = GcRequest(dry_run=dry_run)
        return self._record(GcView, "POST", "/daemon/gc", json=body.model_dump(), timeout=None)

    def quota(self) -> QuotaView:
        """The caller's own quotas, and what of them is used."""
        from mlora_sched.spec.quota import QuotaView

        return self._record(QuotaView, "GET", "/quota")

    def quotas(self, user: str | None = None) -> QuotaPage:
        """What holds by default, and how one user stands, or everybody who uses something or has a quota.

        Raises:
            Refused: the caller is no administrator.
        """
        from mlora_sched.spec.quota import QuotaPage

        params = {} if user is None else {"user": user}
        return self._record(QuotaPage, "GET", "/quotas", params=params)

    def set_quota(self, change: QuotaChange) -> QuotaPage:
        """Set or lift limits; answers with what holds by default and how the user stands now.

        Raises:
            Refused: the caller is no administrator.
        """
        from mlora_sched.spec.quota import QuotaPage

        return self._record(QuotaPage, "POST", "/quotas", json=change.model_dump(mode="json"))

    def create_token(self, request: TokenRequest) -> NewToken:
        """Have a token made; the answer holds the secret, which the daemon does not keep.

        Raises:
            Refused: the caller is no administrator.
        """
        from mlora_sched.spec.access import NewToken

        return self._record(NewToken, "POST", "/tokens", json=request.model_dump())

    def tokens(self) -> tuple[TokenView, ...]:
        """All tokens, oldest first, without their secrets.

        Raises:
            Refused: the caller is no administrator.
        """

        from pydantic import TypeAdapter

        from mlora_sched.spec.access import TokenView

        return self._parsed(TypeAdapter(tuple[TokenView, ...]).validate_json, self._answer("GET", "/tokens"))

    def revoke_token(self, token_id: str) -> TokenView:
        """Have a token hold no more.

        Raises:
            NotFound: there is no such token.
            Refused: the caller is no administrator, or it was revoked before.
        """
        from mlora_sched.spec.access import TokenView

        if not _TOKEN_ID.match(token_id):
            raise NotFound(f"{token_id!r}: no token has such an id; `mlora-sched admin token ls` lists them")
        return self._record(TokenView, "DELETE", f"/tokens/{token_id}")

    def audit(self, *, user: str | None = None, since: float | None = None) -> Iterator[AuditEntry]:
        """Who asked for what, newest first, page after page; of one user and since a time (Unix seconds) if given.

        Raises:
            Refused: the caller is no administrator.
        """
        from mlora_sched.spec.access import AuditPage

        params = {name: value for name, value in (("user", user), ("since", since)) if value is not None}
        before: dict[str, int] = {}
        while True:
            page = self._record(AuditPage, "GET", "/audit", params={**params, **before, "limit": _AUDIT_PAGE})
            yield from page.entries
            if page.cursor is None:
                return
            before = {"before": page.cursor}


def token_request(user: str, *, admin: bool = False, note: str = "", seconds: float | None = None) -> TokenRequest:
    """What to ask for a token with.

    Raises:
        UserError: the user or the note cannot be one.
    """
    from mlora_sched.spec.access import USER_PATTERN, TokenRequest
    from mlora_sched.spec.explain import explain

    if not re.fullmatch(USER_PATTERN, user):
        raise UserError(
            f"user: {shown(user)}: write letters, digits, and . _ - @ behind the first of them, 64 characters at most"
        )
    raw = {"user": user, "admin": admin, "note": note, "seconds": seconds}
    try:
        return TokenRequest.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, raw, TokenRequest, "token")) from None
