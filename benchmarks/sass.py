"""Machine code of compute capability 9.0 as ``cuobjdump -sass`` lists it, and what threads do with it.

`Thread` runs a kernel on the host, one thread of it, with the real parameters and the real memory: the instructions that it
issues can be counted, and the bytes that it stores compared with those of another backend. Its atomic operations change the
memory. The special function unit's approximations are replaced by rounded values; an instruction not known here is an error.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

WORD, LONG = (1 << 32) - 1, (1 << 64) - 1
PARAMETERS = 0x210  # where they begin in constant bank 0; the block's and the grid's sizes are at 0
SHARED = 1 << 18  # bytes: more than a block can have
SIZES = {"U8": 1, "U16": 2, "64": 8, "128": 16}  # bytes that a load or store moves; 4 without one of these


@dataclass(frozen=True, eq=False)
class Instruction:
    address: int
    predicate: str  # "@!P0", or ""
    name: str  # with its modifiers: LDG.E.128
    operands: tuple[str, ...]

    @cached_property
    def parts(self) -> tuple[str, list[str]]:
        operation, *modifiers = self.name.split(".")
        return operation, modifiers


@dataclass(frozen=True)
class Function:
    architecture: str
    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def places(self) -> dict[int, int]:
        """Of the instructions by address."""
        return {instruction.address: i for i, instruction in enumerate(self.instructions)}


def parse(text: str) -> list[Function]:
    """Return the functions of ``cuobjdump -sass``."""
    functions, architecture = [], ""
    for part in re.split(r"(?=\tcode for sm_|\s+Function : )", text):
        if found := re.match(r"\tcode for (sm_\d+\w?)", part):
            architecture = found[1]
        if found := re.match(r"\s+Function : (\S+)", part):
            lines = re.findall(r"/\*([0-9a-f]{4,})\*/ +(@!?U?P\w+)? *([A-Z][A-Z0-9_.]*)([^;\n]*);", part)
            instructions = []
            for address, predicate, name, rest in lines:
                operands = tuple(word for word in re.split(r",\s*|\s+(?=0x0$)", rest.replace(".reuse", "").strip()) if word)
                instructions.append(Instruction(int(address, 16), predicate, name, tuple(word.strip() for word in operands)))
            functions.append(Function(architecture, found[1], tuple(instructions)))
    return functions


def bits_of(value: float) -> int:
    """Return the bits of the float32 nearest to `value`."""
    return int.from_bytes(bytes(ctypes.c_float(value)), "little")


def float_of(bits: int) -> float:
    return ctypes.c_float.from_buffer_copy(bits.to_bytes(4, "little")).value


def half_bits(value: float) -> int:
    with np.errstate(over="ignore"):
        return int(np.float32(value).astype(np.float16).view(np.uint16))


def bfloat16_bits(value: float) -> int:
    bits = bits_of(value)
    return 0x7FFF if math.isnan(value) else (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def size_of(modifiers: list[str]) -> int:
    return next((SIZES[each] for each in modifiers if each in SIZES), 4)


def signed(word: int) -> int:
    return word - ((word & 0x80000000) << 1)


@cache
def split_operand(text: str) -> tuple[str, str, int]:
    """Return the sign (one of "", -, ~, !, |, -|), the kind of an operand, and its number.

    Kinds are R and UR (registers), P and UP (predicates), = (an integer), f (the bits of a float), c (constant bank 0).
    """
    found = re.fullmatch(r"([-~!]?\|?)(.*?)\|?", text)
    assert found is not None
    sign, rest = found[1], found[2].removesuffix(".64")
    if name := re.fullmatch(r"(U?[RP])(\d+|Z|T)", rest):
        return sign, name[1], int(name[2]) if name[2].isdigit() else -1
    if rest.startswith("0x"):
        return sign, "=", int(rest, 16)
    if name := re.fullmatch(r"c\[0x0\]\[0x([0-9a-f]+)\]", rest):
        return sign, "c", int(name[1], 16)
    if rest.startswith("c["):
        raise NotImplementedError(text)
    return sign, "f", bits_of(float(rest.replace("QNAN", "NAN")))


@cache
def split_address(text: str) -> tuple[list[str], int]:
    """Return the registers that are added up in [R2.64+0x10], and the number."""
    inside = re.search(r"\[([^][]*)\]$", text)
    assert inside is not None, text
    terms = [term.removeprefix("+") for term in re.findall(r"[-+]?[^-+]+", inside[1])]
    return [term for term in terms if "x" not in term], sum(int(term, 16) for term in terms if "x" in term)


Memory = Callable[[int, int], bytes]  # (address, bytes) -> what is there


def host_memory(address: int, size: int) -> bytes:
    """Return the bytes at an address of this process: an operator's arguments are where they are on the host."""
    return ctypes.string_at(address, size)


@dataclass
class Thread:
    """One thread of a kernel.

    Parameters
    ----------
    function : Function
        The kernel.
    parameters : bytes
        As the launch passes them, packed as a C struct.
    special : mapping of str to int
        What S2R reads, such as {"SR_TID.X": 3}; what is not named is 0.
    sizes : tuple of int
        blockDim.x, y, z and gridDim.x, y, z.
    """

    function: Function
    parameters: bytes
    special: Mapping[str, int]
    sizes: tuple[int, int, int, int, int, int]
    memory: Memory = host_memory
    registers: dict[tuple[str, int], int] = field(default_factory=dict)  # of R, UR, P and UP
    shared: bytearray = field(default_factory=lambda: bytearray(SHARED))  # 0 where nobody has written
    stored: dict[int, bytes] = field(default_factory=dict)  # by address
    issued: Counter[Instruction] = field(default_factory=Counter)
    at: int = 0  # the place of the next instruction
    voted: bool = False  # what the last barrier that asks all threads found

    def __post_init__(self) -> None:
        self.constants = struct.pack("<6I", *self.sizes).ljust(PARAMETERS, b"\0") + self.parameters.ljust(4096, b"\0")

    def run(self) -> Thread:
        """Run from the first instruction to the exit, past barriers."""
        while self.advance().parts[0] != "EXIT":
            pass
        return self

    def advance(self, most: int = 10**6) -> Instruction:
        """Run to the next barrier or the exit, and return that instruction."""
        code, places = self.function.instructions, self.function.places
        for _ in range(most):
            instruction = code[self.at]
            self.at += 1
            self.issued[instruction] += 1
            if instruction.predicate and not self.holds(instruction.predicate[1:]):
                continue
            (operation, modifiers), operands = instruction.parts, instruction.operands
            if operation == "BAR" or (operation == "EXIT" and all(map(self.holds, operands))):
                return instruction
            elif operation == "BRA" and "DIV" not in modifiers:
                if all(map(self.holds, operands[:-1])):
                    self.at = places[int(operands[-1], 16)]
            elif operation == "CALL" and modifiers[0] == "REL":
                self.at = places[int(operands[-1], 16)]
            elif operation == "RET":
                self.at = places[self.integer(operands[0])]
            else:
                self.step(operation, modifiers, operands)
        raise RuntimeError(f"{self.function.name} takes more than {most} instructions")

    # Operands

    def word(self, kind: str, number: int) -> int:
        if kind in "=f":
            return number
        if kind == "c":
            return int.from_bytes(self.constants[number : number + 4], "little")
        return self.registers.get((kind, number), 0) if number >= 0 else int(kind in ("P", "UP"))

    def holds(self, text: str) -> bool:
        sign, kind, number = split_operand(text)
        return bool(self.word(kind, number)) != (sign == "!")

    def term(self, text: str) -> int:
        """Return an integer operand; one with a minus is left above 2^32 where it would carry."""
        sign, kind, number = split_operand(text)
        word = self.word(kind, number)
        return word if sign == "" else (~word & WORD) + (sign == "-")

    def integer(self, text: str) -> int:
        return self.term(text) & WORD

    def pair(self, text: str) -> int:
        """Return the 64 bits that begin with a register."""
        sign, kind, number = split_operand(text)
        assert sign == ""
        if kind == "=" or number < 0:
            return self.word(kind, number)
        return self.word(kind, number) | self.word(kind, number + (4 if kind == "c" else 1)) << 32

    def raw(self, text: str) -> int:
        """Return the bits of a float operand."""
        sign, kind, number = split_operand(text)
        word = self.word(kind, number)
        word &= 0x7FFFFFFF if "|" in sign else WORD
        return word ^ (0x80000000 if sign.startswith("-") else 0)

    def real(self, text: str) -> float:
        return float_of(self.raw(text))

    def put(self, text: str, value: int, words: int = 1) -> None:
        _, kind, number = split_operand(text)
        for i in range(words) if number >= 0 else ():
            self.registers[kind, number + i] = (value >> 32 * i) & WORD

    def put_real(self, text: str, value: float) -> None:
        self.put(text, bits_of(value))

    def address(self, text: str) -> int:
        """Return that of [R2.64+0x10], or of [R3+UR4+0x8] in shared memory."""
        words, offset = split_address(text)
        return sum((self.pair(word) if word.endswith(".64") else self.integer(word) for word in words), offset) & LONG

    # Operations

    def step(self, operation: str, modifiers: list[str], operands: Sequence[str]) -> None:
        """Carry out an instruction that does not branch."""
        if operation in ("BSSY", "BSYNC", "WARPSYNC", "YIELD"):  # lanes of a warp do not wait for one another here
            return
        do = getattr(self, f"do_{operation}", None) or getattr(self, f"do_{operation.removeprefix('U')}", None)
        if do is None:
            raise NotImplementedError(".".join([operation, *modifiers]))
        do(modifiers, *operands)

    def do_MOV(self, modifiers: list[str], to: str, a: str, *mask: str) -> None:
        self.put(to, self.integer(a))

    do_R2UR = do_MOV

    def do_S2R(self, modifiers: list[str], to: str, name: str) -> None:
        self.put(to, self.special.get(name, 0))

    do_S2UR = do_S2R

    def do_CS2R(self, modifiers: list[str], to: str, name: str) -> None:
        self.put(to, self.special.get(name, 0), 1 if "32" in modifiers else 2)

    def do_P2R(self, modifiers: list[str], to: str, source: str, other: str, mask: str) -> None:
        if source != "PR":
            raise NotImplementedError("P2R of " + source)
        self.put(to, sum(self.word("P", i) << i for i in range(7)) & self.integer(mask))

    def do_LDC(self, modifiers: list[str], to: str, source: str) -> None:
        found = re.fullmatch(r"c\[0x0\](\[.*\])", source)
        if found is None:
            raise NotImplementedError(source)
        at, size = self.address(found[1]), size_of(modifiers)
        self.put(to, int.from_bytes(self.constants[at : at + size], "little"), max(1, size // 4))

    def do_LDG(self, modifiers: list[str], to: str, source: str) -> None:
        size = size_of(modifiers)
        self.put(to, int.from_bytes(self.memory(self.address(source), size), "little"), max(1, size // 4))

    def do_STG(self, modifiers: list[str], to: str, source: str) -> None:
        self.stored[self.address(to)] = self.bytes_of(source, size_of(modifiers))

    def do_LDS(self, modifiers: list[str], to: str, source: str) -> None:
        at, size = self.address(source), size_of(modifiers)
        self.put(to, int.from_bytes(self.shared[at : at + size], "little"), max(1, size // 4))

    def do_STS(self, modifiers: list[str], to: str, source: str) -> None:
        at, size = self.address(to), size_of(modifiers)
        self.shared[at : at + size] = self.bytes_of(source, size)

    def do_ATOMG(self, modifiers: list[str], done: str, to: str, place: str, source: str) -> None:
        if not {"ADD", "OR"} & set(modifiers) or "64" not in modifiers:
            raise NotImplementedError("ATOMG." + ".".join(modifiers))
        address, value = self.address(place), self.pair(source)
        before = int.from_bytes(self.memory(address, 8), "little")
        after = before + value & LONG if "ADD" in modifiers else before | value
        ctypes.memmove(address, after.to_bytes(8, "little"), 8)
        self.put(to, before, 2)

    def do_REDG(self, modifiers: list[str], place: str, source: str) -> None:
        self.do_ATOMG(modifiers, "PT", "RZ", place, source)

    def do_B2R(self, modifiers: list[str], to: str, voted: str) -> None:
        self.put(voted, int(self.voted))

    def bytes_of(self, source: str, size: int) -> bytes:
        _, kind, number = split_operand(source)
        words = [self.word(kind, number + i if number >= 0 else number) for i in range(max(1, size // 4))]
        return struct.pack(f"<{len(words)}I", *words)[:size]

    def carries(self, operands: list[str]) -> tuple[list[str], list[str]]:
        """Return the predicates that an addition's operands begin with, and the other operands."""
        outputs = 0
        while split_operand(operands[outputs])[1] in ("P", "UP"):
            outputs += 1
        return operands[:outputs], operands[outputs:]

    def add(self, to: str, outputs: list[str], total: int, words: int = 1) -> None:
        self.put(to, total, words)
        for i, output in enumerate(outputs):
            self.put(output, int(total >> 32 * words > i))

    def do_IADD3(self, modifiers: list[str], to: str, *operands: str) -> None:
        outputs, rest = self.carries(list(operands))
        self.add(to, outputs, sum(map(self.term, rest[:3])) + sum(map(self.holds, rest[3:])))

    def do_VIADD(self, modifiers: list[str], to: str, a: str, b: str) -> None:
        self.put(to, self.term(a) + self.term(b))

    def do_IMAD(self, modifiers: list[str], to: str, *operands: str) -> None:
        outputs, (a, b, c, *carry) = self.carries(list(operands))
        x, y = self.integer(a), self.integer(b)
        if "U32" not in modifiers:
            x, y = signed(x), signed(y)
        wide = "WIDE" in modifiers or "HI" in modifiers
        total = (x * y & LONG if wide else x * y & WORD) + (self.pair(c) if wide else self.term(c))
        total += sum(map(self.holds, carry))
        if "HI" in modifiers:
            self.add(to, outputs, (total & LONG) >> 32)
        else:
            self.add(to, outputs, total, 2 if wide else 1)

    def do_LEA(self, modifiers: list[str], to: str, *operands: str) -> None:
        outputs, (a, b, *rest) = self.carries(list(operands))
        low, high = self.integer(a), 0
        if "HI" in modifiers:
            high = (WORD if low >> 31 else 0) if "SX32" in modifiers else self.integer(rest.pop(0))
        shifted = (high << 32 | low) << int(rest.pop(0), 16)
        part = shifted >> 32 if "HI" in modifiers else shifted
        self.add(to, outputs, (part & WORD) + self.term(b) + sum(map(self.holds, rest)))

    def do_SHF(self, modifiers: list[str], to: str, a: str, by: str, b: str) -> None:
        low, high, shift = self.integer(a), self.integer(b), self.integer(by)
        bound = 63 if {"U64", "S64"} & set(modifiers) else 31 if "W" in modifiers else 32
        shift = shift & bound if "W" in modifiers else min(shift, bound)
        if modifiers[0] == "L":
            both = (high << 32 | low) << shift
            self.put(to, both >> 32 if "HI" in modifiers else both)
        else:
            high = signed(high) if {"S32", "S64"} & set(modifiers) else high
            self.put(to, high >> shift if "HI" in modifiers else (high << 32 | low) >> shift)

    def do_LOP3(self, modifiers: list[str], *operands: str) -> None:
        outputs, (to, a, b, c, table, *_) = self.carries(list(operands))
        x, y, z, lut = self.integer(a), self.integer(b), self.integer(c), int(table, 16)
        result = 0
        for i in range(8):
            if lut >> i & 1:
                result |= (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
        self.put(to, result & WORD)
        for output in outputs:
            self.put(output, int(result & WORD != 0))

    def do_PLOP3(self, modifiers: list[str], to: str, other: str, a: str, b: str, c: str, *tables: str) -> None:
        row = self.holds(a) << 2 | self.holds(b) << 1 | self.holds(c)
        for output, table in zip((to, other), tables, strict=True):
            self.put(output, int(table, 16) >> row & 1)

    def do_REDUX(self, modifiers: list[str], to: str, a: str) -> None:
        if modifiers[0] not in ("MAX", "MIN"):
            raise NotImplementedError("REDUX." + ".".join(modifiers))
        self.put(to, self.integer(a))  # as if all threads of the warp had the same

    def do_VOTEU(self, modifiers: list[str], to: str, a: str) -> None:
        self.put(to, int(self.holds(a)))  # as if all agreed

    def compare(self, modifiers: list[str], x: float, y: float) -> bool:
        unordered = isinstance(x, float) and (math.isnan(x) or math.isnan(y))
        name = modifiers[0]
        if unordered:
            return name == "NAN" or name.endswith("U")
        return {"LT": x < y, "LE": x <= y, "GT": x > y, "GE": x >= y, "EQ": x == y, "NE": x != y, "NA": False}[name[:2]]

    def set_predicates(self, modifiers: list[str], found: bool, to: str, other: str, with_: str) -> None:
        for output, value in ((to, found), (other, not found)):
            third = self.holds(with_)
            self.put(
                output,
                int(value and third if "AND" in modifiers else value or third if "OR" in modifiers else value ^ third),
            )

    def do_ISETP(self, modifiers: list[str], to: str, other: str, a: str, b: str, with_: str, *low: str) -> None:
        x, y = self.integer(a), self.integer(b)
        if "U32" not in modifiers:
            x, y = signed(x), signed(y)
        found = self.compare(modifiers, x, y)
        if "EX" in modifiers:  # these are the high words: `low` is what the low ones gave
            below = self.holds(low[0])
            equal = x == y
            found = {"EQ": equal and below, "NE": not equal or below}.get(modifiers[0], below if equal else found)
        self.set_predicates(modifiers, found, to, other, with_)

    def do_FSETP(self, modifiers: list[str], to: str, other: str, a: str, b: str, with_: str) -> None:
        self.set_predicates(modifiers, self.compare(modifiers, self.real(a), self.real(b)), to, other, with_)

    def do_SEL(self, modifiers: list[str], to: str, a: str, b: str, which: str) -> None:
        self.put(to, self.integer(a if self.holds(which) else b))

    def do_FSEL(self, modifiers: list[str], to: str, a: str, b: str, which: str) -> None:
        self.put(to, self.raw(a if self.holds(which) else b))

    def do_PRMT(self, modifiers: list[str], to: str, a: str, selector: str, b: str) -> None:
        if modifiers:
            raise NotImplementedError("PRMT." + ".".join(modifiers))
        source = struct.pack("<2I", self.integer(a), self.integer(b))
        result = 0
        for i in range(4):
            pick = self.integer(selector) >> 4 * i & 15
            byte = source[pick & 7]
            result |= (0xFF * (byte >> 7) if pick & 8 else byte) << 8 * i
        self.put(to, result)

    def do_VIMNMX(self, modifiers: list[str], to: str, a: str, b: str, which: str) -> None:
        x, y = ((value if "U32" in modifiers else signed(value)) for value in (self.integer(a), self.integer(b)))
        self.put(to, (min if self.holds(which) else max)(x, y))

    def do_VIADDMNMX(self, modifiers: list[str], to: str, a: str, b: str, c: str, which: str) -> None:
        x, y = (self.term(a) + self.term(b)) & WORD, self.integer(c)
        if "U32" not in modifiers:
            x, y = signed(x), signed(y)
        self.put(to, (min if self.holds(which) else max)(x, y))

    def do_IABS(self, modifiers: list[str], to: str, a: str) -> None:
        self.put(to, abs(signed(self.integer(a))))

    def do_FADD(self, modifiers: list[str], to: str, a: str, b: str) -> None:
        self.put_real(to, self.real(a) + self.real(b))

    def do_FMUL(self, modifiers: list[str], to: str, a: str, b: str) -> None:
        self.put_real(to, self.real(a) * self.real(b))

    def do_FFMA(self, modifiers: list[str], to: str, a: str, b: str, c: str) -> None:
        self.put_real(to, self.real(a) * self.real(b) + self.real(c))  # rounded twice: once more than the device does

    def do_FMNMX(self, modifiers: list[str], to: str, a: str, b: str, which: str) -> None:
        x, y = self.real(a), self.real(b)
        if "NAN" in modifiers and (math.isnan(x) or math.isnan(y)):
            return self.put(to, 0x7FFFFFFF)
        first = math.isnan(y) or (x < y if self.holds(which) else x > y)
        self.put(to, self.raw(a if first else b))

    def do_MUFU(self, modifiers: list[str], to: str, a: str) -> None:
        x = self.real(a)
        if modifiers[0] == "RSQ":
            self.put_real(to, 1 / math.sqrt(x) if x > 0 else math.inf if x == 0 else math.nan)
        elif modifiers[0] == "RCP":
            self.put_real(to, 1 / x if x else math.copysign(math.inf, x))
        else:
            raise NotImplementedError("MUFU." + ".".join(modifiers))

    def do_HFMA2(self, modifiers: list[str], to: str, a: str, b: str, high: str, low: str) -> None:
        if (a, b) != ("-RZ", "RZ"):  # a way to write a constant
            raise NotImplementedError("HFMA2")
        words = [half_bits(float_of(split_operand(text.removeprefix("-"))[2])) for text in (low, high)]
        words = [word | 0x8000 * text.startswith("-") for word, text in zip(words, (low, high), strict=True)]
        self.put(to, words[1] << 16 | words[0])

    def do_I2F(self, modifiers: list[str], to: str, a: str) -> None:
        value = self.pair(a) if "U64" in modifiers else self.integer(a) if "U32" in modifiers else signed(self.integer(a))
        below = np.float32(value)
        if "RP" in modifiers and int(below) < value:
            below = np.nextafter(below, np.float32(np.inf))
        self.put_real(to, float(below))

    do_I2FP = do_I2F

    def do_F2I(self, modifiers: list[str], to: str, a: str) -> None:
        if "TRUNC" not in modifiers or "S64" in modifiers:
            raise NotImplementedError("F2I." + ".".join(modifiers))
        least = 0 if {"U32", "U64"} & set(modifiers) else -(1 << 31)
        self.put(to, max(least, int(self.real(a))), 2 if "U64" in modifiers else 1)

    def do_F2FP(self, modifiers: list[str], to: str, high: str, low: str) -> None:
        convert = bfloat16_bits if "BF16" in modifiers else half_bits
        self.put(to, convert(self.real(high)) << 16 | convert(self.real(low)))
