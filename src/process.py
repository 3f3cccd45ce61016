"""Settings of a process that trains or judges, made once."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER_TRIM = 2**31 - 1
_LARGEST_ON_HEAP = 32 << 20  # glibc takes no larger threshold on 64-bit machines
_SWITCH_INTERVAL = 1e-4


def keep_freed_memory() -> bool:
    """Have freed blocks of up to 32 MiB stay with this process; whether it took effect.

    By default glibc gives every large block back to the system when it is freed, and the system
    clears each page again when the next step asks for it, which is a moment later: 4 % of a step
    of the tiny preset (`benchmarks/training.py`, `loop_overhead`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM), mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
    return kept == (1, 1)


def share_interpreter() -> None:
    """Have threads that prepare data hand the interpreter back to the step at once.

    A step gives it up at every operation and by default waits up to 5 ms to get it back.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL))
