"""The form in which benchmarks write what they found."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option `--json [FILE]`."""
    parser.add_argument(
        "--json", type=Path, nargs="?", metavar="FILE", help="write the figures there, too"
    )


def publish(figures: Mapping[str, Any], path: Path | None, hide: tuple[str, ...] = ()) -> None:
    """Print figures as JSON, less what `hide` names at the top, and write all to a file."""
    whole = nested(figures)
    print(json.dumps({k: v for k, v in whole.items() if k not in hide}, indent=1))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested objects.

    >>> nested({"ratio.raw.min": 1.0, "ratio.raw.geomean": 1.3, "rounds": 15})
    {'ratio': {'raw': {'min': 1.0, 'geomean': 1.3}}, 'rounds': 15}
    """
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *places, last = key.split(".")
        here = out
        for place in places:
            here = here.setdefault(place, {})
        here[last] = nested(value) if isinstance(value, Mapping) else value
    return out
