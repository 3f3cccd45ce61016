"""Pretraining, stage 1: a hybrid video encoder and a text encoder learn by contrast.

python src/pretrain/run_pretrain_stage1_group.py --config src/configs/pretrain_stage1.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rushes import runner
from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain; returns an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return runner.main(arguments, "run_pretrain_stage1_group.py", accept)


def accept(config: RunConfig) -> RunConfig:
    """The configuration; raise `ConfigError` unless the configuration is of stage 1."""
    if config.task != "pretrain" or config.stage != 1:
        raise ConfigError(
            f"task={config.task}, stage={config.stage}: this runner is for pretraining, stage 1; "
            "give it src/configs/pretrain_stage1.json"
        )
    return config


if __name__ == "__main__":
    raise SystemExit(main())
