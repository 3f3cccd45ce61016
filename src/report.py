"""What a run reached, for machines (results.json) and for people (report.html, self-contained)."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rushes.checkpoint import write_atomically
from rushes.errors import StorageError, VideoError
from rushes.report_charts import Line, curve_chart, score_bar, smoothed
from rushes.video.request import Frames, Request, Size, VideoReader

Pictures = Sequence[npt.NDArray[np.uint8]]
Strips = Callable[[str, float | None, float | None], Pictures]
"""(video id, start, end) -> a few frames `H W C`; nothing where the video cannot be read."""
NUM_QUERIES, NUM_HITS, NUM_FRAMES = 10, 5, 4
BAD_SHOWN = 200


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results.json: nested, floats in full, NaN as null; in one piece."""
    plain = _plain(results)
    write_atomically(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """What `write_results` wrote; raises `StorageError`."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: no readable results: {error}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path}: expected a JSON object")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Attributes:
        title: headline.
        results: nested figures as in results.json: `retrieval`, `qa`, `mc`.
        runs: run folders by the name to show, for the learning curves.
        retrieval: predictions file of the retrieval test split, if there is one.
        strips: frames of a video; None shows names only.
        bad_videos: a bad_videos.jsonl, if there is one.
        facts: short facts under the headline, name -> value.
        lead: one sentence under the headline.
    """

    title: str
    results: Mapping[str, Any]
    runs: Mapping[str, Path] = field(default_factory=dict)
    retrieval: Path | None = None
    strips: Strips | None = None
    bad_videos: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""


def write_report(path: Path, page: Page) -> None:
    """Write one HTML file that needs no other file and no network."""
    style = (resources.files("rushes") / "report.css").read_text("utf-8")
    facts = "".join(
        f"<span>{escape(name)} <b>{escape(value)}</b></span>" for name, value in page.facts.items()
    )
    body = [
        f"<h1>{escape(page.title)}</h1>",
        f'<p class="lead">{escape(page.lead)}</p>' if page.lead else "",
        f'<div class="facts">{facts}</div>' if facts else "",
        _scores(page.results),
        _kinds(page.results.get("qa", {})),
        _curves(page.runs),
        _queries(page),
        _bad(page.bad_videos),
        "<footer>Made by rushes. Every score is a fraction from 0 to 1; intervals are 95 % "
        "bootstrap intervals over the test queries.</footer>",
    ]
    head = f'<meta charset="utf-8"><title>{escape(page.title)}</title>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    document = f"<!doctype html><html lang=en><head>{head}<style>{style}</style></head>"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{document}<body>{''.join(body)}</body></html>\n")


def strips_of(reader: VideoReader, count: int = NUM_FRAMES, height: int = 90) -> Strips:
    """Frames spread over a stretch, decoded by `reader` at a small size."""

    def strips(video: str, start: float | None, end: float | None) -> Pictures:
        try:
            info = reader.describe(video)
            first, last = start or 0.0, min(info.duration, end or info.duration)
            times = tuple(first + (last - first) * (i + 0.5) / count for i in range(count))
            width = max(2, round(info.width * height / info.height))
            reply = reader.read(Request(video, (Frames(times, Size(height, width)),)))
        except VideoError:
            return ()
        return list(reply.arrays["frames"].astype(np.uint8))

    return strips


# Scores ----------------------------------------------------------------------------------------


def _scores(results: Mapping[str, Any]) -> str:
    tiles = [_tile(*tile) for tile in _tiles(results)]
    if not tiles:
        return ""
    return f'<h2>Scores</h2><div class="tiles">{"".join(tiles)}</div>{_ranks(results)}'


def _tiles(
    results: Mapping[str, Any],
) -> Iterator[tuple[str, float, dict[str, float], Sequence[float] | None]]:
    """Name, value, baselines and interval of each headline score."""
    retrieval = results.get("retrieval", {})
    videos = retrieval.get("num_videos", 0)
    intervals = retrieval.get("interval_95", {})
    names = {"t2v": "Text to video", "v2t": "Video to text"}
    for key, k in (("t2v", 1), ("t2v", 5), ("t2v", 10), ("v2t", 1)):
        value = retrieval.get(f"{key}_r{k}")
        if value is not None:
            chance = {"chance": min(1.0, k / videos)} if videos else {}
            yield f"{names[key]}, R@{k}", value, chance, intervals.get(f"{key}_r{k}")
    for section, name in (("qa", "Questions answered"), ("mc", "Multiple choice")):
        found = results.get(section, {})
        if "accuracy" in found:
            marks = {m: found[m] for m in ("chance", "majority") if found.get(m) is not None}
            interval = found.get("interval_95", {}).get("accuracy")
            yield name, found["accuracy"], marks, interval


def _tile(
    name: str, value: float, marks: Mapping[str, float], interval: Sequence[float] | None
) -> str:
    pair = None if interval is None else (float(interval[0]), float(interval[1]))
    said = [f'<span class="{escape(m)}">{escape(m)} {at:.3f}</span>' for m, at in marks.items()]
    if pair is not None:
        said.append(f'<span class="interval">{pair[0]:.3f} to {pair[1]:.3f}</span>')
    return (
        f'<div class="tile"><h3>{escape(name)}</h3><div class="value">{value:.3f}</div>'
        f"{score_bar(value, list(marks.items()), pair)}"
        f'<div class="marks">{"".join(said)}</div></div>'
    )


def _ranks(results: Mapping[str, Any]) -> str:
    retrieval = results.get("retrieval", {})
    said = []
    for key, name in (("t2v", "text to video"), ("v2t", "video to text")):
        if f"{key}_median_rank" in retrieval:
            median, mean = retrieval[f"{key}_median_rank"], retrieval[f"{key}_mean_rank"]
            said.append(f"{name}: median rank {median:g}, mean rank {mean:.1f}")
    if not said:
        return ""
    how = [
        f"{retrieval.get('num_videos', 0)} videos",
        f"coverage {retrieval.get('coverage', 1):.3f}",
    ]
    how += [
        f"{k.replace('_', ' ')} {retrieval[k]}"
        for k in ("dual_softmax", "rerank")
        if k in retrieval
    ]
    text = f"Retrieval, {'; '.join(said)} ({', '.join(how)})."
    return f'<p class="note below">{escape(text)}</p>'


def _kinds(qa: Mapping[str, Any]) -> str:
    by_kind: Mapping[str, float] = qa.get("by_kind", {})
    if not by_kind:
        return ""
    rows = []
    for kind, value in by_kind.items():
        majority = qa.get("majority_by_kind", {}).get(kind)
        marks = [] if majority is None else [("majority", float(majority))]
        beside = "" if majority is None else f"<em>majority {majority:.3f}</em>"
        rows.append(
            f"<span>{escape(kind)}</span>{score_bar(value, marks)}"
            f"<span><b>{value:.3f}</b> {beside}</span>"
        )
    note = (
        '<p class="note">The orange mark is the majority answer: always saying what is right most '
        "often for that kind of question.</p>"
    )
    return f'<h2>Questions by kind</h2>{note}<div class="kinds">{"".join(rows)}</div>'


# Learning curves -------------------------------------------------------------------------------


def _curves(runs: Mapping[str, Path]) -> str:
    charts = [chart for name, run in runs.items() for chart in _run_charts(name, run)]
    if not charts:
        return ""
    return f'<h2>Learning curves</h2><div class="charts">{"".join(charts)}</div>'


def _run_charts(name: str, run: Path) -> list[str]:
    steps: dict[str, list[tuple[float, float]]] = {}
    judged: dict[str, list[tuple[float, float]]] = {}
    for line in read_lines(run / "metrics.jsonl"):
        into = judged if line.get("kind") == "validation" else steps
        for key, value in line.items():
            if key not in ("kind", "step") and isinstance(value, int | float):
                into.setdefault(key, []).append((float(line["step"]), float(value)))
    losses = {k: v for k, v in steps.items() if k == "loss" or k.endswith("_loss")}
    if len(losses) == 2 and "loss" in losses:
        losses.pop("loss")  # the only part is the whole
    span = max(1, max((len(v) for v in losses.values()), default=1) // 40)
    drawn = [Line(_spaced(k), smoothed(v, span)) for k, v in losses.items()]
    out = [curve_chart(f"{name}: training loss", drawn)] if drawn else []
    scores = {k: v for k, v in judged.items() if _is_score(k)}
    if scores:
        lines = [
            Line(_spaced(k.rpartition(".")[2]), tuple(v), dots=True)
            for k, v in list(scores.items())[:6]
        ]
        out.append(curve_chart(f"{name}: validation", lines))
    return out


def _is_score(name: str) -> bool:
    last = name.rpartition(".")[2].rpartition("/")[2]
    return last in ("accuracy", "majority", "t2v_r1", "t2v_r5", "v2t_r1", "loss")


def _spaced(name: str) -> str:
    return name.removesuffix("_loss").replace("_", " ")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] where there is none; a torn line is skipped."""
    if not path.is_file():
        return []
    out = []
    for line in path.read_text("utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            out.append(value)
    return out


# Examples --------------------------------------------------------------------------------------


def _queries(page: Page) -> str:
    rows = read_lines(page.retrieval) if page.retrieval is not None else []
    if not rows:
        return ""
    count = min(NUM_QUERIES, len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]  # spread, not picked
    cards = "".join(_query(row, page.strips) for row in chosen)
    note = (
        f'<p class="note">{count} captions spread evenly over the test split, not chosen by score, '
        "each with the five videos that the model finds closest. The right one is framed.</p>"
    )
    return f"<h2>What it finds</h2>{note}{cards}"


def _query(row: Mapping[str, Any], strips: Strips | None) -> str:
    hits = "".join(_hit(hit, strips) for hit in row["top"][:NUM_HITS])
    return (
        f'<div class="query"><p><span>right video at rank {row["rank"]:g}</span>'
        f'&ldquo;{escape(row["text"])}&rdquo;</p><div class="hits">{hits}</div></div>'
    )


def _hit(hit: Mapping[str, Any], strips: Strips | None) -> str:
    found = strips(hit["video"], hit.get("start"), hit.get("end")) if strips is not None else ()
    images = "".join(f'<img alt="" src="{jpeg_address(picture)}">' for picture in found)
    right = bool(hit.get("right"))
    said = "<b>right</b>" if right else f"{hit['score']:.3f}"
    return (
        f'<div class="hit{" right" if right else ""}"><div class="strip">'
        f"{images or '<span class=none>no picture</span>'}</div>"
        f'<p><span class="name" title="{escape(hit["video"])}">{escape(hit["video"])}</span>'
        f"<span>{said}</span></p></div>"
    )


def jpeg_address(picture: npt.NDArray[np.uint8], quality: int = 78) -> str:
    """A frame `H W C` as a data: address."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _bad(path: Path | None) -> str:
    rows = read_lines(path) if path is not None else []
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td><code>{escape(str(row.get('video', row.get('id', ''))))}</code></td>"
        f"<td>{escape(str(row.get('reason', '')))}</td>"
        f"<td>{escape(str(row.get('detail', '')))}</td></tr>"
        for row in rows[:BAD_SHOWN]
    )
    more = f" The first {BAD_SHOWN} are shown." if len(rows) > BAD_SHOWN else ""
    return (
        f'<h2>Bad videos</h2><p class="note">{len(rows)} files could not be used; none of them was '
        f'trained on, none stopped the run.{more}</p><div class="table"><table>'
        f"<tr><th>file</th><th>reason</th><th>detail</th></tr>{lines}</table></div>"
    )
