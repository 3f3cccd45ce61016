"""One road from a configuration to a run folder, shared by all runners.

A runner names its task; the rest is the same for all: tokenizer, data, model, starting weights,
training with validation, and judging the best checkpoint on the test split into `results.json`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rushes.checkpoint import resolve_checkpoint, write_atomically
from rushes.configs.load import build_config, config_to_json, load_config
from rushes.configs.schema import RunConfig
from rushes.datasets.build import (
    FrameSources,
    build_answers,
    build_eval_loaders,
    build_tokenizer,
    build_train_loader,
    check_held_out,
    evaluation_sets,
    mount_folder,
    open_dataset_records,
    read_answers,
    resolve_path,
)
from rushes.datasets.loader import EvalLoader, TrainLoader
from rushes.datasets.record import Record
from rushes.datasets.text import TextTokenizer
from rushes.distributed import World, run_main
from rushes.dry_run import (
    META,
    first_batches,
    next_step,
    predict_step,
    scratch,
    try_one_step,
    why_no_step,
)
from rushes.errors import ConfigError
from rushes.evaluation import evaluate, write_predictions
from rushes.frozen_cache import cache_frozen, check_cacheable
from rushes.judge_masked import evaluate_masked
from rushes.log import get_logger
from rushes.modeling.build import build_model
from rushes.modeling.model import VideoTextModel
from rushes.modeling.weights import load_weights, read_config, start_weights
from rushes.process import keep_freed_memory, share_interpreter
from rushes.protocols import Evaluation
from rushes.training import StepLoader, elastic_config, train

log = get_logger(__name__)

RESULTS = "results.json"
ANSWERS = "answers.json"


def main(argv: Sequence[str], program: str, accept: Callable[[RunConfig], RunConfig]) -> int:
    """Run what `argv` asks for; returns an exit code.

    Args:
        program: name in the help text.
        accept: the configuration as this runner takes it; raises `ConfigError` where it is not one
            of this runner's.
    """

    def body(world: World) -> int:
        run(accept(load_config(argv, program)), world)
        return 0

    return run_main(body)


def run(config: RunConfig, world: World) -> dict[str, Any]:
    """Train and judge (or only judge) with one or several seeds; returns the results."""
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    folder = output_folder(config)
    if config.seeds == 1 or config.inference.enabled or config.dry_run:
        return _run_one(config, world, folder)
    every = []
    for seed in range(config.seed, config.seed + config.seeds):
        every.append(_run_one(replace(config, seed=seed, seeds=1), world, folder / f"seed_{seed}"))
    summary = {"seeds": every, **spread(every)}
    if world.is_main:
        write_json(folder / RESULTS, summary)
    return summary


def _run_one(config: RunConfig, world: World, folder: Path) -> dict[str, Any]:
    if not config.inference.enabled:
        check_held_out(config)
    if config.dry_run:
        return _dry_run(config, world, folder)
    if config.inference.enabled:
        return infer(config, world, folder)
    finished = folder / RESULTS
    if config.train.resume and _is_finished(finished, config):
        log.info("finished before with this configuration: %s", finished)
        results: dict[str, Any] = json.loads(finished.read_text("utf-8"))
        return results
    return train_and_judge(config, world, folder)


def _dry_run(config: RunConfig, world: World, folder: Path) -> dict[str, Any]:
    """Check everything in a scratch folder, take a step where it fits, say what would run.

    Leaves nothing.
    """
    with scratch(world, folder) as place:
        if config.inference.enabled:
            config = _of_finished_run(config, folder)
        else:
            config = elastic_config(config, world, folder)
        parts = assemble(config, world, place, meta=True)
        found: dict[str, Any] = {
            "task": config.task,
            "output": str(folder),
            "ranks": world.size,
            "device": str(world.device),
            "parameters": sum(p.numel() for p in parts.model.parameters()),
            "trainable": sum(p.numel() for p in parts.model.parameters() if p.requires_grad),
        }
        if config.inference.enabled:
            loaders = parts.loaders(config.inference.split)
            found["samples"] = sum(len(loader.dataset) for loader in loaders)
        else:
            found["from_step"] = world.broadcast_object(next_step(folder, config))
            found.update(_try_training(parts))
        parts.sources.close()
    if world.is_main:
        print(json.dumps(found, indent=1))  # noqa: T201
    return found


def _try_training(parts: Parts) -> dict[str, Any]:
    """What training would take, and the first step where it fits."""
    config, world = parts.config, parts.world
    if config.train.cache_frozen:
        check_cacheable(parts.model, config)
    loader = build_train_loader(
        config, world, parts.tokenizer, sources=parts.sources, answers=parts.answers
    )
    epochs = config.train.epochs * loader.steps_per_epoch
    found: dict[str, Any] = {
        "steps": min(config.train.max_steps or math.inf, math.ceil(epochs)),
        "evaluated": {
            split: sum(len(loader.dataset) for loader in parts.loaders(split))
            for split in ("validation", "test")
            if getattr(config.data, split)
        },
    }
    batches, waited = first_batches(loader)
    found["seconds_data"] = round(waited, 2)
    predicted = predict_step(config, world, parts.model, batches[0])
    found.update(predicted)
    reasons = world.all_gather_object(why_no_step(world, predicted))
    reason = next(filter(None, reasons), "")
    if reason:
        found["not_tried"] = reason
        return found
    model = assemble(config, world, parts.folder).model
    return {**found, **try_one_step(config, world, model, batches)}


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        answers: label of each answer, for open-ended questions.
        train_records: where majority answers are counted.
    """

    config: RunConfig
    world: World
    folder: Path
    tokenizer: TextTokenizer
    answers: dict[str, int]
    sources: FrameSources
    model: VideoTextModel
    train_records: Sequence[Record] = ()

    def loaders(self, split: str) -> list[EvalLoader]:
        """Evaluation loaders of a split."""
        return build_eval_loaders(
            self.config,
            split,
            self.world,
            self.tokenizer,
            sources=self.sources,
            answers=self.answers,
        )

    def judge(self, loader: EvalLoader) -> Evaluation:
        """The figures of the run's task on one data set."""
        self.model.eval()
        names = {objective.name for objective in self.config.objectives}
        if self.config.task == "pretrain" and names <= {"masked_language", "matching"}:
            return evaluate_masked(self.model, loader, self.world, self.config)
        return evaluate(
            self.model, loader, self.world, self.config, train_records=self.train_records
        )


def assemble(
    config: RunConfig, world: World, folder: Path, *, weights: bool = True, meta: bool = False
) -> Parts:
    """Tokenizer, answers, readers and model, with the starting weights that the config names.

    Args:
        weights: load them; else the model keeps its random ones.
        meta: the model has shapes but no values, and the weights are only checked against it.
    """
    keep_freed_memory()
    share_interpreter()
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_dir={folder}: cannot be made: {error}") from error
    world.barrier()
    tokenizer = build_tokenizer(config, world, folder / "tokenizer")
    answers: dict[str, int] = {}
    if config.task == "open_ended_qa":
        answers = _answers(config, folder)
    torch.manual_seed(config.seed)
    with META if meta else nullcontext():
        model = build_model(
            config, vocab_size=tokenizer.vocab_size, num_answers=len(answers) or None
        )
    if not meta:
        model.to(world.device)
    if weights:
        start_weights(model, mount_folder(config))
    if not meta:
        world.broadcast_parameters(model)
    records: list[Record] = []
    if config.task in ("open_ended_qa", "multiple_choice_qa"):
        for dataset in config.data.train:
            records.extend(open_dataset_records(config, dataset))
    sources = FrameSources(config, world)
    return Parts(config, world, folder, tokenizer, answers, sources, model, records)


def train_and_judge(config: RunConfig, world: World, folder: Path) -> dict[str, Any]:
    """Train to the end, then judge the best checkpoint on the test split."""
    config = elastic_config(config, world, folder)
    parts = assemble(config, world, folder)
    loader: StepLoader = build_train_loader(
        config, world, parts.tokenizer, sources=parts.sources, answers=parts.answers
    )
    if config.train.cache_frozen:
        assert isinstance(loader, TrainLoader)
        loader = cache_frozen(loader, parts.model, config, world, folder)
    validate = None
    if config.data.validation:
        loaders = parts.loaders("validation")

        def validate(model: nn.Module, step: int) -> Mapping[str, float]:  # noqa: ARG001
            return flat_metrics([parts.judge(loader) for loader in loaders])

    def extras(checkpoint: Path) -> None:
        parts.tokenizer.save(checkpoint / "tokenizer")
        if parts.answers:
            write_json(checkpoint / ANSWERS, parts.answers)

    outcome = train(parts.model, loader, config, world, folder, validate=validate, extras=extras)
    results: dict[str, Any] = {
        "task": config.task,
        "run_name": config.run_name,
        "seed": config.seed,
        "steps": outcome.step,
        "best_step": outcome.best_step,
        "validation": dict(outcome.metrics),
    }
    if outcome.checkpoint is not None:
        load_weights(parts.model, outcome.checkpoint, partial=False)
        _link_best(folder, world)
    if config.data.test:
        results.update(judge_split(parts, "test"))
    if world.is_main:
        write_json(folder / RESULTS, {**results, "config": config_to_json(config)})
    parts.sources.close()
    world.barrier()
    return results


def infer(config: RunConfig, world: World, folder: Path) -> dict[str, Any]:
    """Judge a finished run (or the weights that the config names) on a split.

    Writes `inference/<task>_<split>_<step>/results.json` and `predictions/<split>.jsonl`.
    """
    own = (folder / "checkpoints").is_dir()
    step = config.inference.step if own else "weights"
    config = _of_finished_run(config, folder)
    parts = assemble(config, world, folder)
    split = config.inference.split
    results: dict[str, Any] = {"task": config.task, "split": split, "step": step}
    results.update(judge_split(parts, split))
    if world.is_main:
        place = folder / "inference" / f"{config.task}_{split}_{step}"
        write_json(place / RESULTS, {**results, "config": config_to_json(config)})
        log.info("%s", place / RESULTS)
    parts.sources.close()
    world.barrier()
    return results


def _of_finished_run(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with the model that stands in the run folder.

    A model can only be built as it was trained, so `model` and `objectives` are the stored ones.
    """
    if not (folder / "checkpoints").is_dir():
        if config.model.weights.model:
            return config
        raise ConfigError(
            f"{folder} holds no checkpoints and model.weights.model is not set: nothing to judge"
        )
    checkpoint = resolve_checkpoint(folder, config.inference.step)
    stored = build_config(read_config(checkpoint))
    weights = replace(config.model.weights, init="random", model=str(checkpoint.absolute()))
    model = replace(stored.model, weights=weights)
    return replace(config, model=model, objectives=stored.objectives)


def judge_split(parts: Parts, split: str) -> dict[str, Any]:
    """Figures of every data set of a split; predictions go to the run folder.

    One data set gives its figures plainly; of several, each stands under its name.
    """
    sets = evaluation_sets(parts.config, split)
    results: dict[str, Any] = {}
    for dataset, loader in zip(sets, parts.loaders(split), strict=True):
        judged = parts.judge(loader)
        named = split if len(sets) == 1 else f"{split}_{dataset.name}"
        if parts.world.is_main:
            write_predictions(parts.folder, named, judged.rows)
        found = {**judged.metrics, "unreadable": judged.unreadable}
        results.update(found if len(sets) == 1 else {dataset.name: found})
        if judged.unreadable:
            log.warning(
                "%s: %d videos could not be read: %s",
                dataset.name,
                len(judged.unreadable),
                judged.unreadable[:10],
            )
    return results


def flat_metrics(judged: Sequence[Evaluation]) -> dict[str, float]:
    """Scores by dotted name; the first data set's without a prefix, further ones under theirs."""
    out: dict[str, float] = {}
    for number, evaluation in enumerate(judged):
        prefix = "" if number == 0 else f"set{number}."
        out.update({prefix + name: value for name, value in flatten(evaluation.metrics).items()})
        if number == 0 and evaluation.key:
            out.setdefault("key", _lookup(evaluation.metrics, evaluation.key))
    return out


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested dictionaries by dotted name."""
    out: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{name}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[prefix + name] = float(value)
    return out


def spread(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of each score over seeds."""
    tables = [flatten(results) for results in every]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    mean, deviation = {}, {}
    for name in shared:
        values = [table[name] for table in tables]
        mean[name] = statistics.fmean(values)
        deviation[name] = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean, "standard_deviation": deviation}


def output_folder(config: RunConfig) -> Path:
    """The run folder: `output_dir` (relative to the data mount only when it begins with data/)."""
    path = Path(config.output_dir)
    if not path.is_absolute() and path.parts[:1] == ("data",):
        path = resolve_path(config, path)
    return path / config.run_name if config.run_name else path


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one piece, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _answers(config: RunConfig, folder: Path) -> dict[str, int]:
    """The answer vocabulary: the one stored with the starting weights when judging, else built."""
    if config.inference.enabled:
        start = Path(config.model.weights.model or "")
        for place in (start, folder / "checkpoints" / "best", folder):
            if (place / ANSWERS).is_file():
                return read_answers(place / ANSWERS)
    return build_answers(config)


def _is_finished(path: Path, config: RunConfig) -> bool:
    if not path.is_file():
        return False
    stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return bool(stored.get("config") == config_to_json(config))


def _link_best(folder: Path, world: World) -> None:
    """`RUN/best` and `RUN/last`, the short names that people type."""
    if not world.is_main:
        return
    there = [name for name in ("best", "last") if (folder / "checkpoints" / name).is_dir()]
    for name in ("best", "last") if there else ():
        # Without a validation split the last checkpoint is the best one known.
        target = Path("checkpoints") / (name if name in there else there[0])
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=True)


def _lookup(values: Mapping[str, Any], path: str) -> float:
    found: Any = values
    for part in path.split("."):
        found = found[part]
    return float(found)
