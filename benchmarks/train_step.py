"""One forward and backward of the published size: ours against a plain transcription of the graph.

    python benchmarks/train_step.py --json out.json

Time: both models live in one process and take turns, 2 threads; medians over the rounds. Memory:
one process an arm; peak resident memory less weights, gradients and the process before the model.

    ratio.fp32           transcription / ours, both float32
    ratio.bf16           transcription in float32 / ours under bf16 autocast
    memory.fp32          activation memory, ours / transcription
    memory.checkpointed  the same with gradient checkpointing
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _figures import add_json, publish
from _published_graph import PublishedStage1
from torch import Tensor, nn

HIGH, LOW, CLIPS, FRAMES, LENGTH, VOCABULARY = (320, 512), (80, 128), 2, 7, 50, 30522
ARMS = ("published", "ours", "checkpointed")
Step = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("all", "time", "memory"), default="all")
    parser.add_argument("--arm", choices=ARMS, help="internal: measure the memory of one arm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.arm:
        print(json.dumps(measure_memory(arguments.arm)))
        return
    figures: dict[str, Any] = {}
    if arguments.part != "memory":
        figures |= compare_times(arguments.rounds)
    if arguments.part != "time":
        figures |= compare_memory(arguments.threads)
    publish(figures, arguments.json)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """uint8 pixels and token ids of one sample."""
    torch.manual_seed(0)
    high = torch.randint(0, 256, (1, CLIPS, 3, *HIGH), dtype=torch.uint8)
    low = torch.randint(0, 256, (1, CLIPS, FRAMES - 1, 3, *LOW), dtype=torch.uint8)
    ids = torch.randint(1000, VOCABULARY, (1, LENGTH))
    return high, low, ids, torch.ones_like(ids)


def published_step(model: PublishedStage1) -> Step:
    high, low, ids, mask = inputs()
    high, low = high.float(), low.float()

    def vectors() -> tuple[Tensor, Tensor]:
        return model.video(high, low), model.text(ids, mask)

    return timed(model, vectors)


def our_step(model: Any, precision: str) -> Step:
    high, low, ids, mask = inputs()

    def vectors() -> tuple[Tensor, Tensor]:
        autocast = torch.autocast("cpu", torch.bfloat16)
        with autocast if precision == "bf16" else contextlib.nullcontext():
            return model.video_embedding(high, low), model.text_embedding(ids, mask)

    return timed(model, vectors)


def timed(model: nn.Module, vectors: Callable[[], tuple[Tensor, Tensor]]) -> Step:
    """One training step without the optimiser: seconds of forward and backward together."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(2, 1024, generator=generator)

    def step() -> float:
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        video, text = vectors()
        (video @ weights[0] + text @ weights[1]).sum().backward()
        return time.perf_counter() - start

    return step


def our_model(checkpointing: bool = False) -> Any:
    from rushes.configs.load import build_config
    from rushes.modeling.build import build_model

    torch.manual_seed(0)
    model = {"gradient_checkpointing": checkpointing}
    return build_model(build_config({"model": model})).train()


def compare_times(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    published, ours = PublishedStage1().train(), our_model()
    steps = {
        "published.fp32": published_step(published),
        "ours.fp32": our_step(ours, "fp32"),
        "ours.bf16": our_step(ours, "bf16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            taken = step()
            (published if name.startswith("published") else ours).zero_grad(set_to_none=True)
            if round_number:  # the first round warms up
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ratio.fp32": medians["published.fp32"] / medians["ours.fp32"],
        "ratio.bf16": medians["published.fp32"] / medians["ours.bf16"],
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in seconds.items()},
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def measure_memory(arm: str) -> dict[str, float]:
    """Activation bytes of one arm, in a process of its own."""
    import rushes.modeling.build  # noqa: F401  (its imports belong to the empty process)

    warm_up()
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if arm == "published":
        model: Any = PublishedStage1().train()
        step = published_step(model)
    else:
        model = our_model(checkpointing=arm == "checkpointed")
        step = our_step(model, "fp32")
    step()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return {"activations": float(peak - empty - held - gradients), "peak": float(peak)}


def warm_up() -> None:
    """Load the kernels' libraries and the thread pool."""
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    nn.Conv2d(8, 8, 3)(x).sum().backward()


def compare_memory(threads: int) -> dict[str, Any]:
    found = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "--arm", arm, "--threads", str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[arm] = json.loads(done.stdout.splitlines()[-1])
    base = found["published"]["activations"]
    return {
        "memory.fp32": found["ours"]["activations"] / base,
        "memory.checkpointed": found["checkpointed"]["activations"] / base,
        "bytes": found,
    }


if __name__ == "__main__":
    main()
