"""The doctor's table: every status and reason, in parallel, as JSON and for people."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.video.conftest import Rendered
from tests.video.counter_video import picture

from rushes.errors import DecodeTimeout, WorkerDied
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.doctor import doctor, main, printable
from rushes.video.store_build import build_store
from rushes.video.store_format import StoreSettings


@pytest.fixture
def corpus(counter: Rendered, tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    good = counter("h264_sound.mp4")[1].read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "turned.mp4").write_bytes(counter("h264_turned90.mp4")[1].read_bytes())
    clip = counter("vp9.webm")[1].read_bytes()
    (folder / "cut.webm").write_bytes(clip[: len(clip) * 6 // 10])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"this is no video")
    (folder / "list.mp4").write_bytes(b"#EXTM3U\nok.ts\n")
    return folder


@pytest.mark.parametrize("deep", [False, True])
def test_every_file_gets_its_row(corpus: Path, tmp_path: Path, deep: bool) -> None:
    out = tmp_path / "out.json"
    assert main([str(corpus), "--quiet", "--json", str(out), *(["--deep"] if deep else [])]) == 1
    rows = {Path(row["path"]).name: row for row in json.loads(out.read_text())["rows"]}
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        "good.mp4": ("ok", ""),
        "turned.mp4": ("ok", ""),
        "cut.webm": ("damaged", "truncated"),
        "empty.mp4": ("refused", "empty"),
        "text.mp4": ("refused", "not_video"),
        "list.mp4": ("refused", "hostile"),
    }
    good, cut = rows["good.mp4"], rows["cut.webm"]
    assert (good["frames"], good["width"], good["height"], good["codec"]) == (60, 160, 96, "h264")
    assert good["audio"] == ["aac"]
    assert good["frames_decoded"] == (60 if deep else None)
    assert 0 < cut["frames_decoded"] < 60
    assert (rows["turned.mp4"]["rotation"], rows["turned.mp4"]["width"]) == (270, 96)


def test_the_table_and_the_exit_status(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(corpus / "good.mp4"), "--quiet"]) == 0
    assert "1 files: 1 ok" in capsys.readouterr().out
    assert main([str(tmp_path / "missing"), "--quiet"]) == 2
    (tmp_path / "nothing").mkdir()
    assert main([str(tmp_path / "nothing"), "--quiet"]) == 2


def test_paths_keep_their_order(corpus: Path) -> None:
    paths = [corpus / "text.mp4", corpus / "good.mp4", corpus / "empty.mp4"]
    rows = doctor(paths, workers=2, progress=False)
    assert [row.reason for row in rows] == ["not_video", "", "empty"]


@pytest.mark.attack
def test_what_is_no_file_gets_its_row_too(corpus: Path, tmp_path: Path) -> None:
    for name in ("turned.mp4", "cut.webm", "empty.mp4", "text.mp4", "list.mp4"):
        (corpus / name).unlink()
    os.mkfifo(corpus / "pipe.mp4")
    (corpus / "folder.mp4").mkdir()
    shutil.copy(corpus / "good.mp4", corpus / "folder.mp4" / "inside.mp4")
    shutil.copy(corpus / "good.mp4", tmp_path / "outside.mp4")
    (corpus / "dangling.mp4").symlink_to(corpus / "nothing")
    (corpus / "loop.mp4").symlink_to(corpus / "loop.mp4")
    (corpus / "away.mp4").symlink_to(tmp_path / "outside.mp4")
    (corpus / "away_nowhere.mp4").symlink_to(tmp_path / "nothing")
    (corpus / "link.mp4").symlink_to(corpus / "good.mp4")
    rows = doctor(open_catalogue(corpus), progress=False, workers=2)
    assert {Path(row.path).name: (row.status, row.reason) for row in rows} == {
        "good.mp4": ("ok", ""),
        "link.mp4": ("ok", ""),
        "inside.mp4": ("ok", ""),
        "pipe.mp4": ("refused", "not_video"),
        "folder.mp4": ("refused", "not_video"),
        "dangling.mp4": ("refused", "not_video"),
        "loop.mp4": ("refused", "not_video"),
        "away.mp4": ("refused", "hostile"),
        "away_nowhere.mp4": ("refused", "hostile"),
    }
    assert [row.path for row in rows] == sorted(row.path for row in rows)


@pytest.mark.attack
def test_nothing_is_told_of_what_files_outside_hold(tmp_path: Path) -> None:
    """A manifest may come from a stranger, and the report may go back."""
    (tmp_path / "secret").write_bytes(b"root:secret words")
    manifest = tmp_path / "corpus" / "m.jsonl"
    manifest.parent.mkdir()
    (manifest.parent / "page.mp4").write_bytes(b"<!DOCTYPE html>")
    (manifest.parent / "link.mp4").symlink_to(tmp_path / "secret")
    paths = [tmp_path / "secret", manifest.parent / "link.mp4", manifest.parent / "page.mp4"]
    rows = [json.dumps({"id": str(n), "path": str(path)}) for n, path in enumerate(paths)]
    manifest.write_text("\n".join(rows))
    told = doctor(open_catalogue(manifest), progress=False, workers=1)
    assert [row.reason for row in told] == ["not_video"] * 3
    assert not any("root" in row.detail or "secret" in row.detail for row in told[:2])
    assert "<!DOCTYPE ht" in told[2].detail


@pytest.mark.attack
def test_names_cannot_break_the_table(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = corpus / "good.mp4"
    for name in (
        b"new\nline.mp4",
        b"esc\x1b[2Jape.mp4",
        b"no text \xff.mp4",
        "\xfcn\xef.mp4".encode(),
    ):
        shutil.copy(good, corpus / os.fsdecode(name))
    out = tmp_path / "rows.json"
    main([str(corpus), "--quiet", "--json", str(out)])
    shown = capsys.readouterr().out.splitlines()
    told = json.loads(out.read_text())["rows"]
    assert len(shown) == len(told) + 2 == 12
    for text in ("new\\nline.mp4", "esc\\x1b[2Jape.mp4", "no text \\udcff.mp4", "\xfcn\xef.mp4"):
        assert sum(line.endswith(f"/{text}") and line.startswith("ok") for line in shown) == 1
    assert {os.fsencode(row["path"]) for row in told} >= {
        os.fsencode(corpus) + b"/no text \xff.mp4"
    }
    assert printable("a\tb\u202ec") == "a\\tb\\u202ec"


@pytest.mark.fault
def test_files_that_hang_or_kill_get_their_rows(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: Any, items: Any, names: Any, **limits: Any) -> Iterator[tuple[int, Any]]:
        assert limits["timeout"] > 0
        assert limits["memory"] > 0
        yield 1, WorkerDied(names[1], "signal 9")
        yield 0, DecodeTimeout(names[0], "it took more than 3600 s")

    monkeypatch.setattr("rushes.video.doctor.run_jobs", lost)
    rows = doctor([corpus / "good.mp4", corpus / "text.mp4"], progress=False)
    assert [(row.status, row.reason) for row in rows] == [
        ("refused", "timeout"),
        ("refused", "worker_died"),
    ]


@pytest.mark.parametrize("deep", [False, True])
def test_stores_and_image_folders_are_examined(corpus: Path, tmp_path: Path, deep: bool) -> None:
    catalogue = Catalogue.from_items({"v": corpus / "good.mp4"})
    build_store(catalogue, tmp_path / "store", StoreSettings(), jobs=0)
    (row,) = doctor(open_catalogue(tmp_path / "store"), deep, progress=False)
    assert (row.path, row.status, row.frames) == (str(tmp_path / "store" / "v"), "ok", 60)
    assert row.frames_decoded == (60 if deep else None)
    clips = tmp_path / "images"
    for name in ("a", "b"):
        (clips / name).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(picture(number, 96, 64))
            image.save(clips / name / f"{number:03d}.jpg")
    torn = clips / "b" / "002.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    first, second = doctor(open_catalogue(clips), deep, progress=False)
    assert (first.status, first.frames, first.frames_decoded) == ("ok", 3, 3 if deep else None)
    assert (second.status, second.reason) == (("damaged", "undecodable") if deep else ("ok", ""))
    (clips / "a" / "frames.json").write_text("{}")
    first, _ = doctor(open_catalogue(clips), progress=False)
    assert (first.status, first.reason) == ("refused", "undecodable")


def test_a_report_that_cannot_be_written_is_told_at_once(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rushes.video.doctor.doctor", None)
    (tmp_path / "file").touch()
    for out in ("/proc/nope/x.json", str(tmp_path / "file" / "x.json"), str(tmp_path)):
        assert main([str(corpus), "--json", out]) == 2
        assert f"rushes doctor: {out}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--workers", "0"], "workers=0: expected at least 1"),
        (["--workers", "-3"], "workers=-3: expected at least 1"),
        (["--max-pixels", "-1"], "max_pixels=-1: expected at least 1"),
    ],
)
def test_nonsense_is_refused(
    corpus: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert main([str(corpus), *flags]) == 2
    assert told in capsys.readouterr().err


def test_every_ending_of_a_video_is_listed(counter: Rendered, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    stream = counter("mpeg2.mpg")[1].read_bytes()
    endings = (
        "vob",
        "mts",
        "m2ts",
        "mxf",
        "mjpeg",
        "f4v",
        "wtv",
        "ogm",
        "3g2",
        "divx",
        "rm",
        "MTS",
    )
    for ending in endings:
        (folder / f"{ending}.{ending}").write_bytes(stream)
    (folder / "notes.txt").write_bytes(b"none")
    rows = doctor(open_catalogue(folder), progress=False, workers=1)
    assert sorted(Path(row.path).name for row in rows) == sorted(f"{e}.{e}" for e in endings)
    assert {row.status for row in rows} == {"ok"}


def test_a_raw_mjpeg_stream_is_refused_with_what_to_do(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    path = tmp_path / "a.mjpeg"
    path.write_bytes((tmp_path / "a.jpg").read_bytes() * 3)
    (row,) = doctor([path], progress=False, workers=1)
    assert (row.status, row.reason) == ("refused", "not_video")
    assert "put it into a container" in row.detail
