"""Compiles lrfast and installs it in place: ``compile_in.py .venv [requirements.txt]``.

pip hides for minutes what is done, and shows all of it when that fails. Here each package that is
downloaded and each file that is compiled is a line, and so is a longer silence; a failure is the
lines that say why. The rest is in build/compile.log. Needs no package; requirements come first, and
name all that is needed, as nothing else is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "compile.log"
SILENCE_S = 10
# With --no-deps, as the environment is complete; ninja is looked up on PATH.
PIP = ["-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
# torch alone has thousands of modules of which few are imported: those are compiled then.
REQUIRE = [*PIP, "--progress-bar", "off", "--no-compile", "--requirement"]
BUILD = [*PIP, "--verbose", "--no-build-isolation", "--editable", str(ROOT)]
# What is worth a line of what pip and ninja say.
STEP = re.compile(
    r"^\s*(?:(?P<count>\[\d+/\d+\]).*?/csrc/(?P<file>\S+\.(?:cpp|cu))\b"
    r"|(?P<pip>Downloading \S+ \([\d.]+ [kMG]B\)|Using cached \S+ \([\d.]+ [kMG]B\)"
    r"|Installing collected packages))"
)
REASON = re.compile(
    r"^\s*(lrfast: .*|ERROR: .*|\S+:\d+:\d+: (?:fatal )?error: .*|\S+: command not found)$"
)


def reasons(lines: list[str]) -> list[str]:
    """Return the lines that say why a command failed, or the last ones if none does."""
    found = [match[1] for line in lines if (match := REASON.match(line))]
    compiler = [line for line in found if not line.startswith("ERROR: ")]
    return list(dict.fromkeys(compiler or found)) or [line.rstrip() for line in lines[-20:]]


def main() -> int:
    """Install and compile; return what the first command that fails exits with."""
    folder = Path(sys.argv[1]).absolute() / "bin"
    steps = [("compiling lrfast, which takes a minute on two cores", BUILD)]
    for requirements in sys.argv[2:]:
        steps.insert(0, (f"installing {requirements}", [*REQUIRE, requirements]))
    LOG.parent.mkdir(exist_ok=True)
    lines: list[str] = []
    for title, arguments in steps:
        say(title)
        if status := run([str(folder / "python"), *arguments], folder, lines):
            say("\n".join([*reasons(lines), f"all that was said is in {LOG}"]))
            return status
    return 0


def run(command: list[str], folder: Path, lines: list[str]) -> int:
    """Run a command, say what it comes to, keep its output; return what it exits with."""
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    with (
        subprocess.Popen(
            command,
            env=os.environ | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
        signs_of_life(),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if step := STEP.match(line):
                say(f"  {step['pip'] or step['count'] + ' ' + step['file']}")
    LOG.write_text("".join(lines))
    return process.returncode


@contextmanager
def signs_of_life() -> Iterator[None]:
    """Say every few seconds how long it has taken."""
    ended, start = threading.Event(), time.monotonic()

    def tick() -> None:
        while not ended.wait(SILENCE_S):
            say(f"  {time.monotonic() - start:.0f} s")

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
    finally:
        ended.set()
        ticking.join()


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
