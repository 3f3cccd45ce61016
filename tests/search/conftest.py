"""One corpus with a film and two runs for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_runs import make_corpus, save_run, tiny_config


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_corpus(tmp_path_factory.mktemp("corpus"), test=4, films=1)
    for path in (folder / "videos").glob("train_*"):
        path.unlink()
    return folder


@pytest.fixture(scope="session")
def retrieval_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return save_run(tiny_config(corpus), tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="session")
def qa_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return save_run(tiny_config(corpus, "open_ended_qa"), tmp_path_factory.mktemp("qa"))
