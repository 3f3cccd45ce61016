"""What the page can do, apart from the web: search, answer, compare, show the indexed videos."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rushes.api import VideoText
from rushes.errors import ConfigError, MissingVideo
from rushes.report import strips_of
from rushes.search.library import Library, open_folder
from rushes.search.windows import Moment

UPLOAD_LIMIT = 256 * 2**20
PLAYABLE = {".mp4": "video", ".m4v": "video", ".mov": "video", ".webm": "video", ".gif": "image"}
"""What browsers play; of anything else a still picture is shown."""


class Page:
    """What the page can do: a search model with its library, and a model that answers.

    Args:
        model: with a joint space.
        library: its moments.
        videos: the folder that they are in.
        answering: a model for questions, or None.
    """

    def __init__(
        self, model: VideoText, library: Library, videos: Path, answering: VideoText | None = None
    ) -> None:
        self.model, self.library, self.answering = model, library, answering
        self.catalogue, self.reader = open_folder(videos)
        self.known = frozenset(library.ids)
        self._strips = strips_of(self.reader, count=1, height=270)
        self._busy = threading.Lock()  # one computation at a time: the cores are shared anyway

    def path(self, video: str) -> Path:
        """The file of an indexed video; raises `MissingVideo` for anything else."""
        if video not in self.known:
            raise MissingVideo(video, f"not among the {len(self.known)} indexed videos")
        return self.catalogue.locate(video).path

    def state(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        return {
            "videos": sorted(self.known),
            "moments": len(self.library.videos),
            "answers": self.answering is not None,
            "upload_limit": UPLOAD_LIMIT,
        }

    def search(self, text: str, top: int) -> dict[str, Any]:
        """The moments that fit a sentence best."""
        with self._busy:
            begun = time.perf_counter()
            (vector,) = self.model.encode_text(text)
            encoded = time.perf_counter()
            found = self.library.search(vector, top)
            done = time.perf_counter()
        return self._result(found, encoded - begun, done - encoded)

    def neighbours(self, data: bytes, top: int) -> dict[str, Any]:
        """The videos nearest to an uploaded one."""
        with self._busy:
            begun = time.perf_counter()
            (vector,) = self.model.encode_video(data)
            encoded = time.perf_counter()
            found = self.library.neighbours(vector, top)
            done = time.perf_counter()
        return self._result(found, encoded - begun, done - encoded)

    def answer(self, video: str, question: str, start: float | None, end: float | None) -> Any:
        """The likeliest answers to a question about an indexed video or a stretch of it."""
        if self.answering is None:
            raise ConfigError("no model for questions was given: rushes app RUN --answers RUN")
        path = self.path(video)
        with self._busy:
            begun = time.perf_counter()
            (answers,) = self.answering.answer((path, start, end), question, top_k=5)
            seconds = time.perf_counter() - begun
        return {"answers": [answer._asdict() for answer in answers], "seconds": {"total": seconds}}

    def still(self, video: str, at: float) -> bytes:
        """One frame as JPEG."""
        self.path(video)
        pictures = self._strips(video, at, None)
        if not len(pictures):
            raise MissingVideo(video, "no picture can be read")
        out = io.BytesIO()
        Image.fromarray(pictures[0]).save(out, "JPEG", quality=82)
        return out.getvalue()

    def _result(self, found: Sequence[Moment], encode: float, search: float) -> dict[str, Any]:
        shown = []
        for moment in found:
            kind = PLAYABLE.get(self.path(moment.video).suffix.lower(), "still")
            shown.append({**moment._asdict(), "kind": kind})
        return {"moments": shown, "seconds": {"encode": encode, "search": search}}
