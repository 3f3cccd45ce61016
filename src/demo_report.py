"""The end of the demo: one results.json over all its runs, and the page."""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rushes.errors import StorageError
from rushes.report import Page, read_results, strips_of, write_report, write_results
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader

RUNS = {"stage 1": "stage1", "stage 2": "stage2", "retrieval": "retrieval", "answers": "qa"}
CHOICE = Path("mc") / "inference" / "multiple_choice_test_weights" / "results.json"
FULL_RESULTS = Path("docs") / "results"


def main(argv: Sequence[str]) -> int:
    """`rushes report FOLDER`: write the page and figures of a finished demo again."""
    parser = argparse.ArgumentParser(prog="rushes report", allow_abbrev=False)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs") / "demo")
    options = parser.parse_args(argv)
    return write(options.folder, seed=_seed(options.folder), full=False)


def write(folder: Path, *, seed: int, full: bool) -> int:
    """Merge the runs' figures, write the page, print the scores; returns an exit code.

    Args:
        folder: of the demo.
        seed: of its runs.
        full: also write docs/results/demo-full-SEED.json.
    """
    results = gather(folder)
    results["seed"] = seed
    timings = folder / "timings.json"
    if timings.exists():
        results["seconds"] = json.loads(timings.read_text("utf-8"))
        results["seconds_total"] = round(sum(results["seconds"].values()), 1)
    peak = max(_known_peak(folder), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)
    if peak > 0:
        results["peak_memory_gib"] = round(peak, 2)
    write_results(folder / "results.json", results)
    _write_page(folder, results)
    if full:
        FULL_RESULTS.mkdir(parents=True, exist_ok=True)
        named = {**results, "commit": _commit(), "config_hash": _config_hash(folder)}
        write_results(FULL_RESULTS / f"demo-full-{seed}.json", named)
    print(summary(results, folder))  # noqa: T201
    return 0


def gather(folder: Path) -> dict[str, Any]:
    """Test figures of all runs of a demo, by task.

    Raises:
        StorageError: a run has no results.
    """
    results: dict[str, Any] = {}
    for name in ("stage1", "retrieval", "qa"):
        found = read_results(folder / name / "results.json")
        part: dict[str, Any] = {k: found[k] for k in ("retrieval", "qa") if k in found}
        part["coverage"] = found.get("coverage")
        part["unreadable"] = found.get("unreadable", [])
        if name == "stage1":
            results["zero_shot"] = part
        else:
            results.update({k: v for k, v in part.items() if k not in ("coverage", "unreadable")})
    results["stage2"] = read_results(folder / "stage2" / "results.json").get("validation", {})
    choice = read_results(folder / CHOICE)
    if "mc" not in choice:
        raise StorageError(f"{folder / CHOICE}: no multiple-choice figures")
    results["mc"] = choice["mc"]
    return results


def summary(results: Mapping[str, Any], folder: Path) -> str:
    """The scores in a few lines, each beside chance or the majority answer."""
    retrieval, qa, choice = results["retrieval"], results["qa"], results["mc"]
    lines = [
        "",
        f"text -> video  R@1 {retrieval['t2v_r1']:.3f}   R@5 {retrieval['t2v_r5']:.3f}   "
        f"R@10 {retrieval['t2v_r10']:.3f}   (chance R@1 {retrieval['chance_r1']:.3f})",
        f"questions      {qa['accuracy']:.3f}   (majority answer {qa['majority']:.3f})",
    ]
    lines += [
        f"  {kind:<12} {score:.3f}   ({qa['majority_by_kind'][kind]:.3f})"
        for kind, score in qa["by_kind"].items()
    ]
    lines += [
        f"five captions  {choice['accuracy']:.3f}   (chance 0.200)",
        "",
        f"figures  {folder / 'results.json'}",
        f"page     {folder / 'report.html'}",
        f"bad      {folder / 'bad_videos.jsonl'}",
    ]
    return "\n".join(lines)


def _write_page(folder: Path, results: Mapping[str, Any]) -> None:
    corpus = folder / "corpus"
    reader = open_reader(open_catalogue(corpus / "videos_6fps"))
    facts = {"seed": str(results["seed"])}
    if "seconds_total" in results:
        facts["minutes"] = f"{results['seconds_total'] / 60:.1f}"
    if "peak_memory_gib" in results:
        facts["peak memory"] = f"{results['peak_memory_gib']:.1f} GiB"
    page = Page(
        title="rushes demo",
        results=results,
        runs={name: folder / place for name, place in RUNS.items()},
        retrieval=folder / "retrieval" / "predictions" / "test.jsonl",
        strips=strips_of(reader),
        bad_videos=folder / "bad_videos.jsonl",
        facts=facts,
        lead="Rendered footage with known truth: trained from nothing on this machine.",
    )
    try:
        write_report(folder / "report.html", page)
    finally:
        reader.close()


def _known_peak(folder: Path) -> float:
    """Of the runs that an earlier page was written after: they are not this process's children."""
    path = folder / "results.json"
    return float(read_results(path).get("peak_memory_gib", 0.0)) if path.exists() else 0.0


def _seed(folder: Path) -> int:
    return int(read_results(folder / "retrieval" / "results.json")["seed"])


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _config_hash(folder: Path) -> str:
    """Hash of the resolved configurations of all runs, without their folders."""
    parts = []
    for place in RUNS.values():
        config = json.loads((folder / place / "config.json").read_text("utf-8"))
        config.pop("output_dir", None)
        parts.append(config)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
