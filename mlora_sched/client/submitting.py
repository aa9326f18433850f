"""Handing jobs in: files first, then the spec, once even where an answer is lost. The base of `Client`."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mlora_sched.client.administration import Administration
from mlora_sched.client.connection import BLOCK
from mlora_sched.errors import NotFound, SpecError, UserError, shown
from mlora_sched.spec.api import JobView

if TYPE_CHECKING:
    from mlora_sched.spec.job import JobSpec
    from mlora_sched.spec.submission import Submitted


_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Submitting(Administration):
    """Uploads and submissions."""

    def submit(self, spec_path: Path) -> JobView:
        """Read a spec, upload the files it names and submit it.

        Raises:
            SpecError: the spec is malformed or names a missing file; nothing has been sent.
        """
        from mlora_sched.spec.job import load_job, local_files

        spec = load_job(spec_path)
        return self.submit_spec(spec, local_files(spec, spec_path.parent))

    def submit_spec(self, spec: JobSpec, files: Mapping[str, Path]) -> JobView:
        """Upload `files` (local path by the name the spec uses) and submit `spec`."""
        return self.hand_in(spec, files).job

    def hand_in(
        self,
        spec: JobSpec,
        files: Mapping[str, Path],
        *,
        key: str | None = None,
        after: Sequence[str] = (),
        retries: int = 0,
    ) -> Submitted:
        """As `submit_spec`, with all that the daemon says to it.

        Args:
            key, after, retries: as in `Submission`. Without a key a random one is sent, so that the same job can be
                sent once more when the connection broke before the answer came.

        Raises:
            Refused: another job has the key; or one of `after` has failed.
            NotFound: one of `after` is not there.
            UserError: the key is none.
        """
        from mlora_sched.spec.submission import Submission, Submitted

        check_key(key)
        for ref in after:
            check_reference(ref)
        uploaded = {name: self.upload(path) for name, path in files.items()}
        key = key or f"once-{secrets.token_hex(16)}"
        body = Submission(spec=spec, files=uploaded, key=key, after=tuple(after), retries=retries)
        return self._record(Submitted, "POST", "/jobs", json=body.model_dump(mode="json"), repeatable=True)

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


def check_key(key: str | None) -> None:
    """What cannot be a key is not sent, nor are files for it.

    Raises:
        UserError: it cannot be one.
    """
    from mlora_sched.spec.submission import KEY_PATTERN

    if key is not None and not re.fullmatch(KEY_PATTERN, key):
        raise UserError(f"key: {shown(key)}: write letters, digits, and . _ - / between them, 200 characters at most")


def check_reference(ref: str) -> None:
    """What cannot be an id or a name is not sent: in a path it could become another one.

    Raises:
        NotFound: it cannot be one.
    """
    if not _REFERENCE.fullmatch(ref):
        raise NotFound(f"{ref!r}: no job has such an id or name; `mlora-sched ls` lists yours")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block
