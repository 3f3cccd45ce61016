"""`rushes storage fetch | check`: the storage folder that presets read from.

`fetch` takes what has a public address (hub weights, annotation files, which are converted to the
names that presets use), unpacks the user's own `pretrained.zip` and `data.zip`, and ends with a
table that names the rest, where to get it and under which licence. Everything is resumable, and
recorded with its checksum in `data/storage.json`, which `check` verifies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rushes.checkpoint import write_atomically
from rushes.datasets.annotation_commands import write_records
from rushes.datasets.build import STORAGE_VARIABLE, vocabulary_of_answers
from rushes.datasets.formats.registry import read_records
from rushes.datasets.record import Record
from rushes.datasets.record_store import held_out
from rushes.errors import AnnotationError, StorageError
from rushes.log import setup_logging

MANIFEST = "data/storage.json"
MIRROR_VARIABLE = "RUSHES_STORAGE_MIRROR"
"""`http://host:port`: addresses are asked of it as `http://host:port/<host>/<path>`."""
HUB = "https://huggingface.co"
GITHUB = "https://raw.githubusercontent.com"
ATTEMPTS = 4
CHUNK = 1 << 20
FOLDERS = (
    "data/pretrained", "data/hdvila/metafiles", "data/hdvila/download_videos",
    "data/hdvila/video_clips", "data/hdvila/train_group", "data/msrvtt_retrieval/videos",
    "data/msrvtt_retrieval/videos_6fps", "data/activitynet_retrieval/videos",
    "data/activitynet_retrieval/video_frames", "data/activitynet_retrieval/video_frames_lr",
    "data/didemo_retrieval/videos", "data/didemo_retrieval/video_frames",
    "data/didemo_retrieval/video_frames_lr", "data/lsmdc_retrieval/videos",
    "data/lsmdc_retrieval/video_frames", "data/lsmdc_retrieval/video_frames_lr", "data/msrvtt_qa",
    "data/tgif_qa/videos_mp4", "data/output",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One file of the storage folder.

    Attributes:
        path: relative to the storage folder.
        address: where it is fetched from, or a page to get it from by hand.
        licence: as its owner states it.
        fetched: False: the user gets it himself.
        part: of a converted annotation file: "" all of it, "fit" or "holdout" of its videos.
        raw: kept as it is; other files are annotations and converted to records.
    """

    path: str
    address: str
    licence: str
    fetched: bool = True
    part: str = ""
    raw: bool = False


def _hub(folder: str, name: str, files: Sequence[str], licence: str) -> list[Item]:
    base = f"{HUB}/{name}/resolve/main"
    return [Item(f"data/pretrained/{folder}/{f}", f"{base}/{f}", licence, raw=True) for f in files]


def _tgif() -> Iterator[Item]:
    base = f"{GITHUB}/YunseokJANG/tgif-qa/master/dataset"
    for kind in ("action", "transition", "frameqa"):
        for split, part, source in (
            ("train", "fit", "Train"),
            ("val", "holdout", "Train"),  # the official files have no validation split
            ("test", "", "Test"),
        ):
            address = f"{base}/{source}_{kind}_question.csv"
            path = f"data/tgif_qa/{kind}_{split}.jsonl"
            yield Item(path, address, "research use; none stated", part=part)


def _by_hand(path: str, address: str, licence: str) -> Item:
    return Item(path, address, licence, fetched=False, raw=True)


BERT_FILES = ("config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors")
DIDEMO = f"{GITHUB}/LisaAnne/LocalizingMoments/master/data"
ACTIVITYNET = f"{GITHUB}/gingsi/coot-videotext/master/annotations/activitynet"
HOWTO = f"{GITHUB}/antoine77340/MIL-NCE_HowTo100M/master/csv"
HDVILA = "https://github.com/microsoft/XPretrain"
MSRVTT = "https://www.microsoft.com/en-us/research/publication/msr-vtt/"
MSRVTT_QA = "https://github.com/xudejing/video-question-answering"
ITEMS: tuple[Item, ...] = (
    *_hub("bert-base-uncased", "google-bert/bert-base-uncased", BERT_FILES, "Apache-2.0"),
    *_hub("bert-large-uncased", "google-bert/bert-large-uncased", BERT_FILES, "Apache-2.0"),
    Item("data/msrvtt_retrieval/test1ka.jsonl", f"{HOWTO}/msrvtt_test.csv", "Apache-2.0"),
    Item("data/didemo_retrieval/train_frame.jsonl", f"{DIDEMO}/train_data.json", "none stated"),
    Item("data/didemo_retrieval/test_frame.jsonl", f"{DIDEMO}/test_data.json", "none stated"),
    Item("data/activitynet_retrieval/train.jsonl", f"{ACTIVITYNET}/train.json", "Apache-2.0"),
    Item("data/activitynet_retrieval/val1.jsonl", f"{ACTIVITYNET}/val_1.json", "Apache-2.0"),
    *_tgif(),
    _by_hand("data/pretrained/hdvila_stage1.pt", HDVILA, "Microsoft Research licence"),
    _by_hand("data/pretrained/hdvila_stage2.pt", HDVILA, "Microsoft Research licence"),
    _by_hand(
        "data/pretrained/res50_mmdetection.pth",
        "https://github.com/open-mmlab/mmdetection (a ResNet-50 detector of the model zoo)",
        "Apache-2.0",
    ),
    _by_hand("data/hdvila/train_group/part1.jsonl", HDVILA, "R-UDA 1.0; transcripts unpublished"),
    _by_hand("data/msrvtt_retrieval/train9k.jsonl", MSRVTT, "research use"),
    _by_hand("data/msrvtt_retrieval/mc_test.jsonl", MSRVTT, "research use"),
    _by_hand("data/msrvtt_qa/train.jsonl", MSRVTT_QA, "research use"),
    _by_hand("data/msrvtt_qa/val.jsonl", MSRVTT_QA, "research use"),
    _by_hand("data/msrvtt_qa/test.jsonl", MSRVTT_QA, "research use"),
    _by_hand("data/lsmdc_retrieval/train_101k_frame.jsonl",
             "https://sites.google.com/site/describingmovies/", "by agreement"),
    _by_hand("data/lsmdc_retrieval/test_1k_frame.jsonl",
             "https://sites.google.com/site/describingmovies/", "by agreement"),
)  # fmt: skip
ANSWERS = {
    "data/msrvtt_qa/train_ans2label.json": ("data/msrvtt_qa/train.jsonl",),
    "data/tgif_qa/frameqa_trainval_ans2label.json": (
        "data/tgif_qa/frameqa_train.jsonl",
        "data/tgif_qa/frameqa_val.jsonl",
    ),
}
"""Vocabularies that are made from the questions where they are absent."""


class Storage:
    """A storage folder with its manifest of checksums."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: dict[str, dict[str, str | int]] = {}
        path = root / MANIFEST
        if path.is_file():
            try:
                self.manifest = json.loads(path.read_text("utf-8"))
            except json.JSONDecodeError as error:
                raise StorageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error

    def record(self, path: str, source: str) -> None:
        """Note a file's size and checksum."""
        file = self.root / path
        self.manifest[path] = {
            "size": file.stat().st_size, "sha256": sha256_of(file), "source": source,
        }  # fmt: skip
        text = json.dumps(dict(sorted(self.manifest.items())), indent=1) + "\n"
        write_atomically(self.root / MANIFEST, text)

    def damage(self, path: str) -> str:
        """What is wrong with a file that the manifest lists; empty where nothing is."""
        file, noted = self.root / path, self.manifest[path]
        if not file.is_file():
            return "gone"
        size = file.stat().st_size
        if size != noted["size"]:
            return f"{size} bytes, {noted['size']} recorded"
        return "" if sha256_of(file) == noted["sha256"] else "its checksum differs"


def sha256_of(path: Path) -> str:
    """Checksum of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(address: str, path: Path) -> None:
    """Fetch a file; a part that is there already is continued, not fetched again.

    Raises:
        StorageError: not to be had after several attempts, or its checksum is not the one that the
            server states.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    trouble = ""
    for attempt in range(ATTEMPTS):
        try:
            stated = _fetch_on(_mirrored(address), part)
            break
        except urllib.error.HTTPError as error:
            trouble = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the part is no part of what is there now
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise StorageError(f"{address}: {trouble}") from error
        except OSError as error:
            trouble = str(error)
        time.sleep(min(4.0, 0.1 * 4**attempt))
    else:
        raise StorageError(f"{address}: {trouble}, after {ATTEMPTS} attempts")
    found = sha256_of(part)
    if stated and stated != found:
        part.unlink()
        raise StorageError(f"{address}: sha256 {found}, the server states {stated}")
    os.replace(part, path)


def _fetch_on(address: str, part: Path) -> str:
    """Append what is missing to a part; gives the sha256 that the server states, if it does."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "rushes"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=60) as reply:
        resumed = reply.status == 206
        expected = int(reply.headers.get("Content-Length") or -1)
        with part.open("ab" if resumed else "wb") as file:
            before = file.tell()
            shutil.copyfileobj(reply, file, CHUNK)
            got = file.tell() - before
        if expected >= 0 and got != expected:
            raise OSError(f"the connection ended after {got} of {expected} bytes")
        tag = reply.headers.get("X-Linked-Etag") or reply.headers.get("ETag") or ""
    tag = tag.removeprefix("W/").strip('"')
    is_checksum = len(tag) == 64 and all(c in "0123456789abcdef" for c in tag)
    return tag if is_checksum else ""


def _mirrored(address: str) -> str:
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return address
    parts = urlsplit(address)
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}"


def fetch_item(storage: Storage, item: Item) -> str:
    """Make one file: "present", "fetched", or "yours to get"; raises `StorageError`."""
    target = storage.root / item.path
    if target.is_file():
        if item.path not in storage.manifest:
            storage.record(item.path, "present")
        return "present"
    if not item.fetched:
        return "yours to get"
    if item.raw:
        download(item.address, target)
    else:
        name = urlsplit(item.address).path.strip("/").replace("/", "_")
        source = storage.root / "data" / "sources" / name
        if not source.is_file():
            download(item.address, source)
        try:
            write_records(target, _part(list(read_records(source)), item.part))
        except AnnotationError as error:
            raise StorageError(f"{item.address} has changed its form: {error}") from error
    storage.record(item.path, item.address)
    return "fetched"


def _part(records: Sequence[Record], part: str) -> Iterable[Record]:
    held = held_out({r.video for r in records}) if part else frozenset()
    return [r for r in records if not part or (r.video in held) == (part == "holdout")]


def unpack(storage: Storage, archive: Path, under: str) -> int:
    """Unpack a user's own zip below `under`; what is there already at full size stays.

    The archive may begin with `data/` or with the folder itself. Gives the number of files.

    Raises:
        StorageError: no zip, damaged, or a name that leads out of the folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [e for e in opened.infolist() if not e.is_dir()]
            for entry in entries:
                path = _inside(archive, entry.filename, under)
                target = storage.root / path
                if target.is_file() and target.stat().st_size == entry.file_size:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                with opened.open(entry) as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                os.replace(part, target)
                storage.record(path, archive.name)
    except (OSError, zipfile.BadZipFile) as error:
        raise StorageError(f"{archive}: {error}") from error
    return len(entries)


def _inside(archive: Path, name: str, under: str) -> str:
    parts = [p for p in PurePosixPath(name.replace("\\", "/")).parts if p != "."]
    if PurePosixPath(name).is_absolute() or ".." in parts:
        raise StorageError(f"{archive}: {name!r} leads out of the storage folder")
    below = list(PurePosixPath(under).parts)
    for lead in range(len(below)):  # `data/pretrained/x`, `pretrained/x` and `x` are all x
        if parts[: len(below) - lead] == below[lead:]:
            parts = parts[len(below) - lead :]
            break
    return str(PurePosixPath(under, *parts))


def make_answers(storage: Storage) -> None:
    """Make the answer vocabularies whose questions are there."""
    for path, sources in ANSWERS.items():
        files = [storage.root / source for source in sources]
        if (storage.root / path).is_file() or not all(file.is_file() for file in files):
            continue
        counts = Counter(str(r.answer) for file in files for r in read_records(file) if r.answer)
        size = 1540 if "frameqa" in path else 1500
        text = json.dumps(vocabulary_of_answers(counts, size), indent=0, ensure_ascii=False)
        (storage.root / path).write_text(text, "utf-8")
        storage.record(path, "made from the questions")


def fetch(root: Path, pretrained: Path | None, data: Path | None, only: str | None) -> int:
    """Make the folder; gives 1 when something that has an address could not be had."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    storage = Storage(root)
    for archive, under in ((pretrained, "data/pretrained"), (data, "data")):
        found = archive or root / f"{Path(under).name}.zip"
        if archive is not None or found.is_file():
            _say(f"{found}: {unpack(storage, found, under)} files")
    rows, failed = [], 0
    for item in ITEMS:
        if only is not None and not item.path.startswith(only):
            continue
        try:
            state, note = fetch_item(storage, item), item.address
        except StorageError as error:
            state, note, failed = "not to be had", str(error), failed + 1
        rows.append((item, state, note))
    make_answers(storage)
    _table(rows)
    return 1 if failed else 0


def check(root: Path) -> int:
    """Verify every recorded file and list the rest; gives 1 when one is damaged or gone."""
    storage = Storage(root)
    damaged = {path: trouble for path in storage.manifest if (trouble := storage.damage(path))}
    for path, trouble in sorted(damaged.items()):
        _say(f"damaged        {path}: {trouble}")
    rows = []
    for item in ITEMS:
        if item.path in damaged:
            continue
        absent = "absent" if item.fetched else "yours to get"
        state = "present" if (root / item.path).is_file() else absent
        rows.append((item, state, item.address))
    _table(rows)
    _say(f"{len(storage.manifest) - len(damaged)} files verified, {len(damaged)} damaged")
    return 1 if damaged else 0


def _table(rows: Sequence[tuple[Item, str, str]]) -> None:
    for item, state, note in rows:
        told = f"  {note} ({item.licence})" if state not in ("present", "fetched") else ""
        _say(f"{state:<14} {item.path}{told}")


def _say(text: str) -> None:
    print(text)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """`rushes storage fetch | check [FOLDER]`; the folder is $PATH_TO_STORAGE by default."""
    parser = argparse.ArgumentParser(prog="rushes storage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fetch", help="make the storage folder")
    two = commands.add_parser("check", help="verify it")
    for command in (one, two):
        command.add_argument("folder", type=Path, nargs="?", help=f"default: ${STORAGE_VARIABLE}")
    one.add_argument("--pretrained-zip", type=Path, help="your own pretrained.zip")
    one.add_argument("--data-zip", type=Path, help="your own data.zip")
    one.add_argument("--only", help="only paths that begin so, like data/tgif_qa")
    options = parser.parse_args(argv)
    setup_logging()
    folder = options.folder or os.environ.get(STORAGE_VARIABLE)
    if not folder:
        raise StorageError(f"which folder? give it, or set {STORAGE_VARIABLE}")
    root = Path(folder)
    if options.command == "fetch":
        return fetch(root, options.pretrained_zip, options.data_zip, options.only)
    if not root.is_dir():
        raise StorageError(f"{root}: no such folder")
    return check(root)
