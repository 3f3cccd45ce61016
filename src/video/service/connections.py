"""The TCP connections of this process as the kernel knows them.

gRPC gives a server's handlers no way to look at a connection or to end it; the sockets are ours.
Looking takes no new descriptor: where strangers have taken them all is where it is needed most.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import unquote

Peer = tuple[str, int]
"""Address and port of the other end, the same however it was written."""

_RECEIVED_AT = 128
"""Where `struct tcp_info` keeps the bytes received, 64 bits (Linux 4.1 and later)."""
_NEARLY = 0.75
"""Share of the descriptors that may be in use before they count as few."""
_DESCRIPTORS = 1 << 16
"""As many as one server needs; each look goes through all that are open."""


def peer_of(text: str) -> Peer:
    """The other end as gRPC writes it.

    >>> peer_of("ipv4:127.0.0.1:4711"), peer_of("ipv6:%5B::1%5D:80")
    (('127.0.0.1', 4711), ('::1', 80))
    """
    host, _, port = unquote(text).partition(":")[2].rpartition(":")
    return _plain_address(host.strip("[]")), int(port) if port.isdigit() else 0


class _Window:
    """A descriptor of our own, through which others are looked at one after the other.

    A number can change its meaning at any time, as gRPC closes and opens sockets; a copy cannot.
    Copies go to a number that we have had from the beginning, so there is always one.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._shut = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._seen = os.dup(self._shut)

    @contextlib.contextmanager
    def on(self, descriptor: int) -> Iterator[socket.socket | None]:
        """A socket that is the same as `descriptor`'s; None where that is something else."""
        with self._lock:
            try:
                os.dup2(descriptor, self._seen, inheritable=False)
                yield self._socket()
            finally:
                os.dup2(self._shut, self._seen, inheritable=False)

    def _socket(self) -> socket.socket | None:
        if not stat.S_ISSOCK(os.fstat(self._seen).st_mode):
            return None
        return socket.socket(fileno=self._seen)

    def others(self, descriptor: int) -> bool:
        """Whether a number is not one of the window's own."""
        return descriptor not in (self._shut, self._seen)


_window = _Window()


def connections() -> Iterator[tuple[Peer, socket.socket]]:
    """Every connection with its other end; the socket is good until the next one."""
    for number in filter(_window.others, _descriptors()):
        with contextlib.suppress(OSError), _window.on(number) as connection:
            if connection is None:
                continue
            try:
                address = connection.getpeername()
                if isinstance(address, tuple):  # else a socket of this machine alone
                    yield (_plain_address(address[0]), int(address[1])), connection
            finally:
                connection.detach()


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # none is left to list them with
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return list(range(min(soft, _DESCRIPTORS)))


def nearly_full() -> bool:
    """Whether few descriptors are left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return len(os.listdir("/proc/self/fd")) > _NEARLY * soft
    except OSError:
        return True


def allow_many_descriptors() -> None:
    """Raise the soft limit of descriptors as far as this process may, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


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


def disconnect_all(port: int) -> int:
    """Shut down every connection to a port of ours; how many there were."""
    return sum(
        hang_up(connection)
        for _, connection in connections()
        if connection.getsockname()[1] == port
    )


def _plain_address(host: str) -> str:
    # A listener for both families sees IPv4 peers as ::ffff:127.0.0.1.
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
