"""Multiple choice by a retrieval model: the caption most similar to the video wins; no training.

    python src/tasks/run_msrvtt_mc.py --config src/configs/msrvtt_retrieval.json --do_inference 1 \
        --output_dir data/output/msrvtt --inference_model_step best --inference_split val \
        --inference_txt_db data/msrvtt_retrieval/mc_test.jsonl \
        --inference_img_db data/msrvtt_retrieval/videos_6fps
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from rushes import runner
from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Choose; returns an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return runner.main(arguments, "run_msrvtt_mc.py", as_choice)


def as_choice(config: RunConfig) -> RunConfig:
    """The retrieval configuration as one that chooses; it never trains."""
    if config.task not in ("retrieval", "multiple_choice"):
        raise ConfigError(
            f"task={config.task}: multiple choice needs a retrieval model; "
            "give it src/configs/msrvtt_retrieval.json"
        )
    return replace(
        config, task="multiple_choice", inference=replace(config.inference, enabled=True)
    )


if __name__ == "__main__":
    raise SystemExit(main())
