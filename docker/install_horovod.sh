#!/usr/bin/env bash
# Build, install and try out Horovod for PyTorch, with Gloo and without MPI.
#
#   docker/install_horovod.sh [--device auto|cpu|cuda] [PYTHON]
#
# PYTHON is the interpreter to install into: by default the active environment's, else the
# checkout's .venv, else python3. PyTorch must be installed in it. With --device cuda the build
# takes NCCL for its collectives; auto means cuda where PyTorch has CUDA and nvcc is there.
#
# The last release of Horovod, 0.28.1, does not compile against today's PyTorch. The patches below
# are what it takes; each says why. The wheel is kept in $WHEEL_CACHE (default ~/.cache/rushes/wheels)
# under a key of all that it was built for, so that the second call takes seconds.
#
# Needs: g++, make, Python's headers. CMake is taken from pip where the system has none. Network:
# PyPI only. About five minutes on two cores.

set -euo pipefail

VERSION=0.28.1
SHA256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
PATCH_LEVEL=1 # raise it when a patch changes: cached wheels are keyed by it
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'install_horovod: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

default_python() {
    if [[ -n ${VIRTUAL_ENV:-} && -x $VIRTUAL_ENV/bin/python ]]; then
        echo "$VIRTUAL_ENV/bin/python"
    elif [[ -x $HERE/../.venv/bin/python ]]; then
        echo "$(cd "$HERE/.." && pwd)/.venv/bin/python"
    else
        command -v python3 || die "no python3 found; name an interpreter as the argument"
    fi
}

parse_arguments() {
    device=auto
    python=
    while (($#)); do
        case $1 in
            --device) device=${2:?--device takes auto, cpu or cuda}; shift ;;
            --device=*) device=${1#*=} ;;
            -h | --help) sed -n '2,17s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
            -*) die "unknown option $1; see --help" ;;
            *) python=$1 ;;
        esac
        shift
    done
    python=${python:-$(default_python)}
    command -v "$python" >/dev/null || die "$python: no such interpreter"
    case $device in auto | cpu | cuda) ;; *) die "--device $device: expected auto, cpu or cuda" ;; esac
}

# Sets torch_version, torch_cuda ("None" for a CPU build) and python_tag.
inspect_python() {
    local facts
    facts=$("$python" -c '
import sys, torch
print(torch.__version__, torch.version.cuda, f"cp{sys.version_info[0]}{sys.version_info[1]}")
') || die "$python cannot import torch; install PyTorch first"
    read -r torch_version torch_cuda python_tag <<<"$facts"
    if [[ $device == auto ]]; then
        device=cpu
        if [[ $torch_cuda != None ]] && command -v nvcc >/dev/null; then device=cuda; fi
    fi
    if [[ $device == cuda && $torch_cuda == None ]]; then
        die "--device cuda, but PyTorch $torch_version of $python was built without CUDA"
    fi
}

# Installs what Horovod needs to build and run, and finds the compiler and CMake.
install_requirements() {
    command -v g++ >/dev/null || die "no g++; on Debian or Ubuntu: apt-get install g++ make"
    command -v make >/dev/null || die "no make; on Debian or Ubuntu: apt-get install make"
    local wanted=(cffi cloudpickle packaging psutil pyyaml setuptools wheel) constraints=()
    command -v cmake >/dev/null || wanted+=(cmake)
    if [[ -f $HERE/../constraints.txt ]]; then constraints=(-c "$HERE/../constraints.txt"); fi
    "$python" -m pip install --quiet "${constraints[@]}" "${wanted[@]}"
    cmake=$(command -v cmake || "$python" -c '
import sysconfig; print(sysconfig.get_path("scripts") + "/cmake")')
}

# Unpacks the source into $1.
fetch_source() {
    local sdist=$1/horovod-$VERSION.tar.gz
    say "fetching the source of Horovod $VERSION"
    "$python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation \
        --dest "$1" "horovod==$VERSION"
    echo "$SHA256  $sdist" | sha256sum --check --quiet - || die "$sdist: not the file expected"
    tar -xzf "$sdist" -C "$1"
}

# Replaces $2 by $3 in file $1; an error if the text is not there, so that no patch is lost silently.
replace() {
    grep -qF -- "$2" "$1" || die "patch does not apply: '$2' is not in $1"
    "$python" - "$1" "$2" "$3" <<'PYTHON'
import pathlib, sys

path, old, new = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
path.write_text(path.read_text().replace(old, new))
PYTHON
}

patch_source() {
    local source=$1
    # PyTorch's headers refuse anything older than C++20 since 2.15, C++17 since 2.1.
    replace "$source/CMakeLists.txt" 'set(CMAKE_CXX_STANDARD 14)' 'set(CMAKE_CXX_STANDARD 20)'
    replace "$source/horovod/torch/CMakeLists.txt" \
        'set(CMAKE_CXX_STANDARD 14)' 'set(CMAKE_CXX_STANDARD 20)'
    # distutils left Python with 3.12.
    replace "$source/horovod/torch/CMakeLists.txt" \
        'from distutils.sysconfig import get_python_inc; print(get_python_inc())' \
        "import sysconfig; print(sysconfig.get_path('include'))"
    replace "$source/horovod/runner/js_run.py" \
        'from distutils.spawn import find_executable' 'from shutil import which as find_executable'
    if [[ $device == cpu ]]; then
        # A CUDA build of PyTorch beside a toolkit makes Horovod insist on CUDA.
        replace "$source/cmake/Modules/FindPytorch.cmake" \
            'print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None)) else False)' \
            'print(False)'
    fi
}

# Leaves a wheel in $wheel_folder.
build_wheel() {
    local work
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the path as it is now
    trap "rm -rf '$work'" EXIT
    fetch_source "$work"
    patch_source "$work/horovod-$VERSION"
    local settings=(
        HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1
        HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
        "HOROVOD_CMAKE=$cmake"
        "MAKEFLAGS=${MAKEFLAGS:--j$(nproc)}"
        CMAKE_POLICY_VERSION_MINIMUM=3.5 # CMake 4 refuses what the bundled libraries ask for
    )
    if [[ $device == cuda ]]; then settings+=(HOROVOD_GPU_OPERATIONS=NCCL); fi
    say "compiling for PyTorch $torch_version, $python_tag, $device"
    if ! env "${settings[@]}" "$python" -m pip wheel --no-deps --no-build-isolation \
        --wheel-dir "$work/wheel" "$work/horovod-$VERSION" >"$work/build.log" 2>&1; then
        tail -n 60 "$work/build.log" >&2
        die "the build failed; its last lines are above"
    fi
    mkdir -p "$wheel_folder"
    # Aside and renamed: an interrupted copy must not pass for a wheel.
    cp "$work"/wheel/horovod-*.whl "$wheel_folder/.incoming"
    mv "$wheel_folder/.incoming" "$wheel_folder/$(basename "$work"/wheel/horovod-*.whl)"
}

verify() {
    local scripts report probe
    scripts=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
    report=$("$scripts/horovodrun" --check-build)
    for feature in PyTorch Gloo; do
        grep -qF "[X] $feature" <<<"$report" || die "built without $feature: $report"
    done
    if [[ $device == cuda ]]; then
        grep -qF '[X] NCCL' <<<"$report" || die "built without NCCL: $report"
    fi
    probe=$(mktemp --suffix=.py)
    cat >"$probe" <<'PYTHON'
import horovod.torch as hvd
import torch

hvd.init()
total = hvd.allreduce(torch.tensor([float(hvd.rank() + 1)]), op=hvd.Sum)
rows = hvd.allgather(torch.full((hvd.rank() + 1, 2), float(hvd.rank())))
assert hvd.size() == 2, hvd.size()
assert total.item() == 3.0, total
assert rows.shape == (3, 2), rows.shape
print(f"rank {hvd.rank()} of {hvd.size()}: allreduce and ragged allgather agree")
hvd.shutdown()
PYTHON
    OMP_NUM_THREADS=1 timeout 300 "$scripts/horovodrun" --gloo -np 2 "$python" "$probe" </dev/null
    rm -f "$probe"
}

main() {
    parse_arguments "$@"
    inspect_python
    install_requirements
    wheel_folder=${WHEEL_CACHE:-$HOME/.cache/rushes/wheels}
    wheel_folder+=/horovod-$VERSION-$PATCH_LEVEL-torch$torch_version-$python_tag-$device-$(uname -m)
    if ! compgen -G "$wheel_folder/horovod-*.whl" >/dev/null; then build_wheel; fi
    "$python" -m pip install --quiet --no-deps --force-reinstall "$wheel_folder"/horovod-*.whl
    verify
    say "Horovod $VERSION for PyTorch $torch_version ($device) is installed and works"
}

main "$@"
