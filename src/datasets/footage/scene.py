"""What a made video shows: objects, their paths and events; pure geometry, no pixels.

No single picture tells a motion or an order. Each object has a rectangle of its own with four
corners and rests in one of them before and after its event. Over the two rests every motion visits
each corner, and each size, equally often, and all objects are in view from first to last frame.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from rushes.datasets.footage.vocabulary import (
    PITCHES,
    SCALES,
    SIZES,
    SYMBOLS,
    Combination,
    combinations,
)

Form = Literal["h264", "vp9", "hevc", "mpeg4", "gif", "variable", "rotated", "portrait"]
ODD_FORMS: tuple[Form, ...] = (*("vp9", "variable", "hevc", "rotated", "mpeg4", "portrait", "gif"),)
"""One video in ten takes the next of these instead of plain H.264."""

COUNTS = (1, 1, 1, 2, 2, 3)
"""Objects of a video, drawn alike. Half the videos have one: where few colours are in sight, the
videos of a batch differ in shape, symbol and motion, and to tell them apart is to learn those."""

WIDTH, HEIGHT, FPS = 640, 384, 25
REACH = 260.0
"""Pixels of the longest way that an object goes; less where there is less room."""
T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """One object and its event.

    Attributes:
        size: at the start; an object that grows starts small, one that shrinks starts large.
        start, end: seconds of the event.
        centre: of its rectangle, pixels x, y of the upright picture.
        reach: width and height of the rectangle.
        corner: where it rests first: -1 or 1 along x and y.
        scale: factor on the widths of its sizes.
    """

    color: str
    shape: str
    motion: str
    symbol: str
    size: str
    start: float
    end: float
    centre: tuple[float, float]
    reach: tuple[float, float]
    corner: tuple[int, int]
    scale: float = 1.0

    @property
    def pitch(self) -> float:
        """Hz of the tone that it sounds at its event."""
        return PITCHES[self.symbol]

    @property
    def combination(self) -> Combination:
        """What the splits hold out."""
        return self.color, self.shape, self.motion

    def at(self, time: float) -> tuple[float, float, float]:
        """Centre x, centre y and width in pixels at a moment (seconds)."""
        u = min(max((time - self.start) / (self.end - self.start), 0.0), 1.0)
        eased = u * u * (3 - 2 * u)
        x, y = float(self.corner[0]), float(self.corner[1])
        width = float(SIZES[self.size])
        if self.motion in ("left", "right"):
            x *= 1 - 2 * eased
        elif self.motion in ("up", "down"):
            y *= 1 - 2 * eased
        elif self.motion == "circles":
            angle = math.atan2(y, x) + 2 * math.pi * eased
            # The diagonal points of the circle are the corners; between them it follows the sides.
            x = min(max(math.cos(angle) * math.sqrt(2), -1.0), 1.0)
            y = min(max(math.sin(angle) * math.sqrt(2), -1.0), 1.0)
        elif self.motion == "shakes":
            swings = max(2, round((self.end - self.start) * 2.5))
            x *= 1 - 1.5 * (0.5 - 0.5 * math.cos(2 * math.pi * swings * u))
        else:
            other = SIZES["large" if self.size == "small" else "small"]
            width += (other - width) * eased
        x, y = (
            middle + part * reach / 2
            for middle, part, reach in zip(self.centre, (x, y), self.reach, strict=True)
        )
        return x, y, width * self.scale


@dataclass(frozen=True)
class Scene:
    """One video before it is drawn; `things` stand in the order of their events."""

    id: str
    split: str
    form: Form
    width: int
    height: int
    duration: float
    things: tuple[Thing, ...]
    texture: int
    """Seed of the background; it knows nothing of the objects."""

    @property
    def num_frames(self) -> int:
        """Pictures at the full rate (a variable-rate file drops some of them)."""
        return round(self.duration * FPS)


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as one JSON object of truth.jsonl, with the pitch of each object."""
    row = asdict(scene)
    for thing, out in zip(scene.things, row["things"], strict=True):
        out["pitch"] = round(thing.pitch, 3)
    return row


def scene_from_json(row: dict[str, Any]) -> Scene:
    """The scene of a line of truth.jsonl (keys that are no part of a scene are ignored)."""
    things = []
    for value in row["things"]:
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "pitch"
        }
        things.append(Thing(**kept))
    known = {k: row[k] for k in Scene.__dataclass_fields__ if k != "things"}
    return Scene(**known, things=tuple(things))


class Deck(Generic[T]):
    """Draws items so that each comes equally often, in an order of its own."""

    def __init__(self, items: Iterable[T], rng: random.Random) -> None:
        self.items, self.rng = list(items), rng
        self.left: list[T] = []

    def draw(self, accept: Callable[[T], bool] = lambda _: True) -> T:
        """The next item that `accept` takes; others stay for later."""
        for _ in range(2):
            for i, item in enumerate(self.left):
                if accept(item):
                    return self.left.pop(i)
            fresh = list(self.items)
            self.rng.shuffle(fresh)
            self.left += fresh
        raise AssertionError("no item of the deck is acceptable")


class Casting:
    """Draws the objects of a split's scenes, balanced over the split."""

    def __init__(self, split: str, rng: random.Random) -> None:
        self.rng = rng
        self.combination: Deck[Combination] = Deck(combinations(split), rng)
        self.symbol: Deck[str] = Deck(SYMBOLS, rng)
        self.count: Deck[int] = Deck(COUNTS, rng)

    def things(
        self, count: int, start: float, end: float, width: int, height: int
    ) -> tuple[Thing, ...]:
        """`count` objects that differ in colour, shape, motion and symbol, in order of events."""
        cast: list[Combination] = []
        for _ in range(count):
            taken = [set(values) for values in zip(*cast, strict=True)] or [set(), set(), set()]
            cast.append(
                self.combination.draw(
                    lambda c, taken=taken: all(c[i] not in taken[i] for i in range(3))  # type: ignore[misc]
                )
            )
        symbols: list[str] = []
        for _ in cast:
            symbols.append(self.symbol.draw(lambda s: s not in symbols))
        spans = event_spans(count, start, end, self.rng)
        places = layout(count, width, height, self.rng)
        return tuple(
            _thing(combination, symbol, span, place, SCALES[count], self.rng)
            for combination, symbol, span, place in zip(cast, symbols, spans, places, strict=True)
        )


def _thing(
    combination: Combination,
    symbol: str,
    span: tuple[float, float],
    place: tuple[tuple[float, float], tuple[float, float]],
    scale: float,
    rng: random.Random,
) -> Thing:
    color, shape, motion = combination
    corner = [rng.choice((-1, 1)), rng.choice((-1, 1))]
    size = rng.choice(("small", "large"))
    if motion in ("left", "right"):
        corner[0] = 1 if motion == "left" else -1
    elif motion in ("up", "down"):
        corner[1] = 1 if motion == "up" else -1
    elif motion in ("grows", "shrinks"):
        size = "small" if motion == "grows" else "large"
    return Thing(
        *(color, shape, motion, symbol, size, *span),
        centre=place[0],
        reach=place[1],
        corner=(corner[0], corner[1]),
        scale=scale,
    )


def event_spans(
    count: int, start: float, end: float, rng: random.Random
) -> list[tuple[float, float]]:
    """Spans of events that follow each other, with a rest before, between and after."""
    rest = [0.35 + 0.35 * rng.random() for _ in range(count + 1)]
    length = min((end - start - sum(rest)) / count, 2.2)
    # Shared out at random: were it even, the middle picture of a lone event would show its middle.
    slack = end - start - sum(rest) - length * count
    shares = [rng.random() + 0.05 for _ in rest]
    spans, time = [], start
    for gap, share in zip(rest[:count], shares, strict=False):
        time += gap + slack * share / sum(shares)
        spans.append((round(time, 3), round(time + length, 3)))
        time += length
    return spans


def layout(
    count: int, width: int, height: int, rng: random.Random
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Centre and reach of each object's rectangle, side by side along the longer side, shuffled."""
    long, short = max(width, height), min(width, height)
    cell, widest = long / count, SIZES["large"] * SCALES[count]
    along, across = min(cell - widest, REACH), min(short - widest, REACH)
    places = []
    for i in range(count):
        play, side_play = cell - widest - along, short - widest - across
        a = cell * (i + 0.5) + (rng.random() - 0.5) * play
        b = short / 2 + (rng.random() - 0.5) * side_play
        place = ((a, b), (along, across)) if width >= height else ((b, a), (across, along))
        places.append(place)
    rng.shuffle(places)
    return places


def seconds_of(count: int, max_seconds: float, rng: random.Random) -> float:
    """Length of a video with so many objects: 4 to 8 s, whole frames."""
    low, high = {1: (4.0, 5.6), 2: (5.0, 6.8), 3: (6.2, 8.0)}[count]
    if max_seconds < 8.0:
        # Squeeze 4..8 into 4..max, so that shortened corpora still vary.
        low, high = (4 + (s - 4) * (max_seconds - 4) / 4 for s in (low, high))
    return round(rng.uniform(low, high) * FPS) / FPS


def plan_scene(
    identity: str, split: str, form: Form, casting: Casting, max_seconds: float
) -> Scene:
    """Draw one scene."""
    rng = casting.rng
    width, height = (HEIGHT, WIDTH) if form == "portrait" else (WIDTH, HEIGHT)
    count = casting.count.draw()
    duration = seconds_of(count, max_seconds, rng)
    things = casting.things(count, 0.0, duration, width, height)
    return Scene(identity, split, form, width, height, duration, things, rng.getrandbits(31))
