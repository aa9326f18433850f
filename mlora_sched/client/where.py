"""Where a client's daemon is, from the command line and the environment. Nothing is connected here.

`--socket` beats `MLORA_SCHED_HOST`, which beats `MLORA_SCHED_SOCKET`, which beats the user's own default.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlora_sched.errors import UserError

SOCKET_VARIABLE = "MLORA_SCHED_SOCKET"
HOST_VARIABLE = "MLORA_SCHED_HOST"
TOKEN_VARIABLE = "MLORA_SCHED_TOKEN"
REMOTE_SOCKET = "/run/mlora-sched/daemon.sock"
"""Where a daemon that serves a whole machine answers, unless an address names another path. The systemd unit has it."""

_SSH = re.compile(
    r"^ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^:\x00-\x1f]*)?$"
)
_HTTP = re.compile(
    r"^https?://(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:/[A-Za-z0-9._~/-]*)?$"
)
_LAST_PORT = 65_535
_TOKEN = re.compile(r"^[!-~]+$")


@dataclass(frozen=True)
class SshTarget:
    """A daemon's socket on a machine that ssh reaches.

    Attributes:
        destination: `host` or `user@host`; never begins with a dash, which ssh would take for an option.
        port: of the ssh server; None for what ssh's own configuration says.
        socket: the path there.
    """

    destination: str
    port: int | None
    socket: str

    def __str__(self) -> str:
        return f"ssh://{self.destination}{'' if self.port is None else f':{self.port}'}{self.socket}"


@dataclass(frozen=True)
class HttpTarget:
    """A daemon that answers over TCP, and the token with which it is asked."""

    url: str
    token: str = field(repr=False)

    def __str__(self) -> str:
        return self.url


Where = Path | SshTarget | HttpTarget
"""A Unix socket of this machine, or what is reached over a network."""


def default_socket(environment: Mapping[str, str] = os.environ) -> Path:
    """Where client and daemon meet when nobody says otherwise: in a directory that only this user can enter."""
    if named := environment.get(SOCKET_VARIABLE):
        return Path(named)
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "mlora_sched.sock"
    return Path.home() / ".mlora_sched" / "daemon.sock"


def default_where(environment: Mapping[str, str] = os.environ) -> Where:
    """The daemon that the environment names.

    Raises:
        UserError: `MLORA_SCHED_HOST` is no address, or a token is missing or open to others.
    """
    address = environment.get(HOST_VARIABLE)
    return parse_address(address, environment) if address else default_socket(environment)


def parse_address(address: str, environment: Mapping[str, str] = os.environ) -> SshTarget | HttpTarget:
    """Read `ssh://[USER@]HOST[:PORT][/PATH/OF/SOCKET]` or `http[s]://HOST[:PORT]`.

    Raises:
        UserError: it is neither, its port is none, or over HTTP no token is there.
    """
    match = _SSH.match(address)
    if match is not None:
        user, host, path = match["user"], match["host"].strip("[]"), match["path"]
        return SshTarget(
            destination=host if user is None else f"{user}@{host}",
            port=_port(match),
            socket=REMOTE_SOCKET if path in (None, "/") else path,
        )
    match = _HTTP.match(address)
    if match is not None:
        _port(match)
        return HttpTarget(address.rstrip("/"), _token(environment))
    raise UserError(  # the value is not shown: somebody may have written a password into it
        f"{HOST_VARIABLE}: is no address; write ssh://[USER@]HOST[:PORT][/PATH/OF/SOCKET] or http://HOST:PORT, "
        f"without a password (over HTTP the token is in {TOKEN_VARIABLE})"
    )


def _port(match: re.Match[str]) -> int | None:
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise UserError(f"{HOST_VARIABLE}: port {port}: is none; ports are 1 to {_LAST_PORT}")
    return port


def token_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a user's token lies when it is not in the environment."""
    config = environment.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "mlora_sched" / "token"


def _token(environment: Mapping[str, str]) -> str:
    found = environment.get(TOKEN_VARIABLE)
    path = token_file(environment)
    source = TOKEN_VARIABLE if found else str(path)
    token = (found or _private_text(path)).strip()
    if not _TOKEN.match(token):
        raise UserError(f"{source}: holds no token; a token is one word, as `mlora-sched admin token create` prints it")
    return token


def _private_text(path: Path) -> str:
    """The content of a file that nobody else may read."""
    try:
        with path.open(encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise UserError(f"{path}: others may read it; `chmod 600 {path}` as its owner, or make a new token")
            return file.read(1024)
    except FileNotFoundError:
        raise UserError(
            f"over HTTP a token is needed; ask an administrator for one (`mlora-sched admin token create USER`) and "
            f"put it into {TOKEN_VARIABLE}, or into {path} with mode 0600"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
