"""One step forward and back, and what it takes: the heart of `--dry-run`."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch

from rushes.configs.schema import RunConfig
from rushes.datasets.loader import TrainLoader
from rushes.distributed import World
from rushes.modeling.model import VideoTextModel
from rushes.steps import Pass, accumulate, count_valid, resolve_precision


def try_one_step(
    config: RunConfig, world: World, model: VideoTextModel, loader: TrainLoader
) -> dict[str, Any]:
    """Losses of the first micro-batch, forward and back, and what that took."""
    begun = time.perf_counter()
    steps = loader.batches(0)
    batches = [batch.to(world.device) for batch in next(steps)]
    waited = time.perf_counter() - begun
    counts, failed = count_valid(world, batches)
    dtype = resolve_precision(config.train.precision, world.device)
    shared = Pass(model, model.objectives(1), world, config.seed, 1, dtype)
    model.train()
    begun = time.perf_counter()
    losses = accumulate(shared, batches, counts, config) if sum(counts) else {}
    memory: float = psutil.Process().memory_info().rss / 2**30
    if world.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(world.device) / 2**30
    return {
        "losses": {name: float(value) for name, value in losses.items()},
        "seconds_data": round(waited, 2),
        "seconds_step": round(time.perf_counter() - begun, 2),
        "memory_gib": round(memory, 2),
        "failed_samples": failed,
    }
