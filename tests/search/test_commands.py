"""Embed, score, index, search and answer by their commands, on real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rushes import VideoText
from rushes.cli import main
from rushes.datasets.record import Record
from rushes.datasets.record_store import open_records
from rushes.embeddings import read_tables
from rushes.errors import MetricError
from rushes.evaluation import evaluate_retrieval
from rushes.metrics import temporal_iou
from rushes.search.judge import judge_moments
from rushes.search.library import build_library, load_library


@pytest.fixture
def videos(tmp_path: Path, corpus: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for index in range(3):
        shutil.copy(corpus / "videos" / f"test_0000{index}.mp4", folder)
    return folder


def test_embed_and_score_agree_with_evaluation(
    tmp_path: Path, corpus: Path, retrieval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "emb"
    command = ["embed", str(corpus / "videos"), "--model", str(retrieval_run), "--out", str(out)]
    command += ["--annotations", str(corpus / "test.jsonl")]
    assert main(command) == 0
    assert "4 videos" in capsys.readouterr().out
    figures = tmp_path / "scores.json"
    assert main(["score", str(out), "--json", str(figures), "--bootstrap", "20"]) == 0
    assert "coverage 1.000" in capsys.readouterr().out
    found = json.loads(figures.read_text())["retrieval"]

    model = VideoText.from_pretrained(retrieval_run)
    from rushes.datasets.stretches import stretch_videos
    from rushes.search.library import open_folder

    _, reader = open_folder(corpus / "videos")
    decoded = stretch_videos(reader, model.tokenizer, model.options(), model.world, 2)
    records = list(open_records([corpus / "test.jsonl"], "auto", None, None))
    judged = evaluate_retrieval(model.encoder, decoded, records, model.config.evaluation)
    reader.close()
    for name in ("t2v_r1", "t2v_mean_rank", "v2t_mean_rank", "t2v_mean_reciprocal_rank"):
        assert found[name] == judged.metrics["retrieval"][name]


@pytest.mark.parametrize("level", ["frame", "clip"])
def test_levels_have_times(tmp_path: Path, videos: Path, retrieval_run: Path, level: str) -> None:
    out = tmp_path / level
    command = ["embed", str(videos), "--model", str(retrieval_run), "--out", str(out)]
    assert main([*command, "--level", level, "--format", "h5"]) == 0
    before = read_tables(out)[f"video_{level}"]
    assert len(before.keys) == 3
    assert (np.diff(before.times, axis=1) <= {"frame": 1.0, "clip": 4.4}[level] + 0.01).all()
    assert (before.num >= {"frame": 3, "clip": 1}[level]).all()
    # Run again: nothing is encoded anew, nothing is there twice.
    assert main([*command, "--level", level, "--format", "h5"]) == 0
    assert read_tables(out)[f"video_{level}"].keys == before.keys
    assert main([*command, "--level", "video", "--format", "h5"]) == 1


def test_moments_are_found_and_new_videos_added(
    tmp_path: Path, videos: Path, corpus: Path, retrieval_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VideoText.from_pretrained(retrieval_run)
    index = tmp_path / "index"
    library, failed = build_library(model, videos, index, progress=False)
    assert not failed
    assert library.ids == ["test_00000", "test_00001", "test_00002"]
    assert (index / "moments.faiss").is_file()

    encoded: list[str] = []
    inner = model.encode_records

    def counted(records: list[Record], *args: Any, **kwargs: Any) -> Any:
        encoded.extend(record.video for record in records)
        return inner(records, *args, **kwargs)

    monkeypatch.setattr(model, "encode_records", counted)
    shutil.copy(corpus / "videos" / "film_0000.mp4", videos)
    (videos / "broken.mp4").write_bytes(b"nothing" * 50)
    library, failed = build_library(model, videos, index, progress=False)
    assert set(encoded) == {"film_0000"}
    assert [error.video for error in failed] == ["broken"]
    assert len(library.ids) == 4

    # A window's own vector finds that window; without a video named, too.
    rows = [i for i, name in enumerate(library.videos) if name == "film_0000"]
    row = rows[len(rows) // 2]
    (best, *rest) = library.search(library.vectors[row], 5, "film_0000")
    # Random weights give near-equal vectors: the window itself ties with the best, at least.
    own = float(library.vectors[row] @ library.vectors[row])
    assert best.score == pytest.approx(own, abs=1e-5)
    assert (best.start, best.end) in {tuple(times) for times in library.times[rows].tolist()}
    assert all(moment.video == "film_0000" for moment in rest)
    span = (best.start, best.end)
    assert all(temporal_iou(span, (other.start, other.end)) < 0.3 for other in rest)
    assert library.search(library.vectors[row], 1)[0].score == pytest.approx(1, abs=1e-4)
    assert {m.video for m in library.neighbours(library.vectors[row], 4)} == set(library.ids)

    (videos / "test_00001.mp4").unlink()
    shutil.copy(videos / "test_00002.mp4", videos / "test_00000.mp4")
    encoded.clear()
    library, _ = build_library(model, videos, index, progress=False)
    assert set(encoded) == {"test_00000"}
    assert sorted(library.ids) == ["film_0000", "test_00000", "test_00002"]
    assert len(load_library(index, model, videos).ids) == 3


def test_the_commands_of_a_user(
    tmp_path: Path,
    videos: Path,
    retrieval_run: Path,
    qa_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = ["--model", str(retrieval_run)]
    assert main(["index", str(videos), *index, "--out", str(tmp_path / "index")]) == 0
    assert "3 videos" in capsys.readouterr().out
    search = ["search", "a red star", *index, "--index", str(tmp_path / "index"), "--top", "2"]
    assert main(search) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["score", "from", "to", "video"]
    assert main([*search, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 2
    assert found[0]["score"] >= found[1]["score"]
    assert main([*search, "--video", "absent"]) == 1
    assert "not among the 3 indexed" in capsys.readouterr().err
    clip = str(videos / "test_00000.mp4")
    assert main(["answer", clip, "what shape is it?", "--model", str(qa_run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    command = ["answer", clip, "which?", "--model", str(retrieval_run), "--options", "a", "b c"]
    assert main(command) == 0
    assert {line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines()} == {"a", "b c"}
    other = ["search", "x", "--model", str(qa_run), "--index", str(tmp_path / "index")]
    assert main(other) == 1
    assert "made by another model" in capsys.readouterr().err


def test_moments_are_judged_beside_chance(
    tmp_path: Path,
    corpus: Path,
    retrieval_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = VideoText.from_pretrained(retrieval_run)
    library, _ = build_library(
        model, corpus / "videos", tmp_path / "films", only=lambda name: "film" in name
    )
    records = list(open_records([corpus / "films.jsonl"], "auto", None, None))
    found = judge_moments(model, library, records)
    assert found["coverage"] == 1.0
    assert 0.02 < found["random"] < 0.2
    assert found["interval_95"][0] <= found["r1"] <= found["interval_95"][1]

    # A model that knows: each text gets the vector of the window nearest to its truth.
    spans = [(s.start, s.end) for s in records[0].segments if s.start is not None and s.end]
    captions = [s for s in records[0].segments if s.kind == "caption" and s.start is not None]

    def knowing(texts: list[str]) -> Any:
        rows = [
            max(range(len(library.videos)), key=lambda i: temporal_iou(tuple(library.times[i]), t))
            for t in ((float(s.start or 0), float(s.end or 0)) for s in captions)
        ]
        assert len(texts) == len(rows) <= len(spans)
        return library.vectors[rows]

    command = ["search", "--model", str(retrieval_run), "--index", str(tmp_path / "films")]
    assert main([*command, "--judge", str(corpus / "films.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(command) == 1
    assert main([*command, "a star", "--judge", str(corpus / "films.jsonl")]) == 1
    assert "either a text" in capsys.readouterr().err

    monkeypatch.setattr(model, "encode_text", knowing)
    assert judge_moments(model, library, records)["r1"] > 0.9
    with pytest.raises(MetricError, match="none of"):
        judge_moments(model, library, [Record("absent", segments=tuple(captions))])


@pytest.mark.use
@pytest.mark.needs_shared
@pytest.mark.slow
def test_the_users_own_folder(
    tmp_path: Path, shared: Path, retrieval_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real files from everywhere: indexed, searched, the bad ones named."""
    model = VideoText.from_pretrained(retrieval_run)
    short = [p.stem for p in (shared / "videos").iterdir() if p.stat().st_size < 300_000]
    library, failed = build_library(
        model,
        shared / "videos",
        tmp_path / "index",
        only=lambda name: Path(name).stem in short,
        progress=False,
    )
    assert len(library.ids) >= 5
    assert library.search(model.encode_text("a bird")[0], 3)
    assert all(error.reason for error in failed)
