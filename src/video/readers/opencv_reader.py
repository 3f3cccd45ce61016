"""OpenCV behind our index: right, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rushes.errors import BackendMissing
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.readers.verified import Picture, VerifiedReader, path_of

_TOLERANCE = 2e-3


class OpenCVReader(VerifiedReader):
    """Frames by OpenCV's FFmpeg capture, read in order from the first.

    OpenCV's own seeking is inexact, so frames before the asked ones are grabbed and thrown away;
    each kept frame must carry the presentation time that the index gives it.
    """

    backend = "opencv"

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            self._cv2 = import_module("cv2")
        except ImportError as error:
            install = "pip install opencv-python-headless"
            raise BackendMissing("OpenCV", install) from error
        super().__init__(*args, **options)

    def _open_video(self, source: Source, index: VideoIndex) -> Any:
        path = path_of(source, self.backend)
        if index.whole:
            raise self.refuse(source, "the stream does not decode as its packets promise")
        if index.interlaced:
            raise self.refuse(
                source, "it hands out memory that it never wrote for interlaced frames"
            )
        if index.container in ("mpeg", "mpegvideo"):
            raise self.refuse(source, "it loses frames at the beginning of program streams")
        return path

    def _pictures(
        self, video: Any, index: VideoIndex, frames: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        cv2, source = self._cv2, Source("file", index.info.video_id)
        capture = cv2.VideoCapture(video, cv2.CAP_FFMPEG)
        try:
            if not capture.isOpened():
                raise self.refuse(source, "it does not open the file")
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
            origin = None
            wanted, last = set(frames), frames[-1]
            for number in range(last + 1):
                if not capture.grab():
                    raise self.refuse(source, f"it ends after {number} frames")
                stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                origin = stamp if origin is None else origin
                off = abs(stamp - origin - index.info.frame_times[number])
                if off > _TOLERANCE:
                    raise self.refuse(source, f"frame {number} is off by {off:.4f} s")
                if number in wanted:
                    fine, picture = capture.retrieve()
                    if not fine:
                        raise self.refuse(source, f"frame {number} does not decode")
                    rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                    yield number, np.rot90(rgb, -(index.info.rotation // 90))
        finally:
            capture.release()
