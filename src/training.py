"""The one loop of all stages and tasks: it knows batches, losses and `World`, not video.

    run folder, last intact checkpoint -> steps -> validations and checkpoints -> result

Everything that a step draws comes from (seed, step, rank) or, in the loader, from (seed, epoch,
index): a run that was killed goes on as if nothing had happened. Precedence at the start: a
checkpoint of the run folder wins over the weights that the model came with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from rushes.checkpoint import find_checkpoint, read_progress
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.datasets.collate import BadVideo
from rushes.distributed import World
from rushes.errors import CheckpointError, ConfigError, NonFiniteLoss
from rushes.log import get_logger
from rushes.modeling.objectives import Trainable
from rushes.optim import set_learning_rates
from rushes.session import PREEMPTED, Session, StopSignal
from rushes.steps import Pass, accumulate, agree, clip_gradients, count_valid

logger = get_logger(__name__)

Validate = Callable[[nn.Module, int], Mapping[str, float]]
"""(model, step) -> metrics; called on all ranks, without gradient, in evaluation mode."""


class StepLoader(Protocol):
    """What the loop needs of a loader; position is a step number, so that resume is O(1)."""

    @property
    def bad(self) -> list[BadVideo]:
        """Samples of this rank that failed, in there before their batch is handed out."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        ...

    def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
        """Micro-batches of this rank for optimiser step `start_step` (from 0) and all after it."""
        ...

    def honour(self, known: Iterable[BadVideo]) -> None:
        """Slots that failed before fail again without being tried."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step showed, the same on all ranks.

    Attributes:
        step: counted from 1.
        losses: loss parts by name, means over ranks, weighted.
        loss: sum of the parts that are trained on.
        grad_norm: before clipping.
        rates: learning rate by group.
        samples: valid samples of all ranks.
        updated: False when the step was skipped.
        stop: a rank was asked to stop.
    """

    step: int
    losses: Mapping[str, float]
    loss: float
    grad_norm: float
    rates: Mapping[str, float]
    samples: int
    updated: bool
    stop: bool


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: "finished" all steps, or "early_stop" for want of improvement.
        metrics: the last validation.
        best_value, best_step: of the metric that picks `best`.
        checkpoint: the best checkpoint where there is one, else the last.
    """

    status: Literal["finished", "early_stop"]
    step: int
    run_folder: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    best_value: float | None = None
    best_step: int | None = None
    checkpoint: Path | None = None


def train(
    model: nn.Module,
    loader: StepLoader,
    config: RunConfig,
    world: World,
    run_folder: Path,
    *,
    validate: Validate | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    extras: Callable[[Path], None] | None = None,
) -> TrainResult:
    """Train `model`, a `Trainable`, to the end of the run; go on where a checkpoint left off.

    Args:
        model: on `world.device`; parameters and buffers of rank 0 are given to all.
        loader: micro-batches by step.
        validate: judges the model on the validation split; picks the best and stops early.
        on_step: called after each step on all ranks.
        extras: writes further files (a tokenizer) into a checkpoint's folder; rank 0.

    Raises:
        ConfigError: the schedule needs validations, and there are none.
        NonFiniteLoss: more steps had NaN or infinity than `train.nonfinite_budget`.
        FailureBudgetExceeded: more samples failed than `data.failure_budget`.
        CheckpointError: the run folder is another run's, in use, or cannot be written.
        SystemExit: status 143 after SIGTERM, once the state is saved.
    """
    if config.optim.schedule == "auto_step" and validate is None:
        raise ConfigError(
            "optim.schedule auto_step follows the validations, and data.validation is empty"
        )
    torch.set_num_threads(config.train.num_threads or torch.get_num_threads())
    try:
        session = Session(model, config, world, run_folder, loader.steps_per_epoch, extras)
    except OSError as error:
        raise CheckpointError(f"{run_folder}: the run folder cannot be used: {error}") from error
    progress = session.progress
    session.reported = len(loader.bad)
    loader.honour(session.bad.known.values())
    model.train()
    with session, StopSignal() as stop:
        batches = iter(()) if session.ended else loader.batches(progress.step)
        while not session.ended:
            before = time.perf_counter()
            micro_batches = next(batches)
            wait = time.perf_counter() - before
            report = train_step(session, micro_batches, loader, stop.requested)
            session.after_step(_values(report), report.samples, wait)
            if on_step is not None:
                on_step(report)
            if validate is not None and session.due(config.train.validate_every):
                session.validated(_validation(validate, model, progress.step))
            elif session.due(config.train.checkpoint_every):
                session.save()
            if report.stop and not session.ended:
                session.save_now()
                logger.warning("asked to stop: state of step %d is saved", progress.step)
                raise SystemExit(PREEMPTED)
        _close(batches)
    return TrainResult(
        "early_stop" if progress.stopped else "finished",
        progress.step,
        run_folder,
        dict(progress.metrics),
        progress.best_value,
        progress.best_step,
        session.result_folder(),
    )


def train_step(
    session: Session, batches: list[Batch], loader: StepLoader, stop: bool = False
) -> StepReport:
    """One optimiser step: losses of all micro-batches, gradients over all ranks, update."""
    model, world, config = session.model, session.world, session.config
    step = session.progress.step + 1

    batches = [batch.to(world.device, non_blocking=True) for batch in batches]
    counts, failed = count_valid(world, batches)
    if failed:
        session.bad.record(step, loader.bad[session.reported :])
        session.reported = len(loader.bad)
    session.measure_flops(batches[0])

    rates = set_learning_rates(
        session.optimizer, step, session.total_steps, session.steps_per_epoch, config.optim,
        config.model.compat, session.auto_step.coefficient,
    )  # fmt: skip
    session.optimizer.zero_grad(set_to_none=True)
    objectives = trainable(model).objectives(step - 1)
    shared = Pass(model, objectives, world, config.seed, step, session.dtype)
    parts = accumulate(shared, batches, counts, config)

    world.average_gradients(model)
    norm = clip_gradients(model, config.optim.max_grad_norm)
    losses, finite, stop = agree(world, parts, norm, stop)
    updated = finite and sum(counts) > 0
    if updated:
        session.optimizer.step()
    loss = sum(value for name, value in losses.items() if name.endswith("_loss"))
    report = StepReport(step, losses, loss, float(norm), rates, sum(counts), updated, stop)
    if not finite:
        skip_step(session, report, batches)
    return report


def trainable(model: nn.Module) -> Trainable:
    """`model` as the loop sees it."""
    assert hasattr(model, "encode"), "the loop trains modules that encode and own objectives"
    assert hasattr(model, "objectives")
    return model  # type: ignore[return-value]


def skip_step(session: Session, report: StepReport, batches: list[Batch]) -> None:
    """Count a step with NaN or infinity and keep its sample ids.

    Raises:
        NonFiniteLoss: the budget is used up.
    """
    session.progress.skipped += 1
    budget = session.config.train.nonfinite_budget
    file = session.save_replay(report.step, batches, dict(report.losses), report.grad_norm)
    logger.warning(
        "step %d skipped: losses %s, gradient norm %g; %d of %d allowed; samples are in %s",
        report.step, dict(report.losses), report.grad_norm, session.progress.skipped, budget, file,
    )  # fmt: skip
    if session.progress.skipped > budget:
        raise NonFiniteLoss(
            f"step {report.step}: losses {dict(report.losses)}, gradient norm {report.grad_norm}; "
            f"{session.progress.skipped} steps were not finite, train.nonfinite_budget allows "
            f"{budget}; the samples are in {file}"
        )


def elastic_config(config: RunConfig, world: World, run_folder: Path) -> RunConfig:
    """The config with `train.batch_size` such that a resumed run keeps its global batch.

    Call it before the loader is built. On the number of ranks that the run had, on a new run, and
    where batch_size x accumulation x ranks is the run's already, it changes nothing.

    Raises:
        ConfigError: the number of ranks does not divide the run's batch.
    """
    saved = stepped = 0
    if world.is_main and config.train.resume:
        folder = find_checkpoint(run_folder)
        if folder is not None:
            progress = read_progress(folder)
            saved, stepped = progress.micro_batch, progress.global_batch
    saved, stepped = world.broadcast_object((saved, stepped))
    micro = config.train.batch_size * world.size
    if not saved or saved == micro or stepped == micro * config.train.accumulation:
        return config
    if saved % world.size:
        raise ConfigError(
            f"{run_folder} trains on {saved} samples a micro-step over all ranks, "
            f"which {world.size} ranks do not divide"
        )
    logger.info("resuming on %d ranks: batch_size is %d", world.size, saved // world.size)
    return replace(config, train=replace(config.train, batch_size=saved // world.size))


def _values(report: StepReport) -> dict[str, float]:
    values = {"loss": report.loss, **report.losses, "grad_norm": report.grad_norm}
    values.update({f"learning_rate/{name}": rate for name, rate in report.rates.items()})
    return {**values, "samples": report.samples, "skipped": float(not report.updated)}


def _validation(validate: Validate, model: nn.Module, step: int) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        metrics = dict(validate(model, step))
    model.train()
    return metrics


def _close(batches: Any) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()
