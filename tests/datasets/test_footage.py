"""The corpus is what it says: files, pixels, sound and words agree; nothing gives answers away."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from av.video.frame import PictureType

from rushes.datasets.footage import main, render_corpus
from rushes.datasets.footage.corpus import Arguments, Planned, plan_split
from rushes.datasets.footage.draw import pictures
from rushes.datasets.footage.files import ENCODINGS, kept_frames, suffix_of, write_scene
from rushes.datasets.footage.films import film_questions, film_record, plan_film, write_film
from rushes.datasets.footage.scene import (
    Casting,
    Form,
    Scene,
    Thing,
    plan_scene,
    scene_from_json,
    scene_to_json,
)
from rushes.datasets.footage.text import KINDS, choice, questions
from rushes.datasets.footage.vocabulary import COLORS, MOTIONS, PITCHES, SHAPES, combinations
from rushes.datasets.record import record_from_json, record_to_json
from rushes.errors import ConfigError, VideoError
from rushes.video.probe import probe
from tests.footage_fixture import BAD, TEST, TRAIN, VAL, footage

__all__ = ["footage"]

Pixels = npt.NDArray[np.uint8]


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def truth(folder: Path) -> list[tuple[Scene, Path]]:
    """Every sound scene of a corpus with its file."""
    return [(scene_from_json(r), folder / r["path"]) for r in rows(folder / "truth.jsonl")]


def decoded(path: Path) -> list[tuple[float, Pixels]]:
    """Time and upright RGB picture of every frame."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            frames.append((float(frame.time or 0.0), np.ascontiguousarray(picture, np.uint8)))
    return frames


def drawn(form: Form, seed: int = 0) -> Scene:
    """One scene in a given form."""
    return plan_scene("x", "train", form, Casting("train", random.Random(seed)), 4.4)


def seen_at(picture: Pixels, thing: Thing) -> tuple[float, float, float]:
    """Centre x, y and width of the area in the object's colour, wherever it is."""
    distance = np.abs(picture.astype(int) - np.array(COLORS[thing.color])).sum(axis=2)
    mask = (distance < 110).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    # Bright stains of other badges pass for white: keep the large pieces only.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    ys, xs = np.nonzero(np.isin(labels, 1 + np.nonzero(areas >= 0.06 * areas.max())[0]))
    assert len(xs) > 400, f"no {thing.color} {thing.shape} in sight"
    left, right = np.quantile(xs, [0.005, 0.995])
    top, bottom = np.quantile(ys, [0.005, 0.995])
    return float(left + right) / 2, float(top + bottom) / 2, float(right - left)


@pytest.mark.parametrize("form", list(ENCODINGS))
def test_each_form_is_the_file_that_it_claims_to_be(form: Form, tmp_path: Path) -> None:
    scene = drawn(form)
    path = tmp_path / f"x{suffix_of(form)}"
    write_scene(scene, path)
    encoding = ENCODINGS[form]
    info = probe(path)
    names = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9"}
    assert info.codec == names.get(encoding.codec, encoding.codec)
    assert info.num_frames == len(kept_frames(scene))
    assert info.rotation == encoding.rotation
    scale = 2 if form == "gif" else 1
    assert (info.width * scale, info.height * scale) == (scene.width, scene.height)
    assert info.duration == pytest.approx(scene.duration, abs=0.15)
    assert bool(info.audio) == (form != "gif")
    steps = np.unique(np.round(np.diff(info.frame_times), 3))
    assert (len(steps) > 1) == (form == "variable")
    sources = {i / 25: p.copy() for i, p in pictures(scene)}
    for time, picture in decoded(path)[:: max(1, info.num_frames // 5)]:
        want = cv2.cvtColor(sources[round(time * 25) / 25], cv2.COLOR_YUV2RGB_I420)
        want = cv2.resize(want, (info.width, info.height), interpolation=cv2.INTER_AREA)
        limit = {"gif": 24, "mpeg4": 12}.get(form, 8)
        assert np.abs(picture.astype(int) - want.astype(int)).mean() < limit


def test_b_frames_and_long_groups(footage: Path) -> None:
    scene, path = next((s, p) for s, p in truth(footage) if s.form == "h264")
    with av.open(str(path)) as container:
        kinds = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    assert kinds.count("I") == 1
    assert kinds.count("B") > len(kinds) / 3
    assert len(kinds) == scene.num_frames


def test_objects_are_where_the_truth_says(footage: Path) -> None:
    """Colour, place and size before, in and after every event, from decoded pixels."""
    checked = 0
    for scene, path in truth(footage)[::4]:
        if scene.form not in ("h264", "portrait", "rotated", "vp9"):
            continue
        frames = decoded(path)
        for thing in scene.things:
            for time in (0.0, thing.start - 0.2, thing.end + 0.1, scene.duration - 0.1):
                moment, picture = min(frames, key=lambda f: abs(f[0] - time))
                x, y, width = thing.at(moment)
                seen_x, seen_y, seen_width = seen_at(picture, thing)
                assert abs(seen_x - x) < 12
                assert abs(seen_y - y) < 14
                assert width - 26 * thing.scale < seen_width < width + 6
                checked += 1
    assert checked >= 40


def test_motions_are_what_their_names_say() -> None:
    moves = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    casting = Casting("train", random.Random(1))
    seen = set()
    for _ in range(60):
        for thing in plan_scene("x", "train", "h264", casting, 8.0).things:
            x0, y0, w0 = thing.at(0.0)
            x1, y1, w1 = thing.at(thing.end)
            path = np.array([thing.at(t) for t in np.linspace(thing.start, thing.end, 60)])
            swing = np.ptp(path[:, 0])
            seen.add(thing.motion)
            if thing.motion in moves:
                dx, dy = moves[thing.motion]
                assert np.sign((x1 - x0, y1 - y0)).tolist() == [dx, dy]
                assert max(abs(x1 - x0), abs(y1 - y0)) > 70
            else:
                assert (x0, y0) == pytest.approx((x1, y1))
            if thing.motion in ("grows", "shrinks"):
                assert (w1 > w0) == (thing.motion == "grows")
            if thing.motion in ("circles", "shakes"):
                assert swing > 55
                assert (np.ptp(path[:, 1]) > 55) == (thing.motion == "circles")
    assert seen == set(MOTIONS)


def test_objects_stay_in_view_and_events_follow_each_other() -> None:
    for planned in plan_split("test", Arguments()):
        scene, things = planned.scene, planned.scene.things
        times = np.linspace(0, scene.duration, 50)
        for thing in things:
            for x, y, width in map(thing.at, times):
                assert -1 <= x - width / 2 <= x + width / 2 <= scene.width + 1
                assert -1 <= y - width / 2 <= y + width / 2 <= scene.height + 1
        for before, after in pairwise(things):
            assert before.end < after.start
        assert things[0].start > 0.3
        assert things[-1].end < scene.duration - 0.3
        assert min(t.end - t.start for t in things) > 0.9
        assert 4.0 <= scene.duration <= 8.0


def test_the_sound_names_the_symbol(footage: Path) -> None:
    checked = 0
    for scene, path in truth(footage)[::3]:
        if scene.form == "gif":
            continue
        with av.open(str(path)) as container:
            rate = container.streams.audio[0].rate
            chunks = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
        sound = np.concatenate(chunks).astype(np.float64)
        for thing in scene.things:
            middle, half = (thing.start + thing.end) / 2, 0.3
            part = sound[round((middle - half) * rate) : round((middle + half) * rate)]
            spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
            peak = np.argmax(spectrum) * rate / len(part)
            nearest = min(PITCHES, key=lambda s: abs(PITCHES[s] - peak))
            assert nearest == thing.symbol
            checked += 1
    assert checked >= 20


def test_layout_of_the_corpus(footage: Path) -> None:
    counts = {"train": TRAIN, "val": VAL, "test": TEST}
    bad = {r["video"] for r in rows(footage / "bad.jsonl")}
    assert len(bad) == BAD
    truths = {s.id: s for s, _ in truth(footage)}
    answers = json.loads((footage / "answers.json").read_text())
    for split, count in counts.items():
        records = [record_from_json(r) for r in rows(footage / f"{split}.jsonl")]
        assert len(records) == count + (BAD if split == "train" else 0)
        assert (bad <= {r.video for r in records}) == (split == "train")
        for record in records:
            assert len(record.texts("caption")) == (5 if split == "train" else 1)
            assert len(list((footage / "videos").glob(f"{record.video}.*"))) == 1
            spoken = [s for s in record.segments if s.kind == "transcript"]
            assert (footage / "vtt" / f"{record.video}.vtt").read_text().count("-->") == len(spoken)
            if record.video not in bad:
                spans = [(t.start, t.end) for t in truths[record.video].things]
                assert [(s.start, s.end) for s in spoken] == spans
        asked = [record_from_json(r) for r in rows(footage / f"{split}_qa.jsonl")]
        assert {r.tags["answer_type"] for r in asked} == set(KINDS)
        assert {r.answer for r in asked} <= set(answers)
        chosen = [record_from_json(r) for r in rows(footage / f"{split}_mc.jsonl")]
        assert {len(r.options) for r in chosen} == {5}
    assert {s.form for s in truths.values()} > {"h264", "gif"}


def test_bad_files_are_bad_for_the_reason_given(footage: Path) -> None:
    for row in rows(footage / "bad.jsonl"):
        with pytest.raises(VideoError) as caught:
            probe(footage / row["path"])
        assert caught.value.reason == row["reason"]
    for _, path in truth(footage):
        assert probe(path).num_frames > 30


@pytest.mark.slow
def test_same_arguments_same_bytes_and_interrupted_work_goes_on(tmp_path: Path) -> None:
    def made(name: str, workers: int) -> Any:
        render_corpus(tmp_path / name, 2, 1, 1, workers=workers, progress=False, max_seconds=4.4)
        return json.loads((tmp_path / name / "corpus.json").read_text())

    first = made("a", 1)
    assert made("b", 2) == first
    # As a killed run leaves it: some files there, one torn aside, no corpus.json.
    (tmp_path / "b/corpus.json").rename(tmp_path / "b/arguments.json")
    (tmp_path / "b/arguments.json").write_text(json.dumps(first["arguments"]))
    (tmp_path / "b/videos/train_00001.mp4").unlink()
    (tmp_path / "b/videos/.train_00001.mp4.77.part").write_bytes(b"torn")
    assert made("b", 1) == first
    assert not list((tmp_path / "b/videos").glob(".*"))
    with pytest.raises(ConfigError, match="choose another folder"):
        main([str(tmp_path / "a"), "--train", "3", "--no-progress"])
    # A finished corpus is not touched, and a lost file is made again.
    (tmp_path / "a/videos/test_00000.mp4").unlink()
    arguments = ["--train", "2", "--val", "1", "--test", "1", "--max-seconds", "4.4"]
    assert main([str(tmp_path / "a"), *arguments, "--no-progress", "--workers", "1"]) == 0
    assert json.loads((tmp_path / "a/corpus.json").read_text()) == first


def test_another_seed_is_another_corpus() -> None:
    one, other = (plan_split("val", Arguments(seed=seed)) for seed in (0, 1))
    assert [p.captions for p in one] != [p.captions for p in other]


@pytest.fixture(scope="module")
def full() -> dict[str, list[Planned]]:
    """The default corpus, planned but not rendered, without its bad files."""
    splits = ("train", "val", "test")
    return {s: [p for p in plan_split(s, Arguments()) if not p.bad] for s in splits}


def asked_of(planned: list[Planned], thorough: bool) -> dict[str, list[tuple[str, str]]]:
    """Question and answer by kind."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for p in planned:
        for r in questions(p.scene, random.Random(p.scene.texture), thorough):
            found[r.tags["answer_type"]].append((r.question or "", str(r.answer)))
    return found


def test_answers_are_balanced_and_questions_give_nothing_away(
    full: dict[str, list[Planned]],
) -> None:
    """A reader who knows every training question by heart does no better than the majority."""
    train, test = asked_of(full["train"], True), asked_of(full["test"], False)
    most = {
        "object": 0.27,
        "color": 0.23,
        "count": 0.52,
        "symbol": 0.21,
        "motion": 0.2,
        "after": 0.2,
    }
    for kind in KINDS:
        share = Counter(answer for _, answer in test[kind])
        majority = max(share.values()) / len(test[kind])
        assert majority <= most[kind], kind
        by_heart: dict[str, Counter[str]] = defaultdict(Counter)
        for question, answer in train[kind]:
            by_heart[question][answer] += 1
        fallback = Counter(answer for _, answer in train[kind]).most_common(1)[0][0]
        right = 0
        for question, answer in test[kind]:
            known = by_heart[question].most_common(1)
            right += answer == (known[0][0] if known else fallback)
        assert right / len(test[kind]) <= majority + 0.05, kind


def test_splits_hold_out_combinations(full: dict[str, list[Planned]]) -> None:
    used = {
        split: {t.combination for p in planned for t in p.scene.things}
        for split, planned in full.items()
    }
    assert not used["train"] & used["test"]
    assert not used["train"] & used["val"]
    assert not used["val"] & used["test"]
    train = combinations("train")
    for a, b in ((0, 1), (0, 2), (1, 2)):
        values = (tuple(COLORS), SHAPES, MOTIONS)
        assert {(c[a], c[b]) for c in train} == set(product(values[a], values[b]))
    assert used["test"] == set(combinations("test"))


def test_test_captions_are_unique(full: dict[str, list[Planned]]) -> None:
    queries = [p.captions[0] for p in full["test"]]
    assert len(queries) == len(set(queries)) == 200
    events = [
        (*(t.combination for t in p.scene.things), p.scene.things[0].symbol) for p in full["test"]
    ]
    assert len(set(events)) == 200


def test_no_single_picture_tells_the_motion(full: dict[str, list[Planned]]) -> None:
    """At a random moment each motion shows the same corners and sizes, equally often."""
    rng = random.Random(5)
    corners: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    large: dict[str, list[bool]] = defaultdict(list)
    for p in full["train"]:
        for thing in p.scene.things:
            time = rng.uniform(0, p.scene.duration)
            if thing.start < time < thing.end:
                continue
            x, y, width = thing.at(time)
            corners[thing.motion][x > thing.centre[0], y > thing.centre[1]] += 1
            large[thing.motion].append(width > 122 * thing.scale)
    for motion in MOTIONS:
        total = sum(corners[motion].values())
        assert len(corners[motion]) == 4
        assert max(corners[motion].values()) / total < 0.36, motion
        assert 0.37 < np.mean(large[motion]) < 0.63, motion


def test_choices_differ_in_one_place_and_none_stands_out(full: dict[str, list[Planned]]) -> None:
    places: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    for p in full["test"]:
        record = choice(p.scene, random.Random(p.scene.texture))
        assert isinstance(record.answer, int)
        places[record.answer] += 1
        kinds[record.tags["answer_type"]] += 1
        options = [["a" if w == "an" else w for w in o.split()] for o in record.options]
        assert len(set(record.options)) == 5
        if record.tags["answer_type"] != "motion":
            assert sum(len(set(words)) > 1 for words in zip(*options, strict=True)) == 1
    assert set(kinds) == {"color", "shape", "motion", "symbol"}
    assert max(places.values()) < 60


def test_scenes_survive_json() -> None:
    scene = drawn("h264")
    assert scene_from_json(json.loads(json.dumps(scene_to_json(scene)))) == scene


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_seconds=3"):
        render_corpus(tmp_path / "x", max_seconds=3.0)
    with pytest.raises(ConfigError, match="train=-1"):
        render_corpus(tmp_path / "x", train=-1)
    assert not (tmp_path / "x").exists()


def test_films_are_planned_as_described() -> None:
    strays = 0
    for seed in range(12):
        film = plan_film("film_0000", seed)
        assert 60 <= film.duration <= 120
        assert 5 <= len(film.scenes) <= 10
        edges = [0.0, *(t for span in film.spans for t in span), film.duration]
        gaps = np.diff(edges)[::2]
        assert gaps.min() > 0.2
        assert 0.15 < gaps.sum() / film.duration < 0.6
        record = record_from_json(json.loads(json.dumps(record_to_json(film_record(film)))))
        paragraph, *told = record.texts("caption")
        assert told == list(film.texts)
        assert all(text in paragraph for text in told)
        shown = {t.color + " " + t.shape for s in film.scenes for t in s.things}
        strays += sum(not any(o in c.text for o in shown) for c in film.subtitles)
        for question in film_questions(film):
            ((start, end),) = question.spans[0]
            assert any(a <= start < end <= b for a, b in film.spans)
    assert strays >= 12


@pytest.mark.slow
def test_a_film_shows_its_scenes_at_their_times(tmp_path: Path) -> None:
    film = min((plan_film("film_0000", s) for s in range(12)), key=lambda f: f.duration)
    write_film(film, tmp_path / "film.mp4")
    info = probe(tmp_path / "film.mp4")
    assert info.duration == pytest.approx(film.duration, abs=0.05)
    wanted = {round((start + 0.3) * 25): i for i, (start, _) in enumerate(film.spans)}
    found = 0
    with av.open(str(tmp_path / "film.mp4")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number not in wanted:
                continue
            index = wanted[number]
            picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            for thing in film.scenes[index].things:
                x, y, _ = thing.at(number / 25 - film.starts[index])
                seen_x, seen_y, _ = seen_at(picture, thing)
                assert abs(seen_x - x) < 12
                assert abs(seen_y - y) < 14
                found += 1
    assert found == sum(len(s.things) for s in film.scenes)
