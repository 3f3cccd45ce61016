"""An index of the moments of a folder of videos: built once, added to, searched by a vector.

An index is a folder: the windows' vectors as embeddings on disk, and a FAISS index over them. Each
video stands under its id and the fingerprint of its file, so that new and changed files are
encoded, all others are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from rushes.api import VideoText
from rushes.datasets.build import index_folder
from rushes.datasets.frames import PooledReader
from rushes.datasets.record import Record
from rushes.embeddings import EmbeddingWriter, Rows, Table, read_header, read_tables
from rushes.errors import StorageError, VideoError
from rushes.log import get_logger
from rushes.search.windows import LENGTHS, Moment, Span, suppress, windows
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import VideoReader

logger = get_logger(__name__)
TABLE = "video_segment"
FAISS_FILE = "moments.faiss"
SOURCE = "model.txt"
VIDEOS_A_PART = 16
Array = npt.NDArray[np.float32]


class Library:
    """Moments of videos and their vectors, in memory.

    Args:
        folder: of the index.
        header: what made it.
        table: all windows; only those of `live` videos count.
        live: key of each video id that is to be found.
    """

    def __init__(
        self, folder: Path, header: dict[str, Any], table: Table | None, live: dict[str, str]
    ) -> None:
        self.folder, self.header = folder, header
        names = {key: video for video, key in live.items()}
        dim = int(header["dim"])
        self.videos: list[str] = []
        self.times = np.zeros((0, 2))
        self.vectors: Array = np.zeros((0, dim), np.float32)
        if table is not None:
            owners = [names.get(key) for key in table.keys]
            rows = np.asarray([owners[i] is not None for i in table.owners], dtype=bool)
            self.videos = [str(owners[i]) for i in table.owners[rows]]
            self.times, self.vectors = table.times[rows], table.values[rows]
        self._index = faiss.IndexFlatIP(dim)
        if len(self.vectors):
            self._index.add(self.vectors)
        self._by_video: dict[str, list[int]] = {}
        for row, video in enumerate(self.videos):
            self._by_video.setdefault(video, []).append(row)

    @property
    def ids(self) -> list[str]:
        """Videos that can be found."""
        return list(self._by_video)

    def duration(self, video: str) -> float:
        """Seconds of an indexed video: where its last window ends."""
        return float(self.times[self._by_video[video], 1].max())

    def search(self, vector: Array, most: int = 10, video: str | None = None) -> list[Moment]:
        """The moments nearest to a unit vector `D`, best first, none overlapping a better one.

        Args:
            vector: of a text, or of another video.
            most: how many.
            video: only within this one.
        """
        if video is not None:
            rows = np.asarray(self._by_video.get(video, []), dtype=np.int64)
            scores = self.vectors[rows] @ vector
            return suppress(self._moments(scores, rows), most)
        # Neighbouring windows crowd the top: ask for more until enough are left after thinning.
        ask = min(len(self.videos), max(64, most * 16))
        while True:
            scores, rows = self._index.search(vector[None].astype(np.float32), max(1, ask))
            found = suppress(self._moments(scores[0], rows[0]), most)
            if len(found) == most or ask >= len(self.videos):
                return found
            ask = min(len(self.videos), ask * 4)

    def neighbours(self, vector: Array, most: int = 10) -> list[Moment]:
        """The videos nearest to a vector, each by its nearest moment."""
        found = self.search(vector, min(len(self.videos), most * 50))
        best: dict[str, Moment] = {}
        for moment in found:
            best.setdefault(moment.video, moment)
        return list(best.values())[:most]

    def _moments(self, scores: Array, rows: npt.NDArray[np.int64]) -> list[Moment]:
        return [
            Moment(
                self.videos[row], float(self.times[row, 0]), float(self.times[row, 1]), float(score)
            )
            for score, row in zip(scores, rows.tolist(), strict=True)
            if row >= 0
        ]

    def save(self) -> Path:
        """Write the FAISS index beside the vectors, for other programs; returns the file."""
        path = self.folder / FAISS_FILE
        faiss.write_index(self._index, str(path))
        return path


def open_folder(videos: Path) -> tuple[Catalogue, VideoReader]:
    """The catalogue of a folder of videos and a reader that several threads may use."""
    catalogue = open_catalogue(videos)
    cache = index_folder(videos)
    return catalogue, PooledReader(lambda: open_reader(catalogue, index_cache=cache))


def build_library(
    model: VideoText,
    videos: Path,
    folder: Path,
    *,
    lengths: Sequence[float] = LENGTHS,
    only: Callable[[str], bool] | None = None,
    progress: bool = True,
) -> tuple[Library, list[VideoError]]:
    """Index a folder of videos, or add what is new in it to an index that exists.

    Args:
        model: a model with a joint space (retrieval or pretraining).
        videos: folder, manifest or store.
        folder: of the index.
        lengths: seconds of the windows.
        only: which video ids to take; None takes all.

    Returns:
        The library, and why each video that could not be read is not in it.

    Raises:
        StorageError: the index was made by another model or with other windows.
    """
    catalogue, reader = open_folder(videos)
    wanted = [name for name in catalogue.ids() if only is None or only(name)]
    failed: list[VideoError] = []
    keys: dict[str, str] = {}
    for name in wanted:
        try:
            keys[name] = f"{name}#{fingerprint(catalogue, name)}"
        except VideoError as error:  # a link that leads out of the folder, say
            failed.append(error)
    header = {
        "model": fingerprint_of_model(model),
        "dim": model.config.model.embed_dim,
        "lengths": list(lengths),
        "level": "moment",
    }
    with EmbeddingWriter(folder, header, part_rows=VIDEOS_A_PART) as writer:
        new = [name for name, key in keys.items() if key not in writer.keys]
        for name in tqdm(new, desc="indexing", unit="video", disable=not progress):
            try:
                writer.add(keys[name], {TABLE: encode_windows(model, reader, name, lengths)})
            except VideoError as error:
                failed.append(error)
                logger.warning("not indexed: %s", error)
    reader.close()
    library = Library(folder, header, read_tables(folder).get(TABLE), keys)
    library.save()
    return library, failed


def load_library(folder: Path, model: VideoText, videos: Path | None = None) -> Library:
    """An index as it is on disk.

    Args:
        videos: the folder it was made from: only what still is there is found; None takes all.

    Raises:
        StorageError: no index there, or one of another model.
    """
    header = read_header(folder)
    if header.get("level") != "moment":
        raise StorageError(f"{folder}: embeddings, but no index of moments; make one: rushes index")
    if header.get("model") != fingerprint_of_model(model):
        raise StorageError(f"{folder}: this index was made by another model; index anew")
    table = read_tables(folder).get(TABLE)
    stored = {} if table is None else {key.rpartition("#")[0]: key for key in table.keys}
    if videos is not None:
        catalogue = open_catalogue(videos)
        stored = {name: key for name, key in stored.items() if name in catalogue}
    return Library(folder, header, table, stored)


def encode_windows(
    model: VideoText, reader: VideoReader, video: str, lengths: Sequence[float]
) -> Rows:
    """Vectors of all windows of one video; raises `VideoError`."""
    spans = windows(reader.describe(video).duration, lengths)
    return encode_spans(model, reader, video, spans)


def encode_spans(model: VideoText, reader: VideoReader, video: str, spans: Sequence[Span]) -> Rows:
    """Vectors of some stretches of one video; raises `VideoError`."""
    records = [Record(video, start=span.start, end=span.end) for span in spans]
    values: dict[int, Array] = {}
    for index, encoded in model.encode_records(records, reader, num_clips=1):
        if isinstance(encoded, VideoError):
            raise encoded
        values[index] = encoded.embeddings["video"][0].float().cpu().numpy()
    return Rows(np.stack([values[i] for i in range(len(spans))]), np.asarray(spans, np.float64))


def fingerprint(catalogue: Catalogue, video: str) -> str:
    """Changes when the file changes: from its size and time of change."""
    source = catalogue.locate(video)
    if not source.path.exists():
        return "0"
    stat = source.path.stat()
    return hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]


def fingerprint_of_model(model: VideoText) -> str:
    """Changes when the weights change."""
    digest = hashlib.sha256()
    for name, value in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def remember_model(folder: Path, source: str) -> None:
    """Note where the model of an index lies, so that searching needs not name it again."""
    path = Path(source)
    (folder / SOURCE).write_text(str(path.absolute()) if path.exists() else source, "utf-8")


def remembered_model(folder: Path) -> str:
    """Where the model of an index lies; raises `StorageError` where none was noted."""
    path = folder / SOURCE
    if not path.is_file():
        raise StorageError(f"{folder}: no index here; make one: rushes index VIDEOS --model RUN")
    return path.read_text("utf-8").strip()
