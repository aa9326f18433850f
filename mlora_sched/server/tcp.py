"""The TCP door's outer side: its socket, and the headers by which a browser's request from elsewhere is known.

Who asks is `door`'s business. There is no TLS here: a proxy in front brings it, or ssh goes around it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from mlora_sched.errors import Refused, UserError
from mlora_sched.settings import Listen


def bind_tcp(listen: Listen) -> socket.socket:
    """A listening TCP socket.

    Raises:
        UserError: the address is none of this machine, or is in use.
    """
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UserError(f"--listen {listen}: cannot be used: {error.strerror}; choose another address") from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach an address or name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


class Hosts:
    """The names by which the daemon may be asked over TCP.

    A page in somebody's browser can ask any address that the browser reaches, under a name of its own choice (DNS
    rebinding) or across origins. It cannot choose these two headers.

    Args:
        listen: where the daemon listens, None for nowhere.
        allowed: further names, with any port.
    """

    def __init__(self, listen: Listen | None, allowed: Sequence[str]) -> None:
        self._own = set() if listen is None else {listen.host.lower()}
        self._allowed = {name.lower() for name in allowed}

    def check(self, headers: Headers, server: tuple[str, int]) -> None:
        """Refuse what is addressed to somebody else, or comes from a page of somebody else.

        Args:
            server: the address and port at which the request arrived.

        Raises:
            UserError: the Host header is not there once, or names something else.
            Refused: the Origin header names another origin.
        """
        given = headers.getlist("host")
        if len(given) != 1 or not self._names_us(given[0], server):
            shown = ", ".join(given)[:80] or "missing"
            raise UserError(
                f"Host: {shown}: is no name of this daemon; ask for {server[0]}:{server[1]}, "
                "or let it be called so with `serve --allow-host NAME`"
            )
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{given[0].lower()}", f"https://{given[0].lower()}"):
                raise Refused(f"Origin: {origin[:80]}: pages of other origins may not ask this daemon")

    def _names_us(self, host: str, server: tuple[str, int]) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.netloc != host or "@" in host:
            return False
        if name in self._allowed:
            return True
        own = self._own | {server[0].lower()} | ({"localhost"} if is_loopback(server[0]) else set())
        return name in own and port in (None, server[1])
