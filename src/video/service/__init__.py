"""The frame decoding service: worker pool, server and client behind `read(Request) -> Reply`.

Importing this package is cheap: decode workers do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rushes.errors import ConfigError

if TYPE_CHECKING:
    from rushes.video.service.client import ServiceReader
    from rushes.video.service.pool import PoolReader
    from rushes.video.service.process import WorkerSpec

FLIGHT = "flight://"


def open_service_reader(
    frames: str,
    catalogue_path: str | Path,
    vis_format: str = "auto",
    videos_low: str | Path | None = None,
    *,
    backend: str = "pyav",
    num_workers: int = 2,
    deadline: float = 60.0,
    cache_bytes: int = 0,
    token_file: str | Path | None = None,
    tls_ca: str | Path | None = None,
    index_cache: str | Path | None = None,
    spec: WorkerSpec | None = None,
) -> PoolReader | ServiceReader:
    """A reader that decodes in other processes, here or elsewhere; safe for many threads.

    Args:
        frames: "local", or "flight://host:port,host:port".
        catalogue_path: as for `open_catalogue`; for flight:// the place to decode from when no
            server answers, which need not exist here.
        vis_format, videos_low, backend: as for `open_catalogue` and `open_reader`.
        num_workers: decode processes of the local pool.
        deadline: seconds a read may take where the request does not say.
        cache_bytes: budget for decoded clips, for evaluation, which asks for the same ones again.
        token_file: file with the token of the servers.
        tls_ca: PEM file of the authority that signed the servers' certificates; for flight://
            it also says that they speak TLS.
        index_cache: folder that keeps packet indexes between runs.
        spec: how workers are started, instead of with a catalogue.

    Raises:
        ConfigError: `frames` is neither, the deadline is no time, or a token or certificate file
            cannot be read.
        ServiceError: a server wants another token.
        StorageError: there is nothing at `catalogue_path` ("local").
    """
    from rushes.video.request import check_deadline
    from rushes.video.service.pool import PoolReader
    from rushes.video.service.process import with_catalogue

    check_deadline(deadline, "a service")
    chosen = spec or with_catalogue(
        catalogue_path, vis_format, videos_low, backend, index_cache=index_cache
    )
    if frames == "local":
        return PoolReader(chosen, num_workers, deadline=deadline, cache_bytes=cache_bytes)
    if not frames.startswith(FLIGHT):
        raise ConfigError(f"frames: {frames!r}; known: inprocess, local, {FLIGHT}host:port,...")
    from rushes.video.service.client import ServiceReader
    from rushes.video.service.tokens import read_pem, read_token

    here = spec is not None or Path(catalogue_path).exists()
    return ServiceReader(
        [address.strip() for address in frames.removeprefix(FLIGHT).split(",") if address.strip()],
        deadline=deadline,
        cache_bytes=cache_bytes,
        token=read_token(token_file) if token_file else None,
        tls_ca=read_pem(tls_ca) if tls_ca else None,
        fallback=(lambda: PoolReader(chosen, num_workers, deadline=deadline)) if here else None,
    )
