#!/usr/bin/env bash
# Installs what `python -m benchmarks device` needs into a fresh environment and runs it there, with
# the arguments given. Where no package index is reached, python3 runs it with what it has.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
toolkit=$(nvidia-smi 2>/dev/null | grep -oE 'CUDA Version: *[0-9]+' | grep -oE '[0-9]+$' || true)
toolkit=$((${toolkit:-13} >= 13 ? 13 : 12))
python=python3
get() { "$work/venv/bin/pip" install --quiet --retries 1 --timeout 15 "$@"; }

if [ "${NUMBA_ENABLE_CUDASIM:-0}" != 1 ] && python3 -m venv "$work/venv" && get '.[cuda]' tabulate; then
  get "numba-cuda[cu$toolkit]"
  for peer in torch "cupy-cuda${toolkit}x"; do
    get "$peer" || echo "not installed: $peer" >&2
  done
  python="$work/venv/bin/python"
else
  echo "nothing was installed; $(command -v python3) runs with what it has" >&2
fi
"$python" -m benchmarks device "$@"
