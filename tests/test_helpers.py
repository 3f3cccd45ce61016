"""The test tools themselves: a skip is loud, RUSHES_REQUIRE makes it a failure, hangs end."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests import helpers
from tests.helpers import ROOT, launch, require

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]


def test_what_a_machine_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(helpers.LACKS, "ray", lambda: "no ray here")
    monkeypatch.delenv("RUSHES_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs ray: no ray here"):
        require("ray")


def test_a_required_thing_that_is_lacking_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(helpers.LACKS, "ray", lambda: "no ray here")
    monkeypatch.setenv("RUSHES_REQUIRE", "shared,ray")
    with pytest.raises(pytest.fail.Exception, match="lists ray, but: no ray here"):
        require("ray")


def test_what_is_there_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(helpers.LACKS, "ray", lambda: "")
    monkeypatch.setenv("RUSHES_REQUIRE", "ray")
    require("ray")


def test_a_misspelt_requirement_stops_the_run(tmp_path: Path) -> None:
    checkout = _checkout_with_tests(tmp_path, "def test_nothing(): pass")
    run = launch(PYTEST, cwd=checkout, env={"RUSHES_REQUIRE": "horovood"}, status=4)
    assert "unknown ['horovood']" in run.stderr


def test_markers_become_failures_and_skips_are_listed(tmp_path: Path) -> None:
    """A whole pytest run on a machine without Horovod, with and without the requirement."""
    checkout = _checkout_with_tests(
        tmp_path,
        """
        import pytest
        from tests import helpers
        helpers.LACKS['horovod'] = lambda: 'nobody built it'

        @pytest.mark.needs_horovod
        def test_two_ranks():
            pass
        """,
    )
    skipped = launch(PYTEST, cwd=checkout, env={"RUSHES_REQUIRE": ""})
    assert "NOT TESTED HERE" in skipped.stdout
    assert "1 x needs horovod: nobody built it" in skipped.stdout
    failed = launch(PYTEST, cwd=checkout, env={"RUSHES_REQUIRE": "horovod"}, status=1)
    assert "RUSHES_REQUIRE lists horovod, but: nobody built it" in failed.stdout


def test_seeds_do_not_leak_from_test_to_test(tmp_path: Path) -> None:
    checkout = _checkout_with_tests(
        tmp_path,
        """
        import random
        import numpy
        import torch

        def drawn():
            return random.random(), numpy.random.rand(), torch.rand(()).item()

        expected = []

        def test_one_looks_ahead_and_seeds():
            expected.append(drawn())
            random.seed(1), numpy.random.seed(1), torch.manual_seed(1)

        def test_another_starts_where_the_first_one_did():
            assert drawn() == expected[0]
        """,
    )
    assert "2 passed" in launch(PYTEST, cwd=checkout, env={"RUSHES_REQUIRE": ""}).stdout


def test_launch_ends_a_hanging_command_and_its_children(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"sleep 60 & echo $! > '{child}'; echo waiting; wait"
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"(?s)still running after 1 s.*waiting"):
        launch(["bash", "-c", script], timeout=1)
    assert time.monotonic() - started < 30
    deadline = time.monotonic() + 10
    while _alive(int(child.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(int(child.read_text()))


def test_launch_shows_the_output_of_a_failure() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)status 3, expected 0.*it broke"):
        launch(["bash", "-c", "echo it broke >&2; exit 3"])


def _checkout_with_tests(folder: Path, source: str) -> Path:
    """A folder with this project's pytest settings and conftest, and one test file."""
    (folder / "tests").mkdir()
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/helpers.py"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "tests" / "test_it.py").write_text(textwrap.dedent(source))
    return folder


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped yet does not."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
