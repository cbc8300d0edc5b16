"""`lrfast doctor`: each condition that it tells apart, faked, and what it says to do."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lrfast.doctor import Finding
from lrfast.tools import cli, doctor

ROOT = Path(__file__).parents[2]
ENGINE = SimpleNamespace(
    __file__="/here/_C.so",
    torch_version=torch.__version__,
    has_cuda=True,
    cuda_toolkit=13000,
    cuda_architectures=[80, 90],
    compiler="g++ 12.2.0",
    instruction_set="x86-64-v3",
    has_dict_versions=True,
)


def finding(name: str) -> Finding:
    found = [each for each in doctor.diagnose().findings if each.name == name]
    assert len(found) == 1, [each.name for each in doctor.diagnose().findings]
    return found[0]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the engine, and gives the machine GPUs of the capabilities given."""

    def replace(capabilities: list[tuple[int, int]] | None = None, **changes: Any) -> None:
        engine = SimpleNamespace(**vars(ENGINE) | changes)
        monkeypatch.setattr(doctor, "extension", lambda: engine)
        monkeypatch.setattr(doctor, "_difference_to_torch", lambda device: 0.0)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        if capabilities is None:
            return
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: True)
        monkeypatch.setattr(cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(cuda, "get_device_name", lambda index: f"Chip {index}")

    return replace


def test_here_all_is_well() -> None:
    diagnosis = doctor.diagnose()
    assert diagnosis.is_healthy, diagnosis.table()
    assert finding("step on cpu").status == "ok"
    assert re.match(r"against torch 2\.\d+\.\d+ by \S+ \d+\.", finding("build").found)
    assert finding("processor").found.startswith("loops for ")


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> Any:
        raise ImportError("the long text") from ModuleNotFoundError("No module named 'lrfast._C'")

    monkeypatch.setattr(doctor, "extension", fail)
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "tools" / "doctor.py"))
    assert not doctor.diagnose().is_healthy
    found = finding("engine")
    assert found.status == "broken" and "No module named 'lrfast._C'; no _C file" in found.found
    assert "pip install --no-build-isolation" in str(found.advice)
    assert not [each for each in doctor.diagnose().findings if each.name.startswith("step")]
    (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    assert "none for Python" in finding("engine").found
    (tmp_path / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}").touch()
    assert "none for Python" not in finding("engine").found
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    assert finding("compiler").status == "broken"


def test_an_engine_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise ImportError("lrfast was built against torch 2.1.0 and runs with torch 2.13.0")

    monkeypatch.setattr(doctor, "extension", fail)
    assert finding("engine").found.startswith("lrfast was built against torch 2.1.0")


@pytest.mark.parametrize(
    ("capability", "status", "message"),
    [
        ((8, 0), "ok", "Chip 0, sm_80"),
        ((8, 9), "ok", "sm_89"),  # runs the code of 8.0
        ((9, 0), "ok", "sm_90"),
        ((12, 0), "note", "newer than sm_80, sm_90.*PTX"),
        ((7, 5), "broken", "but kernels are built for sm_80, sm_90"),
    ],
)
def test_architectures(
    capability: tuple[int, int], status: str, message: str, fake: Callable[..., None]
) -> None:
    fake([capability])
    found = finding("GPU 0")
    assert found.status == status and re.search(message, found.found), found
    wanted = f'TORCH_CUDA_ARCH_LIST="{capability[0]}.{capability[1]}" LRFAST_CUDA=1 pip'
    assert (wanted in str(found.advice)) == (status != "ok")
    assert finding("step on cuda:0").status == "ok"


def test_code_for_a_later_chip_of_the_same_major_version_does_not_run(
    fake: Callable[..., None],
) -> None:
    fake([(8, 0)], cuda_architectures=[86, 90])
    assert finding("GPU 0").status == "broken"


def test_torch_with_cuda_and_an_engine_without(fake: Callable[..., None]) -> None:
    fake([(9, 0)], has_cuda=False)
    found = finding("GPU 0")
    assert found.status == "broken" and "built without CUDA" in found.found
    assert "LRFAST_CUDA=1 pip" in str(found.advice)
    assert "without CUDA" in finding("build").found


def test_two_gpus_and_the_build(fake: Callable[..., None]) -> None:
    fake([(9, 0), (8, 6)])
    assert [finding(f"GPU {index}").status for index in (0, 1)] == ["ok", "ok"]
    assert finding("build").found.endswith("CUDA 13.0, for sm_80, sm_90")


def test_a_gpu_that_torch_does_not_see(
    fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_answer", lambda command: "580.65.06\n580.65.06")
    assert finding("GPU").status == "note" and finding("GPU").found.endswith("driver: 580.65.06")
    monkeypatch.setattr(doctor, "_answer", lambda command: "")
    assert finding("GPU").found.endswith("driver: none found")


def test_a_step_that_fails_or_is_wrong(
    fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake([(9, 0)])

    def fail(device: str) -> float:
        raise RuntimeError(f"no kernel image for {device}")

    monkeypatch.setattr(doctor, "_difference_to_torch", fail)
    assert finding("step on cuda:0").found == "RuntimeError: no kernel image for cuda:0"
    for wrong in (0.1, float("nan")):
        monkeypatch.setattr(doctor, "_difference_to_torch", lambda device, w=wrong: w)
        assert finding("step on cpu").status == "broken"
    assert not doctor.diagnose().is_healthy


def test_what_a_step_is_compared_by(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._difference_to_torch("cpu") < 1e-6
    monkeypatch.setattr(doctor, "AdamW", torch.optim.SGD)
    assert doctor._difference_to_torch("cpu") > 1e-3


def test_toolkits(fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    fake()
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    assert "no nvcc" in finding("CUDA toolkit").found
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: f"/bin/{name}")
    text = "Cuda compilation tools, release {0}, V{0}.88\nBuild cuda_{0}.r{0}/compiler"
    for version, status in (("13.0", "ok"), ("12.8", "note")):
        monkeypatch.setattr(doctor, "_answer", lambda command, v=version: text.format(v))
        found = finding("CUDA toolkit")
        assert found.status == status and found.found == f"{version}.88 in /bin/nvcc"


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = {"matplotlib", "rich", "typer", "tqdm"}
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name in hidden else real(name)
    )
    assert finding("for plot").advice == "run `pip install 'lrfast[plot]'`"
    assert finding("for cli").found.startswith("rich, typer not installed")
    assert finding("tqdm").status == "broken"


def test_a_new_python_and_a_processor_without_avx2(
    fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(instruction_set="default", has_dict_versions=False)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    assert finding("processor").status == "note"
    assert finding("Python").status == "note"


@pytest.mark.parametrize(
    ("version", "status", "advice"),
    [
        ("2.10.1", "broken", "install torch 2.11 to 2.15"),
        ("2.11.0", "ok", None),
        ("2.15.1+cu132", "ok", None),
        ("2.16.0", "note", "if something fails, install torch 2.11 to 2.15 and build lrfast again"),
        ("3.0.0", "note", "if something fails, install torch 2.11 to 2.15 and build lrfast again"),
    ],
)
def test_versions_of_torch(
    version: str, status: str, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    found = finding("torch")
    assert (found.status, found.advice) == (status, advice) and version in found.found


def test_the_command_without_an_engine() -> None:
    """What is left then: the message, an exit status of 1, nothing else."""
    script = """
import sys
sys.modules["lrfast._C"] = None
sys.argv = ["lrfast", "doctor"]
from lrfast.cli import main
main()
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == ""
    assert "import of lrfast._C halted" in re.sub(r"\s+", " ", done.stdout)


@pytest.mark.parametrize("missing", [(), ("rich",), ("typer", "rich")])
@pytest.mark.parametrize("level", ["x86-64-v3", "broken"])
def test_the_command(
    missing: tuple[str, ...],
    level: str,
    fake: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With and without what the other commands need."""
    fake()
    if level == "broken":
        monkeypatch.setattr(doctor, "_difference_to_torch", lambda device: 1.0)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["lrfast", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == (level == "broken")
    text = capsys.readouterr().out
    assert "step on cpu" in text and ("1.0e+00 off torch's" in text) == (level == "broken")
