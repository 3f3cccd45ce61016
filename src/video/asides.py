"""Files and folders written aside: what bears its own name is whole, what was torn is found again.

A name aside tells host, process and thread, so that machines on one shared disk never write into
each other's, and the next run knows whose are left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rushes.errors import ConfigError

WHOLE_FOLDER = "frames.json"
"""A folder that holds this is a finished dump of pictures: nothing in it is torn."""

_NAME_BYTES = 255
"""Bytes that file systems allow a name."""


def aside_of(target: Path) -> Path:
    """A hidden path beside `target` that no other thread, process or machine uses."""
    mine = f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.part"
    # A thread writes one file of a folder at a time, so the front of a long name is enough.
    front = os.fsencode(target.name)[: _NAME_BYTES - 1 - len(os.fsencode(mine))]
    return target.with_name(f".{os.fsdecode(front)}{mine}")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` that takes its name when the block ends well, and goes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(target)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def require_folder(folder: Path) -> None:
    """Make a folder for results, or raise `ConfigError` at once where none can be written."""
    probe = aside_of(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to: {error.strerror}") from error


def require_file(path: Path) -> None:
    """As `require_folder` for a file; what it holds stays."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a file")
    if path.exists() and not path.is_file():
        return  # a device or a pipe takes what comes
    known = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if not known:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to: {error.strerror}") from error


def remove_torn(root: Path) -> int:
    """Remove files and folders that killed runs left aside; those of living processes and of other
    machines stay.
    """
    torn = re.compile(rf"\..*\.{re.escape(socket.gethostname())}-(\d+)-\d+\.part")
    removed = 0
    for place, folders, files in os.walk(root):
        for name in (*files, *folders):
            found = torn.fullmatch(name)
            if found and not _alive(int(found[1])):
                _remove(Path(place, name))
                removed += 1
        # Finished dumps hold thousands of pictures each, and hidden folders are someone's aside.
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not Path(place, name, WHOLE_FOLDER).exists()
        ]
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
