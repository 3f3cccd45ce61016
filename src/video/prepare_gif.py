"""gif2mp4.py: animated GIF, WebP and PNG into MP4 files, every frame at its time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rushes.errors import ConfigError, VideoError
from rushes.video.catalogue import Catalogue, Source
from rushes.video.jobs import add_published_options, add_run_options, folders_of
from rushes.video.prepare import add_encoding_options, compress_all, settings_of
from rushes.video.transcode import gif_to_mp4

ENDINGS = (".gif", ".webp", ".png", ".apng")


def main(argv: Sequence[str] | None = None) -> int:
    """Make an MP4 of every animation of a folder."""
    parser = argparse.ArgumentParser(prog="gif2mp4.py", description=main.__doc__)
    parser.add_argument("input", nargs="?", type=Path, help="folder of animations")
    parser.add_argument("output", nargs="?", type=Path, help="folder of the results")
    add_encoding_options(parser)
    add_published_options(parser)
    add_run_options(parser)
    options = parser.parse_args(argv)
    source, target = folders_of(options)
    catalogue = Catalogue(source, animations(source))
    return compress_all(catalogue, target, settings_of(options, None), options, gif_to_mp4)


def animations(folder: Path) -> dict[str, Source | VideoError]:
    """Every animation below a folder, good or bad; the id is the path without its ending.

    Raises:
        ConfigError: no such folder, or two files of one id.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    found: dict[str, Source | VideoError] = {}
    paths: dict[str, Path] = {}
    for entry in Catalogue(folder, None).inventory(ENDINGS):
        path = Path(entry.video_id if isinstance(entry, Source) else entry.video)
        if path.name.startswith(".") or (path.is_dir() and not path.is_symlink()):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ConfigError(f"{path} and {paths[name]} would both become {name}.mp4")
        paths[name] = path
        found[name] = replace(entry, video_id=name) if isinstance(entry, Source) else entry
    return found
