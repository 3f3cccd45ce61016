"""`rushes infer` gives the same figures and predictions, to the digit, however it is run.

Batch sizes, one rank or two under real launchers, decoding in process, in the pool or by a server.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rushes.cli import main
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer, ServerOptions
from tests.helpers import horovodrun, launch, torchrun
from tests.tiny_runs import make_corpus, save_run, tiny_config

BATCHES = (1, 7, 64)
TASKS = ("retrieval", "open_ended_qa", "multiple_choice_qa")
SECTION = {"retrieval": "retrieval", "open_ended_qa": "qa", "multiple_choice_qa": "qa"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine test videos, the last of them broken."""
    folder = make_corpus(tmp_path_factory.mktemp("corpus"), test=9)
    broken = folder / "videos" / "test_00008.mp4"
    assert broken.is_file()
    broken.write_bytes(b"no video" * 99)
    return folder


@pytest.fixture(scope="module", params=TASKS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus: Path
) -> Path:
    return save_run(tiny_config(corpus, request.param), tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def server(corpus: Path) -> Iterator[str]:
    options = ServerOptions(port=0, num_workers=1, slot_bytes=32 << 20)
    with FrameServer(with_catalogue(corpus / "videos"), options) as served:
        yield f"flight://127.0.0.1:{served.port}"
        assert served.counters.get()["reads"] > 0


def command(run: Path, batch: int, frames: str) -> list[str]:
    """`rushes infer` of a run's test split, as docs/evaluate.md has it."""
    named = ["infer", "--config", str(run / "config.json"), "--output_dir", str(run)]
    named += ["--inference.split", "test", "--data.frames", frames, "--data.num_workers", "1"]
    return [*named, "--evaluation.batch_size", str(batch)]


def written(run: Path) -> tuple[dict[str, Any], bytes]:
    """Figures and predictions of the last judging, taken away so that the next must write them."""
    (folder,) = (run / "inference").iterdir()
    results = json.loads((folder / "results.json").read_text())
    predictions = run / "predictions" / "test.jsonl"
    found = predictions.read_bytes()
    shutil.rmtree(folder)
    predictions.unlink()
    assert results.pop("config")["evaluation"]["batch_size"] in BATCHES
    return results, found


@pytest.mark.slow
def test_figures_depend_on_no_batch_size_no_ranks_and_no_reader(run: Path, server: str) -> None:
    assert main(command(run, 1, "inprocess")) == 0
    first, predictions = written(run)
    assert first["unreadable"] == ["test_00008"]
    assert first["coverage"] < 1
    assert first[SECTION[first["task"]]]
    assert len(predictions.splitlines()) >= 8
    for batch, frames in ((7, "inprocess"), (64, "inprocess"), (7, "local"), (64, server)):
        assert main(command(run, batch, frames)) == 0
        assert written(run) == (first, predictions), (batch, frames)
    launch(torchrun(["-m", "rushes.cli", *command(run, 7, server)]), timeout=240)
    assert written(run) == (first, predictions)


@pytest.mark.slow
@pytest.mark.needs_horovod
def test_horovod_gives_the_same_figures(corpus: Path, server: str, tmp_path: Path) -> None:
    run = save_run(tiny_config(corpus), tmp_path / "run")
    assert main(command(run, 64, "inprocess")) == 0
    first = written(run)
    launch(horovodrun(["-m", "rushes.cli", *command(run, 7, server)]), timeout=240)
    assert written(run) == first
