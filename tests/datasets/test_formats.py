"""The official annotation formats: real excerpts where there are some; errors that say where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rushes.datasets.annotations import Record, Segment, read_records, sniff_format
from rushes.datasets.formats.tables import read_ids
from rushes.errors import AnnotationError

EXCERPTS = {
    "DemoVLP__meta_data__msrvtt_mc_test.head200.jsonl": ("msrvtt_mc", 200),
    "DemoVLP__meta_data__msrvtt_qa_val.head200.jsonl": ("clipbert_qa", 200),
    "DemoVLP__meta_data__frameqa_test.head200.jsonl": ("clipbert_qa", 200),
    "DemoVLP__meta_data__msvd_test_qa_encode.head200.json": ("msrvtt_qa", 200),
    "DemoVLP__meta_data__DiDeMo_test.head200.tsv": ("caption_tsv", 199),
    "DemoVLP__meta_data__webvid_validation_success_full.head200.tsv": ("caption_tsv", 196),
    "MIL-NCE_HowTo100M__csv__msrvtt_test.head200.csv": ("msrvtt_csv", 200),
    "MIL-NCE_HowTo100M__csv__validation_youcook.head200.csv": ("howto_csv", 200),
    "tgif-qa__dataset__Test_action_question.head200.csv": ("tgif", 200),
    "tgif-qa__dataset__Test_transition_question.head200.csv": ("tgif", 200),
    "tgif-qa__dataset__Test_frameqa_question.head200.csv": ("tgif", 200),
    "tgif-qa__dataset__Test_count_question.head200.csv": ("tgif", 200),
    "LocalizingMoments__data__test_data.head200.json": ("didemo", 174),
    "coot-videotext__activitynet__train.head200.json": ("activitynet", 200),
    "coot-videotext__activitynet__captioning_val_1_para.head200.json": ("activitynet", 200),
    "coot-videotext__youcook2__youcookii_annotations_trainval.head200.json": ("youcook2", 200),
    "TVRetrieval__data__tvr_val_release.head200.jsonl": ("tvr", 200),
    "TVQAplus__data__tvqa_plus_val.head200.json": ("tvqa", 200),
    "moment_detr__data__highlight_val_release.head200.jsonl": ("qvhighlights", 200),
    "NExT-QA__nextqa__val.head200.csv": ("nextqa", 200),
    "pytorch_violet___data__txt_msrvtt-retrieval.json": ("violet", 300),
    "pytorch_violet___data__txt_msvd-qa.json": ("violet", 300),
    "pytorch_violet___data__txt_tgif-action.json": ("violet", 300),
    "mmaction2__annotations__video_text_test_list.json": ("caption_lists", 1),
}


@pytest.mark.needs_shared
@pytest.mark.parametrize(("name", "expected"), EXCERPTS.items())
def test_real_excerpts_are_recognised_and_read(
    shared: Path, name: str, expected: tuple[str, int]
) -> None:
    path = shared / "annotations" / name
    assert sniff_format(path) == expected[0]
    records = list(read_records(path))
    assert len(records) == expected[1]
    assert len({r.id for r in records}) == len(records)
    for record in records:
        assert record.video
        assert "\n" not in record.video
        assert record.segments or record.options
        assert all(s.text == s.text.strip() for s in record.segments)
        if record.options:
            assert isinstance(record.answer, int)
            assert 0 <= record.answer < len(record.options) == 5


@pytest.mark.needs_shared
def test_first_rows_are_what_the_files_say(shared: Path) -> None:
    def first(name: str, format_name: str = "auto") -> Record:
        return next(iter(read_records(shared / "annotations" / name, format_name)))

    choice = first("DemoVLP__meta_data__msrvtt_mc_test.head200.jsonl")
    assert (choice.video, choice.id, choice.answer) == ("video9770", "mc0", 0)  # written "0"
    action = first("tgif-qa__dataset__Test_action_question.head200.csv")
    assert action.question == "What does the butterfly do 10 or more than 10 times ?"
    assert action.options[4] == "flap wings"
    assert action.answer == 4
    frame = first("tgif-qa__dataset__Test_frameqa_question.head200.csv")
    assert (frame.answer, dict(frame.tags)) == ("cookie", {"answer_type": "object"})
    dance = first("coot-videotext__activitynet__train.head200.json")
    assert dance.segments[1].text.startswith("The girl dances")
    assert (dance.segments[1].start, dance.segments[1].end) == (17.37, 60.81)
    moment = first("LocalizingMoments__data__test_data.head200.json", "didemo_moments")
    assert moment.video == "26292851@N04_4253489686_265c3c8051"
    assert moment.spans[0] == ((20.0, 25.0),)
    assert len(moment.spans) == 7
    msvd = first("DemoVLP__meta_data__msvd_test_qa_encode.head200.json")
    assert (msvd.video, msvd.answer) == ("vid1451", "someone")
    window = first("moment_detr__data__highlight_val_release.head200.jsonl")
    assert window.spans == (((82.0, 150.0),),)


@pytest.mark.needs_shared
def test_quoted_line_breaks_belong_to_their_caption(shared: Path) -> None:
    path = shared / "annotations" / "DemoVLP__meta_data__DiDeMo_test.head200.tsv"
    (record,) = (r for r in read_records(path) if r.video == "16483298@N00_3766400261_96bd3905c1")
    assert "typewriter lid , a man in a blue shirt" in record.segments[0].text


@pytest.mark.needs_shared
def test_split_lists_give_ids(shared: Path) -> None:
    folder = shared / "annotations"
    listed = read_ids(folder / "collaborative-experts__msrvtt__val_list_jsfusion.head200.txt")
    assert listed[:2] == ["video7020", "video7021"]
    stray = read_ids(folder / "collaborative-experts__didemo__test_list.head200.txt")
    assert stray[1] == "10052357@N03_7585070382_5762149bfc"  # listed with a dot and no suffix
    columns = read_ids(folder / "MIL-NCE_HowTo100M__csv__msrvtt_test.head200.csv")
    assert columns[0] == "video9770"


@pytest.mark.needs_shared
def test_a_hidden_test_split_is_refused_with_its_line(shared: Path) -> None:
    path = shared / "annotations" / "TVRetrieval__data__tvr_test_public_release.head200.jsonl"
    with pytest.raises(AnnotationError, match=r"release.head200.jsonl:1: vid_name=None"):
        list(read_records(path))


def _write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_msrvtt_json_gives_one_record_a_video_with_its_split(tmp_path: Path) -> None:
    videos = [
        {"video_id": "video0", "split": "train", "category": 9, "start time": 1.0, "id": 0},
        {"video_id": "video1", "split": "validate", "category": 3, "id": 1},
        {"video_id": "video2", "split": "test", "category": 3, "id": 2},
    ]
    sentences = [
        {"caption": f"caption {i}", "video_id": f"video{i % 3}", "sen_id": i} for i in range(6)
    ]
    path = _write(tmp_path / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    records = list(read_records(path))
    assert [r.split for r in records] == ["train", "val", "test"]
    assert records[1].texts() == ("caption 1", "caption 4")
    assert records[0].tags == {"category": "9"}
    broken = {"videos": videos[:1], "sentences": sentences[:2]}
    with pytest.raises(AnnotationError, match="not listed: \\['video1'\\]"):
        list(read_records(_write(tmp_path / "broken.json", broken)))


def test_lsmdc_lines(tmp_path: Path) -> None:
    name = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    times = "00:00:51.926\t00:00:54.129\t00:00:51.926\t00:00:54.129"
    path = _write(tmp_path / "LSMDC16.csv", f"{name}\t{times}\tSOMEONE grins, then looks away.\n")
    assert sniff_format(path) == "lsmdc"
    (record,) = read_records(path)
    assert record.video == name  # its dots are no suffix
    assert record.segments == (Segment("SOMEONE grins, then looks away."),)
    _write(path, f"{name}\t{times}\tfine\n{name}\tonly three\tcolumns\n")
    with pytest.raises(AnnotationError, match=r"LSMDC16.csv:2: expected 6 columns, found 3"):
        list(read_records(path))


def test_hdvila_files(tmp_path: Path) -> None:
    pretraining = [{"clip_id": "abc.12.mp4", "text": "a b"}, {"clip_id": "v", "text": ["x", "y"]}]
    path = _write(tmp_path / "part1.jsonl", "\n".join(map(json.dumps, pretraining)))
    first, second = read_records(path)
    assert (first.video, first.id) == ("abc.12", "part1:0")
    assert second.texts() == ("x", "y")
    clips = [{"clip_id": "abc.0.mp4", "span": ["00:00:01.500", "00:01:02.000"]}]
    clips.append({"clip_id": "abc.1.mp4", "span": ["01:00:00.000", "01:00:09.250"], "text": "hi"})
    meta = _write(
        tmp_path / "meta.jsonl", json.dumps({"video_id": "abc", "url": "", "clip": clips})
    )
    one, two = read_records(meta)
    assert (one.video, one.id, one.start, one.end) == ("abc", "abc.0", 1.5, 62.0)
    assert two.segments == (Segment("hi", "transcript", 3600.0, 3609.25),)
    clips[0]["span"] = ["00:00:09", "00:00:02"]
    _write(meta, "\n" + json.dumps({"video_id": "abc", "clip": clips}))
    with pytest.raises(AnnotationError, match=r"meta.jsonl:2: span=.*ends before it starts"):
        list(read_records(meta))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "a.jsonl",
            '{"clip_id": "a", "text": "b"}\n{"clip_id": 3.5, "text": "b"}',
            "a.jsonl:2: clip",
        ),
        ("b.jsonl", '{"clip_id": "a", "text": "b"}\n{"clip_id"', "b.jsonl:2: not JSON"),
        (
            "c.jsonl",
            '{"clip_id": "a", "text": "b"}\n\n{"clip_id": "a", "text": []}',
            "c.jsonl:3: text",
        ),
        ("d.jsonl", '{"video": "a", "colour": 1}', "d.jsonl:1: unknown fields"),
        ("e.csv", "gif_name\tquestion\tanswer\n1\t2\n", "e.csv:2: expected 3 columns, found 2"),
        (
            "f.json",
            '{"v_1": {"duration": 9,\n "timestamps": [], "sentences": ["a"]}}',
            "f.json:1: v_1",
        ),
        ("g.json", '{"v_1": "a b",\n"v_2": 3}', "g.json:2: v_2"),
        ("h.json", '[{"question": "q", "video_id": 1},\n{"question": ""', "h.json:2: not JSON"),
        ("i.txt", "hello\n", "i.txt:1: no known format"),
        ("j.jsonl", "", "no known format"),
        (
            "k.jsonl",
            '{"clip_name": "v", "options": ["a"], "answer": 4}',
            "answer=4: expected 0 to 0",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    with pytest.raises(AnnotationError, match=complaint):
        list(read_records(_write(tmp_path / name, content)))


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"clip_id": "a", "text": "b"}\n{"clip_id": "a", "text": "caf\xe9"}\n')
    with pytest.raises(AnnotationError, match=r"latin.jsonl:\d: not UTF-8"):
        list(read_records(path, "hdvila"))


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"video": "v"}')
    with pytest.raises(AnnotationError, match="annotation_format='msvtt'"):
        list(read_records(path, "msvtt"))
