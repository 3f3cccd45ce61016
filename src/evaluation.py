"""Judging a model on a split: encode once, rank or answer, report coverage beside every score.

Results are plain nested dictionaries of fractions and ranks, with one row a query for
`predictions/<split>.jsonl`. Videos that cannot be read are left out of the scores, counted in
`coverage` and named; nothing is put in their place. Figures depend on no batch size and on no
number of ranks, to the bit (see `rushes.encoding`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rushes.checkpoint import write_atomically
from rushes.configs.schema import RunConfig
from rushes.datasets.loader import EvalLoader
from rushes.datasets.record import Record
from rushes.datasets.stretches import stretches_like
from rushes.distributed import World
from rushes.encoding import Encoder
from rushes.judge_answers import evaluate_choice, evaluate_qa
from rushes.judge_retrieval import evaluate_retrieval
from rushes.modeling.model import VideoTextModel
from rushes.protocols import Evaluation
from rushes.steps import resolve_precision

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_choice",
    "evaluate_qa",
    "evaluate_retrieval",
    "write_predictions",
]


def evaluate(
    model: VideoTextModel,
    loader: EvalLoader,
    world: World,
    config: RunConfig,
    *,
    train_records: Sequence[Record] = (),
) -> Evaluation:
    """Judge a model on a split by the figures of its task.

    Args:
        loader: of the split; its records say what is asked, its reader gives the pixels.
        world: every rank calls this and gets the same result.
        config: task, evaluation and precision.
        train_records: the majority answers come from these; from the split itself where there are
            none.
    """
    dataset = loader.dataset
    dtype = resolve_precision(config.train.precision, world.device)
    encoder = Encoder(model, dataset.tokenizer, world, dtype)
    videos = stretches_like(loader, world)
    records = [dataset.records[i] for i in range(len(dataset.records))]
    if config.task in ("open_ended_qa", "multiple_choice_qa"):
        labels: Mapping[str, int] = getattr(dataset, "answers", {})
        answers = sorted(labels, key=labels.__getitem__)
        return evaluate_qa(encoder, videos, records, config, answers, train_records)
    if config.task == "multiple_choice":
        return evaluate_choice(encoder, videos, records, config.evaluation, config.seed)
    judged = config.evaluation
    if getattr(dataset, "texts", "") == "paragraph":
        judged = replace(judged, protocol="paragraph")
    return evaluate_retrieval(encoder, videos, records, judged, config.seed)


def write_predictions(run_folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `predictions/<split>.jsonl` of a run, in one piece; returns the file."""
    path = run_folder / "predictions" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    return path
