"""Question answering, open-ended and multiple choice: finetune, then judge.

python src/tasks/run_video_qa.py --config src/configs/msrvtt_qa.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rushes import runner
from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError

TASKS = ("open_ended_qa", "multiple_choice_qa")


def main(argv: Sequence[str] | None = None) -> int:
    """Finetune or judge; returns an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return runner.main(arguments, "run_video_qa.py", accept)


def accept(config: RunConfig) -> RunConfig:
    """The configuration; raise `ConfigError` unless the configuration is of this task."""
    if config.task not in TASKS:
        raise ConfigError(
            f"task={config.task}: this runner is for {' or '.join(TASKS)}; "
            "give it src/configs/msrvtt_qa.json"
        )
    return config


if __name__ == "__main__":
    raise SystemExit(main())
