"""Takes the packets of sound and the cues of subtitles out of a file for a store."""

from __future__ import annotations

import io
import re
from typing import Any

import av
import msgpack
from av.error import FFmpegError

from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import open_media, packets_of

SOUND_CONTAINER = "nut"
"""Keeps packets as they are; stamps become sample numbers."""
_ASS_FIELDS = 8
"""Commas before the text of an event."""
_ASS_STYLE = re.compile(r"\{[^}]*\}")


def copy_sound(
    source: Source, index: VideoIndex, limits: Limits, notes: list[str]
) -> tuple[dict[str, Any], list[bytes]]:
    """The packets of the best sound track, uncoded again, in one NUT file.

    Args:
        source: the video file.
        index: its packets.
        limits: bounds.
        notes: takes a line when the sound has to be left out.

    Returns:
        Attributes of the track (`shift`: seconds by which its times are later than the source's,
        `tick`: resolution of the source's stamps in seconds), and its chunks, none when it was left
        out.
    """
    target = io.BytesIO()
    try:
        with open_media(source, index.container, limits) as media:
            stream = media.streams.best("audio")
            if stream is None:
                return {}, []
            # NUT knows no times below zero: everything moves by whole seconds.
            packets = [packet for packet in packets_of(media, stream) if packet.size]
            stamps = [p.dts if p.dts is not None else p.pts for p in packets]
            earliest = min((stamp for stamp in stamps if stamp is not None), default=0)
            base = stream.time_base
            shift = max(0, -int(earliest * base // 1))
            options = {"avoid_negative_ts": "disabled"}
            with av.open(target, "w", format=SOUND_CONTAINER, options=options) as out:
                copy = out.add_stream_from_template(stream)
                copy.time_base = base
                for packet in packets:
                    for name in ("pts", "dts"):
                        if getattr(packet, name) is not None:
                            setattr(packet, name, getattr(packet, name) + int(shift / base))
                    packet.stream = copy
                    out.mux(packet)
    except (FFmpegError, ValueError, TypeError) as error:
        notes.append(f"sound left out: {error}")
        return {}, []
    attributes = {
        "kind": "sound",
        "container": SOUND_CONTAINER,
        "shift": shift,
        "tick": float(base),
    }
    return attributes, [target.getvalue()]


def copy_cues(
    source: Source, index: VideoIndex, limits: Limits, notes: list[str]
) -> tuple[dict[str, Any], list[bytes]]:
    """The cues of all subtitle tracks: track, start and end in seconds, text.

    Returns:
        Attributes of the track, and one chunk of msgpack, none where there are no texts.
    """
    cues: list[tuple[int, float, float, str]] = []
    try:
        with open_media(source, index.container, limits) as media:
            for number, stream in enumerate(media.streams.subtitles):
                media.seek(0)
                cues += [(number, *cue) for cue in _cues(media, stream, index.info.start)]
    except (FFmpegError, ValueError) as error:
        notes.append(f"subtitles left out: {error}")
    return {"kind": "cues"}, [msgpack.packb(sorted(cues))] if cues else []


def _cues(media: Any, stream: Any, start: float) -> list[tuple[float, float, str]]:
    cues = []
    for packet in packets_of(media, stream):
        if packet.size == 0 or packet.pts is None:
            continue
        begin = float(packet.pts * packet.time_base) - start
        end = begin + float((packet.duration or 0) * packet.time_base)
        for subtitle in stream.codec_context.decode2(packet) or ():
            lines = getattr(subtitle, "ass", b"") or getattr(subtitle, "text", b"")
            text = lines.decode("utf-8", "replace") if isinstance(lines, bytes) else str(lines)
            text = _ASS_STYLE.sub("", text.split(",", _ASS_FIELDS)[-1]).replace("\\N", "\n")
            if text.strip():
                cues.append((begin, end, text.strip()))
    return cues
