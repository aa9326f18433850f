"""A daemon asked from elsewhere: through ssh, with a stand-in for ssh that really forwards, and over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Served, SpecMaker, settings_in

from mlora_sched.cli.main import run
from mlora_sched.client import Client, SshTarget
from mlora_sched.client.administration import token_request
from mlora_sched.client.tunnel import Tunnel, command
from mlora_sched.errors import Unauthorized, Unreachable, UserError
from mlora_sched.settings import DaemonSettings, Listen

Capture = pytest.CaptureFixture[str]

_SSH = f"""#!{sys.executable} -IS
import json, os, socket, sys, threading

folder = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(folder, "calls"), "a") as calls:
    print(json.dumps([os.getpid(), *sys.argv[1:]]), file=calls)
host = sys.argv[-1]
if host.endswith("refused"):
    sys.exit("ann@refused: Permission denied (publickey).")
local, remote = sys.argv[sys.argv.index("-L") + 1].split(":")
listener = socket.socket(socket.AF_UNIX)
listener.bind(local)
listener.listen()

def copy(source, target):
    try:
        while block := source.recv(65536):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

while True:
    near, _ = listener.accept()
    far = socket.socket(socket.AF_UNIX)
    try:
        far.connect(remote)
    except OSError as error:
        print(f"channel 1: open failed: connect failed: {{error.strerror}}", file=sys.stderr, flush=True)
        near.close()
        continue
    for pair in ((near, far), (far, near)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@pytest.fixture
def serve_settings(short_dir: Path) -> DaemonSettings:
    return settings_in(short_dir).model_copy(update={"listen": Listen(host="127.0.0.1", port=0)})


@pytest.fixture
def ssh(short_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the stand-in, first on the path; nothing of it or of a tunnel may be left at the end."""
    tmp_path_factory.getbasetemp()  # pytest's own, before the place for temporary files is another
    folder = short_dir / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(_SSH)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    places = short_dir / "tmp"
    places.mkdir()
    monkeypatch.setenv("TMPDIR", str(places))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert [path.name for path in places.iterdir() if path.name.startswith("mlora-")] == []
    assert [pid for pid, *_ in calls(folder) if Path(f"/proc/{pid}").exists()] == []


def calls(folder: Path) -> list[list[str]]:
    log = folder / "calls"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_through_ssh_all_is_as_it_is_beside_the_daemon(
    served: Served, ssh: Path, spec: SpecMaker, tmp_path: Path
) -> None:
    target = SshTarget("ann@gpu1", 2222, str(served.socket))
    with Client(target) as client:
        job = client.submit(spec())
        served.train(job.id, 4)
        served.finish(job.id)
        client.pull(job.id, tmp_path / "out")
        assert client.get(job.id).state.is_final
        assert client._tunnel is not None
        place = client._tunnel.socket.parent
        assert (place.stat().st_mode & 0o777) == 0o700
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size > 1000
    ((_pid, *args),) = calls(ssh)
    assert args == command(target, place / "s")[1:]
    assert args[-2:] == ["--", "ann@gpu1"]


def test_ssh_itself_understands_the_options() -> None:
    program = shutil.which("ssh")
    if program is None:
        pytest.skip("there is no ssh on this machine")
    _ssh, *args = command(SshTarget("ann@gpu1", 2222, "/run/s"), Path("/tmp/x/s"))
    shown = subprocess.run([program, "-G", "-F", "none", *args], capture_output=True, text=True, check=True).stdout
    settings = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert settings["localforward"] == "/tmp/x/s /run/s"
    assert (settings["user"], settings["hostname"], settings["port"]) == ("ann", "gpu1", "2222")
    assert (settings["batchmode"], settings["exitonforwardfailure"]) == ("yes", "yes")


def test_the_environment_names_the_machine(
    served: Served, ssh: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("MLORA_SCHED_HOST", f"ssh://gpu1{served.socket}")
    before = signal.getsignal(signal.SIGTERM)
    assert run(["ls", "--json"]) == 0
    signal.signal(signal.SIGTERM, before)
    assert len(calls(ssh)) == 1
    assert run(["ls", "--json", "--socket", str(served.socket)]) == 0
    assert len(calls(ssh)) == 1, "--socket beats it"


def test_what_ssh_says_is_told(served: Served, ssh: Path, short_dir: Path) -> None:
    with pytest.raises(Unreachable, match=r"ssh://refused/x: ssh ended with 1: .*Permission denied \(publickey\)"):
        Client(SshTarget("refused", None, "/x"))
    with (
        Client(SshTarget("gpu1", None, str(short_dir / "nobody"))) as client,
        pytest.raises(Unreachable, match=r"ssh says: .*connect failed: No such file"),
    ):
        client.daemon()


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no ssh on this machine"):
        Tunnel(SshTarget("gpu1", None, "/x"))


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ssh_ends_with_the_client(served: Served, ssh: Path, spec: SpecMaker, how: signal.Signals, code: int) -> None:
    job = submitted(served, spec)
    environment = os.environ | {"MLORA_SCHED_HOST": f"ssh://gpu1{served.socket}"}
    waiting = subprocess.Popen(
        [sys.executable, "-m", "mlora_sched", "wait", job], env=environment, stdout=subprocess.DEVNULL
    )
    while not list((ssh.parent / "tmp").glob("mlora-*/s")):
        assert waiting.poll() is None
        time.sleep(0.01)
    waiting.send_signal(how)
    assert waiting.wait(30) == code


def submitted(served: Served, spec: SpecMaker) -> str:
    with Client(served.socket) as client:
        return client.submit(spec()).id


def test_over_http_with_a_token(
    served: Served, client: Client, spec: SpecMaker, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("MLORA_SCHED_HOST", f"http://127.0.0.1:{served.port}")
    monkeypatch.setenv("MLORA_SCHED_TOKEN", client.create_token(token_request("ann")).token)
    assert run(["submit", str(spec()), "--json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)
    assert job["owner"] == "ann"
    monkeypatch.setenv("MLORA_SCHED_TOKEN", "mlora_wrong")
    assert run(["ls", "--json"]) == Unauthorized.exit_code
    assert json.loads(capsys.readouterr().err)["error"] == "Unauthorized"
    monkeypatch.setenv("MLORA_SCHED_HOST", "http://127.0.0.1:1")
    assert run(["ls", "--json"]) == Unreachable.exit_code
    assert "MLORA_SCHED_HOST" in json.loads(capsys.readouterr().err)["message"]
