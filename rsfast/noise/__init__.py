"""Smoothing noises: what is added, in which norm a shift is measured, and the potential that turns a bound into a radius."""

from .anisotropic import AnisotropicGaussian
from .base import DRAWS, NOISES, POTENTIAL_ERROR, Noise, NoiseParameters, check_noise, from_dict
from .correlated import CorrelatedGaussian, frequencies
from .gaussian import Gaussian, check_lipschitz
from .grid_gaussian import GridGaussian
from .laplace import Laplace
from .mask import Mask
from .norms import NORMS, radius_label
from .splitting import Splitting
from .streams import STREAM_VERSION, STREAMS, check_seed, philox, uniforms
from .subspaces import HaarSubspaces, SubspaceGaussian, SubspaceSmoothing
from .uniform import Uniform

__all__ = [
    "DRAWS",
    "NOISES",
    "NORMS",
    "POTENTIAL_ERROR",
    "STREAMS",
    "STREAM_VERSION",
    "AnisotropicGaussian",
    "CorrelatedGaussian",
    "Gaussian",
    "GridGaussian",
    "HaarSubspaces",
    "Laplace",
    "Mask",
    "Noise",
    "NoiseParameters",
    "Splitting",
    "SubspaceGaussian",
    "SubspaceSmoothing",
    "Uniform",
    "check_lipschitz",
    "check_noise",
    "check_seed",
    "frequencies",
    "from_dict",
    "philox",
    "radius_label",
    "uniforms",
]
