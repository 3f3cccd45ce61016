"""`rushes serve-frames`: what cannot be served is said, IPv6 is served, health tells the truth."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import ROOT, free_port
from tests.video.counter_video import Recipe, render
from tests.video.service.conftest import spec
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import ConfigError, MissingVideo
from rushes.video.request import Frames, Request, Size
from rushes.video.service import open_service_reader
from rushes.video.service.client import ServiceReader
from rushes.video.service.command import main
from rushes.video.service.metrics_endpoint import MetricsEndpoint, ServiceMetrics
from rushes.video.service.process import WorkerSpec
from rushes.video.service.server import FrameServer, ServerOptions


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--port 70000", "--port 70000: a port is 0 to 65535"),
        ("--port -1", "--port -1: a port is 0 to 65535"),
        ("--port 65535", "--port 65535: none is left for metrics; give --metrics-port"),
        ("--port 0 --metrics-port 65536", "--metrics-port 65536: a port is 0 to 65535"),
        ("--port 0 --slots -1", "--slots -1: at least 1"),
        ("--port 0 --slots 0", "--slots 0: at least 1"),
        ("--port 0 --workers 0", "--workers 0: at least 1"),
        ("--port 0 --send-timeout 0", "--send-timeout 0: expected more than 0, at most 86400 s"),
        ("--port 0 --send-timeout nan", "--send-timeout nan: expected more than 0"),
        ("--port 0 --deadline -3", "--deadline -3: expected more than 0"),
        ("--port 0 --deadline inf", "--deadline inf: expected more than 0, at most 86400 s"),
        ("--port 0 --memory-limit 1M", "--memory-limit 1000000: at least 134217728"),
        ("--port 0 --host nowhere.invalid --token-file {token}", "cannot listen on nowhere"),
        ("--status nohost", "'nohost': expected host:port"),
        ("--status host:99999", "'host:99999': expected host:port"),
    ],
)
def test_what_cannot_be_is_said_with_value_and_limit(flags: str, text: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse\n")
    with pytest.raises(ConfigError, match=text):
        main(["--root", str(tmp_path), *flags.format(token=token).split()])


def served(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """`rushes serve-frames` that ends by itself, because it cannot serve."""
    token = folder / "token"
    token.write_text("correct-horse\n")
    program = [sys.executable, "-m", "rushes.cli", "serve-frames", "--root", str(folder)]
    return subprocess.run(
        [*program, "--token-file", str(token), "--workers", "1", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("", "--host '': expected an address or a name of this machine"),
        (" ", "--host ' ': expected an address or a name of this machine"),
        ("999.1.1.1", "--host '999.1.1.1': no address and no name: "),
        ("127.1", "--host '127.1': no address and no name: "),
        ("0", "--host '0': no address and no name: "),
        ("a..b", "--host 'a..b': no address and no name: "),
        ("\udcff", "--host '\\udcff': no address and no name: "),
        ("nowhere.invalid", "cannot listen on nowhere.invalid:"),
        ("fe80::zz", "cannot listen on [fe80::zz]:"),
    ],
)
def test_hosts_that_are_none_end_it_in_one_line_of_ours(
    host: str, text: str, tmp_path: Path
) -> None:
    done = served(tmp_path, "--host", host, "--port", str(free_port()))
    assert done.returncode == 1
    assert done.stderr.startswith(f"rushes serve-frames: {text}")
    assert done.stderr.count("\n") == 1, "gRPC has nothing to say about it"


def test_taken_ports_end_it_in_one_line_of_ours(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, what in (
            (("--port", port), f"cannot listen on 127.0.0.1:{port}"),
            (("--port", "0", "--metrics-port", port), "cannot serve metrics on 127.0.0.1 port"),
        ):
            done = served(tmp_path, *flags)
            assert done.returncode == 1
            assert done.stderr.startswith(f"rushes serve-frames: {what}")
            assert "in use" in done.stderr


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_ipv6_is_served_measured_and_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(Recipe("v.mp4"), tmp_path)
    program = [sys.executable, "-m", "rushes.cli", "serve-frames", "--root", str(tmp_path)]
    server = subprocess.Popen(
        [*program, "--host", "::1", "--port", str(free_port()), "--metrics-port", "0"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    with server.stderr:
        try:
            line = server.stderr.readline()
            assert " on [::1]:" in line, line + server.stderr.read()
            address, metrics = line.split(" on ")[1].split(",")[0], line.split()[-1]
            with open_service_reader(f"flight://{address}", tmp_path / "nowhere") as reader:
                reply = reader.read(Request("v", (Frames((0.1,), Size(8, 8)),)))
                assert reply.arrays["frames"].shape == (1, 8, 8, 3)
            assert main(["--status", address]) == 0
            assert capsys.readouterr().out.startswith("[::1]:")
            url = f"http://[::1]:{metrics}/healthz"
            assert urllib.request.urlopen(url, timeout=5).read() == b"ok\n"
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0


def test_a_reader_of_the_status_that_leaves_early(
    open_server: Callable[..., FrameServer],
) -> None:
    server = open_server()
    ours, theirs = os.pipe()
    os.close(ours)  # as when `| head -1` has gone
    program = [sys.executable, "-m", "rushes.cli", "serve-frames"]
    done = subprocess.run(
        [*program, "--status", f"127.0.0.1:{server.port}"],
        cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert done.stderr == ""
    assert done.returncode == 0


def in_the_way(folder: Path) -> Path:
    cache = folder / "cache"
    cache.write_text("a file")
    return cache


def below_a_file(folder: Path) -> Path:
    return in_the_way(folder) / "index"


def damaged(folder: Path) -> Path:
    cache = folder / "cache"
    cache.mkdir()
    (cache / "data.mdb").write_bytes(b"x" * 8192)
    return cache


def read_only(folder: Path) -> Path:
    cache = folder / "cache"
    cache.mkdir(mode=0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("root writes everywhere")
    return cache


@pytest.mark.parametrize("unusable", [in_the_way, below_a_file, damaged, read_only])
def test_an_index_cache_that_cannot_be_is_told_once_and_done_without(
    unusable: Callable[[Path], Path], tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    render(Recipe("v.mp4"), videos)
    cache = unusable(tmp_path)
    server = subprocess.Popen(
        [sys.executable, "-m", "rushes.cli", "serve-frames", "--root", str(videos), "--port",
         str(free_port()), "--metrics-port", "0", "--index-cache", str(cache)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    with server.stderr:
        try:
            said = [server.stderr.readline(), server.stderr.readline()]
            assert f"nothing is kept: {cache}: no index cache: " in said[0], said
            address = said[1].split(" on ")[1].split(",")[0]
            with open_service_reader(f"flight://{address}", tmp_path / "nowhere") as reader:
                for _ in range(3):
                    reply = reader.read(Request("v", (Frames((0.1,), Size(8, 8)),)))
                    assert reply.arrays["frames"].shape == (1, 8, 8, 3)
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
        assert "index cache" not in server.stderr.read()


def health(endpoint: MetricsEndpoint) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/healthz", timeout=5) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.fault
def test_health_and_metrics_know_killed_workers(
    open_server: Callable[..., FrameServer], tmp_path: Path
) -> None:
    factory = "tests.video.service.fakes:open_slowly"
    slowly = WorkerSpec(factory, {"folder": str(tmp_path), "seconds": 3.0}, 1 << 30)
    server, metrics = open_server(slowly, num_workers=1), ServiceMetrics()
    metrics.watch(server.status)
    endpoint = MetricsEndpoint("127.0.0.1", 0, metrics, server.status)
    try:
        assert health(endpoint) == 200
        assert b"rushes_frames_workers 1.0" in metrics.text()
        os.kill(server.status()["workers"][0], signal.SIGKILL)
        deadline = time.monotonic() + 1.0
        while health(endpoint) != 503:
            assert time.monotonic() < deadline
        assert b"rushes_frames_workers 0.0" in metrics.text()
        deadline = time.monotonic() + 20.0
        while health(endpoint) != 200:  # replaced without being asked for anything
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        endpoint.close()


def test_describe_is_timed_as_reads_are(
    open_client: Callable[..., ServiceReader],
) -> None:
    metrics = ServiceMetrics()
    with FrameServer(spec(), ServerOptions(port=0), metrics.observe) as server:
        client = open_client(f"127.0.0.1:{server.port}")
        assert client.describe("v").num_frames == FakeReader().describe("v").num_frames
        with pytest.raises(MissingVideo):
            client.describe("missing")
        assert same(client.read(request_of("v")), FakeReader().read(request_of("v")))
    text = metrics.text().decode()
    for call, outcome in (("describe", "ok"), ("describe", "missing"), ("read", "ok")):
        series = f'rushes_frames_request_seconds_count{{call="{call}",outcome="{outcome}"}} 1.0'
        assert series in text
    assert "hello" not in text
