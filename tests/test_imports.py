"""Who may import whom: the layers of pyproject.toml, no torch in video, one door to the network."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, launch

SOURCE = ROOT / "src"
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it; of `from a import b` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_go_down_only() -> None:
    contract = launch([LINT_IMPORTS, "--no-cache"], cwd=ROOT)
    assert "0 broken" in contract.stdout


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("errors.py", "import rushes.log"),
        ("video/request.py", "import torch"),
        ("video/request.py", "import rushes.modeling"),
        ("datasets/__init__.py", "import rushes.modeling"),
        ("search/__init__.py", "import rushes.tasks"),
        ("without_a_place.py", ""),
    ],
)
def test_the_contract_notices(module: str, statement: str, tmp_path: Path) -> None:
    """The same contract breaks on a copy with one forbidden import, or a file without a layer."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(SOURCE, tmp_path / "rushes", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "rushes" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    broken = launch(
        [LINT_IMPORTS, "--no-cache"], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, status=1
    )
    assert "BROKEN" in broken.stdout


def test_only_distributed_knows_the_communication_libraries() -> None:
    offenders = {
        str(path.relative_to(SOURCE)): sorted(found)
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).with_suffix("").parts[0] != "distributed"
        and (
            found := {
                name
                for name in imported_modules(path)
                if name.split(".")[0] == "horovod" or name.startswith("torch.distributed")
            }
        )
    }
    assert offenders == {}


def test_video_loads_without_torch() -> None:
    """Decode workers start fast and small: importing every module of video loads no torch."""
    names = [
        ".".join(["rushes", *path.relative_to(SOURCE).with_suffix("").parts])
        for path in sorted((SOURCE / "video").rglob("*.py"))
    ]
    script = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        "    assert 'torch' not in sys.modules, name\n"
        "print('no torch')"
    )
    assert launch([sys.executable, "-c", script]).stdout.strip() == "no torch"


def test_the_package_itself_imports_cheaply() -> None:
    script = (
        "import sys; before = set(sys.modules); import rushes\n"
        "heavy = {'torch', 'numpy', 'av', 'cv2', 'transformers', 'timm'} & set(sys.modules)\n"
        "print(sorted(heavy - before))"
    )
    assert launch([sys.executable, "-c", script]).stdout.strip() == "[]"
