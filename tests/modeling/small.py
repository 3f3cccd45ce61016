"""Small models and batches for the tests of `rushes.modeling`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rushes.configs.load import build_config, merge
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.distributed import SingleWorld
from rushes.modeling.build import build_model
from rushes.modeling.model import VideoTextModel

SMALL: dict[str, Any] = {
    "model": {
        "backbone": "resnet18",
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
        "embed_dim": 32,
        "temporal_depth": 2,
        "temporal_heads": 4,
        "weights": {"init": "random"},
        "text": {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": 64,
            "vocab_size": 60,
            "max_positions": 16,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    }
}
NO_NOISE: dict[str, Any] = {"model": {"temporal_drop_path": 0.0}}


def small_config(**values: Any) -> RunConfig:
    """The small config with nested values laid over it."""
    merged = merge(SMALL, values)
    if "backbone" in values.get("model", {}):  # another backbone takes other arguments
        merged["model"]["backbone_args"] = values["model"].get("backbone_args", {})
    return build_config(merged)


def small_model(seed: int = 0, num_answers: int | None = None, **values: Any) -> VideoTextModel:
    """A small model with random weights from `seed`."""
    torch.manual_seed(seed)
    return build_model(small_config(**values), num_answers=num_answers)


def small_batch(
    size: int = 4, clips: int = 2, num_texts: int = 1, seed: int = 0, **changes: Any
) -> Batch:
    """Random pixels (128x128 and 32x32, 3 frames) and words; all valid, all different."""
    generator = torch.Generator().manual_seed(seed)

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    rows = size * num_texts
    ids = torch.randint(5, 60, (rows, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    labels = torch.full_like(ids, -100)
    labels[:, 2] = ids[:, 2]
    masked = ids.clone()
    masked[:, 2] = 4
    batch = Batch(
        ids=tuple(f"video{i}" for i in range(size)),
        indices=torch.arange(size),
        valid=torch.ones(size, dtype=torch.bool),
        high=pixels(size, clips, 3, 128, 128),
        low=pixels(size, clips, 2, 3, 32, 32),
        text_ids=ids,
        text_mask=mask,
        num_texts=num_texts,
        masked_ids=masked,
        masked_labels=labels,
        labels=torch.arange(size) % max(2, num_texts),
        video_key=torch.arange(size),
        text_key=torch.arange(rows) + 1000,
    )
    return replace(batch, **changes)


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """Some videos of a batch."""
    parts = batch.split(1)
    chosen = [parts[row] for row in rows]
    values: dict[str, Any] = {"ids": tuple(part.ids[0] for part in chosen)}
    for field in fields(batch):
        if isinstance(getattr(batch, field.name), Tensor):
            values[field.name] = torch.cat([getattr(part, field.name) for part in chosen])
    return replace(batch, **values)


class ThreadWorld(SingleWorld):
    """Ranks that are threads of this process; collectives wait for each other at barriers."""

    def __init__(self, rank: int, size: int, board: list[Any], gate: threading.Barrier) -> None:
        super().__init__()
        self.rank, self.size, self.board, self.gate = rank, size, board, gate

    def _exchange(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.gate.wait(60)
        values = list(self.board)
        self.gate.wait(60)
        return values

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._exchange(tensor.detach()))

    def all_gather_with_grad(self, tensor: Tensor) -> Tensor:
        gathered: Tensor = _Gather.apply(tensor, self)  # type: ignore[no-untyped-call]
        return gathered

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        total: Tensor = torch.stack(self._exchange(tensor.detach())).sum(0)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: ThreadWorld) -> Tensor:
        parts = world._exchange(tensor.detach())
        ctx.world, ctx.rows = world, [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        world = ctx.world
        total = torch.stack(world._exchange(gradient)).sum(0)
        return torch.split(total, ctx.rows)[world.rank], None


def on_ranks(size: int, function: Callable[[ThreadWorld], Any]) -> list[Any]:
    """What `function` returns on each of `size` ranks that run at once."""
    board: list[Any] = [None] * size
    gate = threading.Barrier(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def rank(index: int) -> None:
        try:
            results[index] = function(ThreadWorld(index, size, board, gate))
        except BaseException as error:  # noqa: BLE001 (raised again below)
            errors.append(error)
            gate.abort()

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
