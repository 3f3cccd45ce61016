"""Decoding in a process of its own, under a wall clock and a memory limit."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from dataclasses import asdict
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from rushes.errors import DecodeTimeout, RushesError, UnreadableVideo, WorkerDied
from rushes.video.catalogue import Catalogue
from rushes.video.dying import die_with_parent
from rushes.video.limits import Limits
from rushes.video.request import Reply, Request, VideoInfo

DEFAULT_SECONDS = 60.0
"""Wall clock of a read that names no deadline."""
DEFAULT_MEMORY = 4 * 2**30
"""Address space of the worker in bytes."""
_GRACE = 1.0
"""Seconds that a worker may take beyond its own deadline before it is killed."""
_START_SECONDS = 60.0

_MAIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]);"
    "from rushes.video.sandbox import serve; serve(int(sys.argv[1]), int(sys.argv[3]))"
)


class SandboxedReader:
    """A reader whose decoding runs in one worker process.

    A worker that hangs, dies or outgrows its memory is killed; the read that did it raises, and the
    next read finds a fresh worker. Nothing that a file holds can take this process down, and no
    worker outlives it.

    Args:
        catalogue: where the videos are; it travels to the worker.
        backend: name of the reader in the worker.
        limits: what is refused.
        seconds: wall clock of a read without a deadline.
        memory: address space of the worker in bytes (RLIMIT_AS).
        index_cache: folder of packet indexes.
        threads: decoding threads.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        backend: str = "pyav",
        *,
        limits: Limits | None = None,
        seconds: float = DEFAULT_SECONDS,
        memory: int = DEFAULT_MEMORY,
        index_cache: Path | None = None,
        threads: int = 1,
    ) -> None:
        self.seconds = seconds
        self._setup = {
            "catalogue": catalogue,
            "backend": backend,
            "limits": asdict(limits or Limits()),
            "memory": memory,
            "index_cache": index_cache,
            "threads": threads,
        }
        # The kernel ends a worker with the thread that started it: one that lasts, for the thread
        # that reads first may end before the others.
        self._starter = _Starter()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if one runs."""
        return None if self._process is None else self._process.pid

    def describe(self, video_id: str) -> VideoInfo:
        """What the video holds; raises `VideoError`."""
        return cast(VideoInfo, self._ask(video_id, ("describe", video_id), self.seconds))

    def read(self, request: Request) -> Reply:
        """The named arrays.

        Raises:
            DecodeTimeout: the deadline, or `seconds`, passed; a hung worker was killed.
            WorkerDied: the worker died or outgrew its memory.
            VideoError: as from the reader itself.
        """
        seconds = self.seconds if request.deadline is None else request.deadline + _GRACE
        return cast(Reply, self._ask(request.video_id, ("read", request), seconds))

    def _ask(self, video_id: str, message: tuple[str, Any], seconds: float) -> Any:
        assert not self._closed, "the reader is closed"
        pipe = self._started(video_id)
        try:
            pipe.send(message)
            if not pipe.poll(seconds):
                self._kill()
                raise DecodeTimeout(
                    video_id, f"no answer in {seconds:.1f} s; the worker was killed"
                )
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            status = self._kill()
            raise WorkerDied(video_id, f"the decoding process died ({_status(status)})") from error
        if isinstance(answer, BaseException):
            if isinstance(answer, WorkerDied):
                self._kill()  # its memory is spent; what it still holds is not to be trusted
            raise answer
        return answer

    def _started(self, video_id: str) -> Connection:
        if self._process is not None and self._process.poll() is None:
            assert self._pipe is not None
            return self._pipe
        self._kill()
        ours, theirs = Pipe(duplex=True)
        arguments = [str(theirs.fileno()), json.dumps(sys.path), str(os.getpid())]
        with theirs:
            command = [sys.executable, "-c", _MAIN, *arguments]
            self._process = self._starter.start(command, theirs.fileno())
        self._pipe = ours
        try:
            ours.send(self._setup)
            if not ours.poll(_START_SECONDS):
                raise EOFError
            ready = ours.recv()
        except (EOFError, OSError) as error:
            status = self._kill()
            detail = f"the decoding process did not start ({_status(status)})"
            raise WorkerDied(video_id, detail) from error
        if isinstance(ready, BaseException):
            self._kill()
            raise ready
        return ours

    def _kill(self) -> int | None:
        """End the worker, whatever it does; returns its exit status."""
        if self._pipe is not None:
            self._pipe.close()
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return None
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        return process.returncode

    def close(self) -> None:
        """End the worker."""
        self._kill()
        self._starter.close()
        self._closed = True

    def __enter__(self) -> SandboxedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_Ask = tuple[list[str], int, "Future[subprocess.Popen[bytes]]"]


class _Starter:
    """A thread that starts workers; unlike an executor's it also serves while the program ends."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[_Ask | None] = SimpleQueue()
        # The thread does not hold this object, so that it ends with a reader that nobody closes.
        self._end = weakref.finalize(self, self._asked.put, None)
        threading.Thread(target=_start_asked, args=(self._asked,), daemon=True).start()

    def start(self, command: list[str], descriptor: int) -> subprocess.Popen[bytes]:
        """A worker that holds one descriptor of ours; raises what starting it raises."""
        started: Future[subprocess.Popen[bytes]] = Future()
        self._asked.put((command, descriptor, started))
        return started.result()

    def close(self) -> None:
        """End the thread, and with it what it started."""
        self._end()


def _start_asked(asked: SimpleQueue[_Ask | None]) -> None:
    while (ask := asked.get()) is not None:
        command, descriptor, started = ask
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        except Exception as error:  # noqa: BLE001 - the border of a thread: the reader raises it
            started.set_exception(error)
        else:
            started.set_result(process)


def _status(status: int | None) -> str:
    if status is None:
        return "no status"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def serve(descriptor: int, parent: int) -> None:
    """The worker: answers requests over a pipe until the pipe ends, or its parent does.

    Args:
        descriptor: file descriptor of the pipe.
        parent: process id of the parent.
    """
    die_with_parent(parent)
    from rushes.video.readers import open_reader

    pipe = Connection(descriptor)
    setup = pipe.recv()
    try:
        reader = open_reader(
            setup["catalogue"],
            setup["backend"],
            limits=Limits(**setup["limits"]),
            index_cache=setup["index_cache"],
            threads=setup["threads"],
        )
    except Exception as error:  # noqa: BLE001 - the process border: the parent raises it
        pipe.send(error)
        return
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            kind, question = pipe.recv()
        except (EOFError, OSError):
            return
        video = question if kind == "describe" else question.video_id
        try:
            answer = reader.describe(question) if kind == "describe" else reader.read(question)
        except MemoryError:
            limit = setup["memory"]
            pipe.send(WorkerDied(video, f"decoding wants more than {limit} bytes of memory"))
            continue
        except RushesError as error:
            pipe.send(error)
            continue
        except Exception as error:  # noqa: BLE001 - the process border: nothing else may pass
            detail = f"{type(error).__name__}: {error}"
            pipe.send(UnreadableVideo(video, detail[:500]))
            continue
        pipe.send(answer)
