"""Records from a user's own subtitles: files beside the videos, or cues inside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import pysubs2

from rushes.datasets.record import Record, Segment
from rushes.errors import AnnotationError, UnreadableVideo, VideoError
from rushes.log import get_logger

SUFFIXES = (".srt", ".vtt")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
SHORTEST, LONGEST = 4.0, 16.0
"""Seconds of a joined segment; a longer silence than `PAUSE` always ends one."""
PAUSE = 3.0
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]]*$")
_MARKUP = re.compile(r"<[^>]*>|\{[^}]*\}|\[[^\]]*\]|\u266a")
_log = get_logger(__name__)


@dataclass(frozen=True)
class Cue:
    """One subtitle: start and end in seconds, and its text without markup."""

    start: float
    end: float
    text: str


def read_folder(folder: Path) -> Iterator[Record]:
    """One record a video of a folder tree that has subtitles, with joined segments.

    A subtitle file belongs to the video of the same name (`talk.srt`, `talk.en.vtt`); videos
    without one are asked for their first text track.

    Raises:
        AnnotationError: no such folder, or a subtitle file that cannot be read.
    """
    if not folder.is_dir():
        raise AnnotationError("no such folder", str(folder))
    return _records(folder)


def _records(folder: Path) -> Iterator[Record]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    beside: dict[Path, Path] = {}
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            beside.setdefault(path.with_suffix(""), path)
            beside.setdefault(path.with_suffix("").with_suffix(""), path)
    for video in files:
        if video.suffix.lower() not in VIDEOS:
            continue
        base = video.with_suffix("")
        cues = read_file(beside[base]) if base in beside else _embedded(video)
        segments = join_cues(cues)
        if segments:
            name = base.relative_to(folder).as_posix()
            yield Record(video=name, id=name, segments=tuple(segments))
        else:
            _log.warning("%s: no subtitles", video)


def read_file(path: Path) -> list[Cue]:
    """The cues of a .srt or .vtt file in time order; raises `AnnotationError`."""
    try:
        loaded = pysubs2.load(str(path), encoding="utf-8-sig")
    except (pysubs2.exceptions.Pysubs2Error, UnicodeDecodeError, ValueError) as error:
        raise AnnotationError(f"not subtitles: {error}", str(path)) from error
    cues = [Cue(e.start / 1000, e.end / 1000, plain_text(e.plaintext)) for e in loaded.events]
    return sorted((c for c in cues if c.text and c.end > c.start), key=lambda c: c.start)


def read_embedded(path: Path) -> list[Cue]:
    """The cues of a video's first text track; raises `VideoError` for a file that is no video."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.subtitles:
                return []
            stream = container.streams.subtitles[0]
            cues = []
            for packet in container.demux(stream):
                if packet.pts is None or not packet.size:
                    continue
                start = float(packet.pts * packet.time_base)
                end = start + float((packet.duration or 0) * packet.time_base)
                text = plain_text(_packet_text(bytes(packet), stream.codec_context.name))
                if text and end > start:
                    cues.append(Cue(start, end, text))
    except av.FFmpegError as error:
        raise UnreadableVideo(str(path), str(error), "undecodable") from error
    return sorted(cues, key=lambda c: c.start)


def _embedded(path: Path) -> list[Cue]:
    try:
        return read_embedded(path)
    except VideoError as error:
        _log.warning("%s", error)
        return []


def _packet_text(data: bytes, codec: str) -> str:
    if codec == "mov_text":  # two bytes of length, then text, then styles
        size = int.from_bytes(data[:2], "big")
        return data[2 : 2 + size].decode("utf-8", "replace")
    text = data.decode("utf-8", "replace")
    if codec in ("ass", "ssa"):
        # Order, layer, style, name, three margins and effect stand before the text.
        text = text.split(",", 8)[-1].replace("\\N", " ").replace("\\n", " ")
    return text


def plain_text(text: str) -> str:
    """Text without markup, sound descriptions and line breaks."""
    return " ".join(_MARKUP.sub(" ", text).replace("\\N", " ").split())


def join_cues(cues: Sequence[Cue]) -> list[Segment]:
    """Cues joined to segments of 4 to 16 s that end with a sentence where they can.

    A segment ends after a sentence once it is 4 s long, before a silence, or before it would pass
    16 s. Repeated lines (rolling captions) are taken once. What is shorter than 4 s in the end (a
    lone line between silences) stays as it is.
    """
    segments: list[Segment] = []
    held: list[Cue] = []
    for cue in cues:
        if held and held[-1].text == cue.text:
            held[-1] = Cue(held[-1].start, max(held[-1].end, cue.end), cue.text)
            continue
        silent = held and cue.start - held[-1].end > PAUSE
        if held and (silent or cue.end - held[0].start > LONGEST):
            segments.append(_segment(held))
            held = []
        held.append(cue)
        if cue.end - held[0].start >= SHORTEST and _SENTENCE_END.search(cue.text):
            segments.append(_segment(held))
            held = []
    if held:
        segments.append(_segment(held))
    return segments


def _segment(cues: Sequence[Cue]) -> Segment:
    text = " ".join(cue.text for cue in cues)
    end = max(cue.end for cue in cues)
    return Segment(text, "subtitle", round(cues[0].start, 3), round(end, 3))
