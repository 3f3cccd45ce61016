"""Pools, servers in this process and servers in processes of their own, all closed at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from tests.helpers import ROOT
from tests.video.service.fakes import FACTORY

from rushes.video.service.client import ServiceReader
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import WorkerSpec
from rushes.video.service.remote import Health
from rushes.video.service.server import FrameServer, ServerOptions

QUICK = Health(every=0.3, retry=0.1, timeout=0.5)


def spec(folder: object = None, delay: float = 0.0, memory_limit: int = 1 << 30) -> WorkerSpec:
    """Workers that read fake videos."""
    arguments = {"folder": None if folder is None else str(folder), "delay": delay}
    return WorkerSpec(FACTORY, arguments, memory_limit)


@dataclass
class ServerProcess:
    """A server that can be killed and started again on its port."""

    arguments: dict[str, Any]
    options: dict[str, Any]
    process: subprocess.Popen[str] | None = None
    port: int = 0
    workers: tuple[int, ...] = ()

    def start(self) -> None:
        """Start, on the same port as before if there was one."""
        options = {"port": self.port, "slot_bytes": 8 << 20, **self.options}
        program = [sys.executable, "-m", "tests.video.service.server_program"]
        self.process = subprocess.Popen(
            [*program, json.dumps(self.arguments), json.dumps(options)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        port, *workers = map(int, self.process.stdout.readline().split())
        self.port, self.workers = port, tuple(workers)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def open_pool(cleanup: ExitStack) -> Callable[..., PoolReader]:
    def opened(
        chosen: WorkerSpec | None = None, num_workers: int = 2, **options: Any
    ) -> PoolReader:
        options = {"slot_bytes": 8 << 20, "deadline": 20.0, **options}
        return cleanup.enter_context(PoolReader(chosen or spec(), num_workers, **options))

    return opened


@pytest.fixture
def open_server(cleanup: ExitStack) -> Callable[..., FrameServer]:
    def opened(chosen: WorkerSpec | None = None, **options: Any) -> FrameServer:
        options = {"port": 0, "slot_bytes": 8 << 20, **options}
        server: FrameServer = FrameServer(chosen or spec(), ServerOptions(**options))
        cleanup.callback(server.close)
        return server

    return opened


@pytest.fixture
def open_client(cleanup: ExitStack) -> Callable[..., ServiceReader]:
    def opened(*addresses: str, **options: Any) -> ServiceReader:
        options = {"deadline": 10.0, "health": QUICK, **options}
        return cleanup.enter_context(ServiceReader(addresses, **options))

    return opened


@pytest.fixture
def spawn_server(cleanup: ExitStack) -> Callable[..., ServerProcess]:
    def spawned(folder: object = None, delay: float = 0.0, **options: Any) -> ServerProcess:
        arguments = {"folder": None if folder is None else str(folder), "delay": delay}
        server = ServerProcess(arguments, options)
        cleanup.callback(server.kill)
        server.start()
        return server

    return spawned
