"""What a file really holds, found by reading every packet; or why it is bad."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from rushes.errors import NoVideoStream, RefusedVideo, UnreadableVideo, VideoReason
from rushes.video.catalogue import Source
from rushes.video.index import NO_TIME, VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import Bytes, check_bytes, check_picture, open_media, packets_of
from rushes.video.packets import PacketFlag, inspect, nal_length_size
from rushes.video.probe_cache import ProbeCache
from rushes.video.request import AudioTrack, SubtitleTrack, VideoInfo
from rushes.video.timeline import (
    DECODE_TIMES_ONLY,
    ascending,
    crossings,
    display_order,
    durations_end,
    known_times,
    start_time,
    times_of_output,
)
from rushes.video.truth import STRAY, check_clock, decode_everything

__all__ = ["Limits", "ProbeCache", "build_index", "check_limits", "fence", "probe", "source_of"]

_DIRECT_CODECS = frozenset(("h264", "hevc", "vp8", "vp9", "av1", "mjpeg"))
"""Decoders that need only their configuration record and whole packets."""
_COUNTABLE = frozenset(("h264", "hevc", "vp8", "vp9", "av1", "mjpeg"))
"""Codecs whose packets tell how many frames they show; others are counted by decoding."""
_FIND_WITHIN = 64
"""A container may put this many bytes of its own between a packet's position and its data."""
_HEAD = 16
"""Packets that are kept, to look at the first frame without opening the file again."""


def source_of(video: Source | str | Path | bytes) -> Source:
    """A source from a path or from bytes that the caller trusts."""
    if isinstance(video, Source):
        return video
    if isinstance(video, bytes):
        return Source("bytes", "<bytes>", data=video)
    return Source("file", str(video), Path(video))


def probe(video: Source | str | Path | bytes, limits: Limits | None = None) -> VideoInfo:
    """What a video file holds.

    Args:
        video: a source of the catalogue, a path or the bytes of a file.
        limits: what is refused.

    Raises:
        UnreadableVideo: `empty`, `not_video`, `truncated`, `undecodable` or `missing`.
        NoVideoStream: sound or subtitles only.
        RefusedVideo: `over_limit` or `hostile`.
    """
    return build_index(source_of(video), limits or Limits()).info


@dataclass
class _Packets:
    """The packets of the video stream as the demuxer gives them, in decoding order.

    `head` holds the first few themselves: they mostly give the first frame.
    """

    positions: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    direct: bool = True
    suspicious: bool = False
    doubtful_order: bool = False
    error: str = ""
    head: list[Any] = field(default_factory=list)


def build_index(source: Source, limits: Limits, deep: bool = False) -> VideoIndex:
    """Read every packet of a file; decode where packets alone do not tell the truth.

    Args:
        source: a file or bytes.
        limits: what is refused.
        deep: decode everything in any case.
    """
    with Bytes(source) as content:
        container, cut = check_bytes(source, content, limits)
        with open_media(source, container, limits, cut) as media:
            stream = _video_stream(source, media, limits)
            packets = _read_packets(source, media, stream, content, limits)
            index = _assemble(source, container, media, stream, packets)
            if cut or packets.error:
                index = replace(index, damage="truncated" if cut else "undecodable")
            first = _look_at(source, index, stream, packets.head, limits)
    first = first or _first_look(source, index, limits)
    careful = deep or first.uncertain or packets.suspicious or first.index.leading
    index = first.index
    if careful or packets.doubtful_order or index.damage is not None or not _countable(index):
        index = fence(source, index, limits, deep=careful)
        if index.leading and not careful:  # known only now that the order is
            index = fence(source, index, limits, deep=True)
    check_limits(source.video_id, index.info, limits)
    return index


def check_limits(video: str, info: VideoInfo, limits: Limits) -> None:
    """Raise `RefusedVideo` where a video is larger or longer than the limits allow."""
    pixels = info.coded_width * info.coded_height
    if pixels > limits.max_pixels:
        raise RefusedVideo(
            video,
            f"{info.coded_width}x{info.coded_height} = {pixels} pixels, the limit is "
            f"{limits.max_pixels}",
        )
    if info.num_frames > limits.max_frames:
        raise RefusedVideo(video, f"{info.num_frames} frames, the limit is {limits.max_frames}")
    if info.duration > limits.max_duration:
        detail = f"it lasts {info.duration:.3f} s, the limit is {limits.max_duration:g} s"
        raise RefusedVideo(video, detail)


def fence(
    source: Source, index: VideoIndex, limits: Limits, deep: bool = False, damaged: bool = False
) -> VideoIndex:
    """Replace what packets promise by what the decoder really gives.

    Args:
        source: the file.
        index: made from its packets.
        limits: what is refused.
        deep: also look for broken bits that the decoder would silently fill in.
        damaged: an error was met when decoding; look for it.
    """
    truth = decode_everything(source, index, limits, careful=deep or damaged)
    if not len(truth.frame_packets):
        reason: VideoReason = "truncated" if index.damage == "truncated" else "undecodable"
        detail = (
            f"0 of {len(index.flags)} packets decode as {index.info.codec}, which "
            f"{index.container} says they are; first error: {truth.error or 'none'}"
        )
        raise UnreadableVideo(source.video_id, detail, reason)
    damage: VideoReason | None = index.damage
    if truth.error and damage is None:
        damage = "undecodable"
    told = None
    # A damaged stream may come out of order; one with B pictures does in any case.
    if not truth.error or (index.flags & PacketFlag.BIPREDICTED).any():
        told = times_of_output(truth.frame_packets, index.pts)
    pts = index.pts if told is None else told
    check_clock(source.video_id, pts[truth.frame_packets], damaged=damage is not None)
    times, order = display_order(
        truth.frame_packets, pts, index.dts, index.time_base, index.info.fps or 25.0
    )
    frame_packets = truth.frame_packets[order]
    reordered = bool((np.diff(frame_packets) < 0).any())
    end = durations_end(times, index.info.duration, len(times) == index.info.num_frames)
    keys = np.flatnonzero(index.flags[frame_packets] & PacketFlag.KEY)
    info = replace(
        index.info,
        frame_times=times,
        keyframes=keys.astype(np.int64),
        duration=end,
        start=start_time(frame_packets, pts, index.dts, index.time_base),
        damaged=damage is not None,
    )
    return replace(
        index,
        info=info,
        pts=pts,
        invented=reordered
        if index.container in DECODE_TIMES_ONLY
        else index.invented or told is not None,
        frame_packets=frame_packets,
        concealed=truth.concealed[order],
        damage=damage,
        whole=damage is not None or bool(truth.error),
    )


def _video_stream(source: Source, media: Any, limits: Limits) -> Any:
    """The stream that a player would show; cover pictures are none."""
    streams = [s for s in media.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        kinds = sorted({s.type for s in media.streams})
        raise NoVideoStream(source.video_id, f"its streams are {kinds or 'none'}")
    best = media.streams.best("video")
    stream = best if best in streams else streams[0]
    context = stream.codec_context
    if context is None:
        detail = (
            f"the codec of video stream {stream.index} is none that FFmpeg "
            f"{av.ffmpeg_version_info} knows in {media.format.name}; HEVC in ASF is such a case"
        )
        raise UnreadableVideo(source.video_id, detail)
    pixels = (context.width or 0) * (context.height or 0)
    if pixels > limits.max_pixels:
        raise RefusedVideo(
            source.video_id,
            f"{context.width}x{context.height} = {pixels} pixels, the limit is {limits.max_pixels}",
        )
    duration = (media.duration or 0) / 1e6
    # A header may lie about its duration in either direction; `check_limits` judges the packets.
    if duration > 1000 * limits.max_duration:
        raise RefusedVideo(source.video_id, f"claims to last {duration:.0f} s")
    return stream


def _read_packets(
    source: Source, media: Any, stream: Any, content: Bytes, limits: Limits
) -> _Packets:
    context = stream.codec_context
    codec = context.codec.canonical_name
    found = _Packets(direct=codec in _DIRECT_CODECS)
    length_size = nal_length_size(codec, context.extradata or b"")
    try:
        for packet in packets_of(media, stream):
            if packet.size == 0:
                continue
            if len(found.sizes) >= limits.max_frames:
                raise RefusedVideo(source.video_id, f"more than {limits.max_frames} frames")
            _note_packet(found, packet, codec, length_size, content)
    except (FFmpegError, OSError, ValueError) as error:
        found.error = str(error)
    if not found.sizes:
        if found.error:
            raise UnreadableVideo(source.video_id, f"no packet can be read: {found.error}")
        raise UnreadableVideo(source.video_id, "the video stream has no packets", "empty")
    return found


def _note_packet(
    found: _Packets, packet: Any, codec: str, length_size: int, content: Bytes
) -> None:
    data = bytes(packet)
    facts = inspect(codec, data, length_size)
    flags = int(facts.flags)
    flags |= PacketFlag.KEY if packet.is_keyframe else 0
    flags |= PacketFlag.DISCARD if packet.is_discard else 0
    position = packet.pos if packet.pos is not None else -1
    if found.direct:
        held = content.read(position, len(data) + _FIND_WITHIN) if position >= 0 else b""
        offset = held.find(data)
        found.direct = offset >= 0 and not any(True for _ in packet.iter_sidedata())
        position += max(offset, 0)
    found.suspicious |= bool(packet.is_corrupt) or bool(facts.flags & PacketFlag.BROKEN)
    if len(found.head) < _HEAD:
        found.head.append(packet)
    found.positions.append(position)
    found.sizes.append(len(data))
    found.pts.append(NO_TIME if packet.pts is None else packet.pts)
    found.dts.append(NO_TIME if packet.dts is None else packet.dts)
    found.durations.append(packet.duration or 0)
    found.flags.append(flags)
    found.layers.append(facts.layer)


def _assemble(
    source: Source, container: str, media: Any, stream: Any, packets: _Packets
) -> VideoIndex:
    context = stream.codec_context
    flags = np.array(packets.flags, np.uint8)
    layers = np.array(packets.layers)
    # In HEVC a picture of a lower layer may serve higher ones; only the highest layer is free.
    flags[layers < layers.max()] &= ~np.uint8(PacketFlag.DROPPABLE)
    reorders = _may_reorder(context, flags)
    told = np.array(packets.pts, np.int64), np.array(packets.dts, np.int64)
    pts, dts = known_times(
        container, *told, reorders, context.reorder_depth, context.codec.canonical_name
    )
    time_base = float(stream.time_base or 0) or 1.0 / 25
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    hidden = flags & (PacketFlag.HIDDEN | PacketFlag.DISCARD)
    shown = np.flatnonzero(hidden == 0).astype(np.int64)
    times, order = display_order(shown, pts, dts, time_base, rate)
    # No picture that comes before a key frame is shown after it, unless the clock begins anew.
    restarts = (crossings(pts)[(flags & PacketFlag.KEY) > 0] > STRAY).any()
    packets.doubtful_order = (reorders and ascending(pts[shown])) or bool(restarts)
    frame_packets = shown[order]
    last = packets.durations[frame_packets[-1]] * time_base if len(shown) else 0.0
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    step = step if step > 0 else 1.0 / rate
    index = VideoIndex(
        info=_info(source, container, media, stream),
        container=container,
        stream=stream.index,
        extradata=bytes(context.extradata or b""),
        direct=packets.direct,
        time_base=time_base,
        positions=np.array(packets.positions, np.int64),
        sizes=np.array(packets.sizes, np.int64),
        pts=pts,
        dts=dts,
        flags=flags,
        frame_packets=frame_packets,
        concealed=np.zeros(len(frame_packets), np.bool_),
    )
    end = float(times[-1]) + (last if 0 < last < 10 * max(step, 0.1) else step) if len(times) else 0
    info = replace(
        index.info,
        frame_times=times,
        keyframes=np.flatnonzero(flags[frame_packets] & PacketFlag.KEY).astype(np.int64),
        duration=end,
        start=start_time(frame_packets, pts, dts, time_base),
    )
    return replace(index, info=info)


def _may_reorder(context: Any, flags: Any) -> bool:
    """Whether pictures may be shown in another order than they are coded in."""
    codec = context.codec
    if not codec.reorder:
        return False
    # The packets of H.264 and HEVC tell; those of the older codecs are not looked into.
    bipredicted = bool((flags & PacketFlag.BIPREDICTED).any())
    return bipredicted or context.reorder_depth > 0 or codec.canonical_name not in _COUNTABLE


def _info(source: Source, container: str, media: Any, stream: Any) -> VideoInfo:
    context = stream.codec_context
    return VideoInfo(
        video_id=source.video_id,
        container=container,
        codec=context.codec.canonical_name,
        pixel_format=context.pix_fmt or "",
        width=context.width,
        height=context.height,
        coded_width=context.width,
        coded_height=context.height,
        rotation=0,
        duration=0.0,
        frame_times=np.zeros(0),
        keyframes=np.zeros(0, np.int64),
        audio=tuple(_audio_track(s) for s in media.streams.audio if s.codec_context is not None),
        subtitles=tuple(_subtitle_track(s) for s in media.streams.subtitles),
    )


def _audio_track(stream: Any) -> AudioTrack:
    context = stream.codec_context
    duration = float(stream.duration * stream.time_base) if stream.duration else None
    return AudioTrack(
        context.codec.canonical_name, context.rate, context.channels, duration, stream.language
    )


def _subtitle_track(stream: Any) -> SubtitleTrack:
    context = stream.codec_context
    name = context.codec.canonical_name if context is not None else "unknown"
    return SubtitleTrack(name, stream.language)


@dataclass
class _Look:
    index: VideoIndex
    uncertain: bool


def _first_look(source: Source, index: VideoIndex, limits: Limits) -> _Look:
    """Decode a file anew until the first frame."""
    with Bytes(source) as content:
        container, cut = check_bytes(source, content, limits)
    with open_media(source, container, limits, cut) as media:
        stream = media.streams[index.stream]
        look = _look_at(source, index, stream, packets_of(media, stream), limits)
        return look or _Look(index, uncertain=True)


def _look_at(
    source: Source, index: VideoIndex, stream: Any, packets: Iterable[Any], limits: Limits
) -> _Look | None:
    """Decode until the first frame: true size, rotation, sample aspect, colours.

    None where these packets give no frame.
    """
    stream.codec_context.thread_count = 1
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    try:
        frame = next((frame for packet in packets for frame in packet.decode()), None)
    except (FFmpegError, OSError, ValueError):
        return _Look(index, uncertain=True)
    if frame is None:
        return None
    check_picture(source.video_id, frame, limits)
    seen = _with_picture(index, frame, float(aspect or 1))
    return _Look(seen, uncertain=seen.interlaced)


def _with_picture(index: VideoIndex, frame: Any, aspect: float) -> VideoIndex:
    rotation = -round(frame.rotation / 90) * 90 % 360
    # A ratio within 2% of square is what scalers leave behind; wild ones are lies.
    aspect = aspect if 0.1 <= aspect <= 10 and abs(aspect - 1) > 0.02 else 1.0
    width, height = max(1, round(frame.width * aspect)), frame.height
    if rotation in (90, 270):
        width, height = height, width
    info = replace(
        index.info,
        pixel_format=frame.format.name,
        width=width,
        height=height,
        coded_width=frame.width,
        coded_height=frame.height,
        rotation=rotation,
    )
    return replace(
        index,
        info=info,
        colorspace=int(frame.colorspace),
        color_range=int(frame.color_range),
        interlaced=bool(frame.interlaced_frame),
    )


def _countable(index: VideoIndex) -> bool:
    """Whether the packets alone tell every frame."""
    if index.info.codec not in _COUNTABLE or (index.pts == NO_TIME).any():
        return False
    if not index.flags[0] & PacketFlag.KEY:
        return False
    shown = index.pts[index.frame_packets]
    if len(shown) == 0 or (np.diff(shown) <= 0).any():
        return False
    # Pictures that lead the very first key frame may have lost what they refer to.
    return bool(index.pts[0] <= index.pts.min())


def stat_key(source: Source) -> bytes:
    """What tells one state of a file from another: path, size, modification time."""
    if source.data is not None:
        return b""
    status = os.stat(source.path)
    place = os.fsencode(os.path.abspath(source.path))  # names need not be text
    return place + f"\0{status.st_size}\0{status.st_mtime_ns}".encode()
