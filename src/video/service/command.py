"""`rushes serve-frames`: one frame server in the foreground, or a look at a running one."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence

from rushes.errors import ConfigError, RushesError
from rushes.log import get_logger, setup_logging
from rushes.video.service.connections import allow_many_descriptors
from rushes.video.service.metrics_endpoint import MetricsEndpoint, ServiceMetrics
from rushes.video.service.process import with_catalogue
from rushes.video.service.server import (
    MAX_PORT,
    FrameServer,
    ServerOptions,
    check_port,
    shown_address,
)
from rushes.video.service.status import fetch_status, status_text
from rushes.video.service.tokens import read_pem, read_token

log = get_logger(__name__)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 8GB, 512M or 0.

    >>> parse_bytes("8GB"), parse_bytes("1.5M"), parse_bytes("2GiB")
    (8000000000, 1500000, 2147483648)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 8GB")
    number, unit, binary = match[1], match[2].upper(), match[3]
    factor = 1024 ** list(_UNITS).index(unit) if binary else _UNITS[unit]
    return int(float(number) * factor)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Decode frames for trainers on this or other machines.",
        epilog="Trainers use it with --data.frames flight://HOST:PORT,HOST:PORT.",
    )
    add = parser.add_argument
    add("--root", help="folder of videos, manifest, folder of image folders or store to serve")
    add("--vis-format", default="auto", choices=("auto", "video", "frame", "store"))
    add("--videos-low", help="folder of the same frames at low resolution (image folders)")
    add("--backend", default="pyav", help="decoder: pyav, torchcodec, decord, opencv")
    add("--host", default="127.0.0.1", help="interface to listen on; others need a token")
    add("--port", type=int, default=8815)
    add("--metrics-port", type=int, help="port of /metrics and /healthz; default: port + 1")
    add("--workers", type=int, default=2, help="decode processes")
    add("--cache", type=parse_bytes, default=0, metavar="8GB", help="budget for decoded clips")
    add("--index-cache", help="folder that keeps packet indexes between runs")
    add("--slots", type=int, help="replies in memory at once; default: 8 a worker, at least 32")
    add("--token-file", help="file with the token that clients must send")
    add("--tls-cert", help="PEM of the certificate chain")
    add("--tls-key", help="PEM of its private key")
    add("--tls-ca", help="for --status: PEM of the authority that signed the certificate")
    add("--deadline", type=float, default=60.0, help="seconds a read may take by default")
    add("--send-timeout", type=float, default=60.0, help="seconds a client has to take a reply")
    add(
        "--memory-limit", type=parse_bytes, default=4 << 30, metavar="4GiB",
        help="private memory of one worker",
    )  # fmt: skip
    add("--status", metavar="HOST:PORT", help="print what a running server is doing, and leave")
    return parser


def main(argv: Sequence[str], program: str = "rushes serve-frames") -> int:
    """Run the command; returns the exit status.

    Raises:
        RushesError: what the user must put right.
    """
    options = _parser(program).parse_args(list(argv))
    if options.status:
        token = read_token(options.token_file) if options.token_file else None
        authority = read_pem(options.tls_ca) if options.tls_ca else None
        status = fetch_status(options.status, token, authority)
        _print(status_text(options.status, status))
        return 0
    if not options.root:
        raise ConfigError("--root: say which videos to serve")
    setup_logging()
    return serve(options)


def _print(text: str) -> None:
    try:
        # File names that are no text are shown with their bytes.
        print(text.encode(errors="backslashreplace").decode(), flush=True)  # noqa: T201
    except BrokenPipeError:
        # Whoever read has seen enough; what is still buffered must not fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _metrics_port(options: argparse.Namespace) -> int:
    if options.metrics_port is not None:
        check_port("--metrics-port", options.metrics_port)
        return int(options.metrics_port)
    check_port("--port", options.port)
    if options.port == MAX_PORT:
        raise ConfigError(f"--port {MAX_PORT}: none is left for metrics; give --metrics-port")
    return options.port + 1 if options.port else 0


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if bool(options.tls_cert) != bool(options.tls_key):
        raise ConfigError("--tls-cert and --tls-key go together")
    tls = (read_pem(options.tls_cert), read_pem(options.tls_key)) if options.tls_cert else None
    metrics = ServiceMetrics()
    spec = with_catalogue(
        options.root,
        options.vis_format,
        options.videos_low,
        options.backend,
        options.memory_limit,
        options.index_cache,
    )
    chosen = ServerOptions(
        options.host,
        options.port,
        options.workers,
        options.cache,
        read_token(options.token_file) if options.token_file else None,
        tls,
        options.slots,
        deadline=options.deadline,
        send_timeout=options.send_timeout,
    )
    port = _metrics_port(options)
    allow_many_descriptors()
    with FrameServer(spec, chosen, metrics.observe) as server:
        metrics.watch(server.status)
        endpoint = MetricsEndpoint(options.host, port, metrics, server.status)
        log.info(
            "serving %s on %s, metrics on port %d",
            options.root, shown_address(options.host, server.port), endpoint.port,
        )  # fmt: skip
        while not stop.wait(0.5):  # a wait without end may sleep through a signal
            pass
        log.info("stopping")
        endpoint.close()
        ended = server.close()
    if not ended:
        # Workers, slots and ports are given back; what is left are threads of gRPC in calls that
        # never end, for which the interpreter would wait.
        logging.shutdown()
        os._exit(0)
    return 0


def run() -> None:
    """Entry of the script: errors as one line and status 2."""
    try:
        sys.exit(main(sys.argv[1:], "serve_frames.py"))
    except RushesError as error:
        sys.exit(f"serve_frames.py: {error}")
