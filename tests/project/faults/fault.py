"""A seeded fault: one text in the sources, another in its place, and the tests that notice."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """What make faults applies to a copy of the tree."""

    name: str
    place: str  # a file, or a folder in one of whose files the text stands
    text: str  # stands there exactly once
    instead: str
    # What catches it: arguments of pytest, files by their names alone. They run first.
    tests: str

    def file_in(self, root: Path) -> Path:
        """The file that holds the text; ValueError unless it stands there exactly once."""
        place = root / self.place
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        sources = [file for file in files if file.suffix in (".py", ".h", ".cpp", ".cuh", ".cu")]
        counts = {file: file.read_text().count(self.text) for file in sources}
        found = [file for file, count in counts.items() if count]
        if sum(counts.values()) != 1:
            names = ", ".join(file.relative_to(root).as_posix() for file in found) or "none"
            raise ValueError(
                f"{self.name}: its text must stand once in {self.place}, got "
                f"{sum(counts.values())} times (in {names}):\n{self.text}"
            )
        return found[0]

    def arguments(self, root: Path) -> list[str]:
        """Its tests, with the folders of their files; ValueError where a name is not one file's."""
        arguments = []
        for word in shlex.split(self.tests):
            name, colons, test = word.partition("::")
            if name.endswith(".py"):
                found = list((root / "tests").rglob(name))
                if len(found) != 1:
                    raise ValueError(f"{self.name}: {name} must be one file, got {len(found)}")
                name = found[0].relative_to(root).as_posix()
            arguments.append(f"{name}{colons}{test}")
        return arguments

    def is_compiled(self) -> bool:
        return self.place.startswith("csrc")
