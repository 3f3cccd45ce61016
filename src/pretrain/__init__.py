"""The two pretraining runners; `rushes pretrain` picks one by the preset's stage."""

from __future__ import annotations

from collections.abc import Sequence

from rushes.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Pretrain as the preset's stage says; returns an exit code."""
    from rushes import runner
    from rushes.configs.schema import RunConfig

    def accept(config: RunConfig) -> RunConfig:
        if config.task != "pretrain":
            raise ConfigError(f"task={config.task}: rushes pretrain takes pretraining presets")
        return config

    return runner.main(argv, "rushes pretrain", accept)
