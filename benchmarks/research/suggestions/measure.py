"""Fills the store for one task; runs in a process of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from benchmarks.research.suggestions.broad import BROAD, SEALED
from benchmarks.research.suggestions.estimated import fill_estimates
from benchmarks.research.suggestions.fresh import FRESH
from benchmarks.research.suggestions.held_out import HELD_OUT
from benchmarks.research.suggestions.optuna_search import fill_optuna
from benchmarks.research.suggestions.rate_free import fill_rate_free
from benchmarks.research.suggestions.report import landscape_of
from benchmarks.research.suggestions.store import Store
from benchmarks.research.suggestions.sweeps import fill_grid, fill_size, fill_sweeps
from benchmarks.research.suggestions.tasks import TASKS
from benchmarks.research.suggestions.unseen import UNSEEN
from benchmarks.research.suggestions.verified import fill_verified

ALL = {task.name: task for task in (*TASKS, *HELD_OUT, *UNSEEN, *FRESH, *BROAD, *SEALED)}
MEASURED = {
    "size": fill_size,
    "sweeps": fill_sweeps,
    "grid": fill_grid,
    "verify": fill_verified,
    "rate-free": fill_rate_free,
}
# By the grids, also those of the newest result file.
JUDGED = {"estimates": fill_estimates, "optuna": fill_optuna}
# Those with packages that nothing else here needs, which their modules name.
PEERS = ("rate-free", "optuna")


def measure(name: str, folder: Path, parts: Collection[str]) -> None:
    """Measures those parts of a task that the store lacks, on one thread."""
    torch.set_num_threads(1)
    task, store = ALL[name], Store(folder)
    for part, fill in MEASURED.items():
        if part in parts:
            fill(task, store)
    for part, judge in JUDGED.items():
        if part in parts and (landscape := landscape_of(task, store)) is not None:
            judge(landscape, store)
