"""Training objectives: (encoded, batch, world, generator) -> named losses.

Scaling rule, the same for all: every rank returns losses whose gradients, *averaged* over ranks,
are the gradient of the mean over the valid samples of the global batch. An objective that sums over
its own rows divides by the global count and multiplies by `world.size`; one that gathers features
and computes the same whole loss on every rank returns it as it is.

Losses therefore do not depend on how samples are split over ranks and micro-batches. One exception:
matching draws its hard negatives from the samples of its own rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.configs.schema import ObjectiveConfig
from rushes.distributed import World
from rushes.modeling import losses
from rushes.modeling.encoded import Encoded, Level
from rushes.modeling.inputs import BatchLike


class Objective(Protocol):
    """One objective; an `nn.Module` where it has parameters of its own (heads, temperature)."""

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Scalars by name. Names ending in `_loss` are weighted and summed; others are reported."""
        ...


class Trainable(Protocol):
    """What the loop trains: an `nn.Module` that encodes a batch and owns its objectives.

    The loop draws all noise's seeds itself: `encode` may be called twice on the same batch with the
    same RNG state (the cached-gradient two-pass) and must then give the same result.
    """

    def encode(self, batch: BatchLike) -> Encoded:
        """Run the towers that the objectives need (no gradient through frozen ones)."""
        ...

    def objectives(self, step: int) -> Mapping[str, tuple[float, Objective]]:
        """Weight and objective by name at optimiser step `step`, alike on all ranks."""
        ...


class Heads(Protocol):
    """What objectives ask of the model beyond what is encoded."""

    def scale(self, name: str) -> tuple[Tensor | float, Tensor | float]:
        """Temperature and bias of an objective."""
        ...

    def caption_word_logits(self, encoded: Encoded) -> Tensor: ...

    def word_logits(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        where: Tensor,
        pool: str,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...

    def match_logits(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        pool: str,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...

    def answer_logits(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...

    def choice_logits(
        self,
        text: Level,
        visual: Level,
        num_texts: int,
        text_to_video: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...


CONTRASTIVE = frozenset(
    {"contrastive", "nce", "hard_negative_nce", "mil_nce", "triplet", "sigmoid"}
)
"""Objectives that compare vectors of the joint space over all ranks."""


@dataclass(frozen=True)
class Contrastive:
    """Video and text vectors of all ranks against each other, by the loss that `config` names.

    Two videos with equal `video_key` and two texts with equal `text_key` are not negatives of each
    other; samples that are not valid take no part.
    """

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self,
        encoded: Encoded,
        batch: BatchLike,
        world: World,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        name = self.config.name
        video = world.all_gather_with_grad(encoded.embeddings["video"].float())
        text = world.all_gather_with_grad(encoded.embeddings["text"].float())
        valid = world.all_gather(batch.valid)
        owner, video_key, text_key = _gathered_keys(batch, world, len(valid))
        videos, texts = valid.nonzero().squeeze(1), valid[owner].nonzero().squeeze(1)
        if len(videos) == 0:
            return {f"{name}_loss": (video.sum() + text.sum()) * 0.0}
        place = valid.cumsum(0) - 1
        owner = place[owner[texts]]
        # In bfloat16 a cosine has steps of 0.004, and a temperature multiplies them by 20.
        with torch.autocast(video.device.type, enabled=False):
            scores = text[texts] @ video[videos].t()
        negative = losses.true_negatives(owner, video_key[videos], text_key[texts])
        loss = self._loss(scores, owner, negative)
        with torch.no_grad():
            own = scores.gather(1, owner.unsqueeze(1))
            first = (own >= scores.masked_fill(~negative, losses.NEVER).amax(1, True)).float()
        return {f"{name}_loss": loss, f"{name}_r1": first.mean()}

    def _loss(self, scores: Tensor, owner: Tensor, negative: Tensor) -> Tensor:
        config = self.config
        temperature, bias = self.heads.scale(config.name)
        if config.name == "contrastive":
            return losses.contrastive(scores, owner, temperature, negative)
        if config.name == "nce":
            return losses.nce(scores, owner, temperature, negative)
        if config.name == "mil_nce":
            return losses.mil_nce(scores, owner, temperature, negative)
        if config.name == "hard_negative_nce":
            return losses.hard_negative_nce(scores, owner, config.num_hard, negative)
        if config.name == "sigmoid":
            return losses.sigmoid(scores, owner, temperature, bias, negative)
        assert config.name == "triplet"
        total = losses.triplet(scores, owner, config.margin, config.hardest, negative)
        return total / len(owner)


@dataclass(frozen=True)
class CaptionWords:
    """Cross-entropy of a video's vector against the words of its captions, mean over videos of all
    ranks (Huang et al. 2024, "Classification Done Right for Vision-Language Pre-Training", without
    its weights by rarity, which would make a sample's loss depend on its batch).

    A contrast over a batch asks for no more than tells its videos apart; this asks for every word.
    """

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self,
        encoded: Encoded,
        batch: BatchLike,
        world: World,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        logits = self.heads.caption_word_logits(encoded).float()  # B vocabulary
        wanted = caption_words(batch, logits.shape[1])[batch.valid]
        kept = logits[batch.valid]
        each = -(wanted / wanted.sum(1, keepdim=True).clamp(min=1) * kept.log_softmax(1)).sum(1)
        right = wanted.gather(1, kept.argmax(1, keepdim=True)).squeeze(1).clamp(max=1)
        return _shared_mean("caption_words", each, right, world)


def caption_words(batch: BatchLike, vocab_size: int) -> Tensor:
    """How many of a video's texts hold each word, float `B vocabulary`; marks are no words."""
    assert batch.text_ids is not None, "caption_words needs texts in the batch"
    assert batch.text_mask is not None
    ids, mask = batch.text_ids, batch.text_mask.bool()
    last = mask.sum(1, keepdim=True) - 1
    places = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    inside = mask & (places > 0) & (places < last)  # without the first and the last mark
    held = torch.zeros(len(ids), vocab_size, device=ids.device)
    held.scatter_add_(1, ids, inside.float())
    return torch.unflatten(held.clamp(max=1), 0, (-1, batch.num_texts)).sum(1)


@dataclass(frozen=True)
class MaskedLanguage:
    """Cross-entropy of masked words given text and video, mean over masked words of all ranks."""

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        assert batch.masked_labels is not None, "masked_language needs masked texts in the batch"
        owner = text_owners(batch)
        labels = torch.where(batch.valid[owner].unsqueeze(1), batch.masked_labels, -100)
        where = labels >= 0
        text, visual = encoded["masked_text", "token"], encoded["video", "token"]
        logits = self.heads.word_logits(text, visual, owner, where, self.config.pool, generator)
        wanted = labels[where]
        each = F.cross_entropy(logits.float(), wanted, reduction="none")
        right = (logits.argmax(1) == wanted).float()
        return _shared_mean("masked_language", each, right, world)


@dataclass(frozen=True)
class Matching:
    """Does the text belong to the video? Pairs against one hard negative each way (Li et al. 2021,
    "Align before Fuse"): a wrong video drawn for each text and a wrong text for each video, by the
    softmax of their similarity, among the samples of this rank.
    """

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        owner = text_owners(batch)
        texts, videos = self._pairs(encoded, batch, owner, generator)
        text, visual = encoded["text", "token"], encoded["video", "token"]
        assert text.mask is not None
        chosen = Level(text.values[texts], text.mask[texts])
        logits = self.heads.match_logits(chosen, visual, videos, self.config.pool, generator)
        labels = (owner[texts] == videos).long()
        each = F.cross_entropy(logits.float(), labels, reduction="none")
        right = (logits.argmax(1) == labels).float()
        return _shared_mean("matching", each, right, world)

    def _pairs(
        self, encoded: Encoded, batch: BatchLike, owner: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Texts and videos of right pairs, then of wrong videos, then of wrong texts."""
        valid = batch.valid
        keys = _keys(batch)
        negative = losses.true_negatives(owner, *keys) & valid & valid[owner].unsqueeze(1)
        texts = valid[owner].nonzero().squeeze(1)
        rows = [(texts, owner[texts])]
        with torch.no_grad():
            scores = encoded.embeddings["text"].float() @ encoded.embeddings["video"].float().t()
            chances = torch.where(negative, (scores / self.config.temperature).exp(), 0.0)
            chances = chances / chances.amax().clamp(min=1e-12)
        for rivals, by_text in ((chances, True), (chances.t(), False)):
            some = (rivals.sum(1) > 0).nonzero().squeeze(1)
            if len(some):
                drawn = _draw(rivals[some], generator)
                rows.append((some, drawn) if by_text else (drawn, some))
        return torch.cat([t for t, _ in rows]), torch.cat([v for _, v in rows])


@dataclass(frozen=True)
class OpenEndedAnswers:
    """Cross-entropy over the answer vocabulary, clips pooled as the config says."""

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        assert batch.labels is not None, "open_ended_qa needs labels in the batch"
        owner = text_owners(batch)
        text, visual = encoded["text", "token"], encoded["video", "token"]
        logits = self.heads.answer_logits(text, visual, owner, generator)  # N B C
        valid = batch.valid[owner]
        return _answers("open_ended_qa", logits, batch.labels, valid, world, self.config.pool)


@dataclass(frozen=True)
class MultipleChoice:
    """Cross-entropy over the options of each question, clips pooled as the config says."""

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        assert batch.labels is not None, "multiple_choice_qa needs labels in the batch"
        owner = text_owners(batch)
        text, visual = encoded["text", "token"], encoded["video", "token"]
        logits = self.heads.choice_logits(text, visual, batch.num_texts, owner, generator)  # N B K
        labels, valid = batch.labels, batch.valid
        return _answers("multiple_choice_qa", logits, labels, valid, world, self.config.pool)


def make_objective(config: ObjectiveConfig, heads: Heads) -> Objective:
    """The objective that a config names."""
    if config.name in CONTRASTIVE:
        return Contrastive(heads, config)
    kinds: dict[str, Callable[[Heads, ObjectiveConfig], Objective]] = {
        "caption_words": CaptionWords,
        "masked_language": MaskedLanguage,
        "matching": Matching,
        "open_ended_qa": OpenEndedAnswers,
        "multiple_choice_qa": MultipleChoice,
    }
    return kinds[config.name](heads, config)


def text_owners(batch: BatchLike) -> Tensor:
    """The video of each text, int64 `B*K`."""
    videos = torch.arange(len(batch), device=batch.valid.device)
    return videos.repeat_interleave(batch.num_texts)


def _answers(
    name: str, logits: Tensor, labels: Tensor, valid: Tensor, world: World, pool: str
) -> Mapping[str, Tensor]:
    """Losses of the questions R that are valid and have a label, of scores `N R C`."""
    rows = (valid & (labels >= 0)).nonzero().squeeze(1)
    scores, labels = logits[:, rows].float(), labels[rows]
    each = losses.clip_cross_entropy(scores, labels, pool)
    right = (losses.pool_clips(scores, pool, 0).argmax(1) == labels).float()
    return _shared_mean(name, each, right, world)


def _shared_mean(name: str, each: Tensor, right: Tensor, world: World) -> dict[str, Tensor]:
    """Mean of this rank's losses by the global count, as the scaling rule says, and accuracy."""
    here = torch.stack([each.new_tensor(float(len(each))), right.sum().to(each.dtype)])
    count, correct = world.all_reduce_sum(here)
    count = count.clamp(min=1)
    return {f"{name}_loss": each.sum() / count * world.size, f"{name}_accuracy": correct / count}


def _keys(batch: BatchLike) -> tuple[Tensor, Tensor]:
    """Keys of videos and texts; where the batch has none, all differ (negative numbers)."""
    device = batch.valid.device
    video, text = batch.video_key, batch.text_key
    if video is None:
        video = torch.arange(len(batch), device=device)
    if text is None:
        text = torch.arange(len(batch) * batch.num_texts, device=device)
    return video, text


def _gathered_keys(batch: BatchLike, world: World, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all ranks: the video of each text, keys of videos, keys of texts."""
    device = batch.valid.device
    videos = torch.arange(total, device=device)
    owner = videos.repeat_interleave(batch.num_texts)
    video_key = videos if batch.video_key is None else world.all_gather(batch.video_key)
    texts = torch.arange(len(owner), device=device)
    text_key = texts if batch.text_key is None else world.all_gather(batch.text_key)
    return owner, video_key, text_key


def _draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    """One column a row with probability proportional to its entry, int64 `R`.

    Drawn from uniform numbers of the generator's own device, so that a CPU generator serves a GPU.
    """
    rows = chances.shape[0]
    uniform = torch.rand(rows, generator=generator, device=generator.device).to(chances.device)
    edges = chances.double().cumsum(1)
    drawn = torch.searchsorted(edges, (uniform.double() * edges[:, -1]).unsqueeze(1), right=True)
    return drawn.squeeze(1).clamp(max=chances.shape[1] - 1)
