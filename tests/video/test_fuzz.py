"""Mutated files decode or raise our error, in time, and never take the parent down."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from tests.video.conftest import Rendered

from rushes.errors import VideoError
from rushes.video.catalogue import Catalogue
from rushes.video.limits import Limits
from rushes.video.request import Audio, Frames, Request, Size
from rushes.video.sandbox import SandboxedReader

SEEDS = (
    "h264_sound.mp4",
    "h264_open.ts",
    "h264_pyramid.mkv",
    "h264.flv",
    "h264_b.avi",
    "h264_b.asf",
    "mpeg2.mxf",
    "hevc_open.mp4",
    "vp9_altref.webm",
    "av1.mp4",
    "mpeg4_b.avi",
    "h264_raw.264",
    "mpeg2.mpg",
)
SECONDS = 20.0
ROUNDS = int(os.environ.get("RUSHES_ROUNDS", "240"))
SEED = int(os.environ.get("RUSHES_SEED", "0"))


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """One of: flipped bits, lying sizes, a cut, a hole, a piece moved, a doubled piece."""
    out = bytearray(data)
    kind = generator.integers(6)
    size = len(out)
    if kind == 0:
        for place in generator.integers(0, size, generator.integers(1, 200)):
            out[place] ^= 1 << int(generator.integers(8))
    elif kind == 1:  # lengths of boxes and elements stand in the first and last kilobytes
        for _ in range(generator.integers(1, 12)):
            near = generator.integers(0, min(size, 3000))
            place = int(near if generator.random() < 0.5 else size - 1 - near)
            out[place : place + 4] = generator.bytes(4)
    elif kind == 2:
        del out[int(generator.integers(1, size)) :]
    elif kind == 3:
        start = int(generator.integers(size))
        hole = int(generator.integers(1, 5000))
        out[start : start + hole] = bytes(min(hole, size - start))
    elif kind == 4:
        start, length = int(generator.integers(size)), int(generator.integers(1, 4000))
        piece = out[start : start + length]
        del out[start : start + length]
        place = int(generator.integers(len(out) + 1))
        out[place:place] = piece
    else:
        start, length = int(generator.integers(size)), int(generator.integers(1, 4000))
        out[start:start] = out[start : start + length]
    return bytes(out)


@pytest.mark.fuzz
@pytest.mark.slow
def test_mutated_files_decode_or_raise(counter: Rendered, tmp_path: Path) -> None:
    generator = np.random.default_rng(SEED)
    originals = [(name, counter(name)[1].read_bytes()) for name in SEEDS]
    limits = Limits(max_pixels=4_000_000, max_duration=1e5, max_reply_bytes=2**28)
    decoded, refused = 0, 0
    path = tmp_path / "mutant"
    with SandboxedReader(
        Catalogue.from_items({"v": path}), limits=limits, seconds=SECONDS
    ) as reader:
        for number in range(ROUNDS):
            name, data = originals[number % len(originals)]
            path.write_bytes(mutate(data, generator))
            request = Request(
                "v",
                (
                    Frames((0.0, 0.7, 2.2), size=Size(48, 64)),
                    *([Audio(0.5, 0.7)] if "sound" in name else []),
                ),
                deadline=SECONDS / 2,
            )
            began = time.monotonic()
            try:
                reply = reader.read(request)
                assert reply.arrays["frames"].shape == (3, 48, 64, 3)
                decoded += 1
            except VideoError as error:
                if error.reason == "worker_died":
                    kept = Path(tempfile.gettempdir()) / f"rushes_fuzz_{SEED}_{number}_{name}"
                    shutil.copy(path, kept)
                    pytest.fail(f"seed {SEED}, round {number}: {error}; kept as {kept}")
                refused += 1
            assert time.monotonic() - began < SECONDS + 2, (SEED, number, name)
    assert decoded + refused == ROUNDS
    assert decoded > ROUNDS // 20
    assert refused > ROUNDS // 20
