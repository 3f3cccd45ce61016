"""`rushes serve-frames --status HOST:PORT`: what a running server is doing, for a person."""

from __future__ import annotations

import json
from typing import Any

from rushes.errors import ServiceError
from rushes.video.service import wire
from rushes.video.service.client import check_address
from rushes.video.service.remote import Health, RemoteServer, Unreachable


def fetch_status(
    address: str, token: str | None = None, tls_ca: bytes | None = None
) -> dict[str, Any]:
    """The status of the server at `host:port`; raises `ServiceError` if it does not answer."""
    check_address(address)
    server = RemoteServer(address, token, tls_ca, Health())
    try:
        status = json.loads(server.status())
    except Unreachable as error:
        raise ServiceError(str(error)) from error
    except ValueError as error:
        raise ServiceError(f"{address} is no frame server: {error}") from error
    finally:
        server.close()
    version = status.get("version") if isinstance(status, dict) else None
    if version != wire.VERSION:
        raise ServiceError(f"{address} speaks version {version!r:.80}, not {wire.VERSION}")
    return dict(status)


def status_text(address: str, status: dict[str, Any]) -> str:
    """A few lines that a person reads at a glance."""
    counters = status["counters"]
    decoded, returned = counters.get("frames_decoded", 0), counters.get("frames_returned", 0)
    hits, misses = counters.get("cache_hits", 0), counters.get("cache_misses", 0)
    errors = {k[6:]: v for k, v in sorted(counters.items()) if k.startswith("error_")}
    efficiency = f"{decoded / returned:.1f}" if returned else "-"
    hit_share = f"{hits / (hits + misses):.0%}" if hits + misses else "-"
    lines = [
        f"{address}: up {status['uptime_seconds']:.0f} s, {len(status['workers'])} workers,"
        f" {counters.get('restarts', 0)} restarts",
        f"requests   {counters.get('reads', 0)} decoded, {status['requests_waiting']} under way,"
        f" {status['queue_depth']} queued, {status['replies_being_sent']} being sent",
        f"frames     {decoded} decoded for {returned} returned ({efficiency} each)",
        f"slots      {status['slots_free']} of {status['slots']} free",
        f"cache      {status['cache_bytes'] / 1e6:.0f} of {status['cache_budget'] / 1e6:.0f} MB,"
        f" {status['cached_clips']} clips, hits {hit_share},"
        f" {counters.get('coalesced', 0)} shared",
        "errors     " + (", ".join(f"{k} {v}" for k, v in errors.items()) or "none"),
    ]
    lines += [f"quarantined {video}: {why}" for video, why in status["quarantined"].items()]
    return "\n".join(lines)
