"""What the loop costs: waiting for data, its own overhead, ranks, cached towers.

    python benchmarks/training.py --json

- data_stall: the tiny preset from stored footage against the same model on batches kept in memory,
  blocks of steps interleaved; median step over median cached step, less 1. One compute thread on
  core 0, decoding on core 1.
- loop_overhead: the loop on kept batches against a bare forward, backward and optimiser step.
- ranks: two processes against one on equal total work (samples/s of two over one).
- ratio.stage2_cached: stage 2 with `train.cache_frozen` over recomputation, samples/s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _figures import add_json, publish

from rushes.configs.load import build_config, merge, read_preset
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.datasets.build import build_train_loader
from rushes.datasets.footage import PREPARE, STORE, render_corpus
from rushes.datasets.loader import TrainLoader
from rushes.distributed import SingleWorld, World, run_main
from rushes.frozen_cache import cache_frozen
from rushes.runner import Parts, assemble
from rushes.session import Session
from rushes.steps import resolve_precision, total_loss
from rushes.training import StepLoader, train_step
from rushes.video import prepare, store_build

WARM_UP = 3


def config_of(corpus: Path, arguments: argparse.Namespace, **over: Any) -> RunConfig:
    """The tiny preset on prepared footage."""
    dataset = {
        "name": "footage",
        "annotations": [str(corpus / "train.jsonl")],
        "videos": str(corpus / arguments.videos),
        "texts": "caption_and_transcript",
    }
    values: dict[str, Any] = {
        "data": {
            "train": [dataset],
            "frames": arguments.frames,
            "num_workers": 1,
            "prefetch": 4,
            "failure_budget": 1.0,
        },
        "train": {"batch_size": arguments.batch_size, "epochs": 1e6, "checkpoint_every": 10**9,
                  "num_threads": 1, "log_every": 10},
    }  # fmt: skip
    return build_config(merge(merge(read_preset("tiny"), values), over))


def store(corpus: Path) -> None:
    """Compress and pack the footage as the demo does."""
    prepared = corpus / "prepared"
    quiet = ["--no-progress"]
    prepare.main([str(corpus / "videos"), str(prepared), *PREPARE, *quiet])
    store_build.main([str(prepared), str(corpus / "store"), *STORE, *quiet])


class Kept:
    """A loader that hands out the same steps from memory."""

    def __init__(self, loader: TrainLoader, count: int = 4) -> None:
        steps = loader.batches(0)
        self.steps = [next(steps) for _ in range(count)]
        self.steps_per_epoch = loader.steps_per_epoch
        self.bad: list[Any] = []
        steps.close()  # type: ignore[attr-defined]

    def honour(self, known: Any) -> None:
        """Nothing fails in memory."""

    def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
        """Without end."""
        while True:
            yield self.steps[start_step % len(self.steps)]
            start_step += 1


class Runner:
    """One session that can be driven in blocks of steps."""

    def __init__(self, parts: Parts, loader: StepLoader, config: RunConfig, folder: Path) -> None:
        self.loader, self.batches = loader, loader.batches(0)
        self.session = Session(parts.model, config, parts.world, folder, loader.steps_per_epoch)
        parts.model.train()

    def block(self, steps: int) -> list[float]:
        """Seconds of each of the next steps, waiting for data included."""
        found = []
        for _ in range(steps):
            begun = time.perf_counter()
            batches = next(self.batches)
            wait = time.perf_counter() - begun
            report = train_step(self.session, batches, self.loader)
            values = {"loss": report.loss, **report.losses, "grad_norm": report.grad_norm}
            self.session.after_step(values, report.samples, wait)
            found.append(time.perf_counter() - begun)
        return found

    def close(self) -> None:
        """End its threads and files."""
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()
        self.session.__exit__()


def bare_block(
    parts: Parts, kept: Kept, config: RunConfig, steps: int, optimizer: Any
) -> list[float]:
    """Seconds of forward, backward, clipping and update without the loop."""
    dtype = resolve_precision(config.train.precision, parts.world.device)
    generator = torch.Generator()
    source, found = kept.batches(0), []
    for _ in range(steps):
        begun = time.perf_counter()
        (batch,) = next(source)
        optimizer.zero_grad(set_to_none=True)
        named: dict[str, Any] = {}
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            encoded = parts.model.encode(batch)
            for weight, objective in parts.model.objectives(0).values():
                for name, value in objective(encoded, batch, parts.world, generator).items():
                    named[name] = value.float() * weight
        total_loss(named).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), config.optim.max_grad_norm)
        optimizer.step()
        found.append(time.perf_counter() - begun)
    return found


def pin(core: int, cores: set[int]) -> None:
    """This thread, and the threads it starts, on one of the cores where there are several."""
    if len(cores) > core:
        os.sched_setaffinity(0, {sorted(cores)[core]})


def stall_and_overhead(
    arguments: argparse.Namespace, corpus: Path, scratch: Path
) -> dict[str, Any]:
    """Blocks of three kinds in turn: from footage, from memory, bare."""
    world, config = SingleWorld(), config_of(corpus, arguments)
    every_core = os.sched_getaffinity(0)
    parts = assemble(config, world, scratch / "stall")
    pin(1, every_core)  # the service and the threads of the loader inherit it
    loader = build_train_loader(config, world, parts.tokenizer, sources=parts.sources)
    kept = Kept(loader, loader.steps_per_epoch)  # a whole epoch: the texts' lengths differ
    stored = Runner(parts, loader, config, scratch / "stall/stored")
    stored.block(1)  # starts its threads
    pin(0, every_core)
    memory = Runner(parts, kept, config, scratch / "stall/kept")
    times: dict[str, list[float]] = {"stored": [], "kept": [], "bare": []}
    memory.block(WARM_UP)
    stored.block(WARM_UP)
    optimizer = memory.session.optimizer
    for _ in range(arguments.blocks):
        times["stored"] += stored.block(arguments.steps)
        times["kept"] += memory.block(arguments.steps)
        times["bare"] += bare_block(parts, kept, config, arguments.steps, optimizer)
    stored.close()
    memory.close()
    parts.sources.close()
    os.sched_setaffinity(0, every_core)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "data_stall": median["stored"] / median["kept"] - 1,
        "loop_overhead": median["kept"] / median["bare"] - 1,
        "seconds_per_step": median,
        "steps_per_second": 1 / median["stored"],
    }


def stage2(arguments: argparse.Namespace, corpus: Path, scratch: Path) -> dict[str, Any]:
    """Samples/s of stage 2 with frozen towers, stored features against recomputation."""
    over = {
        "task": "pretrain",
        "stage": 2,
        "model": {"cross": True, "freeze": ["stage1"]},
        "objectives": [{"name": "masked_language"}],
        "train": {"cache_frozen": 1},
    }
    world, config = SingleWorld(), config_of(corpus, arguments, **over)
    rates: dict[str, list[float]] = {"recomputed": [], "cached": []}
    runners = {}
    for name in rates:
        parts = assemble(config, world, scratch / name)
        loader: Any = build_train_loader(config, world, parts.tokenizer, sources=parts.sources)
        if name == "cached":
            loader = cache_frozen(loader, parts.model, config, world, scratch / name)
        runners[name] = Runner(parts, loader, config, scratch / name / "run")
        runners[name].block(WARM_UP)
    for _ in range(max(2, arguments.blocks // 2)):
        for name, runner in runners.items():
            rates[name] += runner.block(max(4, arguments.steps // 4))
    for runner in runners.values():
        runner.close()
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "stage2_seconds_per_step": median,
        "ratio": {"stage2_cached": median["recomputed"] / median["cached"]},
    }


def one_rank(world: World, arguments: argparse.Namespace, corpus: Path, scratch: Path) -> int:
    """Print this world's samples/s on kept batches."""
    config = config_of(corpus, arguments)
    config = replace(
        config, train=replace(config.train, batch_size=arguments.batch_size // world.size)
    )
    parts = assemble(config, world, scratch / f"ranks_{world.size}")
    loader = build_train_loader(config, world, parts.tokenizer, sources=parts.sources)
    runner = Runner(parts, Kept(loader), config, scratch / f"ranks_{world.size}/run")
    runner.block(WARM_UP)
    seconds = statistics.median(runner.block(arguments.steps))
    runner.close()
    parts.sources.close()
    if world.is_main:
        (scratch / f"ranks_{world.size}.json").write_text(json.dumps(seconds))
    return 0


def ranks(arguments: argparse.Namespace, corpus: Path, scratch: Path) -> dict[str, Any]:
    """Two ranks of one thread each against one rank of one thread, equal global batch."""
    own = [__file__, "--rank", "--corpus", str(corpus), "--scratch", str(scratch)]
    own += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
    own += ["--videos", arguments.videos]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command in ([sys.executable, *own], [sys.executable, *launcher, *own]):
        subprocess.run(command, check=True)
    one, two = (json.loads((scratch / f"ranks_{n}.json").read_text()) for n in (1, 2))
    return {"ranks": {"seconds_one": one, "seconds_two": two, "speedup": one / two}}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add_json(parser)
    parser.add_argument("--corpus", type=Path, help="rendered footage; made when not given")
    parser.add_argument("--videos", default="store", help="folder or store in the corpus")
    parser.add_argument("--frames", default="local", help="as data.frames")
    parser.add_argument("--train", type=int, default=64, help="videos to render")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50, help="steps a block")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--only", choices=["stall", "ranks", "stage2"])
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the parts asked for."""
    arguments = parse(argv)
    if arguments.rank:
        return run_main(
            lambda w: one_rank(w, arguments, arguments.corpus, arguments.scratch), "cpu"
        )
    with tempfile.TemporaryDirectory(prefix="rushes-bench-") as folder:
        scratch = Path(folder)
        corpus = arguments.corpus
        if corpus is None:
            corpus = scratch / "footage"
            render_corpus(corpus, train=arguments.train, val=0, test=0, progress=False)
            store(corpus)
        torch.set_num_threads(1)
        found: dict[str, Any] = {"cores": os.cpu_count(), "batch_size": arguments.batch_size}
        for name, part in (("stall", stall_and_overhead), ("ranks", ranks), ("stage2", stage2)):
            if arguments.only in (None, name):
                found.update(part(arguments, corpus, scratch))
    publish(found, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
