"""A small dual encoder and a loader for tests of the loop: real gradients, no video."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rushes.configs.schema import ObjectiveConfig, OptimConfig, RunConfig, TrainConfig
from rushes.datasets.batch import Batch
from rushes.datasets.collate import BadVideo
from rushes.distributed import SingleWorld, World
from rushes.modeling.encoded import Encoded, Level
from rushes.modeling.inputs import BatchLike
from rushes.modeling.objectives import Objective
from rushes.training import StepReport, TrainResult, train

WORLD = SingleWorld()
VOCABULARY = 32
TOKENS = 6


def toy_config(run_folder: str = "", **train: object) -> RunConfig:
    """A run of a few steps in float32; most of them have a gradient long enough to be clipped."""
    settings: dict[str, object] = {
        "epochs": 3,
        "batch_size": 4,
        "precision": "fp32",
        "checkpoint_every": 2,
        **train,
    }
    return RunConfig(
        output_dir=run_folder,
        seed=5,
        objectives=(ObjectiveConfig("contrastive"),),
        optim=OptimConfig(
            learning_rate=1e-2, schedule="linear", warmup_ratio=0.2, max_grad_norm=0.5
        ),
        train=TrainConfig(**settings),  # type: ignore[arg-type]
    )


class Contrast:
    """Symmetric contrast over the valid rows of all ranks, computed alike on every rank."""

    def __call__(
        self,
        encoded: Encoded,
        batch: BatchLike,
        world: World,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        valid = world.all_gather(batch.valid)
        video = world.all_gather_with_grad(encoded.embeddings["video"])[valid]
        text = world.all_gather_with_grad(encoded.embeddings["text"])[valid]
        logits = text @ video.T / 0.2
        target = torch.arange(len(logits))
        loss = nn.functional.cross_entropy(logits, target)
        return {"contrastive_loss": 0.5 * (loss + nn.functional.cross_entropy(logits.T, target))}


class Counting(nn.Module):
    """A sum over own rows, scaled by the global count; has a parameter of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)

    def forward(
        self,
        encoded: Encoded,
        batch: BatchLike,
        world: World,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        assert batch.text_ids is not None
        count = world.all_reduce_sum(batch.valid.sum().float())
        target = batch.text_ids.float().mean(1) / VOCABULARY
        error = (self.head(encoded["text", "token"].values.mean(1))[:, 0] - target).square()
        total = torch.where(batch.valid, error, 0.0).sum()
        return {"count_loss": total / count * world.size, "count_error": error.detach().mean()}


class ToyModel(nn.Module):
    """Pixels and words to one space; dropout is the only noise."""

    def __init__(self, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.video = nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, width))
        self.word_embeddings = nn.Embedding(VOCABULARY, width)
        self.text = nn.Linear(width, width)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)
        self.counting = Counting(width)
        self.contrast = Contrast()

    def encode(self, batch: BatchLike) -> Encoded:
        """Both towers."""
        assert batch.low is not None
        assert batch.text_ids is not None
        pixels = batch.low.float().flatten(1) / 255
        video = self.dropout(self.video(pixels))
        tokens = self.dropout(self.text(self.word_embeddings(batch.text_ids)))  # B L D
        embeddings = {
            "video": nn.functional.normalize(video, dim=-1),
            "text": nn.functional.normalize(tokens.mean(1), dim=-1),
        }
        return Encoded(len(batch), {("text", "token"): Level(tokens)}, embeddings)

    def objectives(self, step: int) -> Mapping[str, tuple[float, Objective]]:  # noqa: ARG002
        """Both, always."""
        return {"contrastive": (1.0, self.contrast), "counting": (0.5, self.counting)}


def toy_model(seed: int = 0, dropout: float = 0.0) -> ToyModel:
    """The same weights for the same seed."""
    torch.manual_seed(seed)
    return ToyModel(dropout=dropout)


def toy_sample(index: int) -> tuple[Tensor, Tensor]:
    """Pixels `1 1 3 2 2` and words `L` of one sample; words follow from the pixels."""
    generator = torch.Generator().manual_seed(1000 + index)
    pixels = torch.randint(0, 256, (1, 1, 3, 2, 2), generator=generator, dtype=torch.uint8)
    words = (pixels.flatten()[:TOKENS].long() // 8) % VOCABULARY
    return pixels, words


def toy_batch(indices: list[int], failing: frozenset[int] = frozenset()) -> Batch:
    """One batch of the given samples; failing ones are black and not valid."""
    samples = [toy_sample(index) for index in indices]
    valid = torch.tensor([index not in failing for index in indices], dtype=torch.bool)
    pixels = (
        torch.stack([pixels for pixels, _ in samples]) if samples else torch.zeros(0, 1, 1, 3, 2, 2)
    )
    words = torch.stack([words for _, words in samples])
    return Batch(
        ids=tuple(f"sample{index}" for index in indices),
        indices=torch.tensor(indices),
        valid=valid,
        low=pixels * valid.view(-1, 1, 1, 1, 1, 1).to(torch.uint8),
        text_ids=words,
        text_mask=torch.ones_like(words),
    )


class ToyLoader:
    """Global micro-batches in an order of (seed, epoch) alone; each rank takes its rows.

    Args:
        failing: sample index -> epoch in which it cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        size: int = 40,
        failing: Mapping[int, int] | None = None,
    ) -> None:
        self.config, self.world, self.size = config, world, size
        self.failing = dict(failing or {})
        self.micro = config.train.batch_size * world.size
        self.asked: list[int] = []
        self.bad: list[BadVideo] = []
        self.honoured: set[tuple[int, int]] = set()

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps only."""
        return self.size // (self.micro * self.config.train.accumulation)

    def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
        """From any step, at once."""
        step = start_step
        while True:
            self.asked.append(step)
            yield [self._micro(step, number) for number in range(self.config.train.accumulation)]
            step += 1

    def _micro(self, step: int, number: int) -> Batch:
        epoch, within = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1000 + epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        start = (within * self.config.train.accumulation + number) * self.micro
        rows = order[start : start + self.micro]
        size = self.config.train.batch_size
        mine = rows[self.world.rank * size : (self.world.rank + 1) * size]
        failed = [i for i in mine if self.failing.get(i) == epoch or (epoch, i) in self.honoured]
        self.bad += [
            BadVideo(f"sample{i}", f"v{i}", "truncated", "cut", "toy", i, epoch) for i in failed
        ]
        return toy_batch(mine, frozenset(failed))

    def honour(self, known: Iterable[BadVideo]) -> None:
        """These fail, whatever `failing` says."""
        self.honoured |= {(bad.epoch, bad.index) for bad in known}


class Killed(Exception):
    """Stands for a process that ends at this moment."""


def run(
    folder: Path, config: RunConfig | None = None, **given: Any
) -> tuple[ToyModel, TrainResult]:
    """Train the toy model in `folder` to the end, or to `stop_after` steps of this process."""
    config = config or toy_config()
    model = toy_model(dropout=given.pop("dropout", 0.1))
    loader = given.pop("loader", None) or ToyLoader(
        config, WORLD, failing=given.pop("failing", None)
    )
    stop_after = given.pop("stop_after", None)

    def on_step(report: StepReport) -> None:
        if report.step == stop_after:
            raise Killed

    return model, train(model, loader, config, WORLD, folder, on_step=on_step, **given)


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(folder)]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


class Poisoned(ToyModel):
    """Its loss is infinite at the given steps, counted from 0."""

    poisoned: frozenset[int] = frozenset()

    def objectives(self, step: int) -> Any:
        def poison(*_: object) -> Mapping[str, Tensor]:
            return {"poison_loss": self.text.weight.sum() * math.inf}

        found = dict(super().objectives(step))
        return {**found, "poison": (1.0, poison)} if step in self.poisoned else found


def with_batch_size(config: RunConfig, batch_size: int, accumulation: int = 1) -> RunConfig:
    """The same run cut into other pieces."""
    train = replace(config.train, batch_size=batch_size, accumulation=accumulation)
    return replace(config, train=train)
