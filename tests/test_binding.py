"""What the extension modules take as integers and names, and what they say of other arguments."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from rsfast.ops import _cpu
from rsfast.ops.jobs import check_extension


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((1, 0, 0), TypeError, "takes 4 arguments by position, got 3"),
        ((0, 0, 0, 0, 0), TypeError, "takes 4 arguments by position, got 5"),
        ((0, 0.5, 0, 0), TypeError, "'float' object cannot be interpreted as an integer"),
        ((0, -1, 0, 0), OverflowError, "negative"),
        ((0, 0, 1 << 63, 0), OverflowError, "too "),
        ((1 << 31, 0, 0, 0), OverflowError, "an integer of 32 bits cannot be 2147483648"),
        ((-(1 << 31) - 1, 0, 0, 0), OverflowError, "an integer of 32 bits cannot be -2147483649"),
    ],
)
def test_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        _cpu.noise_of_words(*arguments)


def test_names_are_strings():
    with pytest.raises(TypeError):
        _cpu.use_isa(b"avx2")
    with pytest.raises(
        ValueError, match=r"the instruction set \(RSFAST_CPU_ISA\) is 'é'; on this processor it must be one of"
    ):
        _cpu.use_isa("é")


def test_whatever_has_an_index_is_an_integer():
    """All 64 bits arrive: an address or a seed is unsigned, a counter signed."""
    words = [np.zeros(4, np.uint32) for _ in range(2)]
    seed, counter = (1 << 64) - 1, [(1 << 40) - 1, 7, 2]
    _cpu.philox_words(seed, *counter, 3, 1, words[0].ctypes.data, 1)
    _cpu.philox_words(np.uint64(seed), *map(np.int64, counter), np.int32(3), True, words[1].ctypes.data, 1)
    assert words[0].any()
    assert words[0].tolist() == words[1].tolist()


def test_a_daemon_thread_in_a_kernel_does_not_abort_the_process_at_its_end():
    """Up to Python 3.13 its thread ends where it takes the GIL again, by unwinding."""
    code = """
        import threading, time
        import numpy as np
        from rsfast.ops import _cpu
        out = np.zeros(1 << 22, np.uint32)
        started = threading.Event()
        def draw():
            while True:
                started.set()
                _cpu.philox_words(1, 0, 0, 0, 0, 1 << 20, out.ctypes.data, 1)
        for _ in range(2):
            threading.Thread(target=draw, daemon=True).start()
        started.wait()
        time.sleep(0.05)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_binary_of_another_version_is_refused():
    """As one that was left by a checkout before a fix: its results would count as those of this version."""
    sizes = _cpu.sizes()
    check_extension(_cpu)
    for older, said in (({"version": lambda: "0.1.9"}, "0.1.9"), ({}, "a version before 0.2.0")):
        module = SimpleNamespace(__file__="old.so", sizes=lambda: sizes, draws=_cpu.draws, **older)
        with pytest.raises(ImportError, match=f"^old.so was built from another version of rsfast, {said}, and this is "):
            check_extension(module)
