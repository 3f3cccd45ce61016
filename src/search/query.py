"""`rushes search "a sentence"`: the moments of an index that fit it best.

With `--judge ANNOTATIONS` every captioned span there is searched within its own video, and the
share found is printed as JSON beside the chance of a random span.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rushes.datasets.record_store import open_records
from rushes.errors import ConfigError, MissingVideo
from rushes.search.command import clock, load, parser, table
from rushes.search.judge import judge_moments
from rushes.search.library import load_library, remembered_model


def main(argv: Sequence[str]) -> int:
    """Run the command; returns an exit code."""
    out = parser("search", __doc__ or "")
    out.add_argument("text", nargs="?", help="what to look for")
    out.add_argument("--judge", type=Path, default=None, help="annotations with captioned spans")
    out.add_argument("--model", default=None, help="by default the one that made the index")
    out.add_argument("--index", type=Path, default=Path("index"), help="made by rushes index")
    out.add_argument("--video", default=None, help="search within this video only")
    out.add_argument("--top", type=int, default=10, help="moments to show")
    out.add_argument("--json", action="store_true", help="one JSON object a line")
    options = out.parse_args(argv)
    if (options.text is None) == (options.judge is None):
        raise ConfigError("search: expected either a text to look for or --judge ANNOTATIONS")
    model = load(options, options.model or remembered_model(options.index))
    library = load_library(options.index, model)
    if options.judge is not None:
        records = list(open_records([options.judge], "auto", None, None))
        sys.stdout.write(json.dumps(judge_moments(model, library, records), indent=1) + "\n")
        return 0
    if options.video is not None and options.video not in library.ids:
        raise MissingVideo(options.video, f"not among the {len(library.ids)} indexed videos")
    found = library.search(model.encode_text(options.text)[0], options.top, options.video)
    if options.json:
        sys.stdout.writelines(json.dumps(moment._asdict()) + "\n" for moment in found)
        return 0
    rows = [("score", "from", "to", "video")]
    rows += [(f"{m.score:.3f}", clock(m.start), clock(m.end), m.video) for m in found]
    sys.stdout.write(table(rows) + "\n")
    return 0
