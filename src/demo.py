"""`rushes demo`: the whole road on a rendered corpus, one command after the other, each shown.

Every step is an ordinary command that a user could type; a step that has finished with the same
configuration is not repeated, so a demo that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rushes import demo_report
from rushes.datasets.footage import PREPARE, STORE
from rushes.errors import RushesError


class DemoFailed(RushesError):
    """A step of the demo ended with an error; its own output says why."""


BAD_VIDEOS = "bad_videos.jsonl"


class Size(NamedTuple):
    """How much of everything; overlays are presets laid on each run, `{}` is the run's name."""

    train: int
    validation: int
    test: int
    overlays: tuple[str, ...]


DEMO = Size(train=440, validation=40, test=200, overlays=())
FULL = Size(train=900, validation=150, test=200, overlays=("demo_full_{}",))


class Step(NamedTuple):
    """One command of the road and the file that says it has finished.

    A step without such a file is run each time, and does nothing twice by itself.
    """

    title: str
    arguments: tuple[str, ...]
    finished: Path | None


def steps(folder: Path, size: Size, seed: int) -> list[Step]:
    """The road as commands, in order."""
    corpus = folder / "corpus"
    render = [
        *("footage", str(corpus), "--train", str(size.train), "--val", str(size.validation)),
        *("--test", str(size.test), "--seed", str(seed)),
    ]
    prepared = str(corpus / "videos_6fps")
    compress = ["prepare", str(corpus / "videos"), prepared, *PREPARE]
    pack = ["store", prepared, str(corpus / "store"), *STORE]

    def run(
        command: str,
        name: str,
        *presets: str,
        finished: Path | None = None,
        extra: Sequence[str] = (),
    ) -> Step:
        overlays = [part for preset in presets for part in ("--config", preset)]
        for overlay in size.overlays:
            overlays += ["--config", overlay.format(name)]
        arguments = [
            *(command, *overlays, "--data_mount_dir", str(corpus), "--seed", str(seed)),
            *("--output_dir", str(folder / name), *extra),
        ]
        return Step(name, tuple(arguments), folder / (finished or Path(name) / "results.json"))

    def start(name: str) -> tuple[str, str]:
        return "--e2e_weights_path", str(folder / name / "best")

    return [
        Step("footage", tuple(render), corpus / "corpus.json"),
        Step("prepare", tuple(compress), folder / BAD_VIDEOS),
        Step("store", tuple(pack), None),
        run("pretrain", "stage1", "pretrain_stage1", "tiny", "demo", "demo_stage1"),
        run(
            "pretrain",
            "stage2",
            "pretrain_stage2",
            "tiny",
            "demo",
            "demo_stage2",
            extra=start("stage1"),
        ),
        run(
            "finetune",
            "retrieval",
            *("msrvtt_retrieval", "tiny", "demo", "demo_retrieval"),
            extra=start("stage1"),
        ),
        run("finetune", "qa", "msrvtt_qa", "tiny", "demo", "demo_qa", extra=start("stage2")),
        run(
            "infer",
            "mc",
            *("msrvtt_retrieval", "tiny", "demo", "demo_mc"),
            finished=demo_report.CHOICE,
            extra=start("retrieval"),
        ),
    ]


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns an exit code."""
    parser = argparse.ArgumentParser(prog="rushes demo", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=None, help="folder (runs/demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="full size: about 35 minutes")
    parser.add_argument("--until", default=None, help="stop after this step")
    options = parser.parse_args(argv)
    name = f"demo-full-{options.seed}" if options.full else "demo"
    folder: Path = options.out or Path("runs") / name
    road = steps(folder, FULL if options.full else DEMO, options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(road, 1):
        _run(step, number, len(road), folder)
        if step.title == options.until:
            return 0
    return demo_report.write(folder, seed=options.seed, full=options.full)


def _run(step: Step, number: int, count: int, folder: Path) -> None:
    print(f"\n[{number}/{count}] rushes {shlex.join(step.arguments)}", flush=True)  # noqa: T201
    if step.finished is not None and step.finished.exists():
        print(f"    done before: {step.finished}", flush=True)  # noqa: T201
        return
    begun = time.monotonic()
    command = [sys.executable, "-m", "rushes.cli", *step.arguments]
    code = subprocess.run(command, env=dict(os.environ), check=False).returncode
    if code:
        raise DemoFailed(f"step {step.title} ended with exit code {code}: {shlex.join(command)}")
    if step.title == "prepare":
        keep_bad_videos(folder)
    seconds = time.monotonic() - begun
    timings = folder / "timings.json"
    known = json.loads(timings.read_text("utf-8")) if timings.exists() else {}
    known[step.title] = round(known.get(step.title, 0.0) + seconds, 1)
    timings.write_text(json.dumps(known, indent=1), encoding="utf-8")
    print(f"    {step.title}: {seconds:.0f} s", flush=True)  # noqa: T201


def keep_bad_videos(folder: Path) -> None:
    """Put the list of bad files, as preparation found them, beside the results."""
    shutil.copyfile(folder / "corpus" / "videos_6fps" / BAD_VIDEOS, folder / BAD_VIDEOS)
