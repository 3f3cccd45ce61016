"""The published HD-VILA spellings of flags and JSON keys, and what they are here: one table."""

from __future__ import annotations

from typing import Any

from rushes.errors import ConfigError

PUBLISHED_FLAGS: dict[str, str] = {
    "data_mount_dir": "data.mount_dir",
    "tokenizer_dir": "model.text.tokenizer",
    "model_config": "model.text.config",
    "e2e_weights_path": "model.weights.model",
    "mmdetection_weights_path": "model.weights.backbone",
    "bert_weights_path": "model.weights.bert",
    "do_inference": "inference.enabled",
    "inference_split": "inference.split",
    "inference_model_step": "inference.step",
    "inference_txt_db": "inference.annotations",
    "inference_img_db": "inference.videos",
    "inference_batch_size": "inference.batch_size",
    "inference_n_clips": "inference.num_clips",
    "max_txt_len": "model.text.max_length",
    "num_frm": "clips.num_frames",
    "train_n_clips": "clips.num_clips",
    "train_batch_size": "train.batch_size",
    "val_batch_size": "evaluation.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "num_train_epochs": "train.epochs",
    "learning_rate": "optim.learning_rate",
    "cnn_learning_rate": "optim.backbone.learning_rate",
    "align_learning_rate": "optim.temporal.learning_rate",
    "weight_decay": "optim.weight_decay",
    "cnn_weight_decay": "optim.backbone.weight_decay",
    "align_weight_decay": "optim.temporal.weight_decay",
    "decay": "optim.schedule",
    "warmup_ratio": "optim.warmup_ratio",
    "grad_norm": "optim.max_grad_norm",
    "score_agg_func": "evaluation.clip_pool",
    "ans2label_path": "data.answers",
    "n_workers": "data.num_workers",
    "only_valid_steps": "train.validate_every",
}
"""Published flag -> dotted path of the schema. `output_dir` and `seed` are the same here."""

PUBLISHED_KEYS: dict[str, str] = {
    **PUBLISHED_FLAGS,
    "inference_n_clips": "clips.eval_num_clips",
    "sample_rate": "clips.stride",
    "output_dir": "output_dir",
    "seed": "seed",
    "betas": "optim.betas",
    "step_decay_epochs": "optim.milestones",
    "resnet_frozen_stage": "model.frozen_stages",
    "timesformer_depth": "model.temporal_depth",
    "timesformer_heads": "model.temporal_heads",
}
"""Key of a published JSON file -> dotted path, where the value is the same."""

DEAD_KEYS: dict[str, str] = {
    **dict.fromkeys(
        (
            "dropout", "timesformer_type", "classifier", "cls_hidden_scale", "backbone_channels",
            "backbone_channel_in_size", "hidden_size", "img_pixel_mean", "img_pixel_std",
            "img_input_format", "fps", "out_size", "hframe", "lframe", "low_level_tasks",
            "generator_learning_rate", "generator_weight_decay", "backbone_downsample", "img_aug",
            "local_rank", "n_gpu", "deepspeed_config", "frm_sampling_strategy",
            "random_sample_clips", "cnn_optim", "cnn_sgd_momentum", "loss_type", "save_feat",
            "only_answer", "save_images", "vis_steps", "debug",
        ),
        "had no effect in the published code, or crashed it",
    ),
    **dict.fromkeys(
        ("cnn_lr_decay", "cnn_step_decay_epochs", "cnn_lr_mul", "cnn_lr_mul_prefix",
         "transformer_lr_mul", "transformer_lr_mul_prefix"),
        "one schedule serves all groups; set optim.backbone and optim.temporal",
    ),
    **dict.fromkeys(
        ("num_valid", "min_valid_steps", "save_steps_ratio"),
        "counted as a share of the run; set train.validate_every and train.checkpoint_every",
    ),
    **dict.fromkeys(
        ("max_n_example_per_group", "pos_num"), "only 1 worked, and 1 is what happens here"
    ),
    **dict.fromkeys(("amp_level", "pin_mem", "optim"), "chosen here by the hardware"),
    **dict.fromkeys(
        ("bert_frozen_stage", "data_ratio", "itm_neg_prob", "itm_neg_size",
         "eval_retrieval_batch_size", "temperature", "margin"),
        "has no counterpart; see model.freeze, train.patience, data.limit and objectives",
    ),
    "auto_step": "set optim.schedule auto_step, optim.tolerance and optim.gamma",
}  # fmt: skip
"""Key -> why it is dropped."""


def translate_flag(name: str, text: str) -> tuple[str, Any] | None:
    """(dotted path, value) of a published flag, or None when `name` is not one.

    Raises:
        ConfigError: a published flag that means nothing here, with the reason.
    """
    path = PUBLISHED_FLAGS.get(name)
    if path is not None:
        return path, None if text == "null" else text
    # `optim` is a section of the schema too.
    if name in DEAD_KEYS and name != "optim":
        raise ConfigError(f"--{name}: {DEAD_KEYS[name]}")
    return None
