"""What nvcc made of the CUDA kernels, where there is one: how many instructions, no spills, wide stores, no contraction; the
program that counts them; and the predictions that are kept."""

import json
import re
import struct
from collections import Counter
from importlib.util import find_spec

import pytest
import torch

from benchmarks import disassembly, launches
from benchmarks.disassembly import kind_of, perturb_work, predicted, work_of
from benchmarks.gpu_cases import CIFAR, DTYPES, IMAGENET, LAYOUTS, ON_GPU, OTHER_NOISES, Accumulate, Perturb
from benchmarks.gpu_device import find_tool
from benchmarks.launches import call_of, cuda_launch, cuobjdump, kernel_name, triton_launch
from benchmarks.sass import Thread, parse
from rsfast import Softmax, ops
from rsfast.noise import DRAWS

BUILT = launches.extension()
compiled = pytest.mark.skipif(not (BUILT and find_tool("cuobjdump")), reason="needs rsfast.ops._cuda and cuobjdump")
TARGETS = {"sm_75", "sm_80", "sm_90", "sm_100", "sm_120"}


@compiled
def test_machine_code_for_every_target_and_ptx_for_gpus_between_and_after_them():
    assert set(re.findall(r"sm_\d+", cuobjdump("-lelf", str(BUILT)))) == TARGETS
    assert set(re.findall(r"sm_\d+", cuobjdump("-lptx", str(BUILT)))) == {"sm_80", "sm_120"}


@compiled
def test_no_kernel_spills():
    """No local memory on any target, and in perturb no stack either."""
    found = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", cuobjdump("-res-usage", str(BUILT))
    )
    kernels = Counter(re.search(r"(perturb|accumulate|philox|words)_kernel", name)[1] for name, *_ in found)
    assert kernels["perturb"] == (16 * len(DRAWS) + 3 * 8) * len(TARGETS)  # 3 types of Gaussian noise have 8 more
    assert kernels["accumulate"] % len(TARGETS) == 0 < kernels["accumulate"]
    assert kernels["philox"] == len(TARGETS)
    assert {local for *_, local in found} == {"0"}
    assert {stack for name, _, stack, _ in found if "perturb" in name} == {"0"}
    # Four blocks run on a multiprocessor, but for three channels with scale and clamp in 16 bits on sm_75: 66 and 68.
    many = [name for name, registers, *_ in found if "perturb" in name and int(registers) > 64]
    assert len(many) <= 2
    assert all(re.search(r"DrawE0ELNS_4TypeE[12]ELNS_6LayoutE2ELb1ELNS_7OptionsE3E", name) for name in many)


# The machine code, run on the host


def image(dtype, channels_last=False, **options):
    return Perturb("ImageNet", 2, IMAGENET, dtype, channels_last, **options)


def cifar(dtype, channels_last=False, **options):
    return Perturb("CIFAR", 2, CIFAR, dtype, channels_last, **options)


def names_of(counts):
    """Return how many of each operation were counted, without modifiers."""
    return Counter(name for instruction, n in counts.items() for name in [instruction.name.split(".")[0]] * n)


@compiled
@pytest.mark.parametrize(
    ("case", "most"),
    [(image("bfloat16"), 45), (image("bfloat16", scale=True), 48), (image("bfloat16", True), 46)],
    ids=lambda value: getattr(value, "what", ""),
)
def test_instructions_an_element(case, most):
    """Prologue and idle threads included."""
    work = perturb_work(case, lambda call: cuda_launch(call, BUILT))
    assert work.instructions["issue"] / case.elements <= most


def stored_by_a_thread(case, launch_of=lambda call: cuda_launch(call, BUILT)):
    """Return a thread that has run on a call of `case`, all of whose bytes must be those of backend="cpu"."""
    call = call_of(case)
    launch = launch_of(call)
    ops.BACKENDS["cpu"].kernels.perturb(call)
    (block, _), *_ = launch.blocks
    thread = launch.thread(block, 37)
    begin, end = call.out.data_ptr(), call.out.data_ptr() + call.out.nbytes
    for address, found in thread.stored.items():
        assert begin <= address <= end - len(found)
        assert found == launches.host_memory(address, len(found))
    assert {len(found) for found in thread.stored.values()} == {16}
    return thread


@compiled
@pytest.mark.parametrize(
    "case", [cifar(*each, scale=scale) for each in LAYOUTS for scale in (False, True)], ids=lambda c: c.what
)
def test_gaussian_noise(case):
    """The bits of the CPU, wide stores, no fma but those that the source asks for, and 20 wide products a Philox block."""
    thread = stored_by_a_thread(case)
    fours = sum(map(len, thread.stored.values())) // DTYPES[case.dtype].itemsize // 4
    assert fours in (8, 12)
    # A pair of normals takes 10 fma for the logarithm, 8 for sine and cosine and 2 for the root, an element one or two more.
    assert names_of(thread.issued)["FFMA"] == (48 if case.scale else 44) * fours
    products = sum(n for each, n in thread.issued.items() if {"-0x2daee0ad", "-0x326172a9"} & set(each.operands))
    assert 18 * fours <= products <= 20 * fours  # two of a block's may be the row's


@compiled
@pytest.mark.parametrize("noise", OTHER_NOISES)
def test_other_noise(noise):
    stored_by_a_thread(cifar("bfloat16", noise=noise))


@pytest.mark.skipif(not (find_spec("triton") and find_tool("cuobjdump")), reason="needs Triton and cuobjdump")
@pytest.mark.parametrize("channels_last", [False, True])
def test_triton(channels_last):
    """The machine code that Triton makes, too: of the kernel for a channel, and of that for all of a few channels."""
    thread = stored_by_a_thread(cifar("bfloat16", channels_last, scale=True), triton_launch)
    fours = sum(map(len, thread.stored.values())) // 2 // 4
    assert fours == (6 if channels_last else 2)
    assert names_of(thread.issued)["FFMA"] == 48 * fours


@compiled
def test_a_block_of_accumulate():
    """Its Tally is the CPU's, or `block_issues` raises. A block that is not the first of its tile only reads."""
    case, heads = Accumulate(10, 5, "softmax", histograms=True), (Softmax(),)
    issued, reads = (names_of(disassembly.block_issues(case, each, y, BUILT)) for each, y in ((heads, 0), ((), 1)))
    assert issued["BAR"] > reads["BAR"] > 0 == issued["BAR"] % 8 == reads["BAR"] % 8  # of 8 warps, each as often
    assert issued["REDG"] > reads["REDG"] == 0


@compiled
@pytest.mark.parametrize("images", ["CIFAR", pytest.param("ImageNet", marks=pytest.mark.noise)])
def test_the_predictions_are_of_these_kernels(images):
    """The figures that are kept are those of the sources as they are (where the compiler is the same)."""
    kept = json.loads((disassembly.RESULTS / "predictions_sm90.json").read_text())
    assert kept["cuda"].keys() == kept["triton"].keys()
    assert kept["cuda"].keys() == {case.what for case in (*ON_GPU.perturb, *ON_GPU.noises, *ON_GPU.accumulate)}
    about = (disassembly.RESULTS / "predictions_sm90.md").read_text()
    if f"nvcc {disassembly.nvcc_of(BUILT)} " not in about:
        pytest.skip("they are of another nvcc")
    for case in (*ON_GPU.perturb, *ON_GPU.noises):
        if case.images == images:
            work = perturb_work(case, lambda call: cuda_launch(call, BUILT))
            assert kept["cuda"][case.what] == predicted(case.nbytes, case.elements, work)


# The reader, the thread and the pipes, on listings written by hand

LISTING = """
\tcode for sm_90
\t\tFunction : _ZN6rsfast3_GL14perturb_kernelILNS_4DrawE3ELNS_4TypeE2EEEvNS_11PerturbGridE
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00 */
        /*0010*/                   S2R R0, SR_TID.X ;
        /*0020*/                   ULDC.64 UR4, c[0x0][0x210] ;
        /*0030*/                   ISETP.GE.U32.AND P0, PT, R0.reuse, 0x3, PT ;
        /*0040*/              @!P0 BRA 0x70 ;
        /*0050*/                   MOV R2, 0x0 ;
        /*0060*/                   EXIT ;
        /*0070*/                   IMAD.WIDE.U32 R2, R0, 0x4, R2 ;
        /*0080*/                   IADD3 R4, P1, R2, UR4, RZ ;
        /*0090*/                   IADD3.X R5, RZ, UR5, RZ, P1, !PT ;
        /*00a0*/                   LDG.E R6, desc[UR4][R4.64+0x4] ;
        /*00b0*/                   FADD R6, R6, -0.5 ;
        /*00c0*/                   VIADD R0, R0, 0x1 ;
        /*00d0*/                   ISETP.NE.AND P2, PT, R0, 0x5, PT ;
        /*00e0*/               @P2 BRA 0xb0 ;
        /*00f0*/                   STG.E desc[UR4][R4.64], R6 ;
        /*0100*/                   EXIT ;
        /*0110*/                   BRA 0x110;
"""


def run(function, numbers, tid):
    x = torch.tensor(numbers)
    parameters = struct.pack("<Q", x.data_ptr())
    thread = Thread(function, parameters, {"SR_TID.X": tid}, (8, 1, 1, 1, 1, 1), launches.reader([x])).run()
    return thread, {(address - x.data_ptr()) // 4: struct.unpack("<f", found)[0] for address, found in thread.stored.items()}


def test_a_thread_takes_its_branches_and_loops():
    (function,) = parse(LISTING)
    assert function.architecture == "sm_90"
    assert kernel_name(function.name) == "perturb_kernel LNS_4DrawE3ELNS_4TypeE2E"
    thread, stored = run(function, [1.0, 2.0, 4.0, 8.0], 1)
    assert stored == {1: 4.0 - 4 * 0.5}
    assert names_of(thread.issued)["FADD"] == 4
    assert sum(thread.issued.values()) == 9 + 4 * 4 + 2
    idle, nothing = run(function, [1.0], 3)
    assert nothing == {}
    assert [each.name for each in idle.issued][-2:] == ["MOV", "EXIT"]


def test_reading_outside_the_tensors_is_an_error():
    (function,) = parse(LISTING)
    with pytest.raises(ValueError, match="belong to no tensor"):
        run(function, [1.0, 2.0], 2)


def result(line, **registers):
    """Return registers 0 and 1 and predicate 0 after one instruction."""
    listing = f"\t\tFunction : f\n        /*0000*/                   {line} ;\n        /*0010*/                   EXIT ;\n"
    (function,) = parse(listing)
    thread = Thread(function, b"", {}, (1, 1, 1, 1, 1, 1))
    thread.registers.update({(name[0], int(name[1:])): value for name, value in registers.items()})
    thread.run()
    return tuple(thread.registers.get(key, 0) for key in (("R", 0), ("R", 1), ("P", 0)))


@pytest.mark.parametrize(
    ("line", "registers", "expected"),
    [
        ("IADD3 R0, P0, R2, -R3, RZ", {"R2": 5, "R3": 5}, (0, 0, 1)),  # no borrow is a carry
        ("IADD3 R0, P0, R2, -R3, RZ", {"R2": 4, "R3": 5}, (0xFFFFFFFF, 0, 0)),
        ("IMAD.WIDE R0, R2, R3, RZ", {"R2": 0xFFFFFFFF, "R3": 2}, (0xFFFFFFFE, 0xFFFFFFFF, 0)),
        ("IMAD.WIDE.U32 R0, R2, R3, R4", {"R2": 0xFFFFFFFF, "R3": 2, "R4": 3}, (1, 2, 0)),
        ("IMAD.HI.U32 R0, R2, R3, R4", {"R2": 1 << 31, "R3": 6, "R5": 1}, (4, 0, 0)),
        ("LEA.HI.X R0, R2, R3, R4, 0x2, P1", {"R2": 0xC0000000, "R3": 10, "R4": 1, "P1": 1}, (18, 0, 0)),
        ("LEA.HI.X.SX32 R0, R2, R3, 0x1, P1", {"R2": 0x80000000, "R3": 10}, (9, 0, 0)),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R2", {"R2": 0x80000000}, (0xFFFFFFFF, 0, 0)),
        ("SHF.L.U64.HI R0, R2, 0x2, R3", {"R2": 0xC0000000, "R3": 1}, (7, 0, 0)),
        ("SHF.R.U64 R0, R2, 0x4, R3", {"R2": 0x10, "R3": 3}, (0x30000001, 0, 0)),
        ("LOP3.LUT R0, R2, R3, R4, 0x96, !PT", {"R2": 1, "R3": 2, "R4": 5}, (6, 0, 0)),
        ("ISETP.GE.AND.EX P0, PT, R2, R3, PT, P1", {"R2": 7, "R3": 7, "P1": 1}, (0, 0, 1)),
        ("ISETP.GT.AND P0, PT, R2, 0x0, PT", {"R2": 0xFFFFFFFF}, (0, 0, 0)),
        ("PRMT R0, R2, 0x5410, R3", {"R2": 0x11112222, "R3": 0x33334444}, (0x44442222, 0, 0)),
        ("F2FP.BF16.F32.PACK_AB R0, R2, R3", {"R2": 0x3F808000, "R3": 0xBF818000}, (0x3F80BF82, 0, 0)),
        ("HFMA2.MMA R0, -RZ, RZ, 1, -2", {}, (0x3C00C000, 0, 0)),
        ("VIMNMX R0, R2, R3, PT", {"R2": 0xFFFFFFFF, "R3": 1}, (0xFFFFFFFF, 0, 0)),
        ("VIMNMX.U32 R0, R2, R3, PT", {"R2": 0xFFFFFFFF, "R3": 1}, (1, 0, 0)),
        ("FMNMX R0, R2, R3, !PT", {"R2": 0x3F800000, "R3": 0x7FC00000}, (0x3F800000, 0, 0)),
        ("FMNMX.NAN R0, R2, R3, !PT", {"R2": 0x3F800000, "R3": 0x7FC00000}, (0x7FFFFFFF, 0, 0)),
        ("FSETP.NAN.AND P0, PT, R2, R3, PT", {"R2": 0x3F800000, "R3": 0x7FC00000}, (0, 0, 1)),
        ("F2I.U64.TRUNC R0, R2", {"R2": 0x53000000}, (0, 128, 0)),
        ("I2F.U32.RP R0, R2", {"R2": 0x1000001}, (0x4B800001, 0, 0)),
    ],
)
def test_an_instruction(line, registers, expected):
    assert result(line, **registers) == expected


def test_what_is_not_known_is_an_error():
    with pytest.raises(NotImplementedError, match=r"SHFL\.IDX"):
        result("SHFL.IDX PT, R0, R2, R3, R4")


def test_the_busiest_pipe_of_the_busiest_multiprocessor_sets_the_time():
    (function,) = parse(LISTING)
    by_name = {each.name: each for each in function.instructions}
    issued = {by_name["FADD"]: 132 * 8, by_name["IMAD.WIDE.U32"]: 132}
    work = work_of(issued, blocks=132)
    assert work.instructions == {"issue": 132 * 9 * 32, "fma": 132 * 8 * 32, "wide": 132 * 32}
    assert work.limit() == (pytest.approx((8 * 0.25 + 0.5) / 1.98e9), "fma")
    assert work_of(issued, blocks=133).limit()[0] == pytest.approx(work.limit()[0] * 2 * 132 / 133)
    assert predicted(10**9, 1, work)["limit"] == "bytes"
    assert predicted(10**9, 1, work)["seconds"] == pytest.approx(1 / 4800, rel=1e-3)
    assert kind_of("LDG.E.128.CONSTANT") == ("memory", {"memory": 4})
    assert kind_of("UIADD3.X") == ("other", {})
    assert kind_of("LOP3.LUT") == ("alu", {"alu": 0.5})
