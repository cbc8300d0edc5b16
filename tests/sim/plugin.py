"""Lets pytest run the GPU tests on the simulated device: ``-p sim.plugin`` with SIM_SEED.

Each test has an order of its own, made of the seed and the test's name, so that it runs alone as it
runs among others.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from sim.build import build
from sim.known import FAILING, LEFT_OUT
from sim.surface import install

backend = install(*build())
import torch  # noqa: E402  - as the backend has to be there before


def seed_of(name: str) -> int:
    """The seed of one test."""
    text = f"{os.environ.get('SIM_SEED', '0')} {name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sim: plants hazards in the simulator")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is known to fail has to fail, and says by which finding."""
    for item in items:
        for pattern, finding in FAILING.items():
            if item.nodeid.startswith(pattern):
                item.add_marker(pytest.mark.xfail(reason=f"finding {finding}", strict=False))
        for pattern, reason in LEFT_OUT.items():
            if item.nodeid.startswith(pattern):
                item.add_marker(pytest.mark.skip(reason=reason))
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded_streams(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begins with idle devices, and without what tests before have left."""
    gc.collect()
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_device(0)
    torch.cuda.graph.default_capture_stream = None
    backend.drain()
    backend.seed(seed_of(request.node.nodeid))
    yield


def pytest_report_header() -> str:
    return f"simulated GPUs: 2, SIM_SEED={os.environ.get('SIM_SEED', '0')}"
