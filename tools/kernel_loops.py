"""The loops over elements in compiled kernels: what their machine code loads, and how it computes.

Read from what nvdisasm prints of a cubin. A loop's loads and conversions tell the element types
that it was compiled for. Counted are its instructions without the calls for rare operands, the
elements that one pass of it handles, and the loads that are on their way at once: those before the
first instruction that waits for one. Kernels with the passes behind the rule are left out: they
hold the same loop, and branches in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FUNCTION = re.compile(r"^\.text\.(\w+):")
LABEL = re.compile(r"^(\.L_\w+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(.*?) ?;")
LOAD, STORE = re.compile(r"LDG?\.E\S*"), re.compile(r"STG?\.E")
WIDTH = re.compile(r"\.(128|64|[US]16|[US]8)\b")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
REGISTER = re.compile(r"\bR(\d+)\b")
BRANCH = re.compile(r"BRA\S* .*`\((\.L_\w+)\)")
# Of csrc/core/noise.h, as an unsigned number or as the negative one of the same bits.
HASH = re.compile(r"0x85ebca6b|-0x7a143595")
SIZES = {"float64": 8, "float32": 4}  # bytes; all others: 2
WIDEST = 16  # bytes of an access
ISSUED = 4 * 32  # instructions of single threads that a multiprocessor issues in a cycle
# In the mangled names of the kernels: of a step's without passes, and of the norm's.
WITHOUT_PASSES, NORM = "ELb0EEEv", "11norm_kernel"
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


def loaded_by(line: str) -> int:
    """Return the bytes that an instruction loads from the GPU's memory."""
    if not (load := LOAD.match(line)):
        return 0
    width = WIDTH.search(load[0])
    return WIDTHS[width[1]] if width else 4


def loads_at_once(loop: list[str]) -> tuple[int, ...]:
    """Return the bytes of each load before the first instruction that reads what one brings."""
    awaited: set[int] = set()
    loads = []
    for line in loop:
        registers = [int(number) for number in REGISTER.findall(line)]
        size = loaded_by(line)
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


def types_of(loop: list[str], is_norm: bool, widths: list[int]) -> tuple[str, str] | None:
    """Return the types of parameters and states that a loop works on; None if it is another's."""
    text = "\n".join(loop)
    if not widths or min(widths) < 8 or (max(widths) < WIDEST and len(widths) < 2):
        return None
    is_random = bool(HASH.search(text))
    half = "float16" if FROM_HALF.search(text) else "bfloat16"
    half = "stochastic bfloat16" if is_random else half
    if "DMUL" in text:  # in pairs for the norm, else one by one
        is_rule = is_norm == (max(widths) == WIDEST) and "LDG" not in text
        return ("float64", "float64") if is_rule else None
    if is_norm and max(widths) < WIDEST:
        return None
    # Parameter and gradient are of one width; what comes beside them, and how often, tells which.
    pairs = [width for width in widths if widths.count(width) == 2] or widths
    param = pairs[0]
    state = next((width for width in widths if width != param), param)
    if param != state and not is_norm:
        return (half, "float32") if param < state else ("float32", "bfloat16")
    is_half = is_random or half == "float16" or "BF16" in text or (is_norm and "PRMT" in text)
    return (half, half) if is_half else ("float32", "float32")


def element_loops(nvdisasm: str, cubin: Path) -> list[Loop]:
    """Return the loops of all kernels; of several for the same types, the one that costs most."""
    found: dict[tuple[str, str, str, int], Loop] = {}
    for code in disassemble(nvdisasm, cubin):
        is_norm = NORM in code.name
        if not is_norm and WITHOUT_PASSES not in code.name:
            continue
        for begin, body in code.loops():
            end = next((i for i, line in enumerate(body) if STORE.match(line)), len(body))
            widths = [width for line in body[:end] if (width := loaded_by(line))]
            types = types_of(body, is_norm, widths)
            if types is None:
                continue
            size = SIZES.get(types[0], 2)
            state_size = SIZES.get(types[1], 2)
            wide = max(size, state_size)
            elements = sum(widths) // size if is_norm else max(widths) // wide
            states = 0 if is_norm else len(widths) - 2
            count = usual(body, code.labels, begin)
            loop = Loop(code.name, *types, states, elements, count, loads_at_once(body))
            key = (code.name, *types, states)
            best = found.get(key, loop)
            if (loop.elements, loop.instructions) >= (best.elements, best.instructions):
                found[key] = loop
    return list(found.values())
