"""The words that go with a scene: captions, transcript, questions, choices; regular English."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rushes.datasets.footage.scene import Scene, Thing
from rushes.datasets.footage.vocabulary import COLORS, MOTIONS, PROGRESSIVE, SHAPES, SYMBOLS, VERBS
from rushes.datasets.record import Record, Segment

KINDS = ("object", "color", "count", "symbol", "motion", "after")
"""Answer types of the questions."""

CAPTIONS = 5
"""Captions of a video."""

_ORDERS: dict[int, tuple[str, ...]] = {
    1: ("{0} {v0}", "there is {0} and it {v0}", "in this video {0} {v0}"),
    2: (
        "first {0} {v0}, then {1} {v1}",
        "{0} {v0} and then {1} {v1}",
        "{0} {v0} before {1} {v1}",
        "after {0} {v0}, {1} {v1}",
    ),
    3: (
        "first {0} {v0}, then {1} {v1} and finally {2} {v2}",
        "{0} {v0}, then {1} {v1}, then {2} {v2}",
        "{0} {v0}, next {1} {v1} and at the end {2} {v2}",
        "to begin with {0} {v0}, after that {1} {v1} and last {2} {v2}",
    ),
}
_SPOKEN = (
    "now {0} is {p}",
    "look, {0} is {p}",
    "you can see {0} {p}",
    "here {0} is {p}",
)
_ASKED: dict[str, tuple[str, ...]] = {
    "object": ("what shape is the {color} object?", "which shape is {color}?"),
    "color": ("what color is the {shape}?", "which color does the {shape} have?"),
    "count": ("how many objects are there?", "how many objects can you see?"),
    "symbol": (
        "which symbol is on the {color} {shape}?",
        "what is printed on the {color} {shape}?",
    ),
    "motion": ("how does the {color} {shape} move?", "what does the {color} {shape} do?"),
    "after": (
        "what happens after the {color} {shape} moves?",
        "what happens next after the {color} {shape} has moved?",
    ),
}
CHOICE_QUESTION = "which sentence fits the video?"


@dataclass(frozen=True)
class Wording:
    """How one caption says it, apart from what it says.

    Attributes:
        order: which sentence frame.
        verbs: which paraphrase of each object's motion.
        adjective: per object, "a red star" rather than "a star in red".
        sizes: per object, whether its size is named.

    The symbol is always named: what captions leave out, nothing that learns from them can know.
    """

    order: int
    verbs: tuple[int, ...]
    adjective: tuple[bool, ...]
    sizes: tuple[bool, ...]


def draw_wording(things: Sequence[Thing], rng: random.Random) -> Wording:
    """A wording at random."""
    return Wording(
        order=rng.randrange(len(_ORDERS[len(things)])),
        verbs=tuple(rng.randrange(2) for _ in things),
        adjective=tuple(rng.random() < 0.75 for _ in things),
        # A size that changes is no name for an object.
        sizes=tuple(t.motion not in ("grows", "shrinks") and rng.random() < 0.3 for t in things),
    )


def phrase(thing: Thing, adjective: bool = True, size: bool = False) -> str:
    """The object as a noun phrase: "a small red star marked K"."""
    words = [thing.size] if size else []
    words += [thing.color, thing.shape] if adjective else [thing.shape, "in", thing.color]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words, "marked", thing.symbol])


def sentence(things: Sequence[Thing], wording: Wording) -> str:
    """The caption that says these objects and events in this wording."""
    parts = {f"v{i}": VERBS[t.motion][wording.verbs[i]] for i, t in enumerate(things)}
    nouns = [phrase(t, wording.adjective[i], wording.sizes[i]) for i, t in enumerate(things)]
    return _ORDERS[len(things)][wording.order].format(*nouns, **parts)


def captions(things: Sequence[Thing], rng: random.Random, count: int = CAPTIONS) -> list[str]:
    """`count` different captions of the same events."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[sentence(things, draw_wording(things, rng))] = None
    return list(found)


def transcript(things: Sequence[Thing], rng: random.Random) -> list[Segment]:
    """What a speaker says, one sentence an event, spanning the event."""
    return [
        Segment(
            rng.choice(_SPOKEN).format(phrase(t), p=PROGRESSIVE[t.motion]),
            "transcript",
            t.start,
            t.end,
        )
        for t in things
    ]


def vtt(segments: Sequence[Segment]) -> str:
    """The segments as a WebVTT file."""
    lines = ["WEBVTT", ""]
    for segment in segments:
        assert segment.start is not None
        assert segment.end is not None
        lines += [f"{_clock(segment.start)} --> {_clock(segment.end)}", segment.text, ""]
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


_ANSWERS: dict[str, Callable[[Thing], str]] = {
    "object": lambda t: t.shape,
    "color": lambda t: t.color,
    "symbol": lambda t: t.symbol,
    "motion": lambda t: t.motion,
}


def ask(kind: str, things: Sequence[Thing], index: int, rng: random.Random) -> tuple[str, str]:
    """Question and answer of a kind about the object at `index` of the event order."""
    thing = things[index]
    question = rng.choice(_ASKED[kind]).format(color=thing.color, shape=thing.shape)
    if kind == "count":
        return question, str(len(things))
    if kind == "after":
        return question, things[index + 1].motion
    return question, _ANSWERS[kind](thing)


def questions(scene: Scene, rng: random.Random, thorough: bool) -> list[Record]:
    """Records of questions: about every object when `thorough`, else one of each kind."""
    things = scene.things
    asked: list[tuple[str, int]] = []
    for kind in KINDS:
        last = len(things) - 1 if kind == "after" else len(things)
        indices = list(range(last))
        if kind == "count":
            indices = [0]
        elif not thorough and indices:
            indices = [rng.choice(indices)]
        asked += [(kind, i) for i in indices]
    records = []
    for number, (kind, index) in enumerate(asked):
        question, answer = ask(kind, things, index, rng)
        records.append(
            Record(
                video=scene.id,
                id=f"{scene.id}_q{number}",
                segments=(Segment(question, "question"),),
                answer=answer,
                tags={"answer_type": kind},
                split=scene.split,
            )
        )
    return records


def _with(thing: Thing, field: str, value: str) -> Thing:
    """The object with another colour, shape, motion or symbol."""
    changed: dict[str, Any] = {field: value}
    return replace(thing, **changed)


_VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "symbol": SYMBOLS,
}


def choice(scene: Scene, rng: random.Random) -> Record:
    """Five sentences alike but for one attribute of one object; one of them is true.

    The five hold five different values in the same place, so that no sentence stands out; a value
    that another object of the video has is never offered.
    """
    things = scene.things
    fields = [f for f in _VALUES if len(_VALUES[f]) - len(things) + 1 >= 5]
    field, index = rng.choice(fields), rng.randrange(len(things))
    taken = {getattr(t, field) for t in things}
    values = rng.sample([v for v in _VALUES[field] if v not in taken], 4)
    answer = rng.randrange(5)
    values.insert(answer, getattr(things[index], field))
    wording = draw_wording(things, rng)
    # A wrong motion may be one that changes the size, which then is not named in any option.
    sizes = (False,) * len(things) if field == "motion" else wording.sizes
    wording = replace(wording, sizes=sizes)
    options = []
    for value in values:
        told = list(things)
        told[index] = _with(things[index], field, value)
        options.append(sentence(told, wording))
    return Record(
        video=scene.id,
        id=f"{scene.id}_mc",
        segments=(Segment(CHOICE_QUESTION, "question"),),
        options=tuple(options),
        answer=answer,
        tags={"answer_type": field},
        split=scene.split,
    )
