"""The model: two towers, their joint space and, in stage 2, the cross half with its heads."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rushes.configs.schema import ObjectiveConfig, RunConfig
from rushes.errors import ConfigError
from rushes.modeling.bert import CrossEncoder, pool_text
from rushes.modeling.encoded import Encoded, Level
from rushes.modeling.frames_mean import FramesMeanEncoder
from rushes.modeling.freezing import frozen_modules
from rushes.modeling.heads import (
    AnswerHead,
    LinearHead,
    MaskedLanguageHead,
    TextProjection,
    VideoProjection,
)
from rushes.modeling.hybrid import HybridEncoder, check_sizes
from rushes.modeling.inputs import BatchLike
from rushes.modeling.losses import pool_clips
from rushes.modeling.objectives import CONTRASTIVE, Objective, make_objective, text_owners
from rushes.modeling.upsample import enlarge_high

FROZEN_VIDEO = "frozen_video"
"""Modality of a batch that holds tokens of the video tower in place of pixels, `B*N*S D`."""
MAX_SCALE = 100.0
"""Largest inverse of a learnt temperature (Radford et al. 2021)."""


class VideoTextModel(nn.Module):
    """Two towers and, where the config asks for it, the cross half; satisfies `Trainable`.

    Legend: B videos, N clips a video, T frames a clip, S tokens of a clip's grid (h x w), R texts,
    L words, D channels. Pixels are 0..255 (uint8, or float with whole numbers).

    Args:
        config: of the run; `model`, `objectives` and `task` are read.
        text: text tower: ids and mask `R L` to hidden states `R L D`, with attribute `dim`.
        cross: cross half, or None.
        num_answers: of the open-ended answer head.
    """

    def __init__(
        self,
        config: RunConfig,
        text: nn.Module,
        cross: CrossEncoder | None = None,
        num_answers: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.frozen_grid: tuple[int, int] | None = None
        """Grid of the clips that stand in a batch as `FROZEN_VIDEO`; set by who makes them."""
        kind = {"hybrid": HybridEncoder, "frames_mean": FramesMeanEncoder}[config.model.kind]
        self.video = kind(config.model)
        self.text = text
        self.cross_encoder = cross
        names = {objective.name for objective in config.objectives}
        self.video_projection: VideoProjection | None = None
        self.text_projection: TextProjection | None = None
        if config.task in ("pretrain", "retrieval", "multiple_choice") or names & CONTRASTIVE:
            self.video_projection = VideoProjection(config.model.embed_dim)
            self.text_projection = TextProjection(_dim(text), config.model.embed_dim)
        self._build_heads(config, names, num_answers)
        self._build_scales(config.objectives)

    def _build_heads(self, config: RunConfig, names: set[Any], num_answers: int) -> None:
        self.masked_language_head = self.matching_head = None
        self.answer_head = self.choice_head = self.words_head = None
        if "caption_words" in names:
            words = config.model.text.vocab_size
            self.words_head = LinearHead(config.model.embed_dim, words)
        dim, dropout = _dim(self.text), config.model.text.dropout
        crossing = names & {"masked_language", "matching", "open_ended_qa", "multiple_choice_qa"}
        if self.cross_encoder is None:
            if crossing:
                raise ConfigError(f"objectives {sorted(crossing)} need model.cross: true")
            return
        if "masked_language" in names:
            self.masked_language_head = MaskedLanguageHead(self.text.embeddings.word.weight)  # type: ignore[union-attr,arg-type]
        if "matching" in names:
            self.matching_head = LinearHead(dim, 2)
        if config.task == "open_ended_qa" or "open_ended_qa" in names:
            if num_answers < 1:
                raise ConfigError("open-ended answers: the answer vocabulary is empty")
            self.answer_head = AnswerHead(dim, num_answers, dropout)
        if config.task == "multiple_choice_qa" or "multiple_choice_qa" in names:
            self.choice_head = AnswerHead(dim, 1, dropout)

    def _build_scales(self, objectives: Iterable[ObjectiveConfig]) -> None:
        """Learnt log(1 / temperature) and bias, by the objective's name."""
        self.log_scales, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for config in objectives:
            if config.learnable_temperature:
                start = -math.log(config.temperature)
                self.log_scales[config.name] = nn.Parameter(torch.tensor(start))
            if config.name == "sigmoid":
                self.biases[config.name] = nn.Parameter(torch.tensor(-10.0))

    def train(self, mode: bool = True) -> VideoTextModel:
        """As `nn.Module.train`; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in frozen_modules(self):
            module.eval()
        return self

    # Towers ------------------------------------------------------------------------------------

    def encode(self, batch: BatchLike) -> Encoded:
        """Levels and embeddings that the run's objectives need of a batch."""
        names = {objective.name for objective in self.config.objectives}
        parts = [self._video_of(batch)]
        if batch.text_ids is not None and names != {"masked_language"}:
            assert batch.text_mask is not None
            parts.append(self.encode_text(batch.text_ids, batch.text_mask))
        if batch.masked_ids is not None and "masked_language" in names:
            assert batch.text_mask is not None
            level = self._text_level(batch.masked_ids, batch.text_mask)
            parts.append(Encoded(len(batch), {("masked_text", "token"): level}))
        levels = {key: level for part in parts for key, level in part.levels.items()}
        embeddings = {n: vector for part in parts for n, vector in part.embeddings.items()}
        return Encoded(len(batch), levels, embeddings)

    def encode_video(
        self, high: Tensor | None, low: Tensor | None, valid: Tensor | None = None
    ) -> Encoded:
        """Grids, clips and unit vectors of videos.

        Args:
            high: middle frames `B N 3 H W`, or None; those of the low-resolution size are enlarged.
            low: neighbours `B N T-1 3 H/4 W/4` (all T frames where there is no `high`), or None.
            valid: bool `B`; others are encoded as black.

        Returns:
            Levels ("video", "token"): values `B N*S D` with `grid`, and ("video", "segment"):
            values `B N D` (clips, by `model.video_pool`), pooled `B D` (mean of the video);
            embeddings "video" `B D` where the model has a joint space.
        """
        high, low = self._inputs(high, low)
        first = high if high is not None else low
        assert first is not None
        num_videos, num_clips = first.shape[:2]
        if valid is not None:
            high, low = _black(high, valid), _black(low, valid)
        grids: Tensor = self.video(_clips(high), _clips(low))  # B*N D h w
        tokens = grids.flatten(2).transpose(1, 2)
        clips = torch.unflatten(self._pool(tokens, 1), 0, (num_videos, num_clips))
        tokens = tokens.reshape(num_videos, -1, tokens.shape[-1])
        grid = (grids.shape[-2], grids.shape[-1])
        return self._video_levels(tokens, clips, grid)

    def _video_of(self, batch: BatchLike) -> Encoded:
        """Videos from pixels, or from what the frozen tower made of them before."""
        kept = getattr(batch, "modalities", {}).get(FROZEN_VIDEO)
        if kept is None:
            return self.encode_video(batch.high, batch.low, batch.valid)
        assert self.frozen_grid is not None
        cells = self.frozen_grid[0] * self.frozen_grid[1]
        tokens = torch.unflatten(kept.values, 0, (len(batch), -1))
        clips = self._pool(torch.unflatten(tokens, 1, (-1, cells)), 2)
        return self._video_levels(tokens, clips, self.frozen_grid)

    def _pool(self, cells: Tensor, dim: int) -> Tensor:
        """One vector a clip of the cells along `dim`."""
        return cells.amax(dim) if self.config.model.video_pool == "max" else cells.mean(dim)

    def _video_levels(self, tokens: Tensor, clips: Tensor, grid: tuple[int, int]) -> Encoded:
        segment = Level(clips, pooled=clips.mean(1))
        levels = {("video", "token"): Level(tokens, grid=grid), ("video", "segment"): segment}
        embeddings = {}
        if self.video_projection is not None:
            embeddings["video"] = self.video_projection(segment.pooled)
        return Encoded(len(tokens), levels, embeddings)

    def _inputs(
        self, high: Tensor | None, low: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The inputs that the towers take, enlarged where the config says so; sizes checked."""
        inputs = self.config.model.inputs
        high, low = (None if inputs == "low" else high), (None if inputs == "high" else low)
        for name, pixels in (("high", high), ("low", low)):
            if pixels is None and inputs in (name, "hybrid"):
                raise ConfigError(f"model.inputs is {inputs}, but the batch has no {name} frames")
        if high is not None:
            high = enlarge_high(high, low)
        check_sizes(high, low)
        return high, low

    def clip_embeddings(self, encoded: Encoded) -> Tensor:
        """Unit vectors of single clips, `B N D`, for pooling of scores over clips."""
        assert self.video_projection is not None, "this model has no joint space"
        out: Tensor = self.video_projection(encoded["video", "segment"].values)
        return out

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Words and unit vectors of texts.

        Args:
            ids, mask: int64 `R L`.

        Returns:
            Level ("text", "token"): values `R L D`, mask bool `R L`, pooled `R D`; embeddings
            "text" `R D` where the model has a joint space.
        """
        level = self._text_level(ids, mask)
        embeddings = {}
        if self.text_projection is not None:
            embeddings["text"] = self.text_projection(level.pooled)
        return Encoded(len(ids), {("text", "token"): level}, embeddings)

    def _text_level(self, ids: Tensor, mask: Tensor) -> Level:
        hidden: Tensor = self.text(ids, mask)
        pooled = pool_text(hidden, mask, self.config.model.text.pool)
        return Level(hidden, mask.bool(), pooled=pooled)

    def video_embedding(self, high: Tensor | None, low: Tensor | None) -> Tensor:
        """Unit vectors of videos, `B D`; arguments as those of `encode_video`."""
        return self.encode_video(high, low).embeddings["video"]

    def text_embedding(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors of texts, `R D`."""
        return self.encode_text(ids, mask).embeddings["text"]

    def caption_word_logits(self, encoded: Encoded) -> Tensor:
        """Scores of the words that each video's captions may hold, `B vocabulary`."""
        assert self.words_head is not None, "no objective caption_words"
        scores: Tensor = self.words_head(encoded["video", "segment"].pooled)
        return scores

    # Cross half --------------------------------------------------------------------------------

    def cross(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross texts with the clips of their videos; a video is embedded once for all its texts.

        Args:
            text: level ("text", "token") of R texts.
            visual: level ("video", "token") of B videos.
            text_to_video: row of `visual` that each text goes with, int64 `R`.
            generator: draws the subset of visual tokens in training; None: the global one.

        Returns:
            Hidden states of text tokens then visual tokens `R N L+S D`, and the pooled first token
            of each clip `R N D`.
        """
        assert self.cross_encoder is not None, "model.cross is off"
        assert visual.grid is not None
        assert text.mask is not None
        cells = visual.grid[0] * visual.grid[1]
        num_videos, num_clips = visual.values.shape[0], visual.values.shape[1] // cells
        tokens = visual.values.reshape(num_videos * num_clips, cells, -1)
        chosen = self._chosen_tokens(cells, tokens.device, generator)
        embedded = self.cross_encoder.visual_embeddings(tokens, visual.grid, chosen)
        by_video = torch.unflatten(embedded, 0, (num_videos, num_clips))
        embedded = by_video[text_to_video].flatten(0, 1)
        words = text.values.repeat_interleave(num_clips, 0)
        mask = text.mask.repeat_interleave(num_clips, 0)
        sequence, pooled = self.cross_encoder(words, mask, embedded)
        shape = (len(text.values), num_clips)
        return torch.unflatten(sequence, 0, shape), torch.unflatten(pooled, 0, shape)

    def _chosen_tokens(
        self, cells: int, device: torch.device, generator: torch.Generator | None
    ) -> Tensor | None:
        count = self.config.model.visual_tokens
        if not self.training or count <= 0 or cells <= count:
            return None
        order = torch.randperm(cells, generator=generator, device=_device(generator))
        return order[:count].sort().values.to(device)

    def pool_hidden(self, hidden: Tensor, pool: str, dim: int) -> Tensor:
        """Hidden states of clips to one, before a head.

        "lse" is the published log-sum-exp less log N, so that the count of clips shifts nothing;
        `model.compat` keeps the shift.
        """
        pooled = pool_clips(hidden, pool, dim)
        if pool == "lse" and not self.config.model.compat:
            pooled = pooled - math.log(hidden.shape[dim])
        return pooled

    def word_logits(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        where: Tensor,
        pool: str,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Word scores `M vocabulary` at the M places of texts where `where` (bool `R L`) is set."""
        assert self.masked_language_head is not None, "no objective masked_language"
        sequence, _ = self.cross(text, visual, text_to_video, generator)
        words = sequence[:, :, : where.shape[1]].transpose(1, 2)[where]  # M N D
        scores: Tensor = self.masked_language_head(self.pool_hidden(words, pool, 1))
        return scores

    def match_logits(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        pool: str,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scores `R 2`: 1 is "text and video belong together"."""
        assert self.matching_head is not None, "no objective matching"
        _, pooled = self.cross(text, visual, text_to_video, generator)
        scores: Tensor = self.matching_head(self.pool_hidden(pooled, pool, 1))
        return scores

    def answer_logits(
        self,
        text: Level,
        visual: Level,
        text_to_video: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scores of answers a clip, `N R C`."""
        assert self.answer_head is not None, "no open-ended answer head"
        _, pooled = self.cross(text, visual, text_to_video, generator)
        scores: Tensor = self.answer_head(pooled.transpose(0, 1))
        return scores

    def choice_logits(
        self,
        text: Level,
        visual: Level,
        num_texts: int,
        text_to_video: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scores of options a clip, `N R/K K`; the K = `num_texts` options are adjacent."""
        assert self.choice_head is not None, "no multiple-choice head"
        _, pooled = self.cross(text, visual, text_to_video, generator)
        scores: Tensor = self.choice_head(pooled.transpose(0, 1)).squeeze(-1)
        return torch.unflatten(scores, 1, (-1, num_texts))

    # Objectives --------------------------------------------------------------------------------

    def scale(self, name: str) -> tuple[Tensor | float, Tensor | float]:
        """Temperature and bias of an objective, learnt or fixed."""
        fixed = {objective.name: objective.temperature for objective in self.config.objectives}
        temperature: Tensor | float = fixed[name]  # type: ignore[index]
        if name in self.log_scales:
            stored = self.log_scales[name]
            bounded = stored.detach().clamp(max=math.log(MAX_SCALE))
            # Bounded in value, not in gradient: a temperature at its bound can come back.
            temperature = (-(stored + (bounded - stored.detach()))).exp()
        bias: Tensor | float = self.biases.get(name, 0.0)
        return temperature, bias

    def objectives(self, step: int) -> Mapping[str, tuple[float, Objective]]:
        """Weight and objective by name at optimiser step `step`, alike on all ranks.

        With `train.objective_choice: turns` one is drawn a step, in proportion to the ratios, from
        the run's seed and the step alone.
        """
        begun = [o for o in self.config.objectives if step >= o.start_step]
        if self.config.train.objective_choice == "turns" and len(begun) > 1:
            draw = random.Random(f"objectives-{self.config.seed}-{step}")
            begun = draw.choices(begun, weights=[o.ratio for o in begun])
        return {o.name: (o.weight, make_objective(o, self)) for o in begun}

    def text_owners(self, batch: BatchLike) -> Tensor:
        """The video of each text of a batch, int64 `B*K`: `text_to_video` of its own pairs."""
        return text_owners(batch)


def _clips(pixels: Tensor | None) -> Tensor | None:
    return None if pixels is None else pixels.flatten(0, 1)


def _black(pixels: Tensor | None, valid: Tensor) -> Tensor | None:
    """Videos that are not valid as zeros, whatever their slots hold."""
    if pixels is None:
        return None
    return pixels * valid.view(-1, *[1] * (pixels.ndim - 1)).to(pixels.dtype)


def _dim(text: nn.Module) -> int:
    dim = text.dim
    assert isinstance(dim, int)
    return dim


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
