"""Every backend on every shared file: the right frames, or a refusal; never silently wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import LACKS, ROOT
from tests.video.conformance import MEAN_DIFFERENCE, decode_all, judge, picks
from tests.video.conftest import Rendered

from rushes.errors import BackendMissing, VideoError
from rushes.video.catalogue import Catalogue
from rushes.video.probe import probe
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request

BACKENDS = ("pyav", "torchcodec", "decord", "opencv")
TABLE = ROOT / "docs" / "decoding.md"
BEGIN, END = "<!-- conformance begins -->", "<!-- conformance ends -->"

REASONS = {
    "media__invalid-bitstream.webm": "undecodable",
    "media__sample_audio_only.mp4": "no_video_stream",
    "derived/empty.mp4": "empty",
    "derived/text.mp4": "not_video",
    "derived/truncated_tail_moov_first_or_last.mp4": "truncated",
}
"""Files that hold no frame at all, and why."""
BEST_STREAM = {"torchcodec__nasa_13013.mp4": 390}
"""The manifest counts the first stream; a player shows the larger one."""
RENDERED = ("wmv2.wmv", "wmv2.avi", "h264_b.avi", "h264_b.asf", "mpeg4_b.asf", "mpeg2.asf",
            "h264_stamped.mkv")  # fmt: skip
"""Counter videos of kinds that the shared files lack: no presentation times, Windows Media."""


def manifest(shared: Path) -> list[dict[str, Any]]:
    text = (shared / "videos" / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.needs_shared
def test_counts_are_the_manifests_or_the_right_reason(shared: Path) -> None:
    rows = manifest(shared)
    assert len(rows) == 59
    wrong = []
    for row in rows:
        name = row["file"]
        try:
            info = probe(shared / "videos" / name)
        except VideoError as error:
            if error.reason != REASONS.get(name):
                wrong.append(f"{name}: {error}")
            continue
        if name in REASONS:
            wrong.append(f"{name}: {info.num_frames} frames, expected {REASONS[name]}")
        elif info.num_frames != BEST_STREAM.get(name, row["frames"]):
            wrong.append(f"{name}: {info.num_frames} frames, the manifest says {row['frames']}")
        elif row.get("rotation") and info.rotation != -row["rotation"] % 360:
            wrong.append(f"{name}: turned {info.rotation}, the manifest says {row['rotation']}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.needs_shared
@pytest.mark.slow
def test_no_backend_is_silently_wrong(shared: Path, counter: Rendered) -> None:
    lines = ["| file | " + " | ".join(BACKENDS) + " |", "|---" * (len(BACKENDS) + 1) + "|"]
    wrong = []
    usable = [name for name in BACKENDS if not LACKS.get(name, lambda: "")()]
    files = {row["file"]: shared / "videos" / row["file"] for row in manifest(shared)}
    files |= {f"rendered/{name}": counter(name)[1] for name in RENDERED}
    for file, path in files.items():
        cells = []
        try:
            count = probe(path).num_frames
            reference = decode_all(path, picks(count)) if count else None
        except VideoError as error:
            lines.append(f"| {file} |" + f" refused: {error.reason} |" * len(BACKENDS))
            continue
        assert reference is not None
        for backend in BACKENDS:
            if backend not in usable:
                cells.append("not tried")
                continue
            verdict, detail = judge(path, backend, reference)
            cells.append(verdict if verdict == "right" else f"{verdict}: {plain(detail, path)}")
            must = backend == "pyav" and verdict != "right"
            if verdict == "WRONG" or must:
                wrong.append(f"{file} {backend}: {verdict} {detail}")
        lines.append(f"| {file} | " + " | ".join(cells) + " |")
    assert not wrong, "\n".join(wrong)
    if os.environ.get("RUSHES_WRITE_DOCS"):
        text = TABLE.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        tail = rest.split(END)[1]
        table = "\n".join(lines)
        TABLE.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")
    if len(usable) == len(BACKENDS):
        documented = TABLE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
        told = [verdicts(line) for line in documented.splitlines()]
        assert told == [verdicts(line) for line in lines], "rerun with RUSHES_WRITE_DOCS=1"


def plain(detail: str, path: Path) -> str:
    """One short line for a table."""
    return (
        detail.replace(str(path), path.name).replace("|", "/").split("cannot be trusted: ")[-1][:70]
    )


def verdicts(line: str) -> list[str]:
    """The cells of a table row without their explanations."""
    return [cell.strip().split(":")[0] for cell in line.strip("|").split("|")]


@pytest.mark.needs_shared
def test_what_only_the_first_packet_says_is_known_at_every_key_frame(shared: Path) -> None:
    """x264 before build 151 coded 4:4:4 in its own way; FFmpeg reads the build from packet 0."""
    path = shared / "videos" / "imageio-binaries__cockatoo.mp4"
    reference = decode_all(path, [150])
    reader = open_reader(Catalogue.from_items({"v": path}))
    info = reader.describe("v")
    assert 145 in info.keyframes
    reply = reader.read(Request("v", (Frames((float(info.frame_times[150]),)),)))
    reader.close()
    off = reply.arrays["frames"][0].astype(int) - reference.frames[150]
    assert abs(off).mean() < MEAN_DIFFERENCE
    assert reply.cost.frames_decoded < 10


def test_a_missing_backend_names_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, module in (
        ("decord", "decord"),
        ("opencv", "cv2"),
        ("torchcodec", "torchcodec.decoders"),
    ):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(BackendMissing, match="pip install"):
            open_reader(Catalogue.from_items({}), backend)
