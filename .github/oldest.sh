#!/bin/sh
# Runs the quick tests with the oldest release of every package that pyproject.toml admits, in a virtual environment in
# build/oldest. uv reads the floors there; pip has no such option. Tests of libraries that are not installed are skipped.
set -eux
python3 -m venv build/oldest
PATH="$PWD/build/oldest/bin:$PATH"
pip install uv
uv pip install --python build/oldest --resolution lowest-direct --editable .
uv pip freeze --python build/oldest --exclude-editable >build/oldest/floors.txt
uv pip install --python build/oldest --constraint build/oldest/floors.txt \
  pytest pytest-benchmark pytest-xdist hypothesis mpmath pandas pillow
OMP_NUM_THREADS=1 python -m pytest -p no:benchmark -n logical --dist worksteal -m "not slow and not noise" "$@"
