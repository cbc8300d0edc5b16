"""Several processes, replicated and sharded, with torch's AdamW and with lrfast: the same weights.

All processes run a range test together, and train at the rate that it suggests; the step of lrfast
clips by the norm over all of them.

    torchrun --nproc-per-node 2 examples/integrations/torchrun_ddp.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from common import BATCH, batches, make_data, make_model
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import lrfast

NORM = 0.5
loss_fn = nn.functional.cross_entropy


def distributed(is_sharded: bool, device: str) -> nn.Module:
    model = make_model().to(device)
    if not is_sharded:
        return DistributedDataParallel(model)
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def make_loader() -> DataLoader[Any]:
    data = make_data()
    return DataLoader(data, BATCH, sampler=DistributedSampler(data))


def train_with_torch(model: nn.Module, rate: float, chosen: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.steps)
    for inputs, targets in batches(make_loader(), chosen.steps):
        optimizer.zero_grad()
        loss_fn(model(inputs.to(chosen.device)), targets.to(chosen.device)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        scheduler.step()


def train_with_lrfast(model: nn.Module, chosen: Any) -> float:
    """Train at the suggested rate, and return it."""
    optimizer = lrfast.AdamW(model.parameters(), max_grad_norm=NORM)
    result = lrfast.lr_find(model, optimizer, make_loader(), loss_fn, num_iter=50)
    result.apply(optimizer)
    optimizer.set_schedule(lrfast.schedules.cosine(chosen.steps))
    for inputs, targets in batches(make_loader(), chosen.steps):
        optimizer.zero_grad()
        loss_fn(model(inputs.to(chosen.device)), targets.to(chosen.device)).backward()
        optimizer.step()
    return float(optimizer.param_groups[0]["lr"])


def compare(chosen: Any) -> str:
    """What one of the processes finds, replicated and sharded; their process group is there."""
    return "".join(compared(is_sharded, chosen) for is_sharded in (False, True))


def compared(is_sharded: bool, chosen: Any) -> str:
    ours, theirs = (distributed(is_sharded, chosen.device) for _ in range(2))
    rate = train_with_lrfast(ours, chosen)
    train_with_torch(theirs, rate, chosen)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    difference = max(float((whole(a) - whole(b)).abs().max()) for a, b in pairs)
    kind = "sharded" if is_sharded else "replicated"
    return (
        f"process {dist.get_rank()} of {dist.get_world_size()}, {kind}: rate {rate:.6e}, "
        f"largest difference of a weight: {difference:.1e}\n"
    )


def whole(tensor: Tensor) -> Tensor:
    """All shards of a tensor."""
    full: Tensor = getattr(tensor.detach(), "full_tensor", tensor.detach)()
    return full


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    dist.init_process_group("nccl" if chosen.device == "cuda" else "gloo")
    if chosen.device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    sys.stdout.write(compare(chosen))
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
