"""Indexes kept on disk: the same again, renewed when the file changes, never pickled."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgpack
import numpy as np
from tests.video.conftest import Rendered

from rushes.video.catalogue import Catalogue
from rushes.video.index import pack_index, unpack_index
from rushes.video.limits import Limits
from rushes.video.probe import build_index, source_of
from rushes.video.probe_cache import ProbeCache
from rushes.video.readers.pyav_reader import PyAVReader


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
