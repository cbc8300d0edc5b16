"""What the tests of the integrations share: the real libraries, and a count of waits."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import schedules
from lrfast.integrations.scheduler import DeviceScheduler

EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"

# Import name -> what else of it the tests use; requirements/integrations.txt has them all.
LIBRARIES = {
    "transformers": ("trainer",),
    "lightning": ("pytorch",),
    "accelerate": (),
    "timm": ("optim", "scheduler"),
    "ignite": ("engine",),
    "fastai": ("learner", "callback.schedule"),
    "peft": ("optimizers",),
    "tensorboard": (),
    "pandas": (),
}
cross_entropy = nn.functional.cross_entropy
# What each module of lrfast.integrations imports.
NEEDED = {name: (name,) for name in ("accelerate", "fastai", "ignite", "lightning", "timm")} | {
    "huggingface": ("accelerate", "transformers"),
    "tables": ("pandas",),
}


def modules_of(library: str) -> list[str]:
    """Return the names of what a test uses of a library."""
    return [library, *(f"{library}.{part}" for part in LIBRARIES[library])]


def load(name: str) -> ModuleType:
    """Import a library as its users do, or skip; with LRFAST_REQUIRE_INTEGRATIONS=1 it must be."""
    declare_torchvision_operators()
    with warnings.catch_warnings():  # what they warn of while they are imported is their affair
        warnings.simplefilter("ignore")
        try:
            module, *_ = [importlib.import_module(each) for each in modules_of(name)]
        except ImportError as error:
            if os.environ.get("LRFAST_REQUIRE_INTEGRATIONS") == "1":
                raise
            pytest.skip(f"needs {name}: {error}", allow_module_level=True)
    return module


def quieten() -> None:
    """Let a test ignore what libraries warn of on their own account."""
    for message in (
        ".*does not have many workers",
        "The number of training batches",
        "Checkpoint directory .* exists",
        ".*LeafSpec.*is deprecated",
        ".*is_gradient_checkpointing. is deprecated",
    ):
        warnings.filterwarnings("ignore", message)


def declare_torchvision_operators() -> None:
    """Let torchvision be imported where its wheel is for a torch with CUDA, and torch has none.

    Its operators then cannot be loaded, and it raises where it describes two of them. We call none.
    """
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return
    if torch.version.cuda is not None or "+" in version or hasattr(torch.ops.torchvision, "nms"):
        return
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)


class Reads(TorchDispatchMode):
    """Counts the operators that read one value of the device on the host, and so wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


class NullOptimizer(torch.optim.SGD):
    """Steps without doing anything: what is counted with it is the trainer's own."""

    def step(self, closure: Any = None) -> Any:
        return None if closure is None else closure()


def furthest(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Return the largest difference of two models' parameters."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def make_loader(batch: int = 8) -> DataLoader[Any]:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def with_ours(model: nn.Module, updates: int = 16) -> Any:
    optimizer = lrfast.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    return optimizer, DeviceScheduler(optimizer, schedules.cosine(updates))


def with_theirs(model: nn.Module, updates: int = 16) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)


def run_example(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script of examples/integrations with these arguments."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    importlib.import_module(name).main(arguments)


def check_processes(text: str) -> None:
    """Check what the example of several processes says: one rate, and equal weights."""
    found = re.findall(r"process (\d) of 2, (\w+): rate (\S+), largest .* weight: (\S+)", text)
    kinds = sorted((kind, rank) for rank, kind, _, _ in found)
    assert kinds == [(kind, rank) for kind in ("replicated", "sharded") for rank in "01"], text
    assert len({(kind, rate) for _, kind, rate, _ in found}) == 2
    assert all(float(difference) < 1e-5 for *_, difference in found)


def check_example(text: str, after: int | None) -> None:
    """Check what an example says: equal weights, and how many waits are left; None: fewer."""
    difference = re.search(r"largest difference of a weight: (\S+)", text)
    waits = re.search(r"waits for the device: (\d+) with .*, (\d+) with lrfast", text)
    assert difference and waits and "a range test" in text
    assert float(difference[1]) < 1e-4
    assert int(waits[2]) == (int(waits[2]) if after is None else after) < int(waits[1])


def options_in_docs(section: str) -> dict[str, str]:
    """Return the table of options that a section of docs/integrations.md has for its sweeps."""
    page = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    text = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    table = text.split("| option | in a sweep |\n| --- | --- |\n")[1].split("\n\n")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in table.strip().splitlines()]
    return dict(rows)
