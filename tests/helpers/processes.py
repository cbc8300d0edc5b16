"""Several processes of one test: started together, ended together."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Ends a hang. On a busy machine processes may take as long as they need.
HANGS_AFTER_S = 3600.0
# Imported once, by a server that each process is then forked from: half of what a process costs.
# It has run nothing, so that what is forked is as fresh as a new interpreter, but for what one
# draws at its start: hashes of strings and numpy's random numbers are the same in all ranks.
PRELOADED = ["torch.distributed.checkpoint", "torch.distributed.fsdp", "lrfast"]


def start(work: Callable[..., None], arguments: tuple[Any, ...], world: int) -> Any:
    """Start ``work(rank, *arguments)`` in ``world`` processes."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = torch.multiprocessing.start_processes(
        work, arguments, world, join=False, start_method="forkserver"
    )
    assert context is not None
    return context


def spawn(work: Callable[..., None], world: int, folder: Path, *more: Any) -> list[Any]:
    """Run ``work(rank, world, folder, *more)`` in ``world`` processes; no process survives.

    Returns:
        What each has pickled into ``folder / f"seen{world}-{rank}"``.
    """
    context = start(work, (world, str(folder), *more), world)
    try:
        deadline = time.monotonic() + HANGS_AFTER_S
        while not context.join(timeout=max(deadline - time.monotonic(), 0)):
            if time.monotonic() > deadline:
                pytest.fail(f"{world} processes hang: no end within {HANGS_AFTER_S} s")
    finally:
        for process in context.processes:
            process.kill()
    return [pickle.loads((folder / f"seen{world}-{rank}").read_bytes()) for rank in range(world)]
