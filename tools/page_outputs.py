"""The outputs that pages show, as their own code prints them: ``page_outputs.py README.md ...``.

A ``text`` block right behind a ``python`` block is what that block prints. This command writes it,
and the pictures of ``docs/images`` that the code saves; tests compare, but for the numbers, which
differ from machine to machine. Blocks in an HTML comment run, too, and are not shown.
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
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


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
