"""Weight files: where they are, and how they are read without running code."""

from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rushes.errors import WeightsError
from rushes.modeling.names import without_wrappers

NAMES = ("model.safetensors", "pytorch_model.bin", "model.pt", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
PACKAGE = "package:"
_HUB_ID = re.compile(r"^(hf-hub:|hf_hub:)?[\w.-]+(/[\w.-]+)?$")


def locate(source: str, mount: Path | None = None) -> Path:
    """The file that a source means.

    Args:
        source: a file; a folder with one (also a checkpoint, or a run folder: its best checkpoint,
            else its last); "package:NAME/PATH" inside an installed package; or a hub id.
        mount: folder that relative paths are in.

    Raises:
        WeightsError: it cannot be found; the text says which file to supply.
    """
    if source.startswith(PACKAGE):
        return _in_folder(_in_package(source.removeprefix(PACKAGE)), source)
    for path in _places(source, mount):
        if path.is_file():
            return path
        if path.is_dir():
            return _in_folder(path, source)
    if _HUB_ID.match(source) and not source.endswith(SUFFIXES):
        return _from_hub(source)
    raise WeightsError(f"{source}: no such weight file; supply it or set model.weights.init random")


def find_folder(source: str, mount: Path | None = None) -> Path | None:
    """The local folder that a source names ("package:NAME/PATH" too), or None."""
    if source.startswith(PACKAGE):
        return _in_package(source.removeprefix(PACKAGE))
    return next((path for path in _places(source, mount) if path.is_dir()), None)


def _places(source: str, mount: Path | None) -> Iterator[Path]:
    path = Path(source).expanduser()
    if mount is not None and not path.is_absolute():
        yield mount / path
    yield path


def _in_package(place: str) -> Path:
    name, _, rest = place.partition("/")
    found = importlib.util.find_spec(name)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    if not folders:
        raise WeightsError(f"{PACKAGE}{place}: the Python package {name} is not installed")
    return Path(folders[0]) / rest


def _in_folder(path: Path, source: str) -> Path:
    if path.is_file():
        return path
    for name in ("best", "last"):
        if (path / "checkpoints" / name).exists():
            return _in_folder((path / "checkpoints" / name).resolve(), source)
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    files = sorted(f for f in path.glob("*") if f.suffix in SUFFIXES and f.is_file())
    if len(files) == 1:
        return files[0]
    found = [file.name for file in files] or "none"
    raise WeightsError(f"{source}: expected one weight file ({', '.join(NAMES)}), found {found}")


def _from_hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    repository = re.sub(r"^hf[-_]hub:", "", source)
    reason: Exception | None = None
    for name in NAMES:
        try:
            return Path(hf_hub_download(repository, name))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            reason = error
            break
        except EntryNotFoundError as error:
            reason = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = error
            break
    raise WeightsError(
        f"{source}: no such file or folder, and the hub did not give it ({type(reason).__name__}); "
        f"supply {NAMES[0]} or {NAMES[1]} of {repository} in a folder and name that folder"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name.

    Raises:
        WeightsError: damaged, holds no tensors, or would have to run code to be read.
    """
    if path.suffix == ".safetensors":
        return without_wrappers(_read_safetensors(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: not a plain file of tensors; pickles that need code to run are not read: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    return without_wrappers(_tensors(loaded, path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    return state


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if isinstance(loaded, Mapping):
        state = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        if state:
            return state
    raise WeightsError(f"{path}: holds no named tensors")
