"""A video has one name, however its id is spelled."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.video.counter_video import Recipe, render
from tests.video.service.fakes import FakeReader

from rushes.errors import MissingVideo, Quarantined
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request, Size
from rushes.video.service.names import Names, name_of
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer

SMALL = (Frames((0.1,), Size(8, 8)),)
SPELLINGS = ("x", "x.mp4", "x.mp4/.", "./x", "link")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    render(Recipe("x.mp4"), folder)
    render(Recipe("y.mp4"), folder)
    (folder / "link.mp4").symlink_to("x.mp4")
    return folder


def test_spellings_of_an_id_have_one_name(root: Path) -> None:
    reader = open_reader(open_catalogue(root))
    assert {name_of(reader, video) for video in SPELLINGS} == {os.path.realpath(root / "x.mp4")}
    assert name_of(reader, "y") != name_of(reader, "x")
    with pytest.raises(MissingVideo):
        name_of(reader, "z")
    reader.close()
    assert name_of(FakeReader(), "anything") == "anything"


def test_names_are_remembered_within_bounds() -> None:
    names = Names()
    for i in range(100_000):
        names.put(f"v{i}", f"/v{i}")
    assert names.get("v99999") == "/v99999"
    assert names.get("v0") is None
    assert names.known_as("v0") == "v0"
    assert len(names._names) < 20_000


@pytest.mark.attack
def test_a_video_gets_no_new_chance_under_another_spelling(
    root: Path, open_pool: Callable[..., PoolReader]
) -> None:
    crashing = replace(with_catalogue(root), factory="tests.video.service.fakes:open_crashing")
    pool = open_pool(crashing, num_workers=1)
    for video in SPELLINGS:
        with pytest.raises(Quarantined, match="killed 2 workers") as caught:
            pool.read(Request(video, SMALL))
        assert caught.value.video == video
    assert pool.num_restarts == 2
    assert list(pool.quarantine.videos()) == ["x"]
    with pytest.raises(Quarantined):
        pool.read(Request("y", SMALL))  # one of its own
    assert pool.num_restarts == 4


def test_spellings_share_the_cache(root: Path, open_server: Callable[..., FrameServer]) -> None:
    server = open_server(with_catalogue(root), cache_bytes=1 << 20, num_workers=1)
    for video in SPELLINGS:  # as the server learns their names
        server.pool.names.put(video, os.path.realpath(root / "x.mp4"))
    read = server.pool.read_packed
    for video in SPELLINGS:
        server.shared.read(Request(video, SMALL, fixed=True), read, 20.0)
    assert len(server.shared.cache) == 1
    assert server.counters.get()["reads"] == 1
