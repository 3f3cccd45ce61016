"""What the commands of this room share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rushes.api import VideoText
from rushes.log import setup_logging


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser that takes no abbreviations, with the flags that every command has."""
    out = argparse.ArgumentParser(
        prog=f"rushes {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    out.add_argument("--step", default="best", help="which checkpoint of a run folder")
    out.add_argument("--device", default=None, help="cpu or cuda; None takes the best")
    return out


def load(options: argparse.Namespace, source: str | Path) -> VideoText:
    """The model that a command was given."""
    setup_logging()
    return VideoText.from_pretrained(source, step=options.step, device=options.device)


def seconds(text: str) -> tuple[float, ...]:
    """Comma-separated seconds."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds like 4,8,16") from error


def clock(value: float) -> str:
    """Seconds as m:ss.s."""
    minutes, rest = divmod(value, 60)
    return f"{int(minutes)}:{rest:04.1f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
