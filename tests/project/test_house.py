"""What holds for the package as a whole: what importing it loads, and what works without _C."""

from __future__ import annotations

import ast
import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lrfast
from lrfast._utils import extension as _extension
from lrfast.range_test import Candidate, Race, Sweep

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
# More than a second, for one isinstance.
assert not new & {"sympy"} and "torch.distributed.fsdp" not in sys.modules
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


def test_importing_the_module_of_bench_leaves_the_function() -> None:
    run("""
import importlib
import lrfast
importlib.import_module("lrfast.bench")
assert callable(lrfast.bench)
""")


@pytest.mark.parametrize("name", ["groups", "schedules", "suggest"])
def test_packages_show_their_public_names_only(name: str) -> None:
    package = importlib.import_module(f"lrfast.{name}")
    assert sorted(package.__all__) == sorted(n for n in dir(package) if not n.startswith("_"))


def test_pickles_name_no_private_module() -> None:
    layers = lrfast.layer_groups(torch.nn.Linear(2, 1))
    suggestion = lrfast.suggest.get("steep")([0.1, 0.2], [2.0, 1.0])
    race = Race((Candidate(0.1, "auto", (1.0,), True),), 5, "training", 1.0)
    sweep = Sweep("exp", 9, ((1e-6, 1.0),), 0)
    entry = lrfast.RetestEntry(1, "every", "kept", "near", (0.1,), (0.1,), 1.0, 0.5)
    schedule, timetable = lrfast.schedules.one_cycle(9), lrfast.Timetable({0: -1})
    for value in (schedule, timetable, suggestion, layers, race, sweep, entry):
        data = pickle.dumps(value)
        assert not re.search(rb"lrfast\.\w+\._", data), data
        assert repr(pickle.loads(data)) == repr(value)


@pytest.mark.parametrize(
    ("home", "names"),
    [
        ("lrfast.bench", ["BenchResult"]),
        ("lrfast.doctor", ["Diagnosis", "Finding"]),
        ("lrfast.loss_schedules", ["Greedy", "LossSchedule", "Plateau"]),
        ("lrfast.optim", ["Options", "Planned"]),
        ("lrfast.sharded", ["ShardedState"]),
        ("lrfast.telemetry", ["Telemetry"]),
    ],
)
def test_classes_name_the_module_that_exports_them(home: str, names: list[str]) -> None:
    module = importlib.import_module(home)
    assert {name: getattr(module, name).__module__ for name in names} == dict.fromkeys(names, home)


def test_version_and_type_information() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{lrfast.__version__}"' in project
    assert (PACKAGE / "py.typed").is_file() and (PACKAGE / "_C.pyi").is_file()
    assert re.search(r'^lrfast = \[.*"py\.typed".*"\*\.pyi"', project, re.MULTILINE)


# Each package may import from the rows above its own, and from no other of its row. What counts is
# every import in the text: at the head of a module, within a function, and for annotations alone.
FLOORS = (
    {"_utils"},
    {"groups", "suggest"},
    {"schedules", "curve"},
    {"optim"},
    {"training"},
    {"range_test"},
    {"finetune"},
    {"integrations", "tools"},
)
# Public modules that only re-export, and the former names of modules: they import from every floor,
# and only `lrfast` itself imports them.
FACES = {
    *("__init__", "_former", "bench", "cli", "demo", "doctor", "history", "loss_schedules", "plot"),
    *("sharded", "snapshot", "telemetry"),
}

# Imported nowhere else at the head of a module: an integration is imported by who uses it.
LIBRARIES = {
    *("accelerate", "fastai", "ignite", "lightning", "pytorch_lightning", "pandas", "timm"),
    *("tensorboard", "transformers", "wandb"),
}
OPTIONAL = {"matplotlib", "mlxtend", "rich", "typer"}

SOURCES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Return the modules that a module's text imports: everywhere, or at its head alone."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names}
            modules = names & SOURCES.keys()
            found |= modules
            if len(modules) < len(names):
                found.add(module)
    return found


def room(module: str) -> str:
    """Return the package, or the module at the top, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_floors_and_faces_are_all_that_there_is() -> None:
    named = [name for floor in FLOORS for name in floor] + list(FACES)
    assert len(named) == len(set(named))
    assert {room(module) for module in SOURCES} == set(named)
    assert len(FLOORS) <= 10


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module: str) -> None:
    allowed: set[str] = set()
    for floor in FLOORS:
        if room(module) in floor:
            break
        allowed |= floor
    else:
        allowed = {name for floor in FLOORS for name in floor}
        allowed |= FACES if module == "lrfast" else set()
    used = {room(name) for name in imports(SOURCES[module]) if name.split(".")[0] == "lrfast"}
    assert used - allowed - {room(module), "_C"} == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: imports(path) & SOURCES.keys() for module, path in SOURCES.items()}
    while free := {module for module, used in graph.items() if not used & graph.keys()}:
        graph = {module: used for module, used in graph.items() if module not in free}
    # What is left imports a circle or is one; those that nothing left imports are no part of one.
    while loose := graph.keys() - {name for used in graph.values() for name in used}:
        graph = {module: used for module, used in graph.items() if module not in loose}
    assert sorted(graph) == []


@pytest.mark.parametrize("module", SOURCES)
def test_optional_libraries_are_imported_where_they_are_used(module: str) -> None:
    at_head = {name.split(".")[0] for name in imports(SOURCES[module], everywhere=False)}
    if module != "lrfast.tools.demo":
        assert not at_head & OPTIONAL
    if room(module) != "integrations":
        assert not at_head & LIBRARIES


def test_no_test_imports_from_another() -> None:
    tests = list((ROOT / "tests").rglob("test_*.py"))
    stems = {path.stem for path in tests}
    assert len(stems) == len(tests)
    for path in tests:
        assert not {name.split(".")[-1] for name in imports(path)} & stems, path
