"""The network server: Apache Arrow Flight in front of a worker pool.

Handlers only wait and send: a reply's payload goes from its slot to the socket as one record batch
in C++ code, without the interpreter's lock. What a reply needs besides is in the schema's metadata.

Protocol: `DoGet` of a ticket `{"v": 2, "request": ...}` (msgpack); actions `describe`
(`{"id", "deadline"}` -> a video info), `hello` (-> version, window, workers) and `status`
(-> JSON). Errors carry one of our own errors as msgpack in their extra info. A token is sent as
`authorization: Bearer ...`.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from rushes.errors import ConfigError, RushesError, ServiceError
from rushes.log import get_logger
from rushes.video.request import Request
from rushes.video.service import wire
from rushes.video.service.admission import Admission
from rushes.video.service.cache import SharedReads
from rushes.video.service.connections import disconnect_all
from rushes.video.service.intake import IntakeGuard
from rushes.video.service.limits import RequestLimits
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import WorkerSpec
from rushes.video.service.wire import Packed

log = get_logger(__name__)

PAYLOAD = pa.field("payload", pa.uint8(), nullable=False)
LOCAL_HOSTS = frozenset(("127.0.0.1", "localhost", "::1"))
MAX_PORT = 65535
MAX_MESSAGE = 1 << 20
"""Bytes of one ticket or action; the largest request that passes the limits has far fewer."""
MAX_SECONDS = 86400.0
MIN_MEMORY = 128 << 20
"""Bytes that a worker needs to start at all."""
OBSERVED = frozenset(("read", "describe"))
Observe = Callable[[str, str, float], None]
_CALLS = frozenset(
    (flight.FlightMethod.DO_GET, flight.FlightMethod.DO_ACTION, flight.FlightMethod.LIST_ACTIONS)
)
_ACTIONS = {"describe": "a video", "hello": "what a client must know", "status": "as JSON"}
_STOP_SECONDS = 5.0
"""How long calls that are hung up on may take to end."""
_STOP_PAUSE = 0.2
"""What calls that are well have to end by themselves, and then between two looks."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server listens and what it allows.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        num_workers: decode processes.
        cache_bytes: budget for decoded clips.
        token: what clients must know; needed for any host but this machine's own.
        tls: certificate chain and private key, both PEM.
        num_slots: replies in memory; None: eight a worker, at least 32.
        deadline: seconds a read may take where the request does not say.
        queue: requests of all clients that may be under way; None: eight times the slots.
        send_timeout: seconds in which a client must take a reply.
    """

    host: str = "127.0.0.1"
    port: int = 8815
    num_workers: int = 2
    cache_bytes: int = 0
    token: str | None = None
    tls: tuple[bytes, bytes] | None = None
    num_slots: int | None = None
    slot_bytes: int = 256 << 20
    deadline: float = 60.0
    queue: int | None = None
    send_timeout: float = 60.0
    limits: RequestLimits = field(default_factory=RequestLimits)

    @property
    def location(self) -> str:
        """URI to listen on."""
        return f"grpc{'+tls' if self.tls else ''}://{shown_address(self.host, self.port)}"

    def check(self) -> None:
        """Raise `ConfigError` for what must not be served or cannot be."""
        check_port("--port", self.port)
        _at_least("--workers", self.num_workers, 1)
        _at_least("--cache", self.cache_bytes, 0)
        if self.num_slots is not None:
            _at_least("--slots", self.num_slots, 1)
        for flag, seconds in (("--deadline", self.deadline), ("--send-timeout", self.send_timeout)):
            if not 0 < seconds <= MAX_SECONDS:
                raise ConfigError(f"{flag} {seconds:g}: expected more than 0, at most 86400 s")
        check_host(self.host)
        if self.host not in LOCAL_HOSTS and not self.token:
            raise ConfigError(
                f"--host {self.host}: without a token only {sorted(LOCAL_HOSTS)} are served; "
                "give --token-file"
            )
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            # gRPC would share a taken port with the server that has it, silently.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                where = shown_address(self.host, self.port)
                raise ConfigError(f"cannot listen on {where}: {error}") from error


def check_host(host: str) -> None:
    """Raise `ConfigError` for a text that is no host; whether it is one of ours, binding tells.

    gRPC does not know the short forms of IPv4 that the system's resolver takes, and takes an empty
    host for a mistake of the program: both it tells in words of its own.
    """
    if not host.strip():
        raise ConfigError(f"--host {host!r}: expected an address or a name of this machine")
    try:
        host.encode("idna")
        if re.fullmatch(r"(.*\.)?(\d+|0[xX][0-9a-fA-F]*)", host):  # ends in a number: no name
            ip_address(host)
    except ValueError as error:
        raise ConfigError(f"--host {host!r:.300}: no address and no name: {error}") from None


def check_port(flag: str, port: int) -> None:
    """Raise `ConfigError` for a number that is no port."""
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"{flag} {port}: a port is 0 to {MAX_PORT}")


def shown_address(host: str, port: int) -> str:
    """`host:port` as clients are to write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _at_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{flag} {value}: at least {least}")


class _TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses every call without the token before a handler sees it.

    By then gRPC has received the whole message; what that may cost is `IntakeGuard`'s to bound.
    """

    def __init__(self, token: str, refused: Callable[[], None]) -> None:
        self._expected = f"Bearer {token}".encode()
        self._refused = refused

    def start_call(self, _info: Any, headers: dict[str, list[str]]) -> None:
        given = (headers.get("authorization") or [""])[0]
        if not hmac.compare_digest(given.encode(), self._expected):
            self._refused()
            raise flight.FlightUnauthenticatedError("no token or a wrong one")


class _OnlyOurs(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses the calls that this server does not have before anything is waited for.

    Flight's own refusal of DoPut and DoExchange comes after their first message, which need never
    come; until then each would hold a thread.
    """

    def start_call(self, info: Any, _headers: dict[str, list[str]]) -> None:
        if info.method not in _CALLS:
            raise NotImplementedError(f"no call {info.method.name}; known: DoGet, DoAction")


class FrameServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves one catalogue until `close`.

    Args:
        spec: how decode workers are started; they know the catalogue.
        options: see `ServerOptions`.
        observe: gets kind (read, describe), outcome and seconds of every call.

    Raises:
        ConfigError: no token for an open interface, or a taken port.
    """

    def __init__(
        self, spec: WorkerSpec, options: ServerOptions, observe: Observe | None = None
    ) -> None:
        options.check()
        if spec.memory_limit:
            _at_least("--memory-limit", spec.memory_limit, MIN_MEMORY)
        self.options, self.started = options, time.time()
        slots = options.num_slots or max(32, 8 * options.num_workers)
        self.admission = Admission(
            options.queue or 8 * slots, max(2, slots // 2), options.send_timeout
        )
        self.pool = PoolReader(
            spec,
            options.num_workers,
            num_slots=slots,
            slot_bytes=options.slot_bytes,
            deadline=options.deadline,
            patience=None,
            limits=options.limits,
        )
        self.counters = self.pool.counters
        self.shared = SharedReads(options.cache_bytes, self.counters, self.pool.names.known_as)
        self._observe = observe
        # Complete before the base class begins to listen: calls may come at once.
        self._intake = IntakeGuard(
            lambda: self.shared.cache.nbytes, lambda cut: self.counters.add(disconnected=cut)
        )
        self._closing, self._ended = threading.Event(), True
        middleware: dict[str, Any] = {"calls": _OnlyOurs()}
        if options.token:
            middleware["token"] = _TokenCheck(
                options.token, lambda: self.counters.add(unauthenticated=1)
            )
        certificates = {"tls_certificates": [options.tls]} if options.tls else {}
        try:
            super().__init__(options.location, middleware=middleware, **certificates)
        except (pa.ArrowException, OSError) as error:
            self.pool.close()
            self._intake.close()
            raise ConfigError(f"cannot serve {options.location}: {error}") from error
        self._intake.watch(self.port)
        self._reaper = threading.Thread(target=self._reap, name="rushes-reaper", daemon=True)
        self._reaper.start()

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Stream one reply."""
        with self._observed("read"):
            return self._read(context, ticket.ticket)

    @contextmanager
    def _observed(self, kind: str) -> Iterator[None]:
        """Times a call and turns our errors into those that Flight sends."""
        started, outcome = time.monotonic(), "ok"
        try:
            yield
        except RushesError as error:
            outcome = _outcome(error)
            raise _as_flight(error) from None
        finally:
            if self._observe is not None and kind in OBSERVED:
                self._observe(kind, outcome, time.monotonic() - started)

    def _read(self, context: Any, ticket: bytes) -> Any:
        peer = context.peer()
        self._intake.accepted(peer)
        request = self._decoded(ticket)
        self.options.limits.check(request)
        allowed = self.options.deadline if request.deadline is None else request.deadline

        def decode(wanted: Request) -> Packed:
            return self.pool.read_packed(wanted, context.is_cancelled)

        with self.admission.admitted(peer):
            packed = self.shared.read(request, decode, allowed)
            self.counters.add(bytes_sent=packed.payload.nbytes)
            return self._stream(peer, packed)

    @staticmethod
    def _decoded(ticket: bytes) -> Request:
        _check_message(ticket)
        plain = wire.mapping(ticket)
        if plain.get("v") != wire.VERSION:
            raise ServiceError(f"this server speaks version {wire.VERSION} of the protocol")
        return wire.decode_request(plain.get("request"))

    def _stream(self, peer: str, packed: Packed) -> Any:
        view = self.admission.sending(peer, packed.payload)
        column = pa.UInt8Array.from_buffers(pa.uint8(), view.size, [None, pa.py_buffer(view)])
        schema = pa.schema([PAYLOAD], metadata={wire.HEADER: packed.header})
        batch = pa.record_batch([column], schema=schema)
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, [batch]))

    def do_action(self, context: Any, action: Any) -> Any:
        """`describe`, `hello`, `status`."""
        with self._observed(action.type):
            return [self._act(context.peer(), action.type, action.body)]

    def list_actions(self, _context: Any) -> Any:
        """What `do_action` knows."""
        return list(_ACTIONS.items())

    def _act(self, peer: str, kind: str, body: Any) -> bytes:
        self._intake.accepted(peer)
        _check_message(body)
        if kind == "hello":
            known = {
                "version": wire.VERSION,
                "window": self.admission.window,
                "workers": self.options.num_workers,
            }
            return wire.packb(known)
        if kind == "status":
            return json.dumps(self.status()).encode()
        if kind == "describe":
            plain = {"outputs": (), "policy": "strict", "fixed": False}
            asked = wire.decode_request({**plain, **wire.mapping(body.to_pybytes())})
            self.options.limits.check(asked)
            with self.admission.admitted(peer):
                return wire.encode_info(self.pool.describe(asked.video_id, asked.deadline))
        raise ServiceError(f"no action {kind[:80]!r}; known: describe, hello, status")

    def status(self) -> dict[str, Any]:
        """What the server is doing, in plain values."""
        waiting, sending = self.admission.under_way()
        return {
            "version": wire.VERSION,
            "uptime_seconds": round(time.time() - self.started, 3),
            "pid": os.getpid(),
            "workers": self.pool.worker_pids(),
            "requests_waiting": waiting,
            "replies_being_sent": sending,
            "queue_depth": len(self.pool.jobs),
            "slots": self.pool.slots.num_slots,
            "slots_free": self.pool.slots.num_free,
            "cache_bytes": self.shared.cache.nbytes,
            "cache_budget": self.shared.cache.budget,
            "cached_clips": len(self.shared.cache),
            "quarantined": self.pool.quarantine.videos(),
            "counters": self.counters.get(),
        }

    def _reap(self) -> None:
        while not self._closing.wait(min(1.0, self.options.send_timeout / 4)):
            self.counters.add(disconnected=len(self.admission.disconnect_slow()))

    def close(self) -> bool:
        """Stop listening, fail what waits, kill the workers.

        Returns:
            Whether every call has ended; if not, gRPC holds threads that keep a process from
            ending by itself.
        """
        if not self._closing.is_set():
            self._closing.set()
            stopping = threading.Thread(target=self.shutdown, name="rushes-shutdown", daemon=True)
            self.pool.close()
            stopping.start()
            # gRPC waits for every open call, and one that sends nothing would never end.
            until = time.monotonic() + _STOP_SECONDS
            stopping.join(_STOP_PAUSE)
            while stopping.is_alive() and time.monotonic() < until:
                disconnect_all(self.port)
                stopping.join(_STOP_PAUSE)
            self._intake.close()
            self._ended = not stopping.is_alive()
            if not self._ended:
                log.warning("calls that do not end are left behind after %g s", _STOP_SECONDS)
        return self._ended

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_message(message: Any) -> None:
    size = len(message) if isinstance(message, bytes) else message.size
    if size > MAX_MESSAGE:
        raise ServiceError(f"a message of {size} bytes, at most {MAX_MESSAGE}")


def _outcome(error: RushesError) -> str:
    return "busy" if isinstance(error, wire.Busy) else str(getattr(error, "reason", "service"))


def _as_flight(error: RushesError) -> Exception:
    text = str(error)[:1000].encode("ascii", "replace").decode()
    failed: Exception = flight.FlightServerError(
        text, extra_info=wire.packb(wire.encode_error(error))
    )
    return failed
