"""`rushes index`: index the moments of a folder of videos, or add what is new."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rushes.search.command import load, parser, seconds
from rushes.search.library import build_library, remember_model
from rushes.search.windows import LENGTHS


def main(argv: Sequence[str]) -> int:
    """Run the command; returns an exit code."""
    out = parser("index", __doc__ or "")
    out.add_argument("videos", type=Path, help="folder of videos, or a manifest")
    out.add_argument("--model", required=True, help="run folder, model folder or hub id")
    out.add_argument("--out", type=Path, default=Path("index"), help="folder of the index")
    out.add_argument("--lengths", type=seconds, default=LENGTHS, help="windows, in seconds")
    options = out.parse_args(argv)
    model = load(options, options.model)
    library, failed = build_library(model, options.videos, options.out, lengths=options.lengths)
    remember_model(options.out, options.model)
    sys.stdout.write(
        f"{options.out}: {len(library.ids)} videos, {len(library.videos)} moments"
        f"{f', {len(failed)} could not be read' if failed else ''}\n"
    )
    for error in failed:
        sys.stdout.write(f"  {error}\n")
    return 0
