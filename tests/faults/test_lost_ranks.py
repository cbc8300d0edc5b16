"""A process that dies in the middle of what several do is an error to the others, and no hang."""

from __future__ import annotations

import os
import pickle
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import HANGS_AFTER_S, start
from tiny import OPTIMIZERS, cross_entropy, make_batches, make_model, trace
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lrfast
from lrfast import lr_find

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")


def dying(rank: int, at: int) -> Any:
    """A loss whose at-th value the last process does not live to see."""
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at and rank == 1:
            os._exit(0)
        return cross_entropy(outputs, targets)

    return loss_fn


def sweep(rank: int) -> dict[str, Any]:
    """A range test whose other process dies in its sixth step."""
    model = DistributedDataParallel(make_model())
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    batches = make_batches(12)[rank::2]
    for inputs, targets in batches[:2]:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    before = trace(model, optimizer)
    settings: dict[str, Any] = {"num_iter": 12, "progress": False, "diverge_threshold": None}
    error = None
    try:
        lr_find(model, optimizer, batches, dying(rank, 6), **settings)
    except RuntimeError as raised:
        error = str(raised)
    return {"error": error, "no trace": trace(model, optimizer) == before}


def save(rank: int, folder: str) -> dict[str, Any]:
    """A sharded checkpoint that the other process does not live to save."""
    model = make_model()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    optimizer = lrfast.AdamW(model.parameters(), schedule=lrfast.schedules.cosine(9))
    state = lrfast.ShardedState(model, optimizer)
    dcp.save({"training": state}, checkpoint_id=f"{folder}/whole")
    if rank == 1:
        os._exit(0)
    before = [param.to_local().clone() for param in model.parameters()]  # type: ignore[attr-defined]
    error = None
    try:
        dcp.save({"training": state}, checkpoint_id=f"{folder}/half")
    except Exception as raised:
        error = str(raised)
    after = [param.to_local() for param in model.parameters()]  # type: ignore[attr-defined]
    is_there = Path(folder, "half", ".metadata").exists()
    same = all(map(torch.equal, before, after))
    return {"error": error, "no trace": same, "is there": is_there}


def work(rank: int, what: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found = save(rank, folder) if what == "save" else sweep(rank)
    Path(folder, f"found{rank}").write_bytes(pickle.dumps(found))
    os._exit(0)  # a group that has lost a member cannot be left in order


@pytest.mark.parametrize("what", ["sweep", "save"])
def test_the_other_process_gets_an_error(what: str, tmp_path: Path) -> None:
    context = start(work, (what, str(tmp_path)), 2)
    deadline = time.monotonic() + HANGS_AFTER_S
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"no end within {HANGS_AFTER_S} s"
    finally:
        for process in context.processes:
            process.kill()
    found = pickle.loads((tmp_path / "found0").read_bytes())
    assert found["error"], found
    assert found["no trace"]
    assert not found.get("is there", False)
    assert not (tmp_path / "found1").exists()
