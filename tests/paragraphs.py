"""A second user of the contracts: paragraphs of one to five segments with sound and features.

Nothing here is known to the package: its own towers, loader and objectives, over Batch with ragged
modalities, Encoded with segment levels, objectives that take turns, World and the loop.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from rushes.configs.schema import ObjectiveConfig, OptimConfig, RunConfig, TrainConfig
from rushes.datasets.batch import Batch, Ragged
from rushes.datasets.collate import BadVideo
from rushes.distributed import World
from rushes.modeling.encoded import Encoded, Level
from rushes.modeling.objectives import Objective

WORDS = 40
AUDIO_DIM, FEATURE_DIM, DIM = 5, 7, 12
SIZE = 24
MAX_SEGMENTS = 5


def paragraph_config(folder: str, batch_size: int) -> RunConfig:
    """20 steps of 4 paragraphs; alignment twice as often as order."""
    return RunConfig(
        output_dir=folder,
        seed=11,
        objectives=(
            ObjectiveConfig("contrastive", ratio=2),
            ObjectiveConfig("matching", ratio=1),
        ),
        optim=OptimConfig(learning_rate=5e-3),
        train=TrainConfig(
            max_steps=20,
            epochs=100,
            batch_size=batch_size,
            precision="fp32",
            objective_choice="turns",
            checkpoint_every=3,
        ),
    )


def _ragged(counts: list[list[int]], rows: list[Tensor], present: list[bool]) -> Ragged:
    tokens = torch.tensor([0, *(n for video in counts for n in video)]).cumsum(0)
    segments = torch.tensor([0, *(len(video) for video in counts)]).cumsum(0)
    return Ragged(torch.cat(rows), {"segment": tokens, "video": segments}, torch.tensor(present))


def paragraph_batch(indices: list[int]) -> Batch:
    """Words, sound and features of the given paragraphs; features of some are missing."""
    counts: dict[str, list[list[int]]] = {"words": [], "audio": [], "features": []}
    rows: dict[str, list[Tensor]] = {"words": [], "audio": [], "features": []}
    present: dict[str, list[bool]] = {"words": [], "audio": [], "features": []}
    for index in indices:
        draw = torch.Generator().manual_seed(index)
        segments = 1 + index % MAX_SEGMENTS
        for name, dim in (("words", 0), ("audio", AUDIO_DIM), ("features", FEATURE_DIM)):
            there = name != "features" or index % 4 != 3
            sizes = torch.randint(1, 6, (segments,), generator=draw).tolist() if there else []
            total = sum(sizes)
            mood = torch.linspace(-1, 1, SIZE)[index % SIZE]
            if name == "words":
                words = torch.randint(0, WORDS, (total,), generator=draw)
                rows[name].append((words + index) % WORDS)
            else:
                rows[name].append(torch.randn(total, dim, generator=draw) * 0.3 + mood)
            counts[name].append(sizes)
            present[name].append(there)
    return Batch(
        ids=tuple(f"paragraph{i}" for i in indices),
        indices=torch.tensor(indices),
        valid=torch.ones(len(indices), dtype=torch.bool),
        modalities={name: _ragged(counts[name], rows[name], present[name]) for name in counts},
    )


class ParagraphLoader:
    """Rank r takes its rows of each global batch."""

    def __init__(self, config: RunConfig, world: World) -> None:
        self.config, self.world = config, world
        self.micro = config.train.batch_size * world.size
        self.steps_per_epoch = SIZE // self.micro
        self.bad: list[BadVideo] = []

    def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
        """Whole batches."""
        step = start_step
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            order = list(range(SIZE))
            random.Random(f"{self.config.seed} {epoch}").shuffle(order)
            start = within * self.micro + self.world.rank * self.config.train.batch_size
            yield [paragraph_batch(order[start : start + self.config.train.batch_size])]
            step += 1

    def honour(self, known: Iterable[BadVideo]) -> None:
        """Nothing fails here."""


def segment_level(values: Tensor, ragged: Ragged) -> Level:
    """Means of tokens by segment, padded to `B S D`; the paragraph's mean is pooled."""
    tokens = ragged.offsets["segment"].diff()
    owner = torch.repeat_interleave(torch.arange(len(tokens)), tokens)
    sums = values.new_zeros(len(tokens), values.shape[1]).index_add(0, owner, values)
    means = sums / tokens[:, None]
    per_video = ragged.offsets["video"].diff()
    padded = values.new_zeros(len(per_video), MAX_SEGMENTS, values.shape[1])
    mask = torch.arange(MAX_SEGMENTS) < per_video[:, None]
    padded = padded.masked_scatter(mask[..., None], means)
    pooled = padded.sum(1) / per_video.clamp(min=1)[:, None]
    return Level(padded, mask, pooled=pooled)


class ParagraphModel(nn.Module):
    """Three towers into one space."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(WORDS, DIM)
        self.audio = nn.Linear(AUDIO_DIM, DIM)
        self.features = nn.Linear(FEATURE_DIM, DIM)
        self.absent = nn.Parameter(torch.zeros(DIM))
        self.order = nn.Linear(DIM, 1)
        self.drawn: list[str] = []

    def encode(self, batch: Batch) -> Encoded:
        """Segment levels of all modalities and one vector a paragraph and side."""
        raw = batch.modalities
        levels = {
            ("text", "segment"): segment_level(self.words(raw["words"].values), raw["words"]),
            ("audio", "segment"): segment_level(self.audio(raw["audio"].values), raw["audio"]),
        }
        features = segment_level(self.features(raw["features"].values), raw["features"])
        there = raw["features"].present[:, None]
        assert features.pooled is not None
        sound = levels["audio", "segment"].pooled
        assert sound is not None
        seen = torch.where(there, features.pooled, self.absent) + sound
        text = levels["text", "segment"].pooled
        assert text is not None
        unit = {
            "video": nn.functional.normalize(seen, dim=-1),
            "text": nn.functional.normalize(text, dim=-1),
        }
        return Encoded(len(batch), {**levels, ("features", "segment"): features}, unit)

    def objectives(self, step: int) -> Mapping[str, tuple[float, Objective]]:
        """One in turn, by ratio, from seed and step."""
        names = {"contrastive": self.alignment, "matching": self.first_segment}
        draw = random.Random(f"{self.config.seed} {step}")
        weights = [o.ratio for o in self.config.objectives]
        (chosen,) = draw.choices(self.config.objectives, weights)
        self.drawn.append(chosen.name)
        return {chosen.name: (chosen.weight, names[chosen.name])}  # type: ignore[dict-item]

    def alignment(
        self,
        encoded: Encoded,
        batch: Batch,  # noqa: ARG002
        world: World,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """Paragraphs against what is heard and seen, over all ranks."""
        text = world.all_gather_with_grad(encoded.embeddings["text"])
        video = world.all_gather_with_grad(encoded.embeddings["video"])
        return {
            "align_loss": nn.functional.cross_entropy(text @ video.T / 0.1, torch.arange(len(text)))
        }

    def first_segment(
        self,
        encoded: Encoded,
        batch: Batch,
        world: World,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """Which of a paragraph's segments comes first; ragged over ranks."""
        level = encoded["text", "segment"]
        assert level.mask is not None
        scores = self.order(level.values + encoded["audio", "segment"].values)[..., 0]
        scores = scores.masked_fill(~level.mask, -1e4)
        losses = nn.functional.cross_entropy(
            scores, torch.zeros(len(batch), dtype=torch.long), reduction="none"
        )
        count = world.all_reduce_sum(batch.valid.sum().float())
        return {"order_loss": losses.sum() / count * world.size}
