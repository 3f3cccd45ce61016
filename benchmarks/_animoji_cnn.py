"""The plain model to beat on Animoji: a small CNN on four frames, a bag of words, one contrast."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.datasets.record import Record
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request, Size

MOMENTS, SIDE, DIM = 4, 64, 256
BATCH, RATE, EPOCHS = 64, 2e-3, 24
SCALE = 20.0
"""Inverse of the temperature."""
_WORD = re.compile(r"[\w']+")


class PlainModel(nn.Module):
    """0.8 M parameters: five strided convolutions, frames averaged; words averaged.

    Args:
        words: size of the vocabulary, 0 stands for padding.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        channels = (3, 32, 64, 128, 160, 192)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.frames = nn.Sequential(*layers)
        self.video = nn.Linear(channels[-1], DIM)
        self.words = nn.EmbeddingBag(words, DIM, mode="mean", padding_idx=0)
        self.text = nn.Linear(DIM, DIM)

    def embed_videos(self, pixels: Tensor) -> Tensor:
        """Unit vectors `B DIM` of frames uint8 `B T 3 h w`."""
        maps = self.frames(pixels.flatten(0, 1).float() / 127.5 - 1)
        pooled = torch.unflatten(maps.mean((-2, -1)), 0, pixels.shape[:2]).mean(1)
        return F.normalize(self.video(pooled), dim=-1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Unit vectors `B DIM` of word ids `B L`."""
        return F.normalize(self.text(self.words(ids)), dim=-1)


class Footage:
    """Frames of all videos, decoded once: uint8 `videos T 3 h w`, by video id."""

    def __init__(self, videos: Path, names: Sequence[str]) -> None:
        reader = open_reader(open_catalogue(videos))
        frames = []
        for name in names:
            duration = reader.describe(name).duration
            times = tuple(duration * (i + 0.5) / MOMENTS for i in range(MOMENTS))
            reply = reader.read(Request(name, (Frames(times, Size(SIDE, SIDE)),)))
            frames.append(torch.from_numpy(reply.arrays["frames"].astype(np.uint8)))
        reader.close()
        self.frames = torch.stack(frames).permute(0, 1, 4, 2, 3).contiguous()
        self.place = {name: i for i, name in enumerate(names)}

    def of(self, records: Sequence[Record]) -> Tensor:
        """Frames of the records' videos."""
        return self.frames[[self.place[record.video] for record in records]]


class Words:
    """A vocabulary of the training captions; unknown words count for nothing."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(word for text in texts for word in split(text))
        self.ids = {word: i for i, word in enumerate(sorted(counts), 1)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Word ids, int64 `R L`, padded with 0."""
        rows = [[self.ids[w] for w in split(text) if w in self.ids] for text in texts]
        out = torch.zeros(len(rows), max(1, *(len(row) for row in rows)), dtype=torch.int64)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = torch.tensor(row, dtype=torch.int64)
        return out


def split(text: str) -> list[str]:
    """Words in lower case."""
    return _WORD.findall(text.lower())


def caption(record: Record) -> str:
    """A record's caption."""
    return record.segments[0].text


class Plain:
    """The plain model, trained.

    Args:
        records: to train on.
        footage: frames of all videos.
        seed: of weights, order and shifts.
        minutes: of training at most; fewer epochs where the machine is slow.
    """

    def __init__(
        self, records: Sequence[Record], footage: Footage, seed: int, minutes: float | None
    ) -> None:
        torch.manual_seed(seed)
        self.words = Words([caption(record) for record in records])
        self.model = PlainModel(len(self.words))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        begun = time.perf_counter()
        self.epochs = self._fit(footage.of(records), self.words.encode(list(map(caption, records))),
                                minutes)  # fmt: skip
        self.seconds = time.perf_counter() - begun

    def _fit(self, frames: Tensor, ids: Tensor, minutes: float | None) -> int:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.05)
        steps_per_epoch = len(frames) // BATCH
        epochs, begun = EPOCHS, time.perf_counter()
        step = 0
        self.model.train()
        while step < epochs * steps_per_epoch:
            for rows in torch.split(torch.randperm(len(frames)), BATCH)[:steps_per_epoch]:
                rate = RATE * one_cycle(step / (epochs * steps_per_epoch))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._loss(shifted(frames[rows]), ids[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
            if step == steps_per_epoch and minutes is not None:
                taken = time.perf_counter() - begun
                epochs = min(epochs, max(2, int(60 * minutes / taken)))
        return epochs

    def _loss(self, frames: Tensor, ids: Tensor) -> Tensor:
        scores = SCALE * self.model.embed_texts(ids) @ self.model.embed_videos(frames).T
        right = torch.arange(len(scores))
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2

    def ranks(self, records: Sequence[Record], footage: Footage) -> dict[str, float]:
        """Rank of the right video of each query, by video id; ties count half."""
        self.model.eval()
        with torch.inference_mode():
            parts = torch.split(footage.of(records), BATCH)
            videos = torch.cat([self.model.embed_videos(part) for part in parts])
            texts = self.model.embed_texts(self.words.encode([caption(r) for r in records]))
        scores = texts.double() @ videos.double().T
        own = scores.diagonal().unsqueeze(1)
        above, tied = (scores > own).sum(1), (scores == own).sum(1) - 1
        ranks = (1 + above + tied / 2).tolist()
        return {record.video: rank for record, rank in zip(records, ranks, strict=True)}


def one_cycle(share: float) -> float:
    """Learning rate over its peak at a share of the run: a tenth up, then a cosine down."""
    return share / 0.1 if share < 0.1 else 0.5 * (1 + np.cos(np.pi * (share - 0.1) / 0.9))


def shifted(frames: Tensor) -> Tensor:
    """Each video moved by up to four pixels, its border repeated."""
    padded = F.pad(frames.flatten(1, 2).float(), (4, 4, 4, 4), mode="replicate")
    out = torch.empty_like(frames)
    for row, (y, x) in enumerate(torch.randint(9, (len(frames), 2)).tolist()):
        cut = padded[row, :, y : y + SIDE, x : x + SIDE]
        out[row] = cut.view(frames.shape[1:]).to(frames.dtype)
    return out
