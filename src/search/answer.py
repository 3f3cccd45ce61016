"""`rushes answer clip.mp4 "what ...?"`: the likeliest answers to a question about a video."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rushes.api import Answer
from rushes.search.command import load, parser, table


def main(argv: Sequence[str]) -> int:
    """Run the command; returns an exit code."""
    out = parser("answer", __doc__ or "")
    out.add_argument("video", help="a video file")
    out.add_argument("question")
    out.add_argument("--model", required=True, help="a model trained on questions, or on retrieval")
    out.add_argument("--options", nargs="+", help="answers to choose from")
    out.add_argument("--start", type=float, default=None, help="seconds: from here")
    out.add_argument("--end", type=float, default=None, help="seconds: to here")
    out.add_argument("--top", type=int, default=3, help="answers to show")
    options = out.parse_args(argv)
    model = load(options, options.model)
    video = (options.video, options.start, options.end)
    found: Sequence[Answer]
    if options.options:
        found = model.choose(video, options.options, options.question)
    else:
        (found,) = model.answer(video, options.question, top_k=options.top)
    sys.stdout.write(table([(f"{a.probability:.3f}", a.text) for a in found]) + "\n")
    return 0
