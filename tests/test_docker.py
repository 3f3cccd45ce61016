"""The images: linted, built only from files that are there, Horovod by its one script.

No Docker engine is needed: hadolint reads the files, and the install script itself is run for real
outside Docker, before the tests that need Horovod.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, launch

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
INSTALL_HOROVOD = ROOT / "docker" / "install_horovod.sh"
SCRIPTS = [INSTALL_HOROVOD, ROOT / ".ci" / "run", ROOT / "launch_container.sh"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(keyword, argument) of every instruction, continued lines joined, comments dropped."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(keyword.upper(), argument.strip()) for keyword, argument in pairs]


def copied(dockerfile: Path) -> list[str]:
    """What COPY takes from the checkout."""
    texts = [text for keyword, text in instructions(dockerfile) if keyword == "COPY"]
    arguments = map(shlex.split, texts)
    return [source for words in arguments for source in words[:-1] if not source.startswith("--")]


def test_both_images_are_there() -> None:
    assert {"Dockerfile", "Dockerfile.cpu"} <= {path.name for path in DOCKERFILES}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    assert launch([hadolint, dockerfile]).stdout == ""


def test_hadolint_does_find_things(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /x && apt-get install foo\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    assert "DL3006" in launch([hadolint, bad], status=1).stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_sent(dockerfile: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in copied(dockerfile):
        if source == ".":
            continue
        found = [name for name in tracked if name == source or name.startswith(f"{source}/")]
        assert found, f"{dockerfile.name} copies {source}, which is not in the checkout"
        for pattern in ignored:
            assert not fnmatch.fnmatch(source, pattern), f".dockerignore drops {source}"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_image_gets_horovod_and_the_pinned_versions(dockerfile: Path) -> None:
    runs = [text for keyword, text in instructions(dockerfile) if keyword == "RUN"]
    assert any("docker/install_horovod.sh --device" in run for run in runs)
    for install in (run for run in runs if "pip install" in run):
        assert "constraints.txt" in install
    order = [index for index, run in enumerate(runs) if "torch==" in run or "--editable" in run]
    horovod = next(index for index, run in enumerate(runs) if "install_horovod" in run)
    assert order[0] < horovod < order[-1], "PyTorch, then Horovod, then the code"


def test_the_cuda_image_can_compile() -> None:
    """Horovod needs nvcc and NCCL's headers: the devel flavour of the base image."""
    dockerfile = instructions(ROOT / "docker" / "Dockerfile")
    (base,) = [text for keyword, text in dockerfile if keyword == "ARG"]
    assert re.fullmatch(r"BASE_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-cudnn-devel-ubuntu\d+\.\d+", base)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    launch(["bash", "-n", script])


def test_install_script_explains_itself() -> None:
    shown = launch(["bash", INSTALL_HOROVOD, "--help"]).stdout
    assert "--device auto|cpu|cuda" in shown
    assert "WHEEL_CACHE" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
        (["--fast"], "unknown option --fast"),
        (["/nowhere/python"], "/nowhere/python: no such interpreter"),
    ],
)
def test_install_script_refuses_wrong_arguments(arguments: list[str], complaint: str) -> None:
    assert complaint in launch(["bash", INSTALL_HOROVOD, *arguments], status=1).stderr


def test_install_script_wants_torch_first(tmp_path: Path) -> None:
    """A fresh environment without PyTorch: a sentence, not a compiler error minutes later."""
    launch([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"])
    bare = tmp_path / "venv" / "bin" / "python"
    assert "install PyTorch first" in launch(["bash", INSTALL_HOROVOD, bare], status=1).stderr


@pytest.mark.needs_horovod
def test_install_script_built_gloo() -> None:
    import horovod.torch as hvd

    assert hvd.gloo_built()
    assert not hvd.mpi_built()
