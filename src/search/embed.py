"""`rushes embed`: encode videos (and their captions) into embeddings on disk; resumable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rushes.api import VideoText
from rushes.datasets.record import Record
from rushes.datasets.record_store import open_records
from rushes.embeddings import EmbeddingWriter, Rows
from rushes.errors import VideoError
from rushes.search.command import load, parser
from rushes.search.library import encode_spans, fingerprint_of_model, open_folder
from rushes.search.windows import Span, windows
from rushes.video.request import VideoReader

LEVELS = {"frame": 1.0, "clip": 4.0, "video": None}
"""Default seconds of one row; None: the whole video."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns an exit code."""
    out = parser("embed", __doc__ or "")
    out.add_argument("videos", type=Path, help="folder of videos, or a manifest")
    out.add_argument("--model", required=True, help="run folder, model folder or hub id")
    out.add_argument("--out", type=Path, required=True, help="folder of the embeddings")
    out.add_argument("--level", choices=LEVELS, default="video", help="what one row stands for")
    out.add_argument("--seconds", type=float, default=None, help="length of a frame or clip row")
    out.add_argument("--format", choices=("safetensors", "h5"), default="safetensors")
    out.add_argument("--annotations", type=Path, default=None, help="captions to encode as well")
    out.add_argument("--split", default=None, help="only this split of the annotations")
    options = out.parse_args(argv)
    model = load(options, options.model)
    captions = {} if options.annotations is None else read_captions(options)
    length = options.seconds or LEVELS[options.level]
    header: dict[str, Any] = {
        "model": fingerprint_of_model(model),
        "level": options.level,
        "seconds": length,
        "dim": model.config.model.embed_dim,
    }
    catalogue, reader = open_folder(options.videos)
    wanted = [v for v in catalogue.ids() if v in captions] if captions else list(catalogue.ids())
    failed: list[VideoError] = []
    with EmbeddingWriter(options.out, header, options.format, part_rows=64) as writer:
        new = [video for video in wanted if video not in writer.keys]
        for video in tqdm(new, desc="encoding", unit="video"):
            rows: dict[str, Rows] = {}
            if video in captions:
                rows["text_text"] = Rows(model.encode_text(captions[video]))
            try:
                rows[f"video_{options.level}"] = encode(model, reader, video, length)
            except VideoError as error:
                failed.append(error)
            if rows:  # captions of a video that cannot be read stay: they count as not covered
                writer.add(video, rows)
        total = len(writer.keys)
    reader.close()
    missing = sorted(set(captions) - set(wanted))
    sys.stdout.write(
        f"{options.out}: {total} videos"
        f"{f', {len(failed)} could not be read' if failed else ''}"
        f"{f', {len(missing)} of the annotations are not there' if missing else ''}\n"
    )
    sys.stdout.writelines(f"  {error}\n" for error in failed)
    return 0


def read_captions(options: Any) -> dict[str, list[str]]:
    """Captions of each video."""
    out: dict[str, list[str]] = {}
    for record in open_records([options.annotations], "auto", options.split, None):
        out.setdefault(record.video, []).extend(record.texts("caption"))
    return {video: texts for video, texts in out.items() if texts}


def encode(model: VideoText, reader: VideoReader, video: str, length: float | None) -> Rows:
    """The rows of one video."""
    if length is None:
        duration = reader.describe(video).duration
        ((_, encoded),) = model.encode_records([Record(video)], reader)
        if isinstance(encoded, VideoError):
            raise encoded
        vector = encoded.embeddings["video"].float().cpu().numpy()
        return Rows(vector, np.asarray([[0.0, duration]]))
    duration = reader.describe(video).duration
    spans = windows(duration, (length,), 1.0) if duration > length else [Span(0.0, duration)]
    return encode_spans(model, reader, video, [s for s in spans if s.end - s.start < length + 1e-6])
