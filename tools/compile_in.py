"""Compiles lrfast and installs it in place, in an environment: ``compile_in.py .venv``.

pip hides for minutes what the compiler does, and shows all of it when that fails. Here each file is
a line, and a failure is the lines that say why; the rest is in build/compile.log. Needs no package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "compile.log"
# With --no-deps, as the environment is complete; ninja is looked up on PATH.
PIP = ["-m", "pip", "install", "--verbose", "--disable-pip-version-check", "--no-build-isolation"]
PIP += ["--no-deps", "--editable", str(ROOT)]
STEP = re.compile(r"^\s*(\[\d+/\d+\]).*?/csrc/(\S+\.(?:cpp|cu))\b")
REASON = re.compile(r"^\s*(lrfast: .*|\S+:\d+:\d+: (?:fatal )?error: .*|\S+: command not found)$")


def reasons(lines: list[str]) -> list[str]:
    """Return the lines that say why a build failed, or the last ones if none does."""
    found = [match[1] for line in lines if (match := REASON.match(line))]
    return list(dict.fromkeys(found)) or [line.rstrip() for line in lines[-20:]]


def main() -> int:
    """Compile and install; return what the command exits with."""
    folder = Path(sys.argv[1]).absolute() / "bin"
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    LOG.parent.mkdir(exist_ok=True)
    say("compiling lrfast, which takes some two minutes on two cores")
    lines = []
    with subprocess.Popen(
        [str(folder / "python"), *PIP],
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if step := STEP.match(line):
                say(f"  {step[1]} {step[2]}")
    LOG.write_text("".join(lines))
    if process.returncode != 0:
        say("\n".join([*reasons(lines), f"all that was said is in {LOG}"]))
    return process.returncode


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
