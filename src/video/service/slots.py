"""Shared-memory slots: a fixed pool of anonymous segments that a consumer reads without a copy.

A slot is a `memfd_create` segment. It has no name, so nothing is left behind however its processes
end; workers get the descriptors when they are spawned. A slot is sparse: it takes the memory of the
largest reply that it has held, and gives it back when that was unusually large.

A filled slot is handed out as a NumPy array whose `base` is a `Lease`. Views, tensors made from
views, and Arrow buffers all keep the lease alive; when the last of them is gone the slot is free.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rushes.errors import ServiceError


def _nobody() -> None:
    return None


class Lease:
    """The right to one slot; NumPy arrays made from it keep it.

    Attributes:
        index: number of the slot.
    """

    def __init__(self, slots: SlotPool, index: int) -> None:
        self._slots: Callable[[], SlotPool | None] = weakref.ref(slots)
        self._segment = slots.segment(index)
        self.index = index
        self._size = 0

    @property
    def __array_interface__(self) -> dict[str, object]:
        # Not the segment's own array: NumPy would make that the base, and the lease would be lost.
        return {
            "shape": (self._size,),
            "typestr": "|u1",
            "data": (self._segment.ctypes.data, False),
            "version": 3,
        }

    def array(self, size: int) -> npt.NDArray[np.uint8]:
        """The first `size` bytes, uint8 `N`; its memory is good for as long as anyone has it."""
        self._size = size
        slots = self._slots()
        if slots is not None:
            slots.note_size(self.index, size)
        return np.asarray(self)

    def release(self) -> None:
        """Give an unused slot back at once; arrays made from this lease must be gone."""
        slots, self._slots = self._slots(), _nobody
        if slots is not None:
            slots.give_back(self.index)

    def __del__(self) -> None:
        self.release()


class SlotPool:
    """The segments of one process, and which of them are free.

    Args:
        num_slots: segments.
        slot_bytes: the largest reply that fits; memory is taken only as far as it is written.
        keep_bytes: a slot that grew beyond this is emptied before its next use.

    Raises:
        ServiceError: the system does not give that many.
    """

    def __init__(self, num_slots: int, slot_bytes: int, keep_bytes: int = 64 << 20) -> None:
        self.num_slots, self.slot_bytes, self.keep_bytes = num_slots, slot_bytes, keep_bytes
        self.descriptors: list[int] = []
        self._segments: list[npt.NDArray[np.uint8]] = []
        try:
            for _ in range(num_slots):
                self.descriptors.append(new_segment(slot_bytes))
                self._segments.append(map_segment(self.descriptors[-1], slot_bytes))
        except OSError as error:
            made = len(self.descriptors)
            self.close()
            detail = f"{num_slots} slots of {slot_bytes} bytes: only {made} can be had: {error}"
            raise ServiceError(detail) from error
        self._grown = [0] * num_slots
        # A lease may end inside the garbage collector, on any thread and under any lock, so giving
        # back uses only operations that are atomic and reentrant. The last one used comes first:
        # its pages are there already.
        self._free = deque(range(num_slots))
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(num_slots):
            self._tokens.put(None)

    def segment(self, index: int) -> npt.NDArray[np.uint8]:
        """The whole memory of one slot, uint8 `N`."""
        return self._segments[index]

    def acquire(self, timeout: float | None) -> Lease | None:
        """A free slot, waiting up to `timeout` seconds; None when none became free."""
        try:
            self._tokens.get(timeout=None if timeout is None else max(timeout, 0.0))
        except queue.Empty:
            return None
        index = self._free.pop()
        if self._grown[index] > self.keep_bytes:
            os.ftruncate(self.descriptors[index], 0)
            os.ftruncate(self.descriptors[index], self.slot_bytes)
            self._grown[index] = 0
        return Lease(self, index)

    def give_back(self, index: int) -> None:
        """Called by the end of a lease."""
        self._free.append(index)
        self._tokens.put(None)

    def note_size(self, index: int, size: int) -> None:
        """Remember how far a slot has been written."""
        self._grown[index] = max(self._grown[index], size)

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def close(self) -> None:
        """Close the descriptors; memory that someone still reads stays until it is let go."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors, self._segments = [], []


def new_segment(size: int) -> int:
    """Descriptor of a new anonymous segment; the kernel frees it with its last user."""
    descriptor = os.memfd_create("rushes-slot", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return descriptor


def map_segment(descriptor: int, size: int) -> npt.NDArray[np.uint8]:
    """The segment as a writable array, uint8 `N`."""
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
