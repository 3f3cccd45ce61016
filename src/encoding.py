"""A trained model run over videos and texts: one sample's result depends on that sample alone.

A matrix product may round differently for another batch size. So the shapes that the model sees
here do not depend on the caller's: videos go one at a time on the CPU (a video is a batch of clips
already), texts in fixed groups padded to full length. Evaluation with any batch size, on any number
of ranks, through any reader therefore gives the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.datasets.batch import Batch
from rushes.datasets.text import TextTokenizer
from rushes.distributed import World
from rushes.modeling.encoded import Encoded, Level
from rushes.modeling.model import VideoTextModel

TEXT_GROUP = 32
"""Texts of one pass; shorter groups are filled up with empty texts."""
TEXTS_A_VIDEO = 16
"""Texts that are crossed with one video in one pass."""


class Encoder:
    """A model in evaluation mode with its tokenizer, device and precision.

    Args:
        model: put into evaluation mode while it is used.
        tokenizer: of the run.
        world: this rank.
        dtype: autocast type; None computes in float32.
    """

    def __init__(
        self,
        model: VideoTextModel,
        tokenizer: TextTokenizer,
        world: World,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.tokenizer, self.world, self.dtype = model, tokenizer, world, dtype

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode, no gradient, the run's precision."""
        was_training = self.model.training
        self.model.eval()
        device = self.world.device.type
        try:
            with torch.inference_mode():
                if self.dtype is None:
                    yield
                else:
                    with torch.autocast(device, self.dtype):
                        yield
        finally:
            self.model.train(was_training)

    def videos(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Encoded | None]]:
        """Index and encoding of each video, one at a time; None where it could not be read."""
        for batch in batches:
            for one in batch.split(1):
                index = int(one.indices[0])
                if not bool(one.valid[0]):
                    yield index, None
                    continue
                moved = one.to(self.world.device)
                with self.running():
                    encoded = self.model.encode_video(moved.high, moved.low)
                yield index, encoded

    def texts(self, texts: Sequence[str]) -> Iterator[tuple[slice, Encoded]]:
        """Encodings of groups of texts with the rows that they are, in order."""
        for start in range(0, len(texts), TEXT_GROUP):
            rows = slice(start, min(start + TEXT_GROUP, len(texts)))
            encoded = self._group(texts[rows], TEXT_GROUP)
            yield rows, first_rows(encoded, rows.stop - rows.start)

    def text_level(self, texts: Sequence[str], size: int) -> Level:
        """Token level of at most `size` texts, as if there were `size` of them."""
        encoded = self._group(texts, size)
        return first_rows(encoded, len(texts))["text", "token"]

    def _group(self, texts: Sequence[str], size: int) -> Encoded:
        filled = [*texts, *[""] * (size - len(texts))]
        ids, mask = (torch.from_numpy(a).to(self.world.device) for a in self._ids(filled))
        with self.running():
            return self.model.encode_text(ids, mask)

    def _ids(self, texts: Sequence[str]) -> tuple[object, object]:
        return self.tokenizer.encode(texts)


def first_rows(encoded: Encoded, count: int) -> Encoded:
    """The first `count` rows of every level and embedding."""

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:count]

    levels = {
        key: Level(
            level.values[:count], cut(level.mask), cut(level.times), cut(level.pooled), level.grid
        )
        for key, level in encoded.levels.items()
    }
    embeddings = {name: value[:count] for name, value in encoded.embeddings.items()}
    return Encoded(count, levels, embeddings)


@dataclass(frozen=True)
class VideoVectors:
    """Unit vectors of videos, the same on every rank.

    Attributes:
        readable: bool `B`.
        vectors: float32 `B D`, of the whole video; zero where unreadable.
        clips: float32 `B N D`, of its clips.
    """

    readable: Tensor
    vectors: Tensor
    clips: Tensor


def encode_videos(
    encoder: Encoder, batches: Iterable[Batch], count: int, keep: dict[int, Level] | None = None
) -> VideoVectors:
    """Vectors of `count` videos, gathered from all ranks.

    Args:
        batches: this rank's share; `indices` run from 0 to count - 1.
        keep: filled with the token level of this rank's videos, for the cross half.
    """
    mine: dict[int, tuple[Tensor, Tensor] | None] = {}
    for index, encoded in encoder.videos(batches):
        if encoded is None:
            mine[index] = None
            continue
        with encoder.running():
            clips = encoder.model.clip_embeddings(encoded)[0]
        mine[index] = (encoded.embeddings["video"][0].float().cpu(), clips.float().cpu())
        if keep is not None:
            keep[index] = encoded["video", "token"]
    found: dict[int, tuple[Tensor, Tensor] | None] = {}
    for share in encoder.world.all_gather_object(mine):
        found.update(share)
    missing = sorted(set(range(count)) - set(found))
    assert not missing, f"the loader left out videos {missing[:8]}"
    return _stacked(found, count)


def _stacked(found: dict[int, tuple[Tensor, Tensor] | None], count: int) -> VideoVectors:
    first = next((value for value in found.values() if value is not None), None)
    vector, clips = (torch.zeros(1), torch.zeros(1, 1)) if first is None else first
    rows = [found[index] for index in range(count)]
    return VideoVectors(
        torch.tensor([row is not None for row in rows]),
        torch.stack([torch.zeros_like(vector) if row is None else row[0] for row in rows]),
        torch.stack([torch.zeros_like(clips) if row is None else row[1] for row in rows]),
    )


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Unit vectors of texts, float32 `Q D`, the same on every rank; groups are shared out."""
    world = encoder.world
    groups = range(0, len(texts), TEXT_GROUP)
    mine = {}
    for start in list(groups)[world.rank :: world.size]:
        part = texts[start : start + TEXT_GROUP]
        (_, encoded), *_ = encoder.texts(part)
        mine[start] = encoded.embeddings["text"].float().cpu()
    found: dict[int, Tensor] = {}
    for share in world.all_gather_object(mine):
        found.update(share)
    return torch.cat([found[start] for start in groups])
