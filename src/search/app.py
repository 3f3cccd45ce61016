"""`rushes app RUN --videos DIR`: a page to search by a sentence, ask, and find neighbours."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from rushes.search.command import load, parser
from rushes.search.library import build_library
from rushes.search.page import Page
from rushes.search.web import listen, make_app, serve


def is_local(host: str) -> bool:
    """Whether an interface can be reached from this machine only."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def main(argv: Sequence[str]) -> int:
    """Run the command until it is interrupted; returns an exit code."""
    out = parser("app", "A page to search videos by a sentence, ask about them and compare.")
    out.add_argument("run", type=Path, help="a retrieval run, or a folder with retrieval/ and qa/")
    out.add_argument("--videos", type=Path, required=True, help="folder of videos")
    out.add_argument("--answers", default=None, help="a run trained on questions")
    out.add_argument("--index", type=Path, default=None, help="where the index is kept")
    out.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    out.add_argument("--port", type=int, default=7860)
    out.add_argument("--token", default=None, help="made up where an interface needs one")
    options = out.parse_args(argv)
    # First of all: indexing for an hour and then finding the port taken helps nobody.
    listening = listen(options.host, options.port)
    search, answers = options.run, options.answers
    if (search / "retrieval").is_dir():
        answers = answers or (search / "qa" if (search / "qa").is_dir() else None)
        search = search / "retrieval"
    model = load(options, search)
    answering = None if answers is None else load(options, answers)
    folder = options.index or search / "index"
    library, failed = build_library(model, options.videos, folder)
    for error in failed:
        sys.stdout.write(f"not shown: {error}\n")
    local = is_local(options.host)
    token = options.token or (None if local else secrets.token_urlsafe(24))
    named = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{named}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    sys.stdout.write(f"{len(library.ids)} videos, {len(library.videos)} moments: {address}\n")
    sys.stdout.flush()
    # Another site's name that points here must not open the page.
    hosts = ("localhost", "127.0.0.1", "[::1]", options.host) if local else ("*",)
    app = make_app(Page(model, library, options.videos, answering), token, hosts)
    serve(app, listening)
    return 0
