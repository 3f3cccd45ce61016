"""The only place that knows how processes talk: `World`, made once in main and passed on."""

from rushes.distributed.launch import make_world, run_main
from rushes.distributed.world import SingleWorld, World

__all__ = ["SingleWorld", "World", "make_world", "run_main"]
