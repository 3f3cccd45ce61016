"""Calls that are opened and never made hold no thread, no descriptor and no shutdown."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from tests.helpers import ROOT, free_port
from tests.video.counter_video import Recipe, render
from tests.video.service.fakes import request_of

from rushes.video.request import Frames, Request, Size
from rushes.video.service import open_service_reader
from rushes.video.service.client import ServiceReader
from rushes.video.service.metrics_endpoint import MetricsEndpoint, ServiceMetrics
from rushes.video.service.server import FrameServer

pytestmark = pytest.mark.attack

TOKEN = "correct-horse-battery"
SERVICE = b"/arrow.flight.protocol.FlightService/"


def http2_frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return (
        struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body
    )


def header(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def open_calls(port: int, method: bytes, count: int, token: str | None = None) -> socket.socket:
    """Calls without a message, on a connection of their own."""
    connection = socket.create_connection(("127.0.0.1", port), 5)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, b""))
    connection.sendall(http2_frame(4, 1, 0, b""))
    block = header(b":method", b"POST") + header(b":scheme", b"http")
    block += header(b":path", SERVICE + method) + header(b":authority", b"x")
    block += header(b"content-type", b"application/grpc") + header(b"te", b"trailers")
    if token:
        block += header(b"authorization", f"Bearer {token}".encode())
    calls = (http2_frame(1, 4, 2 * i + 1, block) for i in range(count))
    connection.sendall(b"".join(calls))
    return connection


def ended_calls(connection: socket.socket, count: int, seconds: float = 5.0) -> int:
    """How many calls of a connection the server ends, at most `count`, within some seconds."""
    got, until, ended = b"", time.monotonic() + seconds, 0
    connection.settimeout(0.2)
    while ended < count and time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            got += connection.recv(1 << 16)
        while len(got) >= 9 and len(got) >= 9 + int.from_bytes(got[:3]):
            ended += got[3] in (0, 1) and bool(got[4] & 1)  # END_STREAM
            got = got[9 + int.from_bytes(got[:3]) :]
    return ended


@pytest.mark.parametrize("method", [b"DoPut", b"DoExchange"])
def test_calls_that_a_server_does_not_have_are_refused_unheard(
    open_server: Callable[..., FrameServer],
    open_client: Callable[..., ServiceReader],
    method: bytes,
) -> None:
    server = open_server(token=TOKEN)
    before = len(os.listdir("/proc/self/task"))
    with open_calls(server.port, method, 200, TOKEN) as known:
        assert ended_calls(known, 200) == 200
        time.sleep(0.5)
        assert len(os.listdir("/proc/self/task")) < before + 50  # gRPC keeps some for a while
    with open_calls(server.port, method, 5) as stranger:
        assert ended_calls(stranger, 5) == 5
    client = open_client(f"127.0.0.1:{server.port}", token=TOKEN)
    assert client.read(request_of("v")).video_id == "v"


def test_other_calls_of_flight_are_refused(open_server: Callable[..., FrameServer]) -> None:
    raw = flight.connect(f"grpc://127.0.0.1:{open_server().port}")
    descriptor = flight.FlightDescriptor.for_path("v")
    table = pa.table({"a": [1]})
    for call in (
        lambda: raw.do_put(descriptor, table.schema)[0].close(),
        lambda: raw.do_exchange(descriptor)[1].read_all(),
        lambda: list(raw.list_flights()),
        lambda: raw.get_flight_info(descriptor),
        lambda: raw.get_schema(descriptor),
    ):
        with pytest.raises((NotImplementedError, pa.ArrowException), match="known: DoGet"):
            call()
    assert {action.type for action in raw.list_actions()} == {"describe", "hello", "status"}
    raw.close()


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """`rushes serve-frames` in a process of its own, with its two ports."""
    program = [sys.executable, "-m", "rushes.cli", "serve-frames", "--root", str(folder)]
    program += ["--port", str(free_port()), "--metrics-port", "0", "--workers", "1", *flags]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert " on 127.0.0.1:" in line, line + server.stderr.read()
        # What it says from now on must not fill its pipe.
        drain = threading.Thread(target=server.stderr.read, daemon=True)
        drain.start()
        try:
            yield server, int(line.split(",")[0].rpartition(":")[2]), int(line.split()[-1])
        finally:
            server.kill()
            server.wait(10)
            drain.join(10)


@pytest.mark.parametrize("method", [b"DoPut", b"DoGet", b"DoAction", b"Handshake"])
def test_sigterm_ends_a_server_whatever_calls_are_open(tmp_path: Path, method: bytes) -> None:
    render(Recipe("v.mp4"), tmp_path)
    with serving(tmp_path) as (server, port, _):
        with open_service_reader(f"flight://127.0.0.1:{port}", tmp_path / "nowhere") as reader:
            reader.read(Request("v", (Frames((0.1,), Size(8, 8)),)))
        calls = [open_calls(port, method, 3) for _ in range(3)]
        silent = socket.create_connection(("127.0.0.1", port), 5)
        workers = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        time.sleep(0.5)
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
        assert time.monotonic() - started < 10.0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        for connection in (*calls, silent):
            connection.close()


def test_sigterm_is_heard_on_whichever_thread_it_arrives(tmp_path: Path) -> None:
    """The kernel gives it to any thread of a busy server; Python acts on it in the main one."""
    render(Recipe("v.mp4"), tmp_path)
    deliver = ctypes.CDLL(None, use_errno=True).tgkill
    with serving(tmp_path) as (server, _, _):
        others = sorted(map(int, os.listdir(f"/proc/{server.pid}/task")))
        others.remove(server.pid)
        assert deliver(server.pid, others[-1], signal.SIGTERM) == 0
        assert server.wait(15) == 0


def test_strangers_that_take_every_descriptor_are_sent_away(tmp_path: Path) -> None:
    render(Recipe("v.mp4"), tmp_path)
    with serving(tmp_path, "--slots", "4") as (server, port, metrics):
        limit = len(os.listdir(f"/proc/{server.pid}/fd")) + 40
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        idle = contextlib.ExitStack()
        for _ in range(300):
            idle.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        health = f"http://127.0.0.1:{metrics}/healthz"
        assert urllib.request.urlopen(health, timeout=5).read() == b"ok\n"
        address = f"flight://127.0.0.1:{port}"
        with open_service_reader(address, tmp_path / "nowhere", deadline=40.0) as reader:
            request = Request("v", (Frames((0.1,), Size(8, 8)),))
            assert reader.read(request).arrays["frames"].shape == (1, 8, 8, 3)
        idle.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0


def test_a_server_takes_the_descriptors_that_it_may_have(tmp_path: Path) -> None:
    render(Recipe("v.mp4"), tmp_path)
    with serving(tmp_path) as (server, _, _):
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, 1 << 16) or soft > 1 << 16


@pytest.fixture
def endpoint() -> Iterator[MetricsEndpoint]:
    made = MetricsEndpoint("127.0.0.1", 0, ServiceMetrics(), lambda: {"workers": [1]})
    yield made
    made.close()


def test_metrics_take_a_query_and_health_a_head(endpoint: MetricsEndpoint) -> None:
    base = f"http://127.0.0.1:{endpoint.port}"
    with urllib.request.urlopen(f"{base}/metrics?a=1", timeout=5) as got:
        assert got.status == 200
    head = urllib.request.Request(f"{base}/healthz", method="HEAD")
    with urllib.request.urlopen(head, timeout=5) as got:
        assert (got.status, got.read(), got.headers["Content-Length"]) == (200, b"", "3")


def test_a_reset_is_no_news(endpoint: MetricsEndpoint, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        connection = socket.create_connection(("127.0.0.1", endpoint.port), 5)
        connection.sendall(b"GET /metrics HT")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    time.sleep(0.5)
    assert capfd.readouterr().err == ""


def test_metrics_have_few_threads(endpoint: MetricsEndpoint) -> None:
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", endpoint.port), 5) for _ in range(100)]
    time.sleep(0.5)
    assert threading.active_count() <= before + 16
    for connection in idle:
        connection.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    url = f"http://127.0.0.1:{endpoint.port}/healthz"
    assert urllib.request.urlopen(url, timeout=5).read() == b"ok\n"


def test_a_root_that_is_no_text_is_served_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "v\udcff"
    folder.mkdir()
    render(Recipe("v.mp4"), folder)
    started = time.monotonic()
    with serving(folder) as (_, port, _):
        assert time.monotonic() - started < 30.0
        with open_service_reader(f"flight://127.0.0.1:{port}", tmp_path / "nowhere") as reader:
            request = Request("v", (Frames((0.1,), Size(8, 8)),))
            assert reader.read(request).arrays["frames"].shape == (1, 8, 8, 3)
