"""Sound is where it should be to the sample, from any window, at any rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.video.counter_video import Recipe, chirp, picture

from rushes.errors import DecodeTimeout, FrameUnavailable, RefusedVideo
from rushes.video.catalogue import Catalogue
from rushes.video.limits import Limits
from rushes.video.readers import open_reader
from rushes.video.request import Audio, Frames, Request

CASES = [
    ("pcm.mkv", "pcm_s16le", 48000, 1e-3),
    ("pcm.mov", "pcm_s16le", 44100, 1e-3),
    ("pcm.avi", "pcm_s16le", 48000, 1e-3),
    ("pcm.asf", "pcm_s16le", 48000, 1e-3),
    ("flac.mkv", "flac", 44100, 1e-3),
    ("aac.mp4", "aac", 48000, 0.05),
    ("mp3.mp4", "libmp3lame", 44100, 0.05),
    ("opus.webm", "libopus", 48000, 0.05),
]


def film(path: Path, codec: str, rate: int, seconds: int = 6) -> Path:
    recipe = Recipe(path.name, frames=10 * seconds, rate=10)
    with av.open(str(path), "w") as media:
        vp8 = path.suffix == ".webm"
        video: Any = media.add_stream("libvpx" if vp8 else "libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = media.add_stream(codec, rate=rate, layout="mono")
        if sound.codec_context.bit_rate is not None and not codec.startswith(("pcm", "flac")):
            sound.codec_context.bit_rate = 192_000
        samples = chirp(seconds * rate, rate)
        for number in range(recipe.frames):
            frame = av.VideoFrame.from_ndarray(picture(number, 64, 48), format="rgb24")
            frame.pts = number
            media.mux(video.encode(frame))
        media.mux(video.encode(None))
        resampler = av.AudioResampler(
            format=sound.codec_context.format.name, layout="mono", rate=rate,
            frame_size=sound.codec_context.frame_size or 1024,
        )  # fmt: skip
        part = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        part.sample_rate, part.pts = rate, 0
        for piece in [*resampler.resample(part), *resampler.resample(None)]:
            media.mux(sound.encode(piece))
        media.mux(sound.encode(None))
    return path


@pytest.mark.parametrize(("name", "codec", "rate", "tolerance"), CASES)
def test_a_chirp_is_sample_exact(
    tmp_path: Path, name: str, codec: str, rate: int, tolerance: float
) -> None:
    path = film(tmp_path / name, codec, rate)
    reader = open_reader(Catalogue.from_items({"v": path}))
    for start, end in ((0.5, 1.0), (3.2501, 3.9), (5.0, 5.5)):
        for asked in (16000, rate):
            reply = reader.read(Request("v", (Audio(start, end, asked),)))
            got: Any = reply.arrays["audio"]
            count = round((end - start) * asked)
            assert got.dtype == np.float32
            assert got.shape == (count,)
            t = start + np.arange(count) / asked
            expected = 0.6 * np.sin(2 * np.pi * (100 * t + 200 * t * t))
            assert np.sqrt(np.mean((got - expected) ** 2)) < tolerance
            # Neighbouring samples differ: one sample aside would be seen.
            shifts = [float(np.dot(got[2:-2], np.roll(expected, s)[2:-2])) for s in (-1, 0, 1)]
            assert int(np.argmax(shifts)) == 1


def test_matroska_rounds_its_own_stamps(tmp_path: Path) -> None:
    # The encoder's delay is no whole millisecond, so the file itself puts sound and picture up to
    # half a millisecond aside: the same everywhere, and no more.
    reader = open_reader(Catalogue.from_items({"v": film(tmp_path / "a.mkv", "aac", 44100)}))
    lags = []
    for start in (0.5, 2.3, 5.0):
        reply = reader.read(Request("v", (Audio(start, start + 0.5, 44100),)))
        got: Any = reply.arrays["audio"]
        candidates = np.arange(-60, 61) / 44100
        t = start + np.arange(len(got)) / 44100
        errors = [
            np.mean((got - 0.6 * np.sin(2 * np.pi * (100 * u + 200 * u * u))) ** 2)
            for u in (t + lag for lag in candidates)
        ]
        assert min(errors) < 0.01
        lags.append(int(np.argmin(errors)) - 60)
    assert max(lags) - min(lags) <= 1
    assert max(map(abs, lags)) <= 23


def test_windows_tile(tmp_path: Path) -> None:
    reader = open_reader(Catalogue.from_items({"v": film(tmp_path / "a.mp4", "aac", 48000)}))
    whole: Any = reader.read(Request("v", (Audio(1.0, 4.0, 16000),))).arrays["audio"]
    parts: list[Any] = [
        reader.read(Request("v", (Audio(s, s + 1.0, 16000),))).arrays["audio"]
        for s in (1.0, 2.0, 3.0)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-3)


def test_past_the_end_is_silence_or_an_error(tmp_path: Path) -> None:
    reader = open_reader(Catalogue.from_items({"v": film(tmp_path / "a.mkv", "pcm_s16le", 48000)}))
    got = reader.read(Request("v", (Audio(5.5, 7.0, 16000),))).arrays["audio"]
    assert np.abs(got[:7000]).max() > 0.3
    assert np.abs(got[8200:]).max() == 0.0
    with pytest.raises(FrameUnavailable):
        reader.read(Request("v", (Audio(5.5, 7.0, 16000),), policy="strict"))


def test_a_silent_film_has_no_sound(tmp_path: Path) -> None:
    from tests.video.counter_video import RECIPES, render

    path = render(RECIPES[0], tmp_path)
    reader = open_reader(Catalogue.from_items({"v": path}))
    with pytest.raises(FrameUnavailable, match="no sound track"):
        reader.read(Request("v", (Frames((0.0,)), Audio(0.0, 1.0))))


def test_the_deadline_holds_for_sound(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", "pcm_s16le", 48000)
    for backend in ("pyav", "opencv"):
        reader = open_reader(Catalogue.from_items({"v": path}), backend)
        reader.describe("v")
        with pytest.raises(DecodeTimeout):
            reader.read(Request("v", (Audio(1.0, 5.0, 16000),), deadline=1e-6))


def test_a_window_of_too_much_sound_is_refused(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", "pcm_s16le", 48000)
    limits = Limits(max_reply_bytes=100_000)
    reader = open_reader(Catalogue.from_items({"v": path}), limits=limits)
    # The reply is small; what must be decoded for it is not.
    with pytest.raises(RefusedVideo, match=r"bytes of sound at 48000 Hz, the limit is 100000"):
        reader.read(Request("v", (Audio(0.0, 2.0, 100),)))
