"""Two servers, the local pool and in-process decoding give the same arrays; the server is seen."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.helpers import ROOT
from tests.video.counter_video import Recipe, render
from tests.video.service.conftest import spec
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import ConfigError, FrameUnavailable, MissingVideo, ServiceError
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Audio, Frames, Request, Size, VideoReader
from rushes.video.service import open_service_reader
from rushes.video.service.client import ServiceReader, home_order
from rushes.video.service.command import main
from rushes.video.service.metrics_endpoint import MetricsEndpoint, ServiceMetrics
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import FrameServer, ServerOptions

OpenServer = Callable[..., FrameServer]
OpenClient = Callable[..., ServiceReader]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        render(Recipe(f"v{i}.mp4", "libx264", gop=10 + i, bframes=i, sound=i % 2 == 0), folder)
    return folder


def clips(with_sound: bool = True) -> list[Request]:
    requests = []
    for i in range(24):
        times = tuple(0.05 * i + 0.07 * j for j in range(5))
        outputs = (Frames(times[2:3], Size(64, 96), name="high"), Frames(times, Size(16, 24)))
        sound = (Audio(0.1, 0.4, 8000),) if i % 2 == 0 and with_sound else ()
        requests.append(Request(f"v{i % 4}", (*outputs, *sound)))
    return requests


def test_the_same_arrays_wherever_they_are_decoded(videos: Path, cleanup: ExitStack) -> None:
    options = ServerOptions(port=0, num_workers=1, slot_bytes=8 << 20)
    servers: list[FrameServer] = []
    homes: set[str] = set()
    while len(homes) < 2:  # four videos may all live on one of two servers: take other ports then
        for server in servers:
            server.close()
        servers = [FrameServer(with_catalogue(videos), options) for _ in range(2)]
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        homes = {home_order(f"v{i}", addresses)[0] for i in range(4)}
    for server in servers:
        cleanup.callback(server.close)
    flight = "flight://" + ",".join(addresses)
    reader = open_reader(open_catalogue(videos))
    expected = [reader.read(request) for request in clips()]
    for frames in ("local", flight):
        other = open_service_reader(frames, videos, num_workers=2)
        cleanup.callback(other.close)
        with ThreadPoolExecutor(6) as threads:
            replies = list(threads.map(other.read, clips()))
        for mine, theirs in zip(expected, replies, strict=True):
            assert {k: v.tobytes() for k, v in mine.arrays.items()} == {
                k: v.tobytes() for k, v in theirs.arrays.items()
            }
            for name, times in mine.times.items():
                assert times.tobytes() == theirs.times[name].tobytes()
                assert mine.status[name].tobytes() == theirs.status[name].tobytes()
        ours, others = reader.describe("v1"), other.describe("v1")
        assert ours.frame_times.tobytes() == others.frame_times.tobytes()
        assert (ours.codec, ours.width, ours.audio) == (others.codec, others.width, others.audio)
    reader.close()
    assert all(server.counters.get()["reads"] > 0 for server in servers)


def test_errors_arrive_as_themselves(open_server: OpenServer, open_client: OpenClient) -> None:
    server = open_server()
    client = open_client(f"127.0.0.1:{server.port}")
    assert isinstance(client, VideoReader)
    with pytest.raises(MissingVideo) as missing:
        client.read(request_of("missing"))
    assert missing.value.video == "missing"
    with pytest.raises(FrameUnavailable, match=r"9\.0 s of 5\.0 s"):
        client.read(Request("v", (Frames((9.0,), Size(8, 8)),), policy="strict"))
    with pytest.raises(MissingVideo):
        client.describe("missing")
    assert server.status()["slots_free"] == server.status()["slots"]


def test_videos_have_a_home_and_losing_a_server_moves_only_its_own() -> None:
    three = ["a:1", "b:1", "c:1"]
    homes = {f"v{i}": home_order(f"v{i}", three)[0] for i in range(600)}
    for address in three:
        assert 140 < list(homes.values()).count(address) < 260
    for video, home in homes.items():
        left = home_order(video, ["a:1", "c:1"])[0]
        assert left == home or home == "b:1"


def test_a_videos_requests_go_to_its_home(open_server: OpenServer, open_client: OpenClient) -> None:
    servers = [open_server(num_workers=1) for _ in range(2)]
    client = open_client(*(f"127.0.0.1:{server.port}" for server in servers))
    videos = [f"v{i}" for i in range(20)]
    for video in videos * 2:
        client.read(request_of(video))
    for server in servers:
        address = f"127.0.0.1:{server.port}"
        home = [v for v in videos if home_order(v, list(client.servers))[0] == address]
        assert server.counters.get()["reads"] == 2 * len(home)


def test_several_trainers_decode_a_clip_once(
    open_server: OpenServer, open_client: OpenClient, tmp_path: Path
) -> None:
    server = open_server(spec(tmp_path, delay=0.3), cache_bytes=1 << 24)
    clients = [open_client(f"127.0.0.1:{server.port}") for _ in range(3)]
    with ThreadPoolExecutor(9) as threads:
        asked = request_of("v", fixed=True)
        futures = [threads.submit(client.read, asked) for client in clients * 3]
        replies = [future.result() for future in futures]
    assert all(same(reply, FakeReader().read(request_of("v"))) for reply in replies)
    clients[0].read(asked)
    assert (tmp_path / "decoded.log").read_text().split() == ["v"]
    counters = server.counters.get()
    assert counters["coalesced"] + counters["cache_hits"] == 9


def test_a_full_server_is_waited_for(open_server: OpenServer, open_client: OpenClient) -> None:
    server = open_server(spec(delay=0.05), num_slots=4, queue=3)
    clients = [open_client(f"127.0.0.1:{server.port}") for _ in range(4)]
    with ThreadPoolExecutor(16) as threads:
        futures = [
            threads.submit(client.read, request_of(f"v{i}"))
            for i in range(10)
            for client in clients
        ]
        assert all(future.result().video_id for future in futures)
    assert sum(client.counters.get().get("refused_busy", 0) for client in clients) > 0


def test_metrics_and_health_are_seen(open_server: OpenServer, open_client: OpenClient) -> None:
    metrics = ServiceMetrics()
    server = FrameServer(spec(), ServerOptions(port=0, cache_bytes=1 << 24), metrics.observe)
    endpoint = MetricsEndpoint("127.0.0.1", 0, metrics, server.status)
    metrics.watch(server.status)
    try:
        client = open_client(f"127.0.0.1:{server.port}")
        for _ in range(3):
            client.read(request_of("v", fixed=True))
        with pytest.raises(MissingVideo):
            client.read(request_of("missing"))
        url = f"http://127.0.0.1:{endpoint.port}"
        text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
        values = {
            (sample.name, sample.labels.get("call"), sample.labels.get("outcome")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("le") in (None, "+Inf")
        }
        assert values["rushes_frames_request_seconds_count", "read", "ok"] == 3
        assert values["rushes_frames_request_seconds_count", "read", "missing"] == 1
        assert values["rushes_frames_cache_hits_total", None, None] == 2
        assert values["rushes_frames_decoded_per_returned", None, None] == 10.0
        assert values["rushes_frames_queue_depth", None, None] == 0
        assert urllib.request.urlopen(f"{url}/healthz", timeout=5).read() == b"ok\n"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/etc/passwd", timeout=5)
    finally:
        server.close()
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{url}/healthz", timeout=5)
    endpoint.close()


def test_only_this_machine_is_served_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ConfigError, match="without a token"):
            FrameServer(spec(), ServerOptions(host, 0))
    assert ServerOptions().host == "127.0.0.1"


def test_a_taken_port_is_an_error(open_server: OpenServer) -> None:
    server = open_server()
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        open_server(port=server.port)


def test_options_that_make_no_sense_are_errors(tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    for argv, text in (
        ([], "--root"),
        (["--root", str(tmp_path), "--tls-cert", "c.pem"], "go together"),
        (["--root", str(tmp_path), "--token-file", str(empty)], "holds no token"),
        (["--root", str(tmp_path), "--token-file", "nowhere"], "no token can be read"),
        (["--root", str(tmp_path), "--host", "0.0.0.0", "--port", "0"], "without a token"),
    ):
        with pytest.raises(ConfigError, match=text):
            main(argv)
    with pytest.raises(ConfigError, match="expected host:port"):
        open_service_reader("flight://nohost", tmp_path)


@pytest.mark.parametrize("secure", [False, True])
def test_the_command_serves_and_tells_its_status(
    secure: bool, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse\n")
    script = ROOT / "scripts" / "process_raw_video" / "serve_frames.py"
    options = ["--root", str(videos), "--port", "0", "--workers", "1", "--cache", "1MB"]
    options += ["--token-file", str(token)]
    trust: list[str] = []
    if secure:
        key, cert = make_certificate(tmp_path)
        options += ["--tls-cert", str(cert), "--tls-key", str(key)]
        trust = ["--tls-ca", str(cert)]
    server = subprocess.Popen(
        [sys.executable, str(script), *options], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    with server.stderr:
        line = server.stderr.readline()
        assert "serving" in line, line + server.stderr.read()
        address = line.split(" on ")[1].split(",")[0].replace("127.0.0.1", "localhost")
        authority = cert if secure else None
        reader = open_service_reader(
            f"flight://{address}", videos / "nowhere", token_file=token, tls_ca=authority
        )
        times = (0.1, 0.2)
        reply = reader.read(Request("v0", (Frames(times, Size(16, 24)),)))
        assert reply.arrays["frames"].shape == (2, 16, 24, 3)
        reader.close()
        assert main(["--status", address, "--token-file", str(token), *trust]) == 0
        assert "1 workers, 0 restarts" in capsys.readouterr().out
        with pytest.raises(ServiceError, match="refuses us"):
            main(["--status", address, *trust])
        if secure:
            with pytest.raises(ServiceError):
                main(["--status", address, "--token-file", str(token)])
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert time.monotonic() - started < 5
        assert "stopping" in server.stderr.read()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for localhost that it signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        f" -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=60)
    return key, cert
