"""The token file and the PEM files of the frame service."""

from __future__ import annotations

from pathlib import Path

from rushes.errors import ConfigError


def read_token(path: str | Path) -> str:
    """The token in a file, without the white space around it; raises `ConfigError` if empty."""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no token can be read: {error}") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"{path}: holds no token of printable characters without blanks")
    return token


def read_pem(path: str | Path) -> bytes:
    """A PEM file; raises `ConfigError` if it cannot be read or is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from error
    if b"-----BEGIN" not in data:
        raise ConfigError(f"{path}: no PEM file")
    return data
