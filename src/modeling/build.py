"""From a config to a model with its starting weights."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError
from rushes.modeling.backbones import ImageBackbone
from rushes.modeling.bert import BertLayers, CrossEncoder, TextEncoder
from rushes.modeling.freezing import freeze
from rushes.modeling.model import VideoTextModel
from rushes.modeling.text_tower import AutoTextEncoder, is_bert, resolve_text
from rushes.modeling.timesformer import TimeSformer


def build_model(
    config: RunConfig, *, vocab_size: int | None = None, num_answers: int | None = None
) -> VideoTextModel:
    """A model as the config says, frozen where it says so, with random weights.

    Args:
        config: of the run; `rushes.modeling.weights.start` loads what `model.weights` names.
        vocab_size: of the tokenizer; None: `model.text.vocab_size`.
        num_answers: of the answer vocabulary; None: `model.num_answers`.

    Raises:
        ConfigError: sizes or names that cannot be built.
    """
    text = resolve_text(config.model.text)
    if vocab_size is not None:
        text = replace(text, vocab_size=vocab_size)
    answers = num_answers if num_answers is not None else config.model.num_answers
    config = replace(config, model=replace(config.model, text=text, num_answers=answers))
    _check(config)
    half = text.num_layers // 2
    tower: nn.Module
    if is_bert(text):
        tower = TextEncoder(text, half)
    else:
        assert text.encoder is not None
        tower = AutoTextEncoder(text.encoder, text.max_length)
    cross = None
    if config.model.cross:
        cross = CrossEncoder(config.model.embed_dim, text, text.num_layers - half)
    model = VideoTextModel(config, tower, cross, answers)
    _prepare(model)
    freeze(model)
    return model


def _check(config: RunConfig) -> None:
    model, text = config.model, config.model.text
    if model.cross and not is_bert(text):
        raise ConfigError(
            f"model.text.encoder={text.encoder}: the cross half (model.cross) needs an encoder of "
            "the BERT family, or none"
        )
    for name, dim, heads in (
        ("model.embed_dim", model.embed_dim, model.temporal_heads),
        ("model.text.hidden_size", text.hidden_size, text.num_heads),
    ):
        if dim % heads:
            raise ConfigError(f"{name}={dim} cannot be split over {heads} heads")
    if text.num_layers < 2:
        raise ConfigError(f"model.text.num_layers={text.num_layers}: each half needs one, so 2")


def _prepare(model: VideoTextModel) -> None:
    config = model.config.model
    for module in model.modules():
        if isinstance(module, ImageBackbone):
            if config.weights.init == "random" and config.frozen_norm:
                module.zero_last_gains()
            if config.gradient_checkpointing:
                module.checkpoint_gradients()
        elif isinstance(module, TimeSformer | BertLayers):
            module.gradient_checkpointing = config.gradient_checkpointing
    if config.compile:
        compile_towers(model)


def compile_towers(model: VideoTextModel) -> None:
    """Compile both towers and the cross half in place (names of parameters stay)."""
    towers: list[nn.Module | None] = [model.video, model.text, model.cross_encoder]
    for tower in towers:
        if tower is not None:
            tower.compile()
