"""Optional libraries that cannot be imported: one line says why, and the rest goes on.

The libraries are files that the tests write, in front of the real ones.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lrfast
from lrfast._utils import optional
from lrfast.tools import cli, demo, doctor, find

NMS = "operator torchvision::nms does not exist"
INTEGRATIONS = {
    "accelerate": ("accelerate",),
    "fastai": ("fastai",),
    "huggingface": ("transformers", "accelerate"),
    "ignite": ("ignite",),
    "lightning": ("lightning", "pytorch_lightning", "torchmetrics"),
    "tables": ("pandas",),
    "timm": ("timm",),
}
PAIR = (
    "torchvision 0.28.0 does not fit torch 2.13.0+cpu, torchvision 0.28.0+cpu does",
    "torchvision==0.28.0+cpu --index-url https://download.pytorch.org/whl/cpu`",
)
# What torchvision raises, and what the one line says: the cause, the remedy.
RAISED = {
    f"RuntimeError('{NMS}')": (*PAIR, f"RuntimeError: {NMS}"),
    "OSError('libcudart.so.13: cannot open')": (*PAIR, "OSError: libcudart.so.13"),
    "ImportError('undefined symbol: _ZN2at')": (*PAIR, "ImportError: undefined symbol"),
    "AttributeError('numpy\\n has no x')": (*PAIR, "AttributeError: numpy has no x"),
    "ModuleNotFoundError('no', name='gone.part')": (
        "torchvision 0.28.0 lacks gone.part",
        "run `pip install --upgrade gone`",
    ),
}
# As transformers does it: what it raises names what was asked for, and not why it fails.
LAZY = """
def __getattr__(name):
    try:
        import torchvision
    except RuntimeError as error:
        raise ModuleNotFoundError(f"Could not import module {name!r}") from error
"""

Write = Callable[..., None]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module, the version of a library, or both."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str | None = None, version: str | None = None) -> None:
        if text is not None:
            (tmp_path / f"{name}.py").write_text(text)
            for loaded in [each for each in sys.modules if each.split(".")[0] == name]:
                monkeypatch.delitem(sys.modules, loaded)
        if version is not None:
            info = tmp_path / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()

    return write


@pytest.fixture
def broken_torchvision(library: Write) -> None:
    library("torch", version="2.13.0+cpu")
    library("torchvision", f"raise RuntimeError('{NMS}')", "0.28.0")


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("module", INTEGRATIONS)
def test_an_integration_names_what_its_library_stumbles_over(
    module: str, raised: str, library: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    library("torch", version="2.13.0+cpu")
    library("torchvision", f"raise {raised}", "0.28.0")
    for name in INTEGRATIONS[module]:
        library(name, "import torchvision")
    for name in [each for each in sys.modules if each.startswith("lrfast.integrations.")]:
        monkeypatch.delitem(sys.modules, name)
    for _ in range(2):  # the second attempt says no less
        try:
            raise KeyError("handled by the caller: no cause")
        except KeyError:
            with pytest.raises(ImportError) as failed:
                importlib.import_module(f"lrfast.integrations.{module}")
        text = str(failed.value)
        assert text.startswith("lrfast.integrations.") and "\n" not in text
        assert all(part in text for part in RAISED[raised]), text


@pytest.mark.parametrize(
    ("installed", "package", "version", "wanted"),
    [
        ("2.13.0+cpu", "torchvision", "0.28.0", "torchvision==0.28.0+cpu --index-url"),
        ("2.13.1+cu130", "torchvision", "0.26.0+cpu", "torchvision==0.28.1+cu130 --index-url"),
        ("2.11.0", "torchvision", "0.28.0", "torchvision==0.26.0`"),
        ("2.13.0+cpu", "torchaudio", "2.11.1", "torchaudio==2.11.1+cpu --index-url"),
        ("2.13.0+cpu", "scipy", "1.2", "--force-reinstall --no-deps scipy`"),
    ],
)
def test_the_remedy_is_a_build_for_the_installed_torch(
    installed: str, package: str, version: str, wanted: str, library: Write
) -> None:
    library("torch", version=installed)
    library(package, "raise OSError('libc10_cuda.so: cannot open')", version)
    library("timm", f"import {package}")
    with pytest.raises(ImportError) as failed, optional.importing("this", "timm", extra="timm"):
        importlib.import_module("timm")
    assert wanted in str(failed.value)


@pytest.mark.usefixtures("broken_torchvision")
def test_a_lazy_library_hides_no_cause(library: Write) -> None:
    library("transformers", LAZY)
    with pytest.raises(ImportError) as failed, optional.importing("this", "transformers", extra=""):
        from transformers import Trainer  # noqa: F401
    assert str(failed.value).startswith("this: torchvision 0.28.0 does not fit torch 2.13.0+cpu")


def test_plots_the_digits_and_the_command_line_say_so_too(
    library: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "mlxtend", "transformers", "rich"):
        library(name, "raise RuntimeError('numpy was another one')", "1.2.3")
    monkeypatch.setattr(sys, "argv", ["lrfast", "demo"])
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    calls: dict[str, Callable[[], object]] = {
        "matplotlib": lambda: lrfast.schedules.cosine(10).plot(),
        "mlxtend": demo.load_digits,
        "transformers": lambda: find.find_for_checkpoint("gpt2", texts),
        "rich": cli.main,
    }
    for name, call in calls.items():
        with pytest.raises((ImportError, SystemExit)) as failed:
            call()
        wanted = f"{name} 1.2.3 cannot be imported (RuntimeError: numpy was another one)"
        assert wanted in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.usefixtures("broken_torchvision")
def test_doctor_notes_a_library_that_cannot_be_imported(library: Write) -> None:
    library("matplotlib", "raise ValueError('no backend')", "1.2.3")
    findings = {found.name: found for found in doctor.diagnose().findings}
    assert doctor.diagnose().is_healthy
    assert findings["torchvision"].status == findings["matplotlib"].status == "note"
    assert PAIR[0] in findings["torchvision"].found and NMS in findings["torchvision"].found
    assert PAIR[1] in str(findings["torchvision"].advice)
    assert "torchvision" not in findings["packages"].found
    assert "matplotlib" not in findings["packages"].found


@pytest.mark.usefixtures("broken_torchvision")
def test_what_needs_no_torchvision_goes_on(tmp_path: Path) -> None:
    script = """
import sys
import torch
import lrfast
from lrfast.integrations import scheduler, trackers
from lrfast.tools import bench, doctor, find

model = torch.nn.Linear(3, 2)
optimizer = lrfast.SGD(model.parameters(), lr=0.1, momentum=0.9)
batches = [(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))]
result = lrfast.lr_find(model, optimizer, batches, torch.nn.functional.cross_entropy, num_iter=9)
assert "torchvision" not in sys.modules
"""
    path = {"PYTHONPATH": f"{tmp_path}:{Path(lrfast.__file__).parents[1]}"}
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=os.environ | path, check=True)
