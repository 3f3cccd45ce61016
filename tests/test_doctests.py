"""Runs the examples in the docstrings, under the package's import name."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import rushes

SOURCE = Path(rushes.__file__).parent


def _module_names() -> list[str]:
    """Names by file, so that collecting the tests imports nothing."""
    files = (path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.py"))
    parts = (path.parts[:-1] if path.name == "__init__" else path.parts for path in files)
    return sorted(".".join(["rushes", *part]) for part in parts)


@pytest.mark.parametrize("name", _module_names())
def test_docstring_examples(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0
