"""Answers, judged: open-ended and multiple-choice questions, and choice by similarity."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from rushes.configs.schema import EvaluationConfig, RunConfig
from rushes.datasets.record import Record
from rushes.datasets.stretches import Videos
from rushes.encoding import TEXTS_A_VIDEO, Encoder, encode_texts, encode_videos
from rushes.errors import ConfigError, MetricError
from rushes.metrics import accuracy, accuracy_by_kind, bootstrap, majority_answers
from rushes.modeling.encoded import Level
from rushes.modeling.losses import pool_clips
from rushes.protocols import Evaluation, distinct_videos, named

OTHER = "other"
"""Kind of a question that states none."""


def evaluate_qa(
    encoder: Encoder,
    videos: Videos,
    records: Sequence[Record],
    config: RunConfig,
    answers: Sequence[str] = (),
    train_records: Sequence[Record] = (),
) -> Evaluation:
    """Accuracy of answers; each video is decoded and encoded once for all its questions."""
    choosing = config.task == "multiple_choice_qa"
    if not choosing and not answers:
        raise ConfigError("open-ended questions: the answer vocabulary is empty")
    pool = next((o.pool for o in config.objectives if o.name == config.task), "mean")
    distinct, owners = distinct_videos(records)
    asked: dict[int, list[int]] = {}
    for row, owner in enumerate(owners):
        asked.setdefault(owner, []).append(row)
    mine: dict[int, list[float] | None] = {}
    for video, encoded in encoder.videos(videos(distinct)):
        rows = asked[video]
        if encoded is None:
            mine.update(dict.fromkeys(rows))
            continue
        questions = [records[row] for row in rows]
        level = encoded["video", "token"]
        score = choice_scores if choosing else answer_scores
        scores = score(encoder, level, questions, pool)
        mine.update(zip(rows, scores, strict=True))
    scored: dict[int, list[float] | None] = {}
    for share in encoder.world.all_gather_object(mine):
        scored.update(share)
    return _qa_result(records, scored, [] if choosing else list(answers), train_records, config)


def answer_scores(
    encoder: Encoder, video: Level, questions: Sequence[Record], pool: str
) -> list[list[float]]:
    """Scores of all answers of the vocabulary, for each question about one video."""
    out: list[list[float]] = []
    for start in range(0, len(questions), TEXTS_A_VIDEO):
        part = questions[start : start + TEXTS_A_VIDEO]
        texts = encoder.text_level([q.question or "" for q in part], len(part))
        to_video = torch.zeros(len(part), dtype=torch.int64, device=texts.values.device)
        with encoder.running():
            logits = encoder.model.answer_logits(texts, video, to_video).float()  # N R C
        # "lse" is trained as one softmax over clips and answers together.
        out.extend(pool_clips(logits, pool, 0).cpu().tolist())
    return out


def choice_scores(
    encoder: Encoder, video: Level, questions: Sequence[Record], pool: str
) -> list[list[float]]:
    """Scores of the options of each question about one video."""
    out = []
    for question in questions:
        texts = encoder.text_level(choice_texts(question), len(question.options))
        count = len(question.options)
        to_video = torch.zeros(count, dtype=torch.int64, device=texts.values.device)
        with encoder.running():
            logits = encoder.model.choice_logits(texts, video, count, to_video).float()  # N 1 K
        out.append(pool_clips(logits, pool, 0)[0].cpu().tolist())
    return out


def choice_texts(question: Record) -> list[str]:
    """What is encoded for each option: the question, where there is one, and the option."""
    if not question.options:
        raise MetricError(f"question {question.id or question.video}: no options to choose from")
    asked = question.question
    return [option if asked is None else f"{asked} {option}" for option in question.options]


def _qa_result(
    records: Sequence[Record],
    scored: Mapping[int, list[float] | None],
    answers: Sequence[str],
    train_records: Sequence[Record],
    config: RunConfig,
) -> Evaluation:
    rows = []
    for index, record in enumerate(records):
        scores = scored[index]
        if scores is None or record.answer is None:
            continue
        options = answers or record.options
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        truth = answer_text(record)
        best = options[order[0]]
        rows.append(
            {
                "id": record.id,
                **named(record),
                "question": record.question,
                "kind": kind_of(record),
                "answer": best,
                "truth": truth,
                "right": best == truth or best in record.references,
                "top": [{"answer": options[i], "score": scores[i]} for i in order[:5]],
            }
        )
    unreadable = sorted({records[i].video for i, s in scored.items() if s is None})
    covered = sum(s is not None for s in scored.values()) / max(1, len(scored))
    out = _accuracies(rows, train_records or records, config.evaluation.bootstrap, config.seed)
    out["coverage"] = covered
    if answers:
        known = set(answers)
        out["answer_coverage"] = sum(row["truth"] in known for row in rows) / len(rows)
    return Evaluation({"qa": out, "coverage": covered}, rows, unreadable, "qa.accuracy")


def _accuracies(
    rows: Sequence[Mapping[str, Any]], train: Sequence[Record], samples: int, seed: int
) -> dict[str, Any]:
    """Accuracy beside the majority answer of the training questions, overall and by kind."""
    if not rows:
        raise MetricError("no question of this split could be judged")
    kinds = [row["kind"] for row in rows]
    right, truth = [row["right"] for row in rows], [row["truth"] for row in rows]
    known = [record for record in train if record.answer is not None]
    majority = majority_answers([answer_text(r) for r in known], [kind_of(r) for r in known])
    by_kind: list[Hashable] = [majority.get(kind, majority.get("")) for kind in kinds]
    single: list[Hashable] = [majority.get("")] * len(rows)
    all_true = [True] * len(rows)
    out: dict[str, Any] = {
        "accuracy": accuracy(right, all_true),
        # The stronger of two baselines: it is told the kind of each question.
        "majority": accuracy(by_kind, truth),
        "majority_of_all": accuracy(single, truth),
        "by_kind": accuracy_by_kind(right, all_true, kinds),
        "majority_by_kind": accuracy_by_kind(by_kind, truth, kinds),
        "num_questions": len(rows),
    }
    if samples:
        hits = torch.tensor(right, dtype=torch.float64)
        out["interval_95"] = {"accuracy": list(bootstrap(hits, samples=samples, seed=seed))}
    return out


def answer_text(record: Record) -> str:
    """The right answer as text."""
    if isinstance(record.answer, int) and record.options:
        return record.options[record.answer]
    return str(record.answer)


def kind_of(record: Record) -> str:
    """The kind of a question, by the tags that annotation formats use."""
    for tag in ("kind", "answer_type", "question_type", "type"):
        if tag in record.tags:
            return record.tags[tag]
    return OTHER


def evaluate_choice(
    encoder: Encoder,
    videos: Videos,
    records: Sequence[Record],
    config: EvaluationConfig,
    seed: int = 0,
) -> Evaluation:
    """Multiple choice by a retrieval model: the option most similar to the video."""
    asked = [record for record in records if record.options]
    if not asked:
        raise MetricError(f"none of {len(records)} records has options to choose from")
    distinct, owners = distinct_videos(asked)
    found = encode_videos(encoder, videos(distinct), len(distinct))
    texts = list(dict.fromkeys(option for record in asked for option in record.options))
    place = {text: row for row, text in enumerate(texts)}
    vectors = encode_texts(encoder, texts)
    rows = []
    for record, owner in zip(asked, owners, strict=True):
        if not found.readable[owner] or record.answer is None:
            continue
        options = vectors[[place[option] for option in record.options]]  # K D
        scores = (found.clips[owner] @ options.T).double()  # N K
        if config.clip_pool == "mean":
            scores = (found.vectors[owner : owner + 1] @ options.T).double()
        pooled = pool_clips(scores, config.clip_pool, 0).tolist()
        best = max(range(len(pooled)), key=lambda i: (pooled[i], -i))
        rows.append(_choice_row(record, pooled, best))
    if not rows:
        raise MetricError("no question of this split could be judged")
    right = [row["right"] for row in rows]
    covered = float(found.readable[list(owners)].double().mean())
    out: dict[str, Any] = {
        "accuracy": accuracy(right, [True] * len(rows)),
        "chance": sum(1 / len(row["options"]) for row in rows) / len(rows),
        "num_questions": len(rows),
        "clip_pool": config.clip_pool,
        "coverage": covered,
    }
    kinds = [str(row["kind"]) for row in rows]
    if set(kinds) != {OTHER}:
        out["by_kind"] = accuracy_by_kind(right, [True] * len(rows), kinds)
    if config.bootstrap:
        hits = torch.tensor(right, dtype=torch.float64)
        interval = bootstrap(hits, samples=config.bootstrap, seed=seed)
        out["interval_95"] = {"accuracy": list(interval)}
    unreadable = [distinct[int(i)].video for i in (~found.readable).nonzero().flatten()]
    return Evaluation({"mc": out, "coverage": covered}, rows, unreadable, "mc.accuracy")


def _choice_row(record: Record, scores: Sequence[float], best: int) -> dict[str, Any]:
    truth = answer_text(record)
    return {
        "id": record.id,
        **named(record),
        "question": record.question,
        "kind": kind_of(record),
        "options": list(record.options),
        "scores": list(scores),
        "answer": record.options[best],
        "truth": truth,
        "right": record.options[best] == truth,
    }
