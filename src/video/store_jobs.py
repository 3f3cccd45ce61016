"""Runs one function on many items in processes that may die, hang or grow: each costs one item."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from rushes.errors import DecodeTimeout, RushesError, WorkerDied
from rushes.video.dying import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Worker(Generic[Item]):
    process: Any
    connection: Connection
    place: int = -1
    began: float = 0.0


def run_jobs(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    names: Sequence[str],
    *,
    jobs: int,
    timeout: float,
    memory: int,
) -> Iterator[tuple[int, Result | RushesError]]:
    """Results as they come, each with the place of its item.

    Args:
        function: importable; raises only our errors on bad items.
        items: what it is called with, picklable.
        names: of the items, for errors.
        jobs: processes; 0 runs everything in this one.
        timeout: seconds that one item may take before its process is killed.
        memory: bytes of address space of a process; 0 sets no limit.

    Yields:
        The result, or the error: ours, `DecodeTimeout` or `WorkerDied`.
    """
    if jobs == 0:
        for place, item in enumerate(items):
            yield place, _attempt(function, item)
        return
    context = multiprocessing.get_context("spawn")
    waiting = iter(range(len(items)))
    workers: list[_Worker[Item]] = []
    try:
        for place in waiting:
            workers.append(_start(context, function, memory))
            _give(workers[-1], place, items[place])
            if len(workers) >= jobs:
                break
        while workers:
            for worker, outcome in _outcomes(workers, names, timeout):
                yield worker.place, outcome
                following = next(waiting, None)
                alive = not isinstance(outcome, WorkerDied | DecodeTimeout)
                if not alive or following is None:
                    _end(worker)
                    workers.remove(worker)
                if following is not None:
                    if not alive:
                        worker = _start(context, function, memory)
                        workers.append(worker)
                    _give(worker, following, items[following])
    finally:
        for worker in workers:
            _end(worker)


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | RushesError:
    try:
        return function(item)
    except RushesError as error:
        return error


def _outcomes(
    workers: Sequence[_Worker[Item]], names: Sequence[str], timeout: float
) -> list[tuple[_Worker[Item], Any]]:
    now = time.monotonic()
    patience = max(0.0, min(w.began for w in workers) + timeout - now)
    ready = wait([w.connection for w in workers], min(patience + 0.01, 1.0))
    found: list[tuple[_Worker[Item], Any]] = []
    for worker in workers:
        if worker.connection in ready:
            try:
                found.append((worker, worker.connection.recv()))
            except (EOFError, OSError):
                worker.process.join(5)
                status = worker.process.exitcode
                how = f"signal {-status}" if status is not None and status < 0 else f"{status}"
                detail = f"the process that worked on it died ({how})"
                found.append((worker, WorkerDied(names[worker.place], detail)))
        elif time.monotonic() - worker.began > timeout:
            detail = f"it took more than {timeout:.0f} s"
            found.append((worker, DecodeTimeout(names[worker.place], detail)))
    return found


def _start(context: Any, function: Callable[[Item], Result], memory: int) -> _Worker[Item]:
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(function, theirs, memory, os.getpid()), daemon=True
    )
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker[Item], place: int, item: Item) -> None:
    worker.place, worker.began = place, time.monotonic()
    worker.connection.send(item)


def _end(worker: _Worker[Item]) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()


def _work(function: Callable[[Any], Any], connection: Any, memory: int, parent: int) -> None:
    die_with_parent(parent)
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        connection.send(_attempt(function, item))
