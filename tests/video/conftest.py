"""Counter videos, rendered once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.video.counter_video import RECIPES, Recipe, render

os.environ.setdefault("SVT_LOG", "0")

Rendered = Callable[[str], tuple[Recipe, Path]]


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The recipe and the file of a counter video by name; each is rendered when first asked."""
    folder = tmp_path_factory.mktemp("counter")
    recipes = {recipe.name: recipe for recipe in RECIPES}

    def rendered(name: str) -> tuple[Recipe, Path]:
        path = folder / name
        if not path.exists():
            render(recipes[name], folder)
        return recipes[name], path

    return rendered
