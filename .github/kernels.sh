#!/bin/sh
# Checks the kernels of the rsfast that is installed: the self-test, and the tests of every draw and head. For wheels, and
# for machines on which the whole suite would take too long.
set -eux
rsfast doctor
python -m pytest -m "not slow and not noise" tests/test_words.py tests/test_perturb.py tests/test_accumulate.py
