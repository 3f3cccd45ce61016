"""What is shipped is what is in the tree, and it works installed, away from the checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import rushes
from tests.helpers import ROOT, launch

SOURCE = ROOT / "src"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Distribution -> module, where the two differ and metadata may name another provider.
CV2_PROVIDERS = {"opencv-python", "opencv-python-headless"}


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: Sequence[str]) -> set[str]:
    """Distributions that requirement strings ask for."""
    return {normalised(re.split(r"[\s\[<>=!~;@]", text, maxsplit=1)[0]) for text in requirements}


def pinned() -> dict[str, str]:
    """Distribution -> version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normalised(name): version for name, version in pairs}


def third_party_imports() -> dict[str, set[str]]:
    """Top-level module that is neither ours nor Python's -> the files that import it."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top != "rushes" and top not in sys.stdlib_module_names:
                    found.setdefault(top, set()).add(str(path.relative_to(SOURCE)))
    return found


def test_every_package_is_listed() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    found = {
        ".".join(["rushes", *init.parent.relative_to(SOURCE).parts])
        for init in SOURCE.rglob("__init__.py")
    }
    assert set(listed) == found
    assert len(listed) == len(found)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_every_import_is_a_declared_dependency() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    declared = names([*project["dependencies"], *(r for extra in extras.values() for r in extra)])
    declared -= names(extras["test"]) - names(project["dependencies"])
    providers = importlib.metadata.packages_distributions()
    undeclared = {}
    for module, files in third_party_imports().items():
        distributions = {normalised(name) for name in providers.get(module, [module])}
        if module == "cv2":
            distributions |= CV2_PROVIDERS
        if not distributions & declared:
            undeclared[module] = files
    assert undeclared == {}


def test_constraints_pin_what_setup_installs() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = names(project["dependencies"])
    for extra in ("app", "torchcodec", "ray", "test"):
        wanted |= names(extras[extra])
    assert wanted - set(pinned()) == set()


def test_constraints_name_versions_only() -> None:
    """No address, no path, no local build: they hold on any machine."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_this_environment_has_the_pinned_versions() -> None:
    different = {
        name: (version, here)
        for name, version in pinned().items()
        if (here := _installed_version(name)) not in (None, version)
    }
    assert different == {}


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Installed:
    """A clean environment, outside the checkout, into which the wheel was installed."""

    wheel: Path
    source: Path
    environment: Path
    folder: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def run(self, *command: str | Path, timeout: float = 120) -> CompletedProcess[str]:
        """Run a command of the environment, away from the checkout."""
        program = self.environment / "bin" / str(command[0])
        return launch(
            [program, *command[1:]],
            cwd=self.folder,
            env={"PYTHONPATH": "", "VIRTUAL_ENV": str(self.environment)},
            timeout=timeout,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built from a copy of the tree and installed without the checkout in sight.

    The heavy dependencies are those of this environment, seen through a .pth file: as a plain entry
    of the path, so that no editable hook in there can bring the checkout back.
    """
    folder = tmp_path_factory.mktemp("installed")
    wheel = _built_wheel(folder)
    environment = folder / "environment"
    launch([sys.executable, "-m", "venv", "--without-pip", environment])
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    launch([*pip, "--no-deps", "--no-index", str(wheel)])
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    away = folder / "away"
    away.mkdir()
    return Installed(wheel, folder / "checkout" / "src", environment, away)


def _built_wheel(folder: Path) -> Path:
    copy = folder / "checkout"
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(SOURCE, copy / "src", ignore=junk)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    launch([*build, "--outdir", str(folder), str(copy)], timeout=300)
    (wheel,) = folder.glob("rushes-*.whl")
    return wheel


def test_wheel_holds_the_whole_package_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = f"rushes-{rushes.__version__}.dist-info/"
    expected = {
        f"rushes/{path.relative_to(installed.source)}"
        for path in installed.source.rglob("*")
        if path.is_file() and not any(part.endswith(".egg-info") for part in path.parts)
    }
    assert {name for name in held if not name.startswith(metadata)} == expected
    assert f"{metadata}licenses/LICENSE" in held


def test_the_wheel_is_what_runs(installed: Installed) -> None:
    where = installed.run("python", "-c", "import rushes; print(rushes.__file__)").stdout.strip()
    assert Path(where).is_relative_to(installed.environment)


def test_version_is_told_by_the_command(installed: Installed) -> None:
    assert rushes.__version__ in installed.run("rushes", "--version").stdout


def test_every_preset_loads_by_name(installed: Installed) -> None:
    files = sorted(path.stem for path in (installed.source / "configs").glob("*.json"))
    presets = [name for name in files if not name.startswith("base_model")]
    script = (
        "import sys\n"
        "from rushes.configs.load import load_config, preset_names\n"
        "print(*preset_names())\n"
        "for name in preset_names():\n"
        "    load_config(['--config', name])\n"
    )
    shown = installed.run("python", "-c", script).stdout
    assert shown.split() == presets
    assert presets, "the package has no preset"


def test_every_module_imports(installed: Installed) -> None:
    """Nothing in the wheel leans on the checkout, on a GPU or on an optional library."""
    modules = sorted(
        ".".join(["rushes", *path.relative_to(installed.source).with_suffix("").parts])
        for path in installed.source.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    script = f"import importlib\nfor name in {modules}: importlib.import_module(name)\nprint('all')"
    assert installed.run("python", "-c", script).stdout.strip() == "all"
