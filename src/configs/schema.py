"""The one schema of all runs: frozen dataclasses, every field with an effect.

A preset is a JSON file with a subset of these fields; `rushes.configs.load` lays presets and flags
over the defaults below and checks types and names. Sizes are (height, width) in pixels, times are
seconds unless a name says frames or steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Task = Literal["pretrain", "retrieval", "open_ended_qa", "multiple_choice_qa", "multiple_choice"]
ObjectiveName = Literal[
    "contrastive",
    "nce",
    "hard_negative_nce",
    "mil_nce",
    "triplet",
    "sigmoid",
    "caption_words",
    "masked_language",
    "matching",
    "open_ended_qa",
    "multiple_choice_qa",
]


@dataclass(frozen=True)
class WeightsConfig:
    """Where starting weights come from; paths or hub ids. Later ones win over earlier ones."""

    init: Literal["pretrained", "random"] = "pretrained"
    """"random" trains from scratch and ignores `backbone` and `bert`."""
    backbone: str | None = None
    """ResNet file (torchvision or mmdetection names), or a timm/hub id."""
    bert: str | None = None
    """Folder or file with BERT weights, or a hub id."""
    model: str | None = None
    """A whole model: ours (run folder, checkpoint) or a released HD-VILA file."""


@dataclass(frozen=True)
class TextConfig:
    """The text half and the cross half of one BERT; `config` (a JSON file) gives the sizes."""

    config: str | None = None
    """JSON with BERT's own names (hidden_size, num_hidden_layers, ...); it wins over the fields."""
    encoder: str | None = None
    """Any other encoder that transformers' AutoModel loads (folder or hub id); stage 1 only unless
    it is of the BERT family."""
    hidden_size: int = 1024
    num_layers: int = 24
    """Of both halves together: the first half reads text, the second half crosses modalities."""
    num_heads: int = 16
    intermediate_size: int = 4096
    vocab_size: int = 30522
    max_positions: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.1
    max_length: int = 50
    """Tokens of a text with its specials."""
    pool: Literal["mean", "first"] = "mean"
    tokenizer: str | None = None
    """Folder of a tokenizer or a hub id; None trains WordPiece on the training texts."""


@dataclass(frozen=True)
class ModelConfig:
    """The hybrid encoder, its ablations and the frame-mean baseline."""

    kind: Literal["hybrid", "frames_mean"] = "hybrid"
    """"frames_mean": the same image tower on each frame, mean-pooled, with the same text tower."""
    inputs: Literal["hybrid", "high", "low"] = "hybrid"
    backbone: str = "resnet50"
    """Any timm model that `features_only` or its intermediate-features getter serves."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    frozen_stages: int = -1
    """Freeze the stem and stages 1..n of the backbone; -1 freezes nothing."""
    frozen_norm: bool = True
    """Batch-norm statistics stay as loaded (its gains and offsets still train)."""
    standardized: bool = False
    """A backbone without norms, its kernels standardised: learns fastest from scratch, whatever the
    batch. Weight files of networks with norms do not fit it."""
    grid_cell: Literal[16, 32, 64] = 64
    """Pixels of the high-resolution frame to a grid cell, each way. 64 is the published one, from
    the backbone's maps of strides 16 and 32; 32 takes those of 8 and 16, for small frames."""
    embed_dim: int = 1024
    temporal_depth: int = 4
    temporal_heads: int = 16
    temporal_drop_path: float = 0.1
    temporal_grid: tuple[int, int] = (10, 16)
    """Grid of the stored position embedding; other grids are interpolated."""
    temporal_positions: int = 7
    """Count of stored time embeddings; other counts are interpolated."""
    video_pool: Literal["mean", "max"] = "mean"
    """How a clip's grid becomes its vector in the joint space. "mean" is the published one; with
    "max" a small object speaks as loud as a large one."""
    visual_tokens: int = 160
    """Random subset of grid tokens given to the cross half in training."""
    cross: bool = False
    """Build the cross half (stage 2, question answering)."""
    num_answers: int = 0
    """Size of the open-ended answer head; 0 takes it from the answer vocabulary."""
    text: TextConfig = TextConfig()
    weights: WeightsConfig = WeightsConfig()
    freeze: tuple[Literal["stage1", "stage1_vision", "backbone", "text"], ...] = ()
    gradient_checkpointing: bool = False
    compile: bool = False
    compat: bool = False
    """Reproduce the defects of the original that a published checkpoint needs."""


@dataclass(frozen=True)
class DatasetConfig:
    """One named data set: annotations and the media that they speak of.

    Paths are relative to the data mount. `videos` is whatever the catalogue opens: a folder, a
    manifest, an image folder, a store.
    """

    name: str
    annotations: tuple[str, ...]
    videos: str
    annotation_format: str = "auto"
    vis_format: Literal["video", "frame", "store", "auto"] = "auto"
    videos_low: str | None = None
    """Folder of the low-resolution frames of `vis_format: frame`; None: the `_lr` neighbour."""
    split: str | None = None
    """Keep only the records that state this split; "fit" and "holdout" (or "train:fit") part one
    video in twenty off for validation, by a hash of its id."""
    ratio: int = 1
    """Share of the batches where several data sets are mixed."""
    texts: Literal["caption", "caption_and_transcript", "paragraph", "question"] = "caption"
    """Which texts go with a video; each transcript segment goes with its own span."""


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how it reaches the model."""

    mount_dir: str | None = None
    """Root of relative paths; None: $PATH_TO_STORAGE, /data_mount where it exists, else here."""
    train: tuple[DatasetConfig, ...] = ()
    validation: tuple[DatasetConfig, ...] = ()
    test: tuple[DatasetConfig, ...] = ()
    answers: str | None = None
    """JSON of answer -> label; None builds it from the training answers."""
    max_answers: int = 1500
    frames: str = "local"
    """"inprocess", "local" (worker pool) or "flight://host:port,..."."""
    backend: Literal["pyav", "torchcodec", "decord", "opencv"] = "pyav"
    num_workers: int = 2
    """Decode workers of the local pool."""
    prefetch: int = 2
    """Batches made ahead."""
    cache_bytes: int = 0
    """Budget for decoded clips of fixed (evaluation) sampling."""
    deadline: float = 60.0
    """Seconds that one sample may take to decode."""
    failure_budget: float = 0.1
    """Share of training samples that may fail before the run stops; evaluation reports coverage."""
    mask_probability: float = 0.15
    token: str | None = None
    """File with the token of the frame service."""
    tls_ca: str | None = None
    """PEM of the authority that signed the frame servers' certificates; they then speak TLS."""
    texts_per_video: int = 1
    """Questions about one video that share its frames in training (open-ended answers)."""
    limit: int | None = None
    """Use only this many records of each data set."""


@dataclass(frozen=True)
class ClipConfig:
    """Which moments of a video are seen."""

    sampling: Literal["frames", "seconds"] = "seconds"
    """"frames" keeps the published behaviour: the stride counts frames of the file."""
    num_clips: int = 2
    eval_num_clips: int = 4
    num_frames: int = 7
    """Frames a clip, odd: the middle one is taken at high resolution."""
    stride: int = 12
    """Frames between neighbours (`sampling: frames`)."""
    stride_seconds: float = 0.5
    """Seconds between neighbours (`sampling: seconds`)."""
    span: Literal["stride", "whole"] = "stride"
    """"whole" spreads a clip's frames over the whole (stretch of the) video."""


@dataclass(frozen=True)
class GeometryConfig:
    """One geometry for a whole clip; the low-resolution size is a quarter of the high one.

    `published` reproduces the published pixels: stretch-nearest to `resize`, crop `crop` at low
    resolution, high resolution by upsampling on the device (or, for frame folders and pretraining,
    the matching crop of the real frame). `native` crops the real frame and asks the decoder for
    both sizes.
    """

    mode: Literal["published", "native"] = "native"
    high_size: tuple[int, int] = (640, 1024)
    resize: tuple[int, int] | None = None
    """(height, width) of the published stretch-nearest resize."""
    crop: tuple[int, int] | None = None
    """Published crop (low resolution, or high resolution in pretraining)."""
    high: Literal["real", "upsampled"] = "real"
    """"upsampled": the middle frame is the low-resolution one enlarged 4x on the device."""
    pad_to: int | None = None
    """TGIF: longer side to this, pad right and bottom to a square."""
    pad_value: int = 0
    min_scale: float = 0.8
    """Smallest share of the shorter side that a random training crop keeps (`native`)."""
    flip: float = 0.0
    """Probability of a horizontal flip in training. Beware of texts with left and right."""
    flip_text_guard: bool = True
    """Do not flip where a text says left or right."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """One training objective."""

    name: ObjectiveName
    weight: float = 1.0
    start_step: int = 0
    ratio: int = 1
    """Share of the steps where several objectives take turns (`train.objective_choice: turns`)."""
    temperature: float = 0.05
    learnable_temperature: bool = False
    margin: float = 0.2
    """Triplet margin."""
    hardest: bool = False
    """Triplet: only the hardest negative."""
    num_hard: int = 5
    """Hard-negative NCE: negatives kept a row."""
    pool: Literal["mean", "max", "lse"] = "mean"
    """How clips are pooled (question answering, masked language, matching)."""


@dataclass(frozen=True)
class GroupConfig:
    """Learning rate and decay of one named group of parameters."""

    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with parameter groups by name, and the schedule as a pure function of the step."""

    learning_rate: float = 5e-5
    weight_decay: float = 1e-3
    backbone: GroupConfig = GroupConfig()
    """ResNets and grid encoders."""
    temporal: GroupConfig = GroupConfig()
    """The space-time transformer."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    schedule: Literal["linear", "multi_step", "invsqrt", "constant", "cosine", "auto_step"] = (
        "linear"
    )
    warmup_ratio: float = 0.1
    milestones: tuple[int, ...] = ()
    """Epochs after which `multi_step` multiplies by `gamma`."""
    gamma: float = 0.5
    """What `multi_step` and `auto_step` multiply by."""
    tolerance: int = 1
    """Validations in a row without a better score that `auto_step` forgives."""
    max_grad_norm: float = 5.0
    """Clipping after reduction over ranks; 0 or less does not clip."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: float = 10.0
    max_steps: int | None = None
    """Stop after this many optimiser steps whatever the epochs say."""
    batch_size: int = 8
    """Samples a rank and micro-step."""
    accumulation: int = 1
    """Micro-steps an optimiser step."""
    cached_gradient: bool = False
    """Two passes, so that contrast sees the whole accumulated batch, exactly."""
    objective_choice: Literal["sum", "turns"] = "sum"
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """"auto" is bf16 where the processor has it."""
    num_threads: int | None = None
    checkpoint_every: int = 0
    """Optimiser steps between resumable checkpoints; 0: at the end of each epoch."""
    keep_last: int = 2
    keep_every: int = 0
    """Also keep every n-th checkpoint; 0 keeps none."""
    async_checkpoint: bool = True
    validate_every: int = 0
    """Optimiser steps between validations; 0: at the end of each epoch."""
    best_metric: str = ""
    """Named validation metric that picks `best`; empty takes the task's own."""
    patience: int = 0
    """Validations without improvement before stopping; 0 never stops early."""
    nonfinite_budget: int = 10
    """Steps with NaN or infinity that may be skipped."""
    cache_frozen: int = 0
    """Encode this many clips a video once with the frozen towers; 0 recomputes them each step."""
    log_every: int = 10
    resume: bool = True
    """Go on from the run folder's last checkpoint if there is one."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How checkpoints are judged."""

    batch_size: int = 8
    clip_pool: Literal["mean", "max", "lse"] = "mean"
    """How a video's clips are put together."""
    protocol: Literal["clip", "paragraph", "multi_caption"] = "clip"
    rerank: int = 0
    """Re-rank the top k by the matching head; 0 does not."""
    dual_softmax: float = 0.0
    """Temperature of the dual softmax; 0 is off. It uses test-set statistics, so it is named."""
    bootstrap: int = 1000
    """Resamples of the confidence intervals; 0 gives none."""
    top_k: int = 50
    """Candidates a query in predictions/<split>.jsonl."""


@dataclass(frozen=True)
class InferenceConfig:
    """`--do_inference 1`: judge a finished run instead of training."""

    enabled: bool = False
    split: str = "test"
    step: str = "best"
    """"best", "last", 1200 or step_1200."""
    annotations: str | None = None
    videos: str | None = None
    batch_size: int | None = None
    num_clips: int | None = None


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on; its resolved form lands in the run folder."""

    task: Task = "pretrain"
    stage: Literal[1, 2] = 1
    run_name: str = ""
    output_dir: str = "data/output/run"
    seed: int = 24
    seeds: int = 1
    """Repeat the run with seed, seed + 1, ...; results give mean and spread."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    clips: ClipConfig = ClipConfig()
    geometry: GeometryConfig = GeometryConfig()
    objectives: tuple[ObjectiveConfig, ...] = (ObjectiveConfig("contrastive"),)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    inference: InferenceConfig = InferenceConfig()
    dry_run: bool = False
