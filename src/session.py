"""A run in progress: its state, its folder, and what happens between steps."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch
from torch import nn

import rushes
from rushes.checkpoint import (
    CheckpointWriter,
    Progress,
    find_checkpoint,
    load_checkpoint,
    restore_optimizer,
    step_name,
    take_snapshot,
    write_atomically,
)
from rushes.configs.load import config_to_json
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.distributed import World
from rushes.errors import CheckpointError, ConfigError
from rushes.failures import FILE, BadSamples
from rushes.log import get_logger
from rushes.meters import METRICS, Meters
from rushes.optim import AutoStep, make_optimizer
from rushes.steps import measured, resolve_precision

logger = get_logger(__name__)

PREEMPTED = 143
"""Exit status after SIGTERM: 128 + 15, as of a process that the signal ended."""
_LOCK_WAIT = 10.0


class Session:
    """Model, optimiser, progress and files of one run on one process.

    Args:
        model: on `world.device`.
        run_folder: made if need be; its last intact checkpoint is taken up when `train.resume`.
        steps_per_epoch: optimiser steps an epoch.
        extras: writes further files into a checkpoint's folder.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        world: World,
        run_folder: Path,
        steps_per_epoch: int,
        extras: Callable[[Path], None] | None = None,
    ) -> None:
        self.model, self.config, self.world, self.run_folder = model, config, world, run_folder
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.total_steps = total_steps(config, self.steps_per_epoch)
        self.dtype = resolve_precision(config.train.precision, world.device)
        self.optimizer = make_optimizer(model, config.optim, config.model.compat)
        with contextlib.ExitStack() as stack:
            if world.is_main:
                stack.enter_context(_take_lock(run_folder))
            self.progress = self._restore()
            self.auto_step = AutoStep(
                config.optim.tolerance,
                config.optim.gamma,
                config.model.compat,
                **self.progress.auto_step,
            )
            self.bad = BadSamples(
                run_folder / FILE,
                world,
                config.data.failure_budget,
                self.progress.global_batch,
                self.steps_per_epoch,
            )
            self.bad.restore(self.progress.bad)
            self.reported = 0  # failures of this rank's loader that have been recorded
            self._begun = time.monotonic() - self.progress.seconds
            self._saved_step = self.progress.step
            self._writer = self._make_writer(extras) if world.is_main else None
            if self._writer is not None:
                stack.callback(self._writer.close)
            self.meters = Meters(
                run_folder, world, self.progress.step, self.total_steps, config.train.log_every
            )
            stack.callback(self.meters.close)
            self._resources = stack.pop_all()

    def __enter__(self) -> Session:
        self.meters.restart_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def ended(self) -> bool:
        """All steps are done, or early stop said so."""
        return self.progress.stopped or self.progress.step >= self.total_steps

    def due(self, every: int) -> bool:
        """Whether a cadence falls on this step; 0 means the end of each epoch, and the last step
        always counts."""
        step = self.progress.step
        return step % (every or self.steps_per_epoch) == 0 or step >= self.total_steps

    def after_step(self, values: Mapping[str, float], samples: int, wait: float) -> None:
        """Take a step into progress and meters."""
        self.progress.step += 1
        self.progress.samples += samples
        self.bad.flush()
        epoch = self.progress.step / self.steps_per_epoch
        self.meters.step(self.progress.step, {**values, "epoch": epoch}, samples, wait)

    def validated(self, metrics: Mapping[str, float]) -> None:
        """Take in a validation: best, early stop, and a checkpoint if one is due or it is best."""
        progress, world = self.progress, self.world
        progress.metrics = dict(world.broadcast_object(dict(metrics)))
        self.meters.validation(progress.step, progress.metrics)
        name = self.config.train.best_metric or next(iter(progress.metrics), "")
        if name not in progress.metrics:
            known = ", ".join(sorted(progress.metrics)) or "none"
            raise ConfigError(f"train.best_metric {name!r}: the validation has {known}")
        value = progress.metrics[name]
        if self.config.optim.schedule == "auto_step":
            self.auto_step.step(-value if falls(name) else value)
            progress.auto_step = self.auto_step.state
        improved = is_better(name, value, progress.best_value)
        if improved:
            progress.best_value, progress.best_step = value, progress.step
            progress.without_improvement = 0
        else:
            progress.without_improvement += 1
            patience = self.config.train.patience
            progress.stopped = 0 < patience <= progress.without_improvement
        logger.info("step %d: %s", progress.step, _shown(progress.metrics))
        cadence = self.due(self.config.train.checkpoint_every)
        if cadence or improved or progress.stopped:
            self.save(best=improved, cadence=cadence)
        self.meters.restart_clock()

    def save(self, *, best: bool = False, cadence: bool = True) -> None:
        """Write a checkpoint of this step; `cadence` ones count for `train.keep_every`."""
        if cadence:
            self.progress.checkpoints += 1
        self.progress.seconds = time.monotonic() - self._begun
        self.progress.bad = self.bad.to_json()
        self._saved_step = self.progress.step
        if self._writer is not None:
            plain = config_to_json(self.config)
            self._writer.save(
                take_snapshot(self.model, self.optimizer, self.progress, plain), best=best
            )

    def save_now(self) -> None:
        """Write a checkpoint outside the cadence, if this step has none yet.

        One that is there is not written again: replacing it would leave a moment without it.
        """
        if self._writer is not None:
            self._writer.wait()
        there = self.run_folder / "checkpoints" / step_name(self.progress.step)
        if self.progress.step != self._saved_step or not there.is_dir():
            self.save(cadence=False)

    def result_folder(self) -> Path | None:
        """The best checkpoint where there is one, else the last."""
        folder = self.run_folder / "checkpoints"
        step = self.progress.best_step or self._saved_step
        for name in (step_name(step), step_name(self._saved_step)):
            if (folder / name).is_dir():
                return folder / name
        return None

    def save_replay(
        self, step: int, batches: Sequence[Batch], losses: dict[str, float], norm: float
    ) -> Path:
        """Keep the sample ids of all ranks of a step that went wrong; the file."""
        ids = self.world.all_gather_object([list(batch.ids) for batch in batches])
        file = self.run_folder / "replay" / f"{step_name(step)}.json"
        if self.world.is_main:
            found = {k: v if math.isfinite(v) else str(v) for k, v in losses.items()}
            text = {"step": step, "losses": found, "grad_norm": str(norm), "ids": ids}
            try:
                file.parent.mkdir(exist_ok=True)
                write_atomically(file, json.dumps(text, indent=1) + "\n")
            except OSError as error:  # a full disk; the run may go on
                logger.warning("%s cannot be written: %s; its samples: %s", file, error, ids)
        return file

    def measure_flops(self, batch: Batch) -> None:
        """Once: operations of the towers a sample, forward and backward (three forwards)."""
        if self.meters.flops_per_sample is not None or not self.world.is_main or not len(batch):
            return
        self.model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            encode = getattr(self.model, "encode")  # noqa: B009
            self.meters.flops_per_sample = 3 * measured(lambda: encode(batch)) / len(batch)
        self.model.train()
        self.meters.restart_clock()

    def _make_writer(self, extras: Callable[[Path], None] | None) -> CheckpointWriter:
        train = self.config.train
        return CheckpointWriter(
            self.run_folder,
            keep_last=train.keep_last,
            keep_every=train.keep_every,
            asynchronous=train.async_checkpoint,
            extras=extras,
        )

    def _restore(self) -> Progress:
        """Take up the last intact checkpoint, or begin; all ranks end with rank 0's state."""
        world, micro = self.world, self.config.train.batch_size * self.world.size
        loaded = None
        if world.is_main:
            if not self.config.train.resume:
                _put_aside(self.run_folder)
            folder = find_checkpoint(self.run_folder)
            if folder is not None:
                loaded = load_checkpoint(folder)
                self._check_same_run(loaded.progress, loaded.config, folder, micro)
                self.model.load_state_dict(loaded.weights)
                logger.info("resuming from %s", folder)
            write_run_files(self.run_folder, self.config, world)
        world.broadcast_parameters(self.model)
        progress, layout = world.broadcast_object(
            None
            if loaded is None
            else (
                loaded.progress,
                {name: (tuple(t.shape), t.dtype) for name, t in loaded.moments.items()},
            )
        ) or (Progress(), {})
        moments = {
            name: loaded.moments[name].to(world.device)
            if loaded is not None
            else torch.empty(shape, dtype=dtype, device=world.device)
            for name, (shape, dtype) in layout.items()
        }
        world.broadcast_tensors(list(moments.values()))
        if moments:
            restore_optimizer(self.model, self.optimizer, moments)
        global_batch = micro * self.config.train.accumulation
        return replace(progress, global_batch=global_batch, micro_batch=micro)

    def _check_same_run(
        self, progress: Progress, config: Mapping[str, Any], folder: Path, micro: int
    ) -> None:
        global_batch = micro * self.config.train.accumulation
        if progress.global_batch not in (0, global_batch):
            raise CheckpointError(
                f"{folder} takes {progress.global_batch} samples a step, this command asks for "
                f"{global_batch}; keep batch_size x accumulation x ranks, or choose another "
                "output_dir, or set train.resume false"
            )
        changed = sorted(_differences(config, config_to_json(self.config)))
        if changed:
            logger.warning("resuming with changed settings: %s", ", ".join(changed))


class StopSignal:
    """Notes SIGTERM instead of dying of it, within a `with`; a second one kills as ever."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopSignal:
        if self._installed:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        signal.signal(signal.SIGTERM, self._previous)


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run."""
    steps = math.ceil(config.train.epochs * steps_per_epoch)
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether a metric improved; NaN never does."""
    if math.isnan(value):
        return False
    return best is None or (value < best if falls(name) else value > best)


def falls(name: str) -> bool:
    """Whether less of a metric is better: losses, ranks and errors; of all else, more is."""
    return any(word in name for word in ("loss", "rank", "error"))


def write_run_files(run_folder: Path, config: RunConfig, world: World) -> None:
    """Write `config.json`, as resolved, and `environment.json`."""
    write_atomically(
        run_folder / "config.json", json.dumps(config_to_json(config), indent=1) + "\n"
    )
    environment = {
        "rushes": rushes.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "command": sys.argv,
        "backend": world.backend,
        "ranks": world.size,
        "device": str(world.device),
        "device_name": torch.cuda.get_device_name(world.device)
        if world.device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomically(run_folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def _take_lock(run_folder: Path) -> TextIO:
    run_folder.mkdir(parents=True, exist_ok=True)
    file = (run_folder / ".lock").open("a+", encoding="utf-8")
    give_up = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > give_up:
                file.close()
                raise CheckpointError(f"{run_folder}: another process trains there") from error
            time.sleep(0.1)  # a process that was just killed may not be gone yet
        else:
            return file


def _put_aside(run_folder: Path) -> None:
    """Move what an earlier run left, so that the new one neither reads nor deletes it."""
    for name in ("checkpoints", METRICS, FILE, "tb"):
        path = run_folder / name
        if path.exists():
            number = 1
            while (run_folder / f"{name}.old{number}").exists():
                number += 1
            path.rename(run_folder / f"{name}.old{number}")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.add(f"{prefix}{key}")
    return found


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
