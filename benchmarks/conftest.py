"""Options of the benchmarks, what all of them begin with, and how each of them measures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pytest
import torch

from benchmarks.speed import counting, timing

# Whose versions results state, where they are installed.
PACKAGES = (
    "bitsandbytes",
    "dadaptation",
    "deepspeed",
    "fastai",
    "flashoptim",
    "lightning",
    "numpy",
    "pandas",
    "prodigyopt",
    "pytorch-ignite",
    "schedulefree",
    "scipy",
    "torch-lr-finder",
    "torch-optimi",
    "torchao",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seconds",
        type=float,
        default=0.5,
        help="per case and way of timing, once the fewest rounds are made",
    )
    parser.addoption("--threads", type=int, default=2, help="that torch works with on a CPU")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: part of `make bench-quick`")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where a case runs: each does on both, with the same code."""
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return name


@dataclass(frozen=True)
class Measure:
    """How every case is measured: counted, timed in turns with its peers, and kept as one row."""

    benchmark: Any  # pytest-benchmark's fixture
    device: str
    seconds: float

    def __call__(
        self,
        table: str,
        case: dict[str, Any],
        works: timing.Works,
        *,
        ours: str = "lrfast",
        ways: tuple[str, ...] = ("turns", "runs"),
        moved: dict[str, int] | None = None,  # bytes that a step has to move
        clear: bool = False,  # the caches, before each step
        refused: dict[str, str] | None = None,  # who did not take part, and why
        counted: bool = True,
    ) -> None:
        row: dict[str, Any] = {"table": table, **case, "bytes": moved or {}}
        row["refused"] = refused or {}
        # The roofs' own steps need no counting.
        names = [name for name in works if counted and name not in timing.ROOFS]
        row["counts"] = {name: counting.counts(works[name], self.device) for name in names}
        clock = timing.Clock(self.device, clear)
        for way in ways:
            found = timing.interleaved(works, way, self.seconds, clock)
            row[f"{way}_us"] = {name: times.quartiles_us() for name, times in found.items()}
            if clock.is_gpu:
                host = {name: times.quartiles_us("host") for name, times in found.items()}
                row[f"{way}_host_us"] = host
        self.benchmark.group = f"{self.device}: {table}"
        self.benchmark.extra_info.update(
            {
                "device": torch.cuda.get_device_name() if clock.is_gpu else "cpu",
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "packages": _versions(),
                **row,
            }
        )
        # Quartiles are those above; pytest-benchmark itself is shown our side only.
        work = works[ours]
        self.benchmark.pedantic(lambda: clock.time(work), setup=work.prepare, rounds=1)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@pytest.fixture
def measure(benchmark: Any, device: str, request: pytest.FixtureRequest) -> Measure:
    return Measure(benchmark, device, request.config.getoption("--seconds"))


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(1)
    yield
    torch.set_num_threads(before)
