"""What every test starts from: seeded generators, deterministic torch, and a device to run on.

A test that needs a GPU carries the marker ``gpu``, by itself or through the fixture ``device``. It
is skipped where there is none, or fails where LRFAST_REQUIRE_CUDA=1 promises one.
"""

from __future__ import annotations

import gc
import os
import random
import re
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

# GPU machines bring their own packages, and lack some: only the files that need those are left out.
PACKAGES = ("hypothesis", "matplotlib", "mlxtend", "rich", "scipy", "sklearn", "typer")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
_imports = re.compile(rf"^(?:from|import) (?:{'|'.join(MISSING) or '$'})\b", re.MULTILINE)
HERE = Path(__file__).parent
collect_ignore = sorted(
    path.relative_to(HERE).as_posix()
    for path in HERE.rglob("test_*.py")
    if _imports.search(path.read_text())
)

if "hypothesis" not in MISSING:
    from hypothesis import HealthCheck, settings

    # The same examples in every run; a busy machine is no reason to fail.
    settings.register_profile(
        "lrfast", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("lrfast")

# cuBLAS reads this when it starts; torch's deterministic mode demands it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leaves the garbage collector out: a million objects of modules and tests stay until the end,
    and to look through them again and again was a third of the collection's time."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING:
        left_out = ", ".join(collect_ignore)
        terminalreporter.write_line(f"without {', '.join(MISSING)}, so without {left_out}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave all rows but the first of peers' contracts, and of one_row's tests, to the full run.

    With LRFAST_FULL_PART=0/3 that run has every third of its tests, all rows of each.
    """
    seen: set[str] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if item.get_closest_marker("one_row") or item.path.is_relative_to(HERE / "peers"):
            if test in seen:
                item.add_marker("full")
            elif item.get_closest_marker("gpu") is None:
                seen.add(test)
    part, _, parts = os.environ.get("LRFAST_FULL_PART", "0/1").partition("/")
    full = {
        item: item.nodeid.partition("[")[0] for item in items if item.get_closest_marker("full")
    }
    kept = set(sorted(set(full.values()))[int(part) :: int(parts)])
    left_out = [item for item, test in full.items() if test not in kept]
    config.hook.pytest_deselected(items=left_out)
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if os.environ.get("LRFAST_REQUIRE_CUDA") == "1":
        pytest.fail("LRFAST_REQUIRE_CUDA=1, but torch finds no CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Tests press Ctrl-C, which a shell makes programs ignore that it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seeds all generators, and puts them, the thread count and torch's modes back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # Where cores are shared, threads wait for each other; what threads change has tests of its own.
    torch.set_num_threads(1)
    # This also fills what torch.empty returns with NaN, so that reading it is noticed.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
    if cuda_states is not None:
        torch.cuda.set_rng_state_all(cuda_states)


@pytest.fixture
def benchmarks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a pytest that a test starts run benchmarks, which are off in processes of xdist."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


class Terminal:
    """What is written to stderr as if that were a terminal."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def take(self) -> str:
        """Return what has been written since the last call."""
        return self._captured.readouterr().err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """Has progress shown, although pytest's stderr is no terminal."""
    monkeypatch.setattr("lrfast._utils.progress._is_interactive", lambda: True)
    return Terminal(capsys)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that lrfast runs on."""
    return torch.device(request.param)


@pytest.fixture
def small() -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A model of one layer and an optimizer that has not stepped yet."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
