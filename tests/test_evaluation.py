"""Judging on real files: the same figures whatever the batch size and the number of ranks."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes import protocols
from rushes.configs.schema import RunConfig
from rushes.datasets.build import build_answers, build_eval_loaders, build_tokenizer
from rushes.datasets.record import Record, Segment
from rushes.distributed import SingleWorld, World
from rushes.errors import ConfigError, MetricError
from rushes.evaluation import Evaluation, evaluate, write_predictions
from rushes.modeling.build import build_model
from rushes.modeling.model import VideoTextModel
from tests.tiny_runs import make_corpus, tiny_config, wake


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


class Judge:
    """A model with random weights and what is needed to judge it."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config = config
        self.tokenizer = build_tokenizer(config, SingleWorld(), folder / config.task)
        self.answers = build_answers(config) if config.task == "open_ended_qa" else None
        torch.manual_seed(0)
        count = len(self.answers) if self.answers else None
        self.model: VideoTextModel = build_model(
            config, vocab_size=self.tokenizer.vocab_size, num_answers=count
        )
        wake(self.model)
        self.model.eval()  # ranks in threads share it: none may find it in training mode

    def __call__(self, world: World | None = None, **evaluation: Any) -> Evaluation:
        config = replace(self.config, evaluation=replace(self.config.evaluation, **evaluation))
        world = world or SingleWorld()
        (loader,) = build_eval_loaders(config, "test", world, self.tokenizer, answers=self.answers)
        return evaluate(self.model, loader, world, config)


class Rank(SingleWorld):
    """One of several ranks in threads of one process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, box: list[Any]) -> None:
        super().__init__()
        self.rank, self.size, self._barrier, self._box = rank, size, barrier, box

    def all_gather_object(self, value: Any) -> list[Any]:
        self._box[self.rank] = pickle.dumps(value)
        self._barrier.wait(60)
        out = [pickle.loads(part) for part in self._box]
        self._barrier.wait(60)
        return out


def on_ranks(size: int, judge: Callable[[World], Evaluation]) -> list[Evaluation]:
    barrier, box = threading.Barrier(size), [None] * size
    out: list[Any] = [None] * size

    def body(rank: int) -> None:
        try:
            out[rank] = judge(Rank(rank, size, barrier, box))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert None not in out
    return out


@pytest.mark.parametrize("pool", ["mean", "max", "lse"])
def test_retrieval_depends_on_no_batch_size_and_no_ranks(
    corpus: Path, tokenizer_folder: Path, pool: str
) -> None:
    judge = Judge(tiny_config(corpus), tokenizer_folder)
    first = judge(batch_size=1, clip_pool=pool)
    found = first.metrics["retrieval"]
    assert found["num_videos"] == found["num_queries"] == 8
    assert found["t2v_mean_rank"] > 1
    assert found["clip_pool"] == pool
    for size in (7, 64):
        assert judge(batch_size=size, clip_pool=pool) == first
    for other in on_ranks(2, lambda world: judge(world, batch_size=3, clip_pool=pool)):
        assert other == first


@pytest.mark.parametrize("task", ["open_ended_qa", "multiple_choice_qa"])
def test_answers_depend_on_no_batch_size_and_no_ranks(
    corpus: Path, tokenizer_folder: Path, task: str
) -> None:
    judge = Judge(tiny_config(corpus, task), tokenizer_folder)
    first = judge(batch_size=1)
    assert first.metrics["qa"]["num_questions"] == len(first.rows) > 7
    assert set(first.metrics["qa"]["by_kind"]) == set(first.metrics["qa"]["majority_by_kind"])
    assert judge(batch_size=7) == first
    for other in on_ranks(2, lambda world: judge(world, batch_size=64)):
        assert other == first


def test_each_video_is_decoded_once_for_all_its_questions(
    corpus: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(tiny_config(corpus, "open_ended_qa"), tokenizer_folder)
    encoded = []
    inner = judge.model.encode_video

    def counted(*args: Any) -> Any:
        encoded.append(1)
        return inner(*args)

    monkeypatch.setattr(judge.model, "encode_video", counted)
    found = judge()
    assert len(found.rows) > 20
    assert len(encoded) == 8


def test_choice_by_similarity(corpus: Path, tokenizer_folder: Path) -> None:
    base = tiny_config(corpus, "multiple_choice_qa")
    config = replace(base, task="multiple_choice", objectives=tiny_config(corpus).objectives)
    config = replace(config, model=replace(config.model, cross=False))
    judge = Judge(config, tokenizer_folder)
    first = judge(batch_size=2)
    assert first.metrics["mc"]["chance"] == pytest.approx(0.2)
    assert first.metrics["mc"]["accuracy"] == sum(r["right"] for r in first.rows) / len(first.rows)
    assert on_ranks(2, lambda world: judge(world, batch_size=5))[1] == first


def test_dual_softmax_is_named_and_changes_ranks(corpus: Path, tokenizer_folder: Path) -> None:
    judge = Judge(tiny_config(corpus), tokenizer_folder)
    plain, dual = judge(), judge(dual_softmax=0.01)
    assert "dual_softmax" not in plain.metrics["retrieval"]
    assert dual.metrics["retrieval"]["dual_softmax"] == 0.01
    assert [r["rank"] for r in dual.rows] != [r["rank"] for r in plain.rows]


def test_reranking_by_the_matching_head(corpus: Path, tokenizer_folder: Path) -> None:
    objectives = [{"name": "contrastive"}, {"name": "matching"}]
    config = tiny_config(corpus, objectives=objectives, model={"cross": True})
    judge = Judge(config, tokenizer_folder)
    plain, first = judge(), judge(rerank=4)
    assert first.metrics["retrieval"]["rerank"] == 4
    for before, after in zip(plain.rows, first.rows, strict=True):
        candidates = {hit["video"] for hit in before["top"][:4]}
        assert {hit["video"] for hit in after["top"]} == candidates
        scores = [hit["score"] for hit in after["top"]]
        assert scores == sorted(scores, reverse=True)
        if before["rank"] <= 4:
            place = next(i for i, hit in enumerate(after["top"], 1) if hit["right"])
            assert after["rank"] == place
        else:
            assert after["rank"] == before["rank"]
    assert on_ranks(2, lambda world: judge(world, rerank=4))[0] == first
    with pytest.raises(ConfigError, match="matching"):
        Judge(tiny_config(corpus), tokenizer_folder)(rerank=4)


def test_unreadable_videos_are_counted_and_never_replaced(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path
) -> None:
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()]
    (corpus / "videos" / "broken.mp4").write_bytes(b"no video at all" * 100)
    rows.append({**rows[0], "id": "gone", "video": "gone"})
    rows.append({**rows[1], "id": "broken", "video": "broken"})
    rows[-1]["segments"] = [{"text": "nothing to see", "kind": "caption"}]
    path = tmp_path / "with_bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(corpus)
    (dataset,) = config.data.test
    dataset = replace(dataset, annotations=(str(path),))
    bad = replace(config, data=replace(config.data, test=(dataset,)))
    found, whole = Judge(bad, tokenizer_folder)(), Judge(config, tokenizer_folder)()
    assert sorted(found.unreadable) == ["broken", "gone"]
    assert found.metrics["coverage"] == found.metrics["retrieval"]["coverage"] == 0.8
    assert found.metrics["retrieval"]["num_videos"] == 8
    assert [row["rank"] for row in found.rows] == [row["rank"] for row in whole.rows]
    nothing = replace(bad, data=replace(bad.data, test=(replace(dataset, videos="vtt"),)))
    with pytest.raises(MetricError, match="none of the 10 videos"):
        Judge(nothing, tokenizer_folder)()


def test_protocols_are_explicit() -> None:
    records = [
        Record("a", "a", (Segment("One."), Segment("two"), Segment("said", "transcript"))),
        Record("b", "b", (Segment("x", start=1.0, end=2.0), Segment("one.", start=3.0, end=4.0))),
    ]
    clip = protocols.retrieval_queries(records, "clip")
    assert clip.texts == ("One.", "x", "one.")
    assert [(v.video, v.start) for v in clip.videos] == [("a", None), ("b", 1.0), ("b", 3.0)]
    # Equal texts fit each other's videos.
    assert clip.pairs() == [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]
    paragraph = protocols.retrieval_queries(records, "paragraph")
    assert paragraph.texts == ("One. two", "x one.")
    multi = protocols.retrieval_queries(records, "multi_caption")
    assert multi.owners == (0, 0, 1, 1)
    assert multi.ids == ("a", "a#1", "b", "b#1")
    with pytest.raises(MetricError, match="no"):
        protocols.retrieval_queries([Record("c")], "clip")


def test_predictions_name_the_top(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    found = Judge(tiny_config(corpus), tokenizer_folder)(top_k=3)
    path = write_predictions(tmp_path, "test", found.rows)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path == tmp_path / "predictions" / "test.jsonl"
    assert len(rows) == 8
    for row in rows:
        assert len(row["top"]) == 3
        right = [hit["video"] for hit in row["top"] if hit["right"]]
        assert right == ([row["video"]] if row["rank"] <= 3 else [])
