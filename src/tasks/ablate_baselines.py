"""Two small models that tell how honest the questions are.

One sees a single low-resolution frame and the question, the other the question alone. Both learn
the answers that the training questions have, and answer the test questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.configs.schema import RunConfig
from rushes.datasets.build import build_answers, build_tokenizer, open_dataset_records, open_frames
from rushes.datasets.record import Record
from rushes.datasets.text import TextTokenizer
from rushes.distributed import World
from rushes.errors import VideoError
from rushes.judge_answers import answer_text, kind_of
from rushes.log import get_logger
from rushes.metrics import accuracy_by_kind
from rushes.video.request import Frames, Request, Size, VideoReader

log = get_logger(__name__)

EPOCHS, BATCH, RATE = 40, 128, 2e-3
DIM = 128
MOMENTS = 5
"""Frames a training video, of which each pass sees one; the middle one is shown in the test."""


class QuestionNet(nn.Module):
    """A bag of words and, where it sees, a CNN of four strides on one frame.

    Args:
        words: size of the vocabulary.
        answers: number of answers.
        pictures: whether it sees.
    """

    def __init__(self, words: int, answers: int, pictures: bool) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, DIM, mode="sum")
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 128)) if pictures else ():
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.picture = nn.Sequential(*layers) if pictures else None
        self.attend = nn.Linear(DIM, 128)
        self.answer = nn.Sequential(
            nn.Linear(DIM + 256 * pictures, 256), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(256, answers),
        )  # fmt: skip

    def forward(self, ids: Tensor, mask: Tensor, frames: Tensor | None) -> Tensor:
        """Scores `B answers` of questions `B L` about frames `B 3 h w` (float, 0..1)."""
        asked = self.words(ids, per_sample_weights=mask.float())
        if self.picture is None or frames is None:
            return self.answer(asked)  # type: ignore[no-any-return]
        maps = self.picture(frames).flatten(2)  # B 128 S
        looked = torch.softmax((self.attend(asked).unsqueeze(1) @ maps) / 128**0.5, dim=-1)
        seen = (maps * looked).sum(-1)
        scores: Tensor = self.answer(torch.cat([asked, seen, maps.mean(-1)], dim=-1))
        return scores


@dataclass(frozen=True)
class Questions:
    """Questions as tensors: ids and mask `Q L`, label `Q` (-1: not in the vocabulary), video."""

    records: Sequence[Record]
    ids: Tensor
    mask: Tensor
    labels: Tensor
    videos: Tensor


def train_baseline(config: RunConfig, world: World, pictures: bool) -> dict[str, Any]:
    """Train on the run's training questions, answer its test questions.

    Args:
        config: of a question answering run; its data, low-resolution size and seed are used.
        pictures: see one frame besides the question.
    """
    torch.manual_seed(config.seed)
    answers = build_answers(config)
    names = sorted(answers, key=answers.__getitem__)
    tokenizer = build_tokenizer(config, world, Path(config.output_dir) / "tokenizer")
    train, frames = _load(config, world, "train", tokenizer, answers, MOMENTS * pictures)
    test, shown = _load(config, world, "test", tokenizer, answers, 1 * pictures)
    model = QuestionNet(tokenizer.vocab_size, len(answers), pictures)
    _fit(model, train, frames, config.seed)
    model.eval()
    with torch.inference_mode():
        still = None if shown is None else shown[test.videos, 0].float() / 255
        best = model(test.ids, test.mask, still).argmax(-1).tolist()
    right = [names[i] == answer_text(r) for i, r in zip(best, test.records, strict=True)]
    kinds = [kind_of(record) for record in test.records]
    return {
        "qa": {
            "accuracy": float(np.mean(right)),
            "by_kind": accuracy_by_kind(right, [True] * len(right), kinds),
        },
        "items": {
            record.id: [kind, float(hit)]
            for record, kind, hit in zip(test.records, kinds, right, strict=True)
        },
    }


def _fit(model: QuestionNet, train: Questions, frames: Tensor | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    known = (train.labels >= 0).nonzero().flatten()
    steps = EPOCHS * -(-len(known) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        order = known[torch.randperm(len(known), generator=generator)]
        losses = []
        for rows in torch.split(order, BATCH):
            still = None
            if frames is not None:
                moments = torch.randint(frames.shape[1], (len(rows),), generator=generator)
                still = frames[train.videos[rows], moments].float() / 255
            scores = model(train.ids[rows], train.mask[rows], still)
            loss = F.cross_entropy(scores, train.labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        log.info("epoch %d of %d: loss %.3f", epoch + 1, EPOCHS, np.mean(losses))


def _load(
    config: RunConfig,
    world: World,
    split: str,
    tokenizer: TextTokenizer,
    answers: Mapping[str, int],
    moments: int,
) -> tuple[Questions, Tensor | None]:
    """Questions of a split, and frames uint8 `videos moments 3 h w` where any are asked for."""
    (dataset,) = getattr(config.data, split)
    records = list(open_dataset_records(config, dataset))
    frames = None
    names = sorted({record.video for record in records})
    if moments:
        reader = open_frames(config, dataset, world)
        found = {name: _frames(reader, name, moments, config) for name in names}
        reader.close()
        names = [name for name in names if found[name] is not None]
        frames = torch.stack([f for f in found.values() if f is not None])
        records = [record for record in records if found[record.video] is not None]
    place = {name: i for i, name in enumerate(names)}
    ids, mask = (torch.from_numpy(a) for a in tokenizer.encode([r.question or "" for r in records]))
    labels = torch.tensor([answers.get(answer_text(r), -1) for r in records])
    videos = torch.tensor([place[r.video] for r in records])
    return Questions(records, ids, mask, labels, videos), frames


def _frames(reader: VideoReader, video: str, moments: int, config: RunConfig) -> Tensor | None:
    """Frames spread over a video at the low-resolution size, `moments 3 h w`; None: unreadable."""
    height, width = config.geometry.high_size
    try:
        duration = reader.describe(video).duration
        times = tuple(duration * (i + 0.5) / moments for i in range(moments))
        size = Size(height // 4, width // 4)
        frames = reader.read(Request(video, (Frames(times, size),))).arrays["frames"]
    except VideoError as error:
        log.warning("%s", error)
        return None
    return torch.from_numpy(frames.astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
