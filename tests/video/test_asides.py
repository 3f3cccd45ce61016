"""What bears its name is whole; what killed runs left aside goes, and nothing else does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rushes.video.asides import WHOLE_FOLDER, aside_of, remove_torn, written_aside


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_written_aside_takes_the_name_only_when_whole(tmp_path: Path) -> None:
    target = tmp_path / "x.mp4"
    with pytest.raises(FileNotFoundError), written_aside(target) as aside:
        shutil.move(aside.parent / "nothing", aside)
    assert not list(tmp_path.iterdir())
    with written_aside(target) as aside:
        aside.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"


@pytest.mark.fault
def test_torn_files_of_dead_processes_go_others_stay(tmp_path: Path, gone: int) -> None:
    name = f".x.mp4.{os.uname().nodename}-%d-{threading.get_ident()}.part"
    for pid in (gone, os.getpid()):
        (tmp_path / (name % pid)).touch()
    (tmp_path / f".x.mp4.elsewhere-{gone}-1.part").touch()
    assert remove_torn(tmp_path) == 1
    assert (tmp_path / (name % os.getpid())).exists()


@pytest.mark.fault
def test_torn_folders_go_too(tmp_path: Path, gone: int) -> None:
    torn = tmp_path / "deep" / f".clip.{socket.gethostname()}-{gone}-7.part"
    torn.mkdir(parents=True)
    (torn / "clip_000.jpg").touch()
    mine = aside_of(tmp_path / "deep" / "clip")
    mine.mkdir()
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / WHOLE_FOLDER).touch()
    assert remove_torn(tmp_path) == 1
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == [mine.name]
    assert (whole / WHOLE_FOLDER).exists()


def test_no_two_writers_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {aside_of(tmp_path / "x")}
    other = threading.Thread(target=lambda: names.add(aside_of(tmp_path / "x")))
    other.start()
    other.join()
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    names.add(aside_of(tmp_path / "x"))
    assert len(names) == 3


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("\xe9" * 127)
    with written_aside(target) as aside:
        aside.write_bytes(b"x")
    assert target.read_bytes() == b"x"
