"""What strangers send does not fill a server's memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.helpers import ROOT
from tests.video.service.conftest import ServerProcess
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import ServiceError
from rushes.video.service.client import ServiceReader
from rushes.video.service.connections import connections, disconnect, peer_of, received
from rushes.video.service.intake import IntakeGuard

pytestmark = pytest.mark.attack

TOKEN = "correct-horse-battery"
MESSAGE = 600 << 20

SENDER = """
import sys, threading
import pyarrow.flight as flight

ticket = flight.Ticket(bytes(int(sys.argv[2])))
headers = [(b"authorization", sys.argv[3].encode())] if sys.argv[3] else []

def send():
    client = flight.connect(f"grpc://{sys.argv[1]}")
    client.do_get(ticket, flight.FlightCallOptions(timeout=60, headers=headers)).read_all()

threads = [threading.Thread(target=send) for _ in range(int(sys.argv[4]))]
for thread in threads: thread.start()
"""


def peak_memory(pid: int) -> int:
    """The most that a process ever had resident, in MB."""
    [line] = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) >> 10


def disconnected(client: ServiceReader) -> int:
    """Connections that the server has cut."""
    [server] = client.servers.values()
    count: int = json.loads(server.status())["counters"].get("disconnected", 0)
    return count


@pytest.mark.parametrize("bearer", ["", f"Bearer {TOKEN}"], ids=["stranger", "known"])
def test_huge_messages_cost_the_server_little_memory(
    spawn_server: Callable[..., ServerProcess],
    open_client: Callable[..., ServiceReader],
    bearer: str,
) -> None:
    server = spawn_server(token=TOKEN)
    assert server.process is not None
    honest = open_client(server.address, token=TOKEN)
    assert honest.read(request_of("v")).video_id == "v"
    before = peak_memory(server.process.pid)
    arguments = [server.address, str(MESSAGE), bearer, "3"]
    program = [sys.executable, "-c", SENDER, *arguments]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL) as sender:
        deadline = time.monotonic() + 60
        while disconnected(honest) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sender.kill()
    grown = peak_memory(server.process.pid) - before
    assert grown < 450, f"{grown} MB for {3 * MESSAGE >> 20} MB sent"
    assert same(honest.read(request_of("w")), FakeReader().read(request_of("w")))
    assert honest.servers[server.address].well


def test_a_message_larger_than_any_request_is_refused(
    spawn_server: Callable[..., ServerProcess], open_client: Callable[..., ServiceReader]
) -> None:
    server = spawn_server()
    client = open_client(server.address)
    with pytest.raises(ServiceError, match=r"a message of \d+ bytes, at most 1048576"):
        client.servers[server.address].describe("v" * (2 << 20), time.monotonic() + 5)
    assert client.read(request_of("v")).video_id == "v"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket, str]:
    theirs = socket.create_connection(listener.getsockname())
    ours, (host, port) = listener.accept()
    return ours, theirs, f"ipv4:{host}:{port}"


def test_strangers_may_send_little_and_known_ones_more(listener: socket.socket) -> None:
    cuts: list[int] = []
    guard = IntakeGuard(lambda: 0, cuts.append, stranger_bytes=10_000)
    guard.watch(listener.getsockname()[1])
    known, friend, peer = pair(listener)
    guard.accepted(peer)
    unknown, stranger, _ = pair(listener)
    with known, friend, unknown, stranger:
        for sender, ours in ((friend, known), (stranger, unknown)):
            sender.sendall(bytes(20_000))
            taken = 0
            while taken < 20_000:
                taken += len(ours.recv(20_000))
        stranger.settimeout(5)
        assert stranger.recv(1) == b""  # hung up
        friend.sendall(b"still there")
        assert known.recv(100) == b"still there"
    guard.close()
    assert cuts == [1]


def test_strangers_that_never_ask_are_hung_up_on(listener: socket.socket) -> None:
    guard = IntakeGuard(lambda: 0, lambda _: None, stranger_seconds=0.5)
    guard.watch(listener.getsockname()[1])
    known, friend, peer = pair(listener)
    guard.accepted(peer)
    unknown, stranger, _ = pair(listener)
    with known, friend, unknown, stranger:
        stranger.settimeout(10)
        assert stranger.recv(1) == b""
        friend.sendall(b"x")
        assert known.recv(1) == b"x"
    guard.close()


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Every descriptor that this process may have is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(2))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_left_blinds_no_guard(listener: socket.socket) -> None:
    cuts: list[int] = []
    guard = IntakeGuard(lambda: 0, cuts.append, stranger_seconds=0.5)
    unknown, stranger, text = pair(listener)
    with unknown, stranger:
        guard.watch(listener.getsockname()[1])
        with no_descriptors_left():
            with pytest.raises(OSError, match="Too many open files"):
                os.listdir("/proc/self/fd")
            assert peer_of(text) in [peer for peer, _ in connections()]
            stranger.settimeout(10)
            assert stranger.recv(1) == b""  # hung up while none was left
    guard.close()
    assert cuts == [1]


def test_looking_at_connections_takes_and_keeps_nothing(listener: socket.socket) -> None:
    ours, theirs, _ = pair(listener)
    with ours, theirs:
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(50):
            assert list(connections())
        assert sorted(os.listdir("/proc/self/fd")) == before
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_strangers_are_counted_and_the_oldest_go_first(listener: socket.socket) -> None:
    cuts: list[int] = []
    guard = IntakeGuard(lambda: 0, cuts.append, strangers=(8, 5))
    guard.watch(listener.getsockname()[1])
    known = pair(listener)
    guard.accepted(known[2])
    old = [pair(listener) for _ in range(5)]
    time.sleep(1.5)  # a look goes by
    new = [pair(listener) for _ in range(3)]
    wait_until(lambda: sum(cuts) >= 3)
    hung_up = [is_hung_up(theirs) for _, theirs, _ in [known, *old, *new]]
    assert cuts[0] == sum(hung_up) == 3
    assert not any([hung_up[0], *hung_up[6:]])
    guard.close()
    for ours, theirs, _ in [known, *old, *new]:
        ours.close()
        theirs.close()


def is_hung_up(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


def test_known_connections_that_ask_nothing_may_send_little(listener: socket.socket) -> None:
    guard = IntakeGuard(lambda: 0, lambda _: None, unasked_bytes=30_000)
    guard.watch(listener.getsockname()[1])
    ours, theirs, text = pair(listener)
    with ours, theirs:
        for _ in range(3):  # as much as is allowed, and then a call
            theirs.sendall(bytes(20_000))
            guard.accepted(text)
            time.sleep(1.5)
        assert not is_hung_up(theirs)
        theirs.sendall(bytes(40_000))
        wait_until(lambda: is_hung_up(theirs))
    guard.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def test_the_kernel_counts_what_came(listener: socket.socket) -> None:
    ours, theirs, text = pair(listener)
    with ours, theirs:
        theirs.sendall(bytes(12_345))
        while len(ours.recv(20_000, socket.MSG_PEEK)) < 12_345:
            pass
        found = [received(c) for peer, c in connections() if peer == peer_of(text)]
        assert found == [12_345]
        assert disconnect(peer_of(text))
        assert theirs.recv(1) == b""
    assert not disconnect(peer_of(text))


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:10.0.0.1:80", ("10.0.0.1", 80)),
        ("ipv6:%5B::1%5D:4711", ("::1", 4711)),
        ("ipv6:[::ffff:127.0.0.1]:9", ("127.0.0.1", 9)),
        ("unix:/tmp/x", ("", 0)),
    ],
)
def test_peers_are_read_as_grpc_writes_them(text: str, peer: tuple[str, int]) -> None:
    assert peer_of(text) == peer
