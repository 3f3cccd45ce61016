"""From a config to loaders, on real files: made videos, image folders, bad ones among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe

from rushes.configs.load import build_config
from rushes.configs.schema import RunConfig
from rushes.datasets.annotation_commands import write_records
from rushes.datasets.annotations import Record, Segment
from rushes.datasets.build import (
    FrameSources,
    build_answers,
    build_eval_loaders,
    build_tokenizer,
    build_train_loader,
    build_videos,
    check_held_out,
    evaluation_sets,
    read_answers,
    resolve_path,
)
from rushes.datasets.record_store import splits_overlap
from rushes.distributed import SingleWorld
from rushes.errors import AnnotationError, ConfigError
from rushes.video.request import Frames, Request
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer, ServerOptions
from tests.helpers import launch

WORLD = SingleWorld()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real videos, one truncated, one absent, with captions, questions and choices."""
    root = tmp_path_factory.mktemp("storage")
    (root / "videos").mkdir()
    for i in range(6):
        source = f"testsrc=s=160x96:r=10:d={2 + i % 2}"
        command = [get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
        launch([*command, "-g", "5", root / "videos" / f"v{i}.mp4"])
    whole = (root / "videos" / "v5.mp4").read_bytes()
    (root / "videos" / "v5.mp4").write_bytes(whole[: len(whole) // 3])
    names = [f"v{i}" for i in range(7)]
    captions = [Record(n, f"c{n}", (Segment(f"clip {n}"), Segment("a test"))) for n in names]
    write_records(root / "captions.jsonl", captions)
    asked = [
        Record(n, f"q{n}{k}", (Segment("which one?", "question"),), answer=answer)
        for k, answer in enumerate(("red", "blue"))
        for n in names
    ]
    write_records(root / "qa.jsonl", asked)
    options = ("one", "two", "three")
    write_records(root / "mc.jsonl", [Record(n, f"m{n}", options=options, answer=1) for n in names])
    return root


def _config(storage: Path, task: str, file: str, **over: Any) -> RunConfig:
    sets = [{"name": "set", "annotations": [file], "videos": "videos"}]
    data = {"mount_dir": str(storage), "train": sets, "test": sets, "num_workers": 2}
    values: dict[str, Any] = {
        "task": task,
        "geometry": {"high_size": [64, 96]},
        "clips": {"num_clips": 1, "eval_num_clips": 2, "num_frames": 3, "span": "whole"},
        "data": {**data, **over.pop("data", {})},
        "train": {"batch_size": 7},
        "evaluation": {"batch_size": 4},
        "model": {"text": {"max_length": 12, "vocab_size": 200}},
        **over,
    }
    return build_config(values)


def test_training_batches_from_real_files(storage: Path, tmp_path: Path) -> None:
    config = _config(storage, "retrieval", "captions.jsonl")
    tokenizer = build_tokenizer(config, WORLD, tmp_path)
    loader = build_train_loader(config, WORLD, tokenizer)
    batches = loader.batches(0)
    (batch,) = next(batches)
    assert sorted(batch.ids) == [f"cv{i}" for i in range(7)]
    valid = dict(zip(batch.ids, batch.valid.tolist(), strict=True))
    assert [name for name, ok in valid.items() if not ok] == [
        name for name in batch.ids if name in ("cv5", "cv6")
    ]
    assert {b.id: b.reason for b in loader.bad} == {"cv5": "truncated", "cv6": "missing"}
    assert batch.high is not None
    assert batch.low is not None
    assert (batch.high.shape, batch.low.shape) == ((7, 1, 3, 64, 96), (7, 1, 2, 3, 16, 24))
    assert batch.high[batch.valid].float().std() > 30
    batches.close()  # type: ignore[attr-defined]
    loader.close()


def test_evaluation_batches_and_videos_alone(storage: Path, tmp_path: Path) -> None:
    config = _config(storage, "retrieval", "captions.jsonl")
    tokenizer = build_tokenizer(config, WORLD, tmp_path)
    sources = FrameSources(config, WORLD)
    (loader,) = build_eval_loaders(config, "test", WORLD, tokenizer, sources=sources)
    first, second = list(loader)
    assert (first.num_texts, len(first), len(second)) == (2, 4, 3)
    assert len({int(k) for k in first.text_key}) == 5  # type: ignore[union-attr]
    videos = build_videos(config, config.data.test[0], WORLD, tokenizer, sources)
    alone = list(videos([Record("v2", "x"), Record("v0", "y", start=1.0, end=1.5)]))
    assert alone[0].indices.tolist() == [0, 1]
    assert torch.equal(alone[0].high[0], first.high[2])  # type: ignore[index]
    assert alone[0].times[1].min() >= 1.0  # type: ignore[index]
    assert alone[0].times[1].max() < 1.5  # type: ignore[index]
    sources.close()


def test_questions_are_grouped_and_a_video_is_decoded_once(storage: Path, tmp_path: Path) -> None:
    config = _config(storage, "open_ended_qa", "qa.jsonl")
    tokenizer = build_tokenizer(config, WORLD, tmp_path)
    answers = build_answers(config)
    assert answers == {"blue": 0, "red": 1}
    (loader,) = build_eval_loaders(config, "test", WORLD, tokenizer)
    reader: Any = loader.dataset.reader
    read, count = reader.read, []

    def counted(request: Any) -> Any:
        count.append(request.video_id)
        return read(request)

    reader.read = counted
    batches = list(loader)
    ids = [name for b in batches for name in b.ids]
    assert [name[1:3] for name in ids[:4]] == ["v0", "v0", "v1", "v1"]
    assert sorted(set(count)) == sorted(count)
    assert batches[0].labels is not None
    assert batches[0].labels.tolist() == [1, 0, 1, 0]


def test_options_stand_beside_each_other(storage: Path, tmp_path: Path) -> None:
    config = _config(storage, "multiple_choice", "mc.jsonl")
    tokenizer = build_tokenizer(config, WORLD, tmp_path)
    (loader,) = build_eval_loaders(config, "test", WORLD, tokenizer)
    batch = next(iter(loader))
    assert batch.num_texts == 3
    assert batch.text_ids is not None
    assert [tokenizer.decode(row) for row in batch.text_ids[:3].numpy()] == ["one", "two", "three"]
    wrong = _config(storage, "open_ended_qa", "captions.jsonl")
    with pytest.raises(AnnotationError, match="'cv0' has no question"):
        next(iter(build_eval_loaders(wrong, "test", WORLD, tokenizer)[0]))


@pytest.mark.parametrize("mode", ["published", "native"])
def test_image_folders_with_their_small_neighbours(tmp_path: Path, mode: str) -> None:
    for folder, (height, width) in (("video_frames", (360, 576)), ("video_frames_lr", (180, 288))):
        path = tmp_path / folder / "clip"
        path.mkdir(parents=True)
        for i in range(1, 15):
            frame = np.full((height, width, 3), i * 15, dtype=np.uint8)
            cv2.imwrite(str(path / f"clip_{i:03d}.jpg"), frame)
    row = {"clip_id": "clip", "text": "grey grows", "num_frame": 14}
    (tmp_path / "train_frame.jsonl").write_text(json.dumps(row))
    entry = {
        "name": "frames", "annotations": ["train_frame.jsonl"], "videos": "video_frames",
        "vis_format": "frame", "videos_low": "video_frames_lr",
    }  # fmt: skip
    geometry: dict[str, Any] = {"mode": mode, "high_size": [640, 1024]}
    if mode == "published":
        geometry.update(resize=[180, 288], crop=[160, 256])
    clips = {"sampling": "frames", "num_frames": 5, "stride": 1, "num_clips": 1}
    config = _config(
        tmp_path, "retrieval", "", data={"train": [entry], "test": [entry]}, geometry=geometry,
        clips=clips, train={"batch_size": 1},
    )  # fmt: skip
    loader = build_train_loader(config, WORLD, build_tokenizer(config, WORLD, tmp_path / "tok"))
    (batch,) = loader.step(0)
    assert batch.valid.all(), loader.bad
    assert batch.high is not None
    assert batch.low is not None
    assert batch.high.shape == (1, 1, 3, 640, 1024)
    levels = [float(batch.low[0, 0, k].float().mean()) for k in range(4)]
    levels.insert(2, float(batch.high.float().mean()))
    assert np.allclose(np.diff(levels), 15, atol=1.5)
    loader.close()


def test_the_tokenizer_is_taken_from_where_the_weights_lie(storage: Path, tmp_path: Path) -> None:
    config = _config(storage, "retrieval", "captions.jsonl")
    first = build_tokenizer(config, WORLD, tmp_path / "run" / "checkpoints" / "best" / "tokenizer")
    model = {"weights": {"model": str(tmp_path / "run")}, "text": {"max_length": 5}}
    later = build_config({"data": {"mount_dir": str(tmp_path)}, "model": model})
    again = build_tokenizer(later, WORLD, tmp_path / "other")
    assert again.backend.get_vocab() == first.backend.get_vocab()
    assert again.max_length == 5


def test_where_relative_paths_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rushes.datasets.build.CONTAINER_MOUNT", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    assert resolve_path(build_config({}), "a") == tmp_path / "a"
    monkeypatch.setattr("rushes.datasets.build.CONTAINER_MOUNT", tmp_path)
    assert resolve_path(build_config({}), "a") == tmp_path / "a"
    monkeypatch.setenv("PATH_TO_STORAGE", "/storage")
    assert resolve_path(build_config({}), "a") == Path("/storage/a")
    mounted = build_config({"data": {"mount_dir": "/mine"}})
    assert resolve_path(mounted, "a") == Path("/mine/a")
    assert resolve_path(mounted, "/b") == Path("/b")


def test_inference_flags_replace_annotations_and_videos() -> None:
    entry = {"name": "test", "annotations": ["a"], "videos": "v", "split": "test"}
    chosen = {"enabled": True, "annotations": "b/mc.jsonl", "videos": "w"}
    config = build_config({"data": {"test": [entry]}, "inference": chosen})
    (found,) = evaluation_sets(config, "val")
    assert (found.name, found.annotations, found.videos, found.split) == (
        "mc", ("b/mc.jsonl",), "w", None,
    )  # fmt: skip
    plain = build_config({"data": {"test": [entry]}})
    assert evaluation_sets(plain, "test")[0].annotations == ("a",)
    with pytest.raises(ConfigError, match=r"data\.validation is empty"):
        evaluation_sets(plain, "val")
    with pytest.raises(ConfigError, match="split='dev'"):
        evaluation_sets(plain, "dev")


def test_answer_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    for text in ("[1]", '{"a": "0"}', '{"a": 0, "b": 0}', "{"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"answers\.json"):
            read_answers(path)


def test_unknown_places_of_frames_are_refused(storage: Path) -> None:
    config = _config(storage, "retrieval", "captions.jsonl", data={"frames": "nowhere"})
    with pytest.raises(ConfigError, match=r"data\.frames='nowhere'"):
        FrameSources(config, WORLD).open(config.data.train[0])


def test_servers_are_asked_for_their_own_folder_only(storage: Path) -> None:
    """An id may mean another video in another folder, whose files the servers do not show."""
    (storage / "others").mkdir(exist_ok=True)
    (storage / "others" / "v0.mp4").write_bytes((storage / "videos" / "v1.mp4").read_bytes())
    elsewhere = {"name": "b", "annotations": ["captions.jsonl"], "videos": "others"}
    served = _config(storage, "retrieval", "captions.jsonl")
    options = ServerOptions(port=0, num_workers=1, slot_bytes=8 << 20)
    with FrameServer(with_catalogue(storage / "videos"), options) as server:
        frames = {"frames": f"flight://127.0.0.1:{server.port}", "validation": [elsewhere]}
        config = _config(storage, "retrieval", "captions.jsonl", data=frames)
        sources, plain = FrameSources(config, WORLD), FrameSources(served, WORLD)
        for dataset in (config.data.train[0], config.data.validation[0]):
            request = Request("v0", (Frames((1.0,)),))
            found = sources.open(dataset).read(request).arrays["frames"]
            wanted = plain.open(dataset).read(request).arrays["frames"]
            np.testing.assert_array_equal(found, wanted)
        assert server.counters.get()["reads"] == 1
        sources.close()
        plain.close()


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (None, None, True),
        (None, "test", True),
        ("train", "test", False),
        ("fit", "holdout", False),
        ("train:fit", "train:holdout", False),
        ("train:holdout", "test", False),
        ("train:holdout", "train", True),
        ("holdout", "test", True),
    ],
)
def test_splits_of_one_file(one: str | None, other: str | None, overlap: bool) -> None:
    assert splits_overlap(one, other) == splits_overlap(other, one) == overlap


def test_checkpoints_are_never_picked_on_the_test_split(tmp_path: Path) -> None:
    (tmp_path / "part1.jsonl").write_text("")

    def config(validation: dict[str, str], test: dict[str, str]) -> RunConfig:
        sets = {
            name: [{"name": name, "videos": "v", "split": split, "annotations": [file]}]
            for name, given in (("validation", validation), ("test", test))
            for file, split in given.items()
        }
        return build_config({"data": {"mount_dir": str(tmp_path), **sets}})

    check_held_out(config({"part1.jsonl": "train:holdout"}, {"part1.jsonl": "test"}))
    check_held_out(config({"val.jsonl": "test"}, {"part1.jsonl": "test"}))
    with pytest.raises(ConfigError, match=r"'validation' .* share .*part1\.jsonl: .* never picked"):
        check_held_out(config({"./part1.jsonl": "test"}, {"part*.jsonl": "test"}))
