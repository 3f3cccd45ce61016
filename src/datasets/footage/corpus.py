"""Renders the corpus: plans every scene, encodes them on all cores, writes the annotations.

Everything planned follows from the arguments alone, so a corpus that was interrupted goes on where
it stopped, and the same arguments give the same bytes. `corpus.json` is written last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from rushes.datasets.footage.files import BAD_REASONS, suffix_of, write_bad, write_scene
from rushes.datasets.footage.films import (
    Film,
    film_questions,
    film_record,
    film_to_json,
    plan_film,
    write_film,
)
from rushes.datasets.footage.scene import (
    ODD_FORMS,
    Casting,
    Form,
    Scene,
    plan_scene,
    scene_to_json,
)
from rushes.datasets.footage.text import captions, choice, questions, transcript, vtt
from rushes.datasets.footage.vocabulary import SPLITS
from rushes.datasets.record import Record, Segment, record_to_json
from rushes.errors import ConfigError
from rushes.log import get_logger

VERSION = 5
"""Counts up when the same arguments give another corpus."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Arguments:
    """What a corpus follows from."""

    train: int = 900
    val: int = 150
    test: int = 200
    films: int = 0
    seed: int = 0
    max_seconds: float = 8.0
    version: int = VERSION

    def check(self) -> None:
        """Raise `ConfigError` for what cannot be rendered."""
        for name in (*SPLITS, "films"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more videos")
        if not 4.4 <= self.max_seconds <= 8.0:
            raise ConfigError(f"max_seconds={self.max_seconds}: expected 4.4 to 8")


@dataclass(frozen=True)
class Planned:
    """One video before it is rendered, with its words."""

    scene: Scene
    captions: tuple[str, ...]
    spoken: tuple[Segment, ...]
    bad: str | None = None
    """What will be wrong with the file."""

    @property
    def file_name(self) -> str:
        """Name under videos/; a bad file bears the name of a sound one."""
        return self.scene.id + suffix_of(self.scene.form)

    def record(self) -> Record:
        """The line of the split's annotations: several captions to train on, one to search with."""
        told = self.captions if self.scene.split == "train" else self.captions[:1]
        return Record(
            video=self.scene.id,
            id=self.scene.id,
            segments=(*(Segment(c) for c in told), *self.spoken),
            split=self.scene.split,
        )


def render_corpus(
    out: Path,
    train: int = 900,
    val: int = 150,
    test: int = 200,
    films: int = 0,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    max_seconds: float = 8.0,
) -> None:
    """Render a corpus into the folder `out`, or go on with one that was interrupted.

    Args:
        train, val, test: sound videos of each split; a few bad files come on top of `train`.
        films: long videos (60 to 120 s) with several scenes each.
        seed: the same seed gives the same corpus, byte for byte on the same machine.
        workers: processes; None takes every core.
        progress: show a bar on stderr.
        max_seconds: longest short video; 8 unless a shortened corpus is wanted, at least 4.4.

    Raises:
        ConfigError: wrong arguments, or `out` holds a corpus of other arguments.
    """
    arguments = Arguments(train, val, test, films, seed, max_seconds)
    arguments.check()
    if _finished(out, arguments):
        _log.info("%s holds this corpus already", out)
        return
    (out / "videos").mkdir(parents=True, exist_ok=True)
    for torn in (out / "videos").glob(".*.part"):
        torn.unlink()
    _write_text(out / "arguments.json", json.dumps(asdict(arguments)))
    plans = {split: plan_split(split, arguments) for split in SPLITS}
    long_ones = [plan_film(f"film_{i:04d}", seed) for i in range(films)]
    # The long ones first, so that no core waits for a film at the end.
    jobs: list[Job] = [(film, f"{film.id}.mp4", None) for film in long_ones]
    jobs += [(p.scene, p.file_name, p.bad) for split in SPLITS for p in plans[split]]
    _render(out / "videos", jobs, workers, progress)
    _annotate(out, plans)
    if films:
        _annotate_films(out, long_ones)
    files = sorted(p for p in out.rglob("*") if p.is_file() and not p.name.startswith("."))
    listing = [_listed(out, p) for p in files if p.name not in ("arguments.json", "corpus.json")]
    whole = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    summary = {"arguments": asdict(arguments), "hash": whole, "files": listing}
    _write_text(out / "corpus.json", json.dumps(summary, indent=1))
    (out / "arguments.json").unlink()


def plan_split(split: str, arguments: Arguments) -> list[Planned]:
    """Every video of a split, the bad ones last."""
    count = int(getattr(arguments, split))
    bad = (8 if count >= 200 else 4) if split == "train" and count else 0
    casting = Casting(split, random.Random(f"{arguments.seed}/{split}"))
    # Each split starts at another odd form, so that small ones hold different ones.
    turn = 3 * SPLITS.index(split)
    planned: list[Planned] = []
    seen: set[object] = set()
    for i in range(count + bad):
        form: Form = "h264"
        if i % 10 == 9 and i < count:
            form = ODD_FORMS[(turn + i // 10) % len(ODD_FORMS)]
        reason = BAD_REASONS[(i - count) % len(BAD_REASONS)] if i >= count else None
        identity = f"{split}_{i:05d}"
        planned.append(_plan_video(identity, split, form, casting, arguments, seen, reason))
    return planned


def _plan_video(
    identity: str,
    split: str,
    form: Form,
    casting: Casting,
    arguments: Arguments,
    seen: set[object],
    bad: str | None,
) -> Planned:
    """Draw a video; one of the test split until its query fits no other video of the split."""
    for attempt in range(1000):
        rng = random.Random(f"{arguments.seed}/{identity}/{attempt}")
        scene = plan_scene(identity, split, form, casting, arguments.max_seconds)
        told = captions(scene.things, rng)
        lone = scene.things[0].symbol if len(scene.things) == 1 else ""
        events = (*(t.combination for t in scene.things), lone)
        if split == "test" and (told[0] in seen or events in seen):
            continue
        seen |= {told[0], events}
        return Planned(scene, tuple(told), tuple(transcript(scene.things, rng)), bad)
    raise ConfigError(f"{split}={getattr(arguments, split)}: more videos than different captions")


Job = tuple[Scene | Film, str, str | None]


def _render(folder: Path, jobs: Sequence[Job], workers: int | None, progress: bool) -> None:
    todo = [(folder, *job) for job in jobs if not (folder / job[1]).exists()]
    count = min(workers or os.cpu_count() or 1, len(todo))
    bar = tqdm(
        total=len(jobs),
        initial=len(jobs) - len(todo),
        desc="footage",
        unit="video",
        disable=not progress,
        smoothing=0.05,
    )
    with bar:
        if count <= 1:
            for job in todo:
                _render_one(job)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with context.Pool(count, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            for _ in pool.imap_unordered(_render_one, todo):
                bar.update()


def _render_one(job: tuple[Path, Scene | Film, str, str | None]) -> None:
    folder, what, name, bad = job
    aside = folder / f".{name}.{os.getpid()}.part"
    if isinstance(what, Film):
        write_film(what, aside)
    elif bad:
        write_bad(what, bad, aside)
    else:
        write_scene(what, aside)
    aside.replace(folder / name)


def _annotate(out: Path, plans: dict[str, list[Planned]]) -> None:
    """Write the files that say what the short videos hold."""
    asked: dict[str, list[Record]] = {}
    for split, planned in plans.items():
        sound = [p for p in planned if p.bad is None]
        rngs = [random.Random(f"{p.scene.id}/{p.scene.texture}") for p in sound]
        asked[split] = [
            record
            for p, rng in zip(sound, rngs, strict=True)
            for record in questions(p.scene, rng, thorough=split == "train")
        ]
        chosen = [choice(p.scene, rng) for p, rng in zip(sound, rngs, strict=True)]
        _write_records(out / f"{split}.jsonl", [p.record() for p in planned])
        _write_records(out / f"{split}_qa.jsonl", asked[split])
        _write_records(out / f"{split}_mc.jsonl", chosen)
    everything = [p for planned in plans.values() for p in planned]
    (out / "vtt").mkdir(exist_ok=True)
    for p in everything:
        _write_text(out / "vtt" / f"{p.scene.id}.vtt", vtt(p.spoken))
    bad = [p for p in everything if p.bad]
    _write_lines(
        out / "bad.jsonl",
        ({"video": p.scene.id, "path": f"videos/{p.file_name}", "reason": p.bad} for p in bad),
    )
    _write_lines(out / "truth.jsonl", (_truth(p) for p in everything if not p.bad))
    answers = sorted({str(r.answer) for records in asked.values() for r in records})
    _write_text(out / "answers.json", json.dumps({a: i for i, a in enumerate(answers)}))


def _truth(planned: Planned) -> dict[str, Any]:
    row = scene_to_json(planned.scene)
    return {
        **row,
        "path": f"videos/{planned.file_name}",
        "captions": list(planned.captions),
    }


def _annotate_films(out: Path, long_ones: Sequence[Film]) -> None:
    _write_records(out / "films.jsonl", [film_record(film) for film in long_ones])
    asked = [record for film in long_ones for record in film_questions(film)]
    _write_records(out / "films_qa.jsonl", asked)
    _write_lines(out / "films_truth.jsonl", (film_to_json(film) for film in long_ones))
    (out / "vtt").mkdir(exist_ok=True)
    for film in long_ones:
        _write_text(out / "vtt" / f"{film.id}.vtt", vtt(film.subtitles))


def _finished(out: Path, arguments: Arguments) -> bool:
    """Whether `out` holds this corpus, complete; raises where it holds another one."""
    for name in ("corpus.json", "arguments.json"):
        path = out / name
        if not path.exists():
            continue
        state = json.loads(path.read_text(encoding="utf-8"))
        found = state["arguments"] if name == "corpus.json" else state
        if found != asdict(arguments):
            raise ConfigError(
                f"{path}: holds a corpus of {found}, asked for {asdict(arguments)}; "
                "choose another folder or delete this one"
            )
        if name == "corpus.json":
            listed = ((out / f["path"], f["bytes"]) for f in state["files"])
            return all(p.exists() and p.stat().st_size == size for p, size in listed)
    return False


def _listed(out: Path, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    name = path.relative_to(out).as_posix()
    return {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_records(path: Path, records: Iterable[Record]) -> None:
    _write_lines(path, (record_to_json(record) for record in records))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _write_text(path, "".join(_lines(rows)))


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row) + "\n"


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """`rushes footage OUT`: render a corpus whose ground truth is known."""
    parser = argparse.ArgumentParser(prog="rushes footage", description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder to render into")
    for name in ("train", "val", "test"):
        default = getattr(Arguments, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"videos ({default})")
    parser.add_argument("--films", type=int, default=0, help="films of 60 to 120 s (0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (one a core)")
    parser.add_argument("--max-seconds", type=float, default=8.0, help="longest short video (8)")
    parser.add_argument("--no-progress", action="store_true")
    options = parser.parse_args(argv)
    render_corpus(
        options.out,
        options.train,
        options.val,
        options.test,
        options.films,
        options.seed,
        options.workers,
        not options.no_progress,
        options.max_seconds,
    )
    return 0
