"""`rushes config import | show`: a JSON file of the HD-VILA code as ours; a resolved preset."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rushes.configs.load import build_config, config_to_json, load_config, merge
from rushes.configs.published import DEAD_KEYS, PUBLISHED_KEYS
from rushes.errors import ConfigError

Values = dict[str, Any]
QA_TASKS = {
    "action": "multiple_choice_qa",
    "transition": "multiple_choice_qa",
    "frameqa": "open_ended_qa",
    "msrvtt_qa": "open_ended_qa",
}
ANSWERS = {"frameqa": 1540, "msrvtt_qa": 1500}
"""Smallest size of the answer head, by published task."""
LOSSES = {
    "NCEContrastiveLoss": "nce",
    "TripletContrastiveLoss": "triplet",
    "HardNegLoss": "hard_negative_nce",
    "MILNCEContrastiveLoss": "mil_nce",
}


def import_config(old: Mapping[str, Any]) -> tuple[Values, dict[str, str]]:
    """Our nested values of a published JSON object, and each key that was dropped with the reason.

    Raises:
        ConfigError: a value that means nothing here.
    """
    rest = {key: value for key, value in old.items() if value is not None}
    dropped = {key: "null" for key in old if old[key] is None}
    new: Values = {}
    for part in PARTS:
        taken, values = part(rest)
        new = merge(new, values)
        for key in taken:
            rest.pop(key, None)
    for key, value in rest.items():
        if key in PUBLISHED_KEYS:
            new = merge(new, _nested(PUBLISHED_KEYS[key], value))
        else:
            dropped[key] = DEAD_KEYS.get(key, "is no published key")
    build_config(new)
    return new, dropped


Part = Callable[[Mapping[str, Any]], tuple[Sequence[str], Values]]


def _task(old: Mapping[str, Any]) -> tuple[Sequence[str], Values]:
    """What kind of run it is: by `task`, `loss_config` or the pretraining switches."""
    kind = old.get("task")
    if kind is not None:
        if kind not in QA_TASKS:
            raise ConfigError(f"task={kind!r}: expected one of {sorted(QA_TASKS)}")
        model = {"cross": True, "num_answers": ANSWERS.get(kind, 0)}
        pool = old.get("score_agg_func", "mean")
        objective = {"name": QA_TASKS[kind], "pool": pool}
        task = {"task": QA_TASKS[kind], "stage": 2, "model": model, "objectives": [objective]}
        return ("task",), merge(task, {"data": {"max_answers": ANSWERS.get(kind, 1500)}})
    switches = ("use_itc", "use_mlm", "use_itm", "temp", "loss_config", "itc_weight")
    if "loss_config" in old:
        loss = dict(old["loss_config"])
        name = loss.get("loss_name")
        if name not in LOSSES:
            raise ConfigError(f"loss_config.loss_name={name!r}: expected one of {sorted(LOSSES)}")
        named = {"temp": "temperature", "margin": "margin"}
        values = {ours: loss[theirs] for theirs, ours in named.items() if theirs in loss}
        return switches, {"task": "retrieval", "objectives": [{"name": LOSSES[name], **values}]}
    return switches, _pretraining(old)


def _pretraining(old: Mapping[str, Any]) -> Values:
    objectives: list[Values] = []
    if old.get("use_itc"):
        weight = old.get("itc_weight", 1.0)
        temperature = old.get("temp", 0.05)
        objectives.append({"name": "contrastive", "temperature": temperature, "weight": weight})
    pool = old.get("score_agg_func", "mean")
    for switch, name in (("use_mlm", "masked_language"), ("use_itm", "matching")):
        if old.get(switch):
            objectives.append({"name": name, "pool": pool})
    stage = 2 if old.get("use_mlm") or old.get("use_itm") else 1
    values: Values = {"task": "pretrain", "stage": stage, "model": {"cross": stage == 2}}
    return {**values, "objectives": objectives} if objectives else values


def _geometry(old: Mapping[str, Any]) -> tuple[Sequence[str], Values]:
    """The published pixels: which of the four branches a file used."""
    keys = ("crop_size", "reshape_size", "resize_size", "max_img_size", "pad_value", "180p", "360p")
    if "crop_size" not in old:
        return keys, {}
    geometry: Values = {"mode": "published", "high": "upsampled"}
    crop = list(old["crop_size"])
    gif = old.get("task") in ("action", "transition", "frameqa")
    if gif:
        side = int(old.get("max_img_size", 192))
        geometry.update(pad_to=side, high_size=[4 * side, 4 * side])
        geometry["pad_value"] = 127 if "pad_value" in old else 0
    elif "180p" in old:
        geometry.update(resize=[180, 320], crop=[c // 4 for c in crop] if crop[0] > 180 else crop)
        geometry["high_size"] = [4 * c for c in geometry["crop"]]
    elif "reshape_size" in old or "resize_size" in old or "loss_config" in old:
        resize = old.get("reshape_size") or old.get("resize_size") or [180, 288]
        geometry.update(resize=list(resize), crop=crop, high_size=[4 * c for c in crop])
        if _frame_folders(old):
            geometry["high"] = "real"
    else:
        resize = [360, 640] if "360p" in old else [720, 1280]
        geometry.update(resize=resize, crop=crop, high_size=crop, high="real")
    if gif or "loss_config" in old or old.get("task"):
        geometry["flip"] = 1 / 3
    return keys, {"geometry": geometry, "clips": {"sampling": "frames"}}


def _frame_folders(old: Mapping[str, Any]) -> bool:
    sets = _listed(old.get("train_datasets"))
    return any(entry.get("vis_format") == "frame" for entry in sets)


def _datasets(old: Mapping[str, Any]) -> tuple[Sequence[str], Values]:
    splits = {"train_datasets": "train", "val_datasets": "validation", "inference_datasets": "test"}
    data: Values = {}
    for key, split in splits.items():
        found = [_dataset(entry) for entry in _listed(old.get(key))]
        if found:
            data[split] = found
    # Published retrieval files name their test set as validation set as well: kept only as test.
    if data.get("validation") == data.get("test"):
        data.pop("validation", None)
    return tuple(splits), {"data": data} if data else {}


def _listed(value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    return [value] if isinstance(value, Mapping) else list(value)


def _dataset(entry: Mapping[str, Any]) -> Values:
    text = entry.get("txt")
    paths = list(text.values()) if isinstance(text, Mapping) else _texts(text)
    if not paths or "vis" not in entry:
        raise ConfigError(f"data set {entry.get('name')!r}: expected txt and vis, found {entry}")
    out = {"name": entry.get("name", "data"), "annotations": paths, "videos": entry["vis"]}
    for key in ("vis_format", "ratio"):
        if key in entry:
            out[key] = entry[key]
    return out


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _rest(old: Mapping[str, Any]) -> tuple[Sequence[str], Values]:
    """Keys whose values change their form."""
    values: Values = {}
    if "bert_mean" in old:
        pool = "mean" if old["bert_mean"] else "first"
        values = merge(values, {"model": {"text": {"pool": pool}}})
    if "resnet_depth" in old:
        values = merge(values, {"model": {"backbone": f"resnet{old['resnet_depth']}"}})
    if "fp16" in old:
        precision = "bf16" if int(old["fp16"]) else "fp32"
        values = merge(values, {"train": {"precision": precision}})
    if old.get("pixel_random_sampling_size"):
        tokens = old["pixel_random_sampling_size"]
        values = merge(values, {"model": {"visual_tokens": tokens}})
    frozen = [
        name
        for key, name in (
            ("freeze_s1", "stage1"),
            ("freeze_s1_vision", "stage1_vision"),
            ("freeze_cnn", "backbone"),
        )
        # The published code looks whether freeze_s1 is there, not what it says.
        if (key in old if key != "freeze_cnn" else old.get(key))
    ]
    if frozen:
        values = merge(values, {"model": {"freeze": frozen}})
    if old.get("inference_model_step") is not None:
        values = merge(values, {"inference": {"step": str(old["inference_model_step"])}})
    taken = (
        "bert_mean", "resnet_depth", "fp16", "pixel_random_sampling_size", "freeze_s1",
        "freeze_s1_vision", "freeze_cnn", "inference_model_step",
    )  # fmt: skip
    return taken, values


PARTS: tuple[Part, ...] = (_geometry, _task, _datasets, _rest)


def _nested(path: str, value: Any) -> Values:
    for part in reversed(path.split(".")):
        value = {part: value}
    out: Values = value
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """`import OLD NEW` writes NEW and says what was dropped and why; `show` prints a config."""
    if argv is not None and list(argv[:1]) == ["show"]:
        # What follows is a runner's command line: presets by name, overlays, flags.
        names = [token for token in argv[1:2] if not token.startswith("--")]
        rest = ["--config", *names, *argv[2:]] if names else argv[1:]
        shown = config_to_json(load_config(rest, "rushes config show"))
        print(json.dumps(shown, indent=2))  # noqa: T201
        return 0
    parser = argparse.ArgumentParser(prog="rushes config", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("import", help="read a JSON file of the HD-VILA code")
    one.add_argument("old", type=Path)
    one.add_argument("new", type=Path)
    commands.add_parser("show", help="print a preset with everything that it leaves at defaults")
    options = parser.parse_args(argv)
    try:
        old = json.loads(options.old.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{options.old}: {error}") from error
    if not isinstance(old, dict):
        raise ConfigError(f"{options.old}: expected a JSON object")
    new, dropped = import_config(old)
    options.new.write_text(json.dumps(new, indent=2) + "\n", "utf-8")
    print(f"{options.new}: {len(old) - len(dropped)} keys kept, {len(dropped)} dropped")  # noqa: T201
    for key, reason in sorted(dropped.items()):
        print(f"  {key}: {reason}")  # noqa: T201
    return 0
