"""A trained model in three lines: encode, compare, answer, choose.

model = VideoText.from_pretrained("runs/demo/retrieval/best")
model.similarity(["a red star moves left"], ["clip.mp4"])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save_file

from rushes import hub
from rushes.checkpoint import WEIGHTS
from rushes.configs.load import config_to_json
from rushes.configs.schema import DataConfig, RunConfig
from rushes.datasets.frames import PooledReader
from rushes.datasets.loader import EvalLoader
from rushes.datasets.record import Record, Segment
from rushes.datasets.samples import SampleOptions, sample_options
from rushes.datasets.stretches import stretch_videos
from rushes.datasets.text import TextTokenizer, load_tokenizer
from rushes.distributed import SingleWorld
from rushes.encoding import Encoder, encode_texts
from rushes.errors import CheckpointError, ConfigError, VideoError
from rushes.judge_answers import answer_scores, choice_scores
from rushes.modeling.build import build_model
from rushes.modeling.encoded import Encoded
from rushes.modeling.model import VideoTextModel
from rushes.modeling.weights import load_weights
from rushes.steps import resolve_precision
from rushes.video.arrays import ArrayReader, EitherReader
from rushes.video.catalogue import Catalogue
from rushes.video.readers import open_reader
from rushes.video.request import VideoReader

Array = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Path_ = str | Path
Video = Path_ | bytes | Pixels | Sequence[Image.Image] | tuple[Path_, float | None, float | None]
"""A path, the bytes of a file, uint8 arrays `T H W C`, PIL images, or (path, start, end)."""


class Answer(NamedTuple):
    """One answer and how sure the model is of it, from 0 to 1."""

    text: str
    probability: float


class VideoText:
    """A model with its tokenizer, ready to use; made by `from_pretrained`.

    Args:
        model: with its weights.
        tokenizer: of the run.
        config: of the run.
        answers: vocabulary of open-ended answers, by label.
        results: figures that the model card tells.
        device: where it computes.
        precision: "fp32", "bf16" or "auto".
    """

    def __init__(
        self,
        model: VideoTextModel,
        tokenizer: TextTokenizer,
        config: RunConfig,
        answers: Sequence[str] = (),
        results: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
    ) -> None:
        self.world = SingleWorld(device)
        self.model = model.to(self.world.device).eval()
        self.tokenizer, self.config, self.answers = tokenizer, config, tuple(answers)
        self.results = dict(results or {})
        dtype = resolve_precision(precision, self.world.device)
        self.encoder = Encoder(self.model, tokenizer, self.world, dtype)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        step: str = "best",
        device: str | torch.device | None = None,
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
    ) -> VideoText:
        """Load a model.

        Args:
            source: a model folder, a checkpoint, a run folder or a hub id; a folder needs no
                network.
            step: which checkpoint of a run folder: "best", "last", or a step.
            device: None takes CUDA where there is one.
            precision: float32 by default: the figures of evaluation to the digit.

        Raises:
            CheckpointError, WeightsError, ConfigError: what is wrong with the folder.
        """
        folder = hub.find_model(source, step)
        config = hub.read_model_config(folder)
        if not (folder / hub.TOKENIZER).is_dir():
            raise CheckpointError(f"{folder}: no {hub.TOKENIZER}/ beside the weights")
        tokenizer = load_tokenizer(folder / hub.TOKENIZER, config.model.text.max_length)
        answers = hub.read_answers(folder)
        model = build_model(
            config, vocab_size=tokenizer.vocab_size, num_answers=len(answers) or None
        )
        load_weights(model, folder / WEIGHTS, partial=False)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        results = hub.results_beside(folder)
        return cls(model, tokenizer, config, answers, results, chosen, precision)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model with its tokenizer and a model card: a folder that the hub takes."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, out / WEIGHTS, metadata={"format": "pt"})
        plain = config_to_json(self.config)
        (out / hub.CONFIG).write_text(json.dumps(plain, indent=1), encoding="utf-8")
        self.tokenizer.save(out / hub.TOKENIZER)
        if self.answers:
            labels = {answer: label for label, answer in enumerate(self.answers)}
            (out / hub.ANSWERS).write_text(json.dumps(labels, indent=1), encoding="utf-8")
        if self.results:
            (out / "results.json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        card = hub.model_card(self.config, self.results, hub.data_hashes(self.config))
        (out / hub.CARD).write_text(card, encoding="utf-8")
        return out

    # Encoding ----------------------------------------------------------------------------------

    def encode_text(self, texts: str | Sequence[str]) -> Array:
        """Unit vectors of texts, float32 `Q D`."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        self._needs_joint_space("encode_text")
        if not wanted:
            return np.zeros((0, self.config.model.embed_dim), np.float32)
        return cast(Array, encode_texts(self.encoder, wanted).numpy())

    def encode_video(
        self,
        videos: Video | Sequence[Video],
        *,
        level: Literal["video", "clip"] = "video",
        fps: float = 25.0,
    ) -> Array:
        """Unit vectors of videos, float32 `B D`, or of their clips, `B N D`.

        Args:
            videos: one or several; see `Video`.
            fps: frames a second of arrays and images.

        Raises:
            VideoError: a video cannot be read.
        """
        self._needs_joint_space("encode_video")
        rows = [self._vectors(encoded, level) for encoded in self._encoded(videos, fps)]
        if not rows:
            return np.zeros((0, self.config.model.embed_dim), np.float32)
        return np.stack(rows)

    def _vectors(self, encoded: Encoded, level: str) -> Array:
        if level == "video":
            return cast(Array, encoded.embeddings["video"][0].float().cpu().numpy())
        with self.encoder.running():
            clips = self.model.clip_embeddings(encoded)[0]
        return cast(Array, clips.float().cpu().numpy())

    def similarity(
        self, texts: str | Sequence[str], videos: Video | Sequence[Video], *, fps: float = 25.0
    ) -> Array:
        """Cosine of every text with every video, float32 `Q B`."""
        return self.encode_text(texts) @ self.encode_video(videos, fps=fps).T

    # Questions ---------------------------------------------------------------------------------

    def answer(
        self, video: Video, questions: str | Sequence[str], *, top_k: int = 1, fps: float = 25.0
    ) -> list[list[Answer]]:
        """The likeliest answers to each question about one video, which is encoded once.

        Raises:
            ConfigError: this model was not trained on open-ended questions.
        """
        if self.model.answer_head is None or not self.answers:
            raise ConfigError(
                f"this model was trained for {self.config.task}; answer() needs one trained for "
                "open_ended_qa"
            )
        asked = [questions] if isinstance(questions, str) else list(questions)
        (encoded,) = self._encoded([video], fps)
        records = [Record("video", segments=(Segment(q, "question"),)) for q in asked]
        scores = answer_scores(self.encoder, encoded["video", "token"], records, self._pool())
        return [self._likeliest(row, top_k) for row in scores]

    def choose(
        self,
        video: Video,
        options: Sequence[str],
        question: str | None = None,
        *,
        fps: float = 25.0,
    ) -> list[Answer]:
        """The options in order of how well they fit the video, the best first.

        A model with a multiple-choice head uses it; one trained for retrieval compares each option
        with the video.
        """
        if len(options) < 2:
            raise ConfigError(f"options={list(options)}: expected at least two to choose from")
        (encoded,) = self._encoded([video], fps)
        if self.model.choice_head is not None:
            segments = () if question is None else (Segment(question, "question"),)
            record = Record("video", segments=segments, options=tuple(options))
            level = encoded["video", "token"]
            (scores,) = choice_scores(self.encoder, level, [record], self._pool())
            logits = np.asarray(scores)
        else:
            self._needs_joint_space("choose")
            vector = self._vectors(encoded, "video")
            temperature = next((o.temperature for o in self.config.objectives), 0.05)
            logits = self.encode_text(options) @ vector / temperature
        shares = _softmax(logits)
        order = np.argsort(-shares, kind="stable")
        return [Answer(options[i], float(shares[i])) for i in order]

    def _likeliest(self, scores: Sequence[float], top_k: int) -> list[Answer]:
        shares = _softmax(np.asarray(scores))
        order = np.argsort(-shares, kind="stable")[:top_k]
        return [Answer(self.answers[i], float(shares[i])) for i in order]

    def _pool(self) -> str:
        task = self.config.task
        return next((o.pool for o in self.config.objectives if o.name == task), "mean")

    def _needs_joint_space(self, what: str) -> None:
        if self.model.video_projection is None:
            raise ConfigError(
                f"this model was trained for {self.config.task}; {what}() needs one trained for "
                "retrieval or pretraining"
            )

    # Videos ------------------------------------------------------------------------------------

    def options(self, num_clips: int | None = None) -> SampleOptions:
        """How videos are sampled: as evaluation of the run does, or with another clip count."""
        options = sample_options(self.config, training=False)
        if num_clips is not None:
            options = replace(options, num_clips=num_clips)
        return options

    def encode_records(
        self,
        records: Sequence[Record],
        reader: VideoReader,
        *,
        num_clips: int | None = None,
        workers: int = 2,
    ) -> Iterator[tuple[int, Encoded | VideoError]]:
        """Encodings of stretches of video as they come, each with its position.

        What cannot be read gives its error in place of an encoding.
        """
        data = DataConfig(num_workers=workers)
        options = self.options(num_clips)
        videos = stretch_videos(reader, self.tokenizer, options, self.world, 1, data)
        loader = videos(records)
        assert isinstance(loader, EvalLoader)
        for index, encoded in self.encoder.videos(loader):
            if encoded is not None:
                yield index, encoded
                continue
            bad = loader.bad[-1]
            yield index, VideoError(bad.video, bad.detail, cast(Any, bad.reason))

    def _encoded(self, videos: Video | Sequence[Video], fps: float) -> list[Encoded]:
        named = name_videos(videos)
        files = Catalogue.from_items(named.files)
        other = PooledReader(lambda: open_reader(files))
        reader = EitherReader(ArrayReader(named.arrays, fps), frozenset(named.arrays), other)
        out: dict[int, Encoded] = {}
        try:
            for index, encoded in self.encode_records(named.records, reader):
                if isinstance(encoded, VideoError):
                    raise encoded
                out[index] = encoded
        finally:
            reader.close()
        return [out[index] for index in range(len(named.records))]


@dataclass(frozen=True)
class NamedVideos:
    """What a user handed over, under ids."""

    records: list[Record]
    files: dict[str, str | Path | bytes]
    arrays: dict[str, Pixels]


def name_videos(videos: Video | Sequence[Video]) -> NamedVideos:
    """Give each video an id: paths keep theirs, so that errors name them."""
    out = NamedVideos([], {}, {})
    for place, video in enumerate(_several(videos)):
        start = end = None
        if isinstance(video, tuple):
            video, start, end = video
        if isinstance(video, str | Path):
            name = str(video)
            out.files[name] = video
        elif isinstance(video, bytes | bytearray | memoryview):
            name = f"bytes {place}"
            out.files[name] = bytes(video)
        else:
            name = f"array {place}"
            out.arrays[name] = _pixels(video)
        out.records.append(Record(name, id=f"{place}", start=start, end=end))
    return out


def _several(videos: Any) -> list[Any]:
    if isinstance(videos, str | Path | bytes | bytearray | memoryview):
        return [videos]
    if isinstance(videos, np.ndarray) and videos.ndim == 4:
        return [videos]
    if isinstance(videos, tuple) and len(videos) == 3 and _is_time(videos[1]):
        return [videos]
    items = list(videos)
    return [items] if items and isinstance(items[0], Image.Image) else items


def _is_time(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _pixels(video: Any) -> Pixels:
    if isinstance(video, Sequence) and video and isinstance(video[0], Image.Image):
        return np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in video])
    if isinstance(video, torch.Tensor):
        video = video.numpy()
    if not isinstance(video, np.ndarray):
        raise ConfigError(
            f"a video of type {type(video).__name__}: expected a path, bytes, a uint8 array "
            "T H W C, a list of PIL images, or (path, start, end)"
        )
    return video


def _softmax(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = np.exp(scores.astype(np.float64) - scores.max())
    return cast("npt.NDArray[np.float64]", shifted / shifted.sum())
