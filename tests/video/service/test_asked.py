"""A request that means nothing gets the same error everywhere, and costs nobody a worker."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
from tests.video.counter_video import Recipe, render
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import (
    ConfigError,
    FrameUnavailable,
    MissingVideo,
    RefusedVideo,
    RushesError,
    ServiceError,
    WorkerDied,
)
from rushes.video.asked import checked
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import (
    Audio,
    Box,
    Features,
    Frames,
    FrameStatus,
    Request,
    Size,
    VideoReader,
)
from rushes.video.service import keeper as keepers
from rushes.video.service import wire
from rushes.video.service.client import ServiceReader
from rushes.video.service.limits import RequestLimits
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer

NAN, INF = float("nan"), float("inf")
SMALL = (Frames((0.1,), Size(8, 8)),)


class Ends(NamedTuple):
    """The same videos, read in three ways."""

    inprocess: VideoReader
    local: PoolReader
    flight: ServiceReader
    server: FrameServer


@pytest.fixture
def ends(
    tmp_path: Path,
    open_pool: Callable[..., PoolReader],
    open_server: Callable[..., FrameServer],
    open_client: Callable[..., ServiceReader],
) -> Ends:
    render(Recipe("v.mp4"), tmp_path)
    local = open_pool(with_catalogue(tmp_path), num_workers=1)
    server = open_server(with_catalogue(tmp_path), num_workers=1)
    flight = open_client(f"127.0.0.1:{server.port}")
    return Ends(open_reader(open_catalogue(tmp_path)), local, flight, server)


def error_of(reader: VideoReader, request: Request) -> RushesError:
    started = time.monotonic()
    with pytest.raises(RushesError) as caught:
        reader.read(request)
    assert time.monotonic() - started < 3.0, "a verdict is no reason to ask again"
    return caught.value


def frames(*times: Any, **others: Any) -> dict[str, Any]:
    return {"outputs": (Frames(times, **{"size": Size(8, 8), **others}),)}


def one(output: Any) -> dict[str, Any]:
    return {"outputs": (output,)}


ALIKE: list[tuple[dict[str, Any], type[RushesError]]] = [
    ({"policy": "whatever"}, ConfigError),
    ({"outputs": (*SMALL, *SMALL)}, ConfigError),
    ({"outputs": SMALL[0]}, ConfigError),
    ({"video_id": 5}, ConfigError),
    ({"video_id": None}, ConfigError),
    (one(None), ConfigError),
    (frames(0.1, resample="x"), ConfigError),
    (frames(0.1, name=3), ConfigError),
    (frames("a"), ConfigError),
    (frames(None), ConfigError),
    (frames((0.1,)), ConfigError),
    (one(Frames(None, Size(8, 8))), ConfigError),  # type: ignore[arg-type]
    (frames(0.1, size=Size(8.0, 8)), ConfigError),  # type: ignore[arg-type]
    (frames(0.1, size=Size(8, NAN)), ConfigError),  # type: ignore[arg-type]
    (frames(0.1, size=Size("8", 8)), ConfigError),  # type: ignore[arg-type]
    (frames(0.1, size=Size(True, 8)), ConfigError),
    (frames(0.1, size=Size(0, 8)), RefusedVideo),
    (frames(0.1, size=Size(8, -3)), RefusedVideo),
    (frames(0.1, size=Size(16_385, 1)), RefusedVideo),
    (frames(0.1, size=Size(10**30, 1)), RefusedVideo),
    (frames(0.1, crop=Box(0.0, 0, 8, 8)), ConfigError),  # type: ignore[arg-type]
    (frames(0.1, crop=Box(0, -1, 8, 8)), RefusedVideo),
    (frames(0.1, crop=Box(0, 0, 0, 8)), RefusedVideo),
    (frames(0.1, crop=Box(0, 10**30, 8, 8)), RefusedVideo),
    (frames(0.1, NAN), FrameUnavailable),
    (frames(INF), FrameUnavailable),
    (frames(-INF), FrameUnavailable),
    ({**frames(-1.0), "policy": "strict"}, FrameUnavailable),
    (one(Audio(NAN, 1.0)), FrameUnavailable),
    (one(Audio(0.0, INF)), FrameUnavailable),
    (one(Audio(2.0, 1.0)), FrameUnavailable),
    (one(Audio("a", 1.0)), ConfigError),  # type: ignore[arg-type]
    (one(Audio(0.0, 1.0, 0)), RefusedVideo),
    (one(Audio(0.0, 1.0, 16000.5)), ConfigError),  # type: ignore[arg-type]
    (one(Features("clip", NAN, 1.0)), FrameUnavailable),
    (one(Features("clip", 0.0, INF)), FrameUnavailable),
    (one(Features("clip", 2.0, 1.0)), FrameUnavailable),
    (one(Features(3, 0.0, 1.0)), ConfigError),  # type: ignore[arg-type]
    ({"video_id": "\udcff"}, MissingVideo),
    ({"video_id": "\ud800"}, MissingVideo),
]


def test_one_cause_has_one_class_and_one_text_on_every_backend(ends: Ends) -> None:
    for changes, kind in ALIKE:
        request = replace(Request("v", SMALL), **changes)
        errors = [error_of(reader, request) for reader in ends[:3]]
        assert [type(error) for error in errors] == [kind] * 3, changes
        assert len({str(error) for error in errors}) == 1, errors
    assert ends.flight.counters.get().get("refused_busy", 0) == 0
    before = replace(Request("v", SMALL), **frames(-1.0))  # the policy repeats the first
    for reader in ends[:3]:
        assert reader.read(before).status["frames"].tolist() == [FrameStatus.REPEATED]
    for name in ("\udcff", "caf\u00e9"):
        named = Request("v", (replace(SMALL[0], name=name),))
        expected = ends.inprocess.read(named).arrays[name]
        for reader in (ends.local, ends.flight):
            assert (reader.read(named).arrays[name] == expected).all()


@pytest.mark.parametrize("changes", [changes for changes, _ in ALIKE[:-2]])
def test_a_server_judges_for_itself(changes: dict[str, Any]) -> None:
    request = replace(Request("v", SMALL), **changes)
    if request.policy == "strict":
        RequestLimits().check(request)  # only the video knows
        return
    with pytest.raises(RushesError) as here:
        checked(request)
    if isinstance(request.video_id, str):
        with pytest.raises(type(here.value), match=re.escape(str(here.value))):
            RequestLimits().check(request)


@pytest.mark.parametrize("deadline", [NAN, INF, -INF, 0, -1.0, 1e12, "soon"])
def test_a_request_with_a_deadline_that_is_no_time_cannot_be_made(deadline: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Request("v", SMALL, deadline=deadline)
    expected = f"v: deadline={deadline!r}: expected more than 0 s, at most 86400 s"
    assert str(caught.value) == expected


def test_deadlines_of_others_are_judged_where_they_arrive(ends: Ends) -> None:
    with pytest.raises(ConfigError, match="at most 86400 s"):
        ends.local.describe("v", INF)
    plain = {**wire.encode_request(Request("v", SMALL)), "deadline": NAN}
    with pytest.raises(ConfigError, match="deadline=nan"):
        wire.decode_request(plain)


@pytest.mark.parametrize("deadline", [NAN, INF, 0.0, 1e9])
def test_readers_with_such_a_deadline_are_not_opened(deadline: float) -> None:
    with pytest.raises(ConfigError, match="at most 86400 s"):
        ServiceReader(["127.0.0.1:1"], deadline=deadline)
    with pytest.raises(ConfigError, match="at most 86400 s"):
        PoolReader(with_catalogue("nowhere"), 1, deadline=deadline)


def test_sizes_and_crops_say_what_they_are() -> None:
    with pytest.raises(ConfigError, match=r"size=\(8, 8\): expected Size\(height, width\)"):
        Frames((0.1,), (8, 8))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"crop=.*expected Box"):
        Frames((0.1,), None, (0, 0, 8, 8))  # type: ignore[arg-type]


def test_numbers_of_numpy_mean_what_they_say(ends: Ends) -> None:
    size, eight = Size(np.int64(8), np.int32(8)), np.int64(8)  # type: ignore[arg-type]
    times: Any = np.array([0.1, 0.2])
    box = Box(np.int64(0), 0, eight, 16)  # type: ignore[arg-type]
    asked = Request("v", (Frames(times, size, box),), deadline=np.float64(9.0))
    expected = ends.inprocess.read(asked).arrays["frames"]
    for reader in (ends.local, ends.flight):
        for fixed in (False, True):
            assert (reader.read(replace(asked, fixed=fixed)).arrays["frames"] == expected).all()
    plain = checked(asked)
    assert msgpack.unpackb(msgpack.packb(wire.encode_request(plain)))["outputs"][0]["crop"][3] == 16


@pytest.mark.fault
def test_a_keeper_outlives_whatever_a_job_does_to_it(
    open_pool: Callable[..., PoolReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(num_workers=2)
    [first, second] = [keeper.thread for keeper in pool.keepers]

    def fail(_deadline: float) -> float:
        raise TypeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(keepers, "_within", fail)
        for i in range(4):
            with pytest.raises(ServiceError, match="TypeError: a bug"):
                pool.read(request_of(f"v{i}", deadline=5.0))
    assert first.is_alive()
    assert second.is_alive()
    assert same(pool.read(request_of("v")), FakeReader().read(request_of("v")))
    assert pool.slots.num_free >= pool.slots.num_slots - 3


def test_a_definite_verdict_of_a_server_is_not_asked_for_again(ends: Ends) -> None:
    [remote] = ends.flight.servers.values()
    calls = []
    fetch = remote.fetch

    def twisted(request: Request, deadline: float) -> wire.Packed:
        calls.append(request)
        return fetch(replace(request, policy="whatever"), deadline)  # type: ignore[arg-type]

    remote.fetch = twisted  # type: ignore[method-assign]
    with pytest.raises(wire.NotARequest, match="policy 'whatever'"):
        ends.flight.read(Request("v", SMALL, deadline=5.0))
    assert len(calls) == 1


@pytest.mark.attack
def test_names_that_are_no_text_cost_no_worker(
    tmp_path: Path,
    open_pool: Callable[..., PoolReader],
    open_server: Callable[..., FrameServer],
    open_client: Callable[..., ServiceReader],
) -> None:
    folder = tmp_path / "v\udcfe"  # the root's own name is none either
    folder.mkdir()
    shutil.move(render(Recipe("v.mp4"), tmp_path), folder / "\udcff.mp4")
    (folder / "link.mp4").symlink_to("\udcff.mp4")
    expected = open_reader(open_catalogue(folder)).read(Request("link", SMALL)).arrays["frames"]
    pool = open_pool(with_catalogue(folder), num_workers=1, deadline=10.0)
    server = open_server(with_catalogue(folder), num_workers=1)
    client = open_client(f"127.0.0.1:{server.port}")
    for reader in (pool, client):
        for video in ("link", "\udcff", "link.mp4"):
            assert (reader.read(Request(video, SMALL)).arrays["frames"] == expected).all()
        assert reader.describe("\udcff").video_id == "\udcff"
    assert pool.num_restarts == 0
    assert server.pool.num_restarts == 0
    assert pool.names.get("link") == pool.names.get("\udcff") == str(folder / "\udcff.mp4")


@pytest.mark.attack
def test_an_id_whose_name_kills_workers_is_tried_twice(
    tmp_path: Path, open_pool: Callable[..., PoolReader]
) -> None:
    render(Recipe("v.mp4"), tmp_path)
    crashing = replace(with_catalogue(tmp_path), factory="tests.video.service.fakes:open_nameless")
    pool = open_pool(crashing, num_workers=1, deadline=20.0)
    for restarts in (2, 4):
        with pytest.raises(WorkerDied, match="killed by signal 11"):
            pool.read(Request("v", SMALL))
        assert pool.num_restarts == restarts
    assert list(pool.quarantine.videos()) == ["v"]
    assert threading.active_count() > 1
