"""A daemon's socket on another machine, forwarded to this one by ssh for as long as a client lives.

ssh does what it does for its user otherwise: keys, agents, jump hosts and names are in its own configuration. Nothing
is asked on a terminal.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from pathlib import Path

from mlora_sched.client.where import SshTarget
from mlora_sched.errors import Unreachable, UserError

CONNECT_SECONDS = 20
"""How long ssh may take to reach the machine."""
_START_SECONDS = 60.0  # with jump hosts and name servers that do not answer
_END_SECONDS = 5.0
_POLL_SECONDS = 0.02
_OPTIONS = (
    "BatchMode=yes",  # a question would hang a script
    "ExitOnForwardFailure=yes",
    "ControlMaster=no",  # a shared connection would keep the forwarding when the client has ended
    "ControlPath=none",
    "StreamLocalBindMask=0177",
    f"ConnectTimeout={CONNECT_SECONDS}",
    "ServerAliveInterval=15",
)


def command(target: SshTarget, local: Path) -> list[str]:
    """The ssh command that forwards a local socket to the target's; it runs no program there."""
    options = [part for option in _OPTIONS for part in ("-o", option)]
    port = [] if target.port is None else ["-p", str(target.port)]
    return ["ssh", "-N", "-T", "-a", "-x", *options, *port, "-L", f"{local}:{target.socket}", "--", target.destination]


class Tunnel:
    """A running ssh and the local end of what it forwards, in a directory that only this user can enter.

    Attributes:
        socket: the local end.
        close: ends it; calling it again does nothing.

    Raises:
        UserError: there is no ssh on this machine.
        Unreachable: ssh does not get through; the message has its own words.
    """

    def __init__(self, target: SshTarget) -> None:
        self._target = target
        folder = Path(tempfile.mkdtemp(prefix="mlora-"))
        self.socket = folder / "s"
        self._said = folder / "stderr"
        self._started: list[subprocess.Popen[bytes]] = []
        # wherever Ctrl-C comes in between, what is not closed ends with this process
        self.close = weakref.finalize(self, _end, folder, self._started)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        with self._said.open("wb") as said:
            try:
                self._started.append(
                    subprocess.Popen(
                        command(self._target, self.socket),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                    )
                )
            except FileNotFoundError:
                raise UserError(f"{self._target}: there is no ssh on this machine; install OpenSSH's client") from None
        (ssh,) = self._started
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if ssh.poll() is not None:
                raise Unreachable(f"{self._target}: ssh ended with {ssh.returncode}: {self.said()}")
            if time.monotonic() >= deadline:
                raise Unreachable(f"{self._target}: ssh has not connected for {_START_SECONDS:g} s: {self.said()}")
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def said(self) -> str:
        """What ssh has said last, on one line; empty for nothing."""
        lines = self._said.read_text(errors="replace").split("\n")[-5:]
        return "; ".join(line.strip() for line in lines if line.strip())[-500:]


def _end(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """End ssh and remove the directory."""
    for ssh in started:
        ssh.terminate()
        try:
            ssh.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            ssh.kill()
            ssh.wait()
    shutil.rmtree(folder, ignore_errors=True)
