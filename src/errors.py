"""Every error that a user can cause or meet; nothing else is raised on purpose.

RushesError
  ConfigError                 a preset, flag or environment variable is wrong
  AnnotationError             a line of an annotation file is wrong (file:line in the text)
  VideoError                  a video cannot give what was asked; carries video, reason, detail
    UnreadableVideo           empty, not_video, truncated, undecodable
    NoVideoStream             sound or subtitles only
    RefusedVideo              over_limit, hostile: could be read, but will not be
    FrameUnavailable          the moment lies outside the video and the policy is strict
    NotInStore                a full-size frame off the grid of a store; carries the nearest centres
    MissingVideo              the catalogue knows no such video id
    DecodeTimeout             the deadline passed
    WorkerDied                the decoding process died or outgrew its memory limit
    Quarantined               killed workers before; not tried again
  BackendMissing              an optional library is not installed (the text says how to get it)
  ServiceError                the frame service refused or could not be reached
  StorageError                the storage folder or a store is incomplete or damaged
  WeightsError                a weight file does not fit the model
  CheckpointError             a run folder or checkpoint is torn, missing or of another run
  TrainingError
    NonFiniteLoss             NaN or infinity past the budget
    FailureBudgetExceeded     more bad samples than the run allows
    RankFailed                another rank failed; its error is in the text
  MetricError                 scores or labels that cannot be judged
"""

from __future__ import annotations

from typing import Literal

VideoReason = Literal[
    "empty",
    "not_video",
    "no_video_stream",
    "truncated",
    "undecodable",
    "over_limit",
    "hostile",
    "frame_unavailable",
    "not_in_store",
    "missing",
    "timeout",
    "worker_died",
    "quarantined",
]


class RushesError(Exception):
    """Base of every error that rushes raises on purpose."""


class ConfigError(RushesError):
    """A preset, flag or environment variable is wrong."""


class AnnotationError(RushesError):
    """A line of an annotation file is wrong."""

    def __init__(self, detail: str, file: str = "", line: int | None = None) -> None:
        self.detail, self.file, self.line = detail, file, line
        where = f"{file}:{line}: " if line is not None else f"{file}: " if file else ""
        super().__init__(where + detail)

    def __reduce__(self) -> tuple[type[AnnotationError], tuple[str, str, int | None]]:
        return type(self), (self.detail, self.file, self.line)


class VideoError(RushesError):
    """A video cannot give what was asked of it.

    Args:
        video: video id or path, as the caller named it.
        detail: what happened, with the value and the limit.
        reason: machine-readable reason, one of `VideoReason`.
    """

    default_reason: VideoReason = "undecodable"

    def __init__(self, video: str, detail: str, reason: VideoReason | None = None) -> None:
        self.video, self.detail = video, detail
        self.reason: VideoReason = reason or self.default_reason
        super().__init__(f"{video}: {detail} [{self.reason}]")

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str, VideoReason]]:
        # Exceptions cross process borders (pool, service); the default pickling would call
        # __init__ with the finished message.
        return type(self), (self.video, self.detail, self.reason)


class UnreadableVideo(VideoError):
    """The bytes are empty, no video, cut short or do not decode."""


class NoVideoStream(VideoError):
    """The file holds sound or subtitles only."""

    default_reason = "no_video_stream"


class RefusedVideo(VideoError):
    """The file breaks a limit or tries to reach other files or the network."""

    default_reason = "over_limit"


class FrameUnavailable(VideoError):
    """A moment lies outside the video and the policy is strict."""

    default_reason = "frame_unavailable"


class NotInStore(VideoError):
    """A full-size frame off the grid of a store was asked for.

    Args:
        centres: the nearest centres below and above the asked time, in seconds.
    """

    default_reason = "not_in_store"

    def __init__(
        self,
        video: str,
        detail: str,
        reason: VideoReason | None = None,
        centres: tuple[float, ...] = (),
    ) -> None:
        self.centres = centres
        super().__init__(video, detail, reason)

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str, VideoReason]]:
        args = (self.video, self.detail, self.reason, self.centres)
        return type(self), args  # type: ignore[return-value]


class MissingVideo(VideoError):
    """The catalogue knows no such video id."""

    default_reason = "missing"


class DecodeTimeout(VideoError):
    """The deadline passed before the frames were there."""

    default_reason = "timeout"


class WorkerDied(VideoError):
    """The process that decoded this video died or outgrew its memory limit."""

    default_reason = "worker_died"


class Quarantined(VideoError):
    """This video has killed workers before and is not tried again."""

    default_reason = "quarantined"


class BackendMissing(RushesError):
    """An optional library is not installed.

    Args:
        name: what is missing.
        install: the command that installs it.
    """

    def __init__(self, name: str, install: str) -> None:
        self.name, self.install = name, install
        super().__init__(f"{name} is not installed; install it with: {install}")

    def __reduce__(self) -> tuple[type[BackendMissing], tuple[str, str]]:
        return type(self), (self.name, self.install)


class ServiceError(RushesError):
    """The frame service refused a request or could not be reached."""


class StorageError(RushesError):
    """The storage folder or a store is incomplete or damaged."""


class WeightsError(RushesError):
    """A weight file does not fit the model."""


class CheckpointError(RushesError):
    """A run folder or a checkpoint is torn, missing or of another run."""


class TrainingError(RushesError):
    """Training cannot go on."""


class NonFiniteLoss(TrainingError):
    """NaN or infinity past the budget of skipped steps."""


class FailureBudgetExceeded(TrainingError):
    """More bad samples than the run allows."""


class RankFailed(TrainingError):
    """Another rank failed; its error is in the text."""


class MetricError(RushesError):
    """Scores or labels that cannot be judged."""
