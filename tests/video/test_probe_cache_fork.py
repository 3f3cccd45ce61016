"""Packet indexes are cached on both sides of a fork."""

from __future__ import annotations

import os
from pathlib import Path

from tests.video.conftest import Rendered

from rushes.video.limits import Limits
from rushes.video.probe import build_index, source_of
from rushes.video.probe_cache import ProbeCache


def test_child_and_parent_use_the_same_cache(tmp_path: Path, counter: Rendered) -> None:
    cache = ProbeCache(tmp_path)
    index = build_index(source_of(counter("h264_ip.mp4")[1]), Limits())
    cache.put(b"by the parent", index)
    child = os.fork()
    if not child:
        status = 1
        try:
            known = cache.get(b"by the parent")
            cache.put(b"by the child", index)
            status = 0 if known is not None and known.info.num_frames == 60 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    for key in (b"by the parent", b"by the child"):
        known = cache.get(key)
        assert known is not None
        assert known.info.num_frames == 60
    cache.close()
