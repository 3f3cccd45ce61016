"""`rushes ablate ARM --seed S`: one arm and one seed of the ablation; `--merge` puts them together.

Every arm is made of ordinary runs on the demo corpus at demo size, differing in what its name says:

hybrid, high, low, frames_mean   stage 1, then open-ended questions
pretrained, scratch              retrieval at equal steps, from stages 1 and 2 or from nothing
matching                         stage 2 with matching; retrieval with and without re-ranking by it
single_frame, text_only          a small CNN on one small frame and the question; the question

Results lie in runs/ablate/ARM/seed_S/results.json, runs in folders beside it; a run that has
finished is not repeated. Merging pools the seeds: a figure is the mean over seeds, its interval a
bootstrap over the questions (or queries) of the test split, a comparison a paired one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rushes.checkpoint import write_atomically
from rushes.configs.load import load_config
from rushes.configs.schema import RunConfig
from rushes.datasets.footage import PREPARE, STORE, render_corpus
from rushes.distributed import World, run_main
from rushes.errors import ConfigError
from rushes.log import get_logger
from rushes.runner import run
from rushes.tasks import ablate_baselines, ablate_merge
from rushes.video import prepare, store_build

log = get_logger(__name__)

TOWERS: dict[str, tuple[str, ...]] = {
    "hybrid": (),
    "high": ("--model.inputs", "high"),
    "low": ("--model.inputs", "low"),
    "frames_mean": ("--model.kind", "frames_mean"),
}
"""Arm -> flags that make its model."""
TRANSFER = ("pretrained", "scratch")
BASELINES = ("single_frame", "text_only")
ARMS = (*TOWERS, *TRANSFER, "matching", *BASELINES)
MATCHING = '[{"name": "masked_language", "pool": "lse"}, {"name": "matching"}]'
RERANKED = 10
"""Candidates that matching orders anew."""
TRAIN, VALIDATION, TEST = 600, 60, 200
"""Videos of the demo corpus."""


def main(argv: Sequence[str]) -> int:
    """Run an arm, or merge; returns an exit code."""
    parser = argparse.ArgumentParser(prog="rushes ablate", allow_abbrev=False)
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("arm", nargs="?", choices=ARMS)
    parser.add_argument("--seed", type=int, default=0, help="of model and batches (0)")
    parser.add_argument("--out", type=Path, default=Path("runs") / "ablate")
    parser.add_argument("--corpus", type=Path, help="prepared demo corpus (OUT/corpus is made)")
    parser.add_argument("--overlay", action="append", default=[], help="laid over every run")
    parser.add_argument("--merge", action="store_true", help="write docs/results/ablation.json")
    parser.add_argument("--to", type=Path, default=ablate_merge.TARGET, help="where --merge writes")
    options = parser.parse_args(argv)
    if options.merge == (options.arm is not None):
        raise ConfigError(f"rushes ablate takes one of --merge and an arm: {', '.join(ARMS)}")
    if options.merge:
        return ablate_merge.merge(options.out, options.to)
    return run_main(lambda world: _arm(options, world))


def _arm(options: argparse.Namespace, world: World) -> int:
    arm, folder = options.arm, options.out / options.arm / f"seed_{options.seed}"
    corpus: Path = options.corpus or options.out / "corpus"
    if world.is_main and options.corpus is None:
        make_corpus(corpus)
    world.barrier()
    begun = time.monotonic()
    road = Road(folder, options.out, corpus, options.seed, options.overlay, world)
    if arm in TOWERS:
        results = towers(road, arm)
    elif arm in TRANSFER:
        results = transfer(road, pretrained=arm == "pretrained")
    elif arm == "matching":
        results = matching(road)
    else:
        config = road.config("msrvtt_qa", "demo_qa", "baseline")
        results = ablate_baselines.train_baseline(config, world, pictures=arm == "single_frame")
    results["arm"], results["seed"] = arm, options.seed
    results["minutes"] = round((time.monotonic() - begun) / 60, 2)
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "results.json", json.dumps(results, indent=1) + "\n")
        log.info("%s: %s", folder / "results.json", ablate_merge.shown(results))
    return 0


def make_corpus(corpus: Path) -> None:
    """Render and prepare the demo corpus where it is not there yet."""
    render_corpus(corpus, TRAIN, VALIDATION, TEST, seed=0)
    small = corpus / "videos_6fps"
    if not (small / "bad_videos.jsonl").is_file():
        prepare.main([str(corpus / "videos"), str(small), *PREPARE])
    store_build.main([str(small), str(corpus / "store"), *STORE])


class Road:
    """The runs of one arm and seed.

    Args:
        folder: of the arm and seed.
        shared: of all arms; stage 1 of the hybrid model is trained once and lent to others.
        corpus: prepared.
        overlays: preset files laid over every run.
    """

    def __init__(
        self,
        folder: Path,
        shared: Path,
        corpus: Path,
        seed: int,
        overlays: Sequence[str],
        world: World,
    ) -> None:
        self.folder, self.shared, self.corpus = folder, shared, corpus
        self.seed, self.overlays, self.world = seed, tuple(overlays), world

    def config(
        self, preset: str, data: str, name: str, *flags: str, place: Path | None = None
    ) -> RunConfig:
        """The configuration of one run: a published preset made small, on the demo corpus."""
        presets = [
            part for p in (preset, "tiny", "demo", data, *self.overlays) for part in ("--config", p)
        ]
        return load_config(
            [
                *(*presets, "--data_mount_dir", str(self.corpus), "--seed", str(self.seed)),
                *("--output_dir", str((place or self.folder) / name), *flags),
            ]
        )

    def run(self, preset: str, data: str, name: str, *flags: str) -> dict[str, Any]:
        """Train and judge, unless that was done before; its figures."""
        return run(self.config(preset, data, name, *flags), self.world)

    def stage1(self) -> Path:
        """Run folder of the hybrid model's stage 1 with this seed, trained where it is not yet."""
        place = self.shared / "hybrid" / f"seed_{self.seed}"
        config = self.config("pretrain_stage1", "demo_stage1", "stage1", place=place)
        run(config, self.world)
        return Path(config.output_dir)

    def predictions(self, name: str, split: str = "test") -> list[dict[str, Any]]:
        """Rows that a run wrote for a split."""
        path = self.folder / name / "predictions" / f"{split}.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def towers(road: Road, arm: str) -> dict[str, Any]:
    """Stage 1 and questions with one kind of video tower."""
    flags = TOWERS[arm]
    road.run("pretrain_stage1", "demo_stage1", "stage1", *flags)
    start = ("--e2e_weights_path", str(road.folder / "stage1"))
    found = road.run("msrvtt_qa", "demo_qa", "qa", *start, *flags)
    rows = road.predictions("qa")
    return {
        "qa": {k: found["qa"][k] for k in ("accuracy", "by_kind", "majority", "majority_by_kind")},
        "items": {row["id"]: [row["kind"], float(row["right"])] for row in rows},
    }


def transfer(road: Road, pretrained: bool) -> dict[str, Any]:
    """Retrieval, as many steps from stages 1 and 2 as from nothing."""
    start = ("--e2e_weights_path", "null")
    if pretrained:
        first = ("--e2e_weights_path", str(road.stage1()))
        road.run("pretrain_stage2", "demo_stage2", "stage2", *first)
        start = ("--e2e_weights_path", str(road.folder / "stage2"))
    found = road.run("msrvtt_retrieval", "demo_retrieval", "retrieval", *start)
    rows = road.predictions("retrieval")
    return {
        "t2v_r1": found["retrieval"]["t2v_r1"],
        "steps": found["steps"],
        "items": {row["id"]: ["t2v_r1", hit(row)] for row in rows},
    }


def matching(road: Road) -> dict[str, Any]:
    """Stage 2 with matching; retrieval by it with and without re-ranking."""
    first = ("--e2e_weights_path", str(road.stage1()), "--objectives", MATCHING)
    road.run("pretrain_stage2", "demo_stage2", "stage2", *first)
    results: dict[str, Any] = {"items": {}}
    for name, k in (("plain", 0), ("reranked", RERANKED)):
        flags = ("--do_inference", "1", "--inference_split", "test", "--evaluation.rerank", str(k))
        found = road.run("msrvtt_retrieval", "demo_retrieval", "stage2", *flags)
        results[name] = {"t2v_r1": found["retrieval"]["t2v_r1"]}
        rows = road.predictions("stage2")
        results["items"].update({f"{name}/{row['id']}": [name, hit(row)] for row in rows})
    return results


def hit(row: Mapping[str, Any]) -> float:
    """1 where a query's best candidate is right; ties count by what they are worth."""
    return float(row["rank"] <= 1)
