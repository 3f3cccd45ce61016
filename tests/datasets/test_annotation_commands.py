"""`rushes annotations`: convert, check, shard, from-subtitles; run in process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from rushes.datasets.annotation_commands import write_records
from rushes.datasets.annotations import Record, Segment, main, open_records
from rushes.datasets.subtitles import Cue, join_cues, plain_text, read_embedded, read_file
from rushes.errors import AnnotationError
from tests.helpers import launch


def _qa(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [{"question": "what?", "answer": a, "video_id": v} for v, a in rows]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def test_convert_keeps_chosen_ids_and_writes_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _qa(tmp_path / "qa.jsonl", [("v1", "cat"), ("v2", "dog"), ("v3", "dog")])
    (tmp_path / "ids.txt").write_text("v2\nv3.mp4\n")
    out, answers = tmp_path / "out.jsonl", tmp_path / "answers.json"
    arguments = ["--ids", tmp_path / "ids.txt", "--state-split", "val", "--answers", answers]
    assert main(["convert", str(source), str(out), *map(str, arguments)]) == 0
    records = list(open_records([out], split="val"))
    assert [(r.video, r.answer, r.id) for r in records] == [
        ("v2", "dog", "qa:1"),
        ("v3", "dog", "qa:2"),
    ]
    assert json.loads(answers.read_text()) == {"dog": 0}
    assert "2 records" in capsys.readouterr().out
    (tmp_path / "ids.txt").write_text("v2\nv9\n")
    with pytest.raises(AnnotationError, match=r"1 of the 2 listed ids are not there: .'v9'"):
        main(["convert", str(source), str(out), "--ids", str(tmp_path / "ids.txt")])
    assert len(open_records([out])) == 2  # the good file is still there


def test_check_counts_and_finds_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("v1.mp4", "v2.mp4", "extra.mp4"):
        (videos / name).write_bytes(b"x")
    source = _qa(
        tmp_path / "qa.jsonl", [("v1", "cat"), ("v2", "dog"), ("v7", "dog"), ("v1", "cat")]
    )
    (tmp_path / "answers.json").write_text('{"dog": 0}')
    arguments = ["check", str(source), "--videos", str(videos), "--json"]
    assert main([*arguments, "--answers", str(tmp_path / "answers.json")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["videos"], found["texts"]) == (4, 3, 4)
    assert (found["missing"], found["unused"]) == (["v7"], 1)
    assert found["duplicate_rows"] == 1
    assert found["answers"] == {"cat": 2, "dog": 2}
    assert found["answers_outside"] == 2
    assert main(["check", str(source)]) == 0
    assert "2 distinct of 4: cat 50.0%" in capsys.readouterr().out


def test_shards_hold_every_record_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    source = tmp_path / "all.jsonl"
    write_records(source, (Record(f"v{i}", f"v{i}", (Segment("t"),)) for i in range(50)))
    out = tmp_path / "train_group"
    assert main(["shard", str(source), str(out), "--parts", "3", "--epochs", "2"]) == 0
    names = [f"part{i}.jsonl" for i in range(1, 7)]
    assert sorted(p.name for p in out.glob("*.jsonl")) == names
    epochs = []
    for start in (0, 3):
        parts = [open_records([out / name]) for name in names[start : start + 3]]
        assert [len(p) for p in parts] == [16, 17, 17]
        epochs.append([r.video for part in parts for r in part])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"v{i}" for i in range(50))
    assert epochs[0] != epochs[1]
    everything = open_records([out / "part*.jsonl"])
    assert [r.video for r in everything] == epochs[0] + epochs[1]  # read as one, in order


def test_cues_join_to_sentences_of_four_to_sixteen_seconds() -> None:
    words = ["one", "two", "three.", "four", "five", "six.", "seven", "eight", "nine", "ten."]
    cues = [Cue(i * 1.5, i * 1.5 + 1.5, word) for i, word in enumerate(words)]
    segments = join_cues(cues)
    assert [s.text for s in segments] == [
        "one two three.",
        "four five six.",
        "seven eight nine ten.",
    ]
    assert [(s.start, s.end) for s in segments] == [(0.0, 4.5), (4.5, 9.0), (9.0, 15.0)]
    assert {s.kind for s in segments} == {"subtitle"}


def test_silences_and_the_longest_length_end_a_segment() -> None:
    assert [s.text for s in join_cues([Cue(0, 2, "a"), Cue(9, 11, "b")])] == ["a", "b"]
    endless = [Cue(i * 3.0, i * 3.0 + 3.0, f"w{i}") for i in range(12)]
    for segment in join_cues(endless):
        assert segment.start is not None
        assert segment.end is not None
        assert segment.end - segment.start <= 16
    rolling = [Cue(0, 2, "hello"), Cue(2, 4, "hello"), Cue(4, 6, "there.")]
    assert [s.text for s in join_cues(rolling)] == ["hello there."]


def test_markup_and_sound_notes_are_no_words() -> None:
    assert plain_text("<i>Hi</i> {\\an8}there\n[music] \u266a you") == "Hi there you"


@pytest.mark.needs_shared
def test_real_subtitle_files(shared: Path) -> None:
    cues = read_file(shared / "annotations" / "gradio__data__s1.srt")
    assert [c.text for c in cues[:2]] == ["A", "B"]
    assert (cues[6].start, cues[6].end) == (3.0, 10.0)
    chinese = read_file(shared / "annotations" / "gradio__data__s2.vtt")
    assert chinese[-1].text == "\u4e2d\u6587\u6e2c\u8a66"


def _video(path: Path, seconds: int = 6, words: Path | None = None) -> None:
    """A real video; with a subtitle file, its cues inside."""
    command = [get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", f"testsrc=s=64x48:d={seconds}"]
    command += ["-i", str(words), "-c:s", "srt"] if words else []
    launch([*command, "-c:v", "mpeg4", path])


def test_from_subtitles_reads_files_and_embedded_cues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talks").mkdir()
    cues = [("00", "01", "First, we cut."), ("02", "03", "Then we cook."), ("04", "05", "Done.")]
    lines = [f"{i}\n00:00:{a},000 --> 00:00:{b},900\n{t}\n" for i, (a, b, t) in enumerate(cues)]
    words = tmp_path / "words.srt"
    words.write_text("\n".join(lines))
    _video(tmp_path / "talks" / "one.mkv", words=words)
    _video(tmp_path / "two.mp4")
    _video(tmp_path / "silent.mp4")
    (tmp_path / "two.en.vtt").write_text(
        "WEBVTT\n\n00:00:00.500 --> 00:00:03.000\nHello <b>there</b>\n\n"
        "00:00:03.000 --> 00:00:05.500\nand goodbye.\n"
    )
    assert len(read_embedded(tmp_path / "talks" / "one.mkv")) == 3
    assert main(["from-subtitles", str(tmp_path)]) == 0
    assert "2 videos" in capsys.readouterr().out
    one, two = sorted(open_records([tmp_path / "subtitles.jsonl"]), key=lambda r: r.video)
    assert one.video == "talks/one"
    assert one.segments[0].text == "First, we cut. Then we cook. Done."
    assert one.segments[0].start == pytest.approx(0.0, abs=0.1)
    assert two.segments == (Segment("Hello there and goodbye.", "subtitle", 0.5, 5.5),)


def test_from_subtitles_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="no such folder"):
        main(["from-subtitles", str(tmp_path / "nothing")])
    _video(tmp_path / "a.mp4", seconds=1)
    (tmp_path / "a.srt").write_bytes(b"\x00\x01\x02 not subtitles")
    with pytest.raises(AnnotationError, match="not subtitles"):
        main(["from-subtitles", str(tmp_path)])
