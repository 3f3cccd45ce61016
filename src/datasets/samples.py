"""From a record to a sample: the part that all tasks share.

Item i of epoch e is a pure function of (seed, epoch, index): each kind of draw has a stream of its
own, so that a change of one (say, the crop) leaves the others (say, the masks) as they were.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rushes.configs.schema import ClipConfig, GeometryConfig, RunConfig
from rushes.datasets.clips import Timeline
from rushes.datasets.collate import Sample, bad_video, stable_key, text_key
from rushes.datasets.record import Record
from rushes.datasets.record_store import RecordStore
from rushes.datasets.sampling import plan_clips
from rushes.datasets.text import TextTokenizer
from rushes.datasets.transforms import Inputs, Pixels, pixel_shapes, plan_geometry
from rushes.errors import FrameUnavailable, VideoError
from rushes.video.request import Request, VideoInfo, VideoReader

Decoded = tuple[Pixels | None, Pixels | None, npt.NDArray[np.float64]]
SHARED_VIDEOS = 8
"""Decoded evaluation samples kept, so that a video's questions are decoded once."""


class Stream(IntEnum):
    """What a draw is for."""

    TEXT = 0
    CLIPS = 1
    GEOMETRY = 2
    MASK = 3


@dataclass(frozen=True)
class SampleOptions:
    """How samples are made.

    Attributes:
        training: draw clips, crops and captions; else the deterministic plan of evaluation.
        mask_probability: share of tokens masked; 0 makes no masked texts.
    """

    clips: ClipConfig
    geometry: GeometryConfig
    inputs: Inputs
    num_clips: int
    training: bool
    seed: int
    mask_probability: float = 0.0
    deadline: float | None = None


def sample_options(config: RunConfig, training: bool) -> SampleOptions:
    """The options that a run asks for, in training or in evaluation."""
    masks = any(o.name == "masked_language" for o in config.objectives)
    evaluated = config.inference.num_clips or config.clips.eval_num_clips
    return SampleOptions(
        clips=config.clips,
        geometry=config.geometry,
        inputs=config.model.inputs,
        num_clips=config.clips.num_clips if training else evaluated,
        training=training,
        seed=config.seed,
        mask_probability=config.data.mask_probability if masks else 0.0,
        deadline=config.data.deadline or None,
    )


@dataclass(frozen=True)
class Visit:
    """What one visit to an item shows: a stretch of a video with its texts and its labels."""

    id: str
    record: Record
    texts: tuple[str, ...]
    labels: tuple[int, ...] = (-100,)
    start: float | None = None
    end: float | None = None


class StoredViews(Protocol):
    """Views of videos whose features lie on disk; see `rushes.frozen_cache`."""

    def check(self, key: str, video: str) -> None:
        """Raise the `VideoError` that the view had when it was encoded, if it has no features."""


class VideoTextDataset(ABC):
    """Items of one task over records; a task says what an item is.

    Args:
        name: of the data set, in batches and reports.
        records: the annotated videos.
        reader: gives their pixels, from several threads at once.
        tokenizer: of the texts.
        options: see `SampleOptions`.
    """

    def __init__(
        self,
        name: str,
        records: RecordStore | Sequence[Record],
        reader: VideoReader,
        tokenizer: TextTokenizer,
        options: SampleOptions,
    ) -> None:
        self.name, self.records, self.reader = name, records, reader
        self.tokenizer, self.options = tokenizer, options
        self._shapes = pixel_shapes(
            options.geometry, options.inputs, options.num_clips, options.clips.num_frames
        )
        self._shared: OrderedDict[tuple[object, ...], Future[Decoded]] = OrderedDict()
        # Training may be limited to so many views of each stretch of video, and read none whose
        # features are stored; see `rushes.frozen_cache`.
        self.draws = 0
        self.stored: StoredViews | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def __len__(self) -> int:
        """Items an epoch."""

    @abstractmethod
    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:
        """What item `index` shows; None as generator asks for the evaluation view."""

    def record(self, index: int) -> Record:
        """The record behind an item."""
        return self.records[index]

    def sample_id(self, index: int) -> str:
        """The id of an item, without its pixels."""
        return self.record(index).id

    def evaluation_order(self) -> npt.NDArray[np.int64]:
        """Every item once, in the order in which evaluation walks them."""
        return np.arange(len(self), dtype=np.int64)

    def generator(self, epoch: int, index: int, stream: Stream) -> np.random.Generator:
        """The generator of one kind of draw of one item; evaluation draws only masks."""
        return np.random.default_rng((self.options.seed, epoch, index, int(stream)))

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Item `index` as epoch `epoch` shows it; a video that fails keeps its slot.

        Raises:
            AnnotationError: the record does not fit the task.
        """
        visit = self._visit(index, epoch)
        try:
            decoded = self._decode(visit, index, epoch)
        except VideoError as error:
            return self._make(visit, index, epoch, None, error)
        return self._make(visit, index, epoch, decoded, None)

    def failed_sample(self, index: int, epoch: int, error: VideoError) -> Sample:
        """The slot of an item that is known to fail, without trying."""
        return self._make(self._visit(index, epoch), index, epoch, None, error)

    def _visit(self, index: int, epoch: int) -> Visit:
        training = self.options.training
        return self.visit(index, self.generator(epoch, index, Stream.TEXT) if training else None)

    def _decode(self, visit: Visit, index: int, epoch: int) -> Decoded:
        if self.options.training and self.draws:
            return self._decode_draw(visit, epoch)
        if self.options.training:
            return self._read(visit, index, epoch)
        # Items of one video stand beside each other in evaluation: whoever is first decodes.
        key = (visit.record.video, visit.start, visit.end)
        with self._lock:
            future = self._shared.get(key)
            first = future is None
            if future is None:
                future = self._shared[key] = Future()
                while len(self._shared) > SHARED_VIDEOS:
                    self._shared.popitem(last=False)
        if first:
            try:
                future.set_result(self._read(visit, index, epoch))
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()

    def clip_key(self, index: int, epoch: int) -> str:
        """Names what item `index` shows of its video in an epoch, under a limit of `draws`."""
        return self._clip_key(self._visit(index, epoch), epoch)

    def _clip_key(self, visit: Visit, epoch: int) -> str:
        span = f"{visit.record.video} {visit.start} {visit.end}"
        return f"{self.name} {span} {epoch % self.draws}"

    def _decode_draw(self, visit: Visit, epoch: int) -> Decoded:
        key = self._clip_key(visit, epoch)
        if self.stored is None:
            return self._read(visit, stable_key(key) & 0x7FFFFFFF, epoch % self.draws)
        self.stored.check(key, visit.record.video)
        return self._nothing()

    def _read(self, visit: Visit, index: int, epoch: int) -> Decoded:
        options, video = self.options, visit.record.video
        drawn = options.training
        info = self.reader.describe(video)
        timeline = _timeline(info, visit, options)
        clips = plan_clips(
            timeline,
            options.clips,
            options.num_clips,
            self.generator(epoch, index, Stream.CLIPS) if drawn else None,
        )
        plan = plan_geometry(
            info,
            clips,
            options.geometry,
            options.inputs,
            self.generator(epoch, index, Stream.GEOMETRY) if drawn else None,
            visit.texts,
        )
        request = Request(video, plan.outputs, deadline=options.deadline, fixed=not drawn)
        return plan.finish(self.reader.read(request))

    def _make(
        self,
        visit: Visit,
        index: int,
        epoch: int,
        decoded: Decoded | None,
        error: VideoError | None,
    ) -> Sample:
        ids, mask = self.tokenizer.encode(visit.texts)
        masked_ids = masked_labels = None
        if self.options.mask_probability > 0:
            generator = self.generator(epoch, index, Stream.MASK)
            masked_ids, masked_labels = self.tokenizer.mask_tokens(
                ids, mask, self.options.mask_probability, generator
            )
        high, low, times = decoded if decoded is not None else self._nothing()
        nan = float("nan")
        return Sample(
            id=visit.id,
            index=index,
            valid=error is None,
            text_ids=ids,
            text_mask=mask,
            text_keys=np.asarray([text_key(t) for t in visit.texts], dtype=np.int64),
            video_key=stable_key(visit.record.video),
            times=times,
            high=high,
            low=low,
            masked_ids=masked_ids,
            masked_labels=masked_labels,
            labels=visit.labels,
            segment=(
                nan if visit.start is None else visit.start,
                nan if visit.end is None else visit.end,
            ),
            dataset=self.name,
            error=None if error is None else bad_video(visit.id, error, self.name, index, epoch),
        )

    def _nothing(self) -> Decoded:
        """Zero pixels of the right shapes; none where features stand for them."""
        shapes = (None, None) if self.stored is not None else self._shapes
        high, low = (None if s is None else np.zeros(s, dtype=np.uint8) for s in shapes)
        shape = (self.options.num_clips, self.options.clips.num_frames)
        return high, low, np.full(shape, np.nan)


def grouped_by_video(records: Sequence[Record] | RecordStore) -> npt.NDArray[np.int64]:
    """Record indices with those of one video beside each other, in order of first appearance."""
    first: dict[str, int] = {}
    groups = [first.setdefault(record.video, len(first)) for record in records]
    return np.argsort(np.asarray(groups, dtype=np.int64), kind="stable")


def _timeline(info: VideoInfo, visit: Visit, options: SampleOptions) -> Timeline:
    start = visit.start or 0.0
    if (start >= info.duration and start > 0) or (visit.end is not None and visit.end <= start):
        raise FrameUnavailable(
            visit.record.video,
            f"the span {start:.3f} to {visit.end} s lies outside its {info.duration:.3f} s",
        )
    real = options.inputs != "low" and options.geometry.high == "real"
    return Timeline(
        duration=info.duration,
        frame_times=info.frame_times,
        segments=visit.record.segments,
        start=start,
        end=visit.end,
        centre_times=info.full_size_times if real else None,
    )
