"""`rushes COMMAND ...`: a table of commands, each a module's `main(argv) -> exit code`.

Modules are imported when their command is asked for, so that `rushes --help` and decode workers
start in a tenth of a second.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from rushes import __version__
from rushes.errors import RushesError


class Command(NamedTuple):
    """Where a command lives and what it does, in one line."""

    module: str
    summary: str
    function: str = "main"


COMMANDS: dict[str, Command] = {
    "demo": Command("rushes.demo", "the whole road on a rendered corpus"),
    "footage": Command("rushes.datasets.footage", "render the demo corpus"),
    "doctor": Command("rushes.video.doctor", "say what every file of a folder really holds"),
    "plan": Command("rushes.video.plan", "predict decode cost and recommend how to prepare"),
    "prepare": Command("rushes.video.prepare", "compress raw videos to training-friendly files"),
    "store": Command("rushes.video.store_build", "put prepared footage into an LMDB store"),
    "serve-frames": Command("rushes.video.service.command", "run the frame decoding service"),
    "annotations": Command("rushes.datasets.annotations", "convert, check, shard annotations"),
    "storage": Command("rushes.storage", "make and check the storage folder"),
    "config": Command("rushes.configs.importer", "show a preset, or import an old one"),
    "pretrain": Command("rushes.pretrain", "pretrain, stage 1 or 2 as the preset says"),
    "finetune": Command("rushes.tasks", "finetune on the task that the preset names"),
    "infer": Command("rushes.tasks", "judge a finished run on any split", "infer"),
    "ablate": Command("rushes.tasks.ablate", "train one arm and seed of the ablation"),
    "profile": Command("rushes.profiling", "say what bounds a run: decode, transfer, compute"),
    "preview": Command("rushes.preview", "write a page of what the model sees"),
    "results": Command("rushes.report_table", "a table over runs: mean and spread"),
    "report": Command("rushes.demo_report", "the page and figures of a finished demo"),
    "convert-weights": Command("rushes.modeling.weights", "convert published weight files"),
    "embed": Command("rushes.search.embed", "encode videos into embeddings on disk"),
    "score": Command("rushes.search.score", "retrieval metrics from exported embeddings alone"),
    "index": Command("rushes.search.index", "index the moments of a folder of videos"),
    "search": Command("rushes.search.query", "find moments by a sentence"),
    "answer": Command("rushes.search.answer", "answer a question about a video"),
    "app": Command("rushes.search.app", "a page to search, ask and compare"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 good, 1 user error, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"rushes {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"rushes: no command {name!r}; did you mean {near!r}?", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    function: Callable[[Sequence[str]], int] = getattr(
        import_module(command.module), command.function
    )
    try:
        return function(rest)
    except RushesError as error:
        print(f"rushes {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    """The list of commands."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: rushes COMMAND ...   (rushes COMMAND --help for its flags)", "", *lines]
    )


if __name__ == "__main__":
    raise SystemExit(main())
