"""One frame server as a client sees it: how to ask it, whether it is well, how much it takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from rushes.errors import ConfigError, RushesError, ServiceError
from rushes.log import get_logger
from rushes.video.request import Request, VideoInfo
from rushes.video.service import wire
from rushes.video.service.limits import RequestLimits
from rushes.video.service.wire import Busy, Packed

log = get_logger(__name__)

Answer = TypeVar("Answer")
_OPTIONS = [
    # Reconnect soon after a restart; have a connection of our own, by which the server knows us.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]


_THREADS = 256
"""Attempts at one server that may be under way; its window lets far fewer through."""
_MARGIN = (0.05, 0.25)
"""Share of the time, and at most so many seconds, by which a server gives up before its client, so
that its verdict on a video arrives."""


class Unreachable(Exception):
    """The server is down, hangs or broke the connection; `str()` says which."""


class TimedOut(Unreachable):
    """No answer came in the time that the caller had; that alone says nothing of the server."""


class Refused(ServiceError):
    """The server wants another token or certificate."""


@dataclass(frozen=True)
class Health:
    """How a client watches its servers.

    Attributes:
        every: seconds between two looks at a server that is well.
        retry: the same for one that is not.
        timeout: seconds that a look may take.
        slow_factor: a server this many times slower than the fastest is left alone for a while.
        slow_seconds: but never one that answers within this.
        rest: seconds that a slow server is left alone.
    """

    every: float = 2.0
    retry: float = 0.5
    timeout: float = 2.0
    slow_factor: float = 5.0
    slow_seconds: float = 1.0
    rest: float = 10.0


class _Memory:
    """Makes NumPy see an Arrow buffer, writable: it was received for nobody but us."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.__array_interface__ = {
            "shape": (buffer.size,),
            "typestr": "|u1",
            "data": (buffer.address, False),
            "version": 3,
        }


class RemoteServer:
    """A connection to `host:port` and the thread that watches it.

    Args:
        address: `host:port`.
        token: sent with every call.
        tls_ca: PEM of the authority that signed the server's certificate; None speaks plainly.
        health: how it is watched.
    """

    def __init__(
        self, address: str, token: str | None, tls_ca: bytes | None, health: Health
    ) -> None:
        self.address, self.health = address, health
        self.well = True
        self.latency = 0.0
        self.resting_until = 0.0
        self._headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        scheme = "grpc+tls" if tls_ca else "grpc"
        secure = {"tls_root_certs": tls_ca} if tls_ca else {}
        try:
            self._client = flight.FlightClient(
                f"{scheme}://{address}", generic_options=_OPTIONS, **secure
            )
        except pa.ArrowException as error:
            raise ConfigError(f"frame server {address!r}: {_first_line(error)}") from error
        self._window = _Window()
        # Of its own: attempts at a server that hangs must not take the threads of the others.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"rushes-ask-{address}")
        self._stop = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, name=f"rushes-watch-{address}", daemon=True
        )

    @property
    def usable(self) -> bool:
        """Whether new requests should go here."""
        return self.well and time.monotonic() >= self.resting_until

    def start(self, attempt: Callable[[], Answer]) -> Future[Answer]:
        """Run one attempt on a thread, so that it can be left alone."""
        try:
            return self._threads.submit(attempt)
        except RuntimeError as error:
            raise ServiceError(f"the connection to {self.address} is closed") from error

    def start_watching(self) -> None:
        """From now on keep `well` up to date."""
        self._watcher.start()

    def hello(self) -> None:
        """One look: raises `Unreachable`, or `Refused` for a wrong token."""
        greeting = wire.mapping(self._action("hello", b"", self.health.timeout))
        version, window = greeting.get("version"), greeting.get("window")
        if version != wire.VERSION:
            speaks = f"speaks version {version!r:.80} of the protocol, not {wire.VERSION}"
            raise ServiceError(f"{self.address} {speaks}")
        if not isinstance(window, int) or window < 1:
            raise ServiceError(f"{self.address} is no frame server: its window is {window!r:.80}")
        self._window.resize(window)

    def fetch(self, request: Request, deadline: float) -> Packed:
        """Ask for one reply.

        Args:
            request: what is asked.
            deadline: `time.monotonic()` until which it is wanted.

        Raises:
            Unreachable: nothing is known; another server may be asked.
            Busy: the server is full.
            RushesError: what the server answered.
        """
        with self._window.entered(deadline), _translated(self.address):
            remaining = max(deadline - time.monotonic(), 0.001)
            plain = wire.encode_request(replace(request, deadline=_within(remaining)))
            ticket = flight.Ticket(wire.packb({"v": wire.VERSION, "request": plain}))
            stream = self._client.do_get(ticket, self._call(remaining + 0.5))
            packed = _received(stream)
        return packed

    def describe(self, video_id: str, deadline: float) -> VideoInfo:
        """What a video holds; raises as `fetch`."""
        remaining = max(deadline - time.monotonic(), 0.001)
        body = wire.packb({"id": video_id, "deadline": _within(remaining)})
        return wire.decode_info(self._action("describe", body, remaining + 0.5))

    def status(self, timeout: float = 5.0) -> bytes:
        """The server's status as JSON."""
        return self._action("status", b"", timeout)

    def _action(self, kind: str, body: bytes, timeout: float) -> bytes:
        with _translated(self.address):
            results = list(self._client.do_action(flight.Action(kind, body), self._call(timeout)))
            if not results:
                raise ServiceError(f"{self.address} is no frame server: {kind} gave nothing")
            answer: bytes = results[0].body.to_pybytes()
            return answer

    def _call(self, timeout: float) -> Any:
        return flight.FlightCallOptions(timeout=timeout, headers=self._headers)

    def look(self) -> None:
        """Say hello and note whether the server is well; raises only `Refused`."""
        try:
            self.hello()
        except Refused:
            raise
        except (Unreachable, RushesError) as error:
            self.note_bad(str(error))
            return
        if not self.well:
            log.info("frame server %s is back", self.address)
        self.well = True
        self._window.open()

    def note_bad(self, reason: str) -> None:
        """Avoid this server until a look finds it well."""
        if self.well:
            log.warning("frame server %s is avoided: %s", self.address, reason[:300])
        self.well = False
        self._window.shut()  # those who wait for their turn need not

    def note_latency(self, seconds: float, fastest: float) -> None:
        """Remember how long an answer took, or was waited for in vain; rest when that is far from
        the fastest server's.
        """
        self.latency = seconds if not self.latency else 0.7 * self.latency + 0.3 * seconds
        limit = max(self.health.slow_seconds, self.health.slow_factor * fastest)
        if fastest and self.latency > limit:
            log.warning(
                "frame server %s takes %.1f s a request, the fastest %.2f s: it rests %g s",
                self.address, self.latency, fastest, self.health.rest,
            )  # fmt: skip
            self.resting_until, self.latency = time.monotonic() + self.health.rest, 0.0

    def _watch(self) -> None:
        while not self._stop.wait(self.health.every if self.well else self.health.retry):
            try:
                self.look()
            except Refused as error:
                self.note_bad(str(error))

    def close(self) -> None:
        """Stop watching and close the connection."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join(self.health.timeout + 1.0)
        self._window.shut()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _within(remaining: float) -> float:
    """The seconds that a server is given out of ours."""
    share, most = _MARGIN
    return min(remaining - min(share * remaining, most), RequestLimits().max_deadline)


def _received(stream: Any) -> Packed:
    header = (stream.schema.metadata or {}).get(wire.HEADER)
    if header is None:
        raise ServiceError("this is no frame server: its reply has no header")
    data = stream.read_chunk().data
    if data.num_columns != 1 or data.schema.field(0).type != pa.uint8():
        raise ServiceError("this is no frame server: its reply is no column of bytes")
    buffer = data.column(0).buffers()[1]
    with contextlib.suppress(StopIteration):
        stream.read_chunk()  # the end, and with it the call's status
    if buffer is None or buffer.size == 0:
        return Packed(header, np.zeros(0, np.uint8))
    return Packed(header, np.asarray(_Memory(buffer)))


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    """Turn what Flight raises into `Unreachable`, `Refused` or the error that the server sent."""
    try:
        yield
    except (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError) as error:
        raise Refused(f"{address} refuses us: {_first_line(error)}") from None
    except flight.FlightServerError as error:
        if not error.extra_info:
            raise Unreachable(f"{address}: {_first_line(error)}") from None
        raise wire.decode_error(wire.unpackb(error.extra_info)) from None
    except flight.FlightTimedOutError:
        raise TimedOut(f"{address}: no answer in the time there was") from None
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise Unreachable(f"{address}: {type(error).__name__}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("gRPC client debug context")[0].strip()[:300]


class _Window:
    """How many requests we may have under way; the server says."""

    def __init__(self, size: int = 4) -> None:
        self._size, self._used, self._shut = size, 0, False
        self._changed = threading.Condition()

    def resize(self, size: int) -> None:
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._shut = False

    def shut(self) -> None:
        """Send those away who wait."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def entered(self, deadline: float) -> Iterator[None]:
        with self._changed:
            while self._used >= self._size:
                if self._shut:
                    raise Unreachable("it stopped answering")
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    raise Busy(f"{self._used} requests of ours are under way")
            self._used += 1
        try:
            yield
        finally:
            with self._changed:
                self._used -= 1
                self._changed.notify()
