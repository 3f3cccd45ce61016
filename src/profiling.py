"""`rushes profile CONFIG-FLAGS [--steps N]`: what bounds a run, and by how much.

Writes a trace of a few steps (chrome://tracing, Perfetto) to the run folder's `trace/` and prints
seconds a step of decoding alone, transfer alone and computing alone. The headspace of a part is how
many times faster than the slowest part it is: decoding with headspace below 1.1 or so will stall.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rushes.configs.load import load_config
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.datasets.build import build_train_loader
from rushes.datasets.loader import TrainLoader
from rushes.distributed import World, run_main
from rushes.errors import ConfigError
from rushes.frozen_cache import cache_frozen
from rushes.modeling.model import VideoTextModel
from rushes.optim import make_optimizer
from rushes.runner import assemble, output_folder
from rushes.steps import Pass, accumulate, clip_gradients, count_valid, resolve_precision
from rushes.training import StepLoader

STEPS = 8


def main(argv: Sequence[str]) -> int:
    """Profile the run that `argv` describes; returns an exit code."""
    rest, steps = _take_steps(list(argv))
    config = load_config(rest, "rushes profile")
    return run_main(lambda world: _profile(config, world, steps))


def _take_steps(argv: list[str]) -> tuple[list[str], int]:
    if "--steps" not in argv:
        return argv, STEPS
    at = argv.index("--steps")
    text = argv[at + 1] if at + 1 < len(argv) else ""
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--steps {text!r}: expected a number of steps, 1 or more")
    return argv[:at] + argv[at + 2 :], int(text)


def _profile(config: RunConfig, world: World, steps: int) -> int:
    folder = output_folder(config) / "trace"
    parts = assemble(config, world, folder.parent)
    loader: StepLoader = build_train_loader(
        config, world, parts.tokenizer, sources=parts.sources, answers=parts.answers
    )
    if config.train.cache_frozen:
        assert isinstance(loader, TrainLoader)
        loader = cache_frozen(loader, parts.model, config, world, folder.parent)
    batches = loader.batches(0)
    first = next(batches)
    decode = pace(steps, lambda: next(batches))
    batches.close()  # type: ignore[attr-defined]
    transfer = _median(steps, lambda: [b.to(world.device) for b in first], world.device)
    step = _Compute(parts.model, config, world, [b.to(world.device) for b in first])
    step()  # the first one allocates, compiles and tunes
    compute = _median(steps, step, world.device)
    _trace(step, folder / f"rank_{world.rank}.json")
    found = summary(decode, transfer, compute)
    parts.sources.close()
    if world.is_main:
        found["trace"] = str(folder)
        print(json.dumps(found, indent=1))  # noqa: T201
    return 0


def summary(decode: float, transfer: float, compute: float) -> dict[str, Any]:
    """What bounds a run, from seconds a step of each part alone.

    Decoding and transfer run beside the computation, so the slowest part sets the pace.
    """
    seconds = {"decode": decode, "transfer": transfer, "compute": compute}
    slowest = max(seconds, key=lambda name: seconds[name])
    return {
        "bound_by": slowest,
        "seconds_per_step": seconds,
        "headspace": {n: seconds[slowest] / max(s, 1e-9) for n, s in seconds.items()},
        "expected_data_stall": max(0.0, 1 - compute / max(decode, transfer, compute)),
    }


class _Compute:
    """One optimiser step on batches that are there already."""

    def __init__(
        self, model: VideoTextModel, config: RunConfig, world: World, batches: list[Batch]
    ) -> None:
        self.model, self.config, self.world, self.batches = model.train(), config, world, batches
        self.optimizer = make_optimizer(model, config.optim, config.model.compat)
        self.dtype = resolve_precision(config.train.precision, world.device)
        self.counts, _ = count_valid(world, batches)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        objectives = self.model.objectives(0)
        shared = Pass(self.model, objectives, self.world, self.config.seed, 1, self.dtype)
        accumulate(shared, self.batches, self.counts, self.config)
        self.world.average_gradients(self.model)
        clip_gradients(self.model, self.config.optim.max_grad_norm)
        self.optimizer.step()


def pace(steps: int, function: Callable[[], object]) -> float:
    """Seconds a call over several; a median would not see that batches made ahead come at once."""
    begun = time.perf_counter()
    for _ in range(steps):
        function()
    return (time.perf_counter() - begun) / steps


def _median(steps: int, function: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(steps):
        begun = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def _trace(step: Callable[[], object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile() as profiler:
        step()
    profiler.export_chrome_trace(str(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
