#!/usr/bin/env bash
# Makes the storage folder: weights, annotations, and a table of what is yours to get.
#   bash scripts/download_data.sh $PATH_TO_STORAGE [--pretrained-zip FILE] [--data-zip FILE]
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: bash scripts/download_data.sh PATH_TO_STORAGE [options of rushes storage fetch]" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python}"
if [ -z "${PYTHON:-}" ] && [ -x "$here/.venv/bin/python" ]; then
    python="$here/.venv/bin/python"
fi
exec "$python" -m rushes.cli storage fetch "$@"
