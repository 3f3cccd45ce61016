"""The format on disk: both containers, whole parts only, going on, refusing what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rushes.embeddings import EmbeddingWriter, Format, Rows, parts_of, read_header, read_tables
from rushes.errors import StorageError


def rows(seed: int, count: int, timed: bool = True) -> Rows:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, 5)).astype(np.float32)
    return Rows(values, np.arange(2.0 * count).reshape(count, 2) if timed else None)


@pytest.mark.parametrize("form", ["safetensors", "h5"])
def test_what_is_written_is_read(tmp_path: Path, form: Format) -> None:
    with EmbeddingWriter(tmp_path, {"level": "clip"}, form, part_rows=2) as writer:
        writer.add("a", {"video_clip": rows(0, 3), "text_text": rows(1, 1, timed=False)})
        writer.add("b/\u00fc 2", {"video_clip": rows(2, 1)})
        writer.add("c", {"text_text": rows(3, 2, timed=False)})
    assert [path.name for path in parts_of(tmp_path)] == [f"part_0000{i}.{form}" for i in range(2)]
    tables = read_tables(tmp_path)
    clips, texts = tables["video_clip"], tables["text_text"]
    assert clips.keys == ("a", "b/\u00fc 2")
    assert clips.num.tolist() == [3, 1]
    assert clips.owners.tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(clips.values[:3], rows(0, 3).values)
    np.testing.assert_array_equal(clips.times[:3], rows(0, 3).times)
    assert texts.keys == ("a", "b/\u00fc 2", "c")
    assert texts.num.tolist() == [1, 0, 2]
    assert np.isnan(texts.times).all()
    assert read_header(tmp_path) == {"format": form, "level": "clip"}


def test_an_export_that_was_stopped_goes_on(tmp_path: Path) -> None:
    writer = EmbeddingWriter(tmp_path, {"level": "video"}, part_rows=2)
    for index in range(3):
        writer.add(f"v{index}", {"video_video": rows(index, 1)})
    # Killed here: the third sample was in memory only, a fourth was half written.
    (tmp_path / ".writing-1-part_00001.safetensors").write_bytes(b"torn")
    with EmbeddingWriter(tmp_path, {"level": "video"}, part_rows=2) as again:
        assert again.keys == {"v0", "v1"}
        assert not list(tmp_path.glob(".writing-*"))
        for index in (2, 3):
            again.add(f"v{index}", {"video_video": rows(index, 1)})
        with pytest.raises(StorageError, match="'v0' a second time"):
            again.add("v0", {"video_video": rows(0, 1)})
    table = read_tables(tmp_path)["video_video"]
    assert table.keys == ("v0", "v1", "v2", "v3")
    np.testing.assert_array_equal(table.values[2], rows(2, 1).values[0])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with EmbeddingWriter(tmp_path, {"model": "one"}) as writer:
        writer.add("v", {"video_video": rows(0, 1)})
    with pytest.raises(StorageError, match="model='one', not 'two'"):
        EmbeddingWriter(tmp_path, {"model": "two"})
    with pytest.raises(StorageError, match="format='safetensors', not 'h5'"):
        EmbeddingWriter(tmp_path, {"model": "one"}, "h5")
    (part,) = parts_of(tmp_path)
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(StorageError, match=r"part_00000\.safetensors: damaged"):
        read_tables(tmp_path)
    with pytest.raises(StorageError, match="no embeddings here"):
        read_tables(tmp_path / "absent")
