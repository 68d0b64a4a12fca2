"""What every noise has: constrained parameters, a norm, a potential, a draw; and the registry of all noises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._check import as_real, check_choice
from .constraints import POSITIVE as POSITIVE
from .constraints import Constraint as Constraint
from .constraints import FrozenArray, Real, distinct_texts
from .norms import Factor, as_delta, check_shape, conversions, scaled_down, size

POTENTIAL_ERROR = 2.0**-48
"""A potential's relative error is at most this; 1.3e-15 was the most found. `Noise.radius` charges it."""


class NoiseParameters(NamedTuple):
    """A noise as kernels take it: the name of its draw, and the block of parameters (csrc/jobs.h)."""

    draw: str
    scalars: Sequence[float]
    tensors: Sequence[Any] = ()
    """The draw's tables; or one value of each element, [elements]. Arrays in what `Noise.parameters` returns."""
    shaper: str = ""
    """What makes the noise of the draw, of noise that is shaped in plain PyTorch: a name in ops/shaping.py."""
    shaper_scalars: Sequence[float] = ()
    shaper_tensors: Sequence[Any] = ()
    """What that takes. Arrays in what `Noise.parameters` returns."""

    @property
    def each(self) -> Any:
        """The value of each element, or None."""
        return self.tensors[0] if self.tensors and not DRAWS[self.draw].tables else None

    @property
    def tables(self) -> Sequence[Any]:
        """What the draw looks values up in."""
        return self.tensors if DRAWS[self.draw].tables else ()

    def check(self) -> None:
        """Raise TypeError or ValueError, naming the argument, unless the block is that of its draw."""
        draw = DRAWS[check_choice("draw", self.draw, DRAWS)]
        few, most = (len(draw.tables),) * 2 if draw.tables else (0, bool(draw.each))
        if len(self.scalars) != len(draw.scalars) or not few <= len(self.tensors) <= most:
            tensors = ", ".join(draw.tables) or ("one value of each element, or none" if draw.each else "none")
            raise ValueError(
                f"the parameters of the draw {self.draw!r} must be the scalars ({', '.join(draw.scalars)}) and the tensors "
                f"({tensors}), got {len(self.scalars)} scalars and {len(self.tensors)} tensors"
            )
        for (name, constraint), value in zip(draw.scalars.items(), self.scalars, strict=True):
            constraint.check(name, value)


def _added(z: Any, x: Any, noise: NoiseParameters, math: Any) -> Any:
    return math.fma(noise.scalars[0] if noise.each is None else noise.each, z, x)


class Draw(NamedTuple):
    """A map from random words to standard noise, which every backend has under the same name.

    Parameters
    ----------
    name : str
        Of the draw in csrc/noise.h and in ops/triton_noise.py.
    scalars : mapping of str to Real
        What the scalars of its parameter block are, in order.
    plain : callable
        The reference: ``plain(words, math)`` returns the standard noise of four elements, float32
        tensors, for the four words of their Philox block, int64 tensors. `math` is the module
        ops/arithmetic.py, so that no noise imports torch.
    standard : callable, optional
        The reference of a draw that takes more than those four words, instead of `plain`:
        ``standard(words, noise, math)`` returns float32 [B, elements], or what `combine` takes
        instead, for an `ops.reference.Words` and the `NoiseParameters`.
    combine : callable
        The reference of how noise meets x: ``combine(z, x, noise, math)``, float32 [B, elements].
        By default it is added, times the scale: ``fma(scale, z, x)``.
    each : str
        The dtype of the value that each element may have: "float32", "int32", or "" if it has none.
        Of noise that is added, it is the element's scale.
    tables : mapping of str to str
        The names and dtypes of what the draw looks values up in; it then has no value of each element.
    """

    name: str
    scalars: Mapping[str, Real]
    plain: Callable[[Sequence[Any], Any], Sequence[Any]] | None = None
    standard: Callable[[Any, NoiseParameters, Any], Any] | None = None
    combine: Callable[[Any, Any, NoiseParameters, Any], Any] = _added
    each: str = "float32"
    tables: Mapping[str, str] = MappingProxyType({})


class Noise:
    """A smoothing noise. Subclasses are frozen dataclasses with the decorator `register`, one family a file.

    A subclass states `constraints` (one for each field), `norm` and `draw`, and defines
    `potential`; one without a potential defines `radius` instead. What kernels take is `parameters`.
    One whose density has derivatives defines `score`, and `laplacian`, for `smoothed`.

    Raises
    ------
    TypeError, ValueError
        If a parameter is no number, or its constraint does not hold.
    """

    constraints: ClassVar[Mapping[str, Constraint]]
    __match_args__: ClassVar[tuple[str, ...]]  # the fields, as a dataclass has it
    norm: ClassVar[str]
    """The norm in which radii are measured: one of `norms.NORMS`."""
    norm_fields: ClassVar[tuple[str, ...]] = ()
    """The parameters that the norm depends on: radii of noises that differ in one cannot be compared."""
    draw: ClassVar[Draw]
    grid: int | None = None
    """A number where inputs must be multiples of 1 / grid."""
    for_bytes: ClassVar[str | None] = None
    """A noise like it that takes 8-bit images as they are, for messages; None if there is none."""
    more: ClassVar[str] = "more noise"
    """What messages propose where no votes prove a radius, or none that is large enough."""
    input_range: ClassVar[tuple[float, float] | None] = None
    """The least and the largest value that an input may hold, where the noise sets them beside `largest_input`."""
    has_arrays: ClassVar[bool] = False
    """Whether `parameters` returns arrays, which `perturb` keeps on the device for noise and shapes in use."""
    potential_error: ClassVar[float] = POTENTIAL_ERROR
    """The relative error of the potential, which `radius` charges."""

    def __post_init__(self) -> None:
        for name, constraint in self.constraints.items():
            object.__setattr__(self, name, constraint.check(name, getattr(self, name)))

    @property
    def name(self) -> str:
        """The name under which the noise is registered and written."""
        return type(self).__name__

    @property
    def scale(self) -> float:
        """The size of the noise on an element, in the units of the input: the first parameter."""
        return float(getattr(self, next(iter(self.constraints))))

    @property
    def settings(self) -> str:
        """The parameters as messages show them, as "sigma = 0.25"."""
        return ", ".join(f"{name} = {value}" for name, value in self._fields().items())

    @property
    def scale_setting(self) -> str:
        """The parameter of these in which `scale` is: the first."""
        name = next(iter(self.constraints))
        return f"{name} = {getattr(self, name)}"

    @property
    def takes_bytes(self) -> bool:
        """Whether inputs may be 8-bit images, uint8, which are taken as x / 255."""
        return self.grid is not None and self.grid % 255 == 0

    @property
    def largest_input(self) -> float:
        """The largest magnitude of an input's element: ``2^23 scale``.

        Beyond it float32 numbers lie more than half a scale apart: the sum of x and noise rounds
        to a few neighbours of x, and from ``2^28 scale`` on to x itself. `certify`, `predict` and
        `sample` refuse such inputs.

        Examples
        --------
        >>> from rsfast.noise import Gaussian
        >>> Gaussian(0.25).largest_input
        2097152.0
        """
        return float(np.float32(self.scale)) * 2.0**23

    def parameters(self, shape: Sequence[int]) -> NoiseParameters:
        """Return the draw and the parameter block that kernels take: here all parameters, in order, as scalars.

        Parameters
        ----------
        shape : sequence of int
            Of an input. A noise with a value of each element or channel raises ValueError if they
            do not fit the shape.
        """
        # Not the names in `constraints`: torch.compile of torch 2.11 does not take its values.
        return NoiseParameters(self.draw.name, [getattr(self, name) for name in self.__match_args__])

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless inputs may have this shape: here all may.

        A noise whose parameters fit some shapes only overrides this; its `parameters` calls it.
        """

    def check_lipschitz(self, lipschitz: float | None) -> float | None:
        """Return the Lipschitz constant of a base score; raise ValueError where none may be given."""
        if lipschitz is not None:
            raise ValueError(
                f"lipschitz must be None with {self.name} noise, whose potential for Lipschitz scores is not known, got "
                f"{lipschitz!r}; leave it out, or use Gaussian noise"
            )
        return None

    def potential(self, p: ArrayLike, lipschitz: float | None = None) -> NDArray[np.float64]:
        """Return Q(p), the increasing function of the smoothed score that is 1-Lipschitz in `norm`.

        Parameters
        ----------
        p : array_like
            Smoothed scores in [0, 1]; NaN is returned for what lies outside.
        lipschitz : float, optional
            A Lipschitz constant of the base score, where `check_lipschitz` takes one.

        Returns
        -------
        ndarray of float64
            In the units of the input, off by at most `potential_error`, relatively, and odd around ``p = 1/2``.
        """
        raise NotImplementedError(f"{self.name} has no potential")

    def radius(
        self, p_lower: NDArray[np.float64], p_upper: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the radius, rounded down, within which a class stays ahead of all others, given bounds on their scores.

        Parameters
        ----------
        p_lower, p_upper : ndarray of float64
            Bounds in [0, 1] that `stats.rules.radius` has checked; they broadcast.
        lipschitz : float, optional
            As `potential` takes it.

        Returns
        -------
        ndarray of float64
            ``(Q(p_lower) - Q(p_upper)) / 2``, less what the potentials and the sum may be off by.
        """
        low, high = self.potential(p_lower, lipschitz), self.potential(p_upper, lipschitz)
        return np.asarray((low - high - self.potential_error * (np.abs(low) + np.abs(high))) / 2)

    def reach(
        self, p_high: NDArray[np.float64], p_low: NDArray[np.float64], lipschitz: float | None = None
    ) -> NDArray[np.float64]:
        """Return the radius, rounded down, within which no score falls from p_high to p_low, or rises from p_low to p_high.

        It is ``Q(p_high) - Q(p_low)``: twice what `radius` returns, whose parameters it has. Where a noise has no potential
        and does not define it, this raises NotImplementedError.
        """
        if type(self).potential is Noise.potential:
            raise NotImplementedError(f"{self.name} noise has no potential, and does not say how far a score reaches")
        return 2 * self.radius(p_high, p_low, lipschitz)

    @property
    def conversions(self) -> Mapping[str, Factor]:
        """The other norms that `radius_in` takes, and what it multiplies a radius by: here l_p norms.

        A noise whose `norm` is no l_p norm has none, unless it overrides this. It may then state
        sizes that are no norms, too, such as "volume".
        """
        return conversions(self.norm)

    def radius_in(self, radius: float, norm: str, shape: Sequence[int] | None = None) -> float:
        """Return a certified radius as one in another norm, rounded down.

        In a norm, the ball of the radius returned lies within what is certified, so the certificate
        holds in it.

        Parameters
        ----------
        radius : float
            In the noise's `norm`; finite and at least 0, as an abstention's is.
        norm : str
            The noise's norm, which returns `radius`, or one of `conversions`.
        shape : sequence of int, optional
            Of an input; whenever it is given, the noise must fit it. Norms that depend on its d
            elements need it: of noise in l2, linf, and of noise in l1, l2 and linf.

        Returns
        -------
        float
            Of an l_p radius r in l_q: ``r d^-max(0, 1/p - 1/q)``, by Hoelder's inequality. A ball of
            a larger radius would not lie within the l_p ball.

        Raises
        ------
        TypeError, ValueError
            If radius is no such number, the norm is another one, or shape is wrong, or is missing and needed.

        Examples
        --------
        >>> from rsfast.noise import Gaussian, Laplace
        >>> Gaussian(0.25).radius_in(0.5, "l1")
        0.5
        >>> round(Laplace(0.25).radius_in(0.5, "l2", shape=(3, 32, 32)), 6)
        0.009021
        """
        radius = as_real("radius", radius, least=0)
        if shape is not None:
            shape = check_shape(shape)
            self.check_fits(shape)
        if norm == self.norm:
            return radius
        possible = self.conversions
        if norm not in tuple(possible):
            names = " or".join(", ".join(map(repr, (self.norm, *possible))).rsplit(",", 1))
            raise ValueError(f"norm must be {names} with {self.name} noise, got {norm!r}")
        factor = possible[norm]
        if callable(factor):
            if shape is None:
                raise ValueError(
                    f"shape must be the shape of an input, as the {norm} radius depends on it, got None; give it as in "
                    f"radius_in({norm!r}, shape=(3, 32, 32))"
                )
            factor = factor(shape)
        return scaled_down(radius, factor)

    def size(self, delta: ArrayLike) -> float:
        """Return the size of a perturbation in `norm`, rounded up: a certificate of at least this radius covers it.

        Parameters
        ----------
        delta : array_like ``[*shape]``
            What is added to the input that is certified, of its shape and in its units: finite
            floating-point numbers, of an array, nested lists or a tensor of any device. Nothing is
            broadcast: delta is measured as it is.

        Returns
        -------
        float

        Raises
        ------
        TypeError
            If delta holds integers, as bytes of images, or anything else but floating-point numbers.
        ValueError
            If delta has no axis, is empty, not finite, or has a shape that the noise does not fit.
        NotImplementedError
            If the norm is not l1, l2 or linf, and the noise does not define `measure`.

        Examples
        --------
        >>> from rsfast.noise import AnisotropicGaussian, Mask
        >>> round(AnisotropicGaussian([0.25, 0.5]).size([0.5, 0.0]), 9)
        2.0
        >>> Mask(0.1).size([0.0, 0.5, -2.0])
        2
        """
        values = as_delta(delta)
        try:
            self.check_fits(values.shape)
        except ValueError as error:
            raise ValueError(
                f"delta must have the shape of an input that the noise takes, got shape {list(values.shape)}: {error}"
            ) from None
        return self.measure(values)

    def measure(self, delta: NDArray[np.float64]) -> float:
        """Return what `size` does, of a delta that it has checked. A noise whose norm is no l_p norm overrides this."""
        if self.norm not in ("l1", "l2", "linf"):
            raise NotImplementedError(f"{self.name} noise does not measure perturbations")
        return size(delta, self.norm)

    @property
    def has_score(self) -> bool:
        """Whether the noise has a `score`: it is then a sum, x + z, with -z as likely as z."""
        return type(self).score is not Noise.score

    def score(self, z: Any) -> Any:
        """Return the score of the noise's density p: minus the gradient of ``log p``, an odd function.

        ``E f(x + z) score(z)`` is the gradient of ``E f(x + z)`` (Stein's lemma), which `smoothing.smoothed` estimates.

        Parameters
        ----------
        z : float64 tensor ``[m, *shape]``
            Noise of m samples, in the units of the input.

        Returns
        -------
        float64 tensor ``[m, *shape]``

        Raises
        ------
        TypeError
            Unless a subclass defines it, as it does where p has a gradient almost everywhere and no jumps.
        """
        raise self._lacks("score", "a gradient")

    def laplacian(self, z: Any) -> Any:
        """Return the Laplacian of the noise's density over the density, ``(tr p'') / p``, whose mean is 0.

        ``E f(x + z) laplacian(z)`` is the trace of the Hessian of ``E f(x + z)``. Parameters, errors: as `score`.

        Returns
        -------
        float64 tensor [m]
        """
        raise self._lacks("laplacian", "a curvature")

    def _lacks(self, method: str, what: str) -> TypeError:
        """Return the error for a noise without a method that `smoothed` needs; it lists the noises that have it."""
        having = [name for name, kind in sorted(NOISES.items()) if getattr(kind, method) is not getattr(Noise, method)]
        names = " or ".join(", ".join(having).rsplit(", ", 1))
        return TypeError(f"noise must be {names} for {what}, got {self!r:.100}; none is implemented for {self.name} noise")

    @property
    def evaluations(self) -> int | None:
        """The number of samples, from 0 on, that are the whole noise: an exact certificate counts each once.

        None where noise is random, and certificates are bounds.
        """
        return None

    def exact_radius(self, lead: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the radius that no chance is in, where `evaluations` is a number.

        Parameters
        ----------
        lead : ndarray of int64
            Votes for a class less votes for any other, of all evaluations.

        Returns
        -------
        ndarray of float64
            In `norm`, rounded down. A lead of at least 1 proves the class at the input itself, so the radius is at least 0.
        """
        raise NotImplementedError(f"{self.name} noise is random")

    def to_dict(self) -> dict[str, Any]:
        """Return the noise's name and parameters, as values that JSON can hold; `from_dict` reads it back."""
        written = {
            name: value.tolist() if isinstance(value, FrozenArray) else value for name, value in self._fields().items()
        }
        return {"name": self.name, **written}

    def distinct_texts(self, other: Noise) -> tuple[str, str]:
        """Return the texts of this noise and another one, with the first element that differs of arrays that read the same.

        Examples
        --------
        >>> from rsfast.noise import Gaussian, Laplace
        >>> Gaussian(0.5).distinct_texts(Laplace(0.5))
        ('Gaussian(sigma=0.5)', 'Laplace(b=0.5)')
        """
        if type(self) is not type(other):
            return repr(self), repr(other)
        texts = {name: distinct_texts(value, getattr(other, name)) for name, value in self._fields().items()}
        one, two = (", ".join(f"{name}={each[i]}" for name, each in texts.items()) for i in range(2))
        return f"{self.name}({one})", f"{self.name}({two})"

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]


NOISES: dict[str, type[Noise]] = {}
"""The registered noises, by name."""

DRAWS: dict[str, Draw] = {}
"""Their draws, by name."""

_Class = TypeVar("_Class", bound=type[Noise])


def register(cls: _Class) -> _Class:
    """Register a noise, and its draw, under the names they have; a decorator of its class."""
    NOISES[cls.__name__] = cls
    DRAWS[cls.draw.name] = cls.draw
    return cls


def check_noise(name: str, noise: object) -> Noise:
    """Return `noise` if it is one; raise a TypeError that names it if not.

    Examples
    --------
    >>> from rsfast.noise import Gaussian
    >>> check_noise("noise", Gaussian(0.5))
    Gaussian(sigma=0.5)
    """
    if not isinstance(noise, Noise):
        hint = "pass an object, such as rsfast.Gaussian(0.25)"
        raise TypeError(f"{name} must be one of {', '.join(NOISES)}, got {noise!r}; {hint}")
    return noise


def from_dict(data: Mapping[str, Any]) -> Noise:
    """Return the noise that `Noise.to_dict` wrote.

    Raises
    ------
    TypeError, ValueError
        If data is no dict, the name is not registered, or the parameters are not those of the noise.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"data must be a dict, as Noise.to_dict returns one, got {data!r:.100}")
    parameters = dict(data)
    return NOISES[check_choice("noise", parameters.pop("name", None), NOISES)](**parameters)
