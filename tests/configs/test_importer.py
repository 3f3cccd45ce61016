"""Published flags and JSON files: what is kept means the same, what is dropped is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rushes.configs.importer import import_config, main
from rushes.configs.load import all_paths, build_config, load_config, read_preset
from rushes.configs.published import DEAD_KEYS, PUBLISHED_FLAGS, PUBLISHED_KEYS
from rushes.errors import ConfigError

PRETRAINED = "data/pretrained/"
COMMON: dict[str, Any] = {
    "model_config": "base_model_large",
    "mmdetection_weights_path": PRETRAINED + "res50_mmdetection.pth",
    "bert_weights_path": PRETRAINED + "bert-large-uncased",
    "tokenizer_dir": PRETRAINED + "bert-base-uncased",
    "resnet_depth": 50,
    "resnet_frozen_stage": -1,
    "timesformer_depth": 4,
    "timesformer_heads": 16,
    "optim": "adamw",
    "betas": [0.9, 0.98],
    "grad_norm": 5.0,
    "fp16": 1,
    "amp_level": "O2",
    "dropout": 0.1,
    "max_n_example_per_group": 1,
    "backbone_channels": [256, 512, 1024, 2048],
}
MSRVTT = {
    **COMMON,
    "train_datasets": {
        "name": "msrvtt",
        "vis_format": "video",
        "txt": "data/msrvtt_retrieval/train9k.jsonl",
        "vis": "data/msrvtt_retrieval/videos_6fps",
    },
    "e2e_weights_path": PRETRAINED + "hdvila_stage2.pt",
    "output_dir": "data/output/msrvtt_retrieval",
    "bert_mean": 1,
    "max_txt_len": 50,
    "train_n_clips": 2,
    "inference_n_clips": 4,
    "num_frm": 7,
    "sample_rate": 4,
    "crop_size": [160, 256],
    "train_batch_size": 8,
    "val_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 200,
    "only_valid_steps": 100,
    "learning_rate": 1e-5,
    "cnn_learning_rate": 1e-5,
    "align_learning_rate": 5e-6,
    "weight_decay": 1e-4,
    "cnn_weight_decay": 1e-4,
    "align_weight_decay": 1e-3,
    "decay": "multi_step",
    "step_decay_epochs": [32, 64, 128, 256],
    "warmup_ratio": 0.01,
    "temp": 0.1,
    "loss_config": {"loss_name": "NCEContrastiveLoss", "temp": 0.08},
    "use_itc": 1,
    "use_mlm": 0,
    "use_itm": 0,
    "pixel_random_sampling_size": 160,
    "seed": 24,
    "n_workers": 4,
    "vis_steps": 0,
    "num_valid": 10,
    "timesformer_type": "new",
    "my_own": 3,
    "save_images": None,
}


def test_a_published_retrieval_file_becomes_our_preset() -> None:
    new, dropped = import_config(MSRVTT)
    ours, theirs = build_config(read_preset("msrvtt_retrieval")), build_config(new)
    assert theirs.model == ours.model
    assert theirs.geometry == ours.geometry
    assert theirs.clips == ours.clips
    assert theirs.optim == ours.optim
    assert theirs.objectives == ours.objectives
    assert (theirs.task, theirs.seed, theirs.output_dir) == (ours.task, ours.seed, ours.output_dir)
    assert replace(theirs.train, checkpoint_every=0) == replace(ours.train, checkpoint_every=0)
    assert theirs.data.train[0].annotations == ours.data.train[0].annotations
    assert set(dropped) == {
        "amp_level", "optim", "dropout", "max_n_example_per_group", "backbone_channels",
        "vis_steps", "num_valid", "timesformer_type", "my_own", "save_images",
    }  # fmt: skip
    assert dropped["my_own"] == "is no published key"
    assert "train.validate_every" in dropped["num_valid"]


def test_a_published_tgif_file_becomes_our_preset() -> None:
    old = {
        **COMMON,
        "task": "transition",
        "crop_size": [160, 256],
        "reshape_size": [180, 288],
        "max_img_size": 192,
        "pad_value": 1,
        "train_n_clips": 1,
        "inference_n_clips": 8,
        "num_frm": 7,
        "sample_rate": 4,
        "inference_model_step": 0,
    }
    new, _ = import_config(old)
    ours, theirs = build_config(read_preset("tgif_transition_qa")), build_config(new)
    assert theirs.geometry == ours.geometry
    assert theirs.clips == ours.clips
    assert (theirs.task, theirs.objectives) == (ours.task, ours.objectives)
    assert theirs.model.cross
    assert theirs.inference.step == "0"


@pytest.mark.parametrize(("stage", "preset"), [(1, "pretrain_stage1"), (2, "pretrain_stage2")])
def test_published_pretraining_files_become_our_presets(stage: int, preset: str) -> None:
    old = {
        **COMMON,
        "crop_size": [640, 1024],
        "train_n_clips": 2,
        "inference_n_clips": 2,
        "num_frm": 7,
        "sample_rate": 12,
        "temp": 0.05,
        "use_itc": int(stage == 1),
        "use_mlm": int(stage == 2),
        "use_itm": 0,
        "score_agg_func": "lse",
    }
    if stage == 2:
        old["freeze_s1"] = 0  # its mere presence freezes
    new, _ = import_config(old)
    ours, theirs = build_config(read_preset(preset)), build_config(new)
    assert theirs.geometry == ours.geometry
    assert theirs.clips == ours.clips
    assert theirs.objectives == ours.objectives
    assert (theirs.task, theirs.stage, theirs.model.freeze) == (ours.task, stage, ours.model.freeze)


def test_the_low_resolution_key_gives_the_authors_geometry() -> None:
    new, _ = import_config({"crop_size": [160, 256], "180p": 1, "use_itc": 1})
    assert build_config(new).geometry == build_config(read_preset("authors_1_stage1_low")).geometry


def test_the_command_writes_a_preset_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(MSRVTT))
    assert main(["import", str(old), str(new)]) == 0
    assert load_config(["--config", str(new)]).clips.stride == 4
    said = capsys.readouterr().out
    assert "10 dropped" in said
    assert "dropout: had no effect" in said
    old.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        main(["import", str(old), str(new)])
    old.write_text(json.dumps({"task": "count"}))
    with pytest.raises(ConfigError, match="task='count'"):
        main(["import", str(old), str(new)])


def test_the_table_speaks_of_fields_that_exist() -> None:
    known = set(all_paths())
    assert set(PUBLISHED_FLAGS.values()) <= known
    assert set(PUBLISHED_KEYS.values()) <= known
    assert not set(PUBLISHED_KEYS) & set(DEAD_KEYS)


def test_published_flags_are_translated_typed_and_win_wherever_they_stand() -> None:
    argv = (
        "--do_inference 1 --output_dir out --inference_split val --inference_model_step 1200 "
        "--config msrvtt_retrieval --inference_txt_db a.jsonl --inference_img_db v "
        "--inference_batch_size 64 --inference_n_clips 4 --learning_rate 3e-6 --data_mount_dir /x "
        "--e2e_weights_path null"
    )
    config = load_config(argv.split())
    chosen = config.inference
    assert (chosen.enabled, chosen.split, chosen.step) == (True, "val", "1200")
    assert (chosen.annotations, chosen.videos) == ("a.jsonl", "v")
    assert (chosen.batch_size, chosen.num_clips) == (64, 4)
    assert config.optim.learning_rate == 3e-6
    assert config.data.mount_dir == "/x"
    assert config.model.weights.model is None
    with pytest.raises(ConfigError, match="dropout_rate"):
        load_config(["--dropout_rate", "1"])


def test_show_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "msrvtt_retrieval", "--seed", "7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["seed"], shown["clips"]["stride"]) == (7, 4)
    assert shown["train"]["nonfinite_budget"] == 10  # a default
