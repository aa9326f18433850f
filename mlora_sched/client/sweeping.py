"""Sweeps: handing one in, looking at its trials, steering all of them at once. The base of `Client`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mlora_sched.client.submitting import Submitting, check_key, check_reference
from mlora_sched.spec.state import JobState, Request

if TYPE_CHECKING:
    from mlora_sched.spec.api import SweepView
    from mlora_sched.spec.sweep import Sweep
    from mlora_sched.spec.sweep_view import SweepDetail, SweepSubmitted, TrialView

_SWEEP_ID = re.compile(r"s-[0-9a-f]{4,32}")


class Sweeping(Submitting):
    """Sweeps."""

    def hand_in_sweep(
        self,
        document: Sweep,
        files: Mapping[str, Path],
        *,
        key: str | None = None,
        after: Sequence[str] = (),
        retries: int = 0,
    ) -> SweepSubmitted:
        """Upload what its trials name and submit a sweep: all of its trials, or none. See `hand_in`."""
        from mlora_sched.spec.sweep_view import SweepSubmission, SweepSubmitted

        check_key(key)
        for ref in after:
            check_reference(ref)
        by_path = {path: self.upload(path) for path in dict.fromkeys(files.values())}
        uploaded = {name: by_path[path] for name, path in files.items()}
        key = key or f"once-{secrets.token_hex(16)}"
        body = SweepSubmission(document=document, files=uploaded, key=key, after=tuple(after), retries=retries)
        # what was not written is not sent: a value of a trial may change which fields there are
        plain = body.model_dump(mode="json", exclude_unset=True)
        return self._record(SweepSubmitted, "POST", "/sweeps", json=plain, repeatable=True)

    def sweeps(self, *, everyone: bool = False, limit: int | None = None) -> list[SweepView]:
        """The caller's sweeps, newest first; `everyone` asks for all, which administrators may see."""
        from mlora_sched.spec.sweep_view import SweepsPage

        params: dict[str, object] = {"everyone": everyone} if limit is None else {"everyone": everyone, "limit": limit}
        return list(self._record(SweepsPage, "GET", "/sweeps", params=params).sweeps)

    def sweep(self, ref: str) -> SweepDetail:
        """A sweep by id, shortened id or unambiguous name, with its trials, best first."""
        from mlora_sched.spec.sweep_view import SweepDetail

        return self._record(SweepDetail, "GET", _sweep(ref))

    def request_of_sweep(self, ref: str, request: Request) -> SweepDetail:
        """Ask for a pause, a resume or a cancel of all trials of which it can be asked."""
        from mlora_sched.spec.sweep_view import SweepDetail

        return self._record(SweepDetail, "POST", _sweep(ref, f"/{request.value}"))

    def best_trial(self, ref: str) -> TrialView:
        """The trial of a sweep whose adapter is the best.

        Raises:
            Refused: it has not ended, or no trial has succeeded.
        """
        from mlora_sched.errors import Refused

        found = self.sweep(ref)
        view = found.sweep
        if view.ended < view.trials:
            raise Refused(
                f"sweep {view.id} goes on: {view.ended} of {view.trials} trials have ended; "
                f"`mlora-sched wait {view.id}`"
            )
        if found.trials[0].job.state is not JobState.SUCCEEDED:
            raise Refused(f"sweep {view.id} has no adapter: none of its {view.trials} trials has succeeded")
        return found.trials[0]


def is_sweep_id(ref: str) -> bool:
    """Whether a reference is written like a sweep's id."""
    return _SWEEP_ID.fullmatch(ref) is not None


def _sweep(ref: str, rest: str = "") -> str:
    check_reference(ref)
    return f"/sweeps/{quote(ref, safe='')}{rest}"
