"""The TCP connections of this process as the kernel knows them.

gRPC gives a server's handlers no way to look at a connection or to end it; the sockets are ours.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import unquote

Peer = tuple[str, int]
"""Address and port of the other end, the same however it was written."""

_RECEIVED_AT = 128
"""Where `struct tcp_info` keeps the bytes received, 64 bits (Linux 4.1 and later)."""


def peer_of(text: str) -> Peer:
    """The other end as gRPC writes it.

    >>> peer_of("ipv4:127.0.0.1:4711"), peer_of("ipv6:%5B::1%5D:80")
    (('127.0.0.1', 4711), ('::1', 80))
    """
    host, _, port = unquote(text).partition(":")[2].rpartition(":")
    return _plain_address(host.strip("[]")), int(port) if port.isdigit() else 0


def connections() -> Iterator[tuple[Peer, socket.socket]]:
    """Every connection with its other end; the socket is good until the next one."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # no descriptor is left to list them with
        names = os.listdir("/proc/self/fd")
    for name in names:
        with contextlib.suppress(OSError):
            copy = os.dup(int(name))
            if not stat.S_ISSOCK(os.fstat(copy).st_mode):
                os.close(copy)
                continue
            with socket.socket(fileno=copy) as connection:
                address = connection.getpeername()
                if isinstance(address, tuple):  # else a socket of this machine alone
                    yield (_plain_address(address[0]), int(address[1])), connection


def received(connection: socket.socket) -> int:
    """Bytes that came over a connection so far; 0 where the kernel does not count."""
    try:
        known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return 0
    if len(known) < _RECEIVED_AT + 8:
        return 0
    count: int = struct.unpack_from("=Q", known, _RECEIVED_AT)[0]
    return count


def hang_up(connection: socket.socket) -> bool:
    """Shut down a connection; False where the other end was faster."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True


def disconnect(peer: Peer) -> bool:
    """Shut down the connections to a peer; whether there were any."""
    found = False
    for other, connection in connections():
        if other == peer:
            found = hang_up(connection) or found
    return found


def _plain_address(host: str) -> str:
    # A listener for both families sees IPv4 peers as ::ffff:127.0.0.1.
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
