"""hub/: the Triton kernels as a repository for Hugging Face's `kernels`, loaded by its own loader."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_bits
from torch._subclasses import FakeTensorMode

from rsfast import ClippedLogits, Gaussian, Laplace, Softmax, Sparsemax, Tally, Uniform, Votes, ops
from rsfast.noise import AnisotropicGaussian

ROOT = Path(__file__).resolve().parent.parent
HUB = ROOT / "hub"

_spec = importlib.util.spec_from_file_location("hub_export", HUB / "export.py")
hub_export = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hub_export)

has_kernels = pytest.mark.skipif(
    importlib.util.find_spec("kernels") is None, reason="`kernels` of Hugging Face is not installed"
)
has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "rsfast-kernels"
    hub_export.export(folder, "you/rsfast-kernels")
    return folder


# The layout


def test_imports(repository):
    """The standard library, torch and Triton; and the kernel itself by relative imports, of what is there."""
    for variant in ("torch-ext/rsfast_kernels", "build/torch-cuda"):
        sources = repository / variant
        for path in sorted(sources.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level:
                    module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                    beside = [module / f"{alias.name}.py" for alias in node.names]
                    built = node.module == "_ops" and path == sources / "__init__.py"  # the builder's own
                    assert built or module.with_suffix(".py").is_file() or all(each.is_file() for each in beside), path
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module]
                assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "torch", "triton"}, path


@has_triton
@pytest.mark.slow
def test_loads_where_rsfast_is_missing(repository):
    """By its own name, as its tests import it, twice. Without a GPU it says so."""
    code = """
        import sys
        sys.modules["rsfast"] = None
        import rsfast_kernels
        first = rsfast_kernels.perturb
        del sys.modules["rsfast_kernels"]
        import rsfast_kernels
        assert rsfast_kernels.perturb is first
        import torch
        try:
            first(torch.zeros(1, 4), torch.arange(1), noise_scale=1.0, seed=0)
        except ValueError as error:
            assert "x must be on a GPU, got one on 'cpu'" in str(error)
        else:
            raise AssertionError
        assert "rsfast_kernels_cuda" in first.__module__
        """
    environment = os.environ | {"PYTHONPATH": str(repository / "build/torch-cuda")}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


def test_the_text_is_the_package_s(repository):
    """Every definition that was exported, word for word."""
    for name in ("ops/triton_noise.py", "ops/triton_perturb.py", "ops/triton_accumulate.py", "ops/calls.py", "_check.py"):
        package = {ast.dump(node) for node in ast.parse((ROOT / "rsfast" / name).read_text()).body}
        exported = ast.parse((repository / "torch-ext/rsfast_kernels" / name).read_text()).body
        definitions = [node for node in exported if not isinstance(node, (ast.Import, ast.ImportFrom))]
        assert len(definitions) > 4
        assert {ast.dump(node) for node in definitions} <= package


def test_what_annotations_name_is_imported(repository):
    """Nothing evaluates it; readers and type checkers look it up."""
    text = (repository / "torch-ext/rsfast_kernels/ops/calls.py").read_text()
    tree = ast.parse(text)
    (clamp,) = (node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and node.target.id == "clamp")
    assert ast.unparse(clamp.annotation) == "Sequence[float] | None"
    assert "\nfrom collections.abc import Sequence\n" in text


def test_what_a_kernel_may_not_import():
    found = hub_export.Export(hub_export.PACKAGE)
    path = hub_export.PACKAGE / "heads" / "bins.py"
    found.take(path, "bin_of")
    with pytest.raises(ValueError, match="must do without 'import numpy as np' in a kernel"):
        found.text(path)


def test_what_is_not_there():
    with pytest.raises(ValueError, match="must define 'bin_off'"):
        hub_export.Export(hub_export.PACKAGE).take(hub_export.PACKAGE / "heads" / "bins.py", "bin_off")


def test_modules_of_which_no_part_can_be_taken(tmp_path):
    """What they do when they are imported would be lost, or evaluated as it was not."""
    path = tmp_path / "module.py"
    path.write_text("import os\n\nvalue = 1\nos.register_at_fork(before=print)\n")
    with pytest.raises(ValueError, match="line 4: a module must only import and define, got os"):
        hub_export.Module(path)
    path.write_text("value = 1\nvalue = value + 1\n")
    with pytest.raises(ValueError, match="line 2: a name must be defined once, got value again"):
        hub_export.Module(path)
    path.write_text("value: Other = 1\n")
    found = hub_export.Export(tmp_path)
    found.take(path, "value")
    with pytest.raises(ValueError, match="must import annotations from __future__"):
        found.text(path)


def test_command(tmp_path):
    command = [sys.executable, HUB / "export.py", tmp_path / "out"]
    subprocess.run(command, check=True)
    assert "[general.hub]" not in (tmp_path / "out/build.toml").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert again.stderr.endswith(f"error: folder must be the path of a new one, got {tmp_path / 'out'}, which exists\n")
    with pytest.raises(ValueError, match="repo_id must be OWNER/NAME, got 'mine'"):
        hub_export.export(tmp_path / "new", "mine")
    assert not (tmp_path / "new").exists()


@has_kernels
def test_metadata(repository):
    """As the loader and the builder read them; a digest that knows every file."""
    from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
    from kernels.variants import get_variants_local

    backends = [str(backend) for backend in Build.open(repository).general.backends]
    variants = [variant.variant_str for variant in get_variants_local(repository / "build")]
    assert sorted(variants) == sorted(f"torch-{backend.rpartition('.')[2].lower()}" for backend in backends) != []
    identifiers = set()
    for variant in variants:
        folder = repository / "build" / variant
        metadata = Metadata.read_from_file(folder / "metadata.json")
        assert (metadata.name.python_name, metadata.version, metadata.license) == ("rsfast_kernels", 0, "mit")
        assert metadata.python_depends == []
        assert metadata.id.isidentifier()
        metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
        assert json.loads((folder / "metadata.json").read_text())["backend"]["type"] == variant.removeprefix("torch-")
        identifiers.add(metadata.id)
    assert len(identifiers) == len(variants)


def test_the_card_has_the_floors_of_the_package():
    pyproject = (ROOT / "pyproject.toml").read_text()
    floors = re.findall(r'^requires-python = ">=([\d.]+)"|^    "(?:torch|triton)>=([\d.]+)', pyproject, re.MULTILINE)
    python, torch, triton = map("".join, floors)
    card = " ".join((HUB / "kernel" / "CARD.md").read_text().split())
    assert f"Triton {triton} or later, torch {torch} or later and Python {python} or later" in card


# The kernels, on a GPU if there is one, and else in the interpreter


@pytest.fixture(scope="module")
def kernel(repository):
    """The kernel as `kernels` loads it. No CPU has a variant: here it loads CUDA's, which it is given."""
    kernels = pytest.importorskip("kernels", reason="`kernels` of Hugging Face is not installed")
    pytest.importorskip("triton", reason="Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            from triton_interpreter import interpret

            interpret(patch)
        yield kernels.get_local_kernel(repository / "build" / ("torch-rocm" if torch.version.hip else "torch-cuda"))


interpreted = pytest.mark.filterwarnings("ignore:overflow encountered")  # by NumPy, in the interpreter


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_perturb_is_the_reference(kernel, dtype, channels_last):
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    sigmas = np.linspace(0.1, 2.0, 189, dtype=np.float32).reshape(3, 9, 7)
    indices = {
        "rows": torch.tensor([1, 0, 1]),
        "samples": torch.tensor([0, 2**40, 5]),
        "input_ids": torch.tensor([8, 2**32 - 1]),
    }
    affine = {"scale": torch.tensor([4.0, 0.5, 1.0]), "shift": torch.tensor([-2.0, 0.1, 0.0])}
    noises = (
        ("gaussian", Gaussian(0.3), 0.3),
        ("laplace", Laplace(0.3), 0.3),
        ("uniform", Uniform(0.3), 0.3),
        ("gaussian", AnisotropicGaussian(sigmas), torch.from_numpy(sigmas).flatten()),
    )
    for draw, noise, noise_scale in noises:
        for more in ({}, affine | {"clamp": (0.0, 1.0)}):
            keywords = {
                "seed": 2**64 - 3,
                "stream": "user",
                "dtype": dtype,
                "channels_last": channels_last,
                **indices,
                **more,
            }
            expected = ops.perturb(x, noise, **keywords, backend="reference")
            moved = {
                name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in keywords.items()
            }
            noise_scale = noise_scale.to(DEVICE) if isinstance(noise_scale, torch.Tensor) else noise_scale
            found = kernel.perturb(x.to(DEVICE), noise_scale=noise_scale, draw=draw, **moved)
            assert found.stride() == expected.stride()
            assert_same_bits(found.cpu(), expected)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("classes", [10, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accumulate_is_the_reference(kernel, classes, dtype):
    logits = (torch.randn(7, classes, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    logits[2, 1], logits[3, 0] = torch.nan, -torch.inf
    rows = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    for soft in ((), (Softmax(0.5), Sparsemax(1.0), ClippedLogits(-2.0, 5.0))):
        expected = Tally(3, classes, heads=(Votes(), *soft))
        ops.accumulate(logits, expected, rows=rows, backend="reference")
        n, counts, sums, squares = (
            torch.zeros_like(each, device=DEVICE) for each in (expected.n, expected.counts, expected.sums, expected.squares)
        )
        scores = {"heads": expected.parameters.to(DEVICE), "sums": sums, "squares": squares} if soft else {}
        kernel.accumulate(logits.to(DEVICE), n, counts, rows=rows.to(DEVICE), **scores)
        kernel.check_marks(n, 3, classes)
        for name, found in (("n", n), ("counts", counts), ("sums", sums), ("squares", squares)):
            assert torch.equal(found.cpu(), getattr(expected, name)), name


SAME_CODE = """
import re, sys
from functools import partial
from triton.backends.compiler import GPUTarget
import torch
import rsfast_kernels
from benchmarks.launches import triton_launches
from rsfast.noise import NoiseParameters
from rsfast.ops import triton_accumulate, triton_perturb
from rsfast.ops.calls import Accumulation, Perturbation

x, index = torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
noise, out = NoiseParameters("gaussian", (0.5,)), torch.empty(4, 3, 32, 32, dtype=torch.bfloat16)
perturbation = Perturbation(x, index, index, index, noise, 0, 1, None, None, None, False, out)
none = index.view(4, 1, 1)[..., :0]
accumulation = Accumulation(torch.zeros(4, 10), index, torch.zeros(3, 4), *[index] * 4, none, index, index)
for module, job in ((triton_perturb, perturbation), (triton_accumulate, accumulation)):
    name = module.__name__.rpartition(".")[2]
    exported = sys.modules[rsfast_kernels.perturb.__module__ + ".ops." + name]
    assert exported is not module
    for target, assembly in ((("cuda", 90, 32), "ptx"), (("hip", "gfx942", 64), "amdgcn")):
        texts = []
        for each in (module, exported):
            run = partial(getattr(each, name.removeprefix("triton_")), job)
            *_, launch = triton_launches(each, GPUTarget(*target), run)
            text = launch.compiled.asm[assembly]
            instructions = [line.strip() for line in text.splitlines() if re.match(r"\\s+(@\\S+ )?[a-z]", line)]
            texts.append(instructions)
        assert len(texts[0]) > 100 and texts[0] == texts[1], (name, assembly)
        print(len(texts[0]))
"""


@has_triton
@pytest.mark.slow
def test_the_compiler_makes_the_same_code(repository, tmp_path):
    """Instruction for instruction that of the package's kernels, for NVIDIA's Hopper and AMD's MI300."""
    path = os.pathsep.join(map(str, (repository / "build/torch-cuda", ROOT)))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", SAME_CODE], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-4000:]
    assert len(found.stdout.split()) == 4


WRONG = (
    ({"noise_scale": 0.0}, ValueError, "noise_scale must be positive, finite and a normal float32, got 0.0"),
    ({"noise_scale": float("nan")}, ValueError, "noise_scale must be positive"),
    ({"noise_scale": torch.ones(7, device=DEVICE)}, ValueError, r"noise_tensors\[0\] must have shape \[8\], got \[7\]"),
    ({"draw": "mask"}, ValueError, "draw must be one of 'gaussian', 'laplace', 'uniform', got 'mask'"),
    ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\^64\)"),
    ({"seed": 1.0}, TypeError, "seed must be an int, got 1.0"),
    ({"stream": "mine"}, ValueError, "stream must be one of"),
    ({"samples": torch.arange(3, device=DEVICE)}, ValueError, "rows must name the input of each of 3 samples"),
    ({"samples": torch.zeros(2, device=DEVICE)}, TypeError, "samples must have dtype int64"),
    ({"clamp": (1.0, 0.0)}, ValueError, r"clamp must be \(low, high\) with low <= high"),
    ({"scale": torch.ones(8, device=DEVICE)}, TypeError, "scale and shift must both be tensors or both None"),
    ({"channels_last": True}, ValueError, "channels_last must be False unless"),
    ({"out": torch.empty(2, 7, device=DEVICE)}, ValueError, r"out must have shape \[2, 8\]"),
    ({"x": torch.zeros(2, 8, dtype=torch.float64, device=DEVICE)}, TypeError, "x must have dtype float32"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "error", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_wrong_arguments_of_perturb(kernel, wrong, error, words):
    right = {"x": torch.zeros(2, 8, device=DEVICE), "samples": torch.arange(2, device=DEVICE), "noise_scale": 1.0, "seed": 0}
    with pytest.raises(error, match=words):
        kernel.perturb(**right | wrong)


@pytest.mark.slow
def test_wrong_arguments_that_share_memory_or_are_missing(kernel):
    x = torch.zeros(2, 8, device=DEVICE)
    with pytest.raises(ValueError, match="out must have memory of its own"):
        kernel.perturb(x, torch.arange(2, device=DEVICE), noise_scale=1.0, seed=0, out=x)
    n, counts = torch.zeros(2, dtype=torch.int64, device=DEVICE), torch.zeros(2, 9, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="rows must name the input of each row, of 2, got None"):
        kernel.accumulate(x, n, counts)
    with pytest.raises(TypeError, match="heads, sums and squares must all be tensors"):
        kernel.accumulate(x, n, counts, rows=torch.arange(2, device=DEVICE), sums=counts)
    with pytest.raises(ValueError, match=r"logits must have shape \[B, 8\]"):
        kernel.accumulate(x[:, :7], n, counts, rows=torch.arange(2, device=DEVICE))


@interpreted
@pytest.mark.slow
def test_one_node_for_a_compiler(kernel):
    """No graph break, no launch for a tensor without memory, and autograd notices what is written by its version."""

    def function(x, samples, n, counts):
        noisy = kernel.perturb(x, samples, noise_scale=0.5, seed=4)
        kernel.accumulate(noisy, n, counts, rows=samples)
        return noisy

    x, samples = torch.rand(2, 8, device=DEVICE), torch.arange(2, device=DEVICE)
    tallies = [[torch.zeros(shape, dtype=torch.int64, device=DEVICE) for shape in ((2,), (2, 9))] for _ in range(2)]
    expected = function(x, samples, *tallies[0])
    out = torch.empty_like(expected)
    assert_same_bits(kernel.perturb(x, samples, noise_scale=0.5, seed=4, out=out), expected)
    assert [each._version for each in (*tallies[0], out)] == [1, 1, 1]
    found = torch.compile(function, backend="aot_eager", fullgraph=True)(x, samples, *tallies[1])
    assert_same_bits(found.cpu(), expected.cpu())
    assert all(torch.equal(*pair) for pair in zip(*tallies, strict=True))
    with FakeTensorMode(allow_fallback_kernels=False):
        fakes = [torch.zeros(shape, dtype=torch.int64, device=DEVICE) for shape in ((2,), (2, 9))]
        x, samples = torch.rand(2, 8, device=DEVICE), torch.arange(2, device=DEVICE)
        assert function(x, samples, *fakes).shape == (2, 8)
        with pytest.raises(ValueError, match=r"out must have shape \[2, 8\]"):  # before anything is compiled
            kernel.perturb(x, samples, noise_scale=0.5, seed=4, out=torch.empty(2, 7, device=DEVICE))


@interpreted
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unknown pytest.mark.kernels_ci")  # kernel-builder writes what makes it known
def test_tests_of_the_repository(kernel, repository, monkeypatch):
    """Those that kernel-builder would run, on this kernel."""
    monkeypatch.setitem(sys.modules, "rsfast_kernels", kernel)
    spec = importlib.util.spec_from_file_location("test_rsfast_kernels", repository / "tests/test_rsfast_kernels.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for channels_last in (False, True):
        theirs.test_gaussian(channels_last)
    for classes in (10, 2500):
        theirs.test_accumulate(classes)
    theirs.test_a_row_does_not_depend_on_its_batch()
    theirs.test_indices_out_of_range()
    assert {name for name in vars(theirs) if name.startswith("test_")} == {
        "test_gaussian",
        "test_accumulate",
        "test_a_row_does_not_depend_on_its_batch",
        "test_indices_out_of_range",
    }


@interpreted
@pytest.mark.slow
def test_benchmarks_of_the_repository(kernel, repository, monkeypatch):
    """By the runner of `kernels`, on small shapes: it compares each kernel with its reference, then takes times."""
    from kernels.cli.benchmark import discover_benchmark_classes, run_benchmark_class

    monkeypatch.setattr("kernels.get_local_kernel", lambda path: kernel)
    classes = discover_benchmark_classes(repository / "benchmarks/benchmark.py", repository)
    small = {"batch": 2, "shape": (3, 4, 6), "classes": 10}
    for each in classes:
        for name in small.keys() & vars(each).keys():
            monkeypatch.setattr(each, name, small[name])
    run = {"iterations": 2, "warmup": 0, "repo_id": str(repository), "is_local": True, "revision": "local"}
    found = {each.__name__: run_benchmark_class(each, **run)[0] for each in classes}
    verified = {name: {work: timing.verified for work, timing in each.items()} for name, each in found.items()}
    assert verified == {"PerturbBenchmark": {"perturb": True, "randn": None}, "AccumulateBenchmark": {"accumulate": True}}
    monkeypatch.setattr(kernel, "perturb", lambda x, samples, *, out, **_: out.fill_(0.1))
    perturbing = next(each for each in classes if each.__name__ == "PerturbBenchmark")
    with pytest.raises(RuntimeError, match="Verification failed for perturb"):
        run_benchmark_class(perturbing, **run)
