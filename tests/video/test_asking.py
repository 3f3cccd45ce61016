"""What no backend could answer is refused by all of them, with the value and the limit."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from PIL import Image
from tests.helpers import require
from tests.video.conftest import Rendered
from tests.video.counter_video import picture

from rushes.errors import ConfigError, FrameUnavailable, RefusedVideo, RushesError
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Audio, Features, Frames, Output, Request, Size, VideoReader
from rushes.video.store_build import build_store
from rushes.video.store_format import StoreSettings

BACKENDS = ["pyav", "decord", "opencv", "torchcodec", "images", "store"]
NAN, INF = math.nan, math.inf
WRONG: list[tuple[Output, type[RushesError], str]] = [
    (Frames((0.0,), Size(20_000, 20_000)), RefusedVideo, "20000x20000 .* 16384 a side"),
    (Frames((0.0,), Size(2, 200_000)), RefusedVideo, "2x200000 .* 16384 a side"),
    (Frames((0.0,), Size(6001, 6001)), RefusedVideo, "6001x6001 .* 36000000"),
    (Frames((0.0,), Size(0, 5)), RefusedVideo, r"\(0, 5\)"),
    (Frames((0.0,), resample=cast(Any, "lanczos")), ConfigError, "resample='lanczos'.*bicubic"),
    (Frames((NAN,)), FrameUnavailable, "nan"),
    (Frames((-INF,)), FrameUnavailable, "inf"),
    (Audio(0.0, INF), FrameUnavailable, "inf.*limit is 1e"),
    (Audio(0.0, NAN), FrameUnavailable, "nan.*limit is 1e"),
    (Audio(-INF, 1.0), FrameUnavailable, "inf.*limit is 1e"),
    (Audio(-1e300, 1.0), FrameUnavailable, "limit is 1e"),
    (Audio(2.0, 1.0), FrameUnavailable, r"\[2\.0, 1\.0\)"),
    (Audio(0.0, 1.0, 9_999_991), RefusedVideo, "9999991 Hz .* 768000"),
    (Audio(0.0, 1.0, 1), RefusedVideo, "1 Hz .* 100 and"),
    (Audio(0.0, 1.0, 0), RefusedVideo, "0 Hz .* 100 and"),
    (Features("x", NAN, 1.0), FrameUnavailable, "nan"),
]


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, counter: Rendered
) -> Callable[[str], VideoReader]:
    folder = tmp_path_factory.mktemp("asking")
    path = shutil.copy(counter("h264_sound.mp4")[1], folder / "v.mp4")
    (folder / "images/v").mkdir(parents=True)
    for number in range(3):
        image = Image.fromarray(picture(number, 160, 96))
        image.save(folder / f"images/v/{number:03d}.jpg")
    catalogue = Catalogue.from_items({"v": path})
    build_store(catalogue, folder / "store", StoreSettings(), jobs=0)

    def open_one(backend: str) -> VideoReader:
        if backend in ("images", "store"):
            return open_reader(open_catalogue(folder / backend))
        if backend == "torchcodec":
            require("torchcodec")
        return open_reader(catalogue, backend)

    return open_one


@pytest.mark.attack
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_refuses_what_cannot_be(
    backend: str, opened: Callable[[str], VideoReader]
) -> None:
    reader = opened(backend)
    began = time.monotonic()
    for output, error, text in WRONG:
        with pytest.raises(error, match=text):
            reader.read(Request("v", (output,)))
    whole = (Frames((0.0,)),)
    with pytest.raises(ConfigError, match=r"policy='loose'.*strict or repeat_last"):
        reader.read(Request("v", whole, policy=cast(Any, "loose")))
    with pytest.raises(ConfigError, match="two outputs of one name"):
        reader.read(Request("v", whole * 2))
    with pytest.raises(ConfigError, match="deadline=nan"):
        reader.read(Request("v", whole, deadline=NAN))
    assert len(reader.read(Request("v", whole)).arrays["frames"]) == 1
    assert time.monotonic() - began < 20
    reader.close()


@pytest.mark.attack
def test_numbers_of_other_kinds_are_taken_alike(opened: Callable[[str], VideoReader]) -> None:
    reader = opened("pyav")
    plain = reader.read(Request("v", (Frames((0.0, 0.5)), Audio(0.0, 0.5, 16000))))
    odd = Audio(cast(Any, "0"), cast(Any, "0.5"), cast(Any, 16000.0))
    other = reader.read(Request("v", (Frames(cast(Any, (t for t in (0, 0.5)))), odd)))
    for name, array in plain.arrays.items():
        assert (array == other.arrays[name]).all()
    reader.close()


@pytest.mark.parametrize("size", [Size(1, 16_384), Size(16_384, 1), Size(2197, 16_384), Size(1, 1)])
@pytest.mark.parametrize("method", ["area", "bilinear", "bicubic", "nearest"])
def test_every_allowed_size_is_given_or_refused(
    size: Size, method: Any, opened: Callable[[str], VideoReader]
) -> None:
    reader = opened("pyav")
    reply = reader.read(Request("v", (Frames((0.5,), size, resample=method),)))
    assert reply.arrays["frames"].shape == (1, *size, 3)
    reader.close()
