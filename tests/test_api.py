"""The three-line API on real files: every form of a video, questions, folders, what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import rushes
from rushes import VideoText
from rushes.errors import CheckpointError, ConfigError, UnreadableVideo, VideoError
from tests.tiny_runs import make_corpus, save_run, tiny_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), test=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return save_run(tiny_config(corpus), tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="module")
def model(run: Path) -> VideoText:
    return VideoText.from_pretrained(run, device="cpu")


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_similarity_is_the_cosine_of_unit_vectors(model: VideoText, corpus: Path) -> None:
    videos = [corpus / "videos" / f"test_0000{i}.mp4" for i in range(3)]
    texts = ["a red star moves left", "a blue circle"]
    text_vectors, video_vectors = model.encode_text(texts), model.encode_video(videos)
    assert text_vectors.shape == (2, 32)
    assert video_vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(video_vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.similarity(texts, videos), text_vectors @ video_vectors.T)
    assert model.encode_video(videos, level="clip").shape == (3, 2, 32)
    # One alone, one of many: the same bits.
    np.testing.assert_array_equal(model.encode_video(str(videos[1]))[0], video_vectors[1])
    np.testing.assert_array_equal(model.encode_text(texts[1])[0], text_vectors[1])


def test_every_form_of_a_video_is_the_same_video(model: VideoText, corpus: Path) -> None:
    path = corpus / "videos" / "test_00001.mp4"
    pixels = frames_of(path)
    whole = model.encode_video(path)[0]
    np.testing.assert_array_equal(model.encode_video(path.read_bytes())[0], whole)
    array = model.encode_video(pixels, fps=25)[0]
    # Colours go through one more conversion, no more.
    assert float(array @ whole) > 0.999
    images = [Image.fromarray(frame) for frame in pixels]
    np.testing.assert_array_equal(model.encode_video(images, fps=25)[0], array)
    span = model.encode_video((path, 0.0, 2.0))[0]
    half = model.encode_video(pixels[:50], fps=25)[0]
    assert np.linalg.norm(span - half) < 0.7 * np.linalg.norm(span - whole)
    mixed: list[Any] = [path, pixels, (path, 0.0, 2.0), images]
    several = model.encode_video(mixed)
    np.testing.assert_array_equal(several, np.stack([whole, array, span, array]))


def test_questions_are_answered_and_options_chosen(
    tmp_path: Path, corpus: Path, model: VideoText
) -> None:
    video = corpus / "videos" / "test_00000.mp4"
    qa = VideoText.from_pretrained(save_run(tiny_config(corpus, "open_ended_qa"), tmp_path / "qa"))
    first, second = qa.answer(video, ["what shape is it?", "how many objects?"], top_k=4)
    assert len(first) == len(second) == 4
    assert {a.text for a in first} <= set(qa.answers)
    assert sum(a.probability for a in qa.answer(video, "what?", top_k=999)[0]) == pytest.approx(1)
    assert [a.probability for a in first] == sorted((a.probability for a in first), reverse=True)
    chosen = model.choose(video, ["a circle moves", "a star grows", "nothing"])
    scores = model.similarity(["a circle moves", "a star grows", "nothing"], video)[:, 0]
    assert chosen[0].text == ["a circle moves", "a star grows", "nothing"][int(scores.argmax())]
    with pytest.raises(ConfigError, match="open_ended_qa"):
        model.answer(video, "what?")
    with pytest.raises(ConfigError, match="retrieval"):
        qa.encode_text("what?")
    with pytest.raises(ConfigError, match="at least two"):
        model.choose(video, ["one"])


def test_a_saved_model_is_the_same_model(model: VideoText, tmp_path: Path, run: Path) -> None:
    model.results = {"retrieval": {"t2v_r1": 0.25, "num_videos": 3}}
    folder = model.save_pretrained(tmp_path / "model")
    again = VideoText.from_pretrained(folder)
    np.testing.assert_array_equal(again.encode_text("a star"), model.encode_text("a star"))
    assert again.results == model.results
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: rushes")
    assert "retrieval.t2v_r1 | 0.25" in card
    assert "train: train.jsonl | `" in card
    for source in (run / "checkpoints" / "best", run / "checkpoints" / "step_0000001"):
        other = VideoText.from_pretrained(source)
        np.testing.assert_array_equal(other.encode_text("a star"), model.encode_text("a star"))


def test_what_is_wrong_is_said(model: VideoText, tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        VideoText.from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="neither a model folder"):
        VideoText.from_pretrained(corpus)
    with pytest.raises(CheckpointError, match="hub gave no such model"):
        VideoText.from_pretrained("nobody/nothing")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 99)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        model.encode_video([corpus / "videos" / "test_00000.mp4", broken])
    with pytest.raises(VideoError, match="absent"):
        model.encode_video("absent.mp4")
    with pytest.raises(UnreadableVideo, match="expected uint8"):
        model.encode_video(np.zeros((4, 8, 8, 3), np.float32))
    with pytest.raises(UnreadableVideo, match="expected T H W 3"):
        model.encode_video([np.zeros((4, 8, 8), np.uint8)])


def test_the_package_offers_it_lazily(run: Path) -> None:
    assert rushes.VideoText is VideoText
    assert json.loads((run / "config.json").read_text())["task"] == "retrieval"
