"""Everything that crosses a process comes out as it went in, and nothing else is taken."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from tests.video.service.fakes import FakeReader, request_of, same

from rushes import errors
from rushes.errors import (
    ConfigError,
    FrameUnavailable,
    RefusedVideo,
    RushesError,
    ServiceError,
)
from rushes.video.request import Audio, Box, Features, Frames, Reply, Request, Size
from rushes.video.service import wire
from rushes.video.service.limits import RequestLimits, check_id

FULL = Request(
    "a/b c.mp4",
    (
        Frames((0.1 + 0.2, 1e-300, 5.0), Size(3, 4), Box(1, 2, 30, 40), "bicubic", "high"),
        Frames((), None, None, "nearest", "none"),
        Audio(0.1, 2.7, 44100, "sound"),
        Features("clip", 0.0, 1.5, "tracks"),
    ),
    "strict",
    1.25,
    True,
)


def test_requests_keep_every_bit() -> None:
    plain = msgpack.unpackb(msgpack.packb(wire.encode_request(FULL)))
    assert wire.decode_request(plain) == FULL


@pytest.mark.parametrize(
    "change",
    [
        {"policy": "whatever"},
        {"extra": 1},
        {"id": 7},
        {"outputs": [{"kind": "pickle", "name": "x"}]},
        {"outputs": [{"kind": "audio", "name": "x"}]},
        {"outputs": 5},
        {"deadline": "soon"},
        {"fixed": 1},
    ],
)
def test_other_requests_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ServiceError, match="not a request"):
        wire.decode_request({**wire.encode_request(FULL), **change})


def test_replies_of_any_dtype_and_shape() -> None:
    arrays: dict[str, Any] = {
        "frames": np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3),
        "sound": np.linspace(0, 1, 17, dtype=np.float32),
        "none": np.zeros((0, 4)),
        "half": np.arange(3, dtype=np.float16),
        "scalar": np.array(7, np.int64),
        "flags": np.array([True, False]),
        "turned": np.arange(12).reshape(3, 4).T,
    }
    reply = replace(FakeReader().read(request_of("v")), arrays=arrays)
    packed = wire.pack(reply)
    assert same(wire.unpack(packed), reply)
    assert packed.payload.nbytes % wire.ALIGNMENT == 0


def test_no_objects_cross() -> None:
    reply = Reply("v", {"bad": np.array([object()])})
    with pytest.raises(ServiceError, match="dtype object"):
        wire.layout(reply)


@pytest.mark.parametrize(
    ("dtype", "shape", "offset"),
    [("|O", [1], 0), ("<f8", [100], 0), ("|u1", [-1], 0), ("|u1", [1], -4), ("<f8", [2**62], 0)],
)
def test_torn_replies_are_noticed(dtype: str, shape: list[int], offset: int) -> None:
    entries = [["arrays", "x", dtype, shape, offset]]
    header = msgpack.packb({"id": "v", "entries": entries, "cost": [0, 0, 0, 0.0], "size": 64})
    with pytest.raises(ServiceError, match="torn"):
        wire.unpack(wire.Packed(header, np.zeros(64, np.uint8)))


def every_error() -> list[RushesError]:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, RushesError)
    ]
    made: list[RushesError] = [wire.Busy("full")]
    for kind in kinds:
        if kind is errors.NotInStore:
            made.append(errors.NotInStore("v", "off the grid", centres=(1.0, 2.0)))
        elif issubclass(kind, errors.VideoError):
            made.append(kind("v", "because"))
        elif kind is errors.BackendMissing:
            made.append(kind("decord", "pip install decord"))
        else:
            made.append(kind("text"))
    return made


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_errors_come_back_as_themselves(error: RushesError) -> None:
    back = wire.decode_error(msgpack.unpackb(msgpack.packb(wire.encode_error(error))))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_unknown_errors_are_service_errors() -> None:
    back = wire.decode_error({"type": "SystemExit", "args": ["x"]})
    assert type(back) is ServiceError


@pytest.mark.parametrize(
    "plain", [None, 7, [1], {}, {"type": "VideoError"}, {"type": "VideoError", "args": [1]},
              {"type": "MissingVideo", "args": 3}],
)  # fmt: skip
def test_what_is_no_error_is_one_of_the_service(plain: Any) -> None:
    assert type(wire.decode_error(plain)) is ServiceError


def test_infos_come_back_whole() -> None:
    info = FakeReader().describe("v")
    back = wire.decode_info(wire.encode_info(info))
    np.testing.assert_array_equal(back.frame_times, info.frame_times)
    np.testing.assert_array_equal(back.keyframes, info.keyframes)
    nothing: dict[str, Any] = {"frame_times": None, "keyframes": None}
    assert replace(back, **nothing) == replace(info, **nothing)
    with pytest.raises(ServiceError):
        wire.decode_info(b"\xc1")


def asking(*outputs: Any, video: str = "v", deadline: float | None = None) -> Request:
    return Request(video, outputs, deadline=deadline)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (asking(Frames((0.0,) * 10_000, Size(8, 8))), "10000 frames .* at most 1024"),
        (asking(Frames((0.0,), Size(8192, 8192))), "8192 pixels a side"),
        (asking(Frames((0.0,), Size(4096, 4096))), "16777216 pixels a frame"),
        (asking(Frames((0.0,) * 100, Size(1080, 1920))), "bytes of reply"),
        (asking(Frames((0.0,), Size(0, 4))), r"an output of \(0, 4\) pixels"),
        (asking(Audio(0.0, 1e6)), "seconds of audio"),
        (asking(Audio(0.0, 1.0, 10**9)), "Hz"),
        (asking(Audio(0.0, 1.0, -5)), "-5 Hz .* limits are 100 and"),
        (asking(Audio(0.0, 1.0, 8000, "x" * 5000)), "5000 characters of a name"),
        (asking(*[Audio(0, 1, 8000, str(i)) for i in range(99)]), "99 outputs"),
        (asking(video="x" * 2000), "2000 characters"),
        (asking(video=""), "0 characters"),
    ],
)
def test_limits_tell_value_and_limit(request_: Request, text: str) -> None:
    with pytest.raises(RefusedVideo, match=text):
        RequestLimits().check(request_)


@pytest.mark.parametrize(
    ("request_", "kind", "text"),
    [
        (asking(Frames((math.nan,))), FrameUnavailable, "finite seconds, got .nan"),
        (asking(Audio(2.0, 1.0)), FrameUnavailable, r"\[2.0, 1.0\) s of sound end before"),
        (asking(Frames((0.0,)), Frames((0.0,))), ConfigError, "one name"),
        (asking(deadline=700.0), ConfigError, "deadline=700.0.*at most 600 s"),
    ],
)
def test_what_means_nothing_is_no_matter_of_limits(
    request_: Request, kind: type[RushesError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        RequestLimits().check(request_)


@pytest.mark.parametrize(
    "video",
    ["../x", "a/../../x", "/etc/passwd", "~root", "http://h/x.mp4", "file:///x", "a\0b",
     "..\\x", "\\\\host\\x", "a/.."],
)  # fmt: skip
def test_ids_are_no_paths(video: str) -> None:
    with pytest.raises(RefusedVideo) as caught:
        check_id(video)
    assert caught.value.reason == "hostile"


@pytest.mark.parametrize(
    "video", ["video7", "a/b/c.mp4", "..x", "a:b", "v..1", "caf\u00e9 1", "\udcff"]
)
def test_ordinary_ids_pass(video: str) -> None:
    check_id(video)
