"""`rushes annotations convert | check | shard | from-subtitles`."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rushes.datasets.collate import stable_key
from rushes.datasets.formats.common import JsonFile
from rushes.datasets.formats.registry import READERS, read_records
from rushes.datasets.formats.tables import read_ids
from rushes.datasets.permutation import permute
from rushes.datasets.record import Record, record_to_json
from rushes.datasets.record_store import open_records
from rushes.datasets.subtitles import read_folder
from rushes.errors import AnnotationError
from rushes.log import setup_logging
from rushes.video.catalogue import Catalogue, open_catalogue

SHOWN = 10
"""Names listed of each kind of trouble; the JSON report has all."""


@dataclass
class Check:
    """What `check` found in annotation files, and of the videos that they speak of."""

    rows: int
    videos: int
    texts: int
    splits: dict[str, int]
    duplicate_ids: list[str]
    duplicate_rows: int
    without_text: list[str]
    missing: list[str] | None
    unused: int | None
    answers: dict[str, int]
    options: dict[str, int]


def check_records(records: Iterable[Record], catalogue: Catalogue | None) -> Check:
    """Count rows, videos, texts, duplicates, answers, and what the catalogue lacks."""
    ids: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    videos: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    options: Counter[str] = Counter()
    silent: list[str] = []
    texts = 0
    for record in records:
        ids[record.id] += 1
        rows[json.dumps(record_to_json(replace(record, id="")), sort_keys=True)] += 1
        videos[record.video] += 1
        texts += len(record.segments)
        splits[record.split or "none stated"] += 1
        if not record.segments and not record.options:
            silent.append(record.id)
        if isinstance(record.answer, str):
            answers[record.answer] += 1
        if record.options:
            options[str(len(record.options))] += 1
    missing, unused = None, None
    if catalogue is not None:
        missing = sorted(video for video in videos if video not in catalogue)
        unused = max(0, len(catalogue) - (len(videos) - len(missing)))
    return Check(
        rows=sum(ids.values()),
        videos=len(videos),
        texts=texts,
        splits=dict(splits),
        duplicate_ids=sorted(name for name, count in ids.items() if count > 1),
        duplicate_rows=sum(rows.values()) - len(rows),
        without_text=silent,
        missing=missing,
        unused=unused,
        answers=dict(sorted(answers.items(), key=lambda item: (-item[1], item[0]))),
        options=dict(options),
    )


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write JSON lines aside and rename; gives their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    number = 0
    try:
        with aside.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(_line(record))
                number += 1
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return number


def shard(files: Sequence[Path], out: Path, parts: int, epochs: int, seed: int) -> list[Path]:
    """Shuffle all records into `part1.jsonl` ... of `parts` files an epoch, each epoch anew.

    The order is the keyed permutation of the loader, read through the memory-mapped store: memory
    does not grow with the number of records.
    """
    store = open_records(files)
    if parts < 1 or epochs < 1:
        raise AnnotationError(f"parts={parts} epochs={epochs}: expected 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for epoch in range(epochs):
        key = stable_key(f"shard {seed} {epoch}")
        for part in range(parts):
            rows = range(len(store) * part // parts, len(store) * (part + 1) // parts)
            path = out / f"part{epoch * parts + part + 1}.jsonl"
            write_records(path, (store[permute(i, len(store), key)] for i in rows))
            paths.append(path)
    return paths


def convert(
    source: Path, format_name: str, split: str | None, ids: Path | None, stated: str | None
) -> Iterator[Record]:
    """Records of a file, those of a split and of a list of ids, with a split stated if wanted."""
    chosen = None if ids is None else set(read_ids(ids))
    found: set[str] = set()
    for record in read_records(source, format_name):
        if split is not None and record.split != split:
            continue
        if chosen is not None and record.video not in chosen:
            continue
        found.add(record.video)
        yield record if stated is None else replace(record, split=stated)
    if chosen is not None and chosen - found:
        lacking = sorted(chosen - found)
        raise AnnotationError(
            f"{len(lacking)} of the {len(chosen)} listed ids are not there: {lacking[:5]}",
            str(source),
        )


def _line(record: Record) -> str:
    return json.dumps(record_to_json(record), ensure_ascii=False) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rushes annotations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    formats = ["auto", *sorted(READERS)]
    one = commands.add_parser("convert", help="any known format to records, one JSON line each")
    one.add_argument("source", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--format", default="auto", choices=formats)
    one.add_argument("--split", help="only records that state this split")
    one.add_argument("--ids", type=Path, help="only the videos of this list (txt or csv)")
    one.add_argument("--state-split", help="write this split into every record")
    one.add_argument("--answers", type=Path, help="also write {answer: label} of these records")
    two = commands.add_parser("check", help="rows, matched videos, missing, duplicates, answers")
    two.add_argument("files", type=Path, nargs="+")
    two.add_argument("--videos", type=Path, help="folder, manifest or store to match against")
    two.add_argument("--vis-format", default="auto", choices=["auto", "video", "frame", "store"])
    two.add_argument("--format", default="auto", choices=formats)
    two.add_argument("--answers", type=Path, help="vocabulary to measure the answers against")
    two.add_argument("--json", action="store_true", help="print everything as JSON")
    three = commands.add_parser("shard", help="shuffled part{i}.jsonl files for group training")
    three.add_argument("files", type=Path, nargs="+")
    three.add_argument("out", type=Path)
    three.add_argument("--parts", type=int, default=12, help="files an epoch (12)")
    three.add_argument("--epochs", type=int, default=1)
    three.add_argument("--seed", type=int, default=24)
    four = commands.add_parser("from-subtitles", help="records from .srt, .vtt or embedded cues")
    four.add_argument("folder", type=Path)
    four.add_argument("--out", type=Path, help="default: FOLDER/subtitles.jsonl")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all is well, 1 when `check` finds something wrong."""
    options = _parser().parse_args(argv)
    setup_logging()
    if options.command == "convert":
        return _convert(options)
    if options.command == "check":
        return _check(options)
    if options.command == "shard":
        paths = shard(options.files, options.out, options.parts, options.epochs, options.seed)
        _say(f"{len(paths)} files in {options.out}")
        return 0
    out = options.out or options.folder / "subtitles.jsonl"
    _say(f"{write_records(out, read_folder(options.folder))} videos with subtitles in {out}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    records = convert(
        options.source, options.format, options.split, options.ids, options.state_split
    )
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Record]:
        for record in records:
            if isinstance(record.answer, str):
                counts[record.answer] += 1
            yield record

    number = write_records(options.out, counted())
    _say(f"{number} records in {options.out}")
    if options.answers is not None:
        ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
        labels = {answer: label for label, answer in enumerate(ordered)}
        options.answers.write_text(json.dumps(labels, ensure_ascii=False, indent=1), "utf-8")
        _say(f"{len(labels)} answers in {options.answers}")
    return 0


def _check(options: argparse.Namespace) -> int:
    catalogue = None
    if options.videos is not None:
        catalogue = open_catalogue(options.videos, vis_format=options.vis_format)
    records = (r for file in options.files for r in read_records(file, options.format))
    found = check_records(records, catalogue)
    outside = None
    if options.answers is not None:
        known = {key for key, *_ in JsonFile(options.answers).entries()}
        outside = sum(count for answer, count in found.answers.items() if answer not in known)
    if options.json:
        _say(json.dumps({**vars(found), "answers_outside": outside}, ensure_ascii=False, indent=1))
    else:
        _print_check(found, outside)
    return 1 if found.missing or found.duplicate_ids or found.without_text else 0


def _print_check(found: Check, outside: int | None) -> None:
    _say(f"rows        {found.rows} ({', '.join(f'{k}: {v}' for k, v in found.splits.items())})")
    _say(f"videos      {found.videos}")
    _say(f"texts       {found.texts}")
    for name, items in (("same id", found.duplicate_ids), ("no text", found.without_text)):
        _say(f"{name:<11} {len(items)} {_some(items)}")
    _say(f"same row    {found.duplicate_rows}")
    if found.missing is not None:
        _say(f"missing     {len(found.missing)} {_some(found.missing)}")
        _say(f"unused      {found.unused} videos that no row speaks of")
    if found.answers:
        total = sum(found.answers.values())
        most = ", ".join(f"{a} {n / total:.1%}" for a, n in list(found.answers.items())[:5])
        _say(f"answers     {len(found.answers)} distinct of {total}: {most}")
    if outside is not None:
        _say(f"outside     {outside} answers are not in the vocabulary")
    if found.options:
        _say(f"options     {', '.join(f'{v} rows of {k}' for k, v in found.options.items())}")


def _some(items: Sequence[str]) -> str:
    rest = len(items) - SHOWN
    return " ".join(map(repr, items[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def _say(text: str) -> None:
    print(text)  # noqa: T201
