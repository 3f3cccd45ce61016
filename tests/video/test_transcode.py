"""What is made of a file holds the same moments: counter videos in, the right numbers out."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests.video.counter_video import RECIPES, Recipe, number_of, render, shown

from rushes.errors import (
    BackendMissing,
    ConfigError,
    DecodeTimeout,
    NoVideoStream,
    RefusedVideo,
    UnreadableVideo,
    VideoError,
)
from rushes.video import ffmpeg_process, transcode
from rushes.video.catalogue import Catalogue, Source
from rushes.video.cutting import cut
from rushes.video.frame_dump import DumpSettings, decode_frames, dumped
from rushes.video.limits import Limits
from rushes.video.probe import probe
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import Audio, Frames, Request
from rushes.video.transcode import (
    Settings,
    compress,
    ffmpeg_binary,
    picture_size,
)

NAMES = [recipe.name for recipe in RECIPES]
FAST = Settings(preset="ultrafast", crf=18)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where counter videos are rendered, each once."""
    return tmp_path_factory.mktemp("counters")


@cache
def rendered(folder: Path, name: str) -> Source:
    """The counter video of a recipe."""
    recipe = next(r for r in RECIPES if r.name == name)
    return Source("file", Path(name).stem, render(recipe, folder))


def recipe_of(name: str) -> Recipe:
    """The recipe of a name."""
    return next(r for r in RECIPES if r.name == name)


def on_screen(times: npt.NDArray[np.float64], moments: npt.NDArray[np.float64]) -> list[int]:
    """Index of the frame on screen at each moment."""
    found = np.searchsorted(times, moments + 1e-6, side="right") - 1
    return [int(i) for i in np.clip(found, 0, len(times) - 1)]


@pytest.mark.parametrize("name", NAMES)
def test_compressing_keeps_every_frame_at_its_time(name: str, folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, name)
    before = probe(source)
    made = compress(source, tmp_path / "out.mp4", FAST).info
    assert made.num_frames == before.num_frames
    np.testing.assert_allclose(made.frame_times, before.frame_times, atol=0.002)
    assert (made.codec, made.rotation) == ("h264", 0)
    assert abs(made.width - before.width) <= 1
    assert abs(made.height - before.height) <= 1
    assert np.diff(made.keyframes).max(initial=0) <= FAST.gop
    if recipe_of(name).rotation == 0:
        # The first pictures of some recipes begin at a later number; none is lost or repeated.
        assert shown(tmp_path / "out.mp4") == shown(source.path)


@pytest.mark.parametrize(
    "name",
    ["h264_vfr.mp4", "h264_late.ts", "h264_b.mp4", "mpeg4_b.avi", "h264_b.avi", "h264_b.asf"],
)
def test_another_rate_shows_what_was_on_screen(name: str, folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, name)
    before = probe(source)
    made = compress(source, tmp_path / "out.mp4", Settings(fps=6, preset="ultrafast")).info
    np.testing.assert_allclose(made.frame_times, np.arange(made.num_frames) / 6, atol=1e-3)
    assert abs(made.num_frames - before.duration * 6) <= 1.5
    assert shown(tmp_path / "out.mp4") == on_screen(before.frame_times, made.frame_times)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize(
    "name", ["h264_b.mp4", "h264_late.mp4", "h264_late.ts", "h264_vfr.mkv", "h264_open.mp4",
             "hevc.mp4", "vp9.webm", "mpeg2.ts", "mpeg4_b.avi", "h264_b.avi", "h264_pyramid.asf",
             "h264_stamped.mkv"],
)  # fmt: skip
def test_cuts_are_exact_or_say_where_they_begin(
    name: str, copy: bool, folder: Path, tmp_path: Path
) -> None:
    source = rendered(folder, name)
    times = probe(source).frame_times
    if copy and (name.endswith((".avi", ".asf")) or "stamped" in name):
        with pytest.raises(UnreadableVideo, match="cannot be copied into MP4"):
            cut(source, tmp_path / "cut.mp4", 0.0, 1.0, FAST, copy=True)
        return
    for start, end in ((0.0, 0.5), (0.79, 1.61), (1.0, math.inf)):
        made = cut(source, tmp_path / "cut.mp4", start, end, FAST, copy=copy)
        numbers = shown(tmp_path / "cut.mp4")
        first = on_screen(times, np.array([made.start]))[0]
        assert times[first] == pytest.approx(made.start, abs=1e-6)
        assert numbers[0] == first
        assert made.start <= start + 1e-6
        last = int(np.searchsorted(times, end - 1e-6))
        if copy:
            assert set(range(first, last)) - set(numbers[: last - first + 8]) <= set()
        else:
            assert numbers == list(range(first, last))
            assert start < times[first + 1]


def test_sound_goes_along(folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, "h264_sound.mp4")
    assert compress(source, tmp_path / "a.mp4", FAST).info.audio[0].codec == "aac"
    assert not compress(source, tmp_path / "b.mp4", Settings(audio=False)).info.audio
    made = cut(source, tmp_path / "c.mp4", 1.0, 2.0, FAST)
    assert made.info.audio[0].duration == pytest.approx(1.0, abs=0.06)
    with av.open(str(tmp_path / "c.mp4")) as media:
        rate = media.streams.audio[0].rate
        sound = np.concatenate([f.to_ndarray().reshape(-1) for f in media.decode(audio=0)])
    # The chirp is at 100 + 400 t Hz: in the middle of the cut at 700.
    part = sound[rate // 2 - 2048 : rate // 2 + 2048].astype(np.float64)
    peak = np.argmax(np.abs(np.fft.rfft(part * np.hanning(len(part))))) * rate / len(part)
    assert peak == pytest.approx(700, abs=25)


@pytest.mark.parametrize("fps", [None, 25.0])
def test_sound_stays_with_pictures_that_begin_late(fps: float | None, tmp_path: Path) -> None:
    """Flash and beep at one moment, in a file whose sound begins a second before its pictures."""
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as media:
        pictures = media.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = media.add_stream("pcm_s16le", rate=16000)
        sound.layout = "mono"
        wave = np.zeros((1, 3 * 16000), np.int16)
        wave[0, 24000:27200] = 20000 * np.sin(np.arange(3200))
        block = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        block.sample_rate, block.pts = 16000, 0
        media.mux(sound.encode(block))
        for i in range(50):
            level = 255 if 12 <= i < 18 else 0
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), "rgb24")
            frame.pts = 25 + i
            media.mux(pictures.encode(frame))
        media.mux([*pictures.encode(None), *sound.encode(None)])
    compress(Source("file", "v", path), tmp_path / "out.mp4", Settings(fps=fps))
    for file in (path, tmp_path / "out.mp4"):
        reader = PyAVReader(Catalogue.from_items({"v": file}))
        times = tuple(reader.describe("v").frame_times.tolist())
        reply = reader.read(Request("v", (Frames(times), Audio(0.0, 1.5, 16000))))
        reader.close()
        flash = times[int((reply.arrays["frames"].mean((1, 2, 3)) > 128).argmax())]
        beep = int((np.abs(reply.arrays["audio"]) > 0.1).argmax()) / 16000
        assert flash == pytest.approx(0.48, abs=0.03)
        assert beep == pytest.approx(0.5, abs=0.03)


def test_sizes_are_even_square_and_never_enlarged(folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, "h264_turned90.mp4")
    info = probe(source)
    assert info.height > info.width
    made = compress(source, tmp_path / "out.mp4", Settings(height=80, preset="ultrafast")).info
    assert (made.width, made.height) == (48, 80)
    assert picture_size(info, 4000) == (96, 160)


@pytest.mark.parametrize("codec", ["hevc", "vp9", "av1", "mpeg4"])
def test_other_codecs(codec: Any, folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, "h264_b.mp4")
    made = compress(source, tmp_path / "out.mp4", Settings(codec=codec, crf=20)).info
    assert made.codec == codec
    assert shown(tmp_path / "out.mp4") == list(range(60))


def test_bad_sources_raise_their_reason_and_leave_nothing(tmp_path: Path) -> None:
    empty, text, target = tmp_path / "e.mp4", tmp_path / "t.mp4", tmp_path / "out" / "x.mp4"
    empty.touch()
    text.write_text("no video at all\n" * 100)
    for path, reason in ((empty, "empty"), (text, "not_video")):
        with pytest.raises(UnreadableVideo) as caught:
            compress(Source("file", "x", path), target, FAST)
        assert caught.value.reason == reason
    assert not list(tmp_path.glob("out/**/*.*"))


@pytest.mark.attack
def test_a_playlist_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    """Neither by its name nor by its content does a list reach ffmpeg as a list."""
    secret = rendered(folder, "h264_ip.mp4").path
    for name, content in (
        ("a.mp4", f"ffconcat version 1.0\nfile {secret}\n"),
        ("b.mp4", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(VideoError):
            compress(Source("file", name, tmp_path / name), tmp_path / "out.mp4", FAST)
    assert not (tmp_path / "out.mp4").exists()


def test_names_are_never_taken_for_options_or_patterns(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "a b%03d"
    base.mkdir()
    path = base / "-i http:x 'q'.mp4"
    shutil.copy(rendered(folder, "h264_b.mp4").path, path)
    source = Source("file", "odd/50% name", path)
    assert compress(source, base / "-out %d.mp4", FAST).info.num_frames == 60
    dump = decode_frames(source, base / "hi%d", base / "lo", DumpSettings(min_frames=1))
    assert sorted(p.name for p in (base / "hi%d").glob("*.jpg"))[0] == "50% name_000.jpg"
    assert dump.num_frames == 15


def test_a_failing_ffmpeg_is_told_and_a_hanging_one_is_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rendered(folder, "h264_b.mp4")
    fake = tmp_path / "ffmpeg"
    monkeypatch.setattr(ffmpeg_process, "ffmpeg_binary", lambda: str(fake))
    monkeypatch.setattr(transcode, "ffmpeg_binary", lambda: str(fake))
    monkeypatch.setattr(transcode, "knows_fps_mode", lambda _: True)

    def behaves(script: str) -> None:
        fake.write_text(f"#!/bin/sh\nfor last; do :; done\nout=${{last#file:}}\n{script}\n")
        fake.chmod(0o755)

    behaves("echo 'no space left' >&2; exit 3")
    with pytest.raises(UnreadableVideo, match="ended with 3: no space left"):
        compress(source, tmp_path / "x.mp4", FAST)
    # A result that lacks frames is found, though ffmpeg says that all is well.
    short = rendered(folder, "av1.mp4").path
    behaves(f'cp "{short}" "$(echo "$*" | grep -o "/[^ ]*part")"')
    with pytest.raises(UnreadableVideo, match="has 40 frames, not 60"):
        compress(source, tmp_path / "x.mp4", FAST)
    behaves("exec sleep 60")
    start = time.monotonic()
    with pytest.raises(DecodeTimeout, match=r"longer than 0\.5 s"):
        compress(source, tmp_path / "x.mp4", Settings(timeout=0.5))
    assert time.monotonic() - start < 20
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]


def test_without_any_ffmpeg_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ffmpeg_binary.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "imageio_ffmpeg" in ffmpeg_binary()
    ffmpeg_binary.cache_clear()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(BackendMissing, match="pip install imageio-ffmpeg"):
        ffmpeg_binary()
    ffmpeg_binary.cache_clear()


def test_the_carried_binary_does_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    ffmpeg_binary.cache_clear()
    try:
        made = compress(rendered(folder, "h264_vfr.mp4"), tmp_path / "x.mp4", FAST)
        cut(rendered(folder, "h264_late.mkv"), tmp_path / "y.mp4", 0.5, 1.0, FAST)
    finally:
        ffmpeg_binary.cache_clear()
    assert made.info.num_frames == 60


def test_sound_only_is_no_video(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "sound.mp4"
    source = rendered(folder, "h264_sound.mp4").path
    subprocess.run(
        [ffmpeg_binary(), "-loglevel", "error", "-i", source, "-vn", "-c", "copy", path], check=True
    )
    with pytest.raises(NoVideoStream):
        compress(Source("file", "s", path), tmp_path / "x.mp4", FAST)


@pytest.mark.parametrize(
    "name", ["h264_vfr.mp4", "h264_late.ts", "h264_turned90.mp4", "h264_b.avi"]
)
def test_dumped_frames_show_their_moments(name: str, folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, name)
    info = probe(source)
    high, low = tmp_path / "video_frames/x", tmp_path / "video_frames_lr/x"
    dump = decode_frames(source, high, low, DumpSettings(fps=6, min_frames=20))
    assert dump.num_frames == max(20, math.ceil(info.duration * 6 - 1e-6))
    assert dumped(high, low) == dump
    names = [f"{source.video_id}_{i:03d}.jpg" for i in range(dump.num_frames)]
    assert sorted(p.name for p in high.glob("*.jpg")) == names
    assert sorted(p.name for p in low.glob("*.jpg")) == names
    wanted = on_screen(info.frame_times, np.arange(dump.num_frames) / dump.fps)
    for number, file in zip(wanted, names, strict=True):
        for path, size in ((high / file, (info.width, info.height)), (low / file, (288, 180))):
            with Image.open(path) as image:
                assert image.size == size
                assert info.rotation or number_of(np.asarray(image)) == number
    (low / names[3]).unlink()
    assert dumped(high, low) is None


@pytest.mark.parametrize("count", [16, 19, 23, 28])
def test_rates_without_end_hit_the_frames(count: int, folder: Path, tmp_path: Path) -> None:
    """Where a moment is that of a frame, a rate rounded upwards would show the one before."""
    source = rendered(folder, "h264_b.mp4")
    times = probe(source).frame_times
    dump = decode_frames(source, tmp_path / "h", tmp_path / "l", DumpSettings(1.0, count))
    assert dump.num_frames == count
    pictures = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "h").glob("*.jpg"))]
    assert [number_of(p) for p in pictures] == on_screen(times, np.arange(count) / dump.fps)


def test_a_cut_keeps_its_sound_to_the_end_of_its_last_picture(tmp_path: Path) -> None:
    """Slides stay on screen for seconds, and so does what is said to them."""
    path = tmp_path / "slides.mp4"
    slides, tone = "testsrc2=s=64x64:r=1/5:d=20", "sine=440:d=20"
    subprocess.run(
        [ffmpeg_binary(), "-loglevel", "error", "-f", "lavfi", "-i", slides, "-f", "lavfi"]
        + ["-i", tone, "-c:v", "libx264", "-bf", "0", "-c:a", "aac", str(path)],
        check=True,
    )
    for start, end, seconds in ((6.0, 9.0, 5.0), (6.0, 12.0, 10.0), (11.0, 20.0, 10.0)):
        source = Source("file", "s", path)
        made = cut(source, tmp_path / "cut.mp4", start, end, FAST).info
        assert made.duration == pytest.approx(seconds, abs=0.01)
        assert made.audio[0].duration == pytest.approx(seconds, abs=0.06)


@pytest.mark.parametrize("ending", ["avi", "asf"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg1video"])
def test_sound_keeps_its_place_where_times_are_made_up(
    ending: str, codec: str, tmp_path: Path
) -> None:
    path = tmp_path / f"flash.{ending}"
    flash = "color=black:s=64x64:r=25:d=4,geq=lum='if(eq(N,50),255,16)':cb=128:cr=128"
    beep = "aevalsrc='if(between(t,2,2.04),sin(2*PI*1000*t),0)':s=48000:d=4"
    subprocess.run(
        [ffmpeg_binary(), "-loglevel", "error", "-f", "lavfi", "-i", flash, "-f", "lavfi"]
        + ["-i", beep, "-c:v", codec, "-bf", "2", "-g", "25", "-threads", "1"]
        + ["-c:a", "pcm_s16le", str(path)],
        check=True,
    )
    source = Source("file", "flash", path)
    made = {"whole": tmp_path / "a.mp4", "steady": tmp_path / "b.mp4", "cut": tmp_path / "c.mp4"}
    compress(source, made["whole"], FAST)
    compress(source, made["steady"], Settings(fps=25, preset="ultrafast"))
    cut(source, made["cut"], 1.0, 3.0, FAST)
    for name, result in {"source": path, **made}.items():
        reader = PyAVReader(Catalogue.from_items({"v": result}))
        times = reader.describe("v").frame_times
        wanted = (Frames(tuple(times.tolist()), name="f"), Audio(0.0, float(times[-1]), 48000))
        arrays = reader.read(Request("v", wanted)).arrays
        lit = times[int(arrays["f"].mean((1, 2, 3)).argmax())]
        heard = int(np.argmax(np.abs(arrays["audio"]) > 0.2)) / 48000
        assert lit == pytest.approx(1.0 if name == "cut" else 2.0, abs=2e-3), name
        assert heard == pytest.approx(lit, abs=4e-3), name


def test_a_dump_has_a_limit(folder: Path, tmp_path: Path) -> None:
    source = rendered(folder, "h264_b.mp4")
    with pytest.raises(RefusedVideo, match="2400 pictures in 2 s, the limit is 100"):
        decode_frames(
            source, tmp_path / "hi", tmp_path / "lo", DumpSettings(fps=1000), Limits(max_frames=100)
        )
    assert not list(tmp_path.iterdir())


def test_settings_say_the_value() -> None:
    wrongs: dict[str, Any] = {
        "fps": 0,
        "height": 1,
        "gop": 0,
        "codec": "mp3",
        "crf": 64,
        "timeout": math.inf,
    }
    for name, value in wrongs.items():
        with pytest.raises(ConfigError, match=str(value)):
            Settings(**{name: value})
    with pytest.raises(ConfigError, match="quality=40"):
        DumpSettings(quality=40)
