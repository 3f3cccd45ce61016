"""What is seen of a run: metrics.jsonl, TensorBoard, the progress bar, rates and utilisation."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rushes.checkpoint import write_atomically
from rushes.distributed import World
from rushes.log import MetricsWriter, get_logger

logger = get_logger(__name__)

METRICS = "metrics.jsonl"
PEAK_VARIABLE = "RUSHES_PEAK_FLOPS"
"""Peak floating-point operations a second of one device, where the table does not know it."""

# Dense bf16 peaks of the vendors' data sheets, operations a second.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak operations a second of a device, or None where it is not known."""
    stated = os.environ.get(PEAK_VARIABLE)
    if stated:
        return float(stated)
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAKS.items() if key in name), None)


class Meters:
    """Writes what each step and validation showed; silent on ranks other than 0.

    Lines of metrics.jsonl that lie past the step resumed from are dropped first, so that each step
    stands there once.

    Args:
        run_folder: the run.
        start_step: steps done before this process.
        total_steps: steps of the whole run.
        log_every: steps between points in TensorBoard; metrics.jsonl has every step.
    """

    def __init__(
        self, run_folder: Path, world: World, start_step: int, total_steps: int, log_every: int
    ) -> None:
        self.world, self.log_every = world, max(1, log_every)
        self.flops_per_sample: float | None = None
        self._peak = peak_flops(world.device)
        self._started = time.perf_counter()
        self._board: Any = None
        if not world.is_main:
            self._file = MetricsWriter(None)
            self._bar = tqdm(disable=True)
            return
        _drop_after(run_folder / METRICS, start_step)
        self._file = MetricsWriter(run_folder / METRICS)
        self._board = _summary_writer(run_folder / "tb", start_step)
        shown = sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            desc="training",
            unit="step",
            dynamic_ncols=shown,
            mininterval=0.5 if shown else 30.0,
        )

    def step(self, step: int, values: Mapping[str, float], samples: int, wait: float) -> None:
        """One optimiser step is done.

        Args:
            step: counted from 1.
            values: loss parts, rates, norm and counts by name.
            samples: valid samples of the step over all ranks.
            wait: seconds that this rank waited for data.
        """
        now = time.perf_counter()
        elapsed = max(now - self._started, 1e-9)
        self._started = now
        line: dict[str, Any] = dict(values)
        line["samples_per_second"] = samples / elapsed
        line["seconds"] = elapsed
        line["data_stall"] = min(1.0, wait / elapsed)
        if self.world.device.type == "cuda":
            line["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self.world.device)
        if self.flops_per_sample is not None:
            rate = self.flops_per_sample * samples / elapsed / self.world.size
            line["flops_per_second"] = rate
            if self._peak:
                line["mfu"] = rate / self._peak
        self._file.write(kind="train", step=step, **line)
        self._bar.set_postfix(loss=f"{values.get('loss', float('nan')):.4g}", refresh=False)
        self._bar.update(1)
        if step % self.log_every == 0:
            self._draw("train", step, line)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """A validation is done; its time does not count as training."""
        self._file.write(kind="validation", step=step, **metrics)
        self._draw("validation", step, metrics)
        self.restart_clock()

    def _draw(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Points in TensorBoard; a full disk ends them, not the run."""
        if self._board is None:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            self._board = None
            logger.warning("TensorBoard gets no further points, %s has all: %s", METRICS, error)

    def restart_clock(self) -> None:
        """What went by since the last step was not training."""
        self._started = time.perf_counter()

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        self._file.close()
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                logger.warning("TensorBoard lacks its last points: %s", error)


def _summary_writer(folder: Path, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, needed on rank 0 alone

    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run may be cut short
        if entry.get("step", 0) <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))
