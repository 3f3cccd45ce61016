"""Pretraining, stage 2: with stage 1 frozen, masked language modelling and matching.

python src/pretrain/run_pretrain_stage2_group.py --config src/configs/pretrain_stage2.json
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
    return runner.main(arguments, "run_pretrain_stage2_group.py", accept)


def accept(config: RunConfig) -> RunConfig:
    """The configuration; raise `ConfigError` unless the configuration is of stage 2."""
    if config.task != "pretrain" or config.stage != 2:
        raise ConfigError(
            f"task={config.task}, stage={config.stage}: this runner is for pretraining, stage 2; "
            "give it src/configs/pretrain_stage2.json"
        )
    return config


if __name__ == "__main__":
    raise SystemExit(main())
