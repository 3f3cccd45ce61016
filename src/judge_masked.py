"""Judging stage 2: how well masked words and pairs are told, on a validation split."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from rushes.configs.schema import RunConfig
from rushes.datasets.loader import EvalLoader
from rushes.distributed import SingleWorld, World
from rushes.modeling.model import VideoTextModel
from rushes.modeling.objectives import make_objective
from rushes.protocols import Evaluation
from rushes.steps import resolve_precision


def evaluate_masked(
    model: VideoTextModel, loader: EvalLoader, world: World, config: RunConfig
) -> Evaluation:
    """Losses and accuracies of the run's objectives under the masks of epoch 0.

    Each rank judges its own batches alone (ranks may have different counts of them); the figures
    are means over batches, weighted by their valid samples.
    """
    dtype = resolve_precision(config.train.precision, world.device)
    alone = SingleWorld(world.device)
    sums: dict[str, float] = defaultdict(float)
    counted = seen = 0
    for batch in loader:
        moved = batch.to(world.device)
        valid = int(moved.valid.sum())
        seen += len(moved)
        if not valid:
            continue
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad(), torch.autocast(world.device.type, dtype, enabled=dtype is not None):
            encoded = model.encode(moved)
            for objective in config.objectives:
                found = make_objective(objective, model)(encoded, moved, alone, generator)
                for name, value in found.items():
                    sums[name] += float(value) * valid
        counted += valid
    unreadable = sorted({bad.video for bad in loader.bad})
    shares = world.all_gather_object((dict(sums), counted, seen, unreadable))
    return _merged(shares)


def _merged(shares: list[tuple[dict[str, float], int, int, list[str]]]) -> Evaluation:
    counted = sum(share[1] for share in shares)
    seen = sum(share[2] for share in shares)
    names = sorted({name for share in shares for name in share[0]})
    masked: dict[str, Any] = {
        name: sum(share[0].get(name, 0.0) for share in shares) / max(1, counted) for name in names
    }
    masked["coverage"] = counted / max(1, seen)
    accuracies = [name for name in names if name.endswith("_accuracy")]
    key = f"masked.{accuracies[0] if accuracies else names[0]}" if names else ""
    bad = sorted({video for share in shares for video in share[3]})
    return Evaluation({"masked": masked}, [], bad, key)
