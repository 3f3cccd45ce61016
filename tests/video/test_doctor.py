"""The doctor's table: every status and reason, in parallel, as JSON and for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.video.conftest import Rendered

from rushes.video.doctor import doctor, main


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
