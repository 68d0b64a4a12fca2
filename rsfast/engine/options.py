"""The one declaration of every option that the API, the command line and a run's sidecar share. It does without torch.

An option is one field of a TypedDict here: its name, its type and, in `Option`, its default, check, help and place in a
sidecar. TypedDicts and not dataclasses, as only a TypedDict gives ``**options: Unpack[...]`` its static types: a dataclass
would need a second declaration of each option beside it. The groups are ``total=False``: whoever calls may leave any out.

- `ExecutionOptions`: how the classifier runs. Of these, `stats.certificate.Execution` is what certificates and sidecars
  record.
- `SmoothOptions`, `SampleOptions`, `SamplingOptions`: those and how samples are drawn; each adds to the one before.
- `ProofOptions`: how certificates follow from samples. `StoppingOptions`: when sampling stops; `plan.StoppingRule` checks.
- `TuneOptions`, `CertifyOptions`: what `tune_head` and `certify` take of these.

How each is used:

- A public function takes ``**options: Unpack[CertifyOptions]``. It calls ``refuse_unknown(CertifyOptions, options)``, and
  ``checked(ProofOptions, part(ProofOptions, options))`` for a dict of all options of that group, checked.
- `Sampling` takes ``**options: Unpack[SamplingOptions]`` and checks them, on all ranks together.
- A parser goes through ``options_of(CertifyOptions).items()``, and leaves out those whose `Option.flags` is empty.
- A sidecar holds each option whose `Option.recorded` is true, and ``Execution.to_dict()``.

The head is not among them: certify returns lists where it is a sequence, and only overloads can declare that.
This module must not postpone its annotations (``from __future__ import annotations``): that would hide the metadata.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar

from .._check import as_int
from ..noise import check_seed
from ..stats.common import check_alpha
from ..stats.registry import BOUNDS
from ..stats.rules import RULES

if TYPE_CHECKING:
    import torch

Options = TypeVar("Options")

SHARDS = ("inputs", "samples")
"""What processes can divide."""

_MAX_SAMPLES = (1 << 33) - 1  # `ops.tally.MAX_SAMPLES`, which needs torch; tests/test_options.py holds them equal


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is declared of an option beside its name and type.

    Parameters
    ----------
    default : object
        Its value where it is left out.
    check : callable, optional
        From its name and value to the value to use; raises TypeError or ValueError. Without one, the option is checked where
        it meets what it must fit: the device, the shape of the inputs or another option.
    help : str
        Its help on the command line; "%(default)s" stands for the default.
    flags : tuple of str, optional
        How the command line writes it: ``--batch-size`` for batch_size, if None. Empty where the command line has no such
        option, or one of another form.
    parse : callable, optional
        From the text on the command line to the value. Without one, the option is a switch, False unless given.
    nargs : int, optional
        How many texts follow the flag, if more than one.
    choices : tuple of str, optional
        The texts that are allowed.
    metavar : str or tuple of str, optional
        What stands for the value in the help.
    recorded : bool
        Whether a sidecar holds it under the option's name: the value used, where that is left to rsfast ("auto", or a seed
        of None). What `Execution` records is written from there.
    may_differ_on_resume, may_differ_in_a_shard : bool
        Whether a run can go on with another value, and whether runs that are merged may have several.
    """

    default: Any = None
    check: Callable[[str, Any], Any] | None = None
    help: str = ""
    flags: tuple[str, ...] | None = None
    parse: Callable[[str], Any] | None = None
    nargs: int | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    recorded: bool = False
    may_differ_on_resume: bool = False
    may_differ_in_a_shard: bool = False

    def flags_of(self, name: str) -> tuple[str, ...]:
        """Return how the command line writes this option.

        Examples
        --------
        >>> options_of(SamplingOptions)["batch_size"].flags_of("batch_size")
        ('--batch-size',)
        """
        return (f"--{name.replace('_', '-')}",) if self.flags is None else self.flags


def check_count(name: str, value: object) -> int:
    """Return a number of samples, or of rows, as an int."""
    count = as_int(name, value)
    if not 1 <= count <= _MAX_SAMPLES:
        raise ValueError(f"{name} must be from 1 to {_MAX_SAMPLES}, got {count}")
    return count


def _batch_size(name: str, value: object) -> int | str:
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"{name} must be an int or 'auto', got {value!r}")
    return value if isinstance(value, str) else check_count(name, value)


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def _alpha(name: str, value: Any) -> float:
    return check_alpha(value)


def _seed(name: str, value: object) -> int | None:
    return None if value is None else check_seed(value)


def _int_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


class PreparationOptions(TypedDict, total=False):
    """How `ops.perturb` makes what the classifier is given."""

    scale: Annotated["torch.Tensor | Sequence[float] | float | None", Option(flags=())]
    shift: Annotated["torch.Tensor | Sequence[float] | float | None", Option(flags=())]
    clamp: Annotated[
        tuple[float, float] | None,
        Option(
            parse=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help="clamp noisy inputs to [LOW, HIGH], in the units of inputs, before mean and std (default: no clamp)",
        ),
    ]
    dtype: Annotated[
        "torch.dtype | str | None",
        Option(
            parse=str, choices=("float32", "float16", "bfloat16", "float64"), help="what the model takes (default: float32)"
        ),
    ]
    channels_last: Annotated[bool, Option(default=False, check=_bool, help="feed the model batches in torch.channels_last")]
    backend: Annotated[
        str,
        Option(
            default="auto",
            parse=str,
            recorded=True,
            may_differ_in_a_shard=True,
            help="auto, cpu, cuda, triton or reference (default: %(default)s)",
        ),
    ]


class ForwardOptions(TypedDict, total=False):
    """What `forward.Forward` takes: how the classifier runs."""

    autocast: Annotated[
        "torch.dtype | str | None",
        Option(parse=str, choices=("float16", "bfloat16"), help="run the model under torch.autocast"),
    ]
    compile: Annotated[bool, Option(default=False, check=_bool, help="run the model through torch.compile")]
    cuda_graph: Annotated[bool, Option(default=False, check=_bool, help="replay the model as a CUDA graph")]


class ExecutionOptions(PreparationOptions, ForwardOptions, total=False):
    """What of a call is part of the classifier that is certified, and the backend of the kernels."""


class SmoothOptions(ExecutionOptions, total=False):
    """What every function that samples takes."""

    progress: Annotated[bool, Option(default=False, check=_bool, flags=())]


class SampleOptions(SmoothOptions, total=False):
    """What `sample`, `certify` and `predict` take."""

    batch_size: Annotated[
        int | str,
        Option(
            default="auto",
            check=_batch_size,
            parse=_int_or_auto,
            metavar="B",
            recorded=True,
            may_differ_in_a_shard=True,
            help="samples in a batch (default: auto, the fastest for long runs)",
        ),
    ]
    input_ids: Annotated["torch.Tensor | Sequence[int] | None", Option(flags=())]


class SamplingOptions(SampleOptions, total=False):
    """What `certify` and `predict` take."""

    shard: Annotated[
        str | None,
        Option(
            parse=str,
            choices=SHARDS,
            help="what the processes of torchrun divide: inputs (default), or the samples of each",
        ),
    ]
    seed: Annotated[
        int | None,
        Option(
            check=_seed,
            parse=int,
            recorded=True,
            help="of the noise, in [0, 2^64) (default: from the operating system; recorded)",
        ),
    ]


class ProofOptions(TypedDict, total=False):
    """How certificates follow from samples."""

    n0: Annotated[
        int,
        Option(
            default=100,
            check=check_count,
            parse=int,
            recorded=True,
            help="selection samples of an input (default: %(default)s)",
        ),
    ]
    n: Annotated[
        int,
        Option(
            default=100_000,
            check=check_count,
            flags=("-n", "--n"),
            parse=int,
            recorded=True,
            help="estimation samples of an input (default: %(default)s)",
        ),
    ]
    alpha: Annotated[
        float,
        Option(
            default=0.001,
            check=_alpha,
            parse=float,
            recorded=True,
            help="failure probability of an input (default: %(default)s)",
        ),
    ]
    bound: Annotated[
        str,
        Option(
            default="auto",
            parse=str,
            choices=("auto", *BOUNDS),
            recorded=True,
            help="confidence bound (default: %(default)s)",
        ),
    ]
    rule: Annotated[
        str,
        Option(
            default="auto", parse=str, choices=("auto", *RULES), recorded=True, help="radius rule (default: %(default)s)"
        ),
    ]
    lipschitz: Annotated[
        float | None,
        Option(
            parse=float,
            metavar="L",
            recorded=True,
            help="l2 Lipschitz constant of every class's soft score, per unit of what the model takes",
        ),
    ]


class StoppingOptions(TypedDict, total=False):
    """When the sampling of an input stops before n; one of them at most."""

    radius: Annotated[
        float | None,
        Option(parse=float, metavar="R", recorded=True, help="stop sampling an input once its radius is R or will not be"),
    ]
    rtol: Annotated[
        float | None,
        Option(parse=float, metavar="X", recorded=True, help="stop once the radius is known to this share, such as 0.05"),
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
    ['clamp']
    """
    return {name: annotation.__metadata__[0] for name, annotation in kind.__annotations__.items()}


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
    values = {name: given.get(name, option.default) for name, option in options_of(kind).items()}
    checks = ((name, option.check) for name, option in options_of(kind).items() if option.check is not None)
    return kind(**(values | {name: check(name, values[name]) for name, check in checks}))
