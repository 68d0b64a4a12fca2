"""Smoothing noises: what is added, in which norm a shift is measured, and the potential that turns a bound into a radius."""

from .gaussian import POTENTIAL_ERROR, Gaussian, check_lipschitz, from_dict
from .streams import STREAM_VERSION, STREAMS, check_seed, philox, uniforms

__all__ = [
    "POTENTIAL_ERROR",
    "STREAMS",
    "STREAM_VERSION",
    "Gaussian",
    "check_lipschitz",
    "check_seed",
    "from_dict",
    "philox",
    "uniforms",
]
