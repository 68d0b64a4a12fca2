"""Certificates against classifiers whose radius is known: never beyond it, and close to it. One row a noise in truth.py."""

import pytest
from truth import CASES, near, never_beyond

from rsfast.noise import NOISES

SLOW = ("HaarSubspaces",)  # a decomposition of a matrix for each of 5 million samples


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_no_certificate_goes_beyond_the_truth(name):
    never_beyond(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_certificates_come_near_the_truth(name):
    near(CASES[name])


def test_every_noise_has_a_case():
    assert {type(case.noise).__name__ for case in CASES.values()} == set(NOISES)
