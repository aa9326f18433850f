"""Links in the daemon's own directories lead nobody out of them, and others cannot look in."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path

import pytest

from mlora_sched.daemon.lifecycle import state_lock
from mlora_sched.server.spool import Incoming

CONTENT = b"a row\n"
SHA = hashlib.sha256(CONTENT).hexdigest()


def upload(spool: Path) -> None:
    with Incoming(spool, SHA, 1 << 20) as incoming:
        incoming.write(CONTENT)
        incoming.finish()
        incoming.place()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_upload_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path, link: object) -> None:
    spool, precious = tmp_path / "spool", tmp_path / "precious"
    spool.mkdir(mode=0o700)
    precious.write_text("precious")
    assert callable(link)
    link(precious, spool / SHA)
    upload(spool)
    assert precious.read_text() == "precious"
    assert (spool / SHA).read_bytes() == CONTENT
    assert not (spool / SHA).is_symlink()
    assert [path.name for path in spool.iterdir()] == [SHA]


def test_the_spool_is_the_daemons_alone(tmp_path: Path) -> None:
    upload(tmp_path / "spool")
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


def test_a_state_directory_that_others_can_enter_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with state_lock(tmp_path / "made"):
            assert caplog.text == ""
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o755)
        with state_lock(tmp_path / "open"):
            assert f"`chmod 700 {tmp_path / 'open'}`" in caplog.text
