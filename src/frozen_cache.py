"""Frozen towers run once: `train.cache_frozen: K` keeps K views a video as features.

A view is what one visit shows of a stretch of video: its clips at drawn times and crops. With the
video tower frozen, an epoch e of training shows view e mod K, and its tokens come from features on
disk in place of pixels. What lies there depends on the tower's weights, geometry and sampling, so
their hash names the folder; an interrupted encoding goes on after its last whole part. Why a view
could not be encoded is kept beside the features, and is what its samples fail with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from rushes.checkpoint import write_atomically
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch, Ragged
from rushes.datasets.collate import BadVideo, collate
from rushes.datasets.loader import TrainLoader
from rushes.datasets.samples import VideoTextDataset
from rushes.distributed import World
from rushes.embeddings import EmbeddingWriter, Rows, parts_of
from rushes.errors import ConfigError, StorageError, VideoError, VideoReason
from rushes.log import get_logger
from rushes.modeling.model import FROZEN_VIDEO, VideoTextModel
from rushes.steps import mixed_seed, resolve_precision

logger = get_logger(__name__)

TOKENS = "video_token"
GRID = "grid.json"
FAILED = "failed.json"
_PART = 128
_Slot = tuple[VideoTextDataset, int, int, str]


def cache_frozen(
    loader: TrainLoader,
    model: VideoTextModel,
    config: RunConfig,
    world: World,
    run_folder: Path,
) -> FrozenLoader:
    """Encode what is not encoded yet, and a loader that hands out features in place of pixels.

    Raises:
        ConfigError: the video tower trains, or what it sees depends on more than the view.
        StorageError: not one view could be encoded.
    """
    check_cacheable(model, config)
    for dataset in loader.datasets:
        dataset.draws, dataset.stored = config.train.cache_frozen, None
    folder = run_folder / "frozen_clips" / fingerprint(model, config)
    grid = encode_all(loader.datasets, model, config, world, folder)
    store = FrozenStore(folder)
    if not len(store):
        detail, reason = next(iter(store.failed.values()), ["no views", "missing"])
        raise StorageError(
            f"{folder}: none of {len(store.failed)} views could be encoded; the first: {detail} "
            f"[{reason}]"
        )
    for dataset in loader.datasets:
        dataset.stored = store
    model.frozen_grid = grid
    return FrozenLoader(loader, store)


def check_cacheable(model: VideoTextModel, config: RunConfig) -> None:
    """Refuse a run whose video features are not the same at each visit of a view.

    Raises:
        ConfigError: the video tower trains, or what it sees depends on more than the view.
    """
    if any(parameter.requires_grad for parameter in model.video.parameters()):
        raise ConfigError("train.cache_frozen needs a frozen video tower: model.freeze stage1")
    if config.geometry.flip:
        raise ConfigError(
            f"train.cache_frozen: geometry.flip is {config.geometry.flip}; whether a video may be "
            "flipped depends on its text, so it must be 0"
        )


def fingerprint(model: VideoTextModel, config: RunConfig) -> str:
    """Hash of all that features depend on: the tower's weights, sampling, geometry, precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.video.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    settings = {
        "clips": asdict(config.clips),
        "geometry": asdict(config.geometry),
        "inputs": config.model.inputs,
        "kind": config.model.kind,
        "precision": str(resolve_precision(config.train.precision, _device(model))),
        "seed": config.seed,
        "draws": config.train.cache_frozen,
        "videos": [(d.name, d.videos, d.videos_low) for d in config.data.train],
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _device(model: VideoTextModel) -> torch.device:
    return next(model.video.parameters()).device


def encode_all(
    datasets: Sequence[VideoTextDataset],
    model: VideoTextModel,
    config: RunConfig,
    world: World,
    folder: Path,
) -> tuple[int, int]:
    """Encode each view once, shared out over ranks; the grid of a clip's tokens.

    Views whose video cannot be read are left out, and fail when training comes to them.
    """
    model.eval()
    done = set(FrozenStore(folder).places)
    header = {"what": "frozen clips", "fingerprint": folder.name}
    workers = max(1, config.data.num_workers)
    size = config.train.batch_size
    mine = folder / f"rank_{world.rank}"
    failed: dict[str, list[str]] = {}
    slots = list(_missing(datasets, config.train.cache_frozen, done, world))
    with (
        EmbeddingWriter(mine, header, part_rows=_PART) as writer,
        ThreadPoolExecutor(workers, "frozen") as pool,
        tqdm(total=len(slots), desc="encoding frozen clips", disable=not world.is_main) as bar,
    ):
        for start in range(0, len(slots), size):
            chunk = slots[start : start + size]
            samples = list(pool.map(lambda slot: slot[0].sample(slot[1], slot[2]), chunk))
            bar.update(len(chunk))
            batch = collate(samples).to(world.device)
            tokens, grid = _tokens(model, batch, config, world)
            if not (mine / GRID).is_file():  # before any part: where features lie, it lies too
                write_atomically(mine / GRID, json.dumps(grid))
            for slot, sample, rows in zip(chunk, samples, tokens, strict=True):
                if sample.error is None:
                    writer.add(slot[3], {TOKENS: Rows(rows.numpy())})
                else:
                    failed[slot[3]] = [sample.error.detail, sample.error.reason]
        writer.flush()
    write_atomically(mine / FAILED, json.dumps(failed, indent=1) + "\n")
    model.train()
    world.barrier()
    return _grid(folder)


def _grid(folder: Path) -> tuple[int, int]:
    """Rows and columns of a clip's tokens, as any rank found them."""
    for path in sorted(folder.glob(f"rank_*/{GRID}")):
        rows, columns = json.loads(path.read_text(encoding="utf-8"))
        return int(rows), int(columns)
    raise StorageError(f"{folder}: no rank_*/{GRID}; delete the folder to encode anew")


def _missing(
    datasets: Sequence[VideoTextDataset], draws: int, done: set[str], world: World
) -> Iterator[_Slot]:
    """One slot for each view of this rank that is not stored: data set, index, epoch, key."""
    seen = set(done)
    for dataset in datasets:
        for index in range(len(dataset)):
            for draw in range(draws):
                key = dataset.clip_key(index, draw)
                if key not in seen and mixed_seed(key) % world.size == world.rank:
                    seen.add(key)
                    yield dataset, index, draw, key


@torch.no_grad()
def _tokens(
    model: VideoTextModel, batch: Batch, config: RunConfig, world: World
) -> tuple[Tensor, tuple[int, int]]:
    """Tokens of each sample on the CPU, `B N*S D` float32, and the grid of a clip."""
    dtype = resolve_precision(config.train.precision, world.device)
    with torch.autocast(world.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        level = model.encode_video(batch.high, batch.low, batch.valid)["video", "token"]
    assert level.grid is not None
    return level.values.float().cpu(), level.grid


class FrozenStore:
    """Features of all ranks' folders by key, read where they lie.

    Attributes:
        places: key -> (file, first row, rows).
        failed: key -> why there are no features: what happened, and its machine-readable reason.
    """

    def __init__(self, folder: Path) -> None:
        self.failed: dict[str, list[str]] = {}
        for path in sorted(folder.glob(f"rank_*/{FAILED}")):
            self.failed.update(json.loads(path.read_text(encoding="utf-8")))
        self.places: dict[str, tuple[Path, int, int]] = {}
        self._open: dict[Path, Any] = {}
        for part in (p for rank in sorted(folder.glob("rank_*")) for p in parts_of(rank)):
            file = self._file(part)
            names = file.get_tensor("key").tobytes()
            at = row = 0
            counts = file.get_tensor(f"{TOKENS}_num")
            for length, rows in zip(file.get_tensor("key_num"), counts, strict=True):
                self.places[names[at : at + length].decode()] = (part, row, int(rows))
                at, row = at + int(length), row + int(rows)

    def check(self, key: str, video: str) -> None:
        """Raise the `VideoError` that the view had when it was encoded, if it has no features."""
        if key not in self.places:
            unknown = ["not among the stored views", "missing"]
            detail, reason = self.failed.get(key, unknown)
            raise VideoError(video, f"{detail} (when it was encoded)", cast(VideoReason, reason))

    def __len__(self) -> int:
        return len(self.places)

    def get(self, key: str) -> np.ndarray[Any, Any]:
        """Tokens of a view, `N*S D` float32."""
        part, first, rows = self.places[key]
        found: np.ndarray[Any, Any] = self._file(part).get_slice(TOKENS)[first : first + rows]
        return found

    def _file(self, part: Path) -> Any:
        if part not in self._open:
            self._open[part] = safe_open(part, "numpy")
        return self._open[part]


class FrozenLoader:
    """A training loader whose batches hold stored tokens in place of pixels."""

    def __init__(self, loader: TrainLoader, store: FrozenStore) -> None:
        self.loader, self.store = loader, store

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return self.loader.steps_per_epoch

    @property
    def bad(self) -> list[BadVideo]:
        """Samples of this rank that failed."""
        return self.loader.bad

    def honour(self, known: Iterable[BadVideo]) -> None:
        """Slots that failed before fail again without being tried."""
        self.loader.honour(known)

    def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
        """As the loader's, with the modality `FROZEN_VIDEO`."""
        inner = self.loader.batches(start_step)
        try:
            for step, batches in enumerate(inner, start=start_step):
                places = self.loader.positions(step)
                yield [
                    self._filled(batch, [(self.loader.datasets[p.dataset], p) for p in part])
                    for batch, part in zip(batches, places, strict=True)
                ]
        finally:
            inner.close()  # type: ignore[attr-defined]

    def _filled(self, batch: Batch, places: Sequence[tuple[VideoTextDataset, Any]]) -> Batch:
        rows: list[Tensor | None] = [
            torch.from_numpy(self.store.get(dataset.clip_key(place.index, place.epoch)))
            if valid
            else None
            for (dataset, place), valid in zip(places, batch.valid.tolist(), strict=True)
        ]
        shape = next((r.shape for r in rows if r is not None), self._any_shape())
        values = torch.cat([torch.zeros(shape) if r is None else r for r in rows])
        starts = torch.arange(len(rows) + 1) * shape[0]
        kept = Ragged(values, {"video": starts}, batch.valid)
        return replace(batch, modalities={**batch.modalities, FROZEN_VIDEO: kept})

    def _any_shape(self) -> torch.Size:
        return torch.Size(self.store.get(next(iter(self.store.places))).shape)
