"""Files that reach for other files, lie about themselves or blow up are refused at the door."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest
from tests.video.conftest import Rendered

from rushes.errors import FrameUnavailable, RefusedVideo, UnreadableVideo, VideoError
from rushes.video.catalogue import Catalogue
from rushes.video.ffmpeg_process import ffmpeg_binary
from rushes.video.limits import Limits
from rushes.video.media import MAX_REORDER, bare_context
from rushes.video.probe import build_index, probe, source_of
from rushes.video.readers import open_reader
from rushes.video.request import Audio, Frames, Request, Size

pytestmark = pytest.mark.attack

PLAYLISTS = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nok.ts\n#EXT-X-ENDLIST\n",
    "hls-bom": b"\xef\xbb\xbf#EXTM3U\n#EXTINF:9,\nok.ts\n",
    "concat": b"ffconcat version 1.0\nfile ok.ts\n",
    "concat-plain": b"file 'ok.ts'\n",
    "dash": b'<?xml version="1.0"?><MPD><BaseURL>ok.ts</BaseURL></MPD>',
    "smil": b"<smil><body><video src='ok.ts'/></body></smil>",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "asx": b"<asx version='3.0'><entry><ref href='http://h/a'/></entry></asx>",
}


@pytest.mark.parametrize("backend", ["pyav", "decord", "opencv"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_no_file_leads_to_another(
    counter: Rendered, tmp_path: Path, kind: str, backend: str
) -> None:
    (tmp_path / "ok.ts").write_bytes(counter("h264_late.ts")[1].read_bytes())
    path = tmp_path / "x.mp4"
    path.write_bytes(PLAYLISTS[kind])
    reader = open_reader(Catalogue.from_items({"v": path}), backend)
    with pytest.raises(RefusedVideo) as caught:
        reader.read(Request("v", (Frames((0.0,)),)))
    assert caught.value.reason == "hostile"


def test_a_path_is_never_an_address(tmp_path: Path) -> None:
    for name in ("http://127.0.0.1:9/a.mp4", "concat:a.ts|b.ts", "data:video/mp4;base64,AAAA"):
        with pytest.raises(VideoError) as caught:
            probe(name)
        assert caught.value.reason == "missing"


def test_a_movie_reference_to_another_file_is_not_followed(
    counter: Rendered, tmp_path: Path
) -> None:
    data = bytearray(counter("h264_ip.mp4")[1].read_bytes())
    place = data.find(b"url \x00\x00\x00\x01")
    assert place > 0
    data[place + 4 : place + 8] = b"\x00\x00\x00\x00"  # no longer "in this file"
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    before = set(tmp_path.iterdir())
    with contextlib.suppress(VideoError):
        assert probe(path).num_frames >= 0
    assert set(tmp_path.iterdir()) == before


def bomb(path: Path, side: int = 8192, frames: int = 60) -> Path:
    """Flat pictures compress to nothing: gigabytes of pixels in a few hundred kilobytes."""
    with av.open(str(path), "w") as media:
        stream = media.add_stream("libx264", rate=25)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"preset": "ultrafast", "crf": "51"}
        frame = av.VideoFrame(side, side, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(frames):
            frame.pts = number
            media.mux(stream.encode(frame))
        media.mux(stream.encode(None))
    return path


@pytest.mark.slow
def test_a_bomb_is_refused_at_open(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.mp4", frames=12)
    assert path.stat().st_size < 250_000
    began = time.monotonic()
    with pytest.raises(RefusedVideo, match="8192x8192") as caught:
        probe(path)
    assert caught.value.reason == "over_limit"
    assert time.monotonic() - began < 1.0


def test_a_stream_that_grows_on_the_way_is_refused(tmp_path: Path) -> None:
    """Its header and its first picture are small."""
    parts = []
    for name, size in (("small", 64), ("large", 304)):
        path = tmp_path / f"{name}.264"
        with av.open(str(path), "w", format="h264") as media:
            stream = media.add_stream("libx264", rate=25)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for _ in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), "rgb24")
                media.mux(stream.encode(frame))
            media.mux(stream.encode(None))
        parts.append(path.read_bytes())
    path = tmp_path / "grows.264"
    path.write_bytes(b"".join(parts))
    limits = Limits(max_pixels=200 * 200)
    with pytest.raises(RefusedVideo, match="304x304") as caught:
        build_index(source_of(path), limits, deep=True)
    assert caught.value.reason == "over_limit"
    reader = open_reader(Catalogue.from_items({"v": path}), limits=limits)
    end = Request("v", (Frames((0.7,), Size(64, 64)),))
    with pytest.raises(RefusedVideo, match="304x304"):
        reader.read(end)


@pytest.mark.parametrize(("codec", "ending"), [("libx264", "mp4"), ("mpeg2video", "mkv")])
def test_opencv_refuses_interlaced_streams(codec: str, ending: str, tmp_path: Path) -> None:
    """It would hand out memory that it never wrote, with every sign of success."""
    path = tmp_path / f"fields.{ending}"
    lines = ["-flags", "+ildct+ilme"] if codec == "mpeg2video" else ["-x264-params", "interlaced=1"]
    subprocess.run(
        [ffmpeg_binary(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=1"]
        + ["-c:v", codec, *lines, str(path)],
        check=True,
    )
    catalogue = Catalogue.from_items({"v": path})
    request = Request("v", (Frames((0.0, 0.5)),))
    assert open_reader(catalogue).read(request).arrays["frames"].mean() > 50
    with pytest.raises(VideoError, match="interlaced"):
        open_reader(catalogue, "opencv").read(request)


def test_a_header_that_hides_its_size_is_refused_too(counter: Rendered, tmp_path: Path) -> None:
    data = bytearray(counter("h264_ip.mp4")[1].read_bytes())
    place = data.find(b"avc1", data.find(b"stsd")) + 4
    assert struct.unpack(">HH", data[place + 24 : place + 28]) == (160, 96)
    data[place + 24 : place + 28] = struct.pack(">HH", 16, 16)
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError):
        probe(path, Limits(max_pixels=160 * 96 - 1))
    assert probe(path, Limits(max_pixels=160 * 96)).coded_width == 160


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_pixels=1000),
        Limits(max_frames=59),
        Limits(max_bytes=1000),
        Limits(max_duration=2.3),
    ],
)
def test_limits_are_named(counter: Rendered, tmp_path: Path, limits: Limits) -> None:
    path = counter("h264_ip.mp4")[1]
    with pytest.raises(RefusedVideo, match=r"limit|more than") as caught:
        probe(path, limits)
    assert caught.value.reason == "over_limit"
    # What a reader with wider limits kept does not widen those of another.
    catalogue = Catalogue.from_items({"v": path})
    open_reader(catalogue, index_cache=tmp_path).describe("v")
    if limits.max_bytes > 1000:
        with pytest.raises(RefusedVideo):
            open_reader(catalogue, limits=limits, index_cache=tmp_path).describe("v")


def test_a_reply_has_a_limit(counter: Rendered) -> None:
    reader = open_reader(Catalogue.from_items({"v": counter("h264_ip.mp4")[1]}))
    with pytest.raises(RefusedVideo, match="bytes was asked"):
        reader.read(Request("v", (Frames((0.0,) * 100, size=Size(6000, 6000)),)))
    with pytest.raises(RefusedVideo, match="bytes was asked"):
        reader.read(Request("v", (Audio(0.0, 1e9, 48000),)))
    for times in ((float("nan"),), (float("inf"),)):
        with pytest.raises(FrameUnavailable, match="finite"):
            reader.read(Request("v", (Frames(times),)))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not_video"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "not_video"),
        (b"PK\x03\x04" + bytes(100), "not_video"),
        (b"ID3\x04" + bytes(100), "no_video_stream"),
        (b"RIFF\x00\x00\x00\x00WAVE" + bytes(100), "no_video_stream"),
        (np.random.default_rng(0).bytes(5000), "not_video"),
        (bytes(5000), "not_video"),
    ],
)
def test_the_first_bytes_decide(tmp_path: Path, head: bytes, reason: str) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(head)
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == reason


def test_a_codec_that_its_container_cannot_name_is_told(counter: Rendered, tmp_path: Path) -> None:
    given = str(counter("hevc.mp4")[1])
    for ending in ("asf", "avi"):
        command = [ffmpeg_binary(), "-loglevel", "error", "-i", given, "-c", "copy"]
        subprocess.run([*command, str(tmp_path / f"v.{ending}")], check=True)
    told = r"the codec of video stream 0 is none that FFmpeg \S+ knows in asf; HEVC in ASF"
    with pytest.raises(UnreadableVideo, match=told) as caught:
        probe(tmp_path / "v.asf")
    assert caught.value.reason == "undecodable"
    path = tmp_path / "v.avi"
    assert probe(path).num_frames == 60
    # As ffmpeg copies from Matroska: AVI without a mark is one of raw pictures.
    path.write_bytes(path.read_bytes().replace(b"hev1", bytes(4)))
    with pytest.raises(UnreadableVideo, match="0 of 60 packets decode as rawvideo, which avi says"):
        probe(path)


def test_a_folder_or_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(UnreadableVideo, match="no regular file"):
            probe(path)


def test_time_stamps_that_lie_do_not_end_the_process(counter: Rendered) -> None:
    """FFmpeg's H.264 decoder aborts when told to hold back more pictures than a buffer has."""
    _, path = counter("h264_raw.264")
    index = build_index(source_of(path), Limits())
    context = bare_context("h264", index.extradata, Limits(), 1, False, depth=46)
    assert context.reorder_depth <= MAX_REORDER
    data = path.read_bytes()
    shown = 0
    for packet in range(len(index.sizes)):
        first = int(index.positions[packet])
        coded = av.Packet(data[first : first + int(index.sizes[packet])])
        coded.pts = coded.dts = packet
        shown += len(context.decode(coded))
    shown += len(context.decode(None))
    assert shown == index.info.num_frames > 3 * MAX_REORDER
