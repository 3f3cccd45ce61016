"""The house numbers of CONTRIBUTING.md that a tool can count."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

FOLDERS = ("src", "scripts/process_raw_video", "benchmarks", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in FILES if path.is_relative_to(ROOT / "src")]
MAX_FILE_LINES = 450  # "about 400"
MAX_FUNCTION_LINES = 100
NINE_IN_TEN_FUNCTIONS = 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def num_lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=short)
def test_source_is_ascii(path: Path) -> None:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        assert line.isascii(), f"{short(path)}:{number}: {line.decode('utf-8', 'replace')}"


def test_files_do_one_thing() -> None:
    sizes = {short(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_fit_on_a_screen() -> None:
    sizes = {
        f"{short(path)}:{function.lineno} {function.name}": num_lines(function)
        for path in PACKAGE
        for function in functions(path)
    }
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}
    assert statistics.quantiles(sizes.values(), n=10)[-1] <= NINE_IN_TEN_FUNCTIONS


def test_public_names_are_documented() -> None:
    missing = []
    for path in PACKAGE:
        module = ast.parse(path.read_text("utf-8"))
        if not ast.get_docstring(module):
            missing.append(short(path))
        for node in module.body:
            if (
                isinstance(node, Function | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{short(path)}:{node.lineno} {node.name}")
    assert missing == []
