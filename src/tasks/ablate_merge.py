"""The ablation's arms and seeds put together: figures, intervals, and which claims hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rushes.checkpoint import write_atomically
from rushes.errors import StorageError
from rushes.metrics import bootstrap, paired_bootstrap

TARGET = Path("docs") / "results" / "ablation.json"
SAMPLES = 2000
MARGIN, SLACK = 0.15, 0.05
"""By how much video must win; how far text alone may stray from the majority answer."""


@dataclass(frozen=True)
class Arm:
    """All seeds of one arm.

    Attributes:
        seeds: results by seed.
        kinds: what each question is about.
        right: by question, mean over seeds.
    """

    seeds: dict[int, dict[str, Any]]
    kinds: dict[str, str]
    right: dict[str, float]

    def of_kind(self, kind: str | None) -> dict[str, float]:
        """Figures of the questions of a kind; of all where it is None."""
        return {i: v for i, v in self.right.items() if kind is None or self.kinds[i] == kind}


def merge(folder: Path, target: Path) -> int:
    """Write all figures; returns 0 when every claim that can be judged holds, else 1.

    Raises:
        StorageError: no results at all.
    """
    arms = {path.name: read_arm(path) for path in sorted(folder.iterdir()) if _seeds(path)}
    if not arms:
        raise StorageError(f"{folder}: no ARM/seed_S/results.json; run rushes ablate ARM first")
    out: dict[str, Any] = {"ablation": {}, "transfer": {}, "matching": {}, "baseline": {}}
    for name, arm in arms.items():
        section, place = _place(name)
        out[section][place] = figures(arm, "qa" if section != "transfer" else "t2v")
    if "matching" in arms:
        out["matching"] = {
            k: {"t2v_r1": _figure(arms["matching"].of_kind(k))} for k in ("plain", "reranked")
        }
    majority = _majority(arms)
    out["baseline"]["majority"] = {"qa": {"by_kind": majority}}
    out["claims"] = claims(arms, majority)
    out["seeds"] = {name: sorted(arm.seeds) for name, arm in arms.items()}
    out["minutes"] = {
        name: [r["minutes"] for r in arm.seeds.values()] for name, arm in arms.items()
    }
    plain, intervals = split_intervals(out)
    plain["interval_95"] = intervals
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(plain, indent=1) + "\n")
    print(table(plain))
    print(target)
    return 0 if all(c["holds"] for c in plain["claims"]) else 1


def _seeds(path: Path) -> list[Path]:
    return sorted(path.glob("seed_*/results.json"))


def read_arm(path: Path) -> Arm:
    """All seeds of an arm; a question counts where every seed has judged it."""
    seeds: dict[int, dict[str, Any]] = {}
    for file in _seeds(path):
        results = json.loads(file.read_text("utf-8"))
        seeds[results["seed"]] = results
    every = [results["items"] for results in seeds.values()]
    shared = [i for i in every[0] if all(i in items for items in every)]
    kinds = {i: every[0][i][0] for i in shared}
    right = {i: float(np.mean([items[i][1] for items in every])) for i in shared}
    return Arm(seeds, kinds, right)


def _place(name: str) -> tuple[str, str]:
    if name in ("single_frame", "text_only"):
        return "baseline", name
    if name in ("pretrained", "scratch"):
        return "transfer", name
    return ("matching", name) if name == "matching" else ("ablation", name)


def _figure(right: Mapping[str, float]) -> dict[str, Any]:
    values = np.array(list(right.values()))
    return {"value": float(values.mean()), "interval": list(bootstrap(values, samples=SAMPLES))}


def figures(arm: Arm, section: str) -> dict[str, Any]:
    """Means over seeds with their intervals, by kind where there are questions."""
    if section != "qa":
        return {"t2v_r1": _figure(arm.of_kind(None))}
    kinds = sorted(set(arm.kinds.values()))
    by_kind = {kind: _figure(arm.of_kind(kind)) for kind in kinds}
    return {"qa": {"accuracy": _figure(arm.of_kind(None)), "by_kind": by_kind}}


def _majority(arms: Mapping[str, Arm]) -> dict[str, float]:
    for arm in arms.values():
        for results in arm.seeds.values():
            found: dict[str, float] = results.get("qa", {}).get("majority_by_kind", {})
            if found:
                return found
    return {}


def claims(arms: Mapping[str, Arm], majority: Mapping[str, float]) -> list[dict[str, Any]]:
    """What the ablation must show, each with its figure and whether it holds."""
    out: list[dict[str, Any]] = []

    def better(one: str, other: str, kind: str | None, by: float) -> None:
        if one not in arms or other not in arms:
            return
        first, second = arms[one].of_kind(kind), arms[other].of_kind(kind)
        if not first or not second:
            return
        found = difference(first, second)
        holds = found["difference"] >= by if by else found["difference"] > 0
        of = "t2v_r1" if kind is None else kind
        out.append({"claim": f"{one} over {other} on {of} by {by}", "holds": holds, **found})

    better("hybrid", "high", "motion", MARGIN)
    better("hybrid", "low", "symbol", MARGIN)
    for other in ("frames_mean", "single_frame"):
        for kind in ("motion", "after"):
            better("hybrid", other, kind, MARGIN)
    better("pretrained", "scratch", None, 0.0)
    if "matching" in arms:
        plain, reranked = (
            {i.split("/", 1)[1]: v for i, v in arms["matching"].of_kind(kind).items()}
            for kind in ("plain", "reranked")
        )
        found = difference(reranked, plain)
        holds = found["difference"] > 0
        out.append({"claim": "matching helps re-ranking, t2v_r1", "holds": holds, **found})
    if "text_only" in arms:
        for kind, share in sorted(majority.items()):
            right = arms["text_only"].of_kind(kind)
            if right:
                above = float(np.mean(list(right.values()))) - share
                claim = f"text_only within {SLACK} of the majority answer on {kind}"
                out.append({"claim": claim, "holds": abs(above) <= SLACK, "difference": above})
    return out


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Mean of `first` less that of `second` over the questions of both, with its interval."""
    shared = [i for i in first if i in second]
    if not shared:
        raise StorageError("two arms have no question in common: were they run on one corpus?")
    a, b = (np.array([one[i] for i in shared]) for one in (first, second))
    return paired_bootstrap(a, b, samples=SAMPLES)


def split_intervals(tree: Mapping[str, Any], prefix: str = "") -> tuple[Any, dict[str, Any]]:
    """The figures as plain numbers, and their intervals by dotted name."""
    plain: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and set(value) == {"value", "interval"}:
            plain[name] = value["value"]
            intervals[prefix + name] = value["interval"]
        elif isinstance(value, Mapping):
            plain[name], more = split_intervals(value, f"{prefix}{name}.")
            intervals.update(more)
        else:
            plain[name] = value
    return plain, intervals


def table(merged: Mapping[str, Any]) -> str:
    """Figures of all arms by kind, and the claims."""
    arms = {**merged["ablation"], **merged["baseline"]}
    kinds = sorted({k for arm in arms.values() for k in arm["qa"]["by_kind"]})
    lines = ["  ".join([f"{'':<13}", *(f"{kind:>7}" for kind in kinds)])]
    for name, arm in arms.items():
        row = [arm["qa"]["by_kind"].get(kind, float("nan")) for kind in kinds]
        lines.append("  ".join([f"{name:<13}", *(f"{value:7.3f}" for value in row)]))
    for section in ("transfer", "matching"):
        for name, arm in merged[section].items():
            lines.append(f"{name:<13}  text -> video R@1 {arm['t2v_r1']:.3f}")
    for claim in merged["claims"]:
        span = f" [{claim['low']:+.3f}, {claim['high']:+.3f}]" if "low" in claim else ""
        says = "holds" if claim["holds"] else "FAILS"
        lines.append(f"{says}  {claim['claim']}: {claim['difference']:+.3f}{span}")
    return "\n".join(lines)


def shown(results: Mapping[str, Any]) -> str:
    """The figures of one arm and seed in a line."""
    rest = {k: v for k, v in results.items() if k not in ("items", "arm", "seed")}
    return json.dumps(rest)
