"""Building a store: reported, resumable after kill -9, and nothing that a bad video can stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.video.conftest import Rendered
from tests.video.counter_video import Recipe, number_of, render

from rushes.cli import main
from rushes.errors import DecodeTimeout, StorageError, WorkerDied
from rushes.video.request import Frames, Request, Size
from rushes.video.store import open_store
from rushes.video.store_build import main as build
from rushes.video.store_jobs import run_jobs


def report(store: Path) -> dict[str, dict[str, Any]]:
    """Rows of the report by id."""
    lines = (store / "report.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def footage(folder: Path, counter: Rendered, copies: int) -> Path:
    """A folder of several copies of counter videos, one empty file and one text."""
    folder.mkdir()
    for number in range(copies):
        shutil.copy(counter("h264_b.mp4")[1], folder / f"clip{number}.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is not a video " * 100)
    return folder


@pytest.mark.slow
def test_every_video_is_reported_and_bad_ones_are_named(tmp_path: Path, counter: Rendered) -> None:
    videos, store = footage(tmp_path / "raw", counter, 3), tmp_path / "store"
    assert main(["store", str(videos), str(store), "--jobs", "2", "--shards", "3"]) == 1
    rows = report(store)
    assert {name: row["status"] for name, row in rows.items()} == {
        "clip0": "prepared", "clip1": "prepared", "clip2": "prepared",
        "empty": "failed", "text": "failed",
    }  # fmt: skip
    assert (rows["empty"]["reason"], rows["text"]["reason"]) == ("empty", "not_video")
    assert rows["clip1"]["psnr"] >= 36
    assert rows["clip1"]["frames"] == 60
    reader = open_store(store)
    assert reader.ids() == ["clip0", "clip1", "clip2"]
    size = sum(path.stat().st_size for path in store.glob("*.mdb"))
    assert size >= 3 * rows["clip1"]["bytes_store"]
    assert not list(store.glob("*-lock"))
    reader.close()
    # Again: good ones are kept; one that changed is made anew; bad ones are tried again.
    shutil.copy(counter("h264_ip.mp4")[1], videos / "clip1.mp4")
    (videos / "empty.mp4").unlink()
    (videos / "text.mp4").unlink()
    assert main(["store", str(videos), str(store), "--jobs", "0"]) == 0
    states = {name: row["status"] for name, row in report(store).items()}
    assert states == {"clip0": "kept", "clip1": "prepared", "clip2": "kept"}
    reader = open_store(store)
    reply = reader.read(Request("clip1", (Frames((0.48,)),)))
    assert number_of(reply.arrays["frames"][0]) == 12
    reader.close()
    with pytest.raises(StorageError, match="made with grid=12"):
        build([str(videos), str(store), "--jobs", "0", "--grid", "6"])


def test_usage_errors_name_the_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", str(tmp_path), str(tmp_path / "s"), "--grid", "0"]) == 1
    assert "grid=0: expected 1 to 250 frames" in capsys.readouterr().err
    assert main(["store", str(tmp_path / "none"), str(tmp_path / "s")]) == 1
    assert "neither a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--timeout", "0"], "timeout=0: expected more than 0, at most 1e+07 s"),
        (["--timeout", "nan"], "timeout=nan: expected more than 0"),
        (["--jobs", "-1"], "jobs=-1: expected 0 or more"),
        (["--memory", "-1"], "memory=-1: expected 0 (no limit) or more"),
        (["--memory", "inf"], "memory=inf: expected"),
        (["--features", "x"], "--features x: expected NAME=FOLDER"),
        (["--features", "x="], "--features x=: expected NAME=FOLDER"),
    ],
)
def test_nonsense_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    store = tmp_path / "s"
    assert main(["store", str(tmp_path), str(store), *flags]) == 1
    assert told in capsys.readouterr().err
    assert not store.exists()


@pytest.mark.parametrize("command", ["store", "prepare"])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "x", Path("/proc/x")):
        assert main([command, str(tmp_path), str(target)]) == 1
        assert f"rushes {command}: {target}: cannot be written to: " in capsys.readouterr().err


def test_features_are_attached(tmp_path: Path, counter: Rendered) -> None:
    videos, store, features = tmp_path / "raw", tmp_path / "store", tmp_path / "features"
    videos.mkdir()
    features.mkdir()
    shutil.copy(counter("h264_ip.mp4")[1], videos / "a.mp4")
    np.savez(features / "a.npz", times=np.arange(3.0), values=np.eye(3, dtype=np.float32))
    arguments = ["store", str(videos), str(store), "--jobs", "0", "--features", f"clip={features}"]
    assert main(arguments) == 0
    reader = open_store(store)
    assert reader.describe("a").features == ("clip",)
    reader.close()
    assert main([*arguments[:-1], "clip=nowhere"]) == 1


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, counter: Rendered) -> None:
    videos, store = footage(tmp_path / "raw", counter, 12), tmp_path / "store"
    (videos / "empty.mp4").unlink()
    (videos / "text.mp4").unlink()
    command = [sys.executable, "-m", "rushes.cli", "store", str(videos), str(store), "--jobs", "1"]
    building = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (store / "report.jsonl").exists() and len(report_lines(store)) >= 3:
            break
        time.sleep(0.01)
    building.send_signal(signal.SIGKILL)
    building.wait()
    assert len(report_lines(store)) < 12, "it was killed too late to prove anything"
    with pytest.raises(StorageError, match="has not ended"):
        open_store(store)
    time.sleep(0.5)  # the kernel ends the worker together with its parent
    assert not any(str(store / "aside") in line for line in commands())
    assert main(["store", str(videos), str(store), "--jobs", "1"]) == 0
    states = [row["status"] for row in report(store).values()]
    assert states.count("kept") >= 3
    assert states.count("kept") + states.count("prepared") == 12
    assert not (store / "aside").exists()
    reader = open_store(store)
    for name in reader.ids():
        asked = Frames((30 / 25,), size=Size(24, 40))
        assert reader.read(Request(name, (asked,))).cost.frames_decoded <= 3
    assert len(reader.ids()) == 12
    reader.close()


def report_lines(store: Path) -> list[str]:
    """Whole lines of the report so far."""
    return (store / "report.jsonl").read_text().splitlines()


def commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_two_builders_do_not_meet(tmp_path: Path, counter: Rendered) -> None:
    import fcntl

    videos, store = footage(tmp_path / "raw", counter, 1), tmp_path / "store"
    store.mkdir()
    with (store / ".building").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["store", str(videos), str(store), "--jobs", "0"]) == 1
    assert not (store / "store.json").exists()


def _misbehave(item: str) -> str:
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hang":
        time.sleep(600)
    if item == "grow":
        try:
            bytearray(1 << 40)
        except MemoryError:
            return "bounded"
    return item


@pytest.mark.slow
@pytest.mark.fault
def test_dying_and_hanging_workers_cost_one_item_each() -> None:
    items = ["a", "die", "b", "hang", "grow", "c"]
    results = dict(run_jobs(_misbehave, items, items, jobs=2, timeout=6.0, memory=8 << 30))
    assert isinstance(results[1], WorkerDied)
    assert "signal 9" in str(results[1])
    assert isinstance(results[3], DecodeTimeout)
    assert [results[i] for i in (0, 2, 4, 5)] == ["a", "b", "bounded", "c"]


def test_a_shape_that_cannot_be_coded_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    options = {"qscale": "3"}
    for name, width in (("wide.avi", 17_000), ("fine.avi", 160)):
        recipe = Recipe(name, "mjpeg", width, 96, 3, pixel_format="yuvj420p", options=options)
        render(recipe, tmp_path / "raw")
    assert build([str(tmp_path / "raw"), str(tmp_path / "store"), "--jobs", "0"]) == 1
    rows = report(tmp_path / "store")
    assert (rows["fine"]["status"], rows["wide"]["status"]) == ("prepared", "failed")
    assert rows["wide"]["reason"] == "not_prepared"
    assert "cannot be stored" in rows["wide"]["detail"]
