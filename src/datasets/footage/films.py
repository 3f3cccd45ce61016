"""Long videos: five to ten scenes with idle gaps, subtitles that jitter, questions with spans."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rushes.datasets.footage.draw import Background, Bytes, Painter, planes_of
from rushes.datasets.footage.files import write_video
from rushes.datasets.footage.scene import (
    FPS,
    HEIGHT,
    WIDTH,
    Casting,
    Scene,
    Thing,
    scene_to_json,
)
from rushes.datasets.footage.sound import sound_of
from rushes.datasets.footage.text import ask, captions, transcript
from rushes.datasets.record import Record, Segment

_JITTER = 0.8
"""Seconds by which subtitles stray from what they speak of."""
_KINDS = ("object", "color", "symbol", "motion", "after")


@dataclass(frozen=True)
class Film:
    """One long video before it is drawn.

    Attributes:
        scenes: with times of their own, from 0.
        starts: seconds at which each scene begins; in between only the background is seen.
        texts: one caption a scene.
        subtitles: with spans of the film; some fit nothing.
    """

    id: str
    seed: int
    duration: float
    scenes: tuple[Scene, ...]
    starts: tuple[float, ...]
    texts: tuple[str, ...]
    subtitles: tuple[Segment, ...]
    texture: int

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """Start and end of each scene in seconds of the film."""
        pairs = zip(self.starts, self.scenes, strict=True)
        return tuple((start, round(start + scene.duration, 3)) for start, scene in pairs)


def plan_film(identity: str, seed: int) -> Film:
    """Draw one film of 60 to 120 s; no colour and shape occur together twice in it."""
    rng = random.Random(f"{seed}/{identity}")
    casting = Casting("train", rng)
    count = rng.randint(5, 10)
    duration = round(rng.uniform(60.0, 120.0) * FPS) / FPS
    # What is not idle is shared out among the scenes, each long enough for its events.
    lengths = [rng.uniform(1.0, 1.6) for _ in range(count)]
    scale = min(duration * rng.uniform(0.62, 0.75) / sum(lengths), 13.0)
    lengths = [max(round(scale * length * FPS) / FPS, 4.0) for length in lengths]
    gaps = [rng.uniform(0.5, 1.5) for _ in range(count + 1)]
    idle = (duration - sum(lengths)) / sum(gaps)
    scenes: list[Scene] = []
    starts: list[float] = []
    seen: set[tuple[str, str]] = set()
    time = 0.0
    for i, length in enumerate(lengths):
        time = round((time + gaps[i] * idle) * FPS) / FPS
        scene = _plan_part(f"{identity}_{i}", casting, length, seen)
        seen |= {(t.color, t.shape) for t in scene.things}
        scenes.append(scene)
        starts.append(round(time, 3))
        time += length
    texts = tuple(captions(scene.things, rng, count=1)[0] for scene in scenes)
    subtitles = _subtitles(scenes, starts, duration, casting)
    texture = rng.getrandbits(31)
    return Film(identity, seed, duration, tuple(scenes), tuple(starts), texts, subtitles, texture)


def _plan_part(identity: str, casting: Casting, length: float, seen: set[tuple[str, str]]) -> Scene:
    rng = casting.rng
    while True:
        things = casting.things(casting.count.draw(), 0.0, length, WIDTH, HEIGHT)
        if seen.isdisjoint((t.color, t.shape) for t in things):
            break
    return Scene(
        identity, "films", "h264", WIDTH, HEIGHT, length, things, texture=rng.getrandbits(31)
    )


def _subtitles(
    scenes: list[Scene], starts: list[float], duration: float, casting: Casting
) -> tuple[Segment, ...]:
    """What is said of each event, a little early or late; and a few lines that fit nothing."""
    rng = casting.rng
    said: list[Segment] = []
    for scene, start in zip(scenes, starts, strict=True):
        for line in transcript(scene.things, rng):
            assert line.start is not None
            assert line.end is not None
            shift = start + rng.uniform(-_JITTER, _JITTER)
            said.append(_cue(line.text, line.start + shift, line.end + shift, duration))
    shown = {t.combination for scene in scenes for t in scene.things}
    for _ in range(max(2, len(said) // 6)):
        while True:
            (thing,) = casting.things(1, 0.0, 4.0, WIDTH, HEIGHT)
            if thing.combination not in shown:
                break
        begin = rng.uniform(0.0, duration - 3.0)
        said.append(_cue(transcript([thing], rng)[0].text, begin, begin + 2.0, duration))
    return tuple(sorted(said, key=lambda s: (s.start or 0.0, s.text)))


def _cue(text: str, start: float, end: float, duration: float) -> Segment:
    start = round(max(start, 0.0), 3)
    return Segment(text, "subtitle", start, round(min(max(end, start + 0.2), duration), 3))


def film_record(film: Film) -> Record:
    """The paragraph (all of the film), then one caption a scene with its span, then subtitles."""
    told = [
        Segment(text, "caption", *span) for text, span in zip(film.texts, film.spans, strict=True)
    ]
    return Record(
        video=film.id,
        id=film.id,
        segments=(Segment(". ".join(film.texts) + "."), *told, *film.subtitles),
        tags={"group": "films"},
        split="films",
    )


def film_questions(film: Film) -> list[Record]:
    """Questions about the film's scenes, each with the span where its answer is seen."""
    rng = random.Random(f"{film.seed}/{film.id}/questions")
    records: list[Record] = []
    for scene, start in zip(film.scenes, film.starts, strict=True):
        for kind, index in _askable(film, scene):
            question, answer = ask(kind, scene.things, index, rng)
            shown = scene.things[index + 1 if kind == "after" else index]
            span = (round(start + shown.start, 3), round(start + shown.end, 3))
            records.append(
                Record(
                    video=film.id,
                    id=f"{film.id}_q{len(records)}",
                    segments=(Segment(question, "question"),),
                    answer=answer,
                    spans=((span,),),
                    tags={"answer_type": kind},
                    split="films",
                )
            )
    return records


def _askable(film: Film, scene: Scene) -> Iterator[tuple[str, int]]:
    """Kinds and objects whose question names one object of the whole film."""
    colors = [t.color for s in film.scenes for t in s.things]
    shapes = [t.shape for s in film.scenes for t in s.things]
    for kind in _KINDS:
        for index, thing in enumerate(scene.things):
            if kind == "after" and index + 1 == len(scene.things):
                continue
            if kind == "object" and colors.count(thing.color) > 1:
                continue
            if kind == "color" and shapes.count(thing.shape) > 1:
                continue
            yield kind, index


def film_to_json(film: Film) -> dict[str, Any]:
    """The film as one JSON object of films_truth.jsonl."""
    row = asdict(film)
    row["scenes"] = [scene_to_json(scene) for scene in film.scenes]
    row["spans"] = [list(span) for span in film.spans]
    row["path"] = f"videos/{film.id}.mp4"
    return row


def write_film(film: Film, path: Path) -> None:
    """Encode the film into `path`."""
    things = [
        replace(thing, start=start + thing.start, end=start + thing.end)
        for scene, start in zip(film.scenes, film.starts, strict=True)
        for thing in scene.things
    ]
    sound = sound_of(things, film.duration, film.texture)
    whole = _whole(film, things)
    write_video(path, whole, _pictures(film), sound)


def _whole(film: Film, things: list[Thing]) -> Scene:
    """The film as one long scene: what the encoder needs to know."""
    return Scene(
        film.id, "films", "h264", WIDTH, HEIGHT, film.duration, tuple(things), film.texture
    )


def _pictures(film: Film) -> Iterator[tuple[int, Bytes]]:
    idle = Background(film.texture, WIDTH, HEIGHT)
    buffer = np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8)
    planes = planes_of(buffer, HEIGHT)
    painter: Painter | None = None
    for index in range(round(film.duration * FPS)):
        time = index / FPS
        running = [i for i, (start, end) in enumerate(film.spans) if start <= time < end]
        if not running:
            idle.paint(planes, time)
        else:
            scene = film.scenes[running[0]]
            if painter is None or painter.scene is not scene:
                painter = Painter(scene)
            painter.paint(planes, time - film.starts[running[0]])
        yield index, buffer
