"""Text-video retrieval: finetune, then judge; `--do_inference 1` only judges.

python src/tasks/run_video_retrieval.py --config src/configs/msrvtt_retrieval.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rushes import runner
from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError

TASKS = ("retrieval",)


def main(argv: Sequence[str] | None = None) -> int:
    """Finetune or judge; returns an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return runner.main(arguments, "run_video_retrieval.py", accept)


def accept(config: RunConfig) -> RunConfig:
    """The configuration; raise `ConfigError` unless the configuration is of this task."""
    if config.task not in TASKS:
        raise ConfigError(
            f"task={config.task}: this runner is for {' or '.join(TASKS)}; "
            "give it src/configs/msrvtt_retrieval.json"
        )
    return config


if __name__ == "__main__":
    raise SystemExit(main())
