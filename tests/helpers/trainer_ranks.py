"""What the processes of integrations/test_trainer_ranks.py share: two of them, inside trainers."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sharded_runs import full
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from trainers import make_loader

import lrfast

Seen = dict[str, Any]

ROWS, BATCH, EPOCHS = 64, 8, 2  # rows, a process's batch
UPDATES = EPOCHS * ROWS // (2 * BATCH)
NORM = 0.4  # most gradients are longer


def parameters(model: nn.Module) -> list[Any]:
    return [full(parameter) for parameter in model.parameters()]


def curve(result: lrfast.RangeTest) -> dict[str, Any]:
    rates = {rule: answer.lr for rule, answer in result.suggestions.items()}
    return {"losses": result.losses, "lrs": result.lrs, "rates": rates}


def own_share(batch: int) -> DataLoader[Any]:
    """Rows of all processes, in order, of which each has its own."""
    data = make_loader().dataset
    sampler = DistributedSampler(data, shuffle=False) if dist.is_initialized() else None
    return DataLoader(data, batch, sampler=sampler)


def work(rank: int, world: int, folder: str, runs: dict[str, Callable[[Path], Seen]]) -> None:
    """One launch: the environment is torchrun's, the processes are gloo's."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "test"}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    seen = {name: run(Path(folder) / name) for name, run in runs.items()}
    dist.destroy_process_group()
    (Path(folder) / f"seen{world}-{rank}").write_bytes(pickle.dumps(seen))
