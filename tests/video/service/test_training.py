"""Where frames are decoded changes no loss: in process, in the pool, on two servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_runs import make_corpus, tiny_config

from rushes.distributed import SingleWorld
from rushes.runner import run
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer, ServerOptions

STEPS = 50


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def servers(corpus: Path) -> Iterator[str]:
    options = ServerOptions(port=0, num_workers=1, slot_bytes=32 << 20)
    with ExitStack() as stack:
        made = [FrameServer(with_catalogue(corpus / "videos"), options) for _ in range(2)]
        for server in made:
            stack.callback(server.close)
        yield "flight://" + ",".join(f"127.0.0.1:{server.port}" for server in made)
        assert all(server.counters.get()["reads"] > 0 for server in made)


def losses(corpus: Path, folder: Path, frames: str) -> list[dict[str, Any]]:
    """What every step of a run reported of its losses, every digit."""
    config = tiny_config(
        corpus,
        output_dir=str(folder),
        train={
            "batch_size": 2, "max_steps": STEPS, "epochs": 1000, "log_every": 1,
            "validate_every": STEPS, "checkpoint_every": STEPS, "resume": False,
        },
        data={"frames": frames, "num_workers": 2, "failure_budget": 1.0},
    )  # fmt: skip
    run(config, SingleWorld())
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in line.items() if key == "step" or "loss" in key}
        for line in lines
        if any("loss" in key for key in line)
    ]


@pytest.mark.slow
def test_training_gives_the_same_losses_wherever_frames_are_decoded(
    corpus: Path, servers: str, tmp_path: Path
) -> None:
    expected = losses(corpus, tmp_path / "inprocess", "inprocess")
    assert len({json.dumps(line) for line in expected}) >= STEPS
    for name, frames in (("local", "local"), ("flight", servers)):
        assert losses(corpus, tmp_path / name, frames) == expected, name
