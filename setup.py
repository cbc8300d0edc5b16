"""Builds lrfast._C: the CPU drivers always, the CUDA kernels where torch and a toolkit allow it.

Environment variables:
    LRFAST_CUDA=auto|1|0    auto (the default): kernels if torch has CUDA and a toolkit is found;
                            1: kernels, or an error that says what is missing; 0: no kernels
    LRFAST_DEBUG=1          compile for a debugger
    LRFAST_WERROR=1         let warnings fail the build
    TORCH_CUDA_ARCH_LIST    GPU architectures, in torch's notation ("8.0;9.0+PTX")
    MAX_JOBS                parallel compile jobs
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
SUPPORTED = "torch 2.11 to 2.15"  # as tools/torch_matrix.py tests
GET_TORCH = "https://pytorch.org/get-started/locally"
# Contraction is off everywhere: only then can CPU and CUDA agree to the bit.
CXX_FLAGS = ["-std=c++20", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wextra"]
# tools/check_cuda.py reads these two, so that what it checks is what is built.
NVCC_FLAGS = ["-std=c++20", "-fmad=false", "-Xcompiler=-ffp-contract=off,-fvisibility=hidden,-Wall"]
OPTIMIZED = {"cxx": ["-O3", "-g0"], "nvcc": ["-O3"]}
DEBUG = {"cxx": ["-O0", "-g", "-UNDEBUG"], "nvcc": ["-O0", "-g", "-G"]}
# From A100 to consumer Blackwell; later GPUs compile the PTX of the last one when they load it.
ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0"]


def import_torch():
    """Returns torch: the one that is installed, even if pip's isolated build hides it."""
    if find_spec("torch") is None:
        sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if find_spec("torch") is None:
        raise RuntimeError(f"lrfast is compiled against torch: install torch first, {GET_TORCH}")
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        raise RuntimeError(f"lrfast runs with {SUPPORTED}, got torch {torch.__version__}.")
    return torch


def ask_nvcc(cuda_home, option):
    """Returns what the toolkit's compiler answers."""
    return subprocess.check_output([f"{cuda_home}/bin/nvcc", option], text=True)


def missing_for_cuda(torch, cuda_home):
    """Returns what a CUDA build lacks here and how to get it, or None if it lacks nothing."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA (install a build that has: {GET_TORCH})"
    where = f"CUDA {torch.version.cuda}: https://developer.nvidia.com/cuda-downloads"
    if cuda_home is None or not Path(cuda_home, "bin", "nvcc").exists():
        return f"no nvcc is on PATH or under CUDA_HOME (install {where}, and set CUDA_HOME)"
    if f"release {torch.version.cuda.split('.')[0]}." not in ask_nvcc(cuda_home, "--version"):
        return f"{cuda_home} is not of torch's major CUDA version (install {where}, set CUDA_HOME)"
    return None


def wants_cuda(torch, cuda_home):
    """Returns whether to compile the kernels."""
    choice = os.environ.get("LRFAST_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise ValueError(f"LRFAST_CUDA must be auto, 0 or 1, got {choice!r}.")
    missing = None if choice == "0" else missing_for_cuda(torch, cuda_home)
    if missing and choice == "1":
        raise RuntimeError(f"LRFAST_CUDA=1, but {missing}. LRFAST_CUDA=0 builds without kernels.")
    if missing and torch.version.cuda:
        warnings.warn(f"lrfast is built without its CUDA kernels: {missing}.", stacklevel=1)
    return choice != "0" and not missing


def main():
    """Describes the extension to setuptools."""
    from setuptools import setup

    if {"sdist", "egg_info"} & set(sys.argv):  # compile nothing, so they need no torch
        return setup()
    torch = import_torch()
    from torch.utils import cpp_extension

    cuda = wants_cuda(torch, cpp_extension.CUDA_HOME)
    if cuda and not torch.cuda.is_available():  # with a GPU at hand, torch builds for that one
        known = ask_nvcc(cpp_extension.CUDA_HOME, "--list-gpu-arch").split()
        usable = [arch for arch in ARCHITECTURES if f"compute_{arch.replace('.', '')}" in known]
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(usable) + "+PTX")

    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")]
    # The drivers' loops first, which take as long as all others: last, they would run alone.
    files.sort(key=lambda file: (file != "csrc/cpu/step.cpp", file))
    # Of the bindings those of the device, and all.cpp, which includes the others.
    units = {"csrc/bindings/all.cpp", f"csrc/bindings/{'cuda' if cuda else 'no_cuda'}.cpp"}
    suffixes = (".cpp", ".cu") if cuda else (".cpp",)
    sources = [file for file in files if file.endswith(suffixes)]
    sources = [file for file in sources if "/bindings/" not in file or file in units]
    extension = (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
        "lrfast._C",
        sources,
        depends=[file for file in files if file not in sources],
    )
    # System headers, so that warnings are about lrfast; and not for nvcc, whose files include none.
    mode = DEBUG if os.environ.get("LRFAST_DEBUG") == "1" else OPTIMIZED
    cxx = CXX_FLAGS + mode["cxx"] + [f"-isystem{path}" for path in extension.include_dirs]
    extension.include_dirs = [str(ROOT / "csrc")]
    cxx += ["-Werror"] if os.environ.get("LRFAST_WERROR") == "1" else []
    extension.extra_compile_args = {"cxx": cxx, "nvcc": NVCC_FLAGS + mode["nvcc"]}

    class BuildExtension(cpp_extension.BuildExtension):
        def run(self):
            command = cpp_extension.get_cxx_compiler()
            if not any(map(shutil.which, command.split()[:1])):
                sys.exit(f"lrfast: no C++ compiler, {command!r} is not on PATH: apt install g++")
            super().run()

        def finalize_options(self):
            super().finalize_options()
            # An editable install would put the objects into a throwaway folder and so compile all
            # of them each time. One folder per torch and device, as objects of two do not mix.
            tag = f"{sys.implementation.cache_tag}-torch{torch.__version__}"
            self.build_temp = f"build/{tag}-{'cuda' if cuda else 'cpu'}"

    return setup(ext_modules=[extension], cmdclass={"build_ext": BuildExtension})


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # of what is missing here, in one line and without a trace
        sys.exit(f"lrfast: {error}")
