"""What a run would take, and one step of it: the heart of `--dry-run`.

The model is first made without storage ("meta" tensors): names and shapes of its starting weights
and the shapes of a real batch are checked at any size on any machine, memory and arithmetic of a
step are counted. The step itself is taken where it fits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from rushes.checkpoint import find_checkpoint, read_progress
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.datasets.loader import TrainLoader
from rushes.distributed import World
from rushes.modeling.model import VideoTextModel
from rushes.steps import Pass, accumulate, count_valid, resolve_precision

META = torch.device("meta")
STATE_BYTES = 16
"""A trained parameter: weight, gradient and two moments in float32."""
CPU_TERAFLOPS = 2.0
"""Longest step that is tried without a GPU: some ten seconds on two cores."""
SPARE = 0.8
"""Share of the free memory that a step may take."""


@contextlib.contextmanager
def scratch(world: World, output: Path) -> Iterator[Path]:
    """A folder that every rank sees, gone afterwards.

    Several machines share for certain only the place that the run itself would be written to.
    """
    with contextlib.ExitStack() as stack:
        made = ""
        if world.is_main:
            parents = (path for path in output.absolute().parents if path.is_dir())
            shared = next(parents) if world.size > world.local_size else None
            made = stack.enter_context(TemporaryDirectory(prefix=".rushes-dry-run-", dir=shared))
        yield Path(world.broadcast_object(made))
        world.barrier()


def next_step(folder: Path, config: RunConfig) -> int:
    """The step that training in a run folder would go on from."""
    found = find_checkpoint(folder) if config.train.resume else None
    return 0 if found is None else read_progress(found).step


def predict_step(
    config: RunConfig, world: World, model: VideoTextModel, batch: Batch
) -> dict[str, float]:
    """Memory and arithmetic of a training step, from shapes alone.

    Args:
        model: on the device "meta".
        batch: a real micro-batch.

    Returns:
        `memory_needed_gib`: weights, gradients, moments and activations of one micro-step;
        `teraflops_step`: of a whole optimiser step, forward and back.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        held.append(tensor)  # a storage that is freed may lend its address to the next
        return tensor

    held: list[Tensor] = []
    model.train()
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda t: t):
        encoded = model.encode(batch.to(META))
        texts = [level for (kind, _), level in encoded.levels.items() if kind.endswith("text")]
        if model.cross_encoder is not None and texts:
            rows = torch.zeros(len(texts[0].values), dtype=torch.int64, device=META)
            model.cross(texts[0], encoded["video", "token"], rows)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    dtype = resolve_precision(config.train.precision, world.device)
    activations = sum(kept.values()) * (1.0 if dtype is None else 0.5)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {
        "memory_needed_gib": round((STATE_BYTES * trained + 4 * frozen + activations) / 2**30, 2),
        "teraflops_step": round(
            3 * counter.get_total_flops() * config.train.accumulation / 1e12, 4
        ),
    }


def why_no_step(world: World, predicted: dict[str, float]) -> str:
    """Why no step is tried on this machine; empty where one is."""
    needed, free = predicted["memory_needed_gib"], free_memory(world) / 2**30
    if needed > SPARE * free:
        return f"a step needs about {needed:.1f} GiB, {free:.1f} GiB are free on {world.device}"
    work = predicted["teraflops_step"]
    if world.device.type == "cpu" and work > CPU_TERAFLOPS:
        return f"a step takes about {work:.1f} TFLOP, too many to try on {world.device}"
    return ""


def free_memory(world: World) -> float:
    """Bytes that are free on this rank's device; ranks of one host share its memory."""
    if world.device.type == "cuda":
        return float(torch.cuda.mem_get_info(world.device)[0])
    return float(psutil.virtual_memory().available) / world.local_size


def try_one_step(
    config: RunConfig, world: World, model: VideoTextModel, batches: list[Batch]
) -> dict[str, Any]:
    """Losses of one optimiser step, forward and back, and what that took."""
    batches = [batch.to(world.device) for batch in batches]
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
        "seconds_step": round(time.perf_counter() - begun, 2),
        "memory_gib": round(memory, 2),
        "failed_samples": failed,
    }


def first_batches(loader: TrainLoader) -> tuple[list[Batch], float]:
    """The micro-batches of the first step, and the seconds that they took."""
    begun = time.perf_counter()
    steps = loader.batches(0)
    batches = next(steps)
    close = getattr(steps, "close", None)
    if close is not None:
        close()
    return batches, time.perf_counter() - begun
