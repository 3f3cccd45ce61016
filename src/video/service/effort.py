"""What a worker process does with its time: its own, or waiting for others to leave a CPU."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """What a process has done since its start.

    Attributes:
        runnable: it has a CPU or wants one.
        busy: nanoseconds on a CPU, all threads together.
        waited: nanoseconds that the thread which waited longest wanted a CPU and had none.
        read: bytes read.
    """

    runnable: bool = False
    busy: int = 0
    waited: int = 0
    read: int = 0


def effort_of(pid: int) -> Effort:
    """What the kernel has noted of a process; zeros where it notes nothing or the process is gone.

    Without the kernel's notes all time counts as the process's own.
    """
    busy = waited = read = 0
    runnable = False
    with contextlib.suppress(OSError, ValueError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                on, off = map(int, file.read().split()[:2])
            busy, waited = busy + on, max(waited, off)
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/io", encoding="ascii") as io:
        read = int(io.readline().split()[1])
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        runnable = stat.read().rpartition(")")[2].split()[:1] == ["R"]
    return Effort(runnable, busy, waited, read)


class OwnTime:
    """How long a process has had for itself since now, and for how long it has done nothing.

    On a machine that is full a decoder that waits for its turn is neither slow nor hung. One that
    uses no CPU and reads nothing is either, whatever the machine does.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self._since = pid, time.monotonic()
        # The kernel is asked from the first look on: most work is done before there is one.
        self._first: Effort | None = None
        self._last = Effort()
        self._moved = self._since

    def look(self) -> None:
        """Ask the kernel; to be called a few times a second."""
        now, effort = time.monotonic(), effort_of(self.pid)
        if self._first is None:
            self._first = effort
        elif effort.runnable or (effort.busy, effort.read) != (self._last.busy, self._last.read):
            self._moved = now
        self._last = effort

    @property
    def seconds(self) -> float:
        """Seconds since the beginning without those in which it waited for a CPU."""
        waited = 0 if self._first is None else self._last.waited - self._first.waited
        return max(0.0, time.monotonic() - self._since - waited / 1e9)

    @property
    def idle(self) -> float:
        """Seconds since it was last seen to do anything."""
        return time.monotonic() - self._moved
