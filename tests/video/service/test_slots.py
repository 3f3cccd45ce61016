"""A slot is the consumer's until the last array over it is gone, and nobody's afterwards."""

from __future__ import annotations

import gc
import os
import resource

import numpy as np
import pytest

from rushes.errors import ServiceError
from rushes.video.service.slots import SlotPool


def test_a_slot_lives_as_long_as_any_view() -> None:
    slots = SlotPool(2, 1 << 20)
    lease = slots.acquire(0)
    assert lease is not None
    array = lease.array(6000)
    del lease
    view = array[100:5000].view(np.uint16)[::2].reshape(5, 245)
    buffer = view.data
    del array, view
    gc.collect()
    assert slots.num_free == 1
    del buffer
    assert slots.num_free == 2
    slots.close()


def test_all_taken_means_waiting() -> None:
    slots = SlotPool(1, 4096)
    lease = slots.acquire(0)
    assert lease is not None
    assert slots.acquire(0.01) is None
    lease.release()
    again = slots.acquire(0)
    assert again is not None
    del lease  # was given back already: must not give back what is now someone else's
    assert slots.num_free == 0
    slots.close()


def test_the_last_slot_is_used_first() -> None:
    slots = SlotPool(4, 4096)
    for _ in range(10):
        lease = slots.acquire(0)
        assert lease is not None
        assert lease.index == 3
        del lease
    slots.close()


def test_memory_of_an_unusual_reply_is_given_back() -> None:
    slots = SlotPool(1, 8 << 20, keep_bytes=1 << 20)
    lease = slots.acquire(0)
    assert lease is not None
    lease.array(8 << 20)[:] = 1
    assert os.fstat(slots.descriptors[0]).st_blocks * 512 >= 8 << 20
    del lease
    lease = slots.acquire(0)
    assert lease is not None
    assert os.fstat(slots.descriptors[0]).st_blocks == 0
    assert not lease.array(8 << 20)[::4096].any()
    slots.close()


def test_arrays_survive_the_pool() -> None:
    slots = SlotPool(1, 4096)
    lease = slots.acquire(0)
    assert lease is not None
    array = lease.array(4096)
    array[:] = 7
    del lease
    slots.close()
    del slots
    gc.collect()
    assert (array == 7).all()


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        slots = SlotPool(8, 1 << 20)
        slots.close()
        del slots
        gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_slots_than_the_system_gives_are_an_error() -> None:
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, hard))
    try:
        with pytest.raises(ServiceError, match=r"500 slots of 4096 bytes: only \d+ can be had"):
            SlotPool(500, 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before
