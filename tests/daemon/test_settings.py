"""How bases are named on the command line, and where a daemon keeps things."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mlora_sched.errors import UserError
from mlora_sched.settings import BaseRef, DaemonSettings, parse_base


@pytest.fixture(autouse=True)
def _in_a_folder_with_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo", "odd=name", "with space"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "location"),
    [
        ("demo", "demo", "{cwd}/demo"),
        ("./demo/", "demo", "{cwd}/demo"),
        ("x=demo", "x", "{cwd}/demo"),
        ("x=odd=name", "x", "{cwd}/odd=name"),
        ("x=with space", "x", "{cwd}/with space"),
        ("x=org/model", "x", "org/model"),
        ("x=org/model@v1.0", "x", "org/model@v1.0"),
        ("org/model@main", "model", "org/model@main"),
        ("org/model", "model", "org/model"),
    ],
)
def test_bases_are_read(text: str, name: str, location: str) -> None:
    assert parse_base(text) == BaseRef(name=name, location=location.format(cwd=Path.cwd()))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x=/no/such/dir", "/no/such/dir is no directory"),
        ("./nothing", "./nothing is no directory"),
        ("~/surely-not-there", "is no directory"),
        ("x=", "nothing is no directory"),
        ("", "is no directory"),
        ("=demo", "'' cannot be a base's name"),
        ("a b=demo", "'a b' cannot be a base's name"),
        ("odd=name", "'odd=name' cannot be a base's name"),
        ("with space", "'with space' cannot be a base's name"),
    ],
)
def test_unusable_bases_are_refused(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        parse_base(text)
    assert "write NAME=DIR" in caught.value.message


def test_everything_lies_below_the_state_directory(tmp_path: Path) -> None:
    settings = DaemonSettings(state_dir=tmp_path, bases=(BaseRef(name="demo", location="/x"),))
    paths = (settings.database, settings.spool_dir, settings.cache_dir, settings.log_dir, settings.job_dir("j-1"))
    assert settings.socket == tmp_path / "mlora.sock"
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_a_socket_of_ones_own_is_kept(tmp_path: Path) -> None:
    base = BaseRef(name="demo", location="/x")
    assert DaemonSettings(state_dir=tmp_path, socket=Path("/run/a.sock"), bases=(base,)).socket == Path("/run/a.sock")


def test_two_bases_of_one_name_and_no_base_are_refused(tmp_path: Path) -> None:
    base = BaseRef(name="demo", location="/x")
    with pytest.raises(ValidationError, match="two bases are called demo"):
        DaemonSettings(state_dir=tmp_path, bases=(base, base))
    with pytest.raises(ValidationError, match="bases"):
        DaemonSettings(state_dir=tmp_path, bases=())
