"""`World`: this process among its peers, with the same calls on every backend.

Seams. Data-parallel training goes through `broadcast_parameters` and `average_gradients` alone, so
a backend that shards parameters (FSDP2) or overlaps the reduction with backward (DDP's hooks)
overrides these two and the loop stays as it is; what such a backend would change besides is how
`rushes.checkpoint` gathers a full state.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["single", "torch", "horovod"]

BUCKET_BYTES = 25 * 2**20
"""Gradients are reduced in pieces of about this size."""


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
        """Rows of all ranks in rank order, `sum(R_r) ...`; numbers of rows may differ. No gradient.

        All ranks give tensors of one type whose other dimensions agree.
        """

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
        """Leave in good order; all ranks call it."""

    def report_failure(self, text: str) -> None:  # noqa: B027
        """Tell the peers that this rank cannot go on, and why; the process is about to exit."""

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


class CollectiveWorld(World):
    """Several processes: all of `World` from four collectives that a backend provides."""

    @abstractmethod
    def _gather_rows(self, tensor: Tensor) -> Tensor:
        """Ragged gather of a contiguous tensor of at least one dimension."""

    @abstractmethod
    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over ranks, in place."""

    @abstractmethod
    def _broadcast(self, tensor: Tensor, source: int) -> None:
        """Broadcast in place."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bool:  # no backend knows bool everywhere
            return self._gather_rows(tensor.view(torch.uint8)).view(torch.bool)
        return self._gather_rows(tensor)

    def all_gather_with_grad(self, tensor: Tensor) -> Tensor:
        gathered: Tensor = _GatherRows.apply(tensor, self)  # type: ignore[no-untyped-call]
        return gathered

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._sum([total])
        return total

    def all_gather_object(self, value: Any) -> list[Any]:
        return self._gather_pickled(pickle.dumps(value))

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        mine = pickle.dumps(value) if self.rank == source else b""
        return self._gather_pickled(mine)[0]

    def _gather_pickled(self, data: bytes) -> list[Any]:
        """Objects of the ranks that gave any bytes; peers of one run trust each other."""
        row = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
        row = row.to(self.device, torch.uint8)
        sizes = self.all_gather(torch.tensor([len(data)], device=self.device)).tolist()
        pieces = torch.split(self.all_gather(row).cpu(), sizes)
        return [pickle.loads(piece.numpy().tobytes()) for piece in pieces if len(piece)]

    def broadcast_tensors(self, tensors: Sequence[Tensor], source: int = 0) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._broadcast(flat, source)
            _scatter_back(flat, bucket)

    def average_gradients(self, module: torch.nn.Module) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        anywhere = self.all_reduce_sum(has).tolist()
        gradients = []
        for parameter, count in zip(parameters, anywhere, strict=True):
            if count > 0:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        buckets = list(_buckets(gradients))
        flats = [torch.cat([g.reshape(-1) for g in bucket]) for bucket in buckets]
        self._sum(flats)
        for flat, bucket in zip(flats, buckets, strict=True):
            _scatter_back(flat.div_(self.size), bucket)

    def barrier(self) -> None:
        self.all_reduce_sum(torch.zeros(1, device=self.device)).item()


class _GatherRows(torch.autograd.Function):
    """Gather whose backward is the sum over ranks, whatever the backend's own would be."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        rows = torch.tensor([len(tensor)], device=world.device)
        sizes = world.all_gather(rows).tolist()
        ctx.world, ctx.start, ctx.rows = world, sum(sizes[: world.rank]), len(tensor)
        return world.all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = ctx.world.all_reduce_sum(gradients[0])
        return total[ctx.start : ctx.start + ctx.rows], None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, cut into lists of one type and device and about `BUCKET_BYTES` each."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        differs = bucket and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (differs or size >= BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def _scatter_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))
