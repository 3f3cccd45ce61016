"""Reading from a store: the same frames as from the files, on the grid and off it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
from tests.video.conftest import Rendered
from tests.video.counter_video import RECIPES, number_of

from rushes.errors import (
    FrameUnavailable,
    MissingVideo,
    NotInStore,
    RefusedVideo,
    StorageError,
)
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.limits import Limits
from rushes.video.readers import open_reader
from rushes.video.request import Audio, Box, Features, Frames, FrameStatus, Request, Size
from rushes.video.store import StoreReader, open_store
from rushes.video.store_build import build_store
from rushes.video.store_features import add_features
from rushes.video.store_format import (
    Description,
    Entry,
    StoreSettings,
    chunk_key,
    digest,
    entry_key,
    name_key,
    pack_entry,
    shard_of,
    write_description,
)
from rushes.video.store_values import ShardWriter


def make(root: Path, items: dict[str, Path], **settings: object) -> StoreReader:
    """A store of the items, built in this process."""
    catalogue = Catalogue.from_items(dict(items))
    totals = build_store(catalogue, root, StoreSettings(**settings), jobs=0, shards=2)  # type: ignore[arg-type]
    assert totals.failed == 0
    return open_store(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, counter: Rendered) -> StoreReader:
    """Every counter video, at the default settings but small frames of half the size."""
    root = tmp_path_factory.mktemp("store")
    return make(root, {r.name: counter(r.name)[1] for r in RECIPES}, small=0.5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_counter_video_is_right(
    store: StoreReader, counter: Rendered, recipe: object
) -> None:
    name = getattr(recipe, "name", "")
    kind, path = counter(name)
    raw = open_reader(Catalogue.from_items({"v": path}))
    info, truth = store.describe(name), raw.describe("v")
    np.testing.assert_array_equal(info.frame_times, truth.frame_times)
    assert (info.height, info.width, info.rotation) == (truth.height, truth.width, truth.rotation)
    assert info.full_size_times is not None
    np.testing.assert_array_equal(info.full_size_times, truth.frame_times[::12])
    assert info.duration == truth.duration
    picked = np.random.default_rng(1).integers(0, kind.frames, 6)
    half = Size(info.height // 2, info.width // 2)
    high = Frames(tuple(info.full_size_times.tolist()), name="high")
    low = Frames(tuple((truth.frame_times[picked] + 1e-3).tolist()), size=half, name="low")
    reply = store.read(Request(name, (high, low), policy="strict"))
    same = raw.read(Request("v", (high, low), policy="strict"))
    turned = [np.rot90(x, -kind.rotation // 90) for x in reply.arrays["low"]]
    assert [number_of(x) for x in turned] == picked.tolist()
    for output in ("high", "low"):
        np.testing.assert_array_equal(reply.times[output], same.times[output])
        assert (reply.status[output] == FrameStatus.OK).all()
        ours, theirs = reply.arrays[output].astype(float), same.arrays[output].astype(float)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() <= 2.0
    raw.close()


def test_any_frame_of_a_group_costs_three_pictures(store: StoreReader) -> None:
    info = store.describe("h264_ip.mp4")
    half = Size(info.height // 2, info.width // 2)
    for frame in range(24):
        asked = Frames((float(info.frame_times[frame]),), size=half)
        reply = store.read(Request("h264_ip.mp4", (asked,)))
        assert number_of(reply.arrays["frames"][0]) == frame
        assert reply.cost.frames_decoded <= 3


def test_full_size_off_the_grid_names_the_nearest_centres(store: StoreReader) -> None:
    with pytest.raises(NotInStore, match=r"96x160 at 0\.600000 s") as caught:
        store.read(Request("h264_ip.mp4", (Frames((0.0, 0.6)),)))
    assert caught.value.centres == pytest.approx((12 / 25, 24 / 25))
    with pytest.raises(NotInStore) as caught:  # past the last centre
        store.read(Request("h264_ip.mp4", (Frames((59 / 25,)),)))
    assert caught.value.centres == pytest.approx((36 / 25, 48 / 25))
    reply = store.read(Request("h264_ip.mp4", (Frames((12.5 / 25,)),)))  # still on screen
    assert number_of(reply.arrays["frames"][0]) == 12


def test_small_frames_are_cropped_and_resized_by_the_readers_code(
    store: StoreReader, counter: Rendered
) -> None:
    raw = open_reader(Catalogue.from_items({"v": counter("h264_turned90.mp4")[1]}))
    outputs = (
        Frames((0.2, 1.0), size=Size(40, 20), crop=Box(16, 8, 120, 60), name="crop"),
        Frames((0.2,), size=Size(30, 21), resample="nearest", name="nearest"),
        Frames((0.48,), size=Size(200, 100), crop=Box(11, 7, 101, 51), name="large"),
    )
    ours = store.read(Request("h264_turned90.mp4", outputs)).arrays
    theirs = raw.read(Request("v", outputs)).arrays
    for name in ("crop", "nearest", "large"):
        assert ours[name].shape == theirs[name].shape
        error = np.abs(ours[name].astype(float) - theirs[name])
        assert error.mean() < 2, name
    with pytest.raises(RefusedVideo, match="not inside"):
        store.read(Request("h264_turned90.mp4", (Frames((0.0,), crop=Box(0, 0, 161, 10)),)))


def test_clips_of_one_size_do_not_leak_into_each_other(store: StoreReader) -> None:
    """One decoder serves clips of a size; range and colours of one must not stay for the next."""
    asked = Frames((0.0,), size=Size(48, 80))
    for before in ("mjpeg.avi", "h264_ip.mp4", "hevc_10bit.mkv"):
        store.read(Request(before, (asked,)))
        for name in ("mjpeg.avi", "h264_ip.mp4", "hevc_10bit.mkv"):
            fresh = open_store(store.root)
            expected = fresh.read(Request(name, (asked,))).arrays["frames"]
            got = store.read(Request(name, (asked,))).arrays["frames"]
            np.testing.assert_array_equal(got, expected)
            fresh.close()


def test_past_the_end(store: StoreReader) -> None:
    half = Size(48, 80)
    with pytest.raises(FrameUnavailable):
        store.read(Request("h264_ip.mp4", (Frames((99.0,), size=half),), policy="strict"))
    reply = store.read(Request("h264_ip.mp4", (Frames((99.0,), size=half),)))
    assert reply.status["frames"].tolist() == [FrameStatus.REPEATED]
    assert number_of(reply.arrays["frames"][0]) == 59
    with pytest.raises(MissingVideo):
        store.describe("no such clip")


def test_sound_is_that_of_the_file(store: StoreReader, counter: Rendered) -> None:
    raw = open_reader(Catalogue.from_items({"v": counter("h264_sound.mp4")[1]}))
    for window in (Audio(0.0, 0.5), Audio(1.1, 2.2, 48000), Audio(1.6, 2.3, 22050)):
        ours = store.read(Request("h264_sound.mp4", (window,))).arrays["audio"].astype(np.float64)
        theirs = raw.read(Request("v", (window,))).arrays["audio"].astype(np.float64)
        assert np.abs(theirs).max() > 0.3
        # The first samples also hear what the coder put before the beginning, as padding.
        np.testing.assert_allclose(ours[:40], theirs[:40], atol=0.01)
        np.testing.assert_allclose(ours[40:], theirs[40:], atol=1e-4)
    with pytest.raises(FrameUnavailable, match="keeps none"):
        store.read(Request("h264_ip.mp4", (Audio(0, 1),)))


def test_all_full_size_serves_any_frame(tmp_path: Path, counter: Rendered) -> None:
    reader = make(tmp_path, {"v": counter("h264_b.mp4")[1]}, all_full_size=True)
    assert reader.describe("v").full_size_times is None
    times = reader.describe("v").frame_times
    reply = reader.read(Request("v", (Frames(tuple(times.tolist())),)))
    assert [number_of(x) for x in reply.arrays["frames"]] == list(range(60))
    assert reader.entry("v").pictures["full"].psnr >= 36


def test_fewer_frames_a_second(tmp_path: Path, counter: Rendered) -> None:
    reader = make(tmp_path, {"v": counter("h264_b.mp4")[1]}, fps=6.25)
    info = reader.describe("v")
    np.testing.assert_allclose(info.frame_times, np.arange(15) * 4 / 25)
    assert info.full_size_times is not None
    np.testing.assert_allclose(info.full_size_times, np.arange(5) * 12 / 25)
    reply = reader.read(Request("v", (Frames(tuple(info.full_size_times.tolist())),)))
    assert [number_of(x) for x in reply.arrays["frames"]] == [0, 12, 24, 36, 48]


def test_noise_reaches_the_asked_quality(tmp_path: Path) -> None:
    """Noise is what coders hate most: the rate falls until each picture is good enough."""
    import av

    path = tmp_path / "noise.mp4"
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as media:
        stream = media.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.options = {"crf": "4", "preset": "ultrafast"}
        for _ in range(26):
            noise = generator.integers(0, 256, (96, 128, 3), dtype=np.uint8)
            media.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        media.mux(stream.encode(None))
    reader = make(tmp_path / "store", {"v": path})
    assert reader.entry("v").pictures["full"].psnr >= 37
    assert reader.entry("v").pictures["small"].psnr >= 38


def test_a_catalogue_of_a_store_opens_the_same_reader(store: StoreReader) -> None:
    catalogue = open_catalogue(store.root)
    assert catalogue.kind == "store"
    assert list(catalogue.ids()) == sorted(recipe.name for recipe in RECIPES)
    reader = open_reader(catalogue)
    assert isinstance(reader, StoreReader)
    assert reader.describe("h264_ip.mp4").num_frames == 60
    reader.close()


def test_each_shard_is_mapped_once_and_never_across_fork(store: StoreReader) -> None:
    other = open_store(store.root)
    wanted = Request("h264_ip.mp4", (Frames((0.0,), size=Size(48, 80)),))
    expected = store.read(wanted).arrays["frames"]
    other.read(wanted)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert len([line for line in maps if str(store.root) in line]) <= 2  # one for each shard
    other.close()
    np.testing.assert_array_equal(store.read(wanted).arrays["frames"], expected)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if np.array_equal(store.read(wanted).arrays["frames"], expected) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_features_and_unknown_tracks(tmp_path: Path, counter: Rendered) -> None:
    make(tmp_path, {"v": counter("h264_ip.mp4")[1]}).close()
    times = np.linspace(0.0, 1.75, 8)
    values = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float16)
    writer = ShardWriter(tmp_path, 2)
    add_features(writer, "v", "clip", times, values)
    key = digest("v")
    shard = shard_of(key, 2)
    entry = msgpack.unpackb(writer.get(shard, entry_key(key)))
    entry["tracks"]["from the future"] = {"kind": "depth", "unit": "m"}
    entry["info"]["new_field"] = 1
    with writer.environment(shard).begin(write=True) as transaction:
        transaction.put(entry_key(key), msgpack.packb(entry))
    with pytest.raises(StorageError, match="do not go with"):
        add_features(writer, "v", "bad", times, values[:3])
    writer.close()
    reader = open_store(tmp_path)
    assert reader.describe("v").features == ("clip",)
    reply = reader.read(Request("v", (Features("clip", 0.5, 1.25), Frames((0.0,)))))
    np.testing.assert_array_equal(reply.arrays["features"], values[2:5])
    np.testing.assert_array_equal(reply.times["features"], times[2:5])
    with pytest.raises(NotInStore, match="the clip has clip"):
        reader.read(Request("v", (Features("other", 0, 1),)))


def test_limits_bound_a_reply(store: StoreReader) -> None:
    reader = open_store(store.root, Limits(max_reply_bytes=10_000))
    with pytest.raises(RefusedVideo, match="the limit is 10000"):
        reader.read(Request("h264_ip.mp4", (Frames((0.0,)),)))


def test_damage_is_told(tmp_path: Path, counter: Rendered) -> None:
    make(tmp_path, {"v": counter("h264_ip.mp4")[1]}).close()
    key = digest("v")
    writer = ShardWriter(tmp_path, 2)
    with writer.environment(shard_of(key, 2)).begin(write=True) as transaction:
        torn = transaction.get(chunk_key(key, "small", 0), b"")
        transaction.put(chunk_key(key, "small", 0), torn[: len(torn) // 2])
        transaction.put(chunk_key(key, "full", 0), b"\0" * 10_000_000)
    writer.close()
    reader = open_store(tmp_path)
    with pytest.raises(StorageError, match="cut short"):
        reader.read(Request("v", (Frames((2.3,), size=Size(24, 40)),)))
    with pytest.raises(StorageError, match=r"does not decode|are missing"):
        reader.read(Request("v", (Frames((0.0,)),)))
    reader.close()
    (tmp_path / "shard-00000.mdb").write_bytes(b"rubbish" * 1000)
    (tmp_path / "shard-00001.mdb").write_bytes(b"rubbish" * 1000)
    with pytest.raises(StorageError, match="not a shard"):
        open_store(tmp_path).ids()


def test_other_schemas_and_half_built_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"store\.json is missing"):
        open_store(tmp_path)
    write_description(tmp_path, Description(1, StoreSettings(), complete=False))
    with pytest.raises(StorageError, match="has not ended"):
        open_store(tmp_path)
    path = tmp_path / "store.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(StorageError, match="schema 7, this version reads 1"):
        open_store(tmp_path)
    path.write_text("{")
    with pytest.raises(StorageError, match="not the description"):
        open_store(tmp_path)


def test_a_store_of_100_000_clips_opens_in_under_a_second(
    tmp_path: Path, store: StoreReader
) -> None:
    made: Entry = store.entry("h264_ip.mp4")
    packed, shards = pack_entry(made), 4
    writer = ShardWriter(tmp_path, shards)
    keys = [(f"clip{i:06d}", digest(f"clip{i:06d}")) for i in range(100_000)]
    for shard in range(shards):
        with writer.environment(shard).begin(write=True) as transaction:
            for name, key in sorted(keys, key=lambda pair: pair[1]):
                if shard_of(key, shards) == shard:
                    transaction.put(entry_key(key), packed)
                    transaction.put(name_key(key), name.encode())
    writer.close()
    write_description(tmp_path, Description(shards, StoreSettings(), complete=True))
    began = time.perf_counter()
    reader = open_store(tmp_path)
    assert reader.describe("clip054321").num_frames == made.info.num_frames
    assert "clip100000" not in reader
    assert time.perf_counter() - began < 1.0
    assert len(reader.ids()) == 100_000
    reader.close()
