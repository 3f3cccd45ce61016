"""The command table: every command is there, errors are one line, near misses are named."""

from __future__ import annotations

import importlib

import pytest

from rushes import __version__
from rushes.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists(name: str) -> None:
    command = COMMANDS[name]
    assert callable(getattr(importlib.import_module(command.module), command.function))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"rushes {__version__}"


def test_help_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_near_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serach"]) == 2
    assert "did you mean 'search'?" in capsys.readouterr().err


def test_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "no/such/run"]) == 1
    error = capsys.readouterr().err
    assert "no/such/run" in error
    assert "Traceback" not in error
