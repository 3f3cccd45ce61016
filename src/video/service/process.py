"""The parent's handle on one decode worker process: start, ask, watch, kill."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rushes.errors import ServiceError, StorageError
from rushes.log import get_logger
from rushes.video.service import wire
from rushes.video.service.limits import RequestLimits
from rushes.video.service.slots import SlotPool
from rushes.video.service.worker import OUT_OF_MEMORY

log = get_logger(__name__)

_PAGE = os.sysconf("SC_PAGESIZE")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from rushes.video.service.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_TICK = 0.1
"""Seconds between two looks at a busy worker's memory."""

_OPEN_SHARE = 4
"""A worker keeps videos open in this part of its memory limit."""

Watch = Callable[[], float]
"""Asked while a worker is waited for: the seconds until it wants to be asked again. It ends the
wait by raising `ProcessGone`."""


class ProcessGone(Exception):
    """The worker died, was killed or will be; `str()` says how.

    Attributes:
        hung: it did not answer in time, and still runs.
        in_the_way: nobody waits for it any more, but others wait for a worker.
    """

    def __init__(self, text: str, hung: bool = False, in_the_way: bool = False) -> None:
        self.hung, self.in_the_way = hung, in_the_way
        super().__init__(text)


@dataclass(frozen=True)
class WorkerSpec:
    """What every worker of a pool is started with.

    Attributes:
        factory: `module:function` that makes the reader inside the worker.
        arguments: keywords for it: texts, numbers, lists.
        memory_limit: bytes of private memory; a worker that wants more is killed. 0: no limit.
        start_timeout: seconds until a worker must be ready.
    """

    factory: str = "rushes.video.service.worker:open_default"
    arguments: dict[str, Any] = field(default_factory=dict)
    memory_limit: int = 4 << 30
    start_timeout: float = 60.0


def with_catalogue(
    catalogue_path: str | Path,
    vis_format: str = "auto",
    videos_low: str | Path | None = None,
    backend: str = "pyav",
    memory_limit: int = 4 << 30,
    index_cache: str | Path | None = None,
) -> WorkerSpec:
    """Workers that read a catalogue; its path is made absolute.

    Videos that a worker keeps open take a share of its memory limit, so that many good ones
    together do not look like one that outgrows it. Where `index_cache` cannot be used the log says
    so, and they do without.
    """
    arguments = {
        "catalogue_path": str(Path(catalogue_path).absolute()),
        "vis_format": vis_format,
        "videos_low": None if videos_low is None else str(Path(videos_low).absolute()),
        "backend": backend,
        "open_bytes": memory_limit // _OPEN_SHARE or None,
        "index_cache": None if index_cache is None else _usable_cache(Path(index_cache).absolute()),
    }
    return WorkerSpec(arguments=arguments, memory_limit=memory_limit)


def _usable_cache(folder: Path) -> str | None:
    """The folder as workers are told it; None where indexes cannot be kept there.

    Tried here, once: a worker would find out at its first video, and fail that and all others for
    what only makes them quicker.
    """
    from rushes.video.probe_cache import ProbeCache

    cache = ProbeCache(folder)
    try:
        cache.get(b"")
    except StorageError as error:
        log.warning("every start reads the files' packets anew, nothing is kept: %s", error)
        return None
    finally:
        cache.close()
    return str(folder)


class WorkerProcess:
    """One worker. Must be started by a thread that outlives it: the kernel ends both together."""

    def __init__(
        self, spec: WorkerSpec, slots: SlotPool, limits: RequestLimits | None = None
    ) -> None:
        self.spec = spec
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.enter_context(ours)
            passed = [theirs.fileno(), *slots.descriptors]
            arguments = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())]
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, *arguments],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ},
            )
            undo.pop_all()
        self.connection = Connection(ours.detach())
        self._setup = {
            "factory": spec.factory,
            "arguments": spec.arguments,
            "slots": slots.descriptors,
            "slot_bytes": slots.slot_bytes,
            "memory_limit": spec.memory_limit,
            "limits": None if limits is None else dataclasses.asdict(limits),
        }

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs, by the kernel's word."""
        return self.process.poll() is None

    def wait_ready(self, watch: Watch) -> None:
        """Return when the worker can take requests; raises what its reader's factory raised."""
        answer = self.ask(self._setup, watch)
        if "error" in answer:
            raise wire.decode_error(answer["error"])

    def ask(self, message: dict[str, Any], watch: Watch) -> dict[str, Any]:
        """Send one message and wait for its answer.

        Args:
            message: a slot and a request, or a video id to name or to describe.
            watch: decides how long to wait.

        Raises:
            ProcessGone: the worker died, outgrew its memory, or `watch` said so.
        """
        self._send(message)
        return self._receive(watch)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.send_bytes(wire.packb(message))
        except OSError as error:
            raise ProcessGone(self.how_it_ended()) from error

    def _receive(self, watch: Watch) -> dict[str, Any]:
        try:
            while not self.connection.poll(min(_TICK, max(watch(), 0.0))):
                self._check_memory()
            answer: dict[str, Any] = wire.unpackb(self.connection.recv_bytes())
            return answer
        except (OSError, EOFError) as error:
            raise ProcessGone(self.how_it_ended()) from error

    def _check_memory(self) -> None:
        if self.spec.memory_limit and self.private_memory() > self.spec.memory_limit:
            limit = self.spec.memory_limit >> 20
            raise ProcessGone(f"outgrew its memory limit of {limit} MiB")

    def private_memory(self) -> int:
        """Bytes of resident memory that the worker shares with nobody; 0 when it is gone."""
        try:
            with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
                _, resident, shared = file.read().split()[:3]
        except (OSError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE

    def how_it_ended(self) -> str:
        """What became of the process, waiting a moment for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5.0)
        status = self.process.returncode
        if status == OUT_OF_MEMORY:
            return f"outgrew its memory limit of {self.spec.memory_limit >> 20} MiB"
        if status is not None and status < 0:
            return f"was killed by signal {-status}"
        return f"ended with status {status}"

    def kill(self) -> None:
        """Kill the process, wait for its end and give back what it held."""
        self.process.kill()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired as error:
            raise ServiceError(f"worker {self.pid} does not die: stuck in the kernel") from error
        self.connection.close()
