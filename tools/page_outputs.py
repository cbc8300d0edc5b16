"""The outputs that pages show, as their own code prints them: ``page_outputs.py README.md ...``.

A ``text`` block right behind a ``python`` block is what that block prints. This command writes it,
and the pictures of ``docs/images`` that the code saves; tests compare. Words have to be the same.
Numbers differ from machine to machine: each has to be within a factor of two. Two kinds may be any:
seconds, those that say so, as in "in 0.3 s", and those below or beside a heading "seconds"; and
where a range test ends that has diverged, "to 6.9, diverged", which the last bits of the losses
decide. Blocks in an HTML comment run, too, and are not shown.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
CODE = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?P<gap>\n?(?=```text))?", re.MULTILINE | re.DOTALL
)
OUTPUT = re.compile(r"```text\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL)
# A dash behind a word is none of its sign, as in "1e-3" or "step-2".
NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SECONDS = re.compile(NUMBER.pattern + r"(?= s\b)")
END = re.compile(NUMBER.pattern + r"(?=, diverged)")
FACTOR = 2.0


class Page:
    """A page of Markdown whose code runs in order, in one namespace."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.namespace: dict[str, object] = {"__name__": path.stem}

    def outputs(self) -> Iterator[tuple[str, str | None, tuple[int, int]]]:
        """Run each block; yield what it printed, what the page shows, and where that stands."""
        lines: list[str] = []
        self.namespace["print"] = lambda *values, sep=" ": lines.append(sep.join(map(str, values)))
        for block in CODE.finditer(self.text):
            lines.clear()
            exec(compile(block["code"], self.path.name, "exec"), self.namespace)
            printed = "".join(f"{line}\n" for line in lines)
            shown = OUTPUT.match(self.text, block.end())
            place = (shown.start("text"), shown.end("text")) if shown else (0, 0)
            yield printed, shown["text"] if shown else None, place

    def written(self) -> str:
        """Return the page with what its blocks print now."""
        text = self.text
        for printed, shown, (start, end) in reversed(list(self.outputs())):
            if shown is not None:
                text = text[:start] + printed + text[end:]
        return text


def without_numbers(output: str) -> str:
    """Return an output with all numbers alike, and spaces that do not depend on them."""
    return re.sub(r"[ \t]+", " ", NUMBER.sub("0", output)).strip()


def agree(printed: str, shown: str) -> bool:
    """Whether a page shows what its code has printed, up to what machines differ in."""
    if without_numbers(printed) != without_numbers(shown):
        return False
    pairs = zip(_numbers(END.sub("0", printed)), _numbers(END.sub("0", shown)), strict=True)
    return all(abs(a - b) <= (1 - 1 / FACTOR) * max(abs(a), abs(b)) + 1e-12 for a, b in pairs)


def are_of_one_run(printed: str, shown: str) -> bool:
    """Whether a page shows the very numbers that its code has printed, but for seconds."""
    is_alike = without_numbers(printed) == without_numbers(shown)
    return is_alike and _numbers(printed) == _numbers(shown)


def _numbers(output: str) -> list[float]:
    """Return the numbers of an output, seconds all alike."""
    numbers: list[float] = []
    column = (0, 0)  # the place of a heading "seconds", as far down as its table goes
    for line in SECONDS.sub("0", output).splitlines():
        if heading := re.search(r"\bseconds\b", line):
            column = heading.span()
        elif "  " not in line:
            column = (0, 0)
        is_row = line.startswith("seconds")
        for found in NUMBER.finditer(line):
            is_free = is_row or (found.start() < column[1] and found.end() > column[0])
            numbers.append(0.0 if is_free else float(found[0].replace(",", "")))
    return numbers


def main() -> None:
    """Write the outputs and pictures of the pages."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            path.write_text(Page(path).written())
            os.chdir(ROOT)
            for picture in Path(folder).glob("*.png"):
                if f"images/{picture.name})" in path.read_text():
                    shutil.copyfile(picture, IMAGES / picture.name)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
