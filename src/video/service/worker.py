"""A decode worker: reads requests from a socket, writes replies into shared-memory slots.

It is started as `python -c` with two descriptors and no copy of its parent's modules, so it is
ready in a fraction of a second and never imports torch. It dies with its parent. Everything that
goes wrong in it ends here as a message; what it cannot say (a crash, a hang) its parent notices.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rushes.errors import RefusedVideo, RushesError, UnreadableVideo, VideoError
from rushes.video.dying import die_with_parent
from rushes.video.request import Reply, Request, Size, VideoReader
from rushes.video.service import wire
from rushes.video.service.limits import RequestLimits, asks_for_whole, reply_bytes
from rushes.video.service.names import name_of
from rushes.video.service.slots import map_segment

OUT_OF_MEMORY = 86
"""Exit status of a worker that reached its memory limit."""


def open_default(
    catalogue_path: str,
    vis_format: str = "auto",
    videos_low: str | None = None,
    backend: str = "pyav",
    index_cache: str | None = None,
    open_bytes: int | None = None,
) -> VideoReader:
    """The reader that a worker has unless told otherwise: a catalogue and a decoding backend.

    Args:
        open_bytes: memory in which it keeps videos open; the rest as for `open_catalogue` and
            `open_reader`.
    """
    from rushes.video.catalogue import open_catalogue
    from rushes.video.limits import Limits
    from rushes.video.readers import open_reader

    catalogue = open_catalogue(catalogue_path, vis_format, videos_low)  # type: ignore[arg-type]
    return open_reader(
        catalogue,
        backend,
        limits=None if open_bytes is None else Limits(max_open_bytes=open_bytes),
        index_cache=Path(index_cache) if index_cache else None,
    )


def make_reader(factory: str, arguments: dict[str, Any]) -> VideoReader:
    """Call `module:function` with `arguments`."""
    module, _, name = factory.partition(":")
    reader: VideoReader = getattr(importlib.import_module(module), name)(**arguments)
    return reader


class Worker:
    """Answers one request at a time until its parent closes the socket.

    Args:
        connection: to the parent.
        setup: what the parent sent first: factory, arguments, slots, slot_bytes, memory_limit,
            limits.
    """

    def __init__(self, connection: Connection, setup: dict[str, Any]) -> None:
        self.connection = connection
        self.descriptors: list[int] = setup["slots"]
        self.slot_bytes: int = setup["slot_bytes"]
        # A reply is built in memory of this process before it is copied to its slot.
        memory: int = setup["memory_limit"] // 2 or self.slot_bytes
        self.max_bytes = min(self.slot_bytes, memory)
        self.limits = None if setup["limits"] is None else RequestLimits(**setup["limits"])
        self._segments: dict[int, npt.NDArray[np.uint8]] = {}
        self.reader = make_reader(setup["factory"], setup["arguments"])

    def run(self) -> None:
        """Serve until the socket ends."""
        while True:
            try:
                message = wire.unpackb(self.connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                return
            self.connection.send_bytes(self._packed(message))

    def _packed(self, message: dict[str, Any]) -> bytes:
        """The answer as bytes: what cannot be packed must not end a worker either."""
        video_id = message["id"]
        try:
            return wire.packb(self._answer(message, video_id))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except RushesError as error:
            return wire.packb({"error": wire.encode_error(error)})
        except Exception as error:  # noqa: BLE001 - the border of a process: nothing may pass
            traceback.print_exc()
            known = UnreadableVideo(video_id, f"{type(error).__name__}: {error}")
            return wire.packb({"error": wire.encode_error(known)})

    def _answer(self, message: dict[str, Any], video_id: str) -> dict[str, Any]:
        if "name" in message:
            return {"name": name_of(self.reader, video_id)}
        if "request" not in message:
            return {"info": wire.encode_info(self.reader.describe(video_id))}
        request = wire.decode_request(message["request"])
        self._refuse_too_large(request)
        return self._filled(message["slot"], self.reader.read(request))

    def _refuse_too_large(self, request: Request) -> None:
        """Judge a request before anything is decoded: what it asks must not cost a worker."""
        display = None
        if asks_for_whole(request):
            info = self.reader.describe(request.video_id)
            display = Size(info.height, info.width)
            if self.limits is not None:
                self.limits.check_display(request, display)
        size = reply_bytes(request, display)
        if size > self.max_bytes:
            shown = "" if display is None else f" (frames of {display.height}x{display.width})"
            what = "a slot" if self.max_bytes == self.slot_bytes else "half a worker's memory"
            detail = f"a reply of {size} bytes{shown}, {what} holds {self.max_bytes}"
            raise RefusedVideo(request.video_id, detail)

    def _filled(self, slot: int, reply: Reply) -> dict[str, Any]:
        header, size = wire.layout(reply)
        if size > self.slot_bytes:
            detail = f"a reply of {size} bytes, a slot holds {self.slot_bytes}"
            raise RefusedVideo(reply.video_id, detail)
        segment = self._segments.get(slot)
        if segment is None:
            segment = map_segment(self.descriptors[slot], self.slot_bytes)
            self._segments[slot] = segment
        wire.pack_into(reply, segment)
        cost = reply.cost
        return {
            "header": header,
            "size": size,
            "frames": [cost.frames_decoded, cost.frames_returned],
        }


def main(descriptor: int, parent: int) -> None:
    """Entry of a worker process.

    Args:
        descriptor: this end of the socket to the parent.
        parent: process id of the parent.
    """
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    connection = Connection(descriptor)
    setup = wire.unpackb(connection.recv_bytes())
    limit = setup["memory_limit"]
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        worker = Worker(connection, setup)
    except (RushesError, ImportError, AttributeError, OSError) as error:
        known = (
            error
            if isinstance(error, RushesError)
            else VideoError(
                str(Path(sys.executable).name),
                f"{setup['factory']}: {type(error).__name__}: {error}",
            )
        )
        connection.send_bytes(wire.packb({"error": wire.encode_error(known)}))
        return
    connection.send_bytes(wire.packb({"ready": os.getpid()}))
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent went while we answered
