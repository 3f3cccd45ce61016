"""The preparing commands: every video reported, killed runs go on, shards and clusters share."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.video.counter_video import Recipe, number_of, picture, render

from rushes.errors import AnnotationError, ConfigError
from rushes.video import prepare, prepare_cuts, prepare_frames, prepare_gif
from rushes.video.catalogue import open_catalogue
from rushes.video.probe import probe
from rushes.video.readers.images_reader import ImagesReader
from rushes.video.request import Frames, Request

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts/process_raw_video"
QUICK = ["--preset", "ultrafast", "--workers", "2", "--no-progress"]


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four counter videos, one in a subfolder, and three bad files."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "sub").mkdir()
    options = {"preset": "ultrafast"}
    render(Recipe("a.mp4", options=options), folder)
    render(Recipe("b.mkv", irregular=True, options=options), folder)
    render(Recipe("c.mp4", gop=250, bframes=2, frames=100, options=options), folder)
    render(Recipe("d.mp4", options=options), folder / "sub")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video\n" * 50)
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


BAD = {"empty": "empty", "text": "not_video", "cut": "truncated"}


def test_videos_that_differ_in_their_endings_are_all_made(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(made / "a.mp4", source)
    shutil.copy(made / "b.mkv", source / "a.mkv")
    assert prepare.main([str(source), str(tmp_path / "out"), *QUICK]) == 0
    report = {r["video"]: r for r in rows(tmp_path / "out" / "report.jsonl")}
    assert {name: Path(r["target"]).name for name, r in report.items()} == {
        "a.mkv": "a.mkv.mp4",
        "a.mp4": "a.mp4.mp4",
    }
    assert Path(report["a.mkv"]["source"]).suffix == ".mkv"
    target = tmp_path / "frames"
    assert prepare_frames.main([str(source), str(target), "--no-progress"]) == 0
    assert list(open_catalogue(target / "video_frames").ids()) == ["a.mkv", "a.mp4"]


def test_every_video_is_made_or_named_with_its_reason(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare.main([str(made), str(out), *QUICK]) == 1
    report = {r["video"]: r for r in rows(out / "report.jsonl")}
    assert set(report) == {"a", "b", "c", "sub/d", *BAD}
    assert {r["video"]: r["reason"] for r in rows(out / "bad_videos.jsonl")} == BAD
    for video in ("a", "b", "c", "sub/d"):
        info = probe(out / f"{video}.mp4")
        assert report[video]["status"] == "ok"
        assert report[video]["frames"] == info.num_frames
    assert not list(out.rglob("*.part"))
    # Again: nothing is made twice, the bad ones are still named; --allow-bad is content with them.
    before = (out / "a.mp4").stat().st_mtime_ns
    assert prepare.main([str(made), str(out), *QUICK, "--allow-bad"]) == 0
    assert (out / "a.mp4").stat().st_mtime_ns == before
    states = {r["video"]: r["status"] for r in rows(out / "report.jsonl")}
    assert states == {v: "failed" if v in BAD else "skipped" for v in report}
    with pytest.raises(ConfigError, match="gop=12, now 24"):
        prepare.main([str(made), str(out), *QUICK, "--gop", "24"])
    assert prepare.main([str(made), str(out), *QUICK, "--gop", "24", "--force"]) == 1
    assert (out / "a.mp4").stat().st_mtime_ns != before


def test_published_flags(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "raw")
    ids = [{"clip_id": "a"}, {"clip_id": "c.mp4"}, {"clip_id": "a"}, {"clip_id": "lost"}]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ids))
    argv = ["--workdir", str(tmp_path), "--inputdir", "raw", "--outputdir", "low"]
    assert prepare.main([*argv, "--vidfile", "ids.jsonl", *QUICK]) == 1
    report = {r["video"]: r for r in rows(tmp_path / "low/report.jsonl")}
    assert report["lost"]["reason"] == "missing"
    assert sorted(p.name for p in (tmp_path / "low").glob("*.mp4")) == ["a.mp4", "c.mp4"]
    assert probe(tmp_path / "low/c.mp4").fps == pytest.approx(6, abs=0.01)


def test_wrong_use_is_told(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="same folder"):
        prepare.main([str(made), str(made)])
    with pytest.raises(ConfigError, match="needs INPUT and OUTPUT"):
        prepare.main([str(made)])
    with pytest.raises(ConfigError, match="shard='4/4'"):
        prepare.main([str(made), str(tmp_path / "o"), "--shard", "4/4"])
    with pytest.raises(ConfigError, match="workers=-1"):
        prepare.main([str(made), str(tmp_path / "o"), "--workers", "-1"])
    for wrong in (b"no json", b"[]", b'{"clip_id": "\xff"}'):
        (tmp_path / "ids.jsonl").write_bytes(b'{"clip_id": "a"}\n' + wrong + b"\n")
        with pytest.raises(AnnotationError, match=r"ids\.jsonl:2"):
            prepare.main([str(made), str(tmp_path / "o"), "--vidfile", str(tmp_path / "ids.jsonl")])


def test_shards_share_the_work_without_overlap(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i in range(3):
        prepare.main([str(made), str(out), *QUICK, "--shard", f"{i}/3"])
    parts = [rows(out / f"report.{i}-of-3.jsonl") for i in range(3)]
    seen = [r["video"] for part in parts for r in part]
    assert len(seen) == len(set(seen)) == 7
    assert max(map(len, parts)) == 3
    assert (out / "sub/d.mp4").exists()


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    first = render(Recipe("v0.mp4", width=320, height=192, frames=250, gop=250), raw)
    for i in range(1, 8):
        shutil.copy(first, raw / f"v{i}.mp4")
    argv = [str(raw), str(out), "--preset", "medium", "--workers", "2", "--no-progress"]
    process = subprocess.Popen([sys.executable, str(SCRIPTS / "compress_video.py"), *argv])
    deadline = time.monotonic() + 60
    while len(list(out.glob("v*.mp4"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("v*.mp4")}
    assert 2 <= len(done) < 8
    assert all(probe(out / name).num_frames == 250 for name in done)
    assert prepare.main(argv) == 0
    assert len(list(out.glob("v*.mp4"))) == 8
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    states = [r["status"] for r in rows(out / "report.jsonl")]
    assert (states.count("skipped"), states.count("ok")) == (len(done), 8 - len(done))
    assert not list(out.glob(".v*"))


@pytest.mark.slow
@pytest.mark.needs_ray
def test_two_ray_nodes_share_the_work(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: a real two-node cluster on this machine."""
    program = f"""
import json, sys
from ray.cluster_utils import Cluster
import ray
from rushes.video.prepare import main
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
code = main([{str(made)!r}, {str(tmp_path / "out")!r}, "--engine", "ray", "--no-progress"])
ray.shutdown(); cluster.shutdown()
sys.exit(code)
"""
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=180
    )
    assert done.returncode == 1, done.stderr.decode()[-2000:]
    report = {r["video"]: r for r in rows(tmp_path / "out/report.jsonl")}
    assert {v for v, r in report.items() if r["status"] == "ok"} == {"a", "b", "c", "sub/d"}
    assert {v: report[v]["reason"] for v in BAD} == BAD
    assert len({r["node"] for r in report.values()}) == 2


def test_frames_are_dumped_and_read_back(made: Path, tmp_path: Path) -> None:
    ids = [{"clip_id": "a.mp4", "text": "hello"}, {"clip_id": "b", "text": "world"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ids))
    argv = [str(made), str(tmp_path / "o"), "--vidfile", str(tmp_path / "train.jsonl")]
    assert prepare_frames.main([*argv, "--workers", "2", "--no-progress"]) == 0
    listed = rows(tmp_path / "o/train_frame.jsonl")
    assert [(r["clip_id"], r["text"]) for r in listed] == [("a", "hello"), ("b", "world")]
    for row in listed:
        for folder in ("video_frames", "video_frames_lr"):
            count = len(list((tmp_path / "o" / folder / row["clip_id"]).glob("*.jpg")))
            assert count == row["num_frame"] >= 20
    reader = ImagesReader(open_catalogue(tmp_path / "o/video_frames", "frame"))
    moment = 1.3
    reply = reader.read(Request("a", (Frames((moment,)),)))
    index = int(moment * listed[0]["fps"] + 1e-6)
    shown = number_of(reply.arrays["frames"][0])
    assert shown == int(index / listed[0]["fps"] * 25 + 1e-6)
    reader.close()
    assert prepare_frames.main([*argv, "--no-progress"]) == 0
    assert {r["status"] for r in rows(tmp_path / "o/report.jsonl")} == {"skipped"}
    assert rows(tmp_path / "o/train_frame.jsonl") == listed


def test_every_line_of_the_list_gets_its_frames(made: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(made / "a.mp4", raw)
    shutil.copy(made / "b.mkv", raw / "a.mkv")
    lines = [("a.mp4", "one"), ("a.mkv", "two"), ("a.mp4", "three"), ("gone", "four")]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"clip_id": video, "text": text}) + "\n" for video, text in lines)
    )
    argv = [str(raw), str(tmp_path / "o"), "--vidfile", str(tmp_path / "train.jsonl")]
    assert prepare_frames.main([*argv, "--no-progress"]) == 1
    listed = rows(tmp_path / "o/train_frame.jsonl")
    assert [(r["clip_id"], r["text"]) for r in listed] == lines[:3]
    counts = {p.name: len(list(p.glob("*.jpg"))) for p in (tmp_path / "o/video_frames").iterdir()}
    assert all(r["num_frame"] == counts[r["clip_id"]] for r in listed)


def test_clips_are_cut_by_records_and_metafiles(made: Path, tmp_path: Path) -> None:
    records = [
        {"video": "c", "id": "first", "start": 0.5, "end": 1.5},
        {"video": "c", "start": 2.0, "end": 3.0},
        {"video": "lost", "id": "x", "start": 0.0, "end": 1.0},
        {"video": "c", "id": "late", "start": 50.0, "end": 51.0},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    argv = [str(made), str(tmp_path / "o"), "--records", str(tmp_path / "r.jsonl")]
    assert prepare_cuts.main([*argv, *QUICK]) == 1
    report = {r["video"]: r for r in rows(tmp_path / "o/report.jsonl")}
    assert report["first"]["true_start"] == pytest.approx(0.48)
    assert report["first"]["frames"] == 26
    assert report["c_2.000_3.000"]["frames"] == 25
    assert (report["x"]["reason"], report["late"]["reason"]) == ("missing", "frame_unavailable")
    work = tmp_path / "work"
    shutil.copytree(made, work / "download_videos")
    (work / "metafiles").mkdir()
    span = ["00:00:02.000", "00:00:03.000"]
    meta = {"video_id": "c", "url": "u", "clip": [{"clip_id": "c.0.mp4", "span": span}]}
    (work / "metafiles/part0.jsonl").write_text(json.dumps(meta) + "\n")
    argv = ["--workdir", str(work), "--metafile", "part0.jsonl", "--resultfile", "done.jsonl"]
    assert prepare_cuts.main([*argv, "--copy", *QUICK]) == 0
    # One key frame only: the copy begins at the start, and says so.
    (row,) = rows(work / "done.jsonl")
    assert (row["true_start"], row["asked_start"]) == (0.0, 2.0)
    assert probe(work / "video_clips/c/c.0.mp4").num_frames >= 75


def test_cuts_that_changed_are_cut_again_others_keep_their_true_start(
    made: Path, tmp_path: Path
) -> None:
    listing, out = tmp_path / "r.jsonl", tmp_path / "o"
    argv = [str(made), str(out), "--records", str(listing), "--copy", *QUICK]

    def run(*spans: tuple[str, float, float]) -> dict[str, dict[str, Any]]:
        rows_ = [{"video": "a", "id": name, "start": s, "end": e} for name, s, e in spans]
        listing.write_text("".join(json.dumps(r) + "\n" for r in rows_))
        assert prepare_cuts.main(argv) == 0
        return {r["video"]: r for r in rows(out / "report.jsonl")}

    first = run(("x", 0.6, 1.2), ("y", 1.1, 2.0))
    assert (first["x"]["status"], first["x"]["true_start"]) == ("ok", 0.48)
    again = run(("x", 0.6, 1.2), ("y", 1.6, 2.0))
    assert (again["x"]["status"], again["y"]["status"]) == ("skipped", "ok")
    assert again["y"]["true_start"] == pytest.approx(1.44)
    for key in ("true_start", "true_end", "frames", "asked_start", "asked_end"):
        assert again["x"][key] == first["x"][key]
    # A file that does not say what it holds, or is torn, is no cut.
    (out / "x.mp4").write_bytes((made / "a.mp4").read_bytes())
    (out / "y.mp4").write_bytes((out / "y.mp4").read_bytes()[:-100])
    last = run(("x", 0.6, 1.2), ("y", 1.6, 2.0))
    assert {r["status"] for r in last.values()} == {"ok"}


def test_shards_of_cuts_have_reports_of_their_own(made: Path, tmp_path: Path) -> None:
    records = [{"video": "a", "start": i / 4, "end": i / 4 + 0.5} for i in range(5)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    result = tmp_path / "done.jsonl"
    argv = [str(made), str(tmp_path / "o"), "--records", str(tmp_path / "r.jsonl"), *QUICK]
    for i in range(2):
        prepare_cuts.main([*argv, "--resultfile", str(result), "--shard", f"{i}/2"])
    told = [rows(result.with_name(f"done.{i}-of-2.jsonl")) for i in range(2)]
    assert [len(part) for part in told] == [3, 2]
    assert len({r["video"] for part in told for r in part}) == 5


@pytest.mark.parametrize("command", ["prepare", "frames"])
def test_settings_changed_by_force_hold_for_every_file(
    command: str, made: Path, tmp_path: Path
) -> None:
    """A run with --force that did not come to its end must not leave files of both settings."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for name in ("a.mp4", "c.mp4"):
        shutil.copy(made / name, raw)
    argv, main = [str(raw), str(out), "--no-progress"], prepare.main
    old, new, place = ["--crf", "40"], ["--crf", "20"], "a.mp4"
    if command == "frames":
        main, old, new = prepare_frames.main, ["--quality", "31"], ["--quality", "2"]
        place = "video_frames/a/a_000.jpg"
    assert main([*argv, *old]) == 0
    small = (out / place).stat().st_size
    assert main([*argv, *new, "--force", "--shard", "1/2"]) == 0
    assert main([*argv, *new]) == 0
    assert {r["video"]: r["status"] for r in rows(out / "report.jsonl")} == {
        "a": "ok",
        "c": "skipped",
    }
    assert (out / place).stat().st_size > small
    assert main([*argv, *new]) == 0
    assert {r["status"] for r in rows(out / "report.jsonl")} == {"skipped"}


@pytest.mark.parametrize("text", ["no json", "[]"])
def test_a_damaged_settings_file_is_told(text: str, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "prepare.json").write_text(text)
    with pytest.raises(ConfigError, match=r"prepare\.json"):
        prepare.main([str(made), str(out), *QUICK])


@pytest.mark.fault
def test_half_made_folders_of_a_killed_dump_go(made: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    shutil.copy(made / "a.mp4", raw)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    torn = out / "video_frames" / f".a.{socket.gethostname()}-{gone.pid}-1.part"
    torn.mkdir(parents=True)
    (torn / "a_000.jpg").touch()
    argv = [str(raw), str(out), "--no-progress"]
    assert prepare_frames.main(argv) == 0
    assert sorted(p.name for p in (out / "video_frames").iterdir()) == ["a"]
    # A video that changed since is decoded anew.
    later = time.time() + 5
    os.utime(raw / "a.mp4", (later, later))
    assert prepare_frames.main(argv) == 0
    assert [r["status"] for r in rows(out / "report.jsonl")] == ["ok"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"video": "c"}',
        b'{"video": "c", "id": "../x", "start": 0, "end": 1}',
        b'{"video": "c", "id": "x\\u0000y", "start": 0, "end": 1}',
        b'{"video": "\xff", "start": 0, "end": 1}',
        b"[]",
    ],
)
def test_a_wrong_clip_list_names_its_line(line: bytes, made: Path, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b'{"video": "c", "start": 0, "end": 1}\n' + line + b"\n")
    with pytest.raises(AnnotationError, match=r"r\.jsonl:2"):
        prepare_cuts.main([str(made), str(tmp_path / "o"), "--records", str(tmp_path / "r.jsonl")])


def test_animations_become_videos(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    frames = [Image.fromarray(picture(n, 96, 64)) for n in range(4)]
    for name in ("a.gif", "b.webp", "c.png"):
        frames[0].save(raw / name, save_all=True, append_images=frames[1:], duration=80)
    (raw / "d.gif").write_bytes(b"GIF89a broken")
    assert prepare_gif.main([str(raw), str(tmp_path / "o"), *QUICK]) == 1
    assert [r["video"] for r in rows(tmp_path / "o/bad_videos.jsonl")] == ["d"]
    for name in "abc":
        assert probe(tmp_path / f"o/{name}.mp4").num_frames == 4
    # Links are judged as everywhere, folders are none.
    (raw / "away.gif").symlink_to(tmp_path / "o/a.mp4")
    (raw / "nowhere.png").symlink_to(raw / "nothing")
    (raw / "folder.png").mkdir()
    assert prepare_gif.main([str(raw), str(tmp_path / "o"), *QUICK]) == 1
    bad = {r["video"]: r["reason"] for r in rows(tmp_path / "o/bad_videos.jsonl")}
    assert (bad.pop("away"), bad.pop("nowhere")) == ("hostile", "not_video")
    assert set(bad) == {"d"}
    frames[0].save(raw / "a.webp")
    with pytest.raises(ConfigError, match=r"a\.webp and .*a\.gif would both become a\.mp4"):
        prepare_gif.main([str(raw), str(tmp_path / "o"), *QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compress_video", "decode_frames", "gif2mp4", "cut_videos"])
def test_each_script_starts_and_tells_user_errors(name: str, tmp_path: Path) -> None:
    script = str(SCRIPTS / f"{name}.py")
    helped = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    assert "--workdir" in helped.stdout
    failed = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"{name}.py: needs INPUT")
