"""Epoch order, sharding, read-ahead and resumption; every position is computed, none is stored.

The order of an epoch is a keyed permutation evaluated per index, so that 100 M samples need no
array, and a run resumes at any step at once. The global batch of a step is a stretch of that order:
it holds the same samples on any number of ranks. Several data sets take turns by ratio, one data
set a step, the same on every rank.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from rushes.configs.schema import DataConfig, RunConfig
from rushes.datasets.batch import Batch
from rushes.datasets.collate import BadVideo, Sample, collate, stable_key
from rushes.datasets.permutation import permute
from rushes.datasets.samples import VideoTextDataset
from rushes.distributed import World
from rushes.errors import ConfigError, VideoError, VideoReason

"""Stands for the reason of a slot that is not tried again."""


@dataclass(frozen=True)
class Position:
    """Where a slot of a global batch comes from."""

    dataset: int
    epoch: int
    index: int
    step: int = 0


class EpochPlan:
    """Which samples make each step: pure functions of (seed, step).

    Args:
        sizes: items of each data set.
        ratios: their shares of the steps.
        seed: of the run.
        global_batch: samples an optimiser step over all ranks and micro-steps.
    """

    def __init__(
        self, sizes: Sequence[int], ratios: Sequence[int], seed: int, global_batch: int
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"training data sets of {list(sizes)} items: expected at least one")
        if min(ratios) < 1:
            raise ConfigError(f"ratios {list(ratios)}: expected 1 or more")
        self.sizes, self.ratios, self.seed, self.global_batch = sizes, ratios, seed, global_batch
        self._turns = [d for d, ratio in enumerate(ratios) for _ in range(ratio)]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many samples pass as all data sets hold together."""
        return -(-sum(self.sizes) // self.global_batch)

    def turn(self, step: int) -> tuple[int, int]:
        """(data set, how many steps it had before): each cycle of sum(ratios) steps is shuffled."""
        length = len(self._turns)
        cycle, place = divmod(step, length)
        key = stable_key(f"turns {self.seed} {cycle}")
        order = [self._turns[permute(i, length, key)] for i in range(place + 1)]
        chosen = order[-1]
        return chosen, cycle * self.ratios[chosen] + order[:-1].count(chosen)

    def positions(self, step: int, rows: range) -> list[Position]:
        """The given rows of the global batch of a step."""
        chosen, before = self.turn(step)
        first, size = before * self.global_batch, self.sizes[chosen]
        out = []
        for row in rows:
            epoch, place = divmod(first + row, size)
            key = stable_key(f"order {self.seed} {chosen} {epoch}")
            out.append(Position(chosen, epoch, permute(place, size, key), step))
        return out


class TrainLoader:
    """Micro-batches of this rank, step by step, made ahead by threads.

    Micro-step m of a step covers the m-th part of the global batch; within it ranks take equal
    contiguous rows. So a micro-batch, too, holds the same samples on any number of ranks.

    Args:
        datasets: in the order of `config.data.train`.
        config: batch size, accumulation, workers, prefetch and failure budget.
        world: rank and size.
        seed: None takes the run's.
        global_batch: samples a step; None is batch_size * accumulation * ranks. A run that goes on
            with another number of ranks passes the one it started with.
        on_bad: called for each failed sample, before its batch is handed out.

    Attributes:
        data_wait: seconds that the last step waited for its batches.
        bad: samples of this rank that failed so far, in order. Counting them against the budget is
            the training loop's, which knows all ranks.
    """

    def __init__(
        self,
        datasets: Sequence[VideoTextDataset],
        config: RunConfig,
        world: World,
        seed: int | None = None,
        global_batch: int | None = None,
        on_bad: Callable[[BadVideo], None] | None = None,
    ) -> None:
        accumulation = config.train.accumulation
        total = global_batch or config.train.batch_size * accumulation * world.size
        if total % (accumulation * world.size):
            raise ConfigError(
                f"global batch {total}: {accumulation} micro-steps on {world.size} ranks do not "
                "divide it"
            )
        ratios = [d.ratio for d in config.data.train] or [1] * len(datasets)
        self.datasets, self.data, self.on_bad = datasets, config.data, on_bad
        self.plan = EpochPlan(
            [len(d) for d in datasets], ratios, config.seed if seed is None else seed, total
        )
        self.global_batch, self.accumulation = total, accumulation
        self._rank, self._size = world.rank, world.size
        self.data_wait = 0.0
        self.bad: list[BadVideo] = []
        self._honoured: dict[tuple[str, int, int], BadVideo] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch: as many samples pass as all data sets hold."""
        return self.plan.steps_per_epoch

    def honour(self, known: Iterable[BadVideo]) -> None:
        """Slots that failed before a resume fail again without being tried."""
        self._honoured.update({(bad.dataset, bad.epoch, bad.index): bad for bad in known})

    def close(self) -> None:
        """Close the readers of the data sets."""
        for dataset in self.datasets:
            dataset.reader.close()

    def rows(self, micro_step: int) -> range:
        """This rank's rows of the global batch in a micro-step."""
        micro = self.global_batch // self.accumulation
        share = micro // self._size
        start = micro_step * micro + self._rank * share
        return range(start, start + share)

    def positions(self, step: int) -> list[list[Position]]:
        """Where this rank's slots come from, by micro-step."""
        return [self.plan.positions(step, self.rows(m)) for m in range(self.accumulation)]

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of one step, made here and now."""
        made = [[self._sample(p) for p in part] for part in self.positions(step)]
        self._note(made)
        return [collate(part).trim_texts() for part in made]

    def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
        """Micro-batches of step `start_step`, `start_step + 1`, ... without end.

        Closing the iterator stops its threads.
        """
        if self.data.num_workers <= 0:
            yield from self._without_threads(start_step)
            return
        source = ReadAhead(
            self._sample,
            (self.positions(step) for step in _count(start_step)),
            self.data.num_workers,
            max(1, self.data.prefetch),
        )
        with source:
            while True:
                began = time.perf_counter()
                made, batches = source.get()
                self.data_wait = time.perf_counter() - began
                self._note(made)
                yield batches

    def _without_threads(self, start_step: int) -> Iterator[list[Batch]]:
        for step in _count(start_step):
            began = time.perf_counter()
            batches = self.step(step)
            self.data_wait = time.perf_counter() - began
            yield batches

    def _sample(self, position: Position) -> Sample:
        dataset = self.datasets[position.dataset]
        index, epoch = position.index, position.epoch
        prefix = f"{dataset.name}/" if len(self.datasets) > 1 else ""
        known = self._honoured.get((dataset.name, epoch, index))
        if known is not None:
            error = VideoError(known.video, known.detail, cast(VideoReason, known.reason))
            return _named(dataset.failed_sample(index, epoch, error), prefix)
        return _named(dataset.sample(index, epoch), prefix)

    def _note(self, made: Sequence[Sequence[Sample]]) -> None:
        """Keep and report why samples failed."""
        for sample in (sample for part in made for sample in part):
            if sample.error is not None:
                self.bad.append(sample.error)
                if self.on_bad is not None:
                    self.on_bad(sample.error)


def _named(sample: Sample, prefix: str) -> Sample:
    """The sample under an id that no other data set of the run has."""
    if not prefix:
        return sample
    error = sample.error and replace(sample.error, id=prefix + sample.error.id)
    return replace(sample, id=prefix + sample.id, error=error)


class ReadAhead:
    """Samples made by threads a few steps ahead, collated off the training thread, in order."""

    def __init__(
        self,
        make: Callable[[Position], Sample],
        plan: Iterator[list[list[Position]]],
        num_workers: int,
        prefetch: int,
    ) -> None:
        self._make, self._plan, self._prefetch = make, plan, prefetch
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="rushes-data")
        self._done: queue.Queue[tuple[list[list[Sample]], list[Batch]] | BaseException | None]
        self._done = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rushes-collate", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():  # it may wait for room in the queue
            try:
                self._done.get(timeout=0.05)
            except queue.Empty:
                continue
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get(self) -> tuple[list[list[Sample]], list[Batch]]:
        """The next step; raises what a sample raised; StopIteration after the last."""
        item = self._done.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        pending: deque[list[list[Future[Sample]]]] = deque()
        try:
            for step in self._plan:
                pending.append([[self._pool.submit(self._make, p) for p in m] for m in step])
                if len(pending) > self._prefetch:
                    self._finish(pending.popleft())
                if self._stop.is_set():
                    break
            while pending and not self._stop.is_set():
                self._finish(pending.popleft())
            self._done.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread
            self._done.put(error)

    def _finish(self, futures: list[list[Future[Sample]]]) -> None:
        made = [[future.result() for future in part] for part in futures]
        self._done.put((made, [collate(part).trim_texts() for part in made if part]))


class EvalLoader:
    """Every sample exactly once over all ranks, nothing padded, in a fixed order.

    Args:
        dataset: its `evaluation_order` is cut into one contiguous stretch a rank.
        batch_size: the last batch of a rank may be smaller; a rank may have none.
        world: rank and size.
        data: workers and prefetch.

    Attributes:
        bad: samples that failed, of this rank, after iterating.
    """

    def __init__(
        self,
        dataset: VideoTextDataset,
        batch_size: int,
        world: World,
        data: DataConfig | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"evaluation.batch_size={batch_size}: expected 1 or more")
        self.dataset, self.batch_size = dataset, batch_size
        self.data = data or DataConfig()
        order = dataset.evaluation_order()
        start, end = (len(order) * r // world.size for r in (world.rank, world.rank + 1))
        self.indices: npt.NDArray[np.int64] = order[start:end]
        self.bad: list[BadVideo] = []

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = []
        steps = [
            [[Position(0, 0, int(i)) for i in self.indices[at : at + self.batch_size]]]
            for at in range(0, len(self.indices), self.batch_size)
        ]
        if self.data.num_workers <= 0:
            for (positions,) in steps:
                samples = [self._sample(p) for p in positions]
                self._note(samples)
                yield collate(samples)
            return
        source = ReadAhead(
            self._sample, iter(steps), self.data.num_workers, max(1, self.data.prefetch)
        )
        with source:
            for _ in steps:
                (samples,), (batch,) = source.get()
                self._note(samples)
                yield batch

    def _sample(self, position: Position) -> Sample:
        return self.dataset.sample(position.index, position.epoch)

    def _note(self, samples: Sequence[Sample]) -> None:
        self.bad.extend(sample.error for sample in samples if sample.error is not None)


def by_name(loaders: Iterable[EvalLoader]) -> Mapping[str, EvalLoader]:
    """Loaders by the name of their data set."""
    return {loader.dataset.name: loader for loader in loaders}


def _count(start: int) -> Iterator[int]:
    step = start
    while True:
        yield step
        step += 1
