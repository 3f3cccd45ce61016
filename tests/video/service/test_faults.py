"""Something is killed, hangs or vanishes while frames are being read; nothing else goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.helpers import ROOT
from tests.video.service.conftest import QUICK, ServerProcess, spec
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import DecodeTimeout, Quarantined, RushesError, ServiceError
from rushes.video.request import Reply, Request
from rushes.video.service.client import ServiceReader, home_order
from rushes.video.service.pool import PoolReader
from rushes.video.service.server import FrameServer

pytestmark = pytest.mark.fault

OpenPool = Callable[..., PoolReader]
SpawnServer = Callable[..., ServerProcess]
OpenClient = Callable[..., ServiceReader]
OpenServer = Callable[..., FrameServer]
DEADLINE = 10.0


class Trainer:
    """Reads samples on several threads, as a loader does, and checks every one of them.

    Args:
        read: of the reader under test.
        videos: one sample each, in this order.
    """

    def __init__(self, read: Callable[[Request], Reply], videos: list[str], threads: int) -> None:
        self.plain = FakeReader()
        self.longest = 0.0
        self._pool = ThreadPoolExecutor(threads)
        self.samples: list[tuple[str, Future[Reply]]] = [
            (video, self._pool.submit(self._timed, read, video)) for video in videos
        ]

    def _timed(self, read: Callable[[Request], Reply], video: str) -> Reply:
        started = time.monotonic()
        try:
            return read(request_of(video, deadline=DEADLINE))
        finally:
            self.longest = max(self.longest, time.monotonic() - started)

    def wait_for(self, count: int) -> None:
        """Until so many samples are there."""
        while sum(future.done() for _, future in self.samples) < count:
            time.sleep(0.01)

    def finish(self) -> dict[str, RushesError]:
        """Check all samples; those that failed, with their errors."""
        failed: dict[str, RushesError] = {}
        for video, future in self.samples:
            error = future.exception(60)
            if error is None:
                assert same(future.result(), self.plain.read(request_of(video)))
            else:
                assert isinstance(error, RushesError), error
                failed[video] = error
        self._pool.shutdown()
        assert self.longest < DEADLINE + 3.0
        return failed


@contextmanager
def training(
    read: Callable[[Request], Reply], videos: list[str], threads: int = 6
) -> Iterator[Trainer]:
    trainer = Trainer(read, videos, threads)
    try:
        yield trainer
    finally:
        trainer._pool.shutdown(cancel_futures=True)


def names(count: int, special: dict[int, str] | None = None) -> list[str]:
    return [(special or {}).get(i, f"v{i}") for i in range(count)]


def test_kill_9_a_decode_worker(open_pool: OpenPool) -> None:
    pool = open_pool(spec(delay=0.02))
    with training(pool.read, names(100)) as trainer:
        for done in (10, 40, 70):
            trainer.wait_for(done)
            os.kill(pool.worker_pids()[0], signal.SIGKILL)
        assert trainer.finish() == {}
    assert 2 <= pool.num_restarts <= 3
    assert pool.quarantine.videos() == {}


@pytest.mark.slow
def test_a_video_that_hangs_the_decoder(open_pool: OpenPool) -> None:
    pool = open_pool(spec(delay=0.005))
    with training(pool.read, names(100, {30: "hang_1"})) as trainer:
        started = time.monotonic()
        trainer.wait_for(99)
        assert time.monotonic() - started < DEADLINE / 2  # the others did not wait for it
        failed = trainer.finish()
    assert list(failed) == ["hang_1"]
    assert isinstance(failed["hang_1"], DecodeTimeout)
    assert pool.num_restarts == 1


def test_a_video_that_kills_workers_twice_is_quarantined(
    open_pool: OpenPool, tmp_path: Path
) -> None:
    pool = open_pool(spec(tmp_path), deadline=1.0)
    hung = 0
    while not pool.quarantine.videos():  # a worker that had no CPU is not blamed for it
        with pytest.raises((DecodeTimeout, Quarantined)) as said:
            pool.read(request_of("hang_1"))
        hung += said.type is DecodeTimeout
        assert hung < 6
    assert hung >= 2  # three, where the last was asked before the second worker was killed
    with pytest.raises(Quarantined, match=r"killed [2-6] workers, the limit is 2"):
        pool.read(request_of("hang_1"))
    with pytest.raises(Quarantined, match="signal 11"):
        pool.read(request_of("crash_1", deadline=20.0))
    assert set(pool.quarantine.videos()) == {"hang_1", "crash_1"}
    tries = (tmp_path / "decoded.log").read_text().split()
    with pytest.raises(Quarantined):
        pool.read(request_of("crash_1"))
    assert (tmp_path / "decoded.log").read_text().split() == tries  # not tried again
    assert 4 <= pool.num_restarts <= hung + 2


def test_a_caller_in_a_hurry_closes_no_video_to_others(open_pool: OpenPool) -> None:
    pool = open_pool(spec(delay=0.5))
    for _ in range(3):
        with pytest.raises(DecodeTimeout):
            pool.read(request_of("v", deadline=0.1))
    assert pool.quarantine.videos() == {}
    assert same(pool.read(request_of("v")), FakeReader().read(request_of("v")))


def test_one_callers_hurry_is_not_anothers(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    server = open_server(spec(delay=0.8), num_workers=1)
    address = f"127.0.0.1:{server.port}"
    patient = open_client(address)
    with ThreadPoolExecutor(1) as thread, open_client(address) as hasty:
        early = thread.submit(hasty.read, request_of("v", deadline=0.4))
        time.sleep(0.2)
        assert same(patient.read(request_of("v")), FakeReader().read(request_of("v")))
        with pytest.raises(RushesError):
            early.result(20)


def test_a_worker_killed_once_is_no_fault_of_the_video(open_pool: OpenPool, tmp_path: Path) -> None:
    pool = open_pool(spec(tmp_path))
    for _ in range(3):
        assert same(pool.read(request_of("once_1")), FakeReader().read(request_of("once_1")))
        (tmp_path / "once_1.crashed").unlink()
    assert pool.quarantine.videos() == {}


def test_a_worker_that_outgrows_its_memory(open_pool: OpenPool) -> None:
    pool = open_pool(spec(memory_limit=300 << 20))
    with pytest.raises(Quarantined, match="outgrew its memory limit of 300 MiB"):
        pool.read(request_of("greedy_1"))
    assert same(pool.read(request_of("v")), FakeReader().read(request_of("v")))


def test_kill_9_the_trainer_leaves_nothing_behind() -> None:
    program = (
        "import sys, time;"
        "from rushes.video.service.pool import PoolReader;"
        "from tests.video.service.conftest import spec;"
        "from tests.video.service.fakes import request_of;"
        "pool = PoolReader(spec(), 2); reply = pool.read(request_of('v'));"
        "pool.submit(request_of('hang_1'));"
        "print(*pool.worker_pids(), flush=True); time.sleep(60)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    with trainer.stdout:
        workers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
    before = set(os.listdir("/dev/shm"))
    trainer.kill()
    trainer.wait(10)
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    assert set(os.listdir("/dev/shm")) <= before


def test_kill_9_one_of_two_servers(spawn_server: SpawnServer, open_client: OpenClient) -> None:
    servers = [spawn_server(delay=0.02) for _ in range(2)]
    client = open_client(*(server.address for server in servers))
    with training(client.read, names(150)) as trainer:
        trainer.wait_for(30)
        servers[0].kill()
        assert trainer.finish() == {}
    assert not client.servers[servers[0].address].well
    assert psutil.pid_exists(servers[1].workers[0])
    _, alive = psutil.wait_procs(
        [psutil.Process(p) for p in servers[0].workers if psutil.pid_exists(p)], timeout=5
    )
    assert not alive  # a dead server's workers go with it


def test_kill_9_both_servers_and_decode_locally(
    spawn_server: SpawnServer, open_client: OpenClient
) -> None:
    servers = [spawn_server(delay=0.02) for _ in range(2)]
    client = open_client(
        *(server.address for server in servers), fallback=lambda: PoolReader(spec(), 2)
    )
    with training(client.read, names(80)) as trainer:
        trainer.wait_for(20)
        for server in servers:
            server.kill()
        assert trainer.finish() == {}
    assert client.counters.get()["fallbacks"] > 0


def test_kill_9_both_servers_and_no_files_here(
    spawn_server: SpawnServer, open_client: OpenClient
) -> None:
    servers = [spawn_server() for _ in range(2)]
    client = open_client(*(server.address for server in servers))
    client.read(request_of("v"))
    for server in servers:
        server.kill()
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"no frame server answered within 2 s") as caught:
        client.read(request_of("v", deadline=2.0))
    assert time.monotonic() - started < 3.0
    assert all(server.address in str(caught.value) for server in servers)


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()
        thread.join(5)


def test_a_server_that_accepts_and_never_answers(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    server = open_server()
    with silent_server() as silent:
        client = open_client(silent, f"127.0.0.1:{server.port}")
        with training(client.read, names(60)) as trainer:
            assert trainer.finish() == {}
            assert trainer.longest < DEADLINE / 2
        alone = open_client(silent)
        with pytest.raises(ServiceError, match=r"no frame server answered within 1\.5 s"):
            alone.read(request_of("v", deadline=1.5))


def test_a_server_that_stops_answering_midway(
    spawn_server: SpawnServer, open_client: OpenClient
) -> None:
    servers = [spawn_server(delay=0.02) for _ in range(2)]
    client = open_client(*(server.address for server in servers))
    frozen = servers[0]
    assert frozen.process is not None
    with training(client.read, names(120)) as trainer:
        trainer.wait_for(30)
        frozen.process.send_signal(signal.SIGSTOP)
        assert trainer.finish() == {}
        assert trainer.longest < DEADLINE / 2
    assert not client.servers[frozen.address].well
    frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: client.servers[frozen.address].well)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def test_a_server_restarted_on_its_port_is_taken_back(
    spawn_server: SpawnServer, open_client: OpenClient, tmp_path: Path
) -> None:
    servers = [spawn_server(tmp_path, delay=0.01) for _ in range(2)]
    client = open_client(*(server.address for server in servers))
    with training(client.read, names(100)) as trainer:
        trainer.wait_for(20)
        servers[0].kill()
        trainer.wait_for(50)
        servers[0].start()
        assert trainer.finish() == {}
    remote = client.servers[servers[0].address]
    wait_until(lambda: remote.well)
    video = next(v for v in names(100) if home_order(v, list(client.servers))[0] == remote.address)
    servers[1].kill()
    assert same(client.read(request_of(video)), FakeReader().read(request_of(video)))


def test_a_slow_server_is_left_alone(spawn_server: SpawnServer, open_client: OpenClient) -> None:
    quick, slow = spawn_server(), spawn_server(delay=1.2)
    client = open_client(quick.address, slow.address)
    with training(client.read, names(40), threads=2) as trainer:
        assert trainer.finish() == {}
    assert client.servers[slow.address].well
    assert not client.servers[slow.address].usable


def test_a_client_killed_mid_request_costs_the_server_nothing(open_server: OpenServer) -> None:
    server = open_server(spec(delay=0.8), num_workers=1)
    program = (
        "import sys, time;"
        "from rushes.video.service.client import ServiceReader;"
        "from tests.video.service.fakes import request_of;"
        "reader = ServiceReader([sys.argv[1]]);"
        "futures = [reader.submit(request_of(f'v{i}')) for i in range(10)];"
        "futures[0].result(20); print('ok', flush=True); time.sleep(60)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, f"127.0.0.1:{server.port}"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdout is not None
    with client.stdout:
        assert client.stdout.readline() == "ok\n"
    under_way = server.status()["requests_waiting"]
    client.kill()
    client.wait(10)
    assert under_way > 0

    def free() -> bool:
        status = server.status()
        return bool(
            status["requests_waiting"] == status["replies_being_sent"] == 0
            and status["queue_depth"] == 0
            and status["slots_free"] == status["slots"]
        )

    wait_until(free)
    assert server.counters.get()["reads"] < 10  # what only it wanted was not decoded


def test_quarantine_is_the_servers_and_every_client_is_told(
    open_server: OpenServer, open_client: OpenClient
) -> None:
    server = open_server()
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(Quarantined):
        open_client(address).read(request_of("crash_1"))
    with pytest.raises(Quarantined, match="killed 2 workers"):
        open_client(address).read(request_of("crash_1"))
    assert list(server.status()["quarantined"]) == ["crash_1"]
    assert QUICK.timeout < DEADLINE
