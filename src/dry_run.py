"""`--dry-run`: check config, data, weights, memory and one step, then say what would run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from rushes.configs.schema import RunConfig
from rushes.datasets.build import build_train_loader
from rushes.datasets.loader import TrainLoader
from rushes.distributed import World
from rushes.modeling.model import VideoTextModel
from rushes.steps import Pass, accumulate, count_valid, resolve_precision


def dry_run(config: RunConfig, world: World, folder: Path) -> dict[str, Any]:
    """Build everything that the run needs in a scratch folder, take one step forward and back, and
    say what would run; nothing is left behind."""
    from rushes.runner import assemble

    with TemporaryDirectory(prefix="rushes-dry-run-") as scratch:
        parts = assemble(config, world, Path(world.broadcast_object(scratch)))
        found: dict[str, Any] = {
            "task": config.task,
            "output": str(folder),
            "ranks": world.size,
            "device": str(world.device),
            "parameters": sum(p.numel() for p in parts.model.parameters()),
            "trainable": sum(p.numel() for p in parts.model.parameters() if p.requires_grad),
        }
        if config.inference.enabled:
            loaders = parts.loaders(config.inference.split)
            found["samples"] = sum(len(loader.dataset) for loader in loaders)
        else:
            loader = build_train_loader(
                config, world, parts.tokenizer, sources=parts.sources, answers=parts.answers
            )
            found["steps_per_epoch"] = loader.steps_per_epoch
            found["steps"] = config.train.max_steps or round(
                loader.steps_per_epoch * config.train.epochs
            )
            found.update(_one_step(config, world, parts.model, loader))
        parts.sources.close()
    if world.is_main:
        print(json.dumps(found, indent=1))  # noqa: T201
    return found


def _one_step(
    config: RunConfig, world: World, model: VideoTextModel, loader: TrainLoader
) -> dict[str, Any]:
    """Losses of the first micro-batch, forward and back, and what that took."""
    begun = time.perf_counter()
    steps = loader.batches(0)
    batches = [batch.to(world.device) for batch in next(steps)]
    waited = time.perf_counter() - begun
    steps.close()
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
