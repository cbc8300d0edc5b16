"""Lets pytest run the GPU tests on the simulated device: ``python -m sim`` starts it.

Each test runs once per seed, in an order that the seed and the test's name decide, so that it runs
alone as it runs among others.

Environment variables:
    SIM_SEEDS    seeds for each test; without it 20 for the files in STATEFUL and 2 for the others;
                 cases of rules that are not in VARIED run over the first one alone
    SIM_FIRST    the first of them, 0 if not given
    SIM_SEED     one seed instead, to see a failure again
    SIM_ORDERS   a file that is given a line for each test with a hash of the order in which its
                 device work ran: two runs write the same lines
"""

from __future__ import annotations

import gc
import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.build import build
from sim.surface import install

backend = install(*build())
import torch  # noqa: E402 - the backend has to be there before

# What keeps state over steps, so that the order matters most, runs over many seeds.
MANY, FEW = 20, 2
STATEFUL = (
    "tests/training/test_capture",
    "tests/optim/test_around_the_update.py",
    "tests/optim/test_ema_and_telemetry.py",
    "tests/optim/test_state_dicts.py",
    "tests/optim/test_plateau.py",
    "tests/optim/test_loss_schedule_states.py",
    "tests/finetune/",
    "tests/sim/test_findings.py",
)

# Work is ordered by the engine, not by the rule: one rule with states alone, and one that keeps a
# number per tensor too, stand for all over the many seeds. All rules take 290 s.
VARIED = ("AdamW", "NAdam")

# The simulator could, this machine's memory could not: torch says that 8 GB are free.
LEFT_OUT = {"tests/optim/test_gpu.py::test_more_elements_than_32_bits_count[": "needs 21 GB"}


def seeds_for(nodeid: str) -> list[int]:
    """The seeds that a test runs with."""
    if "SIM_SEED" in os.environ:
        return [int(os.environ["SIM_SEED"])]
    first = int(os.environ.get("SIM_FIRST", 0))
    count = int(os.environ.get("SIM_SEEDS", MANY if nodeid.startswith(STATEFUL) else FEW))
    return list(range(first, first + count))


# ---- the order of each test --------------------------------------------------------------------


def start(text: str) -> None:
    """Begins an order that the text decides: on idle devices, without what ran before."""
    torch.cuda.set_sync_debug_mode("default")
    for device in reversed(range(torch.cuda.device_count())):
        torch.cuda.set_stream(torch.cuda.default_stream(device))
    torch.cuda.graph.default_capture_stream = None
    torch.cuda.manual_seed_all(0)
    backend.seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


@pytest.fixture(autouse=True)
def _sim_seed(request: pytest.FixtureRequest) -> Iterator[None]:
    gc.collect()  # or tensors of earlier tests would be freed in the midst of this one
    gc.freeze()  # what is left stays, and need not be looked through again
    start(request.node.nodeid)
    yield
    backend.drain()  # what is still queued may be wrong, too
    if "SIM_ORDERS" in os.environ:
        line = f"{request.node.nodeid} {backend.fingerprint():016x}\n"
        with Path(os.environ["SIM_ORDERS"]).open("a") as file:
            file.write(line)


# ---- which tests there are ---------------------------------------------------------------------

# A file without these words has no test for a GPU; importing all takes seconds in each process.
FOR_A_GPU = re.compile(r"\b(device|gpu|sim)\b")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    is_test = collection_path.match("test_*.py")
    return True if is_test and not FOR_A_GPU.search(collection_path.read_text()) else None


@pytest.hookimpl(trylast=True)  # so that the seed stands last in a test's name
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("hazard") is not None:
        return
    seeds = seeds_for(metafunc.definition.nodeid)
    metafunc.parametrize("_sim_seed", seeds, indirect=True, ids=[f"seed{n}" for n in seeds])


def is_one_too_many(item: pytest.Item) -> bool:
    """Whether a case of a rule that is not in VARIED would run over another seed than the first."""
    if "SIM_SEED" in os.environ:
        return False
    values = item.callspec.params if hasattr(item, "callspec") else {}
    cases = [value for value in values.values() if type(value).__name__ == "OptimizerCase"]
    is_first = values.get("_sim_seed", 0) <= int(os.environ.get("SIM_FIRST", 0))
    return not (is_first or {case.ours.__name__ for case in cases} <= set(VARIED))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if is_one_too_many(item)]
    items[:] = [item for item in items if not is_one_too_many(item)]
    config.hook.pytest_deselected(items=left_out)
    for item in items:
        for name, reason in LEFT_OUT.items():
            if item.nodeid.startswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))


# ---- what is said at the end -------------------------------------------------------------------


class Summary:
    """How to see failures again."""

    def __init__(self) -> None:
        self._commands: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            seed = report.nodeid.rpartition("seed")[2].rstrip("]")
            chosen = f"SIM_SEED={seed} " if seed.isdigit() else ""
            self._commands.append(
                f"{chosen}PYTHONPATH=tests python -m sim {shlex.quote(report.nodeid)}"
            )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for command in self._commands:
            terminalreporter.write_line(f"to see it again: {command}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sim: of the simulator itself")
    config.addinivalue_line("markers", "hazard: goes over seeds by itself")
    if not hasattr(config, "workerinput"):  # under xdist in the process that reports
        config.pluginmanager.register(Summary())


def pytest_report_header() -> str:
    names = ("SIM_SEED", "SIM_SEEDS", "SIM_FIRST")
    chosen = {name: os.environ[name] for name in names if name in os.environ}
    return f"two simulated GPUs, {chosen or f'{MANY} seeds for stateful files, {FEW} for others'}"
