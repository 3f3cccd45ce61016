"""A storage folder with everything that the published presets name, made from rendered videos.

The videos are few and short; formats, folders and file names are the real ones. Import `storage`
into a test module to use it. Tests may write into `data/output` only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from rushes.configs.load import load_config
from rushes.datasets.build import build_tokenizer
from rushes.distributed import SingleWorld
from rushes.modeling.build import build_model
from rushes.modeling.weights import published_state
from rushes.video import prepare, prepare_frames
from tests.footage_fixture import footage
from tests.helpers import ROOT

__all__ = ["PRETRAINED", "footage", "full_weights", "make_storage", "storage", "tiny_weights"]

PRETRAINED = Path("data") / "pretrained"
TINY = ROOT / "src" / "configs" / "tiny.json"
COUNTS = {"train": 8, "val": 2, "test": 4}
"""Videos of each split."""
VOCABULARY = 30522
"""Words of the published tokenizer."""

Row = dict[str, Any]


@pytest.fixture(scope="session")
def storage(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with weights of the sizes of tiny.json; parallel test processes make it once."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    out = base / "storage"
    with FileLock(base / "storage.lock"):
        if not (out / PRETRAINED).is_dir():
            make_storage(footage, out)
            tiny_weights(out)
    return out


def make_storage(footage: Path, root: Path) -> None:
    """Write videos, frame folders and annotations below `root`; no weights."""
    truth = _read(footage / "truth.jsonl")
    chosen = {
        split: [row for row in truth if row["split"] == split][:count]
        for split, count in COUNTS.items()
    }
    raw = root / "raw"
    raw.mkdir(parents=True)
    for row in (row for rows in chosen.values() for row in rows):
        shutil.copy(footage / row["path"], raw)
    videos = root / "data" / "msrvtt_retrieval" / "videos_6fps"
    small = ["--fps", "6", "--height", "192", "--gop", "6", "--no-progress", "--workers", "1"]
    assert prepare.main([str(raw), str(videos), *small]) == 0
    frames = root / "data" / "didemo_retrieval"
    quiet = ["--no-progress", "--workers", "1"]
    assert prepare_frames.main([str(videos), str(frames), *quiet]) == 0
    for place in ("hdvila/video_clips", "tgif_qa/videos_mp4"):
        _link(root / "data" / place, videos)
    for name in ("lsmdc_retrieval", "activitynet_retrieval"):
        for folder in ("video_frames", "video_frames_lr"):
            _link(root / "data" / name / folder, frames / folder)
    _captions(root / "data", chosen)
    _questions(footage, root / "data", {s: {r["id"] for r in rows} for s, rows in chosen.items()})


def _captions(data: Path, chosen: dict[str, list[Row]]) -> None:
    train = [_told(row, 5) for row in chosen["train"]]
    test = [_told(row, 1) for row in chosen["test"]]
    spoken = [{"clip_id": row["clip_id"], "text": text} for row in train for text in row["text"]]
    for part in (1, 2):
        _write(data / "hdvila" / "train_group" / f"part{part}.jsonl", spoken[part - 1 :: 4])
    for name, files in (
        ("msrvtt_retrieval", ("train9k", "test1ka")),
        ("didemo_retrieval", ("train_frame", "test_frame")),
        ("lsmdc_retrieval", ("train_101k_frame", "test_1k_frame")),
        ("activitynet_retrieval", ("train", "val1")),
    ):
        for file, rows in zip(files, (train, test), strict=True):
            _write(data / name / f"{file}.jsonl", rows)


def _told(row: Row, count: int) -> Row:
    return {"clip_id": f"{row['id']}.mp4", "text": row["captions"][:count]}


def _questions(footage: Path, data: Path, ids: dict[str, set[str]]) -> None:
    answers: dict[str, int] = {}
    for split, videos in ids.items():
        asked = [row for row in _read(footage / f"{split}_qa.jsonl") if row["video"] in videos]
        chosen = [row for row in _read(footage / f"{split}_mc.jsonl") if row["video"] in videos]
        open_ended = [_question(row, "video_id") for row in asked]
        _write(data / "msrvtt_qa" / f"{split}.jsonl", open_ended)
        _write(
            data / "tgif_qa" / f"frameqa_{split}.jsonl", [_question(r, "gif_name") for r in asked]
        )
        for kind in ("action", "transition"):
            rows = [{**_question(r, "gif_name"), "options": r["options"]} for r in chosen]
            _write(data / "tgif_qa" / f"{kind}_{split}.jsonl", rows)
        for row in open_ended if split == "train" else ():
            answers.setdefault(row["answer"], len(answers))
        if split == "test":
            rows = [
                {"clip_name": r["video"], "options": r["options"], "answer": r["answer"], "qid": i}
                for i, r in enumerate(chosen)
            ]
            _write(data / "msrvtt_retrieval" / "mc_test.jsonl", rows)
    for place in ("msrvtt_qa/train_ans2label.json", "tgif_qa/frameqa_trainval_ans2label.json"):
        (data / place).write_text(json.dumps(answers))


def _question(row: Row, key: str) -> Row:
    return {
        key: row["video"],
        "question": row["segments"][0]["text"],
        "answer": row["answer"],
        "answer_type": row["tags"]["answer_type"],
    }


def tiny_weights(root: Path) -> None:
    """Both pretrained files under published names, at the sizes of tiny.json, values random."""
    folder = root / PRETRAINED
    folder.mkdir(parents=True)
    for stage in (1, 2):
        argv = ["--config", f"pretrain_stage{stage}", "--config", str(TINY)]
        config = load_config([*argv, "--data_mount_dir", str(root), "--e2e_weights_path", "null"])
        tokenizer = build_tokenizer(config, SingleWorld(), root / "tokenizer")
        torch.manual_seed(stage)
        model = build_model(config, vocab_size=tokenizer.vocab_size)
        torch.save(published_state(model), folder / f"hdvila_stage{stage}.pt")


def full_weights(root: Path) -> None:
    """All pretrained files at published sizes; every tensor is one number, so they are small."""
    folder = root / PRETRAINED
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    words += [f"##{letter}" for letter in words[5:]]
    words += [f"[unused{i}]" for i in range(VOCABULARY - len(words))]
    (folder / "bert-base-uncased").mkdir()
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words) + "\n")
    for stage in (1, 2):
        config = load_config(["--config", f"pretrain_stage{stage}"])
        with torch.device("meta"):
            model = build_model(config, vocab_size=VOCABULARY)
        state = published_state(model)
        _save_hollow(folder / f"hdvila_stage{stage}.pt", state)
    images = {n.removeprefix("cnn."): v for n, v in state.items() if n.startswith("cnn.")}
    _save_hollow(folder / "res50_mmdetection.pth", {f"backbone.{n}": v for n, v in images.items()})
    bert = "transformer.bert."
    named = {n.removeprefix("transformer."): v for n, v in state.items() if n.startswith(bert)}
    (folder / "bert-large-uncased").mkdir()
    _save_hollow(folder / "bert-large-uncased" / "pytorch_model.bin", named)


def _save_hollow(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({name: torch.ones(()).expand(value.shape) for name, value in state.items()}, path)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=True)


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, rows: Iterable[Row] | Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
