#!/bin/sh
# Builds rsfast in place, in the Python that is active, and checks its kernels: the self-test, and the tests of every draw
# and head. For machines on which the whole suite would take too long.
set -eux
python -m pip install --editable . pytest mpmath
rsfast doctor
python -m pytest -m "not slow and not noise" tests/test_words.py tests/test_perturb.py tests/test_accumulate.py
