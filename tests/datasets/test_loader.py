"""Order, sharding, resumption and read-ahead: a sample depends on (seed, epoch, index) alone."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rushes.configs.load import build_config
from rushes.configs.schema import RunConfig
from rushes.datasets.annotation_commands import write_records
from rushes.datasets.batch import Batch
from rushes.datasets.collate import BadVideo
from rushes.datasets.loader import EpochPlan, EvalLoader, TrainLoader
from rushes.datasets.permutation import permute
from rushes.datasets.pretrain import PretrainDataset
from rushes.datasets.record import Record, Segment
from rushes.datasets.record_store import RecordStore, open_records, write_store
from rushes.datasets.retrieval import RetrievalDataset
from rushes.datasets.samples import VideoTextDataset, sample_options
from rushes.datasets.text import TextTokenizer, load_tokenizer, train_tokenizer
from rushes.distributed import World
from rushes.errors import ConfigError
from tests.datasets.fakes import MadeReader


def _world(rank: int = 0, size: int = 1) -> World:
    return cast(World, SimpleNamespace(rank=rank, size=size))


def _config(**over: Any) -> RunConfig:
    values: dict[str, Any] = {
        "geometry": {"high_size": [32, 48]},
        "clips": {"num_clips": 1, "eval_num_clips": 1, "num_frames": 3},
        "data": {"num_workers": 0},
        "train": {"batch_size": 4},
        "model": {"text": {"max_length": 12}},
        "objectives": [{"name": "contrastive"}, {"name": "masked_language"}],
    }
    for key, value in over.items():
        values[key] = {**values.get(key, {}), **value}
    return build_config(values)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([f"text number {i}" for i in range(40)], 200, folder)
    return load_tokenizer(folder, 12)


@pytest.fixture
def make(tmp_path: Path, tokenizer: TextTokenizer) -> Any:
    def dataset(
        count: int = 23, name: str = "set", config: RunConfig | None = None, **options: Any
    ) -> VideoTextDataset:
        path = tmp_path / f"{name}.jsonl"
        if not path.exists():
            write_records(path, _records(count))
        chosen = sample_options(config or _config(), options.get("training", True))
        kind = options.get("kind", RetrievalDataset)
        reader = options.get("reader") or MadeReader()
        found: VideoTextDataset = kind(name, open_records([path]), reader, tokenizer, chosen)
        return found

    return dataset


def _records(count: int) -> Iterator[Record]:
    for i in range(count):
        video = f"bad{i}" if i in (5, 11) else f"absent{i}" if i == 7 else f"v{i}"
        yield Record(video, f"r{i}", tuple(Segment(f"text number {i + k}") for k in range(3)))


def _same(left: Batch, right: Batch) -> bool:
    names = ("high", "low", "valid", "text_ids", "masked_ids", "masked_labels", "indices")
    pairs = [(getattr(left, n), getattr(right, n)) for n in names]
    same = all(torch.equal(a, b) for a, b in pairs)
    return same and left.ids == right.ids


# The permutation and the plan ------------------------------------------------------------------


@given(size=st.integers(1, 2000), key=st.integers(0, 2**63))
def test_the_permutation_holds_every_place_once(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_the_permutation_needs_no_array() -> None:
    size = 10**12
    seen = {permute(i, size, 7) for i in range(3000)}
    assert len(seen) == 3000
    assert max(seen) > size * 0.99
    with pytest.raises(IndexError):
        permute(size, size, 7)


def test_orders_differ_by_epoch_and_seed_and_look_random() -> None:
    plan = EpochPlan([500], [1], seed=1, global_batch=500)
    orders = [[p.index for p in plan.positions(e, range(500))] for e in range(2)]
    other = EpochPlan([500], [1], seed=2, global_batch=500)
    orders.append([p.index for p in other.positions(0, range(500))])
    for order in orders:
        assert sorted(order) == list(range(500))
        assert sum(abs(b - a) == 1 for a, b in pairwise(order)) < 15
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_epochs_follow_each_other_without_a_gap(size: int) -> None:
    plan = EpochPlan([size], [1], seed=1, global_batch=5)
    places = [p for step in range(60) for p in plan.positions(step, range(5))]
    counts = Counter((p.epoch, p.index) for p in places)
    assert set(counts.values()) == {1}
    whole = 300 // size
    assert all((e, i) in counts for e in range(whole) for i in range(size))


def test_data_sets_take_turns_by_ratio_and_lose_no_item() -> None:
    plan = EpochPlan([30, 20, 10], [3, 2, 1], seed=4, global_batch=5)
    turns = [plan.turn(step) for step in range(60)]
    assert Counter(d for d, _ in turns) == {0: 30, 1: 20, 2: 10}
    for dataset in range(3):
        assert [before for d, before in turns if d == dataset] == list(
            range(turns.count(turns[0]) and sum(d == dataset for d, _ in turns))
        )
    cycles = {tuple(d for d, _ in turns[i : i + 6]) for i in range(0, 60, 6)}
    assert len(cycles) > 3  # the order within a cycle is drawn anew
    items = [p for step in range(60) for p in plan.positions(step, range(5)) if p.dataset == 1]
    assert Counter((p.epoch, p.index) for p in items).most_common(1)[0][1] == 1


# The training loader ---------------------------------------------------------------------------


def test_any_step_is_reached_at_once_and_equals_the_walk(make: Any) -> None:
    walked = TrainLoader([make()], _config(), _world())
    batches = walked.batches(0)
    walk = [next(batches)[0] for _ in range(12)]
    for start in (0, 5, 11):
        resumed = TrainLoader([make()], _config(), _world())
        assert _same(next(resumed.batches(start))[0], walk[start])
        assert len(cast(MadeReader, resumed.datasets[0].reader).requests) <= 4  # no replay


def test_samples_change_by_epoch(make: Any) -> None:
    dataset = make()
    first, again, later = dataset.sample(3, 0), dataset.sample(3, 0), dataset.sample(3, 1)
    assert (first.high == again.high).all()
    assert (first.times == again.times).all()
    assert not (first.times == later.times).all()
    texts = {tuple(dataset.sample(3, epoch).text_ids[0]) for epoch in range(20)}
    assert len(texts) == 3  # each caption comes up


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(make: Any, workers: int) -> None:
    alone = TrainLoader([make()], _config(), _world())
    config = _config(data={"num_workers": workers, "prefetch": 3})
    helped = TrainLoader([make()], config, _world())
    before = threading.active_count()
    left, right = alone.batches(2), helped.batches(2)
    for _ in range(8):
        assert _same(next(left)[0], next(right)[0])
    cast(Any, right).close()
    assert threading.active_count() == before
    assert helped.data_wait >= 0


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_same_global_and_micro_batches(
    make: Any, size: int, accumulation: int
) -> None:
    config = _config(train={"batch_size": 4, "accumulation": accumulation})
    whole = TrainLoader([make()], config, _world()).step(3)
    smaller = replace(config, train=replace(config.train, batch_size=4 // size))
    ranks = [TrainLoader([make()], smaller, _world(r, size)).step(3) for r in range(size)]
    for micro in range(accumulation):
        parts = [rank[micro] for rank in ranks]
        assert whole[micro].ids == tuple(name for part in parts for name in part.ids)
        assert whole[micro].high is not None
        rows = torch.cat([cast(torch.Tensor, p.high) for p in parts])
        assert torch.equal(cast(torch.Tensor, whole[micro].high), rows)


def test_a_run_goes_on_with_its_global_batch_on_fewer_ranks(make: Any) -> None:
    two = [TrainLoader([make()], _config(), _world(r, 2)) for r in range(2)]
    one = TrainLoader([make()], _config(), _world(), global_batch=8)
    assert one.steps_per_epoch == two[0].steps_per_epoch == 3
    assert one.step(4)[0].ids == two[0].step(4)[0].ids + two[1].step(4)[0].ids
    with pytest.raises(ConfigError, match="global batch 6"):
        TrainLoader([make()], _config(), _world(0, 4), global_batch=6)


def test_a_bad_video_keeps_its_slot_and_is_reported_once_a_visit(make: Any) -> None:
    reported: list[BadVideo] = []
    loader = TrainLoader([make()], _config(), _world(), on_bad=reported.append)
    batches = loader.batches(0)
    epoch = [next(batches)[0] for _ in range(6)]
    bad = {name for b in epoch for name, ok in zip(b.ids, b.valid.tolist(), strict=True) if not ok}
    assert {"r5", "r7", "r11"} == bad == {b.id for b in reported}
    for batch in epoch:
        assert batch.high is not None
        assert batch.low is not None
        assert not batch.high[~batch.valid].any()
        assert not batch.low[~batch.valid].any()
        assert batch.high[batch.valid].any()
    reasons = {b.id: (b.video, b.reason, b.detail) for b in loader.bad}
    assert reasons["r5"] == ("bad5", "truncated", "the file is cut short")
    assert reasons["r7"][:2] == ("absent7", "missing")


def test_slots_known_to_fail_are_not_tried_again(make: Any) -> None:
    loader = TrainLoader([make()], _config(), _world())
    batch = loader.step(3)[0]
    name = next(n for n in batch.ids if n not in ("r5", "r7", "r11"))
    place = loader.positions(3)[0][batch.ids.index(name)]
    known = BadVideo(name, "v", "timeout", "took too long", "set", place.index, place.epoch)
    loader.honour([known])
    reader = cast(MadeReader, loader.datasets[0].reader)
    reader.requests.clear()
    again = loader.step(3)[0]
    assert not again.valid[again.ids.index(name)]
    assert f"v{name[1:]}" not in {r.video_id for r in reader.requests}
    assert known in loader.bad
    elsewhere = loader.step(3 + loader.steps_per_epoch * 4)[0]  # other epochs try again
    assert all(
        ok for n, ok in zip(elsewhere.ids, elsewhere.valid.tolist(), strict=True) if n == name
    )


def test_ids_of_mixed_data_sets_cannot_be_confused(make: Any) -> None:
    config = _config(
        data={
            "train": [
                {"name": "a", "annotations": ["x"], "videos": "v", "ratio": 2},
                {"name": "b", "annotations": ["x"], "videos": "v"},
            ],
            "num_workers": 0,
        }
    )
    loader = TrainLoader([make(name="a"), make(name="b")], config, _world())
    steps = [loader.step(s)[0] for s in range(9)]
    assert all(len({name.split("/")[0] for name in b.ids}) == 1 for b in steps)
    assert Counter(b.dataset for b in steps) == {"a": 6, "b": 3}
    assert {b.id for b in loader.bad} >= {"a/r5", "a/r7"}


def test_padding_that_no_text_of_a_batch_needs_is_cut() -> None:
    mask = torch.tensor([[1] * 9 + [0] * 11, [1] * 4 + [0] * 16])
    ids = torch.arange(40).view(2, 20) * mask
    batch = Batch(
        ids=("a", "b"),
        indices=torch.arange(2),
        valid=torch.ones(2, dtype=torch.bool),
        text_ids=ids,
        text_mask=mask,
        masked_labels=torch.full((2, 20), -100),
    )
    cut = batch.trim_texts(multiple=8)
    assert cut.text_ids is not None
    assert cut.text_mask is not None
    assert cut.masked_labels is not None
    assert cut.masked_ids is None
    assert torch.equal(cut.text_ids, ids[:, :16])
    assert torch.equal(cut.text_mask.sum(1), mask.sum(1))
    assert cut.masked_labels.shape == (2, 16)
    whole = batch.trim_texts(multiple=64).text_mask
    assert whole is not None
    assert torch.equal(whole, mask)  # never longer than it was


def test_an_error_in_a_thread_reaches_the_caller(make: Any) -> None:
    class Broken(MadeReader):
        def read(self, request: Any) -> Any:  # noqa: ARG002
            raise RuntimeError("a bug, not a bad video")

    config = _config(data={"num_workers": 2})
    loader = TrainLoader([make(reader=Broken())], config, _world())
    with pytest.raises(RuntimeError, match="a bug"):
        next(loader.batches(0))


def test_an_empty_set_and_a_wrong_ratio_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        EpochPlan([3, 0], [1, 1], 0, 4)
    with pytest.raises(ConfigError, match="ratios"):
        EpochPlan([3, 3], [1, 0], 0, 4)


# The evaluation loader -------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch"), [(1, 4), (2, 5), (3, 8), (30, 2)])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once_on_any_number_of_ranks(
    make: Any, size: int, batch: int, workers: int
) -> None:
    data = _config(data={"num_workers": workers}).data
    dataset = make(training=False)
    loaders = [EvalLoader(dataset, batch, _world(r, size), data) for r in range(size)]
    seen = [int(i) for loader in loaders for b in loader for i in b.indices]
    assert seen == list(range(23))
    assert sum(len(loader.bad) for loader in loaders) == 3


def test_evaluation_is_deterministic_and_shows_all_captions(make: Any) -> None:
    first, again = (list(EvalLoader(make(training=False), 5, _world())) for _ in range(2))
    assert all(_same(a, b) for a, b in zip(first, again, strict=True))
    assert {b.num_texts for b in first} == {3}


# Pretraining pairs and questions ---------------------------------------------------------------


def test_every_caption_makes_a_pair_and_every_transcript_its_own_span(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    spoken = Segment("text number 9", "transcript", 1.0, 2.0)
    records = [
        Record("v0", "a", (Segment("text number 1"), Segment("text number 2"), spoken)),
        Record("v1", "b", ()),
        Record("v2", "c", (spoken,)),
    ]
    path = tmp_path / "p.jsonl"
    write_records(path, records)
    options = sample_options(_config(), True)

    def pairs(texts: str) -> list[tuple[str, tuple[float, float]]]:
        store = open_records([path, path])  # two files read as one
        made = PretrainDataset("p", store, MadeReader(), tokenizer, options, texts)
        samples = [made.sample(i) for i in range(len(made))]
        for sample in samples:
            if sample.segment == (1.0, 2.0):
                assert sample.times.min() >= 1.0
                assert sample.times.max() < 2.0
        return [(s.id, s.segment) for s in samples]

    nan: Any = pytest.approx(float("nan"), nan_ok=True)
    assert pairs("caption") == [("a", (nan, nan)), ("a#1", (nan, nan))] * 2
    both = pairs("caption_and_transcript")
    assert [name for name, _ in both] == ["a", "a#1", "a#2", "c"] * 2
    assert both[2][1] == both[3][1] == (1.0, 2.0)
    assert [name for name, _ in pairs("paragraph")] == ["a", "a"]


def test_a_span_outside_the_video_fails_its_slot(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = tmp_path / "p.jsonl"
    write_records(path, [Record("v0", "a", (Segment("text", "transcript", 50.0, 60.0),))])
    made = PretrainDataset(
        "p", open_records([path]), MadeReader(), tokenizer, sample_options(_config(), True),
        "caption_and_transcript",
    )  # fmt: skip
    sample = made.sample(0)
    assert not sample.valid
    assert sample.error is not None
    assert sample.error.reason == "frame_unavailable"
    assert "50.000 to 60.0" in sample.error.detail


def test_the_store_reads_only_what_is_asked_and_sees_edits(tmp_path: Path) -> None:
    path = tmp_path / "part1.jsonl"
    write_records(path, [Record(f"v{i}", f"r{i}") for i in range(5)])
    store = open_records([path])
    assert [r.id for r in store] == [f"r{i}" for i in range(5)]
    assert store.files[0].parent.name == ".rushes"
    built = store.files[0].stat().st_mtime_ns
    assert open_records([path]).files[0].stat().st_mtime_ns == built  # made once
    write_records(path, [Record("w", "new")])
    assert [r.id for r in open_records([path])] == ["new"]
    with pytest.raises(IndexError):
        store[5]
    again = cast(RecordStore, __import__("pickle").loads(__import__("pickle").dumps(store)))
    assert again[4] == store[4]


def test_parts_are_read_in_natural_order(tmp_path: Path) -> None:
    for i in (1, 2, 10):
        write_records(tmp_path / f"part{i}.jsonl", [Record("v", f"p{i}")])
    assert [r.id for r in open_records([tmp_path / "part*.jsonl"])] == ["p1", "p2", "p10"]
    assert len(open_records([tmp_path / "part*.jsonl"], limit=2)) == 2


def test_a_twentieth_of_the_videos_is_held_out_the_same_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [Record(f"v{i // 2}", f"r{i}", split="train") for i in range(200)]
    write_records(path, [*rows, Record("t", "t", split="test")])

    def ids(split: str) -> Sequence[str]:
        return [r.video for r in open_records([path], split=split)]

    fit, held = ids("train:fit"), ids("train:holdout")
    assert not set(fit) & set(held)
    assert sorted([*fit, *held]) == sorted(r.video for r in rows)
    assert len(set(held)) == 5
    assert ids("test") == ["t"]


def test_many_records_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.arrow"
    count = 20_000
    write_store(path, (Record(f"v{i}", f"r{i}", (Segment("t" * 200),)) for i in range(count)))
    assert path.stat().st_size > 5_000_000
    before = pa.total_allocated_bytes()
    store = RecordStore([path])
    for index in range(0, count, 997):
        assert store[index].id == f"r{index}"
    assert store.find_text("caption", count - 1) == (count - 1, 0)
    assert store.count_texts("caption") == count
    assert pa.total_allocated_bytes() - before < 100_000  # mapped, not read
