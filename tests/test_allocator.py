"""rsfast.engine.allocator: sampling on the CPU makes glibc keep freed memory, unless the user chose otherwise."""

import ctypes
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import rsfast

ROOT = Path(__file__).resolve().parent.parent
CHOICES = ("RSFAST_MALLOC", "GLIBC_TUNABLES", "LD_PRELOAD")

try:
    GLIBC = ctypes.CDLL("libc.so.6").gnu_get_libc_version is not None
except OSError:
    GLIBC = False
needs_glibc = pytest.mark.skipif(not GLIBC, reason="this system's C library is not glibc")

SAMPLE = """
import os, resource, sys, torch, rsfast
def sample():
    return rsfast.certify(lambda x: x, torch.eye(3), rsfast.Gaussian(0.25), num_classes=3, n=20, seed=1)
def faults():
    "Page faults of writing 64 MiB to a new block: the fewest of twenty, as the first few may not fit where the last was."
    counts = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 << 20)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)
"""
FEW = 16  # 32 faults would be those of a new block even if the system's pages were of 2 MiB


def python(code, **environment):
    """What a new Python prints, in an environment with no choice about memory but those given."""
    kept = {name: value for name, value in os.environ.items() if name not in CHOICES and not name.startswith("MALLOC_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def status(code="", **environment):
    """What the module says of a process that has run the code; run from its file, as the package imports SciPy."""
    path = str(ROOT / "rsfast" / "engine" / "allocator.py")
    return python(f"{code}\nimport runpy\nprint(runpy.run_path({path!r})['keep_freed_memory']())", **environment)


@pytest.mark.slow
@needs_glibc
def test_memory_is_kept_from_the_first_sampling_and_not_from_the_import():
    code = SAMPLE + "before = faults()\nsample()\nprint(before, faults())"
    for environment in ({}, {"RSFAST_MALLOC": "1"}):
        before, after = map(int, python(code, **environment).split())
        assert before > FEW > after


@pytest.mark.slow
@needs_glibc
@pytest.mark.parametrize("choice", ["RSFAST_MALLOC=0", "MALLOC_TRIM_THRESHOLD_=131072", "MALLOC_MMAP_THRESHOLD_=131072"])
def test_memory_is_not_kept_where_the_user_chose_so(choice):
    name, _, value = choice.partition("=")
    assert int(python(SAMPLE + "sample()\nprint(faults())", **{name: value})) > FEW


@pytest.mark.slow
@needs_glibc
def test_a_block_above_the_limit_is_returned():
    code = SAMPLE + (
        "from pathlib import Path\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() >> 20\n"
        "sample()\n"
        "before = resident()\n"
        "block = torch.ones(80 << 20)\n"
        "most = resident()\n"
        "del block\n"
        "print(most - before, resident() - before)"
    )
    most, left = map(int, python(code).split())
    assert most > 310
    assert left < 10


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("RSFAST_MALLOC=0", "RSFAST_MALLOC is 0"),
        ("MALLOC_TRIM_THRESHOLD_=1", "MALLOC_TRIM_THRESHOLD_ is set"),
        ("MALLOC_MMAP_THRESHOLD_=4194304", "MALLOC_MMAP_THRESHOLD_ is set"),
        ("MALLOC_TOP_PAD_=1", "MALLOC_TOP_PAD_ is set"),
        ("GLIBC_TUNABLES=glibc.malloc.trim_threshold=131072", "GLIBC_TUNABLES sets glibc.malloc.trim_threshold"),
        (
            "GLIBC_TUNABLES=glibc.malloc.check=0:glibc.malloc.mmap_threshold=131072",
            "GLIBC_TUNABLES sets glibc.malloc.mmap_threshold",
        ),
    ],
)
def test_the_reason_is_given_where_nothing_is_changed(choice, reason):
    name, _, value = choice.partition("=")
    assert status(**{name: value}) == f"unchanged, since {reason}"


@needs_glibc
@pytest.mark.parametrize("choice", ["GLIBC_TUNABLES=glibc.malloc.arena_max=4", "MALLOC_ARENA_MAX=2", "RSFAST_MALLOC=1"])
def test_other_settings_are_no_reason(choice):
    name, _, value = choice.partition("=")
    assert status(**{name: value}).startswith("glibc 2.")


@pytest.mark.parametrize("value", ["", "2", "yes", "00", " 1", "off"])
@pytest.mark.parametrize("call", [rsfast.certify, rsfast.predict])
def test_a_wrong_choice_is_named_before_the_model_runs(monkeypatch, call, value):
    monkeypatch.setenv("RSFAST_MALLOC", value)
    with pytest.raises(ValueError, match=f"^RSFAST_MALLOC must be 0 or 1, got {value!r}$"):
        call(pytest.fail, torch.eye(3), rsfast.Gaussian(1.0), num_classes=3, n=20, alpha=0.01)


OTHER_MALLOC = """
#include <stddef.h>
#include <sys/mman.h>
void *__libc_malloc(size_t);
void __libc_free(void *);
static void *large;
void *malloc(size_t n) {
    if (n < 32 << 20) return __libc_malloc(n);
    return large = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
void free(void *block) {
    if (!block || block != large) __libc_free(block);
}
"""


@needs_glibc
def test_a_preloaded_malloc_is_left_as_it_is(tmp_path):
    """As jemalloc and tcmalloc are preloaded: this library takes large blocks from the system itself."""
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER_MALLOC)
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    subprocess.run([*compiler, "-shared", "-fPIC", "-fno-builtin", str(source), "-o", str(library)], check=True)
    assert status(LD_PRELOAD=str(library)) == "unchanged, since malloc is not glibc's"


FAKE = """
import ctypes
from types import SimpleNamespace
load, calls = ctypes.CDLL, []
class Fake:
    "glibc, but for mallopt, which takes no size above `most`."
    def __init__(self, most): self.library, self.most = load("libc.so.6"), most
    def __getattr__(self, name): return getattr(self.library, name)
    def mallopt(self, parameter, value):
        calls.append((parameter, value))
        return int(value <= self.most)
"""


@pytest.mark.parametrize("error", ["OSError('libc.so.6: not found')", "AttributeError('malloc')", "TypeError('None')"])
def test_another_c_library_is_left_as_it_is(error):
    code = f"import ctypes\ndef load(name): raise {error}\nctypes.CDLL = load"
    assert status(code) == "unchanged, since malloc is not glibc's"


@needs_glibc
@pytest.mark.parametrize(
    ("most", "text", "sizes"),
    [
        (1 << 31, "keeps freed blocks of up to 256 MiB for reuse", [(-3, 256), (-1, 256)]),
        # The first is refused by glibc before 2.35, which takes a trim threshold of any size.
        (
            "1 << 25 if parameter == -3 else 1 << 31",
            "keeps freed blocks of up to 32 MiB for reuse",
            [(-3, 256), (-3, 32), (-1, 256)],
        ),
        (0, "refused", [(-3, 256), (-3, 32)]),
    ],
)
def test_what_an_older_glibc_takes(most, text, sizes):
    fake = FAKE.replace("self.most)", f"({most}))") + "ctypes.CDLL = lambda name: load(None) if name is None else Fake(0)"
    printed = status(fake + "\nimport atexit; atexit.register(lambda: print(calls))").splitlines()
    assert text in printed[0]
    assert printed[1] == str([(parameter, size << 20) for parameter, size in sizes])


@pytest.mark.slow
@needs_glibc
def test_the_choice_is_made_once_a_process():
    """Whatever the number of samplings, and in a forked child too: it has its parent's memory and settings."""
    code = (
        FAKE
        + SAMPLE
        + (
            "torch.set_num_threads(1)  # a fork's child has no OpenMP threads\n"
            "sample(); sample()\n"
            "from rsfast.engine.allocator import keep_freed_memory\n"
            "os.environ['MALLOC_TRIM_THRESHOLD_'] = '1'\n"
            "told = keep_freed_memory()\n"
            "child = os.fork()\n"
            "if child == 0:\n"  # without torch's work, which may wait for threads that a fork left behind
            "    os._exit(0 if keep_freed_memory() == told else 1)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told.startswith('glibc 2.'))\n"
        )
    )
    assert python(code) == "0 True"


@pytest.mark.slow
@needs_glibc
def test_threads_that_come_first_together_agree():
    code = SAMPLE + (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from rsfast.engine.allocator import keep_freed_memory\n"
        "def told(_):\n"
        "    sample()\n"
        "    return keep_freed_memory()\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        f"    print(len(set(pool.map(told, range(16)))), faults() < {FEW})"
    )
    assert python(code) == "1 True"
