"""One name for each video, however its id is spelled."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from rushes.video.catalogue import Catalogue
from rushes.video.request import VideoReader

_REMEMBERED = 1 << 14


def name_of(reader: VideoReader, video_id: str) -> str:
    """The file or folder behind an id, else the id itself; raises `VideoError` for a wrong one.

    `x`, `x.mp4` and `x.mp4/.` may be one file, which must not get more than one chance to kill
    workers, nor more than one place in a cache.
    """
    catalogue = getattr(reader, "catalogue", None)
    if not isinstance(catalogue, Catalogue):
        return video_id
    source = catalogue.locate(video_id)
    return os.path.realpath(source.path) if source.kind in ("file", "images") else video_id


class Names:
    """Which name each id has, for the ids that were asked for last."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, video_id: str) -> str | None:
        """The name of an id; None where no worker has looked yet."""
        return self._names.get(video_id)

    def known_as(self, video_id: str) -> str:
        """The name of an id, or the id for as long as nobody has looked."""
        return self._names.get(video_id, video_id)

    def put(self, video_id: str, name: str) -> None:
        """Remember a name."""
        with self._lock:
            self._names[video_id] = name
            while len(self._names) > _REMEMBERED:
                self._names.popitem(last=False)
