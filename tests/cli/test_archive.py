"""Adapters as tar streams: what goes in comes out, and nothing that a hostile stream holds reaches the disk."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlora_sched import archive as archive_module
from mlora_sched.archive import Archive, unpack
from mlora_sched.client import Client
from mlora_sched.client.http import Answer, Download
from mlora_sched.errors import MloraError, UserError

PART = st.text("abcXYZ019._- ü", min_size=1, max_size=60).filter(lambda part: part.strip(".") != "")
FILES = st.dictionaries(st.lists(PART, min_size=1, max_size=3).map("/".join), st.binary(max_size=2000), max_size=6)


@settings(max_examples=40)
@given(FILES, st.dictionaries(PART, st.binary(max_size=600), max_size=2))
def test_a_directory_comes_out_as_it_went_in(files: dict[str, bytes], added: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sent, received = Path(scratch, "sent"), Path(scratch, "received")
        sent.mkdir()
        written: dict[str, bytes] = {}
        for name, content in files.items():
            path = sent / name
            if any(part.is_file() for part in path.parents) or path.is_dir():
                continue  # a name cannot be both a file and a directory
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written[name] = content
        added = {name: content for name, content in added.items() if not (sent / name).is_dir()}
        archive = Archive.of(sent, added)
        stream = b"".join(archive)
        assert len(stream) == archive.size
        paths = unpack(io.BytesIO(stream), received)
        found = {path.relative_to(received).as_posix(): path.read_bytes() for path in paths}
        assert found == written | added
        assert {path for path in received.rglob("*") if path.is_file()} == set(paths)
        with tarfile.open(fileobj=io.BytesIO(stream)) as reference:  # any tar reads it
            assert set(reference.getnames()) == set(found)


def test_links_are_not_followed_and_patterns_choose(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "adapter_link").symlink_to(secret)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "optimizer.bin").write_text("moments")
    os.mkfifo(folder / "adapter_pipe")
    with tarfile.open(fileobj=io.BytesIO(b"".join(Archive.of(folder, {}, ["adapter_*"])))) as archive:
        assert archive.getnames() == ["adapter_config.json"]


def test_a_stream_survives_the_removal_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "a").write_bytes(b"x" * 100_000)
    archive = Archive.of(tmp_path / "sent", {})
    (tmp_path / "sent" / "a").unlink()
    unpack(io.BytesIO(b"".join(archive)), tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"x" * 100_000


def test_a_file_that_shrinks_while_it_is_sent_breaks_the_stream(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "a").write_bytes(b"x" * 100)
    archive = Archive.of(tmp_path / "sent", {})
    (tmp_path / "sent" / "a").write_bytes(b"")
    with pytest.raises(OSError, match="shorter"):
        list(archive)


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Archive.of(tmp_path / "gone", {})


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """An archive with an innocent file and then `name`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("innocent"))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "..", "a\\..\\x", ".", ""])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MloraError, match="no ordinary file below it"):
        unpack(io.BytesIO(hostile(name)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_everything_but_files_is_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(MloraError, match="no ordinary file below it"):
        unpack(io.BytesIO(hostile("x", kind, "/etc/passwd")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["innocent", "innocent/below"])
def test_a_name_twice_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        unpack(io.BytesIO(hostile(name)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_MAX_MEMBERS", 8)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(9):
            archive.addfile(tarfile.TarInfo(str(number)))
    buffer.seek(0)
    with pytest.raises(MloraError, match="more than 8 files"):
        unpack(buffer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_cannot_be_true_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("large")
    info.size = 1 << 50
    with pytest.raises(MloraError, match="is no archive: 'large' is said to be longer"):
        unpack(io.BytesIO(info.tobuf() + bytes(1024)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end_are_not_held(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 64 << 20
    stream = tmp_path / "stream"
    with stream.open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(info.size + 2048)
    tracemalloc.start()
    try:
        with stream.open("rb") as file, pytest.raises(MloraError, match="is no archive"):
            unpack(file, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == [stream]


@given(st.binary(max_size=2000))
def test_noise_is_no_archive(noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.raises(MloraError):
        unpack(io.BytesIO(b"\x01" + noise), Path(scratch, "out"))


@pytest.mark.parametrize("cut", [1, 511, 700, 1100])
def test_a_cut_stream_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "a").write_bytes(b"x" * 5000)
    stream = b"".join(Archive.of(tmp_path / "sent", {}))
    with pytest.raises(MloraError, match="no archive"):
        unpack(io.BytesIO(stream[:cut]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_is_filled_only_when_empty(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "a").write_text("a")
    out = tmp_path / "out"
    out.mkdir()
    unpack(io.BytesIO(b"".join(Archive.of(tmp_path / "sent", {}))), out)
    with pytest.raises(UserError, match="not empty"):
        unpack(io.BytesIO(b"".join(Archive.of(tmp_path / "sent", {}))), out)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError):
        unpack(io.BytesIO(b"".join(Archive.of(tmp_path / "sent", {}))), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


class Says:
    """A `Transport` to a daemon that knows one answer, or none: then nothing may be asked for."""

    def __init__(self, answer: Answer | None) -> None:
        self._answer = answer

    def request(self, method: str, path: str, **request: object) -> Answer:
        assert self._answer is not None, f"{method} {path}"
        return self._answer

    @contextlib.contextmanager
    def download(self, path: str, params: object, block: int) -> Iterator[Download]:
        answer = self.request("GET", path)
        yield Download(answer if answer.is_error else None, iter([answer.content]))

    def close(self) -> None:
        pass


def test_pull_refuses_what_is_no_archive(tmp_path: Path) -> None:
    transport = Says(Answer(200, hostile("../x")))
    with Client(Path("unused"), transport=transport) as client, pytest.raises(MloraError) as caught:
        client.pull("toy", tmp_path / "out")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_pull_does_not_download_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Client(Path("unused"), transport=Says(None)) as client:
        for folder in (tmp_path / "file", tmp_path, tmp_path / "file" / "below"):
            with pytest.raises(UserError):
                client.pull("toy", folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b"[]"])
def test_answers_of_another_version_are_named(content: bytes) -> None:
    with (
        Client(Path("s"), transport=Says(Answer(200, content))) as client,
        pytest.raises(MloraError, match="install the same version"),
    ):
        client.get("toy")


def test_error_answers_without_our_body() -> None:
    transport = Says(Answer(502, b"<html>", "Bad Gateway"))
    with Client(Path("s"), transport=transport) as client, pytest.raises(MloraError, match="answers 502 Bad Gateway"):
        client.get("toy")
