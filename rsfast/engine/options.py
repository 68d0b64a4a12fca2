"""The one declaration of every option that the API, the command line and a run's sidecar share. It does without torch.

An option is one field of a TypedDict here: its name, its type and, in `Option`, its default, check, help and place in a
sidecar. TypedDicts and not dataclasses, as only a TypedDict gives ``**options: Unpack[...]`` its static types: a dataclass
would need a second declaration of each option beside it. The groups are ``total=False``: whoever calls may leave any out.

How each is used:

- A public function takes ``**options: Unpack[CertifyOptions]``. It calls ``refuse_unknown(CertifyOptions, options)``, and
  ``checked(ProofOptions, part(ProofOptions, options))`` for a dict of all options of that group, checked.
- `Sampling` takes ``**options: Unpack[SamplingOptions]`` and checks them, on all ranks together.
- A parser goes through ``options_of(CertifyOptions).items()``, and leaves out those whose `Option.flags` is empty.
- A sidecar holds the `ProofOptions`, the `StoppingOptions`, those with `Option.recorded`, and ``Execution.to_dict()``.

The head is not among them: certify returns lists where it is a sequence, and only overloads can declare that.
This module must not postpone its annotations (``from __future__ import annotations``): that would hide the metadata.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar

from .._check import check_count, is_int
from ..heads import Head, Votes
from ..noise import Noise, check_noise, check_seed
from ..stats.common import check_alpha
from ..stats.exact import EXACT, check_exact
from ..stats.registry import BOUNDS
from ..stats.rules import RULES

if TYPE_CHECKING:
    import torch

Options = TypeVar("Options")
T = TypeVar("T")

SHARDS = ("inputs", "samples")
"""What processes can divide."""


@dataclass(frozen=True)
class Option:
    """What is declared of an option beside its name and type.

    Parameters
    ----------
    default : object
        Its value where it is left out. False makes it a switch, which must be a bool.
    help : str
        Its help on the command line; "%(default)s" stands for the default.
    check : callable, optional
        From its name and value to the value to use; raises TypeError or ValueError. Without one, an option that is no switch
        is checked where it meets what it must fit: the device, the shape of the inputs or another option.
    flags : tuple of str, optional
        How the command line writes it: ``--batch-size`` for batch_size, if None. Empty where the command line has no such
        option, or one of another form.
    parse : callable
        From the text on the command line to the value.
    nargs : int or "+", optional
        How many texts follow the flag, if more than one; or one or more.
    choices : tuple of str, optional
        The texts that are allowed.
    metavar : str or tuple of str, optional
        What stands for the value in the help.
    recorded : bool
        For `SamplingOptions`: whether a sidecar holds it under the option's name: the value used, where that is left to
        rsfast ("auto", or a seed of None). What `Execution` records is written from there.
    may_differ_in_a_shard : bool
        Whether runs that are merged may have several values.
    """

    default: Any = None
    help: str = ""
    check: Callable[[str, Any], Any] | None = None
    flags: tuple[str, ...] | None = None
    parse: Callable[[str], Any] = str
    nargs: int | str | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    recorded: bool = False
    may_differ_in_a_shard: bool = False


def _batch_size(name: str, value: object) -> int | str:
    if isinstance(value, str) and value == "auto":
        return value
    if isinstance(value, (str, float)) or value is None:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be an int or 'auto', got {value!r}")
    return check_count(name, value)


def _int_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise ArgumentTypeError(f"must be an int or auto, got {text!r}")
    return text if text == "auto" else int(text)


class PreparationOptions(TypedDict, total=False):
    """How `ops.perturb` makes what the classifier is given."""

    scale: Annotated["torch.Tensor | Sequence[float] | float | None", Option(flags=())]
    shift: Annotated["torch.Tensor | Sequence[float] | float | None", Option(flags=())]
    clamp: Annotated[
        tuple[float, float] | None,
        Option(
            help="clamp noisy inputs to [LOW, HIGH], in the units of inputs, before mean and std (default: no clamp)",
            parse=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
        ),
    ]
    dtype: Annotated[
        "torch.dtype | str | None",
        Option(help="what the model takes (default: float32)", choices=("float32", "float16", "bfloat16", "float64")),
    ]
    channels_last: Annotated[bool, Option(False, "feed the model batches in torch.channels_last")]
    backend: Annotated[
        str,
        Option(
            "auto", "auto, cpu, cuda, triton or reference (default: %(default)s)", recorded=True, may_differ_in_a_shard=True
        ),
    ]


class ForwardOptions(TypedDict, total=False):
    """What `forward.Forward` takes: how the classifier runs."""

    autocast: Annotated[
        "torch.dtype | str | None", Option(help="run the model under torch.autocast", choices=("float16", "bfloat16"))
    ]
    compile: Annotated[bool, Option(False, "run the model through torch.compile")]
    cuda_graph: Annotated[bool, Option(False, "replay the model as a CUDA graph")]


class SmoothOptions(PreparationOptions, ForwardOptions, total=False):
    """What every function that samples takes: how the classifier runs, and the backend of the kernels.

    `stats.certificate.Execution` is what certificates and sidecars record of these.
    """

    progress: Annotated[bool, Option(False, flags=())]


class SampleOptions(SmoothOptions, total=False):
    """What `sample`, `certify` and `predict` take."""

    batch_size: Annotated[
        int | str,
        Option(
            "auto",
            "samples in a batch (default: auto, the fastest for long runs)",
            _batch_size,
            parse=_int_or_auto,
            metavar="B",
            recorded=True,
            may_differ_in_a_shard=True,
        ),
    ]
    input_ids: Annotated["torch.Tensor | Sequence[int] | None", Option(flags=())]


class SamplingOptions(SampleOptions, total=False):
    """What `certify` and `predict` take."""

    shard: Annotated[
        str | None,
        Option(help="what the processes of torchrun divide: inputs (default), or the samples of each", choices=SHARDS),
    ]
    seed: Annotated[
        int | None,
        Option(
            help="of the noise, in [0, 2^64) (default: from the operating system; recorded)",
            check=lambda _, value: None if value is None else check_seed(value),
            parse=int,
            recorded=True,
        ),
    ]


class ProofOptions(TypedDict, total=False):
    """How certificates follow from samples. A sidecar holds them all, but top_k only where it is not 1."""

    n0: Annotated[int, Option(100, "selection samples of an input (default: %(default)s)", check_count, parse=int)]
    n: Annotated[
        int, Option(100_000, "estimation samples of an input (default: %(default)s)", check_count, ("-n", "--n"), int)
    ]
    alpha: Annotated[
        float,
        Option(
            0.001, "failure probability of an input (default: %(default)s)", lambda _, value: check_alpha(value), parse=float
        ),
    ]
    bound: Annotated[str, Option("auto", "confidence bound (default: %(default)s)", choices=("auto", *BOUNDS))]
    rule: Annotated[str, Option("auto", "radius rule (default: %(default)s)", choices=("auto", *RULES))]
    lipschitz: Annotated[
        float | None,
        Option(
            help="l2 Lipschitz constant of every class's soft score, per unit of what the model takes",
            parse=float,
            metavar="L",
        ),
    ]
    top_k: Annotated[
        int,
        Option(
            1,
            "radius within which the class is among the K with the largest scores (default: %(default)s)",
            check_count,
            parse=int,
            metavar="K",
        ),
    ]


class StoppingOptions(TypedDict, total=False):
    """When the sampling of an input stops before n: one at most. `plan.StoppingRule` checks; a sidecar holds both."""

    radius: Annotated[
        float | Sequence[float] | None,
        Option(
            help="stop sampling an input once its radius, in the noise's norm, is R or will not be; of several, which "
            "increase, once that is so of each",
            parse=float,
            nargs="+",
            metavar="R",
        ),
    ]
    rtol: Annotated[
        float | None, Option(help="stop once the radius is known to this share, such as 0.05", parse=float, metavar="X")
    ]


class TuneOptions(SamplingOptions, ProofOptions, total=False):
    """What `tune_head` takes."""


class CertifyOptions(TuneOptions, StoppingOptions, total=False):
    """What `certify` takes, but for the head."""


def options_of(kind: type) -> dict[str, Option]:
    """Return what is declared of each option of a group, by name.

    Examples
    --------
    >>> [name for name, option in options_of(CertifyOptions).items() if option.nargs]
    ['clamp', 'radius']
    """
    return {name: annotation.__metadata__[0] for name, annotation in kind.__annotations__.items()}


def proof_options(noise: Noise, head: Head, given: Mapping[str, Any]) -> ProofOptions:
    """Return all options of a proof: those given, checked, and the defaults of the others.

    Deterministic noise leaves no choice: an option of a proof or of stopping that is given with another meaning is an error.

    Raises
    ------
    TypeError, ValueError
        If an option's value fails its check, or the noise is no Noise.

    Examples
    --------
    >>> from rsfast import SubspaceSmoothing
    >>> halves = SubspaceSmoothing([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> proof_options(halves, Votes(), {})["n"], proof_options(halves, Votes(), {})["alpha"]
    (2, 0.0)
    """
    if (n := check_noise("noise", noise).evaluations) is None:
        return checked(ProofOptions, part(ProofOptions, given))
    check_exact(noise, head, **part(ProofOptions, given), **part(StoppingOptions, given))
    top_k = check_count("top_k", given.get("top_k", 1))
    return ProofOptions(n0=0, n=n, alpha=0.0, bound=EXACT, rule=EXACT, lipschitz=None, top_k=top_k)


def sample_range(noise: Noise, n: int | None, start: int) -> range:
    """Return the samples start to start + n - 1, checked; with deterministic noise n may be left out, for all from start.

    Raises
    ------
    TypeError, ValueError
        If n or start fails its check, or the noise is no Noise.

    Examples
    --------
    >>> from rsfast import Splitting
    >>> sample_range(Splitting(0.5, deterministic=True), None, 5)
    range(5, 255)
    """
    evaluations = check_noise("noise", noise).evaluations
    if evaluations is None:
        n = _given("n", n, "the number of samples of each input, such as n=1000")
    n = None if n is None else check_count("n", n)
    most = (evaluations or 0) - 1 if n is None else (1 << 56) - n
    if not is_int(start) or not 0 <= int(start) <= most:
        raise ValueError(f"start must be an int from 0 to {most if n is None else '2^56 - n'}, got {start!r}")
    return range(int(start), most + 1 if n is None else int(start) + n)


def prediction_options(noise: Noise, n: int | None, alpha: float | None) -> tuple[int, float]:
    """Return n and alpha of a prediction, checked; with deterministic noise they may be left out, and alpha is 0.

    Raises
    ------
    TypeError, ValueError
        If n or alpha fails its check, or is missing with random noise, or the noise is no Noise.
    """
    if (evaluations := check_noise("noise", noise).evaluations) is None:
        n = check_count("n", _given("n", n, "the number of samples of each input, such as n=1000"))
        return n, check_alpha(_given("alpha", alpha, "the failure probability of each input, such as alpha=0.001"))
    check_exact(noise, Votes(), **{name: each for name, each in (("n", n), ("alpha", alpha)) if each is not None})
    return evaluations, 0.0


def _given(name: str, value: T | None, what: str) -> T:
    if value is None:
        raise TypeError(f"{name} must be given with random noise, got None; pass {what}")
    return value


def refuse_unknown(kind: type, given: Mapping[str, object]) -> None:
    """Raise TypeError if one of the options given is not of this group.

    Examples
    --------
    >>> refuse_unknown(StoppingOptions, {"radios": 1.0})
    Traceback (most recent call last):
        ...
    TypeError: keyword arguments must be among radius, rtol, got radios
    """
    if unknown := sorted(set(given) - set(kind.__annotations__)):
        raise TypeError(f"keyword arguments must be among {', '.join(kind.__annotations__)}, got {', '.join(unknown)}")


def part(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Return those of the options given that are of this group."""
    return kind(**{name: value for name, value in given.items() if name in kind.__annotations__})


def checked(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Return all options of a group: those given, checked, and the defaults of the others.

    Raises
    ------
    TypeError, ValueError
        If an option is not of the group, or its value fails its check.

    Examples
    --------
    >>> checked(StoppingOptions, {"radius": 0.5})
    {'radius': 0.5, 'rtol': None}
    """
    refuse_unknown(kind, given)
    values = {}
    for name, option in options_of(kind).items():
        value = given.get(name, option.default)
        if option.default is False and not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {value!r}")
        values[name] = value if option.check is None else option.check(name, value)
    return kind(**values)
