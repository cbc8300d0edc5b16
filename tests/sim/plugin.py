"""Lets pytest run the GPU tests on the simulated device: ``python -m sim`` starts it.

Each test runs once per seed, in an order that the seed and the test's name decide, so that it runs
alone as it runs among others.

Environment variables:
    SIM_SEEDS    seeds for each test; without it 20 for the files in STATEFUL and 2 for the others
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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.build import build
from sim.known import FAILING, FINDINGS, LEFT_OUT, STATEFUL
from sim.surface import install

backend = install(*build())
import torch  # noqa: E402 - the backend has to be there before

MANY, FEW = 20, 2


def seeds_for(nodeid: str) -> list[int]:
    """The seeds that a test runs with."""
    if "SIM_SEED" in os.environ:
        return [int(os.environ["SIM_SEED"])]
    is_stateful = nodeid.startswith(STATEFUL)
    return list(range(int(os.environ.get("SIM_SEEDS", MANY if is_stateful else FEW))))


def entry_of(nodeid: str, table: dict[str, Any]) -> str | None:
    """The name in a table that a test's name begins with."""
    return next((name for name in table if nodeid.startswith(name)), None)


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
    if request.node.get_closest_marker("xfail") is None:
        backend.drain()  # what is still queued may be wrong, too
    if "SIM_ORDERS" in os.environ:
        line = f"{request.node.nodeid} {backend.fingerprint():016x}\n"
        with Path(os.environ["SIM_ORDERS"]).open("a") as file:
            file.write(line)


# ---- which tests there are ---------------------------------------------------------------------

# Without these words a file has no test for a GPU; to import them all takes seconds in each process.
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if name := entry_of(item.nodeid, FAILING):
            finding = FAILING[name].finding
            reason = f"finding {finding}: {FINDINGS[finding]}"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
        if name := entry_of(item.nodeid, LEFT_OUT):
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT[name]))


# ---- what is said at the end -------------------------------------------------------------------


class Summary:
    """How to see failures again, and which known failures are none any more."""

    def __init__(self) -> None:
        self._runs: Counter[str] = Counter()  # of entries in FAILING
        self._failures: Counter[str] = Counter()
        self._commands: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            seed = report.nodeid.rpartition("seed")[2].rstrip("]")
            chosen = f"SIM_SEED={seed} " if seed.isdigit() else ""
            self._commands.append(
                f"{chosen}PYTHONPATH=tests python -m sim {shlex.quote(report.nodeid)}"
            )
        name = entry_of(report.nodeid, FAILING)
        if name is not None and hasattr(report, "wasxfail"):
            self._runs[name] += 1
            self._failures[name] += report.skipped

    def outdated(self) -> list[str]:
        """Entries of FAILING that no run has failed under, though enough have been made."""
        return [
            f"{name} (finding {FAILING[name].finding}) has passed {runs} times"
            for name, runs in self._runs.items()
            if self._failures[name] == 0 and runs >= FAILING[name].enough
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.outdated() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in self.outdated():
            terminalreporter.write_line(f"take out of tests/sim/known.py: {line}", red=True)
        for command in self._commands:
            terminalreporter.write_line(f"to see it again: {command}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sim: of the simulator itself")
    config.addinivalue_line("markers", "hazard: goes over seeds by itself")
    if not hasattr(config, "workerinput"):  # under xdist in the process that reports
        config.pluginmanager.register(Summary())


def pytest_report_header() -> str:
    chosen = {name: os.environ[name] for name in ("SIM_SEED", "SIM_SEEDS") if name in os.environ}
    return f"two simulated GPUs, {chosen or f'{MANY} seeds for stateful files, {FEW} for others'}"
