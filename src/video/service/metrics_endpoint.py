"""`/metrics` for Prometheus and `/healthz` for whoever restarts servers."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from rushes.errors import ConfigError
from rushes.log import get_logger

log = get_logger(__name__)

_THREADS = 16
"""Requests that are answered at once; whoever comes beyond is hung up on."""

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
_COUNTERS = {
    "frames_decoded": "Frames decoded to serve what was asked",
    "frames_returned": "Frames asked for and returned",
    "bytes_sent": "Bytes of payload sent",
    "cache_hits": "Replies taken from the cache",
    "cache_misses": "Replies that the cache did not have",
    "coalesced": "Requests that shared another's decode",
    "restarts": "Decode workers replaced",
    "unauthenticated": "Calls refused for their token",
    "disconnected": "Clients cut off because they did not read",
}
_GAUGES = {
    "queue_depth": "Requests that wait for a worker",
    "requests_waiting": "Requests under way",
    "replies_being_sent": "Replies that their client has not taken yet",
    "slots": "Shared-memory slots",
    "slots_free": "Shared-memory slots that nobody holds",
    "cache_bytes": "Bytes of decoded clips kept",
    "cached_clips": "Decoded clips kept",
    "uptime_seconds": "Seconds since the start",
}
Status = Callable[[], dict[str, Any]]


class ServiceMetrics:
    """Everything that a server tells Prometheus; names begin with `rushes_frames_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._latency = Histogram(
            "rushes_frames_request_seconds",
            "Seconds from a request's arrival to the start of its reply",
            ["call", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def observe(self, call: str, outcome: str, seconds: float) -> None:
        """One call that ended; its count is the histogram's own."""
        self._latency.labels(call, outcome).observe(seconds)

    def watch(self, status: Status) -> None:
        """Report the counts of a server whenever they are scraped."""
        self.registry.register(_StatusCollector(status))

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return bytes(generate_latest(self.registry))


class _StatusCollector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        counters = status["counters"]
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"rushes_frames_{name}", text, counters.get(name, 0))
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"rushes_frames_{name}", text, status[name])
        yield GaugeMetricFamily(
            "rushes_frames_quarantined_videos",
            "Videos not tried again because they killed workers",
            len(status["quarantined"]),
        )
        yield GaugeMetricFamily(
            "rushes_frames_workers", "Decode workers that run", len(status["workers"])
        )
        returned = counters.get("frames_returned", 0)
        yield GaugeMetricFamily(
            "rushes_frames_decoded_per_returned",
            "Frames decoded for each frame returned, since the start",
            counters.get("frames_decoded", 0) / returned if returned else 0.0,
        )


class MetricsEndpoint:
    """An HTTP server on a thread of its own.

    Args:
        host, port: where to listen; port 0 takes a free one.
        metrics: what `/metrics` shows.
        status: asked by `/healthz`, which is 503 while no worker runs.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, host: str, port: int, metrics: ServiceMetrics, status: Status) -> None:
        kind = _HTTPServer6 if ":" in host else _HTTPServer
        try:
            self._server = kind((host, port), _handler(metrics, status))
        except OSError as error:
            raise ConfigError(f"cannot serve metrics on {host} port {port}: {error}") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="rushes-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


class _HTTPServer(ThreadingHTTPServer):
    """Bounded threads, and a word for strangers even where every descriptor is taken."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(_THREADS)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or self._spare < 0:
                raise
        os.close(self._spare)
        self._spare = -1
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)  # who scrapes asks again
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()
            with contextlib.suppress(OSError):
                if self._spare < 0:
                    self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def handle_error(self, _request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):  # they went away: no news
            log.warning("metrics for %s: %r", client_address, error)

    def server_close(self) -> None:
        super().server_close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1


class _HTTPServer6(_HTTPServer):
    address_family = socket.AF_INET6


def _handler(metrics: ServiceMetrics, status: Status) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds that one connection may take for its request

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, metrics.text())
            elif path == "/healthz":
                alive = len(status()["workers"])
                code, text = (200, "ok") if alive else (503, "no decode worker runs")
                self._answer(code, "text/plain; charset=utf-8", f"{text}\n".encode())
            else:
                self._answer(404, "text/plain; charset=utf-8", b"/metrics and /healthz\n")

        do_HEAD = do_GET

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    return Handler
