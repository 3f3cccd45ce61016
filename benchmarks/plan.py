"""How right `rushes plan` is: terms fitted on some files, samples of the others predicted.

    python benchmarks/plan.py --videos DIR --json out.json

Every second file calibrates the two terms; on each of the rest, the median predicted milliseconds
of a stage-1 sample are compared with the median of those measured, the same samples on both sides.

    plan.error.median    median over files of |predicted / measured - 1|
    plan.error.max       the worst file
    plan.rank            Spearman correlation of predicted and measured over files
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _figures import add_json, publish

from rushes.configs.schema import ClipConfig
from rushes.errors import VideoError
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.plan import calibrate, draw, request_of, work
from rushes.video.readers.pyav_reader import PyAVReader


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of raw files")
    add_json(parser)
    parser.add_argument("--rounds", type=int, default=9, help="samples a file")
    parser.add_argument("--seconds", type=float, default=8.0, help="of calibrating")
    options = parser.parse_args(arguments)
    clips = ClipConfig(sampling="frames", num_clips=2, num_frames=7, stride=12)
    catalogue = open_catalogue(options.videos)
    with tempfile.TemporaryDirectory() as cache:
        reader = PyAVReader(catalogue, index_cache=Path(cache))
        report = judge(catalogue, reader, clips, options.rounds, options.seconds)
        reader.close()
    publish(report, options.json, hide=("files",))
    return 0


def judge(
    catalogue: Catalogue, reader: PyAVReader, clips: ClipConfig, rounds: int, seconds: float
) -> dict[str, Any]:
    """Fit on every second file, predict and measure the others."""
    generator = np.random.default_rng(0)
    indexes = []
    for video_id in catalogue.ids():
        try:
            index = reader.index(video_id)
        except VideoError:
            continue
        if index.damage is None and not index.whole and index.info.num_frames >= 25:
            indexes.append(index)
    if len(indexes) < 4:
        raise SystemExit(f"only {len(indexes)} sound files in {catalogue.root}")
    model = calibrate(reader, indexes[::2], clips, seconds, generator)
    rows = []
    for index in indexes[1::2]:
        predicted, measured = [], []
        for _ in range(rounds):
            high, low = draw(index, clips, generator)
            predicted.append(model.predict(*work(index, high, low)))
            reader.release()
            began = time.perf_counter()
            reader.read(request_of(index, high, low))
            measured.append(1000 * (time.perf_counter() - began))
        told, true = statistics.median(predicted), statistics.median(measured)
        rows.append({"file": index.info.video_id, "predicted_ms": told, "measured_ms": true})
        print(f"{index.info.video_id}: {told:.1f} ms predicted, {true:.1f} measured", flush=True)
    errors = [abs(row["predicted_ms"] / row["measured_ms"] - 1) for row in rows]
    ranks = [np.argsort(np.argsort([row[k] for row in rows])) for k in rows[0] if k != "file"]
    return {
        "plan.error.median": statistics.median(errors),
        "plan.error.max": max(errors),
        "plan.rank": float(np.corrcoef(*ranks)[0, 1]),
        "model": {"per_megapixel": model.per_megapixel, "per_group": model.per_group},
        "files": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
