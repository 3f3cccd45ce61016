"""How other libraries take the stage-1 sample from a file: each at its best, one thread."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import decord
import numpy as np
import numpy.typing as npt
import torch

try:  # torchcodec's own resizing asks for torchvision, and a mismatched build does not load
    import torchvision  # noqa: F401
except RuntimeError:
    sys.modules["torchvision"] = None  # type: ignore[assignment]
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from rushes.video.index import NO_TIME, VideoIndex

Pictures = npt.NDArray[np.uint8]
Side = Callable[["Sample"], tuple[Pictures, Pictures]]


@dataclass(frozen=True)
class Sample:
    """Two clips of a file.

    Attributes:
        path: the file.
        index: ours, of which peers get what they can use: frame times and mappings.
        mappings: the same as torchcodec reads it.
        frames: frame numbers, int64 `N T`; the middle column at full size.
        low: height and width of the others.
    """

    path: Path
    index: VideoIndex
    mappings: str
    frames: npt.NDArray[np.int64]
    low: tuple[int, int]

    @property
    def high_frames(self) -> list[int]:
        """Frames wanted at full size, `N`."""
        return [int(i) for i in self.frames[:, self.frames.shape[1] // 2]]

    @property
    def low_frames(self) -> list[int]:
        """Frames wanted small, `N (T - 1)`."""
        middle = self.frames.shape[1] // 2
        return [int(i) for i in np.delete(self.frames, middle, axis=1).reshape(-1)]


def mappings_of(index: VideoIndex) -> str:
    """Our index in the form that torchcodec takes instead of scanning the file."""
    pts = [int(index.pts[packet]) for packet in index.frame_packets]
    step = int(np.median(np.diff(pts))) if len(pts) > 1 else 1
    ends = [*pts[1:], pts[-1] + step]
    keys = set(index.info.keyframes.tolist())
    rows = [
        {"pts": p, "duration": end - p, "key_frame": int(i in keys)}
        for i, (p, end) in enumerate(zip(pts, ends, strict=True))
    ]
    return json.dumps({"frames": rows})


def _split(sample: Sample) -> tuple[list[int], list[int], list[int]]:
    """Distinct frames ascending, and where the high and the low ones are among them."""
    distinct = sorted({*sample.high_frames, *sample.low_frames})
    place = {number: i for i, number in enumerate(distinct)}
    high = [place[i] for i in sample.high_frames]
    return distinct, high, [place[i] for i in sample.low_frames]


def _shrink(pictures: torch.Tensor, low: tuple[int, int]) -> Pictures:
    """Antialiased resize of uint8 `N H W C`; PyTorch's fastest on a CPU."""
    planes = pictures.permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, size=low, mode="bilinear", antialias=True)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())


def torchcodec_side(mode: str) -> Side:
    """torchcodec: full frames once, the neighbours resized after; `mode` is how it seeks."""

    def take(sample: Sample) -> tuple[Pictures, Pictures]:
        distinct, high, low = _split(sample)
        batch = _torchcodec(sample, mode).get_frames_at(distinct).data
        return batch[high].numpy(), _shrink(batch[low], sample.low)

    return take


def torchcodec_resizing_side(mode: str) -> Side:
    """torchcodec: one decoder for full frames and one that resizes while decoding."""

    def take(sample: Sample) -> tuple[Pictures, Pictures]:
        order = np.argsort(sample.low_frames, kind="stable")
        small = _torchcodec(sample, mode, [Resize(size=sample.low)])
        low = small.get_frames_at(np.array(sample.low_frames)[order].tolist()).data
        high = _torchcodec(sample, mode).get_frames_at(sample.high_frames).data
        out = np.empty(tuple(low.shape), np.uint8)
        out[order] = low.numpy()
        return high.numpy(), out

    return take


def _torchcodec(sample: Sample, mode: str, transforms: Any = None) -> Any:
    options: dict[str, Any] = {"seek_mode": mode}
    if mode == "mapped":
        options = {"seek_mode": "exact", "custom_frame_mappings": sample.mappings}
    return VideoDecoder(
        str(sample.path),
        dimension_order="NHWC",
        num_ffmpeg_threads=1,
        transforms=transforms,
        **options,
    )


def decord_side(sample: Sample) -> tuple[Pictures, Pictures]:
    """decord: one batch of full frames, as published training code does."""
    distinct, high, low = _split(sample)
    reader = decord.VideoReader(os.fspath(sample.path), num_threads=1)
    batch = torch.from_numpy(reader.get_batch(distinct).asnumpy())
    return batch[high].numpy(), _shrink(batch[low], sample.low)


def opencv_side(sample: Sample) -> tuple[Pictures, Pictures]:
    """OpenCV: one seek to the first frame of each stretch, then grabbing in order."""
    distinct, high, low = _split(sample)
    capture = cv2.VideoCapture(os.fspath(sample.path), cv2.CAP_FFMPEG)
    capture.setExceptionMode(False)
    pictures, at = [], 0
    for number in distinct:
        if number - at > 60:
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            at = number
        while at < number:
            capture.grab()
            at += 1
        _, picture = capture.read()
        at += 1
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    capture.release()
    size = (sample.low[1], sample.low[0])
    small = [cv2.resize(pictures[i], size, interpolation=cv2.INTER_AREA) for i in low]
    return np.stack([pictures[i] for i in high]), np.stack(small)


def pyav_side(sample: Sample) -> tuple[Pictures, Pictures]:
    """Plain PyAV: seek to the key frame before each clip, decode on, convert what is wanted."""
    distinct, high, low = _split(sample)
    pts = sample.index.pts[sample.index.frame_packets]
    assert (pts != NO_TIME).all()
    wanted = {int(pts[i]): i for i in distinct}
    keys = sample.index.info.keyframes
    highs, lows = set(sample.high_frames), set(sample.low_frames)
    got_high: dict[int, Pictures] = {}
    got_low: dict[int, Pictures] = {}
    with av.open(os.fspath(sample.path)) as media:
        stream = media.streams.best("video")
        stream.codec_context.thread_count = 1
        at = -1
        left = sorted(wanted)
        while left:
            number = wanted[left[0]]
            key = int(keys[np.searchsorted(keys, number, side="right") - 1])
            if key > at:
                media.seek(left[0], stream=stream)
            for frame in media.decode(stream):
                found = wanted.get(frame.pts)
                if found is None:
                    continue
                at = found
                left.remove(frame.pts)
                if found in highs:
                    got_high[found] = frame.to_ndarray(format="rgb24")
                if found in lows:
                    small = frame.reformat(sample.low[1], sample.low[0], "rgb24")
                    got_low[found] = small.to_ndarray()
                if not left or keys[np.searchsorted(keys, wanted[left[0]], "right") - 1] > at:
                    break
    del high, low
    return (
        np.stack([got_high[i] for i in sample.high_frames]),
        np.stack([got_low[i] for i in sample.low_frames]),
    )


SIDES: dict[str, Side] = {
    "torchcodec_exact": torchcodec_side("exact"),
    "torchcodec_approximate": torchcodec_side("approximate"),
    "torchcodec_mapped": torchcodec_side("mapped"),
    "torchcodec_exact_resizing": torchcodec_resizing_side("exact"),
    "torchcodec_approximate_resizing": torchcodec_resizing_side("approximate"),
    "torchcodec_mapped_resizing": torchcodec_resizing_side("mapped"),
    "decord": decord_side,
    "opencv": opencv_side,
    "pyav": pyav_side,
}
