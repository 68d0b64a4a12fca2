#!/bin/sh
# Checks the wheels in a folder: what PyPI would refuse, files that do not belong, symbols beyond CPython's limited API, and
# on Linux the oldest glibc.
set -eux
twine check --strict "$1"/*
check-wheel-contents "$1"
abi3audit --strict --report --verbose "$1"/*.whl
if [ "$(uname)" = Linux ]; then
  for wheel in "$1"/*.whl; do auditwheel show "$wheel"; done
fi
