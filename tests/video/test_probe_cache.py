"""Indexes kept on disk: the same again, renewed when the file changes, never pickled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest
from tests.video.conftest import Rendered

from rushes.errors import StorageError, UnreadableVideo
from rushes.video import probe_cache
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.index import pack_index, unpack_index
from rushes.video.limits import Limits
from rushes.video.probe import build_index, source_of
from rushes.video.probe_cache import ProbeCache
from rushes.video.readers import open_reader
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import Frames, Request
from rushes.video.store import open_store
from rushes.video.store_build import build_store
from rushes.video.store_format import StoreSettings


def test_an_index_survives_the_disk(counter: Rendered, tmp_path: Path) -> None:
    index = build_index(source_of(counter("h264_sound.mp4")[1]), Limits())
    again = unpack_index(pack_index(index))
    assert again is not None
    np.testing.assert_array_equal(again.info.frame_times, index.info.frame_times)
    np.testing.assert_array_equal(again.positions, index.positions)
    assert again.info.audio == index.info.audio
    assert again.extradata == index.extradata
    cache, other = ProbeCache(tmp_path), ProbeCache(tmp_path)  # one environment, two users
    cache.put(b"k", index)
    assert other.get(b"k") is not None
    assert other.get(b"another") is None
    cache.close()
    assert other.get(b"k") is not None
    other.close()


def test_other_versions_and_rubbish_are_ignored(counter: Rendered) -> None:
    packed = pack_index(build_index(source_of(counter("h264_ip.mp4")[1]), Limits()))
    values = msgpack.unpackb(packed)
    assert unpack_index(msgpack.packb({**values, "version": -1})) is None
    for rubbish in (b"", b"\x80\x04K\x01.", packed[:100], msgpack.packb([1, 2])):
        assert unpack_index(rubbish) is None


def test_a_changed_file_is_indexed_anew(counter: Rendered, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    shutil.copy(counter("h264_ip.mp4")[1], path)
    for name, frames in (("h264_ip.mp4", 60), ("av1.mp4", 40)):
        shutil.copy(counter(name)[1], path)
        reader = PyAVReader(Catalogue.from_items({"v": path}), index_cache=tmp_path / "cache")
        assert reader.describe("v").num_frames == frames
        reader.close()


def test_names_that_are_no_text_are_cached_too(counter: Rendered, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(counter("h264_ip.mp4")[1], folder / os.fsdecode(b"odd\xff.mp4"))
    catalogue = open_catalogue(folder)
    (video_id,) = catalogue.ids()
    for _ in range(2):
        reader = PyAVReader(catalogue, index_cache=tmp_path / "cache")
        assert reader.describe(video_id).video_id == video_id == "odd\udcff"
        assert len(reader.read(Request(video_id, (Frames((0.5,)),))).arrays["frames"]) == 1
        reader.close()
    for backend in ("decord", "opencv"):
        with pytest.raises(UnreadableVideo, match="cannot be given the name"):
            open_reader(catalogue, backend).read(Request(video_id, (Frames((0.5,)),)))
    build_store(catalogue, tmp_path / "store", StoreSettings(), jobs=0)
    store = open_store(tmp_path / "store")
    assert store.ids() == [video_id]
    assert store.describe(video_id).video_id == video_id


def test_one_file_under_two_ids_keeps_both(counter: Rendered, tmp_path: Path) -> None:
    path = counter("h264_ip.mp4")[1]
    for ids in (("a", "b"), ("c",)):
        catalogue = Catalogue.from_items(dict.fromkeys(ids, path))
        reader = PyAVReader(catalogue, index_cache=tmp_path / "cache")
        for video_id in (*ids, *ids):
            assert reader.describe(video_id).video_id == video_id
        reader.close()


def test_a_torn_cache_is_told_before_it_is_read(counter: Rendered, tmp_path: Path) -> None:
    index = build_index(source_of(counter("h264_ip.mp4")[1]), Limits())
    cache = ProbeCache(tmp_path / "cache")
    for i in range(20):
        cache.put(b"%d" % i, index)
    cache.close()
    os.truncate(tmp_path / "cache" / "data.mdb", 8192)
    with pytest.raises(StorageError, match="torn: 8192 bytes of"):
        ProbeCache(tmp_path / "cache").get(b"1")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(StorageError, match="no index cache"):
        ProbeCache(tmp_path / "circle").get(b"1")


def test_a_full_disk_stops_the_keeping_and_not_the_reading(
    counter: Rendered,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(probe_cache, "MAP_SIZE", 1 << 15)
    catalogue = Catalogue.from_items(
        {name: counter(name)[1] for name in ("h264_ip.mp4", "av1.mp4")}
    )
    cache, index = (
        ProbeCache(tmp_path / "cache"),
        build_index(source_of(counter("av1.mp4")[1]), Limits()),
    )
    for i in range(40):
        cache.put(b"%d" % i, index)
    assert caplog.text.count("no more indexes are kept") == 1
    assert cache.get(b"0") is not None
    reader = PyAVReader(catalogue, index_cache=tmp_path / "cache")
    assert reader.describe("h264_ip.mp4").num_frames == 60
    assert reader.describe("av1.mp4").num_frames == 40
    reader.close()
    cache.close()
