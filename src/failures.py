"""Bad samples: named in a file before the step, failed from there on, within a budget."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rushes.datasets.batch import Batch
from rushes.distributed import World
from rushes.errors import FailureBudgetExceeded
from rushes.log import get_logger

logger = get_logger(__name__)

FILE = "bad_videos.jsonl"
REPORTED = 20
"""Bad samples that are named in the log; all are in the file."""


class BadSamples:
    """Which samples have failed, since which step; alike on all ranks.

    A sample that failed at step s is taken as failed at every later one, even where its video could
    be read again, and also after a resume from a checkpoint older than s: the file remembers s.

    Args:
        path: `bad_videos.jsonl` of the run; only rank 0 reads and writes it.
        limit: samples that may fail.
    """

    def __init__(self, path: Path, world: World, limit: int) -> None:
        self.path, self.world, self.limit = path, world, limit
        self.since: dict[str, int] = {}

    def restore(self, saved: Mapping[str, int]) -> None:
        """Take up what the checkpoint and the file know."""
        known = dict(saved)
        if self.world.is_main:
            for line in _lines(self.path):
                known[line["id"]] = min(line["step"], known.get(line["id"], line["step"]))
        self.since = self.world.broadcast_object(known)

    def enforce(self, batches: Sequence[Batch], step: int) -> list[Batch]:
        """The same batches with samples that failed before `step` marked and blackened."""
        if not self.since:
            return list(batches)
        return [self._enforced(batch, step) for batch in batches]

    def _enforced(self, batch: Batch, step: int) -> Batch:
        keep = torch.tensor([self.since.get(name, step + 1) > step for name in batch.ids])
        if bool((keep | ~batch.valid.cpu()).all()):
            return batch
        keep = keep.to(batch.valid.device)
        pixels: dict[str, Any] = {}
        for name in ("high", "low"):
            value = getattr(batch, name)
            if value is not None:
                pixels[name] = value * keep.view(-1, *[1] * (value.ndim - 1))
        return replace(batch, valid=batch.valid & keep, **pixels)

    def record(
        self, batches: Sequence[Batch], step: int, reasons: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Name the samples of this step that are not valid; called on all ranks alike.

        Args:
            reasons: sample id -> video, reason, detail; from this rank's loader.

        Raises:
            FailureBudgetExceeded: more have failed than the run allows.
        """
        mine = [
            {"id": name, **reasons.get(name, {})}
            for batch in batches
            for name, valid in zip(batch.ids, batch.valid.tolist(), strict=True)
            if not valid
        ]
        new = []
        for entry in (entry for entries in self.world.all_gather_object(mine) for entry in entries):
            if self.since.get(entry["id"], step + 1) > step:
                self.since[entry["id"]] = step
                new.append({"step": step, **entry})
        if new and self.world.is_main:
            _append(self.path, new)
            for entry in new[: max(0, REPORTED - len(self.since) + len(new))]:
                logger.warning("bad sample: %s", json.dumps(entry))
        if len(self.since) > self.limit:
            raise FailureBudgetExceeded(
                f"{len(self.since)} samples have failed, {self.limit} may "
                f"(data.failure_budget); they are named in {self.path}"
            )


def failure_limit(budget: float, samples_per_epoch: int) -> int:
    """Samples that may fail: the given share of an epoch, rounded up."""
    return math.ceil(budget * samples_per_epoch)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run may be cut short
        if "id" in entry and "step" in entry:
            yield entry


def _append(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a killed run's half line must not swallow this one
                file.write(b"\n")
        for entry in entries:
            file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
