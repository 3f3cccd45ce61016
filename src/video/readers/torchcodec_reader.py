"""TorchCodec behind our index. PyTorch is imported here only, and only when this backend is asked.

It needs FFmpeg's shared libraries on the system; on a machine with a CUDA device it decodes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rushes.errors import BackendMissing
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.readers.verified import Picture, VerifiedReader, path_of, times_differ


class TorchCodecReader(VerifiedReader):
    """Frames by torchcodec in its exact mode.

    Args:
        device: "cpu", "cuda" or "cuda:N"; None takes the first CUDA device where there is one.
    """

    backend = "torchcodec"

    def __init__(self, *args: Any, device: str | None = None, **options: Any) -> None:
        try:
            self._decoders = import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            install = "pip install torchcodec, and FFmpeg's libraries (apt-get install ffmpeg)"
            raise BackendMissing("torchcodec", install) from error
        if device is None:
            cuda = import_module("torch").cuda.is_available()
            device = "cuda" if cuda else "cpu"
        self.device = device
        super().__init__(*args, **options)

    def _open_video(self, source: Source, index: VideoIndex) -> Any:
        target: Any = source.data if source.kind == "bytes" else path_of(source, self.backend)
        try:
            video = self._decoders.VideoDecoder(
                target,
                dimension_order="NHWC",
                num_ffmpeg_threads=self.threads,
                device=self.device,
                seek_mode="exact",
            )
            count = len(video)
        except (RuntimeError, ValueError) as error:
            raise self.refuse(source, _first_line(error)) from error
        if count != index.info.num_frames:
            detail = f"it counts {count} frames, the file holds {index.info.num_frames}"
            raise self.refuse(source, detail)
        return video

    def _pictures(
        self, video: Any, index: VideoIndex, frames: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        source = Source("file", index.info.video_id)
        try:
            first = float(video.get_frame_at(0).pts_seconds)
            batch = video.get_frames_at(list(frames))
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.refuse(source, _first_line(error)) from error
        stamps = np.asarray(batch.pts_seconds.cpu(), np.float64) - first
        asked = index.info.frame_times[list(frames)]
        difference = times_differ(np.append(0.0, asked), np.append(0.0, stamps))
        if difference:
            raise self.refuse(source, difference)
        yield from zip(frames, batch.data.cpu().numpy(), strict=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
