"""What tests share: where things are, what a machine may lack, and how to start real processes."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIRE_VARIABLE = "RUSHES_REQUIRE"


def shared_folder() -> Path:
    """The folder of shared test data: $RUSHES_SHARED, by default `shared` beside the checkout."""
    return Path(os.environ.get("RUSHES_SHARED") or ROOT.parent / "shared")


def demo_folder() -> Path:
    """A finished demo: $RUSHES_DEMO, by default where `make demo` leaves it."""
    return Path(os.environ.get("RUSHES_DEMO") or ROOT / "runs" / "demo")


def _lacks_demo() -> str:
    folder = demo_folder()
    runs = (folder / "retrieval" / "results.json", folder / "qa" / "results.json")
    whole = all(path.is_file() for path in runs)
    return "" if whole else f"no trained model in {folder}; run make demo or set RUSHES_DEMO"


def _lacks_shared() -> str:
    folder = shared_folder()
    return "" if (folder / "videos").is_dir() else f"no {folder}; set RUSHES_SHARED"


def _lacks_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "PyTorch sees no CUDA device"


def _lacks_horovod() -> str:
    package = importlib.util.find_spec("horovod")
    folders = (package.submodule_search_locations or []) if package else []
    built = any(list(Path(folder).glob("torch/mpi_lib_v2*.so")) for folder in folders)
    return "" if built else "Horovod for PyTorch is not built; run docker/install_horovod.sh"


def _lacks_browser() -> str:
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} on PATH" if missing else ""


def _lacks_ray() -> str:
    return (
        "" if importlib.util.find_spec("ray") else "Ray is not installed: pip install rushes[ray]"
    )


def _lacks_torchcodec() -> str:
    # It finds the system's FFmpeg libraries only when it is imported.
    command = [sys.executable, "-c", "import torchcodec.decoders"]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return "" if loaded.returncode == 0 else "torchcodec does not load; it needs FFmpeg's libraries"


LACKS: dict[str, Callable[[], str]] = {
    "shared": cache(_lacks_shared),
    "demo": cache(_lacks_demo),
    "gpu": cache(_lacks_gpu),
    "horovod": cache(_lacks_horovod),
    "browser": cache(_lacks_browser),
    "ray": cache(_lacks_ray),
    "torchcodec": cache(_lacks_torchcodec),
}
"""Names that RUSHES_REQUIRE takes; each tells why this machine lacks it, or an empty string."""


def required() -> frozenset[str]:
    """What $RUSHES_REQUIRE says this machine must have; raises ValueError for an unknown name."""
    names = os.environ.get(REQUIRE_VARIABLE, "").replace(",", " ").split()
    unknown = sorted(set(names) - set(LACKS))
    if unknown:
        raise ValueError(f"{REQUIRE_VARIABLE}: unknown {unknown}; known: {sorted(LACKS)}")
    return frozenset(names)


def require(name: str) -> None:
    """Skip the calling test when this machine lacks `name`; fail it when $RUSHES_REQUIRE lists it.

    Args:
        name: one of `LACKS`.
    """
    lack = LACKS[name]()
    if not lack:
        return
    if name in required():
        pytest.fail(f"{REQUIRE_VARIABLE} lists {name}, but: {lack}", pytrace=False)
    pytest.skip(f"needs {name}: {lack}")


def launch(
    command: Sequence[str | Path],
    *,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a real command to its end, together with all that it starts.

    Args:
        command: program and arguments.
        timeout: seconds; after that the whole process group is killed and the test fails.
        env: variables laid over this process's.
        cwd: working folder, by default this one.
        status: the exit status it must have; None takes any.

    Returns:
        Exit status, stdout and stderr.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(f"{_shown(command)}: still running after {timeout} s\n{_tail(stdout, stderr)}")
    if status is not None and process.returncode != status:
        pytest.fail(
            f"{_shown(command)}: status {process.returncode}, expected {status}\n"
            f"{_tail(stdout, stderr)}"
        )
    return subprocess.CompletedProcess(list(map(str, command)), process.returncode, stdout, stderr)


def torchrun(arguments: Sequence[str | Path], num_processes: int = 2) -> list[str]:
    """The command that starts `arguments` (a script, or -m and a module) under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={num_processes}", *map(str, arguments)]


def horovodrun(arguments: Sequence[str | Path], num_processes: int = 2) -> list[str]:
    """The command that starts `arguments` (a script, or -m and a module) under horovodrun."""
    launcher = Path(sys.executable).with_name("horovodrun")
    return [
        str(launcher),
        "--gloo",
        "-np",
        str(num_processes),
        sys.executable,
        *map(str, arguments),
    ]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files of this process cannot grow past `size` bytes: the kernel refuses the write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))


def _tail(stdout: str, stderr: str, size: int = 4000) -> str:
    return f"--- stdout\n{stdout[-size:]}\n--- stderr\n{stderr[-size:]}"
