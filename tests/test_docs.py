"""Every command and every Python block of the user's pages is run, in a folder as they describe."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rushes.cli import main
from rushes.configs.load import config_to_json
from tests.helpers import ROOT, free_port, launch
from tests.search.pages import serving
from tests.tiny_runs import SIZES, make_corpus, save_run, tiny_config
from tests.video.service.test_server import make_certificate

BLOCK = re.compile(r"```(bash|python|json)\n(.*?)```", re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [body for found, body in BLOCK.findall(text) if found == kind]


def commands(page: str) -> list[list[str]]:
    lines = shell_lines(page)
    assert all(line.startswith("rushes ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def shell_lines(page: str) -> list[str]:
    """Commands of a page, those over several lines joined."""
    bodies = [body.replace("\\\n", " ") for body in blocks(page, "bash")]
    lines = [line for body in bodies for line in body.splitlines() if line.strip()]
    assert lines
    return lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    corpus = make_corpus(folder / "corpus", test=3, films=1)
    (folder / "videos").mkdir()
    for path in (corpus / "videos").glob("t*_0000[0-2].*"):
        shutil.copy(path, folder / "videos")
    for path in (corpus / "videos").glob("film*"):
        shutil.copy(path, folder / "videos")
    shutil.copy(corpus / "test.jsonl", folder / "captions.jsonl")
    shutil.copy(corpus / "films.jsonl", folder / "films.jsonl")
    run = save_run(tiny_config(corpus), folder / "runs" / "retrieval")
    (run / "results.json").write_text(json.dumps({"retrieval": {"t2v_r1": 0.5}}))
    save_run(tiny_config(corpus, "open_ended_qa"), folder / "runs" / "qa")
    return folder


@pytest.mark.use
@pytest.mark.slow
@pytest.mark.parametrize("page", ["embed.md", "search.md", "evaluate.md"])
def test_commands_and_python(place: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for command in commands(page):
        if command[0] == "app":  # serves until it is stopped
            _looks_at_the_page(command)
        else:
            assert main(command) == 0, command
    for body in blocks(page, "python"):
        exec(compile(body, page, "exec"), {})


def _looks_at_the_page(command: list[str]) -> None:
    with serving(command) as address:
        with urllib.request.urlopen(f"{address}api/state", timeout=60) as response:
            state = json.load(response)
        assert state["answers"]
        assert len(state["videos"]) == len(list(Path("videos").iterdir()))
        # For another interface the printed address carries a token, and nothing works without.
    with serving([*command, "--host", "0.0.0.0"]) as address:
        local = address.replace("0.0.0.0", "127.0.0.1")
        bare, token = local.split("?token=")
        assert len(token) >= 32
        with urllib.request.urlopen(f"{bare}api/state?token={token}", timeout=60) as response:
            assert json.load(response) == state
        for path in ("", "api/state", f"media/{state['videos'][0]}"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(bare + path, timeout=60)


@pytest.mark.use
@pytest.mark.slow
def test_serving_frames(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").symlink_to(place / "videos", target_is_directory=True)
    _, certificate = make_certificate(tmp_path)  # signed by itself: its own authority
    shutil.copy(certificate, tmp_path / "ca.pem")
    token, serve, status = shell_lines("frame-service.md")
    launch(["bash", "-c", token])
    port = free_port()
    program = [sys.executable, "-m", "rushes.cli"]
    # Only where it listens and how many it starts are the test's own.
    arguments = shlex.split(serve.replace("8815", str(port)).replace("16", "1"))[1:]
    process = subprocess.Popen([*program, *arguments])
    try:
        asked = shlex.split(status.replace("host1:8815", f"localhost:{port}"))[1:]
        for _ in range(60):
            done = launch([*program, *asked], status=None)
            if done.returncode == 0:
                break
            assert process.poll() is None
            time.sleep(0.5)
        assert done.returncode == 0, done.stderr
        assert "workers" in done.stdout
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.use
@pytest.mark.slow
def test_finetuning_from_two_columns(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "videos", tmp_path / "videos")
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    lines = [f"{name},a video with the number {i}" for i, name in enumerate(names)]
    (tmp_path / "captions.csv").write_text("\n".join(["video,text", *lines, ""]))
    (tmp_path / "mine").mkdir()
    convert, finetune = commands("finetune.md")
    assert main(convert) == 0
    for split in ("val", "test"):
        shutil.copy(tmp_path / "mine" / "train.jsonl", tmp_path / "mine" / f"{split}.jsonl")
    (preset,) = blocks("finetune.md", "json")
    (tmp_path / "mine.json").write_text(preset)
    # Only the size is the test's own: smaller than tiny, and two steps.
    small = {**SIZES, "train": {"precision": "fp32", "max_steps": 2, "batch_size": 2}}
    (tmp_path / "small.json").write_text(json.dumps(small))
    monkeypatch.setenv("RUSHES_OVERLAY", str(tmp_path / "small.json"))
    monkeypatch.setenv("PATH_TO_STORAGE", str(tmp_path))
    assert main(finetune) == 0
    results = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert results["retrieval"]["num_videos"] == len(names)
    assert config_to_json(tiny_config(place / "corpus"))["task"] == results["task"]
