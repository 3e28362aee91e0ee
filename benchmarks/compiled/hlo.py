"""A compiled program as text: its loops, and which caches and weights they copy.

Reads what `compiled.as_text()` of a TPU program says; shapes tell caches and weights apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from janus_jax.parallel.hlo import Array, Computation, Instruction, parse, trip_count

# An update that replaces a whole cache: of a stack of layers that is scanned.
_WHOLE = "dynamic-update-slice of all"
_COPIES = {"copy", "copy-start", "transpose", _WHOLE}
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call"}
_FREE |= {"dynamic-update-slice", "copy-done", "opt-barrier", "constant"}
# What an asynchronous operation does is in the computation that it calls; slices end on the chip.
_FREE |= {f"{what}-{part}" for what in ("async", "slice") for part in ("start", "update", "done")}
# Out of the memory on the chip, where the compiler chose to keep it for a while.
_EVICT = "evict"
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Shapes(NamedTuple):
    """What to look for, per device.

    Attributes:
      slots: S -> the elements of one layer's keys, [C, B, K, S, H].
      weights: the axes above 1 of every large weight, sorted.
    """

    slots: dict[int, int]
    weights: set[tuple[int, ...]]

    def kind(self, array: Array) -> str | None:
        """ "weight", "cache" or None; by size, since the compiler reorders and merges axes."""
        if tuple(sorted(n for n in array.dims if n > 1)) in self.weights:
            return "weight"
        for slots, size in self.slots.items():
            # Or the caches of several layers in one array.
            several = array.size and array.size % size == 0 and slots in array.dims
            if array.size == size or several:
                return "cache"
        return None


class Written(NamedTuple):
    """A whole cache or weight that an instruction writes."""

    kind: str
    what: str  # opcode, or that of the root of a fusion, or _EVICT
    array: Array
    relaid: bool  # in another layout than it was read in


def written(computation: Computation, program: dict[str, Computation], shapes: Shapes):
    """Yields the caches and weights that `computation` itself writes as a whole.

    An update in place of a few slots writes no whole cache, and to read one into the memory on the chip
    is what reading is. A copy within that memory counts: it is there only because the test is small.
    """
    for instruction in computation.instructions.values():
        for array, opcode in _results(instruction, program, shapes):
            kind = None if opcode in _FREE else shapes.kind(array)
            if kind is None or (array.space and opcode not in ("copy", "transpose", _WHOLE)):
                continue
            before = _source(instruction, computation)
            relaid = opcode == "transpose" or before.layout != array.layout
            if opcode == "copy-start" and before.space and not relaid:
                opcode = _EVICT
            yield Written(kind, opcode, array, relaid)


def _source(instruction: Instruction, computation: Computation) -> Array:
    """What the first operand of a copy is, or the result itself if that is unknown."""
    if instruction.opcode == "copy-start":
        return instruction.arrays[1]
    operand = computation.instructions.get(next(iter(instruction.operands), ""))
    return operand.arrays[0] if operand and operand.arrays else instruction.arrays[0]


def _results(
    instruction: Instruction, program: dict[str, Computation], shapes: Shapes
) -> list[tuple[Array, str]]:
    """(array, opcode that made it) of each result; looks into fusions."""
    if instruction.opcode == "copy-start":  # (destination, source, context)
        return [(instruction.arrays[0], "copy-start")]
    if instruction.opcode != "fusion":
        return [(array, instruction.opcode) for array in instruction.arrays]
    inner = program[instruction.called["calls"]].instructions
    root = next(i for i in inner.values() if i.root)
    made = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]

    def origin(i: Instruction) -> str:
        while i.opcode == "bitcast":
            i = inner[i.operands[0]]
        if i.opcode == "dynamic-update-slice" and shapes.kind(inner[i.operands[1]].arrays[0]):
            return _WHOLE
        return i.opcode if i.opcode != "parameter" else "copy"

    return list(zip(instruction.arrays, map(origin, made), strict=False))


def reached(name: str, program: dict[str, Computation]) -> Iterator[Computation]:
    """A computation and all that it runs, fusions apart."""
    computation = program[name]
    yield computation
    for instruction in computation.instructions.values():
        if instruction.opcode not in ("fusion", "reduce", "sort", "scatter", "all-reduce"):
            for callee in instruction.called.values():
                yield from reached(callee, program)


def loops(program: dict[str, Computation], shapes: Shapes) -> list[dict[str, Any]]:
    """Every outermost loop that carries a cache: its slots, steps, copies and collectives."""
    entry = next(c for c in program.values() if c.entry)
    found = []
    for loop in entry.instructions.values():
        carried = [a for a in loop.arrays if shapes.kind(a) == "cache"]
        if loop.opcode != "while" or not carried:
            continue
        slots = max(s for s in shapes.slots if any(s in a.dims for a in carried))
        body = list(reached(loop.called["body"], program))
        all_written = [w for c in body for w in written(c, program, shapes)]
        copied = [w for w in all_written if w.what in _COPIES]
        found.append(
            {
                "slots": slots,
                "steps": trip_count(program[loop.called["condition"]]),
                "cache_layout": carried[0].layout,
                "cache_copies": _counted(w for w in copied if w.kind == "cache"),
                "weight_copies": _counted(w for w in copied if w.kind == "weight"),
                "evictions": _counted(w for w in all_written if w.what == _EVICT),
                # Such as an int8 weight that is written in bfloat16 before it is used.
                "other_full_size": _counted(
                    w for w in all_written if w.what not in _COPIES | {_EVICT}
                ),
                "collectives": collectives(body),
            }
        )
    return found


def collectives(computations: Sequence[Computation]) -> dict[str, dict[str, int]]:
    """How many of each kind, and the bytes of their results."""
    found: dict[str, dict[str, int]] = {}
    for instruction in (i for c in computations for i in c.instructions.values()):
        name = instruction.opcode.removesuffix("-start")
        if name in _COLLECTIVES:
            total = found.setdefault(name, {"count": 0, "bytes": 0})
            total["count"] += 1
            total["bytes"] += instruction.arrays[-1].bytes
    return found


def _counted(items: Any) -> list[dict[str, Any]]:
    counts = Counter((w.what, str(w.array), w.array.bytes, w.relaid) for w in items)
    names = ("opcode", "array", "bytes", "relaid")
    return [dict(zip(names, key, strict=True)) | {"count": n} for key, n in counts.items()]


def report(text: str, shapes: Shapes) -> dict[str, Any]:
    """What there is to say about a compiled program's text."""
    program = parse(text)
    entry = next(name for name, c in program.items() if c.entry)
    once = [w for w in written(program[entry], program, shapes) if w.kind == "weight"]
    copied = [w for w in once if w.what in _COPIES]
    found = loops(program, shapes)
    return {
        "loops": found,
        "copies_cache": any(loop["cache_copies"] for loop in found),
        "weight_copies": _counted(copied),
        "weight_copies_bytes": sum(w.array.bytes for w in copied),
        "weight_evictions_bytes": sum(w.array.bytes for w in once if w.what == _EVICT),
    }
