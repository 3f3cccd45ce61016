"""Models as folders: found on disk or on the Hugging Face hub, written with a model card.

A folder holds `config.json`, `model.safetensors`, `tokenizer/`, `answers.json` (open-ended
questions) and `README.md`, the card with figures and the hashes of the data. A checkpoint of a run
has the same files, so both load alike. What lies on disk needs no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rushes.checkpoint import WEIGHTS, list_steps, resolve_checkpoint
from rushes.configs.load import build_config
from rushes.configs.schema import RunConfig
from rushes.errors import CheckpointError

CONFIG, ANSWERS, TOKENIZER, CARD = "config.json", "answers.json", "tokenizer", "README.md"


def find_model(source: str | Path, step: str = "best") -> Path:
    """The folder with the weights of a model.

    Args:
        source: a model folder, a checkpoint, a run folder (its `step` checkpoint), or a hub id.
        step: "best", "last", or a step, for run folders.

    Raises:
        CheckpointError: nothing of the kind there, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if (path / WEIGHTS).is_file():
        return path.resolve()
    if (path / "checkpoints").is_dir() or list_steps(path):
        return resolve_checkpoint(path, step)
    if path.exists():
        raise CheckpointError(
            f"{path}: neither a model folder ({WEIGHTS}) nor a run folder (checkpoints/)"
        )
    if path.is_absolute() or len(path.parts) != 2:
        raise CheckpointError(f"{source}: no such folder, and no hub id (owner/name) either")
    return _from_hub(str(source))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{name}: no such folder here, and the hub gave no such model ({first})"
        ) from error


def read_model_config(folder: Path) -> RunConfig:
    """The configuration that a model was built from."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return build_config(values)


def read_answers(folder: Path) -> tuple[str, ...]:
    """The answer vocabulary by label; () where the model answers no open questions."""
    path = folder / ANSWERS
    if not path.is_file():
        return ()
    labels: Mapping[str, int] = json.loads(path.read_text("utf-8"))
    return tuple(sorted(labels, key=labels.__getitem__))


def results_beside(folder: Path) -> dict[str, Any]:
    """Figures of the run that a checkpoint belongs to, or of the model folder itself."""
    for place in (folder, folder.parent.parent):
        path = place / "results.json"
        if path.is_file():
            found = json.loads(path.read_text("utf-8"))
            return found if isinstance(found, dict) else {}
    return {}


def data_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of each annotation file that the run read, where it still exists."""
    from rushes.datasets.build import resolve_path

    out = {}
    for split in ("train", "validation", "test"):
        for dataset in getattr(config.data, split):
            for name in dataset.annotations:
                path = resolve_path(config, name)
                if path.is_file():
                    out[f"{split}: {name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return out


def model_card(config: RunConfig, results: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """A model card in the hub's form: metadata, what it is, how to use it, figures, data."""
    figures = [
        (f"{section}.{name}", value)
        for section in ("retrieval", "qa", "mc")
        for name, value in results.get(section, {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    lines = ["---", "library_name: rushes", "tags:", "- video", "- text", f"- {config.task}"]
    lines += ["model-index:", f"- name: {config.run_name or config.task}", "  results:"]
    lines += [f"  - task: {{type: {config.task}}}", "    dataset: {name: test, type: video-text}"]
    lines += ["    metrics:" if figures else "    metrics: []"]
    lines += [f"    - {{type: {name}, value: {value:.6g}}}" for name, value in figures]
    lines += ["---", "", f"# {config.run_name or config.task}", ""]
    lines += [
        f"A {config.model.kind} video-language model ({config.model.backbone}), trained by rushes "
        f"for the task {config.task}, seed {config.seed}.",
        "",
        "```python",
        "from rushes import VideoText",
        'model = VideoText.from_pretrained("PATH_OR_HUB_ID")',
        'model.similarity(["a sentence"], ["clip.mp4"])',
        "```",
        "",
    ]
    if figures:
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in figures] + [""]
    if hashes:
        lines += ["| data | SHA-256 |", "|---|---|"]
        lines += [f"| {name} | `{value}` |" for name, value in hashes.items()] + [""]
    return "\n".join(lines)


def push(folder: Path, name: str, private: bool = True) -> str:
    """Upload a model folder to the hub under `owner/name`; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=str(folder))
    return str(address)
