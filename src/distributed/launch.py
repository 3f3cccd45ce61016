"""Which launcher started this process, and the border between the process and its launcher."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping

import torch

from rushes.distributed.horovod_world import HorovodWorld, local_device
from rushes.distributed.torch_world import TorchWorld
from rushes.distributed.world import SingleWorld, World
from rushes.errors import ConfigError, RankFailed, RushesError
from rushes.log import get_logger, setup_logging

logger = get_logger(__name__)

TIMEOUT_VARIABLE = "RUSHES_COLLECTIVE_TIMEOUT"
"""Seconds that a collective of torch.distributed may take."""


def make_world(device: torch.device | str | None = None) -> World:
    """The world that the environment speaks of.

    horovodrun (`HOROVOD_RANK`), torchrun (`RANK`, `WORLD_SIZE`), Slurm's srun with several tasks
    (`SLURM_STEP_NUM_TASKS`), else one process.

    Args:
        device: where to compute; None takes the local rank's CUDA device, else the CPU.

    Raises:
        ConfigError: a variable of the launcher is missing or no number.
        BackendMissing: started by horovodrun, but Horovod is not installed.
    """
    env = os.environ
    if "HOROVOD_RANK" in env:
        return HorovodWorld(device)
    if "RANK" in env and "WORLD_SIZE" in env:
        local = _number(env, "LOCAL_RANK", 0)
        return TorchWorld(
            _number(env, "RANK"),
            _number(env, "WORLD_SIZE"),
            local,
            _number(env, "LOCAL_WORLD_SIZE", 1),
            local_device(local, device),
            env.get("MASTER_ADDR", "127.0.0.1"),
            _number(env, "MASTER_PORT", 29500),
            store_is_running=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=env.get("TORCHELASTIC_RESTART_COUNT", "0"),
            timeout=_number(env, TIMEOUT_VARIABLE, 1800),
        )
    if _number(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm_world(env, device)
    return SingleWorld(local_device(0, device))


def _slurm_world(env: Mapping[str, str], device: torch.device | str | None) -> World:
    local = _number(env, "SLURM_LOCALID")
    node = _number(env, "SLURM_NODEID", 0)
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    # All steps of a job may run at once, so the port depends on both numbers.
    job = _number(env, "SLURM_JOB_ID", 0) * 31 + _number(env, "SLURM_STEP_ID", 0)
    return TorchWorld(
        _number(env, "SLURM_PROCID"),
        _number(env, "SLURM_STEP_NUM_TASKS"),
        local,
        counts[node] if node < len(counts) else 1,
        local_device(local, device),
        env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        _number(env, "MASTER_PORT", 20000 + job % 10000),
        timeout=_number(env, TIMEOUT_VARIABLE, 1800),
    )


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list.

    >>> first_host("gpu[007-012,020],login1")
    'gpu007'
    >>> first_host("n1,n2")
    'n1'
    """
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r}: no node name")
    return "".join(part or "" for part in match.groups())


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form of task counts.

    >>> tasks_per_node("2(x3),1")
    [2, 2, 2, 1]
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={text!r}: expected a form like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"{name}={text!r}: expected a number from the launcher") from None


def run_main(main: Callable[[World], int], device: torch.device | str | None = None) -> int:
    """Run `main` in the world of this process and give back its exit status.

    An error is shown with its rank and takes the other ranks down within seconds. A `RushesError`
    is one line; anything else comes with its traceback. 1 stands for any failure, 2 for a
    configuration that is wrong, 143 for a run that SIGTERM stopped in good order.
    """
    try:
        world = make_world(device)
    except RushesError as error:
        setup_logging()
        logger.error("%s", error)
        return 2 if isinstance(error, ConfigError) else 1
    setup_logging(world.rank)
    try:
        status = main(world)
    except SystemExit as stop:  # all ranks decide this alike
        world.shutdown()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except RushesError as error:
        return _failed(world, f"{type(error).__name__}: {error}", error)
    except BaseException as error:
        if world.size == 1:
            raise
        return _failed(world, traceback.format_exc(), error)
    world.shutdown()
    return status


def _failed(world: World, text: str, error: BaseException) -> int:
    logger.error("%s", text)
    status = 2 if isinstance(error, ConfigError) else 1
    if world.size == 1:
        return status
    if not isinstance(error, RankFailed):
        world.report_failure(text)
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of a broken group may wait for peers that are gone: leave without them.
    os._exit(status)
