"""The client: many servers behind one `read`, each video with a home, none of them indispensable.

Videos are spread over the servers by rendezvous hashing, so that a server keeps seeing the videos
that it has cached, and losing one moves only its own. Where a server is down, hangs or is slow the
request goes to the next in the video's order, then to local decoding if the files are at hand.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from hashlib import blake2b

from rushes.errors import ConfigError, DecodeTimeout, MissingVideo, RushesError, ServiceError
from rushes.log import get_logger
from rushes.video.asked import check_id, checked
from rushes.video.request import Reply, Request, VideoInfo, check_deadline
from rushes.video.service import wire
from rushes.video.service.cache import SharedReads
from rushes.video.service.jobs import Counters
from rushes.video.service.pool import PoolReader
from rushes.video.service.remote import (
    Answer,
    Health,
    Refused,
    RemoteServer,
    TimedOut,
    Unreachable,
)
from rushes.video.service.wire import Busy, NotARequest, Packed

log = get_logger(__name__)

_TICK = 0.1
_BACKOFF = (0.02, 0.5)
"""First and longest wait, in seconds, before full servers are asked again."""
_THREADS = 256
"""Submitted reads that are worked on at once; more wait for these."""


def home_order(video_id: str, addresses: Sequence[str]) -> list[str]:
    """Addresses in the order in which a video is asked of them (rendezvous hashing).

    >>> home_order("v1", ["a:1", "b:1"]) == home_order("v1", ["b:1", "a:1"])
    True
    """
    return sorted(
        addresses,
        key=lambda address: blake2b(
            f"{address}\0{video_id}".encode(errors="surrogatepass"), digest_size=8
        ).digest(),
    )


class ServiceReader:
    """Reads from frame servers; every method may be called from many threads.

    Args:
        addresses: `host:port` of each server.
        deadline: seconds a read may take where the request does not say.
        cache_bytes: budget for clips kept on this side.
        token: known to the servers.
        tls_ca: PEM of the authority that signed their certificates; None speaks plainly.
        fallback: opens a local pool when it is first needed; None where the files are not here.
        health: how the servers are watched.

    Raises:
        ConfigError: no address, or one that is not `host:port`.
        ServiceError: a server wants another token.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        deadline: float = 60.0,
        cache_bytes: int = 0,
        token: str | None = None,
        tls_ca: bytes | None = None,
        fallback: Callable[[], PoolReader] | None = None,
        health: Health | None = None,
    ) -> None:
        check_deadline(deadline, "a client")
        for address in addresses:
            check_address(address)
        if not addresses:
            raise ConfigError("frames: flight:// names no server")
        self.deadline = deadline
        self.counters = Counters()
        self.shared = SharedReads(cache_bytes, self.counters) if cache_bytes else None
        self._open_fallback = fallback
        self._fallback: Future[PoolReader | None] | None = None
        self._fallback_lock = threading.Lock()
        watch = health or Health()
        self.servers = {a: RemoteServer(a, token, tls_ca, watch) for a in addresses}
        # Attempts run on the servers' own threads: were they here, a full pool of reads would
        # wait for ever for attempts that wait for a thread.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="rushes-fetch")
        try:
            self._look_at_all()
        except Refused:
            self.close()
            raise

    def _look_at_all(self) -> None:
        looks = [server.start(server.look) for server in self.servers.values()]
        for look in looks:
            look.result()
        for server in self.servers.values():
            server.start_watching()

    def submit(self, request: Request) -> Future[Reply]:
        """Start a read; its time runs from now on, also while it waits for others."""
        request = checked(request)
        allowed = self.deadline if request.deadline is None else request.deadline
        return self._threads.submit(self._read_until, request, time.monotonic() + allowed, allowed)

    def _read_until(self, request: Request, until: float, allowed: float) -> Reply:
        remaining = until - time.monotonic()
        if remaining <= 0:
            detail = f"waited behind other reads; the deadline was {allowed:g} s"
            raise DecodeTimeout(request.video_id, detail)
        return self._read(dataclasses.replace(request, deadline=remaining))

    def read(self, request: Request) -> Reply:
        """The named arrays, the same to the bit as those of a local reader.

        Raises:
            ConfigError: the request means nothing.
            VideoError: what the decoding side said of the video.
            ServiceError: no server answered within the deadline and the files are not here.
        """
        return self._read(checked(request))

    def _read(self, request: Request) -> Reply:
        allowed = self.deadline if request.deadline is None else request.deadline
        if self.shared is None or not request.fixed:
            return wire.unpack(self._read_packed(request))
        return wire.unpack(self.shared.read(request, self._read_packed, allowed))

    def _read_packed(self, request: Request) -> Packed:
        allowed = self.deadline if request.deadline is None else request.deadline
        hunt = _Hunt(self, request.video_id, allowed)
        return hunt.run(
            lambda server: server.fetch(request, hunt.deadline),
            lambda pool, left: pool.read_packed(dataclasses.replace(request, deadline=left)),
        )

    def describe(self, video_id: str) -> VideoInfo:
        """What a video holds, found by the server that would decode it."""
        check_id(video_id)
        hunt = _Hunt(self, video_id, self.deadline)
        return hunt.run(
            lambda server: server.describe(video_id, hunt.deadline),
            lambda pool, left: pool.describe(video_id, left),
        )

    def start(self, ask: Callable[[RemoteServer], Answer], server: RemoteServer) -> Future[Answer]:
        """Run one attempt on a thread of its own, so that it can be left alone."""
        return server.start(lambda: self._attempt(ask, server))

    def _attempt(self, ask: Callable[[RemoteServer], Answer], server: RemoteServer) -> Answer:
        started = time.monotonic()
        answer = ask(server)
        self.note_latency(server, time.monotonic() - started)
        return answer

    def note_latency(self, server: RemoteServer, seconds: float) -> None:
        """Hold how long a server took against the fastest of the others."""
        others = [s.latency for s in self.servers.values() if s is not server and s.latency]
        server.note_latency(seconds, min(others, default=0.0))

    def fallback(self, timeout: float) -> PoolReader | None:
        """The local pool, which the first who needs it has opened; None where there is none, or
        none yet after `timeout` s.
        """
        with self._fallback_lock:
            make = self._open_fallback
            if make is None:
                return None
            if self._fallback is None:
                log.warning("no frame server answers: decoding locally")
                self._fallback = Future()
                # Beside the callers, whose deadlines may pass before workers have started.
                name = "rushes-fallback"
                threading.Thread(
                    target=self._open, args=(make, self._fallback), name=name, daemon=True
                ).start()
            opened = self._fallback
        try:
            return opened.result(max(timeout, 0.0))
        except FutureTimeout:
            return None

    @staticmethod
    def _open(make: Callable[[], PoolReader], opened: Future[PoolReader | None]) -> None:
        try:
            opened.set_result(make())
        except RushesError as error:
            log.warning("local decoding is not possible: %s", error)
            opened.set_result(None)

    def close(self) -> None:
        """Close the connections and the local pool."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for server in self.servers.values():
            server.close()
        with self._fallback_lock:
            opened, self._open_fallback = self._fallback, None
        if opened is not None:
            opened.add_done_callback(_close_pool)

    def __enter__(self) -> ServiceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_pool(opened: Future[PoolReader | None]) -> None:
    pool = opened.result()
    if pool is not None:
        pool.close()


class _Hunt:
    """The search for one answer: servers in the video's order, then locally, until a deadline."""

    def __init__(self, reader: ServiceReader, video_id: str, allowed: float) -> None:
        self.reader, self.video_id, self.allowed = reader, video_id, allowed
        self.deadline = time.monotonic() + allowed
        self._second_at = time.monotonic() + allowed / 2
        self._problems: dict[str, str] = {}
        self._missing: MissingVideo | None = None
        self._refused: Refused | None = None
        self._full = self._slow = False
        self._backoff = _BACKOFF[0]

    def run(
        self,
        ask: Callable[[RemoteServer], Answer],
        locally: Callable[[PoolReader, float], Answer],
    ) -> Answer:
        """The first answer; raises what the video deserves or `ServiceError`.

        Args:
            ask: of one server.
            locally: of the local pool, in the seconds that are left.
        """
        while True:
            found = self._round(ask)
            if found is not None:
                return found
            remaining = self.deadline - time.monotonic()
            # Full servers are waited for: decoding here would take the trainer's cores.
            if not (self._full and remaining > self.allowed / 2):
                pool = self.reader.fallback(remaining)
                remaining = self.deadline - time.monotonic()  # opening the pool takes a moment
                if pool is not None and remaining > 0:
                    self.reader.counters.add(fallbacks=1)
                    return locally(pool, remaining)
            if self._missing is not None:
                raise self._missing
            if self._refused is not None:
                raise self._refused
            if remaining <= self._backoff:
                if self._slow:  # somebody is there and works on it: the video's fault, if any
                    raise DecodeTimeout(self.video_id, self._report())
                raise ServiceError(f"{self.video_id}: {self._report()}")
            time.sleep(self._backoff)
            self._backoff = min(2 * self._backoff, _BACKOFF[1])

    def _round(self, ask: Callable[[RemoteServer], Answer]) -> Answer | None:
        """Ask every usable server once; None when none of them had an answer."""
        self._full, self._missing, self._refused = False, None, None
        waiting = self._servers()
        underway: dict[Future[Answer], RemoteServer] = {}
        started = time.monotonic()
        while time.monotonic() < self.deadline:
            if not underway or (time.monotonic() > self._second_at and len(underway) == 1):
                server = next(waiting, None)
                if server is not None:
                    underway[self.reader.start(ask, server)] = server
                elif not underway:
                    return None
            done, _ = wait(underway, _TICK, FIRST_COMPLETED)
            for future in done:
                answer = self._judged(future, underway.pop(future))
                if answer is not None:
                    return answer
            for future, server in list(underway.items()):
                if not server.well:
                    self._problems[server.address] = "stopped answering"
                    future.cancel()
                    del underway[future]
        for future, server in underway.items():
            future.cancel()
            self._too_slow(server, time.monotonic() - started)
        return None

    def _too_slow(self, server: RemoteServer, seconds: float) -> None:
        """A server let our time pass: whether it is well the watcher finds out, not our hurry."""
        self._problems[server.address] = f"no answer in {seconds:.3g} s"
        self._slow |= server.well
        if seconds > server.latency:
            self.reader.note_latency(server, seconds)

    def _servers(self) -> Iterator[RemoteServer]:
        servers = self.reader.servers
        order = [servers[address] for address in home_order(self.video_id, list(servers))]
        yield from (server for server in order if server.usable)
        yield from (server for server in order if server.well and not server.usable)  # resting
        for server in order:
            if not server.well:
                self._problems.setdefault(server.address, "not reachable")

    def _judged(self, future: Future[Answer], server: RemoteServer) -> Answer | None:
        try:
            return future.result()
        except TimedOut:
            self._too_slow(server, self.allowed)
        except Unreachable as error:
            self._problems[server.address] = str(error)
            server.note_bad(str(error))
        except Busy as error:
            self._problems[server.address] = f"full: {error}"
            self._full = True
            self.reader.counters.add(refused_busy=1)
        except MissingVideo as error:
            self._missing = error
        except Refused as error:  # it may have begun anew with another token: the others first
            self._problems[server.address] = str(error)
            server.note_bad(str(error))
            self._refused = error
        except NotARequest:
            raise
        except ServiceError as error:
            self._problems[server.address] = str(error)
        return None

    def _report(self) -> str:
        tried = "; ".join(f"{address}: {what}" for address, what in self._problems.items())
        return f"no frame server answered within {self.allowed:g} s ({tried})"


def check_address(address: str) -> None:
    """Raise `ConfigError` for what is no `host:port`."""
    host, _, port = address.rpartition(":")
    bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not host or bare or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"frame server {address!r}: expected host:port, port 1 to 65535, IPv6 as [::1]:port"
        )
