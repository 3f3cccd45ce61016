"""What the optional backends share: our index says which frame, the backend must deliver that one.

Every file is sniffed and indexed by us before a backend opens it. A backend counts and times frames
for itself; where it disagrees with the index the file is refused, never guessed at.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from rushes.errors import RefusedVideo, UnreadableVideo
from rushes.video.catalogue import Catalogue, Source
from rushes.video.convert import Converter
from rushes.video.decoder import decoder_bytes
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits, check_deadline
from rushes.video.readers.asking import FrameAsk, check_request, check_size, plan_frames
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import Audio, Cost, Frames, Reply, Request, Size, VideoInfo
from rushes.video.sound import read_sound

Picture = npt.NDArray[np.uint8]


class VerifiedReader(ABC):
    """A backend that decodes whole RGB frames by number.

    Args:
        catalogue: where the videos are.
        limits: what is refused.
        index_cache: folder that keeps packet indexes.
        max_open: videos held open at once.
        threads: decoding threads.
    """

    backend = ""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        limits: Limits | None = None,
        index_cache: Path | None = None,
        max_open: int = 8,
        threads: int = 1,
    ) -> None:
        self.catalogue, self.limits, self.threads = catalogue, limits or Limits(), threads
        self.max_open = max(1, max_open)
        self._indexes = PyAVReader(
            catalogue, limits=self.limits, index_cache=index_cache, max_open=1
        )
        self._open: OrderedDict[str, tuple[VideoIndex, Any]] = OrderedDict()

    @abstractmethod
    def _open_video(self, source: Source, index: VideoIndex) -> Any:
        """Open a file in the backend; raises where the backend disagrees with the index."""

    @abstractmethod
    def _pictures(
        self, video: Any, index: VideoIndex, frames: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        """Frames by number, ascending: RGB `H W C` as displayed but for the sample aspect."""

    def _close_video(self, video: Any) -> None:
        """Give a file back; most backends do so when the object goes."""
        del video

    def describe(self, video_id: str) -> VideoInfo:
        """What the video holds, from our own probe; raises `VideoError`."""
        return self._indexes.describe(video_id)

    def refuse(self, source: Source, detail: str) -> UnreadableVideo:
        """The error of a backend that cannot be trusted with a file."""
        return UnreadableVideo(source.video_id, f"{self.backend} cannot be trusted: {detail}")

    def read(self, request: Request) -> Reply:
        """The named arrays; raises `VideoError` when this backend cannot give them rightly."""
        began = time.monotonic()
        deadline = None if request.deadline is None else began + request.deadline
        request = check_request(request, self.limits)
        index = self._indexes.index(request.video_id)
        source = self.catalogue.locate(request.video_id)
        info = index.info
        converter = Converter(request.video_id, Size(info.height, info.width), 0)
        asks: list[FrameAsk] = []
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        total = 0
        for output in request.outputs:
            if isinstance(output, Frames):
                target = converter.target(output.crop, output.size)
                total += len(output.times) * target.height * target.width * 3
                check_size(request.video_id, total, self.limits)
                asks.append(plan_frames(request, output, index, target))
                arrays[output.name] = asks[-1].pixels
            elif isinstance(output, Audio):
                total += max(0, round((output.end - output.start) * output.rate)) * 4
                check_size(request.video_id, total, self.limits)
                arrays[output.name] = read_sound(
                    source, index, output, request.policy, self.limits, deadline
                )
            else:
                raise RefusedVideo(request.video_id, "feature tracks are in stores only")
        self._fill(source, index, converter, asks, deadline)
        return Reply(
            request.video_id,
            arrays,
            requested={ask.output.name: np.array(ask.output.times, np.float64) for ask in asks},
            times={ask.output.name: ask.times for ask in asks},
            status={ask.output.name: ask.status for ask in asks},
            cost=Cost(
                frames_returned=sum(len(ask.frames) for ask in asks),
                seconds=time.monotonic() - began,
            ),
        )

    def _fill(
        self,
        source: Source,
        index: VideoIndex,
        converter: Converter,
        asks: Sequence[FrameAsk],
        deadline: float | None,
    ) -> None:
        wanted = sorted({int(frame) for ask in asks for frame in ask.frames})
        if not wanted:
            return
        video = self._opened(source, index)
        for number, picture in self._pictures(video, index, wanted):
            check_deadline(source.video_id, deadline)
            self._check_shape(source, index, picture)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            for ask in asks:
                ask.take(number, frame, converter)
        if not all(ask.taken.all() for ask in asks):
            raise self.refuse(source, "not every asked frame came")

    def _check_shape(self, source: Source, index: VideoIndex, picture: Picture) -> None:
        info = index.info
        shown = (info.coded_height, info.coded_width)
        if info.rotation in (90, 270):
            shown = (shown[1], shown[0])
        if picture.shape != (*shown, 3):
            raise self.refuse(source, f"frames of {picture.shape}, the file holds {shown}")

    def _opened(self, source: Source, index: VideoIndex) -> Any:
        if index.damage is not None:
            raise self.refuse(source, f"the file is damaged ({index.damage})")
        known = self._open.get(source.video_id)
        if known is None or known[0] is not index:
            known = (index, self._open_video(source, index))
        self._open[source.video_id] = known
        self._open.move_to_end(source.video_id)
        while len(self._open) > 1 and self._too_many_open():
            self._close_video(self._open.popitem(last=False)[1][1])
        return known[1]

    def _too_many_open(self) -> bool:
        total = sum(decoder_bytes(index) for index, _ in self._open.values())
        return len(self._open) > self.max_open or total > self.limits.max_open_bytes // 2

    def close(self) -> None:
        """Give back files and memory."""
        for _, video in self._open.values():
            self._close_video(video)
        self._open.clear()
        self._indexes.close()


def path_of(source: Source, backend: str) -> str:
    """The absolute path of a file source; backends that read paths only refuse bytes, and names
    that are no text.
    """
    if source.kind != "file":
        raise UnreadableVideo(source.video_id, f"{backend} reads files only, not {source.kind}")
    path = os.path.abspath(source.path)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        detail = f"{backend} cannot be given the name {path!a}"
        raise UnreadableVideo(source.video_id, detail) from error
    return path


def times_differ(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], tolerance: float = 2e-3
) -> str:
    """Why two lists of presentation times are not the same, or an empty string.

    Args:
        ours: from the index, beginning at 0, `N`.
        theirs: as the backend says, any origin, `N`.
        tolerance: seconds; containers with millisecond stamps round.
    """
    if len(ours) != len(theirs):
        return f"it counts {len(theirs)} frames, the file holds {len(ours)}"
    if not len(ours):
        return ""
    off = np.abs((theirs - theirs[0]) - ours)
    worst = int(off.argmax())
    if off[worst] > tolerance:
        return f"frame {worst} is off by {off[worst]:.4f} s"
    return ""
