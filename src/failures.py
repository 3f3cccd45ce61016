"""Bad samples: named in a file before the step that they were to be in, honoured on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rushes.datasets.collate import BadVideo
from rushes.distributed import World
from rushes.errors import FailureBudgetExceeded
from rushes.log import get_logger, write_out

logger = get_logger(__name__)

FILE = "bad_videos.jsonl"
REPORTED = 20
"""Bad videos that are named in the log, each once; every sample is in the file."""

Slot = tuple[str, int, int]
"""(data set, epoch, index): one visit of one sample."""


class BadSamples:
    """Which slots have failed; alike on all ranks.

    A slot that failed fails again when a resumed run comes by it, even where its video could be
    read by now, and also when the checkpoint is older than the failure: the file remembers it.

    Args:
        path: `bad_videos.jsonl` of the run; only rank 0 reads and writes it.
        budget: share of the slots seen that may fail.
        global_batch: slots of an optimiser step.
        epoch_steps: the budget of a whole epoch is there from the start.
    """

    def __init__(
        self, path: Path, world: World, budget: float, global_batch: int, epoch_steps: int
    ) -> None:
        self.path, self.world = path, world
        self.budget, self.global_batch, self.epoch_steps = budget, global_batch, epoch_steps
        self.known: dict[Slot, BadVideo] = {}
        self._logged: set[str] = set()
        self._unwritten: list[dict[str, Any]] = []
        self._warned = False

    def restore(self, saved: Iterable[Mapping[str, Any]]) -> None:
        """Take up what the checkpoint and the file know."""
        lines = [*saved, *(_lines(self.path) if self.world.is_main else ())]
        found = [_from_line(line) for line in lines]
        shared = self.world.broadcast_object([bad for bad in found if bad is not None])
        self.known = {slot(bad): bad for bad in shared}

    def record(self, step: int, mine: Sequence[BadVideo]) -> None:
        """Name the failures of optimiser step `step` (from 1); called on all ranks alike.

        Args:
            mine: failures of this rank since the last call.

        Raises:
            FailureBudgetExceeded: more have failed than the run allows.
        """
        new = []
        for bad in (bad for some in self.world.all_gather_object(list(mine)) for bad in some):
            if slot(bad) not in self.known:
                self.known[slot(bad)] = bad
                new.append({"step": step, **asdict(bad)})
        if new and self.world.is_main:
            self._unwritten += new
            self.flush()
            for line in new:
                self._log(line)

        seen = max(step, self.epoch_steps) * self.global_batch
        limit = math.ceil(self.budget * seen)
        if len(self.known) > limit:
            raise FailureBudgetExceeded(
                f"{len(self.known)} samples have failed, {limit} of {seen} may "
                f"(data.failure_budget={self.budget}); they are named in {self.path}"
            )

    def flush(self) -> None:
        """Write what is not in the file yet; on a full disk the next call tries again."""
        if not self._unwritten:
            return
        try:
            _append(self.path, self._unwritten)
        except OSError as error:
            if not self._warned:
                logger.warning("%s cannot be written now: %s", self.path, error)
            self._warned = True
        else:
            self._unwritten, self._warned = [], False

    def _log(self, line: Mapping[str, Any]) -> None:
        if line["video"] in self._logged or len(self._logged) >= REPORTED:
            return
        self._logged.add(line["video"])
        logger.warning(
            "%s: %s [%s]; its samples take no part", line["video"], line["detail"], line["reason"]
        )

    def to_json(self) -> list[dict[str, Any]]:
        """For the checkpoint."""
        return [asdict(bad) for bad in self.known.values()]


def slot(bad: BadVideo) -> Slot:
    """The visit that failed."""
    return bad.dataset, bad.epoch, bad.index


def _from_line(line: Mapping[str, Any]) -> BadVideo | None:
    fields = BadVideo.__dataclass_fields__
    if not {"id", "dataset", "epoch", "index"} <= line.keys():
        return None  # a line of validation or of another tool
    return BadVideo(**{key: value for key, value in line.items() if key in fields})


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line of a killed run may be cut short
        if isinstance(line, dict):
            yield line


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a killed run's half line must not swallow this one
                file.write(b"\n")
        write_out(file, bytearray(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
        os.fsync(file.fileno())
