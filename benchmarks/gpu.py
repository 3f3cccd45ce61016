"""Training throughput on a CUDA device: bf16 samples/s and model-FLOPs utilisation.

    python benchmarks/gpu.py --json out.json

The published model at 640x1024, stage 1, 2 clips of 7 frames, text of 50 tokens; forward, backward
and AdamW step. Footage is rendered here, on the device. The batch grows until memory is full; the
largest that fits is timed compiled and not. Utilisation counts the model's own multiply-adds once
(three times the forward: one forward, two backward) against the device's dense bf16 peak, which is
measured by a large matrix product where it is not known. Needs torch, timm, rushes; no other file.
Ends within 8 minutes. Without a device it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _figures import add_json, publish
from torch import Tensor

BUDGET = 8 * 60.0
"""Seconds for everything."""
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12, "T4": 65e12}
"""Dense bf16 (T4: fp16) operations a second by name, from the makers' data sheets."""
BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    parser.add_argument("--high", type=int, nargs=2, default=(640, 1024), help="height and width")
    parser.add_argument("--frames", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="timed steps of one setting")
    parser.add_argument("--batch", type=int, help="fixed batch instead of the largest that fits")
    arguments = parser.parse_args()
    started = time.monotonic()
    figures = measure(arguments, started) if torch.cuda.is_available() else nothing()
    figures["wall_seconds"] = time.monotonic() - started
    publish(figures, arguments.json)


def nothing() -> dict[str, Any]:
    return {"gpu": None, "note": "no CUDA device at hand: nothing was measured"}


def measure(arguments: argparse.Namespace, started: float) -> dict[str, Any]:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name()
    peak, source = device_peak(name)
    high, frames = tuple(arguments.high), arguments.frames
    model = published_model()
    flops = forward_flops(model, high, frames)
    batch = arguments.batch or largest_batch(model, high, frames, started)
    figures: dict[str, Any] = {
        "gpu": name,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "peak_flops": peak,
        "peak_source": source,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "batch": batch,
        "forward_flops_a_sample": flops,
    }
    for label in ("eager", "compiled"):
        if time.monotonic() - started > BUDGET - 120:
            figures[label] = "left out: out of time"
            continue
        if label == "compiled":
            compile_towers(model)
        found = timed_steps(model, high, frames, batch, arguments.seconds, started)
        found["utilisation"] = 3 * flops * found["samples_per_second"] / peak
        figures[label] = found
    return figures


def published_model() -> Any:
    from rushes.configs.load import build_config
    from rushes.modeling.build import build_model

    torch.manual_seed(0)
    model = build_model(build_config({"model": {"weights": {"init": "random"}}}))
    return model.to("cuda", memory_format=torch.channels_last).train()


def compile_towers(model: Any) -> None:
    from rushes.modeling.build import compile_towers as compile_in_place

    compile_in_place(model)


def footage(high: tuple[int, ...], frames: int, batch: int) -> tuple[Tensor, ...]:
    """Moving gratings with noise as uint8 on the device, and random words."""
    clips = 2
    time_axis = torch.arange(frames, device="cuda").view(1, 1, -1, 1, 1, 1)
    phase = torch.rand(batch, clips, 1, 3, 1, 1, device="cuda") * 6.28

    def render(height: int, width: int, moments: Tensor) -> Tensor:
        rows = torch.linspace(0, 20, height, device="cuda").view(1, 1, 1, 1, -1, 1)
        columns = torch.linspace(0, 30, width, device="cuda")
        waves = torch.sin(rows + columns + moments * 0.7 + phase)
        noise = torch.rand_like(waves) * 0.2
        return ((waves + noise) * 100 + 128).clamp(0, 255).to(torch.uint8)

    middle = frames // 2
    others = torch.cat([time_axis[:, :, :middle], time_axis[:, :, middle + 1 :]], dim=2)
    tall, wide = high
    low = render(tall // 4, wide // 4, others)
    top = render(tall, wide, time_axis[:, :, middle : middle + 1])[:, :, 0]
    ids = torch.randint(1000, 30000, (batch, 50), device="cuda")
    return top, low, ids, torch.ones_like(ids)


def make_step(model: Any, high: tuple[int, ...], frames: int, batch: int) -> Callable[[], Tensor]:
    """One optimiser step on fixed footage."""
    top, low, ids, mask = footage(high, frames, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    targets = torch.arange(batch, device="cuda")

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            video, text = model.video_embedding(top, low), model.text_embedding(ids, mask)
        scores = text @ video.t() / 0.05
        both = torch.nn.functional.cross_entropy
        loss = 0.5 * (both(scores, targets) + both(scores.t(), targets))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def largest_batch(model: Any, high: tuple[int, ...], frames: int, started: float) -> int:
    """The largest of BATCHES whose step fits into memory; found within a quarter of the time."""
    best = 0
    for batch in BATCHES:
        if best and time.monotonic() - started > BUDGET / 4:
            break
        try:
            make_step(model, high, frames, batch)()
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        best = batch
    if not best:
        raise SystemExit("one sample does not fit into this device's memory")
    return best


def timed_steps(
    model: Any,
    high: tuple[int, ...],
    frames: int,
    batch: int,
    seconds: float,
    started: float,
) -> dict[str, Any]:
    """Steps a second after a warm-up, each step measured by events."""
    step = make_step(model, high, frames, batch)
    torch.cuda.reset_peak_memory_stats()
    first = time.monotonic()
    for _ in range(3):
        loss = step()
    torch.cuda.synchronize()
    warm = time.monotonic()
    taken = []
    while len(taken) < 3 or (
        time.monotonic() - warm < seconds and time.monotonic() - started < BUDGET - 30
    ):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        loss = step()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1000)
    model.zero_grad(set_to_none=True)
    median = statistics.median(taken)
    return {
        "samples_per_second": batch / median,
        "step_seconds": {"median": median, "min": min(taken), "max": max(taken)},
        "steps": len(taken),
        "warm_up_seconds": warm - first,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
        "loss": float(loss),
    }


def forward_flops(model: Any, high: tuple[int, ...], frames: int) -> float:
    """Floating-point operations of one sample's forward pass, counted by PyTorch."""
    from torch.utils.flop_counter import FlopCounterMode

    top, low, ids, mask = footage(high, frames, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.video_embedding(top, low)
        model.text_embedding(ids, mask)
    return float(counter.get_total_flops())


def device_peak(name: str) -> tuple[float, str]:
    """Dense bf16 operations a second: from the data sheet, else from a large matrix product."""
    for known, peak in PEAKS.items():
        if known in name:
            return peak, "data sheet"
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1000)
    return 2 * size**3 / best, "measured matrix product"


if __name__ == "__main__":
    main()
