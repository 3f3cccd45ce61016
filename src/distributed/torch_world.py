"""World over torch.distributed: NCCL for CUDA tensors, Gloo for the rest.

A rank that cannot go on writes its error into the store through which the ranks met. A thread of
every other rank looks there: the collective that broke raises `RankFailed` with that text, and a
process that hangs in one (NCCL waits for a dead peer) is ended after a moment's grace.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

# Its functions take the group that exists when they are defined as default argument. Imported after
# the group is made (the first optimizer step does), they would keep it, and its threads, alive.
import torch.distributed.nn
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from rushes.distributed.world import Backend, CollectiveWorld
from rushes.errors import RankFailed

_FAILED = "rushes_failed"
_POLL = 0.25
_GRACE = 4.0
"""Seconds that a rank has to leave by itself once another has failed."""
_STORE_ANSWER = 30.0
"""Longest that a busy store is waited for when a rank leaves."""


class TorchWorld(CollectiveWorld):
    """Ranks that meet at `host:port`.

    Args:
        store_is_running: the launcher keeps the store (torchrun); else rank 0 does.
        attempt: number of this start, so that what an earlier one left in the store is not read.
        timeout: seconds that a collective may take.
    """

    backend: Backend = "torch"

    def __init__(
        self,
        rank: int,
        size: int,
        local_rank: int,
        local_size: int,
        device: torch.device,
        host: str,
        port: int,
        store_is_running: bool = False,
        attempt: str = "0",
        timeout: float = 1800.0,
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.device = device
        limit = datetime.timedelta(seconds=timeout)
        store = TCPStore(
            host, port, None, rank == 0 and not store_is_running, limit, wait_for_workers=False
        )
        self._store = PrefixStore(f"rushes/{attempt}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=self._store,
            rank=rank,
            world_size=size,
            timeout=limit,
        )
        # A client of its own: the group's may be blocked waiting for a peer that is gone.
        ears = TCPStore(host, port, None, False, limit, wait_for_workers=False)
        self._watch = _Watch(PrefixStore(f"rushes/{attempt}", ears))

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch's DistError is one
            said = self._watch.wait_for_failure(_GRACE)
            raise RankFailed(said or f"a peer has gone: {error}") from error

    def _gather_rows(self, tensor: Tensor) -> Tensor:
        with self._guard():
            rows = torch.tensor([len(tensor)], device=tensor.device)
            counts = [torch.empty_like(rows) for _ in range(self.size)]
            dist.all_gather(counts, rows)
            sizes = [int(count) for count in counts]
            longest = max(sizes)
            padded = tensor
            if len(tensor) < longest:
                padded = tensor.new_zeros(longest, *tensor.shape[1:])
                padded[: len(tensor)] = tensor
            out = [torch.empty_like(padded) for _ in range(self.size)]
            if longest:
                dist.all_gather(out, padded)
            return torch.cat([part[:size] for part, size in zip(out, sizes, strict=True)])

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        with self._guard():
            works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in works:
                assert work is not None, "asynchronous collectives return their handle"
                work.wait()

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        with self._guard():
            dist.broadcast(tensor, source)

    def report_failure(self, text: str) -> None:
        self._watch.stop()
        with contextlib.suppress(RuntimeError):  # the store may be what is gone
            self._store.set(_FAILED, f"rank {self.rank}: {text}")
            # Whoever keeps the store must outlive the others' look at it.
            time.sleep(_POLL * 4 if self.rank == 0 else 0)

    def shutdown(self) -> None:
        self._watch.stop()
        self.barrier()
        # Ends the group's threads: one that drops the last tensor of a collective while the
        # interpreter is leaving aborts the process.
        dist.destroy_process_group()


class _Watch:
    """A thread that learns of failed peers and ends this process if it does not end itself."""

    def __init__(self, store: PrefixStore) -> None:
        self._store = store
        self._stopped, self._known = threading.Event(), threading.Event()
        self._text = ""
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()

    def wait_for_failure(self, seconds: float) -> str:
        """What a failed peer said, or nothing if none spoke within `seconds`."""
        self._known.wait(seconds)
        self.stop()
        return self._text

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            # A thread that is still inside the store when the interpreter ends aborts the process.
            self._thread.join(_STORE_ANSWER)

    def _run(self) -> None:
        while not self._stopped.wait(_POLL):
            try:
                if self._store.check([_FAILED]):
                    self._text = self._store.get(_FAILED).decode()
                    break
            except RuntimeError:
                self._text = "the process that kept the store (rank 0 or the launcher) has gone"
                break
        else:
            return
        self._known.set()
        if not self._stopped.wait(_GRACE):
            sys.stderr.write(f"leaving because another rank failed: {self._text}\n")
            logging.shutdown()
            sys.stderr.flush()
            os._exit(1)
