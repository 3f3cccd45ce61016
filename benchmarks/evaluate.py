"""What judging costs beside its bare arithmetic.

python benchmarks/evaluate.py --json out.json

ratio.rank_vs_gemm     ranks both ways with ties, over the bare product in its best chunks, for
                       a model that ranks well (median rank 1); ratio.rank_vs_gemm_weak for one
                       that does not (every query must be compared with every item)
peak_gb                peak resident memory of ranking alone, in a process of its own
ratio.qa_shared        a loop that decodes and encodes per question, over ours; demo preset, 20
                       questions a video, decoding included
ratio.qa_shared_large  published size, decoding apart: the arithmetic bound (one video encoding
                       and the questions' own text and cross passes, timed apart) over ours
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _figures import add_json, publish

from rushes.configs.load import build_config, merge, read_preset
from rushes.configs.schema import RunConfig
from rushes.datasets.build import build_tokenizer
from rushes.datasets.footage import render_corpus
from rushes.datasets.frames import PooledReader
from rushes.datasets.record import Record, Segment
from rushes.datasets.samples import sample_options
from rushes.datasets.stretches import stretch_videos
from rushes.datasets.text import TextTokenizer, load_tokenizer, train_tokenizer
from rushes.distributed import SingleWorld
from rushes.encoding import TEXTS_A_VIDEO, Encoder
from rushes.judge_answers import answer_scores
from rushes.modeling.build import build_model
from rushes.modeling.encoded import Encoded, Level
from rushes.ranking import rank_both
from rushes.scorers import EmbeddingScorer
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader

DIM, QUESTIONS = 256, 20
WEAK = 1.0  # noise at which the right item stands among the first few percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=100_000, help="queries and gallery of ranking")
    parser.add_argument("--part", choices=("all", "rank", "qa", "large"), default="all")
    parser.add_argument("--arm", choices=("memory",), help="internal: peak memory of ranking")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.arm:
        rank(*vectors(arguments.size))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    figures: dict[str, Any] = {"threads": arguments.threads}
    if arguments.part in ("all", "rank"):
        figures |= measure_ranking(arguments.size, arguments.rounds, arguments.threads)
    if arguments.part in ("all", "qa"):
        figures |= measure_shared(arguments.rounds)
    if arguments.part in ("all", "large"):
        figures |= measure_large(arguments.rounds)
    publish(figures, arguments.json)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


# Ranking ---------------------------------------------------------------------------------------


def vectors(size: int, noise_level: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and a gallery that fits them as well as the noise allows, with some exact ties."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(size, DIM, generator=generator), dim=1)
    noise = noise_level * torch.randn(size, DIM, generator=generator)
    gallery = torch.nn.functional.normalize(queries + noise, dim=1)
    gallery[1::1000] = gallery[0::1000]
    return queries, gallery


def rank(queries: torch.Tensor, gallery: torch.Tensor) -> None:
    """Both directions, ties included."""
    pairs = torch.arange(len(queries))[:, None].expand(-1, 2)
    forward, _ = rank_both(EmbeddingScorer(queries, gallery), pairs)
    assert (forward.ranks % 1 == 0.5).any(), "the ties were found"


def multiply(queries: torch.Tensor, gallery: torch.Tensor, rows: int, columns: int) -> None:
    """The bare product in chunks, each into the same memory."""
    out = torch.empty(rows, columns)
    for i in range(0, len(queries), rows):
        for j in range(0, len(gallery), columns):
            a, b = queries[i : i + rows], gallery[j : j + columns]
            torch.mm(a, b.T, out=out[: len(a), : len(b)] if out.shape != (len(a), len(b)) else out)


def measure_ranking(size: int, rounds: int, threads: int) -> dict[str, Any]:
    queries, gallery = vectors(size)
    few = queries[: max(2048, size // 10)]
    chunks = ((1024, 1024), (2048, 2048), (4096, 4096), (512, len(gallery)))
    tried = {chunk: timed(lambda c=chunk: multiply(few, gallery, *c)) for chunk in chunks}
    best = min(tried, key=tried.__getitem__)
    weak = vectors(size, WEAK)
    ours, poor, bare = [], [], []
    for _ in range(rounds):
        bare.append(timed(lambda: multiply(queries, gallery, *best)))
        ours.append(timed(lambda: rank(queries, gallery)))
        poor.append(timed(lambda: rank(*weak)))
    command = [sys.executable, __file__, "--arm", "memory", "--size", str(size)]
    command += ["--threads", str(threads)]
    peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        "size": size,
        "gemm_chunk": best,
        "seconds.gemm": statistics.median(bare),
        "seconds.rank": statistics.median(ours),
        "seconds.rank_weak": statistics.median(poor),
        "ratio.rank_vs_gemm": statistics.median([a / b for a, b in zip(ours, bare, strict=True)]),
        "ratio.rank_vs_gemm_weak": statistics.median(
            [a / b for a, b in zip(poor, bare, strict=True)]
        ),
        "peak_gb": float(peak),
    }


# Questions -------------------------------------------------------------------------------------


def questions_of(video: str) -> list[Record]:
    """20 questions about one video."""
    texts = [f"what does the object number {i} do in this video?" for i in range(QUESTIONS)]
    return [Record(video, segments=(Segment(text, "question"),)) for text in texts]


def measure_shared(rounds: int) -> dict[str, Any]:
    """The demo preset on rendered videos: ours against encoding anew for each question."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        render_corpus(corpus, train=2, val=1, test=3, progress=False)
        config = demo_config(corpus)
        tokenizer = build_tokenizer(config, SingleWorld(), Path(folder) / "tokenizer")
        model = build_model(config, vocab_size=tokenizer.vocab_size, num_answers=100).eval()
        encoder = Encoder(model, tokenizer, SingleWorld())
        catalogue = open_catalogue(corpus / "videos")
        reader = PooledReader(lambda: open_reader(catalogue))
        data = replace(config.data, num_workers=0)
        decode = stretch_videos(
            reader, tokenizer, sample_options(config, False), SingleWorld(), 1, data
        )
        names = [f"test_{i:05d}" for i in range(3)]

        def shared() -> None:
            for _, encoded in encoder.videos(decode([Record(name) for name in names])):
                assert encoded is not None
                answer_scores(encoder, encoded["video", "token"], questions_of(""), "mean")

        def apart() -> None:
            for name in names:
                for question in questions_of(name):
                    ((_, encoded),) = encoder.videos(decode([Record(name)]))
                    assert encoded is not None
                    answer_scores(encoder, encoded["video", "token"], [question], "mean")

        shared()
        ratios = [timed(apart) / timed(shared) for _ in range(rounds)]
        reader.close()
    return {"ratio.qa_shared": statistics.median(ratios)}


def demo_config(corpus: Path) -> RunConfig:
    values = read_preset("msrvtt_qa")
    for overlay in ("tiny", "demo", "demo_qa"):
        values = merge(values, read_preset(overlay))
    return build_config(merge(values, {"data": {"mount_dir": str(corpus)}}))


def measure_large(rounds: int) -> dict[str, Any]:
    """The published size: ours against the sum of its parts, each timed apart."""
    values = merge(read_preset("msrvtt_qa"), {"model": {"weights": {"init": "random"}}})
    config = build_config(values)
    tokenizer = words()
    model = build_model(config, vocab_size=tokenizer.vocab_size, num_answers=1500).eval()
    encoder = Encoder(model, tokenizer, SingleWorld())
    high_size = config.geometry.high_size
    clips = config.clips.eval_num_clips
    small = (high_size[0] // 4, high_size[1] // 4)
    upsampled = config.geometry.high == "upsampled"
    frames = config.clips.num_frames
    high = torch.randint(0, 256, (1, clips, 3, *(small if upsampled else high_size))).byte()
    low = torch.randint(0, 256, (1, clips, frames - 1, 3, *small)).byte()
    asked = questions_of("")
    texts = [question.question or "" for question in asked]

    def video() -> Encoded:
        with encoder.running():
            return model.encode_video(high, low)

    encoded = video()
    visual = encoded["video", "token"]

    def words_of(part: Sequence[str]) -> Level:
        return encoder.text_level(part, len(part))

    def crossing(level: Level) -> None:
        to_video = torch.zeros(len(level.values), dtype=torch.int64)
        with encoder.running():
            model.answer_logits(level, visual, to_video)

    parts = [texts[i : i + TEXTS_A_VIDEO] for i in range(0, len(texts), TEXTS_A_VIDEO)]
    levels = [words_of(part) for part in parts]

    def whole() -> None:
        answer_scores(encoder, video()["video", "token"], asked, "mean")

    ratios = []
    for _ in range(rounds):
        bound = timed(video)
        bound += sum(timed(lambda p=part: words_of(p)) for part in parts)
        bound += sum(timed(lambda v=level: crossing(v)) for level in levels)
        ratios.append(bound / timed(whole))
    return {"ratio.qa_shared_large": statistics.median(ratios)}


def words() -> TextTokenizer:
    """Some tokenizer: its words do not matter here."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer([q.question or "" for q in questions_of("")], 200, Path(folder))
        return load_tokenizer(folder, 20)


if __name__ == "__main__":
    main()
