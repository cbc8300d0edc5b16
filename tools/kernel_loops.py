"""The loops over elements in compiled kernels: what their machine code loads, and how it computes.

Read from what nvdisasm prints of a cubin. A loop over elements is told by what it moves: a step
loads the parameter, the gradient and the states, and stores all but the gradient; a norm loads
gradients and stores nothing. The widths of these accesses and the conversions tell the element
types that it was compiled for. Counted are its instructions without the calls for rare operands,
the elements that one pass of it handles, its generic accesses, and the loads that are on their way
at once: those before the first instruction that waits for one. Kernels with the passes behind the
rule are left out: they hold the same loop, and branches in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FUNCTION = re.compile(r"^\.text\.(\w+):")
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(.*?) ?;")
LOAD, STORE, GENERIC = (re.compile(p) for p in (r"LDG?\.E\S*", r"STG?\.E\S*", r"(LD|ST)\.E"))
WIDTH = re.compile(r"\.(128|64|[US]16|[US]8)\b")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
REGISTER = re.compile(r"\bR(\d+)\b")
BRANCH = re.compile(r"BRA\S* .*`\((\.L_\w+)\)")
# Of csrc/core/noise.h, as an unsigned number or as the negative one of the same bits.
HASH = re.compile(r"0x85ebca6b|-0x7a143595")
SIZES = {"float64": 8, "float32": 4}  # bytes; all others: 2
WIDEST = 16  # bytes of an access
ISSUED = 4 * 32  # instructions of single threads that a multiprocessor issues in a cycle
NORM = "11norm_kernel"  # in the mangled name of the norm's
FROM_HALF = re.compile(r"HADD2\.F32|F2F\S*\.F16")


@dataclass(frozen=True)
class Loop:
    """The loop over the elements of a chunk, as one kernel has it for one pair of types."""

    function: str  # mangled
    param: str
    state: str
    states: int
    elements: int  # that a thread handles in one pass
    instructions: int
    generic: int  # accesses whose address may be of any memory, which is looked up at run time
    loads: tuple[int, ...]  # bytes of each that is on its way before the first is waited for

    @property
    def per_element(self) -> float:
        """Instructions for an element."""
        return self.instructions / self.elements


@dataclass
class Code:
    """A function's instructions, without predicates, and where its labels stand among them."""

    name: str
    lines: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def loops(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the loops within which there is no other, with the places where they begin."""
        jumps = ((end, BRANCH.match(line)) for end, line in enumerate(self.lines))
        begins = [(self.labels.get(to[1], end + 1), end) for end, to in jumps if to]
        spans = [(begin, end) for begin, end in begins if begin <= end]
        for begin, end in spans:
            if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans):
                yield begin, self.lines[begin : end + 1]


def bytes_of_element(function: str, param: str, state: str, states: int) -> tuple[int, int]:
    """Return the bytes that a step's kernel or a norm's loads and stores for an element."""
    size, state_size = SIZES.get(param, 2), states * SIZES.get(state, 2)
    if "step_kernel" not in function:
        return size, 0
    return 2 * size + state_size, size + state_size


def find_nvdisasm() -> str | None:
    """Return the disassembler: the toolkit's, or the one from PyPI in this environment."""
    home = os.environ.get("CUDA_HOME")
    if found := shutil.which("nvdisasm", path=f"{home}/bin" if home else None):
        return found
    paths = (path for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/nvdisasm"))
    return next(map(str, paths), None)


def disassemble(nvdisasm: str, cubin: Path) -> Iterator[Code]:
    """Yield the functions of a cubin."""
    command = [nvdisasm, "--print-code", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{cubin.name} cannot be disassembled: {done.stderr.strip()}")
    code = Code("")
    for line in done.stdout.splitlines():
        if name := FUNCTION.match(line):
            yield code
            code = Code(name[1])
        elif label := LABEL.match(line):
            code.labels[label[1]] = len(code.lines)
        elif found := INSTRUCTION.match(line):
            code.lines.append(found[1])
    yield code


def moved_by(line: str, access: re.Pattern[str] = LOAD) -> int:
    """Return the bytes that an instruction loads from the GPU's memory, or stores to it."""
    if not (found := access.match(line)):
        return 0
    width = WIDTH.search(found[0])
    return WIDTHS[width[1]] if width else 4


def loads_at_once(loop: list[str]) -> tuple[int, ...]:
    """Return the bytes of each load before the first instruction that reads what one brings."""
    awaited: set[int] = set()
    loads = []
    for line in loop:
        registers = [int(number) for number in REGISTER.findall(line)]
        size = moved_by(line)
        if awaited.intersection(registers[1:] if size else registers):
            break
        if size:
            loads.append(size)
            awaited.update(range(registers[0], registers[0] + max(1, size // 4)))
    return tuple(loads)


def usual(loop: list[str], labels: dict[str, int], begin: int) -> int:
    """Return the instructions of a loop, without those that a branch jumps over, up to a call."""
    skipped: set[int] = set()
    for place, line in enumerate(loop):
        if jump := BRANCH.match(line):
            over = range(place + 1, labels[jump[1]] - begin)
            if any(loop[i].startswith("CALL") for i in over if i < len(loop)):
                skipped.update(over)
    return len(loop) - len(skipped)


def element_width(loop: list[str], is_norm: bool) -> int | None:
    """Return the bytes of each access to gradients; None if the loop is not over elements."""
    loads, stores = (
        Counter(size for line in loop if (size := moved_by(line, access)))
        for access in (LOAD, STORE)
    )
    if is_norm:
        return WIDEST if set(loads) == {WIDEST} and not stores else None
    grads = loads - stores
    if not stores or stores - loads or grads.total() != 1 or min(loads) < 8:
        return None
    (width,) = grads
    return width if stores[width] else None


def types_of(loop: list[str], is_norm: bool, widths: list[int], grad: int) -> tuple[str, str]:
    """Return the types of parameters and states by the widths of loads, one of them gradients'."""
    text = "\n".join(loop)
    if "DMUL" in text:  # in pairs for the norm, else one by one
        return ("float64", "float64")
    is_random = bool(HASH.search(text))
    half = "float16" if FROM_HALF.search(text) else "bfloat16"
    half = "stochastic bfloat16" if is_random else half
    state = next((width for width in widths if width != grad), grad)
    if grad != state:
        return (half, "float32") if grad < state else ("float32", "bfloat16")
    is_half = is_random or half == "float16" or "BF16" in text or (is_norm and "PRMT" in text)
    return (half, half) if is_half else ("float32", "float32")


def is_plain_step(name: str) -> bool:
    """Return whether a mangled name is that of a step's kernel without passes."""
    return "11step_kernel" in name and "ELb0EEEv" in name


def element_loops(nvdisasm: str, cubin: Path) -> list[Loop]:
    """Return the loops of all kernels; of several for the same types, the one that costs most."""
    found: dict[tuple[str, str, str, int], Loop] = {}
    for code in disassemble(nvdisasm, cubin):
        is_norm = NORM in code.name
        if not is_norm and not is_plain_step(code.name):
            continue
        for begin, body in code.loops():
            grad = element_width(body, is_norm)
            if grad is None:
                continue
            widths = [width for line in body if (width := moved_by(line))]
            types = types_of(body, is_norm, widths, grad)
            size = SIZES.get(types[0], 2)
            elements = (sum(widths) if is_norm else grad) // size
            states = 0 if is_norm else len(widths) - 2
            count = usual(body, code.labels, begin)
            generic = sum(bool(GENERIC.match(line)) for line in body)
            loop = Loop(code.name, *types, states, elements, count, generic, loads_at_once(body))
            key = (code.name, *types, states)
            best = found.get(key, loop)
            if (loop.elements, loop.instructions) >= (best.elements, best.instructions):
                found[key] = loop
    return list(found.values())
