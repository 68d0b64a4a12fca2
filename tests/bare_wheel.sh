#!/bin/sh
# Try a wheel as it reaches a user: in a fresh environment, an empty folder, without a compiler or the sources on any path.
#
#     sh tests/bare_wheel.sh WHEEL [FOLDER]
#
# pip downloads what the wheel needs, or these packages are taken from FOLDER, the site-packages of another environment.
# PYTHON names the Python to make the environment of.
set -eu
wheel=$(realpath "$1")
readme=$(realpath "$(dirname "$0")/../README.md")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
if [ -n "${2:-}" ]; then
    realpath "$2" > "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
    "$folder/venv/bin/pip" install --quiet --no-index --no-deps "$wheel"
else
    "$folder/venv/bin/pip" install --quiet "$wheel"
fi
mkdir "$folder/empty"
cd "$folder/empty"
bare() { env -i HOME="$folder/empty" PATH="$folder/venv/bin" "$@"; }
bare python - "$readme" <<'END'
import re, shutil, sys
from pathlib import Path

import rsfast

assert Path(rsfast.__file__).is_relative_to(sys.prefix), f"rsfast must be imported from the wheel, got {rsfast.__file__}"
found = [tool for tool in ("cc", "c++", "gcc", "g++", "clang", "nvcc", "ninja", "cmake") if shutil.which(tool)]
assert not found, f"PATH must have no compiler, got {found}"
blocks = re.findall(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.DOTALL)
assert blocks, "README.md must have blocks of Python, got none"
for block in blocks:
    exec(compile(block, "README.md", "exec"))
END
bare rsfast doctor
