"""What nvcc made of the CUDA kernels, where there is one: no spills, wide stores, no contraction; and the reader itself."""

import json
import re
import shutil
from collections import Counter

import pytest

from benchmarks import disassembly
from benchmarks.disassembly import best_time, count, kernel_name, loops, output_of, parse, way_through
from rsfast.noise import DRAWS

NVCC, CUOBJDUMP, BUILT = shutil.which("nvcc"), disassembly.find_tool("cuobjdump"), disassembly.extension()
compiled = pytest.mark.skipif(not (NVCC and CUOBJDUMP and BUILT), reason="needs nvcc, cuobjdump and rsfast.ops._cuda")
TARGETS = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}


@compiled
def test_machine_code_for_every_target_and_ptx_for_gpus_between_and_after_them():
    assert set(re.findall(r"sm_\d+", output_of(CUOBJDUMP, "-lelf", str(BUILT)))) == TARGETS
    assert set(re.findall(r"sm_\d+", output_of(CUOBJDUMP, "-lptx", str(BUILT)))) == {"sm_80", "sm_120"}


@compiled
def test_no_kernel_spills():
    """No local memory on any target, and in perturb no stack either."""
    found = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", output_of(CUOBJDUMP, "-res-usage", str(BUILT))
    )
    kernels = Counter(re.search(r"(perturb|accumulate|philox)_kernel", name)[1] for name, *_ in found)
    assert kernels == {"perturb": 16 * len(DRAWS) * len(TARGETS), "accumulate": 4 * len(TARGETS), "philox": len(TARGETS)}
    assert {local for *_, local in found} == {"0"}
    assert {stack for name, _, stack, _ in found if "perturb" in name} == {"0"}
    assert max(int(registers) for name, registers, *_ in found if "perturb" in name) <= 64  # four blocks a multiprocessor


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_perturb_stores_128_bits(architecture):
    functions = parse(output_of(CUOBJDUMP, "-sass", "-arch", architecture, str(BUILT)))
    kernels = {kernel_name(f.name)[1:]: f.names() for f in functions if kernel_name(f.name)[0]}
    assert len(kernels) == 16 * len(DRAWS)
    for (_, _, aligned, _), names in kernels.items():
        assert not any(re.match("LDL|STL", name) for name in names)
        assert ("STG.E.128" in names) == aligned


@pytest.fixture(scope="module")
def probes():
    return disassembly.probes(NVCC, CUOBJDUMP)


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("kind", disassembly.TYPES)
def test_nvcc_contracts_nothing(probes, kind):
    """A pair of normals takes 9 fma for the logarithm, 8 for sine and cosine and 2 for the root, an element one more: 42 for
    four, and so many are there. As many words as a block has take 20 wide products."""
    way = way_through(probes[f"perturb {kind} contiguous"])
    (body,) = loops(way) or (way,)
    names = Counter(i.name.split(".")[0] for i in body)
    fours = names["MUFU"] // 2
    assert fours == (1 if kind == "float32" else 2)
    assert names["FFMA"] == 42 * fours
    products = sum(i.name == "IMAD.WIDE.U32" for i in body)
    assert 19 * fours <= products <= 22 * fours + 4


@compiled
def test_the_predictions_are_of_these_kernels(probes):
    """The counts that are kept are those of the sources as they are (where the compiler is the same)."""
    kept = json.loads((disassembly.RESULTS / "predictions_sm90.json").read_text())
    about = (disassembly.RESULTS / "predictions_sm90.md").read_text()
    if re.search(r"release [\d.]+", about)[0] not in output_of(NVCC, "--version"):
        pytest.skip("they are of another nvcc")
    assert len(probes) == 6
    for name, function in probes.items():
        found = disassembly.per_element(function)
        assert kept[name]["instructions"]["issue"] == round(found["issue"], 2)
        assert kept[name]["ps_per_element"] == round(best_time(found)[0], 4)


LISTING = """
\tcode for sm_90
\t\tFunction : _ZN6rsfast3_GL14perturb_kernelILNS_4DrawE3ELNS_4TypeE2ELb1ELb0EEEvNS_11PerturbGridE
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00 */
        /*0010*/                   ISETP.GE.U32.AND P0, PT, R18, UR4, PT ;
        /*0020*/              @!P0 BRA 0x50 ;
        /*0030*/                   MOV R2, 0x0 ;
        /*0040*/                   CALL.ABS.NOINC R2 ;
        /*0050*/                   FFMA R4, R5, R6, R7 ;
        /*0060*/                   MUFU.RSQ R5, R10 ;
        /*0070*/               @P1 BRA 0x50 ;
        /*0080*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   FADD R1, R2, R3 ;
        /*00b0*/                   BRA 0xb0;
"""


def test_the_reader_follows_the_way_without_calls():
    (function,) = parse(LISTING)
    assert function.architecture == "sm_90"
    assert kernel_name(function.name) == ("perturb_kernel", "bfloat16", "channels_last", False, 3)
    assert kernel_name("_Z13philox_kernel") == ("", "", "", False, 0)
    way = [i.name for i in way_through(function)]
    assert way == ["LDC", "ISETP.GE.U32.AND", "BRA", "FFMA", "MUFU.RSQ", "BRA", "STG.E.128", "EXIT"]
    (body,) = loops(way_through(function))
    assert [i.name for i in body] == ["FFMA", "MUFU.RSQ", "BRA"]
    assert count(body) == {"issue": 3, "fma": 1, "mufu": 1}


def test_the_busiest_pipe_sets_the_time():
    second = 132 * 1.98e9
    assert best_time({"issue": 256.0, "mufu": 16.0}) == (pytest.approx(2 / second * 1e12), "issue")
    assert best_time({"issue": 128.0, "mufu": 64.0}) == (pytest.approx(4 / second * 1e12), "mufu")
