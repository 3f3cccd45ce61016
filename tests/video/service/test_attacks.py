"""Someone is hostile: every attempt is refused with a clear error, and the server lives."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pyarrow.flight as flight
import pytest
from tests.helpers import ROOT
from tests.video.counter_video import Recipe, render
from tests.video.service.conftest import QUICK, spec
from tests.video.service.fakes import request_of

from rushes.errors import (
    FrameUnavailable,
    MissingVideo,
    RefusedVideo,
    RushesError,
    ServiceError,
    UnreadableVideo,
)
from rushes.video.request import Audio, Box, Frames, Request, Size
from rushes.video.service import wire
from rushes.video.service.client import ServiceReader
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer, ServerOptions

pytestmark = pytest.mark.attack

TOKEN = "correct-horse-battery"
SMALL = (Frames((0.1,), Size(8, 8)),)
OpenServer = Callable[..., FrameServer]
OpenClient = Callable[..., ServiceReader]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos beside secrets, with traps in it."""
    base = tmp_path_factory.mktemp("attack")
    secret = render(Recipe("secret.mp4"), base)
    folder = base / "videos"
    folder.mkdir()
    render(Recipe("good.mp4"), folder)
    (folder / "link.mp4").symlink_to(secret)
    (folder / "linked").symlink_to(base)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n"
    (folder / "playlist.mp4").write_text(playlist)
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    (folder / "garbage.mp4").write_bytes(random.Random(3).randbytes(5000))
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[FrameServer]:
    options = ServerOptions(port=0, num_workers=1, token=TOKEN, slot_bytes=64 << 20)
    made = FrameServer(with_catalogue(root), options)
    yield made
    made.close()


@pytest.fixture
def client(server: FrameServer, open_client: OpenClient) -> ServiceReader:
    return open_client(f"127.0.0.1:{server.port}", token=TOKEN)


@pytest.fixture(autouse=True)
def _server_lives(server: FrameServer) -> Iterator[None]:
    pids = server.pool.worker_pids()
    yield
    with ServiceReader([f"127.0.0.1:{server.port}"], token=TOKEN, health=QUICK) as honest:
        reply = honest.read(Request("good", SMALL, deadline=10.0))
        assert reply.arrays["frames"].shape == (1, 8, 8, 3)
    assert server.pool.worker_pids() == pids
    assert server.status()["quarantined"] == {}
    deadline = time.monotonic() + 5
    while server.pool.slots.num_free < server.pool.slots.num_slots:
        assert time.monotonic() < deadline, "slots are lost"
        time.sleep(0.02)


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper()])
def test_no_token_or_a_wrong_one(server: FrameServer, token: str | None) -> None:
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(ServiceError, match="refuses us"):
        ServiceReader([address], token=token, health=QUICK)
    headers = [(b"authorization", f"Bearer {token}".encode())] if token is not None else []
    options = flight.FlightCallOptions(timeout=5, headers=headers)
    raw = flight.connect(f"grpc://{address}")
    ticket = flight.Ticket(good_ticket())
    for call in (
        lambda: raw.do_get(ticket, options).read_all(),
        lambda: list(raw.do_action(flight.Action("status", b""), options)),
        lambda: list(raw.list_actions(options)),
    ):
        with pytest.raises(flight.FlightUnauthenticatedError):
            call()
    raw.close()


def good_ticket(**changes: Any) -> bytes:
    plain = wire.encode_request(Request("good", SMALL, deadline=5.0))
    packed: bytes = msgpack.packb({"v": wire.VERSION, "request": {**plain, **changes}})
    return packed


@pytest.mark.parametrize(
    "video",
    [
        "../secret", "../secret.mp4", "linked/../secret", "a/../../secret", "..", "/etc/passwd",
        "~/secret", "http://127.0.0.1:1/x.mp4", "https://169.254.169.254/latest/meta-data",
        "file:///etc/passwd", "concat:secret.mp4|good.mp4", "good.mp4\0", "..\\secret",
        "link", "link.mp4", "linked/secret", "linked/secret.mp4",
    ],
)  # fmt: skip
def test_ids_do_not_leave_the_root(client: ServiceReader, video: str) -> None:
    with pytest.raises((RefusedVideo, MissingVideo)) as caught:
        client.read(Request(video, SMALL, deadline=5.0))
    if video != "concat:secret.mp4|good.mp4":  # an ordinary, though missing, name
        assert caught.value.reason == "hostile"
    with pytest.raises((RefusedVideo, MissingVideo)):
        client.describe(video)


@pytest.mark.parametrize("video", ["playlist", "concat", "garbage"])
def test_files_that_point_elsewhere(client: ServiceReader, video: str) -> None:
    with pytest.raises((RefusedVideo, UnreadableVideo)):
        client.read(Request(video, SMALL, deadline=5.0))


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (Frames((0.1,) * 10_000, Size(8, 8)), "10000 frames in one request, at most 1024"),
        (Frames((0.1,), Size(8192, 8192)), "8192 pixels a side in one request, at most 4096"),
        (Frames((0.1,), None, Box(0, 0, 8192, 8192)), "8192 pixels a side"),
        (Frames((0.1,) * 1000, Size(1080, 1920)), "bytes of reply in one request, at most"),
        (Frames((float("nan"),), Size(8, 8)), "finite seconds"),
        (Audio(0.0, 1e9), "seconds of audio"),
    ],
)
def test_requests_that_are_too_large(
    client: ServiceReader, output: Frames | Audio, text: str
) -> None:
    started = time.monotonic()
    with pytest.raises((RefusedVideo, FrameUnavailable), match=text):
        client.read(Request("good", (output,), deadline=30.0))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "ticket",
    [
        b"",
        b"\xc1",
        b"\xff" * 1000,
        msgpack.packb({"v": 99, "request": {}}),
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"v": 1}),
        good_ticket(id=["good"]),
        good_ticket(outputs=[{"kind": "exec"}]),
        good_ticket(outputs={"a": 1}),
        good_ticket(deadline=float("inf")),
        good_ticket(policy="__class__"),
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    ],
)
def test_tickets_that_are_none(server: FrameServer, ticket: bytes) -> None:
    raw = flight.connect(f"grpc://127.0.0.1:{server.port}")
    bearer = [(b"authorization", f"Bearer {TOKEN}".encode())]
    options = flight.FlightCallOptions(timeout=5, headers=bearer)
    with pytest.raises(flight.FlightServerError) as caught:
        raw.do_get(flight.Ticket(ticket), options).read_all()
    assert isinstance(wire.decode_error(wire.unpackb(caught.value.extra_info)), RushesError)
    for action in ("describe", "shutdown", "\u00e9" * 200):
        with pytest.raises(flight.FlightServerError):
            list(raw.do_action(flight.Action(action, ticket), options))
    raw.close()


def test_garbage_bytes_on_the_port(server: FrameServer) -> None:
    noise = random.Random(11)
    for size in (0, 1, 9, 24, 1000, 100_000):
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.settimeout(5)
            try:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: size % 25])
                connection.sendall(noise.randbytes(size))
            except OSError:
                continue  # the server hung up already
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(b"GET /etc/passwd HTTP/1.1\r\n\r\n")


SLOW_READER = """
import sys, time, msgpack, threading
import pyarrow.flight as flight
from rushes.video.service import wire
from tests.video.service.fakes import request_of

def ask(i):
    plain = wire.encode_request(request_of(f"v{i}", frames=16, side=1000))  # 48 MB a reply
    ticket = flight.Ticket(msgpack.packb({"v": wire.VERSION, "request": plain}))
    try:
        client.do_get(ticket).read_all()
    except flight.FlightServerError as error:
        sys.stdout.write("busy\\n" if b"Busy" in error.extra_info else f"{error}\\n")
        sys.stdout.flush()

client = flight.connect(f"grpc://{sys.argv[1]}")
client.wait_for_available()
print("ready", flush=True)
sys.stdin.readline()
for i in range(12):
    threading.Thread(target=ask, args=[i]).start()
"""


def test_a_client_that_does_not_read(
    open_server: OpenServer, open_client: OpenClient, cleanup: ExitStack
) -> None:
    server = open_server(
        spec(delay=0.2), num_slots=8, slot_bytes=64 << 20, send_timeout=4.0, num_workers=1
    )
    honest = open_client(f"127.0.0.1:{server.port}")
    slow = subprocess.Popen(
        [sys.executable, "-c", SLOW_READER, f"127.0.0.1:{server.port}"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert slow.stdin is not None
    assert slow.stdout is not None
    cleanup.callback(slow.wait, 10)
    cleanup.callback(slow.kill)
    with slow.stdin, slow.stdout:
        assert slow.stdout.readline() == "ready\n"
        slow.stdin.write("go\n")
        # One connection may have half of the slots under way; the other requests are refused.
        assert [slow.stdout.readline() for _ in range(8)] == ["busy\n"] * 8
        slow.send_signal(signal.SIGSTOP)
        wait_until(lambda: server.status()["replies_being_sent"] >= 3)
        assert honest.read(request_of("other")).video_id == "other"
        wait_until(lambda: server.counters.get().get("disconnected", 0) >= 1)
        wait_until(lambda: server.pool.slots.num_free == 8)
        assert server.status()["replies_being_sent"] == 0
        assert honest.read(request_of("another")).video_id == "another"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def test_many_connections_at_once(server: FrameServer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    idle = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(200)]
    with ServiceReader([f"127.0.0.1:{server.port}"], token=TOKEN, health=QUICK) as honest:
        assert honest.read(Request("good", SMALL, deadline=10.0)).video_id == "good"
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before + 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)
