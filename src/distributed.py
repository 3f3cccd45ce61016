"""The only place that knows how processes talk: `World`, made once in main and passed on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["single", "torch", "horovod"]


class World(ABC):
    """This process among its peers; the same calls on every backend.

    Attributes:
        rank, size: this process and how many there are.
        local_rank, local_size: the same within this machine.
        device: where this process computes.
    """

    backend: Backend
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and prints."""
        return self.rank == 0

    @abstractmethod
    def all_gather(self, tensor: Tensor) -> Tensor:
        """Rows of all ranks in rank order, `sum(R_r) ...`; numbers of rows may differ."""

    @abstractmethod
    def all_gather_with_grad(self, tensor: Tensor) -> Tensor:
        """As `all_gather`; backward sums the gradients of all ranks and takes this rank's rows.

        With gradients of parameters averaged over ranks and a loss computed alike on every rank
        from the gathered rows, multiply that loss by nothing: each rank's backward yields
        size x its share, and the average of the shares is the exact full-batch gradient.
        """

    @abstractmethod
    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, a new tensor. No gradient."""

    @abstractmethod
    def all_gather_object(self, value: Any) -> list[Any]:
        """One picklable value from each rank, in rank order."""

    @abstractmethod
    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """The value that rank `source` has."""

    @abstractmethod
    def broadcast_tensors(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        """Give every rank the values that rank `source` has, in place; same shapes on all."""

    def broadcast_parameters(self, module: torch.nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0, in place."""
        state = [*module.parameters(), *module.buffers()]
        self.broadcast_tensors([tensor.detach() for tensor in state])

    @abstractmethod
    def average_gradients(self, module: torch.nn.Module) -> None:
        """Average `.grad` of all trainable parameters over ranks, in place, in buckets.

        A parameter that has no gradient on any rank keeps None; one that has it on some ranks
        counts as zero on the others.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait until every rank is here."""

    @abstractmethod
    def shutdown(self) -> None:
        """Leave in good order."""

    def all_true(self, value: bool) -> bool:
        """True where every rank says so."""
        flag = torch.tensor([0.0 if value else 1.0], device=self.device)
        return bool(self.all_reduce_sum(flag).item() == 0)


class SingleWorld(World):
    """One process."""

    backend: Backend = "single"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank, self.size, self.local_rank, self.local_size = 0, 1, 0, 1
        self.device = torch.device(device)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return tensor.detach()

    def all_gather_with_grad(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]

    def broadcast_object(self, value: Any, source: int = 0) -> Any:  # noqa: ARG002
        return value

    def broadcast_tensors(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        pass

    def average_gradients(self, module: torch.nn.Module) -> None:
        pass

    def barrier(self) -> None:
        pass

    def shutdown(self) -> None:
        pass
