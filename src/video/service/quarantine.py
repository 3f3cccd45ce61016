"""Which videos kill workers, and are not tried again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from rushes.errors import Quarantined
from rushes.log import get_logger

log = get_logger(__name__)

_REMEMBERED = 1 << 14


@dataclass
class _Record:
    video_id: str
    strikes: int = 0
    seconds: float = 0.0
    reason: str = ""


class Quarantine:
    """Counts the workers that each video has cost.

    A video that is read well in between is forgiven: its worker was killed from outside. Videos go
    by their one name (see `Names`), and are shown under the id that was asked for.

    Args:
        strikes: killed workers after which a video is not tried again.
    """

    def __init__(self, strikes: int = 2) -> None:
        self.strikes = strikes
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, name: str, video_id: str) -> None:
        """Raise `Quarantined` for a video that has used up its strikes."""
        record = self._records.get(name) if self._records else None
        if record is not None and record.strikes >= self.strikes:
            detail = f"killed {record.strikes} workers, the limit is {self.strikes}"
            raise Quarantined(video_id, f"{detail}; last: {record.reason}")

    def strike(self, name: str, video_id: str, reason: str) -> None:
        """Note that a video cost a worker."""
        with self._lock:
            record = self._record(name, video_id)
            record.strikes, record.reason = record.strikes + 1, reason
        if record.strikes == self.strikes:
            log.warning("quarantined %s: killed %d workers; last: %s", video_id, record.strikes,
                        reason)  # fmt: skip

    def hung(self, name: str, video_id: str, reason: str, seconds: float, full: float) -> None:
        """Note that a worker hung on a video; it counts once the video has had its full time.

        Args:
            seconds: that the worker had to itself; they add up until the video is read well.
            full: seconds that make a strike: a caller in a hurry closes no video to others.
        """
        with self._lock:
            record = self._record(name, video_id)
            record.seconds += seconds
            counts = record.seconds >= full
            if counts:
                record.seconds = 0.0
        if counts:
            self.strike(name, video_id, reason)

    def _record(self, name: str, video_id: str) -> _Record:
        record = self._records.setdefault(name, _Record(video_id))
        self._records.move_to_end(name)
        while len(self._records) > _REMEMBERED:
            self._records.popitem(last=False)
        return record

    def forgive(self, name: str) -> None:
        """Forget the strikes of a video that was read well."""
        if self._records:
            with self._lock:
                self._records.pop(name, None)

    def videos(self) -> dict[str, str]:
        """Quarantined video ids and what happened last."""
        with self._lock:
            return {
                record.video_id: record.reason
                for record in self._records.values()
                if record.strikes >= self.strikes
            }
