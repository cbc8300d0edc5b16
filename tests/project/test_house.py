"""What holds for the package as a whole: what importing it loads, and what works without _C."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lrfast
from lrfast._utils import extension as _extension

ROOT = Path(__file__).parents[2]
PACKAGE = Path(lrfast.__file__).parent


def run(script: str) -> None:
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_lrfast_loads_no_optional_dependency_and_no_engine() -> None:
    run("""
import sys
import torch
before = set(sys.modules)
import lrfast
for name in lrfast.__all__:
    getattr(lrfast, name)
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not new & {"matplotlib", "rich", "typer", "mlxtend", "sklearn", "pandas"}, new
assert not new & {"transformers", "lightning", "accelerate", "timm", "ignite", "fastai"}, new
assert not [name for name in sys.modules if name.startswith("lrfast.integrations")]
assert not [name for name in sys.modules if name.endswith("_C") and name.startswith("lrfast")]
assert "lrfast.demo" not in sys.modules and "lrfast.cli" not in sys.modules
""")


def test_groups_schedules_and_suggestions_without_the_engine() -> None:
    run("""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "lrfast._C":
            raise ImportError("no such engine here")

sys.meta_path.insert(0, Blocker())
import numpy as np
import torch
import lrfast
from lrfast import schedules as S

model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
assert len(lrfast.layer_groups(model)) == 2
optimizer = torch.optim.SGD(lrfast.discriminative(model, slice(1e-4, 1e-2)))
lrfast.freeze(optimizer)
lrfast.unfreeze(optimizer)
made = [
    S.one_cycle(100), S.constant(0.5), S.linear(0, 1, 5), S.cosine(7, 0.1), S.exponential(9, 0.9),
    S.sweep(1e-7, 10, 100), S.linear(0, 1, 5).then(S.cosine(5)), S.cosine(5) * S.one_cycle(5),
]
for schedule in made:
    assert schedule.describe().startswith(schedule.name)
    assert S.Schedule.from_dict(schedule.to_dict()) == schedule
lrs = np.geomspace(1e-7, 1.0, 71)
losses = 1 / (1 + lrs / 1e-2) + 4 * lrs**2
for rule in lrfast.suggest.names():
    assert lrfast.suggest.get(rule)(lrs, losses).lr > 0
assert "lrfast._C" not in sys.modules

ours = lrfast.AdamW(model.parameters(), lr=0.1)
model(torch.ones(1, 2)).sum().backward()
needs = [
    lambda: made[0].at(3), lambda: made[0].values([1]), lambda: lrfast.LossCurve(3), ours.step,
    lambda: lrfast.lr_find(model, ours, [(torch.ones(1, 2), torch.ones(1, 1))],
                           torch.nn.functional.mse_loss, progress=False),
]
for call in needs:
    try:
        call()
    except ImportError as error:
        text = str(error)
        assert "compiled engine cannot be loaded (no such engine here)" in text, text
        assert "pip install --no-build-isolation" in text and torch.__version__ in text, text
    else:
        raise AssertionError("no error")
""")


@pytest.mark.parametrize("built", ["1.13.1", "2.1.0+cu118", "3.0.0"])
def test_an_engine_built_for_another_torch(built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(torch_version=built)
    monkeypatch.setattr(_extension.importlib, "import_module", lambda name: engine)
    message = (
        f"lrfast was built against torch {re.escape(built)} and runs with torch "
        f"{re.escape(torch.__version__)}: build it again with `pip install"
    )
    with pytest.raises(ImportError, match=message):
        _extension.extension.__wrapped__()


def test_an_engine_built_for_a_sibling_of_this_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, _ = torch.__version__.split(".", 2)
    for built in (torch.__version__, f"{major}.{minor}.99", f"{major}.{minor}.0+cu999"):
        engine = SimpleNamespace(torch_version=built)
        monkeypatch.setattr(_extension.importlib, "import_module", lambda name, e=engine: e)
        assert _extension.extension.__wrapped__() is engine


def test_public_names() -> None:
    assert sorted(set(lrfast.__all__)) == sorted(lrfast.__all__)
    for name in lrfast.__all__:
        assert hasattr(lrfast, name), name
    documented = {
        *("SGD", "AdamW", "LossCurve", "FineTuner", "lr_find", "schedules", "suggest"),
        *("layer_groups", "discriminative", "freeze", "freeze_to", "unfreeze"),
    }
    assert documented <= set(lrfast.__all__)
    for name in set(lrfast.__all__) - {"schedules", "suggest"}:
        assert getattr(lrfast, name).__doc__, name


def test_version_and_type_information() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{lrfast.__version__}"' in project
    assert (PACKAGE / "py.typed").is_file() and (PACKAGE / "_C.pyi").is_file()
    assert re.search(r'^lrfast = \[.*"py\.typed".*"\*\.pyi"', project, re.MULTILINE)


# Modules may import, when they are imported, only what stands on a level below theirs. A package
# stands on one level; its own modules may not import each other in a circle.
LEVELS = (
    {"_plain", "_files"},
    {
        "_extension",
        "_compile",
        "_shards",
        "groups",
        "_copies",
        "suggest",
        "_batches",
        "telemetry",
        "_traffic",
    },
    {"_mirror", "_progress", "_rich"},
    {"snapshot", "schedules", "curve", "_options", "_states"},
    {"_scheduled"},
    {"loss_schedules"},
    {"_loading"},
    {"_fused"},
    {"optim", "sharded"},
    {"bench", "doctor"},
    {"_drive", "_capture"},
    {"history", "plot"},
    {"range_test"},
    {"finetune"},
    {"integrations"},
    {"demo", "cli"},
)

# Imported nowhere else at the head of a module: an integration is imported by who uses it.
LIBRARIES = {
    *("accelerate", "fastai", "ignite", "lightning", "pytorch_lightning", "pandas", "timm"),
    *("tensorboard", "transformers", "wandb"),
}


def imported(path: Path) -> set[str]:
    """Modules that importing the module at path imports, as far as its own text says."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            folder = PACKAGE.parent.joinpath(*module.split("."))
            if module.split(".")[0] == "lrfast" and folder.is_dir():
                found |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    names = imported(path)
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    modules = {name.split(".")[0] for name in names}
    if inside != ("demo",):
        assert not modules & {"matplotlib", "rich", "typer", "mlxtend"}
    if inside[0] != "integrations":
        assert not modules & LIBRARIES
    if inside == ("__init__",):
        return
    below: set[str] = set()
    for level in LEVELS:
        if inside[0] in level:
            break
        below |= level
    else:
        pytest.fail(f"{path.name} stands in no level")
    siblings = {"schedules": {"_schedule"}}.get(inside[0], set())
    if len(inside) > 1:
        siblings = {inside[0]}
    ours = {name.split(".")[1] for name in names if name.startswith("lrfast.")}
    assert ours <= below | siblings


@pytest.mark.parametrize(
    "package", ["_capture", "bench", "finetune", "loss_schedules", "range_test", "suggest"]
)
def test_the_modules_of_a_package_import_each_other_one_way(package: str) -> None:
    own = f"lrfast.{package}."
    paths = (PACKAGE / package).glob("*.py")
    imports = {
        path.stem: {name.split(".")[2] for name in imported(path) if name.startswith(own)}
        for path in paths
    }
    assert imports and all(imports["__init__"])
    imports = {stem: {n for n in names if n in imports} for stem, names in imports.items()}
    while imports:
        free = {stem for stem, names in imports.items() if not names & imports.keys()}
        assert free, f"{sorted(imports)} import each other in a circle"
        imports = {stem: names for stem, names in imports.items() if stem not in free}
