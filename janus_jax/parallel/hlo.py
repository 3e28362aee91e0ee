"""A compiled program as text (optimized HLO): its instructions, loops and collectives.

Reads what `compiled.as_text()` says. Numbers are per device.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}


class Array(NamedTuple):
    """One array of an instruction's result, per device."""

    dtype: str
    dims: tuple[int, ...]
    layout: str  # order of the axes and tiles, without the memory space
    space: str  # "" is the device's main memory, S(1) is on the chip

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * _BITS.get(self.dtype, 32) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    called: dict[str, str]  # attribute -> computation
    literal: str  # what stands in the brackets, of a constant or a parameter
    root: bool


class Computation(NamedTuple):
    entry: bool
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)


_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply)=%?([\w.\-]+)")


def parse(text: str) -> dict[str, Computation]:
    """The optimized HLO text of a compiled program, by computation."""
    computations: dict[str, Computation] = {}
    inside: dict[str, Instruction] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            inside = {}
            computations[head[2]] = Computation(bool(head[1]), inside)
        elif match := _LINE.match(line):
            instruction = _instruction(match[2], match[3], bool(match[1]))
            inside[instruction.name] = instruction
    return computations


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    arrays = tuple(_array(m) for m in _ARRAY.finditer(rest[:end]))
    call = rest[end:].strip()
    opcode, call = call.split("(", 1)
    end = _closing("(" + call) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", call[:end]))
    called = dict(_CALLED.findall(call[end:].split(", metadata=")[0]))
    return Instruction(name, arrays, opcode, operands, called, call[: end - 1], root)


def _closing(text: str) -> int:
    """The end of the bracket that `text` starts with."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _array(match: re.Match[str]) -> Array:
    dims = tuple(int(n) for n in match[2].split(",") if n)
    space = re.search(r"S\(\d+\)", match[3] or "")
    layout = (match[3] or "").replace(space[0], "") if space else match[3] or ""
    return Array(match[1], dims, layout, space[0] if space else "")


def trip_count(condition: Computation) -> int | None:
    """Of a loop that counts from 0: the constant that its counter is compared with."""
    names = condition.root.operands
    values = [condition.instructions[n] for n in names if n in condition.instructions]
    numbers = [int(v.literal) for v in values if v.opcode == "constant"]
    return numbers[0] if len(numbers) == 1 else None


def collectives(program: dict[str, Computation]) -> dict[str, dict[str, int]]:
    """Of one run of a program, by kind: "count" and "bytes" of the results, each loop's as often as it runs.

    TPUs scatter a sum by a fusion of an all-reduce and a slice: that counts as a reduce-scatter. A loop of
    unknown length counts once.
    """
    found: dict[str, dict[str, int]] = {}

    def visit(name: str, times: int, result: Array | None) -> None:
        for instruction in program[name].instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                # Of an asynchronous one the last array is the result; a synchronous one may have several.
                arrays = instruction.arrays
                arrays = arrays[-1:] if instruction.opcode.endswith("-start") else arrays
                size = sum(a.bytes for a in arrays)
                if kind == "all-reduce" and result is not None and result.bytes < size:
                    kind, size = "reduce-scatter", result.bytes
                total = found.setdefault(kind, {"count": 0, "bytes": 0})
                total["count"] += times
                total["bytes"] += times * size
            often = 1
            if instruction.opcode == "while":
                often = trip_count(program[instruction.called["condition"]]) or 1
            for attribute, callee in instruction.called.items():
                if attribute in ("condition", "to_apply") and instruction.opcode != "call":
                    continue
                inner = instruction.arrays[0] if instruction.opcode == "fusion" else None
                visit(callee, times * often, inner)

    visit(next(name for name, c in program.items() if c.entry), 1, None)
    return found
