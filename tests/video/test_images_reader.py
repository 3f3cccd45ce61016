"""A folder of JPEGs answers like a video."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.video.counter_video import number_of, picture

from rushes.errors import FrameUnavailable, RefusedVideo, StorageError, UnreadableVideo
from rushes.video.catalogue import open_catalogue
from rushes.video.doctor import examine
from rushes.video.limits import Limits
from rushes.video.readers import open_reader
from rushes.video.request import Audio, Box, Frames, FrameStatus, Request, Size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, width, height in (("video_frames", 320, 192), ("video_frames_lr", 80, 48)):
        out = tmp_path / kind / "clip"
        out.mkdir(parents=True)
        for i in range(12):
            # The small neighbours count from 100, so that a test sees where a picture came from.
            shown = i if kind == "video_frames" else 100 + i
            Image.fromarray(picture(shown, width, height)).save(out / f"clip_{i:03d}.jpg")
    return tmp_path / "video_frames"


def test_times_are_i_over_fps(folder: Path) -> None:
    reader = open_reader(open_catalogue(folder))
    info = reader.describe("clip")
    assert (info.num_frames, info.fps, info.width, info.height) == (12, 6.0, 320, 192)
    reply = reader.read(Request("clip", (Frames((0.0, 0.17, 1.0, 9.0)),)))
    assert [number_of(x) for x in reply.arrays["frames"]] == [0, 1, 6, 11]
    assert reply.status["frames"].tolist() == [0, 0, 0, 1]
    with pytest.raises(FrameUnavailable):
        reader.read(Request("clip", (Frames((2.0,)),), policy="strict"))


def test_the_sidecar_tells_the_rate(folder: Path) -> None:
    (folder / "frames.json").write_text(json.dumps({"fps": 3}))
    reader = open_reader(open_catalogue(folder))
    assert reader.describe("clip").duration == 4.0


def test_small_frames_come_from_the_small_folder(folder: Path) -> None:
    reader = open_reader(open_catalogue(folder))
    outputs = (
        Frames((0.5,), name="high"),
        Frames((0.5,), size=Size(48, 80), name="low"),
        Frames((0.5,), size=Size(96, 160), name="half"),
        Frames((0.5,), size=Size(24, 20), crop=Box(0, 160, 192, 160), name="crop"),
    )
    reply = reader.read(Request("clip", outputs))
    assert number_of(reply.arrays["high"][0]) == 3
    assert number_of(reply.arrays["low"][0]) == 103
    assert number_of(reply.arrays["half"][0]) == 3
    expected = reply.arrays["high"][0][:, 160:].reshape(24, 8, 20, 8, 3).mean((1, 3))
    assert np.abs(reply.arrays["crop"][0] - expected).mean() < 2


def test_frames_are_ordered_by_number(tmp_path: Path) -> None:
    out = tmp_path / "videos" / "v"
    out.mkdir(parents=True)
    for i in range(11):
        Image.fromarray(picture(i, 64, 48)).save(out / f"v_{i}.jpg")
    reader = open_reader(open_catalogue(tmp_path / "videos"))
    reply = reader.read(Request("v", (Frames((2 / 6, 10 / 6)),)))
    assert [number_of(x) for x in reply.arrays["frames"]] == [2, 10]


def test_what_images_cannot_give(folder: Path) -> None:
    reader = open_reader(open_catalogue(folder))
    with pytest.raises(FrameUnavailable, match="frames only"):
        reader.read(Request("clip", (Audio(0, 1),)))
    (folder / "clip" / "clip_003.jpg").write_bytes(b"no picture")
    with pytest.raises(UnreadableVideo, match="clip_003"):
        reader.read(Request("clip", (Frames((0.5,)),)))
    with pytest.raises(RefusedVideo):
        open_reader(open_catalogue(folder), limits=Limits(max_pixels=1000)).describe("clip")


@pytest.mark.attack
def test_a_folder_leads_to_no_other_file_and_never_hangs(folder: Path, tmp_path: Path) -> None:
    clip = folder / "clip"
    secret = Image.fromarray(picture(7, 320, 192))
    secret.save(tmp_path / "secret.jpg")
    linked = folder / "linked"
    linked.mkdir()
    (linked / "000.jpg").symlink_to(clip / "clip_003.jpg")  # another picture of the set
    reader = open_reader(open_catalogue(folder))
    reply = reader.read(Request("linked", (Frames((0.0,)),)))
    assert number_of(reply.arrays["frames"][0]) == 3
    (linked / "001.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(RefusedVideo, match=r"001\.jpg leads to .*secret") as caught:
        open_reader(open_catalogue(folder)).describe("linked")
    assert caught.value.reason == "hostile"
    os.mkfifo(clip / "clip_012.jpg")
    with pytest.raises(UnreadableVideo, match=r"clip_012\.jpg is no regular file"):
        open_reader(open_catalogue(folder)).read(Request("clip", (Frames((2.0,)),)))
    (clip / "clip_012.jpg").unlink()
    (clip / "clip_012.jpg").symlink_to(clip / "nothing")
    with pytest.raises(UnreadableVideo, match="no regular file"):
        open_reader(open_catalogue(folder)).describe("clip")


def test_a_rate_that_makes_it_endless_is_refused(folder: Path) -> None:
    (folder / "clip" / "frames.json").write_text('{"fps": 1e-300}')
    with pytest.raises(RefusedVideo, match="limit is 172800 s"):
        open_reader(open_catalogue(folder)).describe("clip")


@pytest.mark.parametrize(
    "text",
    [
        b"password=hunter2 \xff",
        b'{"fps": "hunter2"}',
        b'{"fps": 1' + b"0" * 400 + b"}",
        b"[" * 200_000,
    ],
)
def test_a_sidecar_without_a_rate_is_told_and_not_quoted(folder: Path, text: bytes) -> None:
    (folder / "clip" / "frames.json").write_bytes(text)
    with pytest.raises(StorageError, match=r"frames.json: needs a number `fps` \(\w+\)") as said:
        open_reader(open_catalogue(folder)).describe("clip")
    assert "hunter2" not in str(said.value)


def test_a_sidecar_leads_to_no_other_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"fps": 3}')
    (folder / "clip" / "frames.json").symlink_to(tmp_path / "other.json")
    with pytest.raises(StorageError, match="leads to another folder"):
        open_reader(open_catalogue(folder)).describe("clip")


def test_broken_pictures_are_missing_and_the_others_are_read(folder: Path) -> None:
    catalogue = open_catalogue(folder)
    (video,) = catalogue.ids()
    place = catalogue.locate(video).path
    files = sorted(place.glob("*.jpg"))
    files[1].write_bytes(files[1].read_bytes()[:150])
    files[3].write_bytes(b"no picture")
    reader = open_reader(catalogue)
    times = reader.describe(video).frame_times
    reply = reader.read(Request(video, (Frames(tuple(times.tolist())),)))
    missing = reply.status["frames"] == FrameStatus.MISSING
    assert np.flatnonzero(missing).tolist() == [1, 3]
    assert not reply.arrays["frames"][missing].any()
    assert all(picture.any() for picture in reply.arrays["frames"][~missing])
    with pytest.raises(UnreadableVideo, match=files[3].name):
        reader.read(Request(video, (Frames((float(times[3]),)),)))
    row = examine(catalogue.locate(video), deep=True)
    assert (row.status, row.reason) == ("damaged", "undecodable")
    assert (row.frames, row.frames_decoded) == (len(files), len(files) - 2)
    assert row.path == examine(catalogue.locate(video)).path == str(place)
