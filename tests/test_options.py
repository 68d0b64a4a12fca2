"""The declaration of the options: defaults, checks and names, each stated once."""

import inspect

import numpy as np
import pytest

from rsfast._check import MAX_SAMPLES
from rsfast.engine import options
from rsfast.engine.options import (
    CertifyOptions,
    SamplingOptions,
    SmoothOptions,
    TuneOptions,
    checked,
    options_of,
    part,
    refuse_unknown,
)
from rsfast.engine.plan import StoppingRule
from rsfast.stats.certificate import Execution


def test_defaults_pass_their_checks():
    found = checked(CertifyOptions, {})
    assert set(found) == set(CertifyOptions.__annotations__)
    assert found == {name: option.default for name, option in options_of(CertifyOptions).items()}


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("n", 0, ValueError, "n must be from 1 to 8589934591, got 0"),
        ("n0", MAX_SAMPLES + 1, ValueError, "n0 must be from 1 to 8589934591, got 8589934592"),
        ("n", 2.0, TypeError, "n "),
        ("batch_size", "fast", ValueError, "batch_size must be an int or 'auto', got 'fast'"),
        ("batch_size", 0, ValueError, "batch_size must be from 1"),
        ("progress", "yes", TypeError, "progress must be a bool, got 'yes'"),
        ("compile", 1, TypeError, "compile must be a bool, got 1"),
        ("cuda_graph", None, TypeError, "cuda_graph must be a bool, got None"),
        ("seed", -1, ValueError, "seed"),
        ("alpha", 1.5, ValueError, "alpha"),
    ],
)
def test_checks(name, value, error, text):
    with pytest.raises(error, match=f"^{text}"):
        checked(CertifyOptions, {name: value})


def test_checked_values_are_pythons():
    assert type(checked(CertifyOptions, {"n": np.int64(5)})["n"]) is int


def test_unknown_names():
    with pytest.raises(TypeError, match=r"must be among scale, .*progress, got bacth_size, rdius"):
        refuse_unknown(SmoothOptions, {"rdius": 1, "bacth_size": 3, "scale": 2})
    with pytest.raises(TypeError, match="got radius"):
        checked(TuneOptions, {"radius": 1.0})


def test_a_part():
    assert part(SamplingOptions, {"n0": 5, "shard": None, "seed": 2}) == {"shard": None, "seed": 2}


def test_the_bool_options_are_recorded():
    """What Execution records of the same name has the same default: such an option goes from one into the other."""
    recorded = {name: field.default for name, field in Execution.__dataclass_fields__.items()}
    for name, option in options_of(options.SmoothOptions).items():
        if name not in ("backend", "progress", "dtype"):  # recorded by itself; not at all; None for float32
            assert recorded[name] == option.default


def test_the_stopping_rule_takes_its_options():
    assert list(inspect.signature(StoppingRule).parameters) == list(options.StoppingOptions.__annotations__)


def test_what_the_command_line_offers_has_a_help():
    assert all(option.help for option in options_of(CertifyOptions).values() if option.flags != ())


def test_the_largest_count():
    assert checked(CertifyOptions, {"n": MAX_SAMPLES})["n"] == MAX_SAMPLES == (1 << 33) - 1
