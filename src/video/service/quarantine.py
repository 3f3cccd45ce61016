"""Which videos kill workers, and are not tried again."""

from __future__ import annotations

import threading

from rushes.errors import Quarantined
from rushes.log import get_logger

log = get_logger(__name__)


class Quarantine:
    """Counts the workers that each video has cost.

    A video that is read well in between is forgiven: its worker was killed from outside.

    Args:
        strikes: killed workers after which a video is not tried again.
    """

    def __init__(self, strikes: int = 2) -> None:
        self.strikes = strikes
        self._counts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def check(self, video_id: str) -> None:
        """Raise `Quarantined` for a video that has used up its strikes."""
        if self._counts and self._counts.get(video_id, 0) >= self.strikes:
            count, reason = self._counts[video_id], self._reasons[video_id]
            raise Quarantined(
                video_id, f"killed {count} workers, the limit is {self.strikes}; last: {reason}"
            )

    def strike(self, video_id: str, reason: str) -> bool:
        """Note that `video_id` cost a worker; True when it is quarantined by that."""
        with self._lock:
            count = self._counts.get(video_id, 0) + 1
            self._counts[video_id], self._reasons[video_id] = count, reason
        if count == self.strikes:
            log.warning("quarantined %s: killed %d workers; last: %s", video_id, count, reason)
        return count >= self.strikes

    def forgive(self, video_id: str) -> None:
        """Forget the strikes of a video that was read well."""
        if self._counts:
            with self._lock:
                self._counts.pop(video_id, None)
                self._reasons.pop(video_id, None)

    def videos(self) -> dict[str, str]:
        """Quarantined video ids and what happened last."""
        with self._lock:
            return {
                video: self._reasons[video]
                for video, count in self._counts.items()
                if count >= self.strikes
            }
