"""Something dies, hangs or vanishes while a model trains; the losses stay what they would be."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.helpers import ROOT, free_port
from tests.tiny_runs import make_corpus, tiny_config
from tests.video.service.test_faults import silent_server

from rushes.distributed import SingleWorld
from rushes.runner import run
from rushes.video.service import process
from rushes.video.service.client import ServiceReader
from rushes.video.service.process import WorkerSpec
from rushes.video.service.status import fetch_status

pytestmark = [pytest.mark.fault, pytest.mark.slow]

STEPS = 40
AT = 8
"""The fault happens when so many steps are done."""
DEADLINE = 6.0

Loss = tuple[int, float]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), test=1, train=12)


def trained(
    corpus: Path, folder: Path, frames: str, fault: Callable[[], None] | None = None
) -> list[Loss]:
    """Train for a moment with `fault` in the middle; the step and loss of every step.

    No step may take longer than the deadline of one read and what a step takes anyway.
    """
    train = {"batch_size": 4, "max_steps": STEPS, "epochs": 1000, "log_every": 1, "resume": False}
    config = tiny_config(
        corpus,
        output_dir=str(folder),
        train={**train, "validate_every": 0, "checkpoint_every": 0},
        data={
            "frames": frames, "num_workers": 2, "failure_budget": 1.0, "deadline": DEADLINE,
            "validation": [], "test": [],
        },
    )  # fmt: skip
    metrics = folder / "metrics.jsonl"
    watch = Watch(metrics, fault)
    run(config, SingleWorld())
    watch.finish()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


class Watch:
    """Does the fault once enough steps are done, and measures the longest pause between steps."""

    def __init__(self, metrics: Path, fault: Callable[[], None] | None) -> None:
        self.metrics, self.fault = metrics, fault
        self.longest, self.happened = 0.0, fault is None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _steps(self) -> int:
        return self.metrics.read_text().count('"train"') if self.metrics.exists() else 0

    def _run(self) -> None:
        before, since = 0, time.monotonic()
        while not self._ended.wait(0.005):
            done = self._steps()
            if done > before:
                if before:
                    self.longest = max(self.longest, time.monotonic() - since)
                before, since = done, time.monotonic()
            if not self.happened and done >= AT and self.fault is not None:
                self.fault()
                self.happened = True

    def finish(self) -> None:
        """The training has ended."""
        self._ended.set()
        self._thread.join(10)
        assert self.happened, "the training ended before the fault"
        assert self.longest < DEADLINE + 3.0


class Server:
    """`rushes serve-frames` on the corpus, in a process group of its own."""

    def __init__(self, corpus: Path) -> None:
        self.port, self.root = free_port(), corpus / "videos"
        self.start()

    def start(self) -> None:
        """Start on the same port as before."""
        options = {"root": self.root, "port": self.port, "metrics-port": 0, "workers": 1}
        arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rushes.cli", "serve-frames", *arguments],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def two_servers(corpus: Path) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        servers = Server(corpus), Server(corpus)
        for server in servers:
            stack.callback(server.kill)
        with ServiceReader([s.address for s in servers], deadline=60) as reader:
            until = time.monotonic() + 60
            while not all(remote.well for remote in reader.servers.values()):
                assert time.monotonic() < until
                time.sleep(0.05)
        yield servers


def flight(*addresses: str) -> str:
    return "flight://" + ",".join(addresses)


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Loss]:
    """The losses of a run that decodes in process and that nothing disturbs."""
    losses = trained(corpus, tmp_path_factory.mktemp("undisturbed"), "inprocess")
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert len({loss for _, loss in losses}) > STEPS / 2
    return losses


def decode_workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "rushes.video.service.worker" in str(child.cmdline())]


def test_kill_9_a_decode_worker(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    def fault() -> None:
        decode_workers()[0].kill()

    assert trained(corpus, tmp_path, "local", fault) == expected


def test_kill_9_one_of_two_servers(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    with two_servers(corpus) as (one, other):
        frames = flight(one.address, other.address)
        assert trained(corpus, tmp_path, frames, one.kill) == expected


def test_kill_9_both_servers(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    with two_servers(corpus) as servers:

        def fault() -> None:
            for server in servers:
                server.kill()

        frames = flight(*(server.address for server in servers))
        assert trained(corpus, tmp_path, frames, fault) == expected


def test_a_server_that_never_answers(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    with two_servers(corpus) as (one, _), silent_server() as silent:
        assert trained(corpus, tmp_path, flight(silent, one.address)) == expected


def test_a_server_that_freezes(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    with two_servers(corpus) as (one, other):

        def fault() -> None:
            one.process.send_signal(signal.SIGSTOP)

        assert trained(corpus, tmp_path, flight(one.address, other.address), fault) == expected


def test_a_server_restarted_on_its_port(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    with two_servers(corpus) as (one, other):

        def fault() -> None:
            one.kill()
            one.start()

        assert trained(corpus, tmp_path, flight(one.address, other.address), fault) == expected


RIVAL = """
import sys
from collections import deque
from rushes.video.request import Frames, Request, Size
from rushes.video.service.client import ServiceReader

reader, videos = ServiceReader(sys.argv[1].split(",")), sys.argv[2].split(",")
output, underway, asked = Frames(tuple(0.02 * i for i in range(64)), Size(256, 256)), deque(), 0
while True:
    underway.append(reader.submit(Request(videos[asked % len(videos)], (output,), deadline=60.0)))
    asked += 1
    if len(underway) > 8:
        underway.popleft().exception()  # some videos are bad
    if asked == 20:
        print("ok", flush=True)
"""


def all_free(server: Server) -> bool:
    """Nobody waits for or holds anything of the server's."""
    status = fetch_status(server.address)
    under_way = ("requests_waiting", "replies_being_sent", "queue_depth")
    return not any(status[key] for key in under_way) and status["slots_free"] == status["slots"]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def test_another_client_killed_mid_request(
    corpus: Path, tmp_path: Path, expected: list[Loss]
) -> None:
    videos = ",".join(clip.stem for clip in (corpus / "videos").iterdir())
    with two_servers(corpus) as servers:
        frames = flight(*(server.address for server in servers))
        program = [sys.executable, "-c", RIVAL, frames.removeprefix("flight://"), videos]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as rival:
            assert rival.stdout is not None
            assert rival.stdout.readline() == "ok\n"
            before = [fetch_status(server.address)["counters"]["reads"] for server in servers]

            def fault() -> None:
                wait_until(lambda: not any(all_free(server) for server in servers))
                rival.kill()
                rival.wait(10)

            try:
                assert trained(corpus, tmp_path, frames, fault) == expected
            finally:
                rival.kill()
        wait_until(lambda: all(all_free(server) for server in servers))
        after = [fetch_status(server.address)["counters"] for server in servers]
    assert all(new["reads"] > old for new, old in zip(after, before, strict=True))
    assert not any(counters.get("restarts") for counters in after)


def test_a_trainer_killed_mid_request(corpus: Path, tmp_path: Path, expected: list[Loss]) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from tests.video.service.test_training_faults import trained;"
        "trained(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])"
    )
    with two_servers(corpus) as servers:
        frames, doomed = flight(*(server.address for server in servers)), tmp_path / "doomed"
        trainer = subprocess.Popen(
            [sys.executable, "-c", program, str(corpus), str(doomed), frames],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            metrics = doomed / "metrics.jsonl"
            wait_until(lambda: metrics.exists() and metrics.read_text().count('"train"') >= AT, 120)
            wait_until(lambda: trainer.poll() is not None or not all(map(all_free, servers)))
            assert trainer.poll() is None, "it ended before it was killed"
        finally:
            trainer.kill()
            trainer.wait(10)
        wait_until(lambda: all(map(all_free, servers)))
        assert trained(corpus, tmp_path / "again", frames) == expected


def test_a_video_that_hangs_the_decoder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (corpus / "train.jsonl").read_text().splitlines()
    video = json.loads(lines[0])["video"]
    with_catalogue = process.with_catalogue

    def hanging(*arguments: Any, **keywords: Any) -> WorkerSpec:
        made = with_catalogue(*arguments, **keywords)
        factory = "tests.video.service.fakes:open_hanging"
        return WorkerSpec(factory, {**made.arguments, "hanging": video})

    monkeypatch.setattr(process, "with_catalogue", hanging)
    disturbed = trained(corpus, tmp_path / "hanging", "local")
    monkeypatch.undo()
    file = tmp_path / "hanging" / "bad_videos.jsonl"
    bad = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["reason"] for line in bad if line["video"] == video} == {"timeout", "quarantined"}

    # All others are as they would be had that video been absent.
    [clip] = (corpus / "videos").glob(f"{video}.*")
    aside = clip.rename(corpus / clip.name)
    try:
        without = trained(corpus, tmp_path / "without", "inprocess")
    finally:
        aside.rename(clip)
    assert disturbed == without
