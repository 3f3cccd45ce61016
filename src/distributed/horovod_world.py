"""World over Horovod.

Only Horovod's plain collectives are used: its own differentiable allgather averages the gradient
over ranks (0.28.1), where the exact gradient needs the sum, so backward is ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rushes.distributed.world import Backend, CollectiveWorld
from rushes.errors import BackendMissing, RankFailed


class HorovodWorld(CollectiveWorld):
    """Ranks started by `horovodrun`.

    Args:
        device: where to compute; None takes the local rank's CUDA device, else the CPU.

    Raises:
        BackendMissing: Horovod is not installed.
    """

    backend: Backend = "horovod"

    def __init__(self, device: torch.device | str | None = None) -> None:
        try:
            import horovod.torch as hvd
        except ImportError as error:
            raise BackendMissing("horovod", "bash docker/install_horovod.sh") from error
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        self.device = local_device(self.local_rank, device)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # HorovodInternalError is one
            raise RankFailed(f"a peer has gone, its own message says why: {error}") from error

    def _gather_rows(self, tensor: Tensor) -> Tensor:
        with self._guard():
            gathered: Tensor = self._hvd.allgather(tensor)
        return gathered

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        with self._guard():
            handles = [self._hvd.allreduce_async_(t, op=self._hvd.Sum) for t in tensors]
            for handle in handles:
                self._hvd.synchronize(handle)

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        with self._guard():
            self._hvd.broadcast_(tensor, source)

    def shutdown(self) -> None:
        self.barrier()
        self._hvd.shutdown()


def local_device(local_rank: int, device: torch.device | str | None = None) -> torch.device:
    """The device of one process: as asked, else its share of the CUDA devices, else the CPU."""
    if device is None:
        device = "cpu"
        if torch.cuda.is_available():
            device = f"cuda:{local_rank % torch.cuda.device_count()}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen
