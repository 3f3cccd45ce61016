"""rushes: trains video-language models straight from raw footage.

Importing the package is cheap on purpose (decode workers do it in a tenth of a second): the public
names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rushes.api import VideoText

__version__ = "0.1.0"
__all__ = ["VideoText", "__version__"]

_LAZY = {"VideoText": "rushes.api"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rushes' has no attribute {name!r}")
