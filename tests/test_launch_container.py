"""launch_container.sh is sourced for real, with a `docker` on PATH that writes down its calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers import ROOT

SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]
# Every argument as it arrived, one JSON list a call; fails the subcommands named in DOCKER_FAILS.
RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["DOCKER_CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(1 if sys.argv[1] in os.environ.get("DOCKER_FAILS", "").split() else 0)
"""


@dataclass
class Shell:
    """A shell with its own PATH; `launch` sources the script in it and reports what happened."""

    name: str
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    checkout: Path = ROOT

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    def add_program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.programs),
            "HOME": str(self.folder),
            "DOCKER_CALLS": str(self.folder / "calls.jsonl"),
            **self.env,
        }
        flags = ["--norc", "--noprofile"] if self.name == "bash" else ["-f"]
        return subprocess.run(
            [shutil.which(self.name) or self.name, *flags, "-c", script],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )

    def launch(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(_sourced(self.checkout / "launch_container.sh", *arguments))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def docker_run(self) -> list[str]:
        """The arguments of the one `docker run`."""
        (call,) = [call for call in self.calls() if call[0] == "run"]
        return call

    def mounts(self) -> list[str]:
        call = self.docker_run()
        return [call[index + 1] for index, word in enumerate(call) if word == "--mount"]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """A shell on a machine with docker and no GPU."""
    made = Shell(request.param, tmp_path)
    made.programs.mkdir()
    for tool in ("dirname", "basename", "sed", "cat"):
        (made.programs / tool).symlink_to(shutil.which(tool) or tool)
    made.add_program("docker", RECORDER)
    return made


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / 'my storage, the "big" one\'s'
    folder.mkdir()
    return folder


def with_gpu(shell: Shell) -> None:
    shell.add_program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: something'\n")


def test_mounts_storage_and_checkout(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    done = shell.launch(tmp_path / "storage")
    assert done.returncode == 0, done.stderr
    assert shell.mounts() == [
        f"type=bind,source={tmp_path / 'storage'},target=/data_mount",
        f"type=bind,source={ROOT},target=/rushes",
    ]
    call = shell.docker_run()
    assert call[-2:] == ["rushes:cpu", "bash"]
    assert call[call.index("--workdir") + 1] == "/rushes"
    assert "PATH_TO_STORAGE=/data_mount" in call
    assert "--tty" not in call  # no terminal here


def test_paths_with_spaces_commas_and_quotes(shell: Shell, storage: Path) -> None:
    checkout = storage / "a checkout"
    checkout.mkdir()
    shutil.copy(ROOT / "launch_container.sh", checkout)
    shell.checkout = checkout
    assert shell.launch(storage, f"extra clips={storage}").returncode == 0
    escaped = str(storage).replace('"', '""')
    assert shell.mounts() == [
        f'type=bind,"source={escaped}",target=/data_mount',
        f'type=bind,"source={escaped}/a checkout",target=/rushes',
        f'type=bind,"source={escaped}",target=/extra clips',
    ]
    (build,) = [call for call in shell.calls() if call[0] == "build"]
    assert build[-1] == str(checkout)


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client to parse arguments")
def test_a_real_docker_client_understands_every_argument(shell: Shell, storage: Path) -> None:
    """It parses the whole command line before it looks for its engine, which is not there."""
    with_gpu(shell)
    shell.env["CUDA_VISIBLE_DEVICES"] = "0,1"
    assert shell.launch(storage, f"extra clips={storage}").returncode == 0
    nowhere = {**os.environ, "DOCKER_HOST": f"unix://{shell.folder}/no-engine.sock"}
    for call in shell.calls():
        told = subprocess.run(
            ["docker", *call], env=nowhere, capture_output=True, text=True, timeout=60, check=False
        ).stderr
        assert "no-engine.sock" in told, told
        assert "invalid argument" not in told


def test_relative_path_from_another_folder(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "-storage").mkdir()
    shell.env["CDPATH"] = "/usr:/"
    assert shell.launch("./-storage").returncode == 0
    assert f"type=bind,source={tmp_path / '-storage'},target=/data_mount" in shell.mounts()


def test_extra_mounts(shell: Shell, tmp_path: Path) -> None:
    for name in ("storage", "clips=2", "more"):
        (tmp_path / name).mkdir()
    (tmp_path / "one.json").write_text("{}")
    file = f"one.json={tmp_path}/one.json"
    done = shell.launch("storage", "clips=clips=2", "/deep/more=more", file)
    assert done.returncode == 0, done.stderr
    assert shell.mounts()[2:] == [
        f"type=bind,source={tmp_path / 'clips=2'},target=/clips",
        f"type=bind,source={tmp_path / 'more'},target=/deep/more",
        f"type=bind,source={tmp_path / 'one.json'},target=/one.json",
    ]


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("clips", "'clips': expected MOUNT=PATH"),
        ("=more", "'=more': expected MOUNT=PATH"),
        ("clips=nowhere", "'nowhere': no such file or folder (mount /clips)"),
        ("data_mount=bin", "/data_mount is taken"),
        ("/rushes=bin", "/rushes is taken"),
        ("/=bin", "/ is taken"),
    ],
)
def test_wrong_mounts_are_refused(
    shell: Shell, tmp_path: Path, argument: str, complaint: str
) -> None:
    (tmp_path / "storage").mkdir()
    done = shell.launch("storage", argument)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert shell.calls() == []


def test_missing_storage_folder(shell: Shell) -> None:
    done = shell.launch("no such folder")
    assert done.returncode == 1
    assert "'no such folder': no such folder" in done.stderr
    assert shell.calls() == []


def test_no_argument_shows_the_usage(shell: Shell) -> None:
    done = shell.launch()
    assert done.returncode == 2
    assert "usage: source launch_container.sh PATH_TO_STORAGE [MOUNT=PATH ...]" in done.stderr


def test_no_docker(shell: Shell, storage: Path) -> None:
    (shell.programs / "docker").unlink()
    done = shell.launch(storage)
    assert done.returncode == 1
    assert "no docker on PATH" in done.stderr
    assert "make setup" in done.stderr


def test_without_a_driver_the_cpu_image_is_built_and_run(shell: Shell, storage: Path) -> None:
    shell.env["CUDA_VISIBLE_DEVICES"] = "0,1"
    done = shell.launch(storage)
    assert "no NVIDIA driver answers; starting on the CPU" in done.stderr
    build, run = shell.calls()
    assert build[:5] == ["build", "--tag", "rushes:cpu", "--file", f"{ROOT}/docker/Dockerfile.cpu"]
    assert Path(build[4]).is_file()
    assert build[5] == str(ROOT)
    assert "--gpus" not in run


def test_a_driver_that_fails_is_no_driver(shell: Shell, storage: Path) -> None:
    shell.add_program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert shell.launch(storage).returncode == 0
    assert "--gpus" not in shell.docker_run()


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, "all"), ("0", '"device=0"'), ("2,3", '"device=2,3"')]
)
def test_gpus_are_handed_over(shell: Shell, storage: Path, visible: str | None, gpus: str) -> None:
    with_gpu(shell)
    if visible is not None:
        shell.env["CUDA_VISIBLE_DEVICES"] = visible
    assert shell.launch(storage).returncode == 0
    build, run = shell.calls()
    assert build[2:5] == ["rushes:cuda", "--file", f"{ROOT}/docker/Dockerfile"]
    assert Path(build[4]).is_file()
    assert run[run.index("--gpus") + 1] == gpus
    assert run[-2:] == ["rushes:cuda", "bash"]


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_mean_cpu(shell: Shell, storage: Path, visible: str) -> None:
    with_gpu(shell)
    shell.env["CUDA_VISIBLE_DEVICES"] = visible
    done = shell.launch(storage)
    assert "hides every GPU" in done.stderr
    assert "--gpus" not in shell.docker_run()
    assert shell.docker_run()[-2] == "rushes:cpu"


def test_named_image_is_pulled(shell: Shell, storage: Path) -> None:
    shell.env["RUSHES_IMAGE"] = "example/rushes:1"
    assert shell.launch(storage).returncode == 0
    assert [call[0] for call in shell.calls()] == ["pull", "run"]
    assert shell.calls()[0] == ["pull", "example/rushes:1"]
    assert shell.docker_run()[-2] == "example/rushes:1"


def test_named_image_that_cannot_be_pulled_but_is_here(shell: Shell, storage: Path) -> None:
    shell.env |= {"RUSHES_IMAGE": "example/rushes:1", "DOCKER_FAILS": "pull"}
    done = shell.launch(storage)
    assert done.returncode == 0
    assert "using the copy on this machine" in done.stderr
    assert shell.docker_run()[-2] == "example/rushes:1"


def test_named_image_that_cannot_be_had_is_built(shell: Shell, storage: Path) -> None:
    shell.env |= {"RUSHES_IMAGE": "example/rushes:1", "DOCKER_FAILS": "pull image"}
    done = shell.launch(storage)
    assert done.returncode == 0
    assert "building one instead" in done.stderr
    assert shell.docker_run()[-2] == "rushes:cpu"


@pytest.mark.parametrize("failing", ["build", "run"])
def test_failures_reach_the_caller_without_ending_its_shell(
    shell: Shell, storage: Path, failing: str
) -> None:
    shell.env["DOCKER_FAILS"] = failing
    source = _sourced(ROOT / "launch_container.sh", storage)
    done = shell.run(f"{source}; echo status $?; echo still here")
    assert done.stdout.splitlines()[-2:] == ["status 1", "still here"]
    assert ("building rushes:cpu from" in done.stderr) == (failing == "build")


def test_nothing_leaks_into_the_shell(shell: Shell, storage: Path) -> None:
    """Variables, functions, options and the folder are the same before and after."""
    show = "{ set; set -o; pwd; } > state.$stage"
    if shell.name == "zsh":
        show = "{ typeset; typeset -f; setopt; pwd; } > state.$stage"
    source = _sourced(ROOT / "launch_container.sh", storage, f"x={storage}")
    done = shell.run(f"stage=before; {show}; {source}; stage=after; {show}")
    assert done.returncode == 0, done.stderr
    assert len(shell.calls()) == 2
    before, after = (_state(shell.folder / f"state.{stage}") for stage in ("before", "after"))
    assert before - after == set()
    assert after - before == set()


def test_works_in_a_strict_shell(shell: Shell, storage: Path) -> None:
    source = _sourced(ROOT / "launch_container.sh", storage)
    done = shell.run(f"set -eu; {source}; echo reached the end")
    assert done.stdout.splitlines()[-1] == "reached the end", done.stderr


# Variables that any command changes, as `NAME=` or after the type that zsh's typeset prints.
VOLATILE = re.compile(
    r"^(?:[a-z][a-z0-9 ]* )?"
    r"(?:_|\?|stage|status|pipestatus|PIPESTATUS|S?RANDOM|SECONDS|EPOCH\w+|LINENO|TTYIDLE|BASH_\w+)="
)


def _state(path: Path) -> set[str]:
    """Lines of a state dump, without the variables that any command changes."""
    lines = path.read_text(errors="replace").splitlines()
    return {line for line in lines if not VOLATILE.match(line)}


def _sourced(*words: str | Path) -> str:
    """The shell command that sources the script; every word quoted (zsh expands a bare =word)."""
    return "source " + " ".join("'" + str(word).replace("'", "'\\''") + "'" for word in words)
