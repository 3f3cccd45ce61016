"""The finetuning and inference runners; `finetune` and `infer` go by the preset's task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rushes.errors import ConfigError

if TYPE_CHECKING:
    from rushes.configs.schema import RunConfig


def main(argv: Sequence[str]) -> int:
    """Finetune on the task that the preset names; returns an exit code."""
    from rushes import runner

    return runner.main(argv, "rushes finetune", _finetuning)


def infer(argv: Sequence[str]) -> int:
    """Judge a finished run; returns an exit code."""
    from rushes import runner

    return runner.main(argv, "rushes infer", _judging)


def _finetuning(config: RunConfig) -> RunConfig:
    if config.task == "pretrain":
        raise ConfigError("task=pretrain: use rushes pretrain")
    if config.task == "multiple_choice":
        raise ConfigError("task=multiple_choice is judged, not trained: use rushes infer")
    return config


def _judging(config: RunConfig) -> RunConfig:
    return replace(config, inference=replace(config.inference, enabled=True))
