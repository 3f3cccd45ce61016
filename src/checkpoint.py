"""Resumable checkpoints: written aside, synced, hashed, renamed; a torn one is never read.

    RUN/checkpoints/step_0000123/  config.json model.safetensors tokenizer/ training/ manifest.json
    RUN/checkpoints/best, last     links to a step

`manifest.json` is written last and names every file with its size and SHA-256. A folder without an
intact manifest is torn: it is skipped with a warning and the one before is used. Nothing is
pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rushes.errors import CheckpointError
from rushes.log import get_logger

logger = get_logger(__name__)

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
_ASIDE = ".writing-"
_FORMAT = 1


@dataclass
class Progress:
    """Where a run stands, apart from weights and moments; all that resume needs beside them.

    Attributes:
        step: optimiser steps done; the sampler's position follows from it.
        samples: valid samples seen.
        skipped: steps skipped for NaN or infinity.
        checkpoints: checkpoints written at the cadence.
        seconds: time spent training, of all processes that worked on the run one after the other.
        best_value, best_step: best validation so far.
        without_improvement: validations since then.
        stopped: early stop has ended the run.
        auto_step: state of the schedule that follows the validations.
        metrics: the last validation.
        bad: slots whose video failed, as `rushes.failures` writes them.
        global_batch: samples an optimiser step over all ranks.
        micro_batch: samples of all ranks in one micro-step.
    """

    step: int = 0
    samples: int = 0
    skipped: int = 0
    checkpoints: int = 0
    seconds: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    without_improvement: int = 0
    stopped: bool = False
    auto_step: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)
    global_batch: int = 0
    micro_batch: int = 0

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Progress:
        """The inverse of `dataclasses.asdict`; unknown keys of a later version are ignored."""
        known = Progress.__dataclass_fields__
        return Progress(**{key: value for key, value in values.items() if key in known})


@dataclass(frozen=True)
class Snapshot:
    """A copy of everything a checkpoint holds, on the CPU, safe from the steps that follow.

    Attributes:
        weights: the model's state by name.
        moments: the optimiser's state by "parameter name/key".
        progress, config: JSON objects.
    """

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    progress: Mapping[str, Any]
    config: Mapping[str, Any]


def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    config: Mapping[str, Any],
) -> Snapshot:
    """Copy the state of model and optimiser to the CPU."""
    return Snapshot(
        progress.step,
        {name: _copy(tensor) for name, tensor in model.state_dict().items()},
        {name: _copy(tensor) for name, tensor in optimizer_tensors(model, optimizer).items()},
        asdict(progress),
        config,
    )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors by "parameter name/key", not copied."""
    names: dict[Tensor, str] = {value: name for name, value in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimiser back what `optimizer_tensors` took from it.

    Raises:
        CheckpointError: a tensor belongs to a parameter that is not trained here.
    """
    parameters = dict(model.named_parameters())
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for name, tensor in tensors.items():
        owner, key = name.rsplit("/", 1)
        parameter = parameters.get(owner)
        if parameter is None or parameter not in trained:
            raise CheckpointError(f"the checkpoint trained {owner}, this run does not")
        # Step counters stay on the CPU unless the optimiser keeps them beside the parameter.
        device = tensor.device if tensor.ndim == 0 and not _fused(optimizer) else parameter.device
        optimizer.state[parameter][key] = tensor.to(device, copy=True)


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


class CheckpointWriter:
    """Writes checkpoints of one run, in a thread of its own, and deletes those past keeping.

    Only rank 0 has one. A full disk is survived: a warning is logged, the half-written folder is
    removed, and earlier checkpoints stay.

    Args:
        run_folder: the run; checkpoints go to its `checkpoints/`.
        keep_last: newest checkpoints kept (at least one).
        keep_every: also keep every n-th; 0 keeps none. The best is always kept.
        asynchronous: write in a thread; one checkpoint at most is on its way.
        extras: writes further files (a tokenizer, say) into the folder it is given.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        asynchronous: bool = True,
        extras: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder = run_folder / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keep_last, self.keep_every = max(1, keep_last), keep_every
        self._extras = extras
        self._executor = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._pending: Future[None] | None = None
        self._failed = 0
        for leftover in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def failed(self) -> int:
        """Checkpoints that could not be written."""
        return self._failed

    def save(self, snapshot: Snapshot, *, best: bool = False) -> None:
        """Write `snapshot`; link it as `last`, and as `best` if it is."""
        self.wait()
        if self._executor is None:
            self._write(snapshot, best)
        else:
            self._pending = self._executor.submit(self._write, snapshot, best)

    def wait(self) -> None:
        """Wait until nothing is on its way; errors of the writing thread surface here."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Finish what is on its way."""
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()

    def _write(self, snapshot: Snapshot, best: bool) -> None:
        aside = self.folder / f"{_ASIDE}{step_name(snapshot.step)}-{os.getpid()}"
        try:
            write_folder(aside, snapshot, self._extras)
            _put_in_place(aside, self.folder / step_name(snapshot.step))
            _link(self.folder / "last", step_name(snapshot.step))
            if best:
                _link(self.folder / "best", step_name(snapshot.step))
            self._prune(snapshot.step)
        except (OSError, SafetensorError) as error:
            self._failed += 1
            shutil.rmtree(aside, ignore_errors=True)
            logger.warning(
                "checkpoint of step %d could not be written to %s: %s; training goes on, "
                "earlier checkpoints are untouched",
                snapshot.step,
                self.folder,
                error,
            )

    def _prune(self, step: int) -> None:
        # Torn ones that the run has not yet reached again must not count among the newest.
        steps = [p for p in list_steps(self.folder.parent) if p.name <= step_name(step)]
        best = _target(self.folder / "best")
        for path in steps[: -self.keep_last]:
            if path.name != best and not self._kept_for_good(path):
                # Renamed first: a half-deleted folder must not look like a checkpoint.
                aside = path.with_name(f"{_ASIDE}deleting-{path.name}")
                path.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def _kept_for_good(self, path: Path) -> bool:
        if self.keep_every <= 0:
            return False
        count = int(_read_json(path / MANIFEST).get("checkpoints", 0))
        return count > 0 and count % self.keep_every == 0


def step_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"step_{step:07d}"


def list_steps(run_folder: Path) -> list[Path]:
    """Folders of all checkpoints of a run, torn ones too, oldest first."""
    found = [path for path in (run_folder / "checkpoints").glob("step_*") if path.is_dir()]
    return sorted((p for p in found if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))


def write_folder(
    folder: Path, snapshot: Snapshot, extras: Callable[[Path], None] | None = None
) -> None:
    """Write one checkpoint into `folder`, synced to the disk, manifest last."""
    shutil.rmtree(folder, ignore_errors=True)
    training = folder / "training"
    training.mkdir(parents=True)
    save_file(dict(snapshot.weights), folder / WEIGHTS, metadata={"format": "pt"})
    save_file(dict(snapshot.moments), training / "optimizer.safetensors")
    _write_json(training / "progress.json", snapshot.progress)
    _write_json(folder / "config.json", snapshot.config)
    if extras is not None:
        extras(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": _FORMAT,
        "step": snapshot.step,
        "checkpoints": snapshot.progress.get("checkpoints", 0),
        "files": {str(path.relative_to(folder)): _fingerprint(path) for path in files},
    }
    for path in files:
        sync(path)
    _write_json(folder / MANIFEST, manifest)
    sync(folder / MANIFEST)
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync(path)


def verify(folder: Path) -> None:
    """Check a checkpoint against its manifest.

    Raises:
        CheckpointError: no manifest, or a file that is missing, cut short or altered.
    """
    manifest = _read_json(folder / MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{folder / MANIFEST}: names no files")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        size = path.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"{path}: {size} bytes, the manifest says {expected['size']}")
        if _fingerprint(path) != expected:
            raise CheckpointError(f"{path}: contents differ from the manifest")


def find_checkpoint(run_folder: Path) -> Path | None:
    """The newest intact checkpoint of a run, or None; torn ones are named in a warning.

    Raises:
        CheckpointError: there are checkpoints, and all are torn.
    """
    folders = list_steps(run_folder)
    for folder in reversed(folders):
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("torn checkpoint skipped: %s", error)
        else:
            return folder
    if folders:
        raise CheckpointError(
            f"{run_folder}: all {len(folders)} checkpoints are torn; "
            "begin anew with train.resume false, or in another output_dir"
        )
    return None


def resolve_checkpoint(run_folder: Path, step: str = "best") -> Path:
    """The folder of "best", "last", "1200" or "step_1200" of a run; `best` falls back on `last`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is torn.
    """
    names = {"best": ["best", "last"], "last": ["last"]}.get(step)
    if names is None:
        digits = step.removeprefix("step_")
        if not digits.isdigit():
            raise CheckpointError(f"step {step!r}: expected best, last, 1200 or step_1200")
        names = [step_name(int(digits))]
    for name in names:
        folder = run_folder / "checkpoints" / name
        if folder.is_dir():
            folder = folder.resolve()
            verify(folder)
            return folder
    there = [path.name for path in list_steps(run_folder)]
    raise CheckpointError(f"{run_folder}: no checkpoint {step!r}; there are {there or 'none'}")


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    progress: Progress
    config: dict[str, Any]


def load_checkpoint(folder: Path) -> Loaded:
    """Read a checkpoint that `verify` has passed."""
    return Loaded(
        load_file(folder / WEIGHTS),
        load_file(folder / "training" / "optimizer.safetensors"),
        read_progress(folder),
        _read_json(folder / "config.json"),
    )


def read_progress(folder: Path) -> Progress:
    """Where the run stood at a checkpoint, without its tensors."""
    return Progress.from_json(_read_json(folder / "training" / "progress.json"))


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a reader sees the old or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)


def _put_in_place(aside: Path, final: Path) -> None:
    if final.exists():  # a torn one, or the same step reached again after a torn successor
        old = final.with_name(f"{_ASIDE}old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        aside.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        aside.rename(final)
    sync(final.parent)


def _link(link: Path, target: str) -> None:
    aside = link.with_name(f"{_ASIDE}{link.name}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target, target_is_directory=True)
    aside.replace(link)


def _target(link: Path) -> str | None:
    return os.readlink(link) if link.is_symlink() else None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object")
    return value
