"""`rushes results RUN...`: the scores of runs side by side, mean and spread over their seeds.

A run is a folder with results.json, or one with a `seed_S` folder a seed. Without a run, the
figures of the full demo (docs/results/demo-full-*.json) are merged into docs/results.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rushes.checkpoint import write_atomically
from rushes.errors import StorageError
from rushes.report import read_results

SHOWN = (
    "retrieval.t2v_r1",
    "retrieval.t2v_r5",
    "retrieval.t2v_r10",
    "retrieval.t2v_median_rank",
    "retrieval.v2t_r1",
    "qa.accuracy",
    "qa.majority",
    "mc.accuracy",
    "coverage",
)
NAMED = ("retrieval.protocol", "retrieval.dual_softmax", "retrieval.rerank")
"""What must be said beside a score, because it changes what the score means."""
PAGE, FIGURES = Path("docs/results.md"), "docs/results"
BEGIN, END = "<!-- demo-full: begin -->", "<!-- demo-full: end -->"


def main(argv: Sequence[str]) -> int:
    """Run the command; returns an exit code."""
    parser = argparse.ArgumentParser(prog="rushes results", allow_abbrev=False)
    parser.description = __doc__
    parser.add_argument("runs", type=Path, nargs="*", help="run folders, or results files")
    parser.add_argument("--all", action="store_true", help="every figure, not the chief ones")
    options = parser.parse_args(argv)
    if not options.runs:
        return merge_full(Path.cwd())
    runs = {str(run): seeds_of(run) for run in options.runs}
    sys.stdout.write(markdown(runs, None if options.all else SHOWN) + "\n")
    return 0


def seeds_of(run: Path) -> list[dict[str, Any]]:
    """Results of each seed of a run; raises `StorageError` where there are none."""
    if run.is_file():
        return _unfolded(read_results(run))
    seeds = sorted(run.glob("seed_*/results.json"))
    if seeds:
        return [read_results(path) for path in seeds]
    return _unfolded(read_results(run / "results.json"))


def _unfolded(results: dict[str, Any]) -> list[dict[str, Any]]:
    seeds = results.get("seeds")
    return list(seeds) if isinstance(seeds, list) and seeds else [results]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested dictionaries by dotted name; settings and intervals are left out."""
    out: dict[str, float] = {}
    for name, value in values.items():
        if name in ("config", "interval_95"):
            continue
        if isinstance(value, Mapping):
            out.update(flat(value, f"{prefix}{name}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[prefix + name] = float(value)
    return out


def markdown(runs: Mapping[str, Sequence[Mapping[str, Any]]], shown: Sequence[str] | None) -> str:
    """A table with a column a run: "mean +- standard deviation", or the one figure."""
    tables = {name: [flat(results) for results in every] for name, every in runs.items()}
    found = {key for every in tables.values() for table in every for key in table}
    keys = sorted(found) if shown is None else [key for key in shown if key in found]
    if not keys:
        raise StorageError(f"no scores in {', '.join(runs)}")
    head = ["figure", *(f"{name} ({len(every)})" for name, every in runs.items())]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for key in keys:
        cells = [_cell([t[key] for t in every if key in t]) for every in tables.values()]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    for key in NAMED:
        said = [_said(every[0], key) for every in runs.values()]
        if any(said):
            lines.append(f"| {key} | {' | '.join(said)} |")
    return "\n".join(lines)


def _said(results: Mapping[str, Any], key: str) -> str:
    section, _, name = key.partition(".")
    return str(results.get(section, {}).get(name, ""))


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    return f"{mean:.3f} \N{PLUS-MINUS SIGN} {statistics.stdev(values):.3f}"


def merge_full(root: Path) -> int:
    """Write the table of the full demo's seeds into docs/results.md; returns an exit code."""
    files = sorted((root / FIGURES).glob("demo-full-*.json"))
    if not files:
        raise StorageError(
            f"{root / FIGURES}: no demo-full-*.json; run make demo-full SEED=0, or name run folders"
        )
    every = [read_results(path) for path in files]
    kinds = sorted({f"qa.by_kind.{kind}" for r in every for kind in r["qa"].get("by_kind", {})})
    majorities = [name.replace("by_kind", "majority_by_kind") for name in kinds]
    text = markdown({"make demo-full": every}, [*SHOWN, *kinds, *majorities])
    commits = [str(results.get("commit", "?"))[:9] for results in every]
    made = ", ".join(f"{p.name} ({c})" for p, c in zip(files, commits, strict=True))
    block = f"{BEGIN}\n{text}\n\nFrom {made}.\n{END}"
    page = root / PAGE
    old = page.read_text("utf-8") if page.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n## The full demo\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomically(page, f"{before}{block}{after}")
    sys.stdout.write(f"{page}: {len(files)} seeds\n")
    return 0
