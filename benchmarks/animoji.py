"""Real animations with names: ours against a plain CNN, from scratch.

python benchmarks/animoji.py --json out.json            both models on the splits of the manifest
python benchmarks/animoji.py --json out.json --folds    also emoji never seen: five folds by `base`

test_comp.{ours,cnn}.t2v_r1        a skin tone left out of a known emoji; 275 videos
test_new.{ours,cnn}.*              60 emoji never seen
folds.{ours,cnn}.{t2v_r1,median_rank,mean_reciprocal_rank}
                                   734 emoji, one video each in the gallery of their fold
folds.difference.*                 ours less the CNN over the same queries, with its interval

Ours is the preset animoji_retrieval, trained and judged by the command `rushes finetune`. The data
are found by --data or $RUSHES_SHARED/animoji. Every training ends within --minutes; by default none
is cut short. What has finished in --work is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _animoji_cnn import Footage, Plain
from _figures import add_json, publish

from rushes.configs.load import read_preset
from rushes.datasets.formats.registry import read_records
from rushes.datasets.record import Record, record_to_json
from rushes.metrics import bootstrap, paired_bootstrap, summarise_ranks

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 5
PROBE = 12
"""Steps that tell how fast ours trains here."""
Ranks = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    parser.add_argument("--folds", action="store_true", help="also five folds by emoji")
    parser.add_argument("--minutes", type=float, help="longest training of one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder with manifest.jsonl and videos")
    parser.add_argument("--work", type=Path, default=Path("runs") / "animoji")
    parser.add_argument("--overlay", action="append", default=[], help="laid over our preset")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    figures = bench.splits()
    if arguments.folds:
        figures["folds"] = bench.folds()
    figures["seed"], figures["threads"] = arguments.seed, arguments.threads
    figures["torch"] = torch.__version__
    publish(figures, arguments.json)


class Bench:
    """Both models on the same records."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        shared = Path(os.environ.get("RUSHES_SHARED") or ROOT.parent / "shared")
        source = (arguments.data or shared / "animoji").resolve()
        if not (source / "manifest.jsonl").is_file():
            sys.exit(f"{source}: no manifest.jsonl; say --data FOLDER or set RUSHES_SHARED")
        self.work = arguments.work.resolve()
        place = self.work / "data" / "animoji"
        place.mkdir(parents=True, exist_ok=True)
        (place / "manifest.jsonl").write_bytes((source / "manifest.jsonl").read_bytes())
        if not (place / "videos").exists():
            (place / "videos").symlink_to(source / "videos", target_is_directory=True)
        self.videos = place / "videos"
        self.records = list(read_records(place / "manifest.jsonl"))
        self.footage = Footage(self.videos, sorted({record.video for record in self.records}))
        self.epochs: float | None = None

    def splits(self) -> dict[str, Any]:
        """Both models trained on `train`, judged on the two test splits."""
        train = self._of("train")
        cnn = Plain(train, self.footage, self.arguments.seed, self.arguments.minutes)
        begun = time.perf_counter()
        folder = self._ours("splits")
        ours = {"seconds": time.perf_counter() - begun, **self._facts(folder)}
        out: dict[str, Any] = {
            "ours": ours,
            "cnn": {
                "seconds": cnn.seconds,
                "epochs": cnn.epochs,
                "parameters": cnn.parameters,
            },
        }
        for name in ("test_comp", "test_new"):
            records = self._of(name)
            first = read_ranks(folder / "predictions" / f"test_{name}.jsonl")
            out[name] = compare(first, cnn.ranks(records, self.footage))
        return out

    def folds(self) -> dict[str, Any]:
        """Five trainings of each; every emoji is a query once, among those of its own fold."""
        bases = sorted({record.tags["base"] for record in self.records})
        order = np.random.default_rng(0).permutation(len(bases))
        fold_of = {bases[b]: i % FOLDS for i, b in enumerate(order)}
        ours: Ranks = {}
        cnn: Ranks = {}
        seconds = []
        for fold in range(FOLDS):
            held = [r for r in self.records if fold_of[r.tags["base"]] == fold]
            train = [r for r in self.records if fold_of[r.tags["base"]] != fold]
            gallery = one_each(held)
            plain = Plain(train, self.footage, self.arguments.seed + fold, self.arguments.minutes)
            cnn.update(plain.ranks(gallery, self.footage))
            file = self.work / "data" / "animoji" / f"fold_{fold}.jsonl"
            write_records(file, [replace(r, split="train") for r in train])
            write_records(file, [replace(r, split="test") for r in gallery], more=True)
            begun = time.perf_counter()
            folder = self._ours(f"fold_{fold}", *fold_flags(file.name))
            seconds.append({"ours": time.perf_counter() - begun, "cnn": plain.seconds})
            ours.update(read_ranks(folder / "predictions" / "test.jsonl"))
            print(f"fold {fold}: {compare(ours, cnn)['difference']}", file=sys.stderr)
        return {**compare(ours, cnn), "seconds": seconds}

    def _of(self, split: str) -> list[Record]:
        return [record for record in self.records if record.split == split]

    def _ours(self, name: str, *flags: str) -> Path:
        """The run folder of our preset, trained by its ordinary command."""
        if self.arguments.minutes is not None and self.epochs is None:
            self.epochs = self._affordable(flags)
        limit = () if self.epochs is None else ("--train.epochs", str(self.epochs))
        return self._command(name, *flags, *limit)

    def _affordable(self, flags: Sequence[str]) -> float:
        """Epochs that fit into --minutes on this machine."""
        probe = ("--train.max_steps", str(PROBE), "--data.validation", "[]", "--data.test", "[]")
        folder = self._command("probe", *flags, *probe)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        taken = [line["seconds"] for line in lines if "seconds" in line]
        second = statistics.median(taken[PROBE // 3 :])
        config = json.loads((folder / "results.json").read_text())["config"]
        steps = len(self._of("train")) / config["train"]["batch_size"]
        affordable = 60 * self.arguments.minutes / (second * steps)
        preset: float = config["train"]["epochs"]
        return min(preset, max(1.0, round(affordable, 2)))

    def _command(self, name: str, *flags: str) -> Path:
        overlays = [part for overlay in self.arguments.overlay for part in ("--config", overlay)]
        folder = self.work / name
        command = [
            *(sys.executable, "-m", "rushes.cli", "finetune", "--config", "animoji_retrieval"),
            *(*overlays, "--data_mount_dir", str(self.work), "--output_dir", str(folder)),
            *("--seed", str(self.arguments.seed), "--train.num_threads"),
            *(str(self.arguments.threads), *flags),
        ]
        print(" ".join(command[2:]), file=sys.stderr)
        subprocess.run(command, check=True, cwd=ROOT)
        return folder

    def _facts(self, folder: Path) -> dict[str, Any]:
        results = json.loads((folder / "results.json").read_text())
        return {"steps": results["steps"], "epochs": results["config"]["train"]["epochs"]}


def fold_flags(file: str) -> tuple[str, ...]:
    """Flags that put a fold in the place of the preset's splits."""
    base = read_preset("animoji_retrieval")["data"]["train"][0]
    flags: list[str] = []
    for key, split in (
        ("train", "train:fit"), ("validation", "train:holdout"), ("test", "test"),
    ):  # fmt: skip
        entry = {**base, "name": key, "annotations": [f"data/animoji/{file}"], "split": split}
        flags += [f"--data.{key}", json.dumps([entry])]
    return tuple(flags)


def one_each(records: Sequence[Record]) -> list[Record]:
    """One record an emoji: the one without a skin tone, whose id is the emoji's own."""
    found = {record.tags["base"]: record for record in reversed(records)}
    found.update({r.tags["base"]: r for r in records if r.id == r.tags["base"]})
    return list(found.values())


def write_records(path: Path, records: Sequence[Record], more: bool = False) -> None:
    """Write records as our own JSON lines; `more` appends."""
    with path.open("a" if more else "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record_to_json(record)) + "\n" for record in records)


def read_ranks(path: Path) -> Ranks:
    """Rank of the right video of each query, by video id, as a run wrote them."""
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return {row["video"]: row["rank"] for row in rows}


def compare(ours: Ranks, cnn: Ranks) -> dict[str, Any]:
    """Figures of both over the same queries, and what ours is better by."""
    if set(ours) != set(cnn):
        sys.exit(f"ours answered {len(ours)} queries, the CNN {len(cnn)}: not the same ones")
    names = sorted(ours)
    a, b = (np.array([ranks[name] for name in names]) for ranks in (ours, cnn))
    difference = {
        "t2v_r1": paired_bootstrap((a <= 1).astype(float), (b <= 1).astype(float)),
        "mean_reciprocal_rank": paired_bootstrap(1 / a, 1 / b),
    }
    return {"ours": shown(a), "cnn": shown(b), "difference": difference, "queries": len(names)}


def shown(ranks: Any) -> Mapping[str, Any]:
    """R@1, median rank and mean reciprocal rank, with the interval of R@1."""
    found = summarise_ranks(ranks)
    return {
        "t2v_r1": found["r1"],
        "median_rank": found["median_rank"],
        "mean_reciprocal_rank": found["mean_reciprocal_rank"],
        "interval_95": {"t2v_r1": list(bootstrap((ranks <= 1).astype(float)))},
    }


if __name__ == "__main__":
    main()
