"""From a `RunConfig` to data: paths, readers, tokenizer, answers, data sets and loaders."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from rushes.configs.schema import DatasetConfig, RunConfig
from rushes.datasets.collate import BadVideo
from rushes.datasets.frames import PooledReader
from rushes.datasets.loader import EvalLoader, TrainLoader
from rushes.datasets.multiple_choice import MultipleChoiceDataset
from rushes.datasets.pretrain import PretrainDataset
from rushes.datasets.record import Record
from rushes.datasets.record_store import RecordStore, cache_folders, open_records, splits_overlap
from rushes.datasets.retrieval import RetrievalDataset, VideoDataset
from rushes.datasets.samples import SampleOptions, VideoTextDataset, sample_options
from rushes.datasets.text import TextTokenizer, load_tokenizer, train_tokenizer
from rushes.datasets.video_qa import OpenEndedDataset
from rushes.distributed import World
from rushes.errors import ConfigError
from rushes.log import get_logger
from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import VideoReader

STORAGE_VARIABLE = "PATH_TO_STORAGE"
CONTAINER_MOUNT = Path("/data_mount")
TOKENIZER_RECORDS = 1_000_000
"""Records whose texts train a tokenizer, at most."""
Split = Literal["train", "validation", "test"]
_log = get_logger(__name__)


def mount_folder(config: RunConfig) -> Path:
    """Root of relative paths: the config's, $PATH_TO_STORAGE, /data_mount, the working folder."""
    given = config.data.mount_dir or os.environ.get(STORAGE_VARIABLE)
    if given:
        return Path(given)
    return CONTAINER_MOUNT if CONTAINER_MOUNT.is_dir() else Path.cwd()


def resolve_path(config: RunConfig, path: str | Path) -> Path:
    """A path of a preset as one that can be opened; absolute ones stay."""
    return mount_folder(config) / path


def open_dataset_records(config: RunConfig, dataset: DatasetConfig) -> RecordStore:
    """The records of one data set; raises `AnnotationError`."""
    paths = [resolve_path(config, path) for path in dataset.annotations]
    return open_records(paths, dataset.annotation_format, dataset.split, config.data.limit)


class FrameSources:
    """The readers of a run, one for each place that videos lie in, opened once."""

    def __init__(self, config: RunConfig, world: World) -> None:
        self.config, self.world = config, world
        self._open: dict[tuple[str, str, str | None], VideoReader] = {}

    def open(self, dataset: DatasetConfig) -> VideoReader:
        """The reader of a data set; several threads may use it."""
        key = (dataset.videos, dataset.vis_format, dataset.videos_low)
        if key not in self._open:
            self._open[key] = open_frames(self.config, dataset, self.world)
        return self._open[key]

    def close(self) -> None:
        """Close them all."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()


def open_frames(config: RunConfig, dataset: DatasetConfig, world: World) -> VideoReader:  # noqa: ARG001
    """A reader of a data set's videos that several threads may use at once.

    `data.frames` says where decoding happens: in this process's threads, in a local pool of
    processes, or in frame servers (`flight://host:port,...`). Servers show one folder, and an id
    may mean another video elsewhere: data sets outside it are decoded in a local pool.

    Raises:
        ConfigError: an unknown `data.frames` or backend, or no such folder.
    """
    path = resolve_path(config, dataset.videos)
    low = None if dataset.videos_low is None else resolve_path(config, dataset.videos_low)
    frames, data = config.data.frames, config.data
    if frames == "inprocess":
        catalogue = open_catalogue(path, vis_format=dataset.vis_format, videos_low=low)
        cache = index_folder(path)
        return PooledReader(lambda: open_reader(catalogue, data.backend, index_cache=cache))
    if frames.startswith("flight://") and not _is_served(config, path):
        _log.warning("%s: decoded here, frame servers show the folder of the first data set", path)
        frames = "local"
    if frames == "local" or frames.startswith("flight://"):
        from rushes.video.service import open_service_reader

        return open_service_reader(
            frames,
            path,
            dataset.vis_format,
            None if low is None else str(low),
            backend=data.backend,
            num_workers=data.num_workers,
            deadline=data.deadline,
            cache_bytes=data.cache_bytes,
            token_file=data.token,
            tls_ca=data.tls_ca,
            index_cache=index_folder(path),
        )
    raise ConfigError(
        f"data.frames={frames!r}: expected inprocess, local or flight://host:port,..."
    )


def _is_served(config: RunConfig, videos: Path) -> bool:
    """Whether frame servers show these videos: they do those of the first data set of the run."""
    data = config.data
    first = next(iter((*data.train, *data.validation, *data.test)), None)
    return first is None or resolve_path(config, first.videos) == videos


def index_folder(videos: Path) -> Path | None:
    """Where packet indexes are kept between runs: the first folder that can be written."""
    for folder in cache_folders(videos):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder / "index"
    return None


def build_tokenizer(config: RunConfig, world: World, folder: Path) -> TextTokenizer:
    """The tokenizer of a run.

    In this order: the one already in `folder`, the one stored with `model.weights.model`,
    `model.text.tokenizer`, else WordPiece trained on the training texts (rank 0 trains, the others
    wait) and written to `folder`.
    """
    length = config.model.text.max_length
    if world.is_main and not (folder / "tokenizer.json").is_file():
        source = stored_tokenizer(config)
        if source is not None:
            load_tokenizer(source, length).save(folder)
        else:
            texts = training_texts(config)
            train_tokenizer(texts, config.model.text.vocab_size, folder)
            _log.info("trained a tokenizer on the training texts: %s", folder)
    world.barrier()
    return load_tokenizer(folder, length)


def stored_tokenizer(config: RunConfig) -> Path | str | None:
    """The tokenizer that the starting weights or the config bring; None where neither does."""
    weights = config.model.weights.model
    if weights:
        for base in (resolve_path(config, weights), Path(weights)):
            for inner in (
                "tokenizer",
                "checkpoints/best/tokenizer",
                "checkpoints/last/tokenizer",
                "",
            ):
                if (base / inner / "tokenizer.json").is_file():
                    return base / inner
    named = config.model.text.tokenizer
    if named is None:
        return None
    resolved = resolve_path(config, named)
    return resolved if resolved.is_dir() else named


def training_texts(config: RunConfig) -> Iterator[str]:
    """Every text that training can show: captions, transcripts, questions, options, answers."""
    for dataset in config.data.train:
        records = open_dataset_records(config, dataset)
        for record in islice(records, TOKENIZER_RECORDS):
            yield from record.texts()
            yield from record.options
            if isinstance(record.answer, str):
                yield record.answer


def build_answers(config: RunConfig) -> dict[str, int]:
    """Label of each answer: `data.answers`, else the most frequent training answers.

    Raises:
        ConfigError: the file is no object of answer -> label, or labels repeat.
    """
    if config.data.answers is not None:
        path = resolve_path(config, config.data.answers)
        return read_answers(path)
    counts: Counter[str] = Counter()
    for dataset in config.data.train:
        for record in open_dataset_records(config, dataset):
            answer = record.answer
            if isinstance(answer, int) and record.options:
                answer = record.options[answer]
            if answer is not None:
                counts[str(answer)] += 1
    return vocabulary_of_answers(counts, config.data.max_answers)


def vocabulary_of_answers(counts: Counter[str], max_answers: int) -> dict[str, int]:
    """Labels by falling frequency, then by name."""
    ordered = sorted(counts, key=lambda answer: (-counts[answer], answer))
    return {answer: label for label, answer in enumerate(ordered[:max_answers])}


def read_answers(path: Path) -> dict[str, int]:
    """A JSON object of answer -> label; raises `ConfigError`."""
    try:
        answers = json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"data.answers: {path}: {error}") from error
    if not isinstance(answers, dict) or not all(type(v) is int for v in answers.values()):
        raise ConfigError(f"data.answers: {path}: expected an object of answer -> label")
    if len(set(answers.values())) != len(answers):
        raise ConfigError(f"data.answers: {path}: some labels repeat")
    return answers


def build_dataset(
    config: RunConfig,
    dataset: DatasetConfig,
    reader: VideoReader,
    tokenizer: TextTokenizer,
    training: bool,
    answers: dict[str, int] | None = None,
) -> VideoTextDataset:
    """One data set under the run's task; raises `AnnotationError`."""
    options = sample_options(config, training)
    records = open_dataset_records(config, dataset)
    return _of_task(config, dataset, records, reader, tokenizer, options, answers)


def _of_task(
    config: RunConfig,
    dataset: DatasetConfig,
    records: RecordStore,
    reader: VideoReader,
    tokenizer: TextTokenizer,
    options: SampleOptions,
    answers: dict[str, int] | None,
) -> VideoTextDataset:
    name, task = dataset.name, config.task
    if task == "open_ended_qa":
        vocabulary = build_answers(config) if answers is None else answers
        group = config.data.texts_per_video if options.training else 1
        return OpenEndedDataset(name, records, reader, tokenizer, options, vocabulary, group)
    if task in ("multiple_choice_qa", "multiple_choice"):
        count = len(records[0].options)
        return MultipleChoiceDataset(name, records, reader, tokenizer, options, count)
    if task == "pretrain" and options.training:
        return PretrainDataset(name, records, reader, tokenizer, options, dataset.texts)
    texts: str = dataset.texts
    if config.evaluation.protocol == "paragraph":
        texts = "paragraph"
    elif texts == "caption_and_transcript" and not options.training:
        texts = "caption"  # transcripts are no queries
    return RetrievalDataset(name, records, reader, tokenizer, options, texts)


def build_train_loader(
    config: RunConfig,
    world: World,
    tokenizer: TextTokenizer,
    *,
    sources: FrameSources | None = None,
    answers: dict[str, int] | None = None,
    global_batch: int | None = None,
    on_bad: Callable[[BadVideo], None] | None = None,
) -> TrainLoader:
    """The loader over `data.train`; raises `ConfigError` where there is none."""
    if not config.data.train:
        raise ConfigError("data.train is empty: nothing to train on")
    sources = sources or FrameSources(config, world)
    datasets = [
        build_dataset(config, d, sources.open(d), tokenizer, True, answers)
        for d in config.data.train
    ]
    return TrainLoader(datasets, config, world, global_batch=global_batch, on_bad=on_bad)


def evaluation_sets(config: RunConfig, split: str) -> Sequence[DatasetConfig]:
    """The data sets of a split ("val" is validation), `inference.*` laid over them.

    Raises:
        ConfigError: an unknown split, or no data set of it.
    """
    named = {"val": "validation"}.get(split, split)
    if named not in ("train", "validation", "test"):
        raise ConfigError(f"split={split!r}: expected train, validation (val) or test")
    sets: tuple[DatasetConfig, ...] = getattr(config.data, named)
    chosen = config.inference
    if chosen.enabled and (chosen.annotations or chosen.videos):
        base = next(iter(sets or config.data.test or config.data.validation), None)
        if base is None and not (chosen.annotations and chosen.videos):
            raise ConfigError(
                f"no {named} data set to take inference.annotations or .videos from: give both"
            )
        base = base or DatasetConfig("inference", (), "")
        if chosen.annotations:
            name = Path(chosen.annotations).stem
            base = replace(base, name=name, annotations=(chosen.annotations,), split=None)
        return (replace(base, videos=chosen.videos or base.videos),)
    if not sets:
        raise ConfigError(f"data.{named} is empty: nothing to evaluate")
    return sets


def check_held_out(config: RunConfig) -> None:
    """Refuse to pick checkpoints on what the run is judged by in the end.

    Raises:
        ConfigError: a validation set may share records with a test set.
    """
    for judged in config.data.validation:
        for test in config.data.test:
            shared = _annotation_files(config, judged) & _annotation_files(config, test)
            if shared and splits_overlap(judged.split, test.split):
                raise ConfigError(
                    f"data.validation {judged.name!r} (split {judged.split!r}) and data.test "
                    f"{test.name!r} (split {test.split!r}) share {min(shared)}: checkpoints are "
                    'never picked on the test split; hold some training videos out (split "fit" '
                    'and "holdout"), or leave data.validation empty'
                )


def _annotation_files(config: RunConfig, dataset: DatasetConfig) -> set[Path]:
    paths = [resolve_path(config, path) for path in dataset.annotations]
    return {file.resolve() for path in paths for file in (path, *path.parent.glob(path.name))}


def build_eval_loaders(
    config: RunConfig,
    split: str,
    world: World,
    tokenizer: TextTokenizer,
    *,
    sources: FrameSources | None = None,
    answers: dict[str, int] | None = None,
) -> list[EvalLoader]:
    """One loader a data set of the split; raises `ConfigError`."""
    sources = sources or FrameSources(config, world)
    batch_size = evaluation_batch_size(config)
    return [
        EvalLoader(
            build_dataset(config, d, sources.open(d), tokenizer, False, answers),
            batch_size,
            world,
            config.data,
        )
        for d in evaluation_sets(config, split)
    ]


def build_videos(
    config: RunConfig,
    dataset: DatasetConfig,
    world: World,
    tokenizer: TextTokenizer,
    sources: FrameSources,
) -> Callable[[Sequence[Record]], EvalLoader]:
    """What decodes stretches of video for evaluation: records in, this rank's batches out.

    The batches have no texts; `indices` are places in the given records, each once over all ranks.
    """
    options = sample_options(config, training=False)
    reader = sources.open(dataset)

    def videos(records: Sequence[Record]) -> EvalLoader:
        found = VideoDataset(dataset.name, records, reader, tokenizer, options)
        return EvalLoader(found, evaluation_batch_size(config), world, config.data)

    return videos


def evaluation_batch_size(config: RunConfig) -> int:
    """Samples a batch in evaluation; `inference.batch_size` wins when a finished run is judged."""
    chosen = config.inference.batch_size if config.inference.enabled else None
    return chosen or config.evaluation.batch_size
