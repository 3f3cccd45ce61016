"""A frame server in a process of its own, to be killed: prints its port, serves fake videos."""

from __future__ import annotations

import json
import sys
import threading

from tests.video.service.fakes import FACTORY

from rushes.video.service.process import WorkerSpec
from rushes.video.service.server import FrameServer, ServerOptions


def main() -> None:
    """Arguments: JSON of the reader's keywords, JSON of the server's options."""
    spec = WorkerSpec(FACTORY, json.loads(sys.argv[1]))
    with FrameServer(spec, ServerOptions(**json.loads(sys.argv[2]))) as server:
        print(server.port, *server.pool.worker_pids(), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
