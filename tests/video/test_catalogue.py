"""One place says which bytes hold a video, and no id leads elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rushes.errors import (
    AnnotationError,
    MissingVideo,
    RefusedVideo,
    StorageError,
    UnreadableVideo,
)
from rushes.video.catalogue import Catalogue, open_catalogue


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_folder_finds_ids_with_and_without_endings(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "sub" / "b.1.webm")
    touch(tmp_path / "c.mp4")
    touch(tmp_path / "c.mkv")
    touch(tmp_path / "odd.ts")
    touch(tmp_path / "notes.txt")
    catalogue = open_catalogue(tmp_path)
    assert list(catalogue.ids()) == ["a", "c.mkv", "c.mp4", "odd", "sub/b.1"]
    assert catalogue.locate("a").path == tmp_path / "a.mp4"
    assert catalogue.locate("a.mp4").path == tmp_path / "a.mp4"
    assert catalogue.locate("sub/b.1").path.name == "b.1.webm"
    assert catalogue.locate("odd").path.name == "odd.ts"
    for video_id in catalogue.ids():
        assert catalogue.locate(video_id).path.is_file()
    assert "a" in catalogue
    assert "nothing" not in catalogue
    with pytest.raises(MissingVideo, match="nothing"):
        catalogue.locate("nothing")


def test_pretraining_clips_lie_in_the_folder_of_their_video(tmp_path: Path) -> None:
    clip = touch(tmp_path / "abc" / "abc.7.mp4")
    assert open_catalogue(tmp_path).locate("abc.7.mp4").path == clip
    assert open_catalogue(tmp_path).locate("abc.7").path == clip
    part = touch(tmp_path / "part1" / "xyz" / "xyz.3.mp4")
    assert open_catalogue(tmp_path).locate("part1/xyz.3.mp4").path == part


@pytest.mark.attack
@pytest.mark.parametrize(
    "video_id",
    ["../secret", "a/../../secret", "/etc/passwd", "http://host/a.mp4", "..\\secret", "", "a\0b"],
)
def test_no_id_leaves_the_root(tmp_path: Path, video_id: str) -> None:
    touch(tmp_path / "secret.mp4")
    (tmp_path / "root").mkdir()
    with pytest.raises((RefusedVideo, MissingVideo)):
        open_catalogue(tmp_path / "root", "video").locate(video_id)


@pytest.mark.attack
def test_no_link_leaves_the_root(tmp_path: Path) -> None:
    secret = touch(tmp_path / "secret.mp4")
    root = tmp_path / "root"
    touch(root / "fine.mp4")
    (root / "out.mp4").symlink_to(secret)
    (root / "inside.mp4").symlink_to(root / "fine.mp4")
    catalogue = open_catalogue(root)
    with pytest.raises(RefusedVideo, match="outside") as caught:
        catalogue.locate("out")
    assert caught.value.reason == "hostile"
    assert catalogue.locate("inside").path.name == "inside.mp4"


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_manifest_names_paths(tmp_path: Path, ending: str) -> None:
    clip = touch(tmp_path / "media" / "a.mp4")
    manifest = tmp_path / f"list.{ending}"
    rows = [("one", "media/a.mp4"), ("two", str(clip)), ("gone", "media/b.mp4")]
    if ending == "csv":
        manifest.write_text("id,path\n" + "".join(f"{i},{p}\n" for i, p in rows))
    else:
        manifest.write_text("".join(json.dumps({"id": i, "path": p}) + "\n" for i, p in rows))
    catalogue = open_catalogue(manifest)
    assert list(catalogue.ids()) == ["gone", "one", "two"]
    assert catalogue.locate("one").path == catalogue.locate("two").path == clip
    with pytest.raises(MissingVideo, match="does not exist"):
        catalogue.locate("gone")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"id": "a"}', AnnotationError),
        ("no json", AnnotationError),
        ("[1, 2]", AnnotationError),
        ('{"id": "a", "path": null}', AnnotationError),
        ('{"id": "a", "path": "x\\u0000.mp4"}', AnnotationError),
        ('{"id": "a", "path": "../x.mp4"}', RefusedVideo),
        ('{"id": "a", "path": "http://x/y.mp4"}', RefusedVideo),
    ],
)
def test_a_wrong_manifest_line_is_told(tmp_path: Path, line: str, error: type[Exception]) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"id": "fine", "path": "b.mp4"}\n' + line + "\n")
    with pytest.raises(error) as caught:
        open_catalogue(manifest)
    if error is AnnotationError:
        assert "list.jsonl:2" in str(caught.value)


def test_image_folders_and_their_small_neighbours(tmp_path: Path) -> None:
    for name in ("frames/v1/v1_000.jpg", "frames_lr/v1/v1_000.jpg", "frames/deep/v2/a_0.jpg"):
        touch(tmp_path / name)
    catalogue = open_catalogue(tmp_path / "frames")
    assert catalogue.kind == "images"
    assert list(catalogue.ids()) == ["deep/v2", "v1"]
    assert catalogue.locate("v1").low == tmp_path / "frames_lr" / "v1"
    assert catalogue.locate("deep/v2").low is None


def test_items_in_memory() -> None:
    catalogue = Catalogue.from_items({"x": b"abc"})
    assert catalogue.locate("x").data == b"abc"
    with pytest.raises(MissingVideo):
        catalogue.locate("y")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="neither"):
        open_catalogue(tmp_path / "missing")


@pytest.mark.parametrize("video_id", ["../../escaped", "/tmp/absolute", "x/../y", "a\0b"])
def test_a_manifests_ids_lead_nowhere(tmp_path: Path, video_id: str) -> None:
    """Prepared files are named by them."""
    touch(tmp_path / "a.mp4")
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"id": video_id, "path": "a.mp4"}) + "\n")
    with pytest.raises(RefusedVideo) as caught:
        open_catalogue(manifest)
    assert caught.value.reason == "hostile"


def test_what_a_killed_run_left_is_no_video(tmp_path: Path) -> None:
    touch(tmp_path / "video_frames" / "a" / "a_000.jpg")
    touch(tmp_path / "video_frames" / ".b.123.part" / "b_000.jpg")
    assert list(open_catalogue(tmp_path / "video_frames", "frame").ids()) == ["a"]


@pytest.mark.attack
@pytest.mark.parametrize(
    "video_id",
    ["x" * 5000, "a/" * 3000, "a/" + "x" * 5000 + "/b", "\ud800", "\ud800/b", "a/\ud800.x"],
)
@pytest.mark.parametrize("kind", ["video", "frame"])
def test_names_that_no_file_can_have_are_missing(tmp_path: Path, video_id: str, kind: str) -> None:
    touch(tmp_path / "a" / "a.mp4")
    catalogue = open_catalogue(tmp_path, kind)  # type: ignore[arg-type]
    with pytest.raises(MissingVideo):
        catalogue.locate(video_id)
    assert video_id not in catalogue
    with pytest.raises(MissingVideo, match="does not exist"):
        Catalogue.from_items({"v": video_id}).locate("v")


def test_the_folder_itself_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.mp4")
    monkeypatch.chdir(tmp_path)
    for root in (".", str(tmp_path)):
        for video_id in (".", "./", "./."):
            with pytest.raises((MissingVideo, RefusedVideo)):
                open_catalogue(root).locate(video_id)


@pytest.mark.attack
def test_a_listed_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    catalogue = Catalogue.from_items({"p": tmp_path / "pipe.mp4"})
    with pytest.raises(UnreadableVideo, match="no regular file") as caught:
        catalogue.locate("p")
    assert caught.value.reason == "not_video"
    assert "p" not in catalogue


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("list.csv", b"id,path\na,b.mp4\nb,\xff.mp4\n"),
        ("list.csv", b"id,path\na,b.mp4,c.mp4,d\nb,,x\n"),
        ("list.csv", b"id,path\na," + b"x" * 200_000 + b"\n"),
        ("list.jsonl", b'{"id": "a", "path": "\xff"}\n'),
    ],
)
def test_a_manifest_that_is_no_text_is_told(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationError, match=name):
        open_catalogue(tmp_path / name)


def test_a_manifest_may_name_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "list.jsonl").write_text('{"id": "a", "path": "loop.mp4"}\n')
    with pytest.raises(MissingVideo):
        open_catalogue(tmp_path / "list.jsonl").locate("a")
