"""Several processes of one test: started together, ended together."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Ends a hang. On a busy machine processes may take as long as they need.
HANGS_AFTER_S = 3600.0


def spawn(work: Callable[..., None], world: int, folder: Path, *more: Any) -> list[Any]:
    """Run ``work(rank, world, folder, *more)`` in ``world`` processes; no process survives.

    Returns:
        What each has pickled into ``folder / f"seen{world}-{rank}"``.
    """
    context = torch.multiprocessing.spawn(
        work, (world, str(folder), *more), nprocs=world, join=False
    )
    assert context is not None
    try:
        deadline = time.monotonic() + HANGS_AFTER_S
        while not context.join(timeout=max(deadline - time.monotonic(), 0)):
            if time.monotonic() > deadline:
                pytest.fail(f"{world} processes hang: no end within {HANGS_AFTER_S} s")
    finally:
        for process in context.processes:
            process.kill()
    return [pickle.loads((folder / f"seen{world}-{rank}").read_bytes()) for rank in range(world)]
