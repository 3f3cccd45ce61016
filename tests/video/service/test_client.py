"""The client's threads do not wait for each other, and its hurry marks no server."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pyarrow.flight as flight
import pytest
from tests.helpers import free_port
from tests.video.service.conftest import ServerProcess, spec
from tests.video.service.fakes import FakeReader, request_of, same
from tests.video.service.test_faults import silent_server

from rushes.errors import ConfigError, DecodeTimeout, RushesError, ServiceError
from rushes.video.service import open_service_reader
from rushes.video.service.client import ServiceReader, check_address, home_order
from rushes.video.service.pool import PoolReader
from rushes.video.service.server import FrameServer
from rushes.video.service.status import fetch_status

OpenServer = Callable[..., FrameServer]
OpenClient = Callable[..., ServiceReader]


def test_more_submitted_reads_than_threads(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    server = open_server(queue=2000)
    client = open_client(f"127.0.0.1:{server.port}", deadline=60.0)
    started = time.monotonic()
    futures = [client.submit(request_of(f"v{i % 50}", 1, 8)) for i in range(700)]
    for i, future in enumerate(futures):
        assert future.result(30).video_id == f"v{i % 50}"
    assert time.monotonic() - started < 30


def test_a_submitted_read_has_its_time_from_then_on(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    server = open_server(spec(delay=0.1), num_workers=1, queue=2000)
    client = open_client(f"127.0.0.1:{server.port}")
    started = time.monotonic()
    futures = [client.submit(request_of(f"v{i}", 1, 8, deadline=1.0)) for i in range(600)]
    failed = [future.exception(10) for future in futures]
    assert time.monotonic() - started < 5.0
    assert any(isinstance(error, DecodeTimeout) for error in failed)
    assert all(error is None or isinstance(error, RushesError) for error in failed)


@pytest.mark.fault
def test_a_callers_hurry_marks_no_server(open_server: OpenServer, open_client: OpenClient) -> None:
    server = open_server(spec(delay=0.5))
    address = f"127.0.0.1:{server.port}"
    client = open_client(address)
    remote = client.servers[address]
    for _ in range(3):
        with pytest.raises(DecodeTimeout):
            client.read(request_of("v", deadline=0.1))
        assert remote.well
        assert remote.usable
    assert same(client.read(request_of("v")), FakeReader().read(request_of("v")))


@pytest.mark.fault
def test_a_hanging_video_is_the_videos_error_not_the_services(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    servers = [open_server(num_workers=1) for _ in range(2)]
    client = open_client(*(f"127.0.0.1:{server.port}" for server in servers))
    with pytest.raises(DecodeTimeout):
        client.read(request_of("hang_1", deadline=1.5))
    assert all(remote.well for remote in client.servers.values())


@pytest.mark.fault
def test_attempts_at_a_server_that_hangs_hold_up_no_others(
    spawn_server: Callable[..., ServerProcess], open_client: OpenClient
) -> None:
    import signal

    servers = [spawn_server() for _ in range(2)]
    client = open_client(*(server.address for server in servers), deadline=30.0)
    frozen, sound = servers
    assert frozen.process is not None
    frozen.process.send_signal(signal.SIGSTOP)
    order = list(client.servers)
    theirs = [v for v in map("v{}".format, range(900)) if home_order(v, order)[0] == frozen.address]
    with ThreadPoolExecutor(300) as threads:
        lost = [threads.submit(client.read, request_of(v, 1, 8)) for v in theirs[:300]]
        assert all(future.result(30).video_id for future in lost)
    frozen.process.send_signal(signal.SIGCONT)
    assert sound.process is not None


def test_a_deadline_beyond_what_servers_allow_is_no_error(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    client = open_client(f"127.0.0.1:{open_server().port}")
    assert client.read(request_of("v", deadline=5000.0)).video_id == "v"


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_deadlines_that_are_no_time(deadline: float, tmp_path: Path) -> None:
    for frames in ("local", "flight://127.0.0.1:1"):
        with pytest.raises(ConfigError, match="expected more than 0 s, at most 86400 s"):
            open_service_reader(frames, tmp_path, deadline=deadline)


class Stranger(flight.FlightServerBase):  # type: ignore[misc]
    """A Flight server of somebody else, which answers whatever it is asked."""

    def do_action(self, _context: object, action: flight.Action) -> list[bytes]:
        return [ANSWERS[action.type]] if action.type in ANSWERS else []


ANSWERS = {"status": b"[1, 2]", "hello": msgpack.packb({"version": 1, "window": 4})}


def test_servers_of_another_kind_are_said_to_be(tmp_path: Path) -> None:
    with Stranger("grpc://127.0.0.1:0") as stranger:
        address = f"127.0.0.1:{stranger.port}"
        with pytest.raises(ServiceError, match="speaks version None, not 2"):
            fetch_status(address)
        with ServiceReader([address], deadline=0.5) as reader:
            assert not reader.servers[address].well
            with pytest.raises(ServiceError, match="no frame server answered"):
                reader.read(request_of("v"))
    with pytest.raises(ConfigError, match="'ho st:80'"):
        ServiceReader(["ho st:80"])


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":8815", "host:port", "host:0", "host:65536", "::1:8815", "host:-1"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        check_address(address)


def test_a_closed_reader_says_so(open_server: OpenServer, open_client: OpenClient) -> None:
    client = open_client(f"127.0.0.1:{open_server().port}")
    client.close()
    with pytest.raises(ServiceError, match="closed"):
        client.read(request_of("v"))


def test_a_silent_server_leaves_the_other_to_answer(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    server = open_server()
    with silent_server() as silent:
        client = open_client(silent, f"127.0.0.1:{server.port}")
        assert all(client.read(request_of(f"v{i}")).video_id for i in range(10))


@pytest.mark.fault
def test_opening_the_local_pool_takes_no_caller_past_its_deadline(
    open_client: OpenClient,
) -> None:
    def slowly() -> PoolReader:
        time.sleep(2.0)
        return PoolReader(spec(), 1, slot_bytes=8 << 20)

    client = open_client(f"127.0.0.1:{free_port()}", fallback=slowly)
    started = time.monotonic()
    with pytest.raises(ServiceError, match="no frame server answered within"):
        client.read(request_of("v", deadline=0.5))
    assert time.monotonic() - started < 1.5
    request = request_of("v", deadline=30.0)
    assert same(client.read(request), FakeReader().read(request))
    assert client.describe("v").num_frames == 50
    assert client.counters.get()["fallbacks"] == 2


def test_closing_while_the_local_pool_opens_leaves_no_worker(open_client: OpenClient) -> None:
    pools: list[PoolReader] = []

    def slowly() -> PoolReader:
        time.sleep(0.5)
        pools.append(PoolReader(spec(), 1, slot_bytes=8 << 20))
        return pools[0]

    client = open_client(f"127.0.0.1:{free_port()}", fallback=slowly)
    with pytest.raises(ServiceError):
        client.read(request_of("v", deadline=0.2))
    client.close()
    deadline = time.monotonic() + 20
    while not pools or not pools[0].closed or pools[0].worker_pids():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.fault
def test_a_server_that_comes_back_with_another_token_costs_no_sample(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    servers = [open_server(token="one") for _ in range(2)]
    client = open_client(*(f"127.0.0.1:{server.port}" for server in servers), token="one")
    port = servers[1].port
    servers[1].close()
    other = open_server(token="two", port=port)
    for i in range(60):  # the watcher does not know yet
        request = request_of(f"v{i}", 1, 8)
        assert same(client.read(request), FakeReader().read(request))
    servers[0].close()
    time.sleep(2.5)
    with pytest.raises(ServiceError):
        client.read(request_of("v", 1, 8, deadline=3.0))
    other.close()
