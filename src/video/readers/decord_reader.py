"""Decord behind our index: right, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rushes.errors import BackendMissing
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.packets import PacketFlag
from rushes.video.readers.verified import Picture, VerifiedReader, path_of, times_differ

_BATCH = 16
_STREAMS = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "asf")
"""Containers without an index of their own, in which decord returns neighbours unasked, or frames
that are off by a whole group of pictures (ASF)."""


class DecordReader(VerifiedReader):
    """Frames by decord.

    Refused: damaged files, frame counts or times that differ from the index, and streams on which
    decord is known to return neighbours of the asked frame without a word (open GOPs).
    """

    backend = "decord"

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            self._decord = import_module("decord")
        except ImportError as error:
            raise BackendMissing("decord", "pip install decord") from error
        super().__init__(*args, **options)

    def _open_video(self, source: Source, index: VideoIndex) -> Any:
        path = path_of(source, self.backend)
        if has_leading_pictures(index):
            raise self.refuse(source, "pictures lead key frames (open GOP); it misplaces frames")
        if index.whole or index.container in _STREAMS:
            raise self.refuse(source, f"it does not seek safely in {index.container}")
        if index.invented:
            raise self.refuse(source, f"{index.container} does not say when its frames are shown")
        keys = index.flags[index.key_packets]
        if index.info.codec == "h264" and not (keys & PacketFlag.INSTANT).all():
            raise self.refuse(source, "some key frames refer to earlier ones (gradual refresh)")
        try:
            video = self._decord.VideoReader(path, num_threads=self.threads)
            stamps = np.asarray(video.get_frame_timestamp(range(len(video))), np.float64)
        except (self._decord.DECORDError, RuntimeError) as error:
            raise self.refuse(source, str(error).splitlines()[0][:200]) from error
        difference = times_differ(index.info.frame_times, stamps.reshape(-1, 2)[:, 0])
        if difference:
            raise self.refuse(source, difference)
        return video

    def _pictures(
        self, video: Any, index: VideoIndex, frames: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        for begin in range(0, len(frames), _BATCH):
            numbers = list(frames[begin : begin + _BATCH])
            try:
                batch = video.get_batch(numbers).asnumpy()
            except (self._decord.DECORDError, RuntimeError) as error:
                source = Source("file", index.info.video_id)
                raise self.refuse(source, str(error).splitlines()[0][:200]) from error
            yield from zip(numbers, batch, strict=True)


def has_leading_pictures(index: VideoIndex) -> bool:
    """Whether pictures follow a key frame in the file that are shown before it."""
    keys = index.key_packets
    if not len(keys):
        return False
    place = np.searchsorted(keys, np.arange(len(index.flags)), side="right") - 1
    led = index.order < index.order[keys[np.maximum(place, 0)]]
    return bool(led[keys[0] :].any())
