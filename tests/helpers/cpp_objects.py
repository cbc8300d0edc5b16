"""Object files of C++ sources, compiled once and kept by the hash of what they are made of.

A file of the cache is named source-key-digest.o. The key covers the compiler, the flags, the source
and every header of the project that it includes; the digest is that of the object itself, so that
a damaged file is not used. Files appear whole, under their final name, and processes that want
the same object wait for the first of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "csrc").is_dir())
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def run(command: list[str]) -> str:
    """Both outputs of a command that must succeed, from the project's root. A busy machine may take
    its time: nothing depends on how long it runs."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}\nreturned {done.returncode}:\n{output}"
    return output


@cache
def version_of(compiler: str) -> str:
    return run([compiler, "-v"])


def included_by(source: Path, root: Path = ROOT) -> set[Path]:
    """The project's headers that a source includes, directly or not, whatever the conditions."""
    found: set[Path] = set()
    rest = [source]
    while rest:
        file = rest.pop()
        for name in INCLUDE.findall(file.read_text()):
            places = [file.parent / name, root / "csrc" / name]
            header = next((place.resolve() for place in places if place.exists()), None)
            assert header is not None, f"{file} includes {name}, which is nowhere"
            if header not in found:
                found.add(header)
                rest.append(header)
    return found


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class ObjectCache:
    """Compiles what is not there yet; any number of threads and processes may share the folder."""

    def __init__(self, folder: Path, compiler: str, root: Path = ROOT) -> None:
        self.folder = folder
        self.compiler = compiler
        self.root = root
        self.compiled: list[str] = []  # names of what this object has compiled
        folder.mkdir(parents=True, exist_ok=True)

    def key(self, source: Path, flags: list[str]) -> str:
        parts = [version_of(self.compiler), *flags]
        for file in [source, *sorted(included_by(source, self.root))]:
            parts += [file.relative_to(self.root).as_posix(), digest_of(file.read_bytes())]
        return digest_of("\0".join(parts).encode())

    def object(self, source: Path, flags: list[str]) -> Path:
        """The object file of a source; flags must name no path outside the project."""
        name = f"{source.stem}-{self.key(source, flags)}"
        build = digest_of("\0".join(flags).encode())[:8]
        with open(self.folder / f"{source.stem}-{build}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._kept(name) or self._compile(source, flags, name)

    def _kept(self, name: str) -> Path | None:
        for path in self.folder.glob(f"{name}-*.o"):
            if path.name == f"{name}-{digest_of(path.read_bytes())}.o":
                os.utime(path)  # in use: prune() takes the others first
                return path
            path.unlink()
        return None

    def _compile(self, source: Path, flags: list[str], name: str) -> Path:
        descriptor, unfinished = tempfile.mkstemp(suffix=".tmp", dir=self.folder)
        os.close(descriptor)
        try:
            run([self.compiler, *flags, "-c", str(source), "-o", unfinished])
            content = Path(unfinished).read_bytes()
            target = self.folder / f"{name}-{digest_of(content)}.o"
            os.replace(unfinished, target)
        finally:
            Path(unfinished).unlink(missing_ok=True)
        self.compiled.append(name)
        return target

    def prune(self, most: int = 400, days: float = 14.0) -> None:
        """Delete what was last used longer ago, all but the newest files, and unfinished ones."""
        objects = []
        for path in self.folder.iterdir():
            try:
                used = path.stat().st_mtime
            except FileNotFoundError:  # another process prunes too
                continue
            if path.suffix == ".o":
                objects.append((used, path))
            elif path.suffix == ".tmp" and time.time() - used > 86400.0:
                path.unlink(missing_ok=True)
        for place, (used, path) in enumerate(sorted(objects, reverse=True)):
            if place >= most or time.time() - used > 86400.0 * days:
                path.unlink(missing_ok=True)


def built_for_extension(source: Path, flags: list[str], root: Path = ROOT) -> Path | None:
    """The object that the extension itself is linked of; None if ninja, which made it, would make
    it anew, or if it was compiled with other flags."""
    tag = f"{sys.implementation.cache_tag}-torch{torch.__version__}"
    beside = Path(sys.executable).with_name("ninja")  # the one that the Makefile puts first
    ninja = str(beside) if beside.exists() else shutil.which("ninja")
    for rules in sorted(root.glob(f"build/{tag}-*/build.ninja")):
        words = " ".join(re.findall(r"^(?:post_)?cflags = (.*)$", rules.read_text(), re.M)).split()
        if not set(flags) <= set(words) or optimization(words) != optimization(flags):
            continue
        target = rules.parent / source.relative_to(root).with_suffix(".o")
        if ninja and target.exists() and is_up_to_date(ninja, target, rules.parent):
            return target
    return None


def optimization(flags: list[str]) -> str | None:
    """The level that counts: the last one."""
    return next((flag for flag in reversed(flags) if re.fullmatch(r"-O\w*", flag)), None)


def is_up_to_date(ninja: str, target: Path, folder: Path) -> bool:
    """Whether ninja finds nothing to do for a target, by its log and its headers' dates."""
    command = [ninja, "-n", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.returncode == 0 and "no work to do" in done.stdout
