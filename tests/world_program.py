"""What several processes do in the tests of `rushes.distributed`; run under a launcher."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from rushes.distributed import SingleWorld, World, run_main
from rushes.errors import ConfigError
from rushes.modeling.encoded import Encoded
from rushes.modeling.inputs import BatchLike
from rushes.modeling.objectives import Objective
from rushes.steps import Pass, accumulate, count_valid
from rushes.training import StepReport, elastic_config, train
from tests.paragraphs import ParagraphLoader, ParagraphModel, paragraph_config
from tests.toy import ToyLoader, ToyModel, toy_batch, toy_config, toy_model

ROWS = (3, 5)
"""Rows of each of two ranks: uneven on purpose."""


def collectives(world: World) -> None:
    """Every call, with different rows on each rank."""
    rank, size = world.rank, world.size
    assert (size, world.local_size, world.local_rank) == (2, 2, rank)
    mine = torch.arange(float(ROWS[rank] * 2)).view(-1, 2) + 100 * rank
    expected = torch.cat(
        [torch.arange(float(r * 2)).view(-1, 2) + 100 * i for i, r in enumerate(ROWS)]
    )
    assert torch.equal(world.all_gather(mine), expected)
    assert world.all_gather(mine[:0] if rank else mine).shape == (ROWS[0], 2)
    assert world.all_gather(mine[:0]).shape == (0, 2)
    flags = world.all_gather(torch.tensor([rank == 1]))
    assert flags.dtype == torch.bool
    assert flags.tolist() == [False, True]
    assert world.all_gather(torch.tensor([rank])).tolist() == [0, 1]
    assert world.all_reduce_sum(torch.tensor([1.5 + rank, 2.0])).tolist() == [4.0, 4.0]
    assert world.all_gather_object({"rank": rank, "big": "x" * (rank * 100_000)})[1]["rank"] == 1
    assert world.broadcast_object(["from", rank], source=1) == ["from", 1]
    assert world.all_true(True)
    assert not world.all_true(rank == 0)
    module = nn.BatchNorm1d(3)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.fill_(rank + 7)
    world.broadcast_parameters(module)
    assert all(bool((t == 7).all()) for t in module.state_dict().values())
    world.barrier()


def gradients_of_absent_parameters(world: World) -> None:
    """None anywhere stays None; on some ranks counts as zero on the others."""
    module = nn.ParameterDict({n: nn.Parameter(torch.zeros(2)) for n in ("both", "one", "none")})
    module["both"].grad = torch.full((2,), 1.0 + world.rank)
    if world.rank == 0:
        module["one"].grad = torch.full((2,), 4.0)
    world.average_gradients(module)
    assert module["both"].grad.tolist() == [1.5, 1.5]
    assert module["one"].grad is not None
    assert module["one"].grad.tolist() == [2.0, 2.0]
    assert module["none"].grad is None


def gradient(
    model: ToyModel, world: World, rows: list[int], failing: frozenset[int]
) -> dict[str, float]:
    """Leave the gradient of one step on these samples in the model; its losses on this rank."""
    config = toy_config()
    batches = [toy_batch(rows, failing)]
    counts, _ = count_valid(world, batches)
    parts = accumulate(Pass(model, model.objectives(1), world, 0, 1, None), batches, counts, config)
    world.average_gradients(model)
    return {name: float(world.all_reduce_sum(value)) / world.size for name, value in parts.items()}


def same_as_one_process(world: World) -> None:
    """Loss and gradient of uneven rows with a failed sample equal those of one process."""
    failing = frozenset({1, 4})
    everything = list(range(sum(ROWS)))
    mine = everything[: ROWS[0]] if world.rank == 0 else everything[ROWS[0] :]
    ours, alone = toy_model(), toy_model()
    losses = gradient(ours, world, mine, failing)
    expected = gradient(alone, SingleWorld(), everything, failing)
    for name in ("contrastive_loss", "count_loss"):
        assert abs(losses[name] - expected[name]) <= 1e-5 * abs(expected[name]), (
            name,
            losses,
            expected,
        )
    for (name, parameter), other in zip(ours.named_parameters(), alone.parameters(), strict=True):
        if other.grad is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)


def checks(world: World, out: Path) -> int:
    """All of the above; the file is written when every rank is through."""
    collectives(world)
    gradients_of_absent_parameters(world)
    same_as_one_process(world)
    # The first step imports much of torch that may take hold of the process group.
    torch.optim.AdamW(toy_model().parameters()).step()
    names = world.all_gather_object(world.backend)
    if world.is_main:
        out.write_text(json.dumps(names))
    return 0


def assert_no_thread_of_the_group() -> None:
    """Its threads, alive while the interpreter ends, abort the process every twentieth time."""
    tasks = Path("/proc/self/task").glob("*/comm")
    names = [task.read_text().strip() for task in tasks]
    assert not [name for name in names if "gloo" in name], names


def fail(world: World, how: str) -> int:
    """The last rank fails in the given way while the others wait for it."""
    if world.rank == world.size - 1:
        time.sleep(0.5)
        if how == "error":
            raise ValueError("the lens cap was on")
        if how == "config":
            raise ConfigError("train.lens: 'cap' is wrong")
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(10_000):
        world.all_reduce_sum(torch.zeros(4))
    return 0


def run(world: World, folder: Path, settings: str) -> int:
    """Train the toy model; `settings` is JSON: of the run, of the loader, and seconds a step."""
    given = json.loads(settings)
    config = toy_config(str(folder), **given.get("train", {}))
    config = elastic_config(config, world, folder)
    loader = ToyLoader(
        config, world, failing={int(k): v for k, v in given.get("failing", {}).items()}
    )
    pause, raises = given.get("pause", 0.0), given.get("raises", {})

    def on_step(report: object) -> None:
        time.sleep(pause)
        if raises.get("rank") == world.rank and raises.get("step") == getattr(report, "step", 0):
            raise ValueError("the projector stopped")

    model = Poisoned(world, **given.get("poison", {}))
    model.load_state_dict(toy_model().state_dict())
    model.dropout.p = given.get("dropout", 0.0)
    train(model, loader, config, world, folder, on_step=on_step)
    sums = world.all_gather_object([float(p.detach().sum()) for p in model.parameters()])
    assert all(theirs == sums[0] for theirs in sums), "ranks end with different weights"
    return 0


class Poisoned(ToyModel):
    """Its loss is infinite on one rank at one step, and its gradient is not."""

    def __init__(self, world: World, rank: int = -1, step: int = -1) -> None:
        super().__init__()
        self.poisoned = step if world.rank == rank else -1

    def objectives(self, step: int) -> Mapping[str, tuple[float, Objective]]:
        def poison(
            encoded: Encoded,
            batch: BatchLike,
            world: World,
            generator: torch.Generator,
        ) -> Mapping[str, torch.Tensor]:
            return {"poison_loss": torch.tensor(math.inf if step == self.poisoned else 0.0)}

        return {**super().objectives(step), "poison": (1.0, poison)}


def paragraphs(world: World, folder: Path, stop_after: int) -> int:
    """Train the paragraph model; die without a word after step `stop_after`."""
    config = paragraph_config(str(folder), 4 // world.size)
    torch.manual_seed(0)
    model = ParagraphModel(config)

    def on_step(report: StepReport) -> None:
        if report.step == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    train(model, ParagraphLoader(config, world), config, world, folder, on_step=on_step)
    return 0


def main(argv: list[str]) -> int:
    """`checks FILE`, `fail HOW`, `run FOLDER SETTINGS` or `paragraphs FOLDER STOP_AFTER`."""
    if argv[0] == "paragraphs":
        return run_main(lambda world: paragraphs(world, Path(argv[1]), int(argv[2])), "cpu")
    if argv[0] == "checks":
        status = run_main(lambda world: checks(world, Path(argv[1])), "cpu")
        assert_no_thread_of_the_group()
        return status
    if argv[0] == "fail":
        return run_main(lambda world: fail(world, argv[1]), "cpu")
    return run_main(lambda world: run(world, Path(argv[1]), argv[2]), "cpu")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
