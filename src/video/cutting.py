"""Cuts stretches out of video files: exact to the frame, or by copying packets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import ffmpeg
import numpy as np

from rushes.errors import UnreadableVideo, VideoError
from rushes.video.asides import written_aside
from rushes.video.catalogue import Source
from rushes.video.ffmpeg_process import run_ffmpeg
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import Bytes, check_bytes, file_url, open_media
from rushes.video.probe import build_index, probe
from rushes.video.request import TIME_SLACK, VideoInfo
from rushes.video.transcode import (
    Result,
    Settings,
    allowed_seconds,
    encoding,
    keep_times,
    lead_of,
    source_input,
    steady_stamps,
    what_it_gives,
)
from rushes.video.verify import Difference, check_saved, check_times


class CutNote(NamedTuple):
    """What a cut's own file remembers, in seconds: the stretch that was asked, where it begins."""

    start: float
    end: float
    true_start: float


_MP4_CODECS = frozenset(("h264", "hevc", "mpeg4", "av1", "vp9", "mpeg2video", "mpeg1video"))


def cut(
    source: Source,
    target: Path,
    start: float,
    end: float,
    settings: Settings,
    copy: bool = False,
    index: VideoIndex | None = None,
) -> Result:
    """Cut [start, end) seconds out of one file, exact to the frame.

    Args:
        copy: move packets without decoding; the cut then begins at the key frame before `start`,
            and the result says where.
        index: of the source, where it is known already (many clips of one film).

    Raises:
        VideoError: the source is bad, ends before `start`, or the result is not what it should be.
    """
    index = index or build_index(source, Limits())
    info = index.info
    first = max(0, int(np.searchsorted(info.frame_times, start + TIME_SLACK, side="right")) - 1)
    last = int(np.searchsorted(info.frame_times, end - TIME_SLACK))
    if not 0 <= start < end or start >= info.duration:
        raise UnreadableVideo(
            source.video_id,
            f"no stretch {start}..{end} s in {info.duration:.3f} s",
            "frame_unavailable",
        )
    if copy:
        first = int(info.keyframes[info.keyframes <= first].max(initial=0))
    begin, differs = float(info.frame_times[first]), Difference()
    note = CutNote(start, end, begin)
    with written_aside(target) as aside:
        streams, options = (_copied if copy else _recoded)(source, index, first, last, settings)
        graph = ffmpeg.output(
            *streams, file_url(aside), metadata=f"comment={json.dumps(note._asdict())}", **options
        )
        allowed = allowed_seconds(settings.timeout, min(end, info.duration) - begin)
        truth = what_it_gives(source, info, run_ffmpeg(graph, source.video_id, allowed))
        made = probe(Source("file", source.video_id, aside))
        if copy:
            _verify_copy(source, index, first, last, made, aside)
        else:
            if truth.damaged:
                shown = truth.frame_times + (truth.start - info.start)
                inside = (shown >= begin - TIME_SLACK) & (shown < end - TIME_SLACK)
                differs = check_saved(source.video_id, shown[inside] - begin, aside)
            else:
                check_times(source.video_id, info.frame_times[first:last] - begin, made.frame_times)
    return Result(made, start=begin, damaged=truth.damaged, differs=differs)


def remembered_cut(path: Path) -> CutNote | None:
    """What the file of a cut says that it holds; None where it is no whole cut of this program."""
    source = Source("file", str(path), path)
    try:
        with Bytes(source) as content:
            container, cut_short = check_bytes(source, content, Limits())
        if cut_short:
            return None
        with open_media(source, container, Limits()) as media:
            values = json.loads(media.metadata.get("comment", ""))
        return CutNote(**{name: float(values[name]) for name in CutNote._fields})
    except (VideoError, ValueError, KeyError, TypeError):
        return None


def _bounds(index: VideoIndex, first: int, last: int) -> tuple[float, float]:
    """Times between frames, in the file's own clock: nothing depends on rounding."""
    times, info = index.info.frame_times, index.info
    before = (times[first - 1] + times[first]) / 2 if first else times[0] - 0.001
    after = (times[last - 1] + times[last]) / 2 if last < len(times) else info.duration + 1.0
    return info.start + float(before), info.start + float(after)


def _recoded(
    source: Source, index: VideoIndex, first: int, last: int, settings: Settings
) -> tuple[list[Any], dict[str, Any]]:
    """Streams and options that cut exactly."""
    info = index.info
    begin, end = _bounds(index, first, last)
    # Seeking is only a short cut: the filters below choose the frames. The container's clock may
    # begin before the pictures do, never after.
    skip = max(0.0, float(info.frame_times[first]) - 3.0)
    # Where a file says no presentation times ffmpeg guesses its own: there, frames are counted.
    counted = index.container == "avi" or index.invented
    seek = {"ss": f"{skip:.3f}"} if skip and not counted else {}
    given = source_input(source, index, copyts=None, **seek)
    options = encoding(settings, info) | keep_times()
    part = f"{begin:.6f}:{end:.6f}"
    if counted:
        part = f"start_frame={first}:end_frame={last}"
    if stamps := steady_stamps(index):
        part = f"{part},setpts={stamps}"
    options["vf"] = f"trim={part},setpts=PTS-STARTPTS,{options['vf']}"
    streams = [given[str(index.stream)]]
    if settings.audio and info.audio:
        streams.append(given["a:0"])
        start = info.start + float(info.frame_times[first])
        if last < len(info.frame_times):  # to the end of the last picture, not between pictures
            end = info.start + float(info.frame_times[last])
        options["af"] = f"atrim={start:.6f}:{end:.6f},asetpts=PTS-{start:.6f}/TB"
        options["c:a"] = "aac"
    return streams, options


def _copied(
    source: Source, index: VideoIndex, first: int, last: int, settings: Settings
) -> tuple[list[Any], dict[str, Any]]:
    """Streams and options that copy packets."""
    info = index.info
    times = info.frame_times
    begin = float(times[first])
    end = float(times[last]) if last < len(times) else info.duration
    if info.codec not in _MP4_CODECS or index.container == "avi" or index.invented:
        # Without presentation times, what would be copied cannot be told.
        raise UnreadableVideo(
            source.video_id,
            f"{info.codec} in {index.container} cannot be copied into MP4; cut without copying",
        )
    seek: dict[str, Any] = {}
    if first:
        ahead = lead_of(source, index)
        seek = {"noaccurate_seek": None, "ss": f"{begin + max(ahead, 0.0) + 0.001:.6f}"}
    given = source_input(source, index, **seek)
    streams = [given[str(index.stream)]]
    if settings.audio and info.audio:
        streams.append(given["a:0"])
    return streams, {
        "c": "copy",
        "t": f"{end - begin:.6f}",
        "avoid_negative_ts": "make_zero",
        "map_metadata": -1,
        "f": "mp4",
    }


def _verify_copy(
    source: Source, index: VideoIndex, first: int, last: int, made: VideoInfo, aside: Path
) -> None:
    """The copy must begin with the very packet of the key frame and hold about what was asked."""
    copied = build_index(Source("file", source.video_id, aside), Limits())
    wanted = int(index.sizes[index.frame_packets[first]])
    found = int(copied.sizes[copied.frame_packets[0]])
    # Containers frame packets differently and keep headers elsewhere: some bytes go or come.
    if abs(wanted - found) > 64 + wanted // 20:
        raise UnreadableVideo(source.video_id, "the copy does not begin at the key frame")
    if abs(made.num_frames - (last - first)) > 8:
        raise UnreadableVideo(
            source.video_id, f"the copy has {made.num_frames} frames, not about {last - first}"
        )
