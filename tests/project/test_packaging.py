"""What is shipped: the files of a source distribution, its metadata, what a wheel says of its
torch, and how an engine that does not fit is reported."""

from __future__ import annotations

import email
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from email.message import Message
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lrfast
from lrfast._utils import extension as _extension
from tools import build_wheels

ROOT = Path(__file__).parents[2]


def under(folder: str, *suffixes: str) -> set[str]:
    """Sources as they lie here, without what was compiled."""
    paths = (ROOT / folder).rglob("*")
    return {path.relative_to(ROOT).as_posix() for path in paths if path.suffix in suffixes}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Name and contents of each file of the source distribution, built from a clean copy, which
    needs no torch."""
    folder = tmp_path_factory.mktemp("sdist")
    junk = shutil.ignore_patterns("__pycache__")
    for name in ("csrc", "lrfast", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=junk)
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in {".md", ".in", ".toml", ".py", ".cff", ""}:
            shutil.copy(path, folder)
    for junk_file in ("csrc/core/_C.so", "csrc/core/old.pyc", "lrfast/_C.so"):
        (folder / junk_file).touch()
    script = "import sys; sys.modules['torch'] = None; import runpy; "
    script += "runpy.run_path('setup.py', run_name='__main__')"
    command = [sys.executable, "-c", script, "-q", "sdist", "-d", str(folder / "dist")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((folder / "dist").glob("*.tar.gz"))) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        read = {member.name: archive.extractfile(member) for member in files}
        return {name.split("/", 1)[1]: file.read() for name, file in read.items() if file}


@pytest.fixture
def metadata(shipped: dict[str, bytes]) -> Message:
    return email.message_from_bytes(shipped["PKG-INFO"])


def test_a_source_distribution_holds_what_a_build_needs_and_no_more(
    shipped: dict[str, bytes],
) -> None:
    needed = under("csrc", ".h", ".cpp", ".cu", ".cuh") | under("lrfast", ".py", ".pyi", ".typed")
    needed |= {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in"}
    needed |= {"pyproject.toml", "setup.py", "lrfast/py.typed"}
    made = {name for name in shipped if name.startswith("lrfast.egg-info/")}
    assert shipped.keys() - made == needed | {"PKG-INFO", "setup.cfg"}


def test_what_an_index_shows(metadata: Message) -> None:
    assert metadata["Name"] == "lrfast" and metadata["Version"] == lrfast.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    needs = metadata.get_all("Requires-Dist")
    assert needs is not None and {"torch>=2.11", "numpy", "tqdm"} <= set(needs)
    classifiers = metadata.get_all("Classifier")
    assert classifiers is not None and "Typing :: Typed" in classifiers
    urls = metadata.get_all("Project-URL")
    assert urls is None or all("https://" in url for url in urls)


def test_the_version_stands_everywhere_alike() -> None:
    version = lrfast.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version)
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1].rstrip(",") == version


@pytest.mark.parametrize("device", ["cpu", "cu130"])
def test_a_wheel_names_the_torch_that_it_runs_with(device: str, tmp_path: Path) -> None:
    info = tmp_path / "made" / "lrfast-1.2.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "made" / "lrfast").mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: lrfast\nVersion: 1.2.0\nRequires-Dist: torch>=2.11\n"
        "Requires-Dist: numpy\nProvides-Extra: a\nRequires-Dist: torchvision; extra == 'a'\n"
    )
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: cp311-cp311-linux_x86_64\n")
    (info / "RECORD").touch()
    build_wheels.answer(sys.executable, "-m", "wheel", "pack", tmp_path / "made", "-d", tmp_path)
    plain = tmp_path / "lrfast-1.2.0-cp311-cp311-linux_x86_64.whl"
    named = build_wheels.name_torch(plain, "2.13.1+cpu", tmp_path / "named", device)
    assert named.name == f"lrfast-1.2.0+torch2.13.{device}-cp311-cp311-linux_x86_64.whl"
    shutil.unpack_archive(named, tmp_path / "read", "zip")
    info = tmp_path / "read" / f"lrfast-1.2.0+torch2.13.{device}.dist-info"
    text = (info / "METADATA").read_text()
    read = email.message_from_string(text)
    assert read["Version"] == f"1.2.0+torch2.13.{device}"
    needs = ["torch==2.13.*", "numpy", "torchvision; extra == 'a'"]
    assert read.get_all("Requires-Dist") == needs


def test_an_engine_that_misses_a_symbol_of_this_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "_C.so"
    source = "int gone_from_torch(); int (*used)() = gone_from_torch;"
    build = ["g++", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(build, input=source, text=True, check=True)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, library)
        assert spec is not None
        return importlib.util.module_from_spec(spec)

    monkeypatch.setattr(_extension.importlib, "import_module", load)
    with pytest.raises(ImportError) as raised:
        _extension.extension.__wrapped__()
    message = str(raised.value)
    assert "undefined symbol: gone_from_torch" in message
    assert f"build it against the installed torch {torch.__version__} with `pip install" in message
    assert "`lrfast doctor` says more" in message


@pytest.mark.one_row
@pytest.mark.parametrize("named", ["no-such-compiler -O1", None, ""])
def test_a_missing_compiler_is_said_in_one_line(named: str | None, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "LRFAST_CUDA": "0"}
    environment |= {} if named is None else {"CXX": named}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    wanted = repr("c++" if named is None else named)
    assert done.returncode == 1 and not any(tmp_path.iterdir())
    last = done.stderr.splitlines()[-1]
    assert last == f"lrfast: no C++ compiler, {wanted} is not on PATH: apt install g++"
    assert "Traceback" not in done.stderr


def test_a_wheel_has_kernels_for_every_gpu_that_the_toolkit_knows() -> None:
    """Binaries run on GPUs of the same major version that are no older."""
    built = [
        tuple(map(int, each.split(".")))
        for each in runpy.run_path(str(ROOT / "setup.py"))["ARCHITECTURES"]
    ]
    known = [(8, 0), (8, 6), (8, 7), (8, 8), (8, 9), (9, 0)]  # CUDA 13.0, from A100 on
    known += [(10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]
    for major, minor in known:
        assert any(have == major and least <= minor for have, least in built), (major, minor)
