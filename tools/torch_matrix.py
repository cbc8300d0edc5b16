"""Builds and tests lrfast against several versions of torch: `make torch-matrix`.

    make torch-matrix VERSIONS="2.11.0 2.15.0"

Each version gets a fresh environment with the other packages that CI pins, and a copy of the tree.
There lrfast is compiled, warnings are errors, and the default tests run, but for those that torch
does not reach. Integrations that need torchvision, which is left out, skip theirs. A table closes
the run, which exits with 1 if a version did not pass. Logs, and the table as JSON, are kept in
--folder; environments are removed, as each takes up to 7 GB. --quick runs the first case of each
test only.

LRFAST_CUDA=1 compiles the kernels too, where the toolkit fits the torch; without it none are.
Which builds of torch there are is pip's to say: PIP_EXTRA_INDEX_URL=
https://download.pytorch.org/whl/cpu and --versions 2.15.0+cpu take those without CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
# What says the same under every torch: programs without torch, texts and the project's own rules.
# The simulator is written against the internals of the pinned one.
UNAFFECTED = (
    "tests/cpp",
    "tests/sim",
    *(
        f"tests/project/test_{name}.py"
        for name in (
            "benchmarks",
            "check_sources",
            "claims",
            "docs_pictures",
            "gpu_check",
            "house",
            "packaging",
            "performance_page",
            "seeded_faults",
            "site",
            "torch_matrix",
        )
    ),
)
FACTS = "import torch; print(torch.__version__, torch.version.cuda or 'none')"
HEADER = ("torch", "its CUDA", "kernels", "outcome", "passed", "failed", "skipped", "warnings")


@dataclass
class Result:
    """One version's row of the table."""

    torch: str
    cuda: str = "?"
    kernels: str = "no"
    outcome: str = "passed"
    counts: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """The texts of the row, in the order of HEADER."""
        counts = (str(self.counts.get(name, 0)) for name in HEADER[4:])
        return self.torch, self.cuda, self.kernels, self.outcome, *counts


def pytest_collection_finish(session: Any) -> None:
    """Keeps the first case of each test: this file is a plugin of its quick runs."""
    first: dict[str, Any] = {}
    for item in session.items:
        first.setdefault(item.nodeid.partition("[")[0], item)
    session.items[:] = first.values()


class StepError(Exception):
    """A step that did not pass; its text is the outcome."""


def say(text: str) -> None:
    """Prints a line at once, in order with what subprocesses print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def without(package: str, pins: str) -> str:
    """Returns the pinned packages without one."""
    changed, count = re.subn(rf"(?m)^{package}==.*\n", "", pins)
    if count != 1:
        raise ValueError(f"requirements must pin {package} once, got {count} lines")
    return changed


def copy_tree(target: Path) -> None:
    """Copies what git tracks or would, so that builds do not meet in one folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, output.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def counts_in(text: str) -> dict[str, int]:
    """Returns pytest's counts from its closing line; errors count as failures.

    Libraries may print more as Python ends.
    """
    lines = re.findall(r"(?m)^.*\b(?:passed|failed|skipped|error|errors)\b.* in [\d.]+s.*$", text)
    counts: dict[str, int] = {}
    pattern = r"(\d+) (passed|failed|skipped|warning|error)s?\b"
    for number, what in re.findall(pattern, lines[-1] if lines else ""):
        name = {"error": "failed", "warning": "warnings"}.get(what, what)
        counts[name] = counts.get(name, 0) + int(number)
    return counts


class Version:
    """The environment, the tree and the logs of one version of torch."""

    def __init__(self, torch: str, folder: Path) -> None:
        self.torch = torch
        self.python = folder / torch / "env" / "bin" / "python"
        self.tree = folder / torch / "tree"
        self._folder = folder / torch
        self._logs = folder

    def run(self, step: str, command: Sequence[str | Path], **env: str) -> str:
        """Runs a command to its log and returns what it printed, or raises StepError."""
        say(f"== torch {self.torch}: {step}")
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **env}
        log = self._logs / f"{self.torch}-{step.replace(' ', '-')}.log"
        start = time.monotonic()
        with log.open("w") as sink:
            done = subprocess.run(
                list(map(str, command)),
                cwd=self.tree if self.tree.exists() else ROOT,
                env={**os.environ, **own},
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
            )
        text = log.read_text(errors="replace")
        say(f"   {time.monotonic() - start:.0f} s; {log}")
        if done.returncode != 0:
            say("\n".join(text.splitlines()[-15:]))
            raise StepError(f"{step} failed", text)
        return text

    def pip(self, step: str, *arguments: str | Path, **env: str) -> None:
        """Installs into the environment. What is imported is compiled then, which is not all."""
        pip = ("-m", "pip", "install", "--no-compile", "--disable-pip-version-check")
        self.run(step, [self.python, *pip, *arguments], **env)

    def install(self) -> None:
        """Makes the environment and the tree."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self.run("environment", [sys.executable, "-m", "venv", self.python.parents[1]])
        # With all that it asks for; the pinned packages then come as they are, since some versions
        # of torch ask for others of them than the pinned torch does.
        self.pip("torch", f"torch=={self.torch}")
        names = ("dev", "examples", "integrations")
        texts = [(ROOT / "requirements" / f"{name}.txt").read_text() for name in names]
        # Each torchvision runs with one torch, and for the newest there may be none yet.
        pinned = [without("torch", texts[0]), texts[1], without("torchvision", texts[2])]
        path = self._folder / "requirements.txt"
        path.write_text("\n".join(pinned))
        self.pip("packages", "--no-deps", "-r", path)
        copy_tree(self.tree)

    def build(self, cuda: str) -> None:
        """Compiles and installs lrfast in place."""
        options = ("-v", "--no-build-isolation", "--no-deps", "--editable", ".")
        self.pip("build", *options, LRFAST_CUDA=cuda, LRFAST_WERROR="1")

    def test(self, arguments: Sequence[str], quick: bool) -> str:
        """Runs the tests and returns what pytest printed."""
        ignored = [f"--ignore={path}" for path in UNAFFECTED]
        options = ["-q", "-m", "not full and not gpu", *ignored, *arguments]
        options += ["-p", "torch_matrix"] if quick else []
        # No GPU is used; a torch with CUDA would look for one at each step, which takes most of it.
        env = {"PYTHONPATH": str(self.tree / "tools"), "CUDA_VISIBLE_DEVICES": ""}
        return self.run("tests", [self.python, "-m", "pytest", *options], **env)

    def remove(self) -> None:
        """Removes the environment and the tree; the logs stay."""
        shutil.rmtree(self._folder, ignore_errors=True)


def check(torch: str, given: argparse.Namespace) -> Result:
    """Returns one version's row."""
    folder, cuda = given.folder.resolve(), os.environ.get("LRFAST_CUDA", "0")
    version, result = Version(torch, folder), Result(torch, kernels="yes" if cuda == "1" else "no")
    text = ""
    try:
        version.install()
        result.torch, result.cuda = version.run("facts", [version.python, "-c", FACTS]).split()[-2:]
        version.build(cuda)
        text = version.test(given.tests, given.quick)
    except StepError as error:
        result.outcome, text = error.args
    finally:
        if not given.keep:
            version.remove()
    result.counts = counts_in(text)
    result.failed = re.findall(r"(?m)^(?:FAILED|ERROR) (\S+)", text)
    if result.outcome == "passed" and not result.counts.get("passed"):
        result.outcome = "no test ran"
    return result


def table(results: Sequence[Result]) -> str:
    """Returns the rows under their header, in columns."""
    rows = [HEADER, *(result.cells() for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks each version and returns 1 if one did not pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help="exact versions of torch")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "torch-matrix")
    parser.add_argument("--keep", action="store_true", help="the environments")
    parser.add_argument("--quick", action="store_true", help="the first case of each test only")
    parser.add_argument("tests", nargs="*", help="for pytest, after --")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for torch in given.versions:
        results.append(check(torch, given))
        rows = [asdict(result) for result in results]
        (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    say("\n" + table(results))
    for result in results:
        for name in result.failed:
            say(f"torch {result.torch}: {name}")
    return int(any(result.outcome != "passed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
