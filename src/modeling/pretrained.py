"""Our own files: a folder with `config.json`, `model.safetensors` and `tokenizer/`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from rushes.configs.load import build_config, config_to_json
from rushes.errors import WeightsError
from rushes.modeling.build import build_model
from rushes.modeling.files import locate, read_state
from rushes.modeling.model import VideoTextModel
from rushes.modeling.weights import read_config

CONFIG, STATE, TOKENIZER = "config.json", "model.safetensors", "tokenizer"


def save_pretrained(
    model: VideoTextModel, folder: str | Path, tokenizer: str | Path | None = None
) -> None:
    """Write a model so that `from_pretrained` gives the same one back, bit for bit.

    Args:
        model: its config goes along, with the resolved sizes.
        folder: made where absent; files of the same names are replaced.
        tokenizer: folder of tokenizer files, copied to `folder/tokenizer`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / STATE, metadata={"format": "pt"})
    text = json.dumps(config_to_json(model.config), indent=2)
    (folder / CONFIG).write_text(text + "\n", "utf-8")
    if tokenizer is not None and Path(tokenizer).resolve() != (folder / TOKENIZER).resolve():
        shutil.copytree(tokenizer, folder / TOKENIZER, dirs_exist_ok=True)


def from_pretrained(source: str | Path, mount: Path | None = None) -> VideoTextModel:
    """The saved model in evaluation mode, on the CPU.

    Args:
        source: a folder that `save_pretrained` wrote, a checkpoint or a run folder (its best
            checkpoint, else its last), or a hub id.
        mount: folder that relative paths are in.

    Raises:
        WeightsError: no saved model there, or its file does not fill the model exactly.
    """
    file = locate(str(source), mount)
    model = build_model(build_config(read_config(file.parent)))
    state = read_state(file)
    wrong = sorted(set(state) ^ set(model.state_dict()))
    if wrong:
        raise WeightsError(f"{file}: does not belong to its {CONFIG}: {wrong[:6]}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{file}: does not belong to its {CONFIG}: {error}") from error
    return model.eval()


def tokenizer_folder(source: str | Path, mount: Path | None = None) -> Path | None:
    """The folder of a saved model's tokenizer, or None where none was saved."""
    folder = locate(str(source), mount).parent / TOKENIZER
    return folder if folder.is_dir() else None
