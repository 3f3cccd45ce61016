"""What FFmpeg and PyAV make of odd files does not reach the readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
from tests.video.conftest import Rendered

from rushes.video.media import packets_of
from rushes.video.probe import probe


class _LateStream:
    """As PyAV at the end of a file in which a stream appeared that it did not know."""

    def demux(self, stream: str) -> Iterator[str]:
        yield f"{stream} 1"
        yield f"{stream} 2"
        raise IndexError("list index out of range")


def test_streams_that_appear_late_do_not_matter() -> None:
    assert list(packets_of(_LateStream(), "video")) == ["video 1", "video 2"]


def test_a_title_in_another_encoding_is_no_damage(counter: Rendered, tmp_path: Path) -> None:
    path = tmp_path / "titled.mkv"
    with (
        av.open(str(counter("h264_ip.mp4")[1])) as media,
        av.open(str(path), "w", container_options={}) as out,
    ):
        out.metadata["title"] = "TITLE"
        stream = media.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in media.demux(stream):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    data = path.read_bytes()
    assert data.count(b"TITLE") == 1
    path.write_bytes(data.replace(b"TITLE", b"Caf\xe9\xff"))
    info = probe(path)
    assert (info.num_frames, info.damaged) == (60, False)
