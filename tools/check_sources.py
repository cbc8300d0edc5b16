"""Checks the rules of csrc/ that a compiler does not: `make sources-check`.

* core/, cpu/ and cuda/ include neither torch nor each other against the one allowed direction,
  core <- cpu, cuda <- bindings, and core/ includes no CUDA either.
* cpu/ and cuda/ hold no formula (a root, a power, a square, a complement 1 - x): each stands once,
  in core/. Nor does Python raise a variable to a power in lrfast/optim/.
* bindings/all.cpp includes all other sources of bindings/, but those of the device.
* Every TORCH_CHECK says what was wrong.
* Every header of core/ compiles alone, with g++ and without torch.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
OPTIM = ROOT / "lrfast" / "optim"
MAY_INCLUDE = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "bindings": {"core", "cpu", "cuda", "bindings"},
}
ALONE = {"all.cpp", "cuda.cpp", "no_cuda.cpp"}  # units of bindings/ that setup.py compiles
TORCH_HEADER = re.compile(r"(torch|ATen|c10|pybind11)(/|\.h)|Python\.h")
CUDA_HEADER = re.compile(r"cu(da|blas|rand|sparse|b/).*|device_launch_parameters\.h")
# A name, with the members, arguments and indices behind it.
TERM = r"\w+(?:(?:\.|->)\w+|\([^()]*\)|\[[^\[\]]*\])*"
FORMULA = re.compile(
    rf"sqrt|pow\(|cos\(|exp\(|\b1\.0f?\s*[-/+]|(?<![\w.>])({TERM})\s*\*\s*\1(?![\w.(\[]|->)"
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)', re.MULTILINE)
CHECK = re.compile(r"\bTORCH_CHECK(\w*)\s*\(")
# Longest first where two could match: a comment may hold quotes, a string may hold slashes.
COMMENT_OR_LITERAL = re.compile(
    r'//[^\n]*|/\*.*?\*/|(R"([^(\s]*)\(.*?\)\2"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\')',
    re.DOTALL,
)


def without_comments(text: str) -> str:
    """Returns the text with every comment blanked, each character in its place."""

    def blank(match: re.Match[str]) -> str:
        return match[0] if match[1] else re.sub(r"[^\n]", " ", match[0])

    return COMMENT_OR_LITERAL.sub(blank, text)


def call_arguments(text: str, start: int) -> list[str]:
    """Returns the arguments of the call whose opening parenthesis ends at `start`."""
    arguments, depth, begin = [], 1, start
    literals = {match.start(): match.end() for match in COMMENT_OR_LITERAL.finditer(text, start)}
    position = start
    while depth and position < len(text):
        if position in literals:
            position = literals[position]
            continue
        character = text[position]
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 or (depth == 1 and character == ","):
            arguments.append(text[begin:position])
            begin = position + 1
        position += 1
    return arguments


def faults_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the position of each broken rule, with a sentence."""
    layer = path.relative_to(CSRC).parts[0]
    text = without_comments(path.read_text())
    if path.name == "all.cpp":
        included = {Path(match[2]).name for match in INCLUDE.finditer(text)}
        sources = {other.name for other in path.parent.glob("*.cpp")}
        for name in sorted(sources - included - ALONE):
            yield 0, f'{layer}/all.cpp must include "{layer}/{name}", or it is not compiled'
    for match in INCLUDE.finditer(text):
        quoted, header = match[1] == '"', match[2]
        if quoted and header.split("/")[0] not in MAY_INCLUDE[layer]:
            yield match.start(), f'{layer}/ must not include "{header}"'
        elif layer != "bindings" and TORCH_HEADER.match(header):
            yield match.start(), f"{layer}/ must not include torch: <{header}>"
        elif layer in ("core", "cpu") and CUDA_HEADER.match(header):
            yield match.start(), f"{layer}/ must not include CUDA: <{header}>"
    if layer in ("cpu", "cuda"):
        for match in FORMULA.finditer(text):
            yield match.start(), f"{layer}/ must hold no formula, found {match[0]!r}"
    for match in CHECK.finditer(text):
        if not any('"' in argument for argument in call_arguments(text, match.end())[1:]):
            yield match.start(), f"TORCH_CHECK{match[1]} without a message"


def powers_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line of each power of a variable in a Python file, with a sentence."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Pow):
            continue
        if not all(isinstance(side, ast.Constant) for side in (node.left, node.right)):
            yield node.lineno, f"optim/ must hold no formula, found {ast.unparse(node)!r}"


def compile_alone(header: Path) -> str:
    """Returns what g++ says about a translation unit that is this header alone."""
    compiler = os.environ.get("CXX", "g++")
    # As an -include of nothing: compiling the header itself would warn about its #pragma once.
    command = [
        compiler,
        "-std=c++20",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-I",
        str(CSRC),
    ]
    command += ["-include", str(header.relative_to(CSRC)), "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def main() -> int:
    """Prints every fault found and returns the number of faults, as far as an exit status goes."""
    faults = []
    files = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu"))
    for path in files:
        text = path.read_text()
        for position, sentence in faults_in(path):
            line = text.count("\n", 0, position) + 1
            faults.append(f"{path.relative_to(CSRC.parent)}:{line}: {sentence}")
    for path in sorted(OPTIM.rglob("*.py")):
        faults += [f"{path.relative_to(ROOT)}:{line}: {text}" for line, text in powers_in(path)]
    headers = [path for path in files if path.is_relative_to(CSRC / "core")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults += [message for message in pool.map(compile_alone, headers) if message]
    for fault in faults:
        sys.stdout.write(fault.rstrip() + "\n")
    sys.stdout.write(
        f"sources-check: {len(files)} files, {len(headers)} headers alone, {len(faults)} faults\n"
    )
    return min(len(faults), 1)


if __name__ == "__main__":
    sys.exit(main())
