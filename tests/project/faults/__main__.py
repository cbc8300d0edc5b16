"""Applies seeded faults to a copy of the tree, one by one, and says which the tests miss.

    make faults                    all of them (hours on a machine of two cores)
    make faults FAULTS="sgd*"      those of a name

The copy lies in build/faults, where builds and objects stay for the next time; the working tree is
only read. For each fault, the tests that are expected to catch it run first; if they pass, the rest
of the default run does. What failed must pass without the fault, or the fault does not count as
caught. Ends with 1 if a fault was missed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .catalog import FAULTS
from .fault import Fault

ROOT = Path(__file__).resolve().parents[3]
# A fault may make a loop endless. What is stopped so counts as caught, and is reported as this.
HANGS_AFTER = 3600.0
DEFAULT_RUN = ["-m", "not full", "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", re.MULTILINE)


@dataclass
class Outcome:
    """What became of one fault."""

    fault: Fault
    failed: str | None = None  # the test that caught it
    note: str = ""
    seconds: float = 0.0

    @property
    def is_caught(self) -> bool:
        return self.failed is not None


@dataclass
class Copy:
    """The tree that faults are applied to."""

    folder: Path
    _clean: dict[Path, tuple[bytes, os.stat_result]] = field(default_factory=dict)

    # ---- the tree --------------------------------------------------------------------------------

    def update(self) -> None:
        """Bring the copy up to the working tree; what is the same keeps its date, for ninja."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        output = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        names = {name for name in output.split("\0") if name and (ROOT / name).is_file()}
        for name in names:
            self._take(name)
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            is_kept = name.startswith("build/") or path.suffix == ".so" or name in names
            if path.is_file() and not is_kept:
                path.unlink()
        for path in (ROOT / "build" / "cpp").glob("*.o"):
            self._take(path.relative_to(ROOT).as_posix())

    def _take(self, name: str) -> None:
        source, target = ROOT / name, self.folder / name
        if target.exists() and target.read_bytes() == source.read_bytes():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        shutil.copymode(source, target)

    def apply(self, fault: Fault) -> None:
        file = fault.file_in(self.folder)
        self._clean[file] = (file.read_bytes(), file.stat())
        file.write_text(file.read_text().replace(fault.text, fault.instead))

    def restore(self) -> None:
        """Bring the sources back with their dates, which those of restore_build() fit."""
        for file, (content, status) in self._clean.items():
            file.write_bytes(content)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        self._clean.clear()

    # ---- the extension ---------------------------------------------------------------------------

    def build(self) -> str | None:
        """Compile what has changed; what the compiler said, if it failed."""
        if not list((self.folder / "build").glob("*/build.ninja")):
            for extension in (self.folder / "lrfast").glob("_C.*.so"):
                extension.unlink()  # the working tree's: setuptools would take it for its own
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = self._run(command)
        return None if done.returncode == 0 else done.stdout[-2000:]

    def keep_build(self) -> None:
        """Remember the objects, which restore_build() brings back without compiling."""
        kept = self.folder.parent / "clean"
        shutil.rmtree(kept, ignore_errors=True)
        for path in self._built():
            target = kept / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)

    def restore_build(self) -> None:
        kept = self.folder.parent / "clean"
        for path in kept.rglob("*"):
            if path.is_file():
                target = self.folder / path.relative_to(kept)
                target.unlink(missing_ok=True)  # a process may have the extension mapped
                shutil.copy2(path, target)

    def take_extension(self) -> None:
        """Use the extension that the working tree has; nothing is compiled."""
        for path in (ROOT / "lrfast").glob("_C.*.so"):
            self._take(path.relative_to(ROOT).as_posix())

    def _built(self) -> list[Path]:
        folders = [path.parent for path in (self.folder / "build").glob("*/build.ninja")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return [*files, *(self.folder / "lrfast").glob("_C.*.so")]

    # ---- the tests -------------------------------------------------------------------------------

    def test(self, arguments: Sequence[str]) -> tuple[str | None, str]:
        """Run pytest; the first test that failed, and the end of the output."""
        done = self._run([sys.executable, "-m", "pytest", *DEFAULT_RUN, *arguments])
        said = "" if done.returncode == 0 else done.stdout[-2000:]
        if done.returncode in (0, 4, 5):  # passed; arguments that name no test; none selected
            return None, said
        found = FAILED.search(done.stdout)
        return ("tests/(pytest itself)" if found is None else found.group(1)), said

    def failing(self, names: list[str]) -> set[str]:
        """Those of the tests that fail."""
        if not names:
            return set()
        command = [sys.executable, "-m", "pytest", *DEFAULT_RUN, "--maxfail=0", *names]
        return set(FAILED.findall(self._run(command).stdout))

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        bin_folder = str(Path(sys.executable).parent)
        environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"
        environment.setdefault("OMP_NUM_THREADS", "1")
        # One copy of the drivers' loops instead of three: a tenth of the time to compile them.
        environment["CFLAGS"] = f"{environment.get('CFLAGS', '')} -DLRFAST_NO_CLONES"
        try:
            return subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=HANGS_AFTER,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
            text = f"{said}\nFAILED tests/(stopped: still running after {HANGS_AFTER:.0f} s)\n"
            return subprocess.CompletedProcess(command, 1, text)


def needs_extension(fault: Fault) -> bool:
    """Whether its tests load the extension; test_cpp_programs.py compiles csrc/ by itself."""
    files = re.findall(r"(\w+\.py)", fault.tests)
    return fault.is_compiled() and files != ["test_cpp_programs.py"]


def try_fault(fault: Fault, copy: Copy, expected_only: bool) -> Outcome:
    start = time.monotonic()
    outcome = Outcome(fault)
    copy.apply(fault)
    is_built = False
    try:
        if needs_extension(fault):
            is_built = True
            if said := copy.build():
                outcome.note = f"does not compile:\n{said}"
                return outcome
        outcome.failed, said = copy.test(fault.arguments(copy.folder))
        outcome.note = "" if outcome.is_caught else said
        if not outcome.is_caught and not expected_only:
            if fault.is_compiled() and not is_built:
                is_built = True
                if said := copy.build():
                    outcome.note = f"does not compile:\n{said}"
                    return outcome
            outcome.failed, outcome.note = copy.test([])
            outcome.note = f"not by {fault.tests}" if outcome.is_caught else outcome.note
    finally:
        copy.restore()
        if is_built:
            copy.restore_build()
        outcome.seconds = time.monotonic() - start
    return outcome


def discount(outcomes: list[Outcome], copy: Copy) -> None:
    """What fails without its fault, too, has caught nothing."""
    named = sorted({outcome.failed for outcome in outcomes if outcome.failed})
    failing = copy.failing([name for name in named if not name.startswith("tests/(")])
    for outcome in outcomes:
        if outcome.failed in failing:
            outcome.failed, outcome.note = None, f"{outcome.failed} fails without the fault"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names, with * and ?")
    parser.add_argument("--expected-only", action="store_true", help="not the rest of the run")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    options = parser.parse_args()
    chosen = [
        fault
        for fault in FAULTS
        if any(fnmatch.fnmatch(fault.name, pattern) for pattern in options.patterns)
    ]
    if options.list or not chosen:
        say("\n".join(fault.name for fault in chosen) or "no fault has such a name")
        return 0 if chosen else 2
    copy = Copy(ROOT / "build" / "faults" / "tree")
    copy.folder.mkdir(parents=True, exist_ok=True)
    copy.update()
    compiled = [fault for fault in chosen if fault.is_compiled()]
    if any(needs_extension(fault) or not options.expected_only for fault in compiled):
        say("building the copy's extension")
        if said := copy.build():
            say(said)
            return 2
        copy.keep_build()
    else:
        copy.take_extension()
    outcomes = []
    for fault in chosen:
        outcome = try_fault(fault, copy, options.expected_only)
        outcomes.append(outcome)
        result = f"caught by {outcome.failed}" if outcome.is_caught else "MISSED"
        say(f"{fault.name}: {result} ({outcome.seconds:.0f} s) {outcome.note}")
    discount(outcomes, copy)
    missed = [outcome for outcome in outcomes if not outcome.is_caught]
    for outcome in missed:
        say(f"MISSED {outcome.fault.name}: {outcome.note or 'all tests pass'}")
    say(f"{len(outcomes) - len(missed)} of {len(outcomes)} faults caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
