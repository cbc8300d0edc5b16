"""Two processes whose warm-up is the range test: mean losses, and one decision for both."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import spawn
from tiny import bits, cross_entropy, make_batches, make_model
from torch.nn.parallel import DistributedDataParallel

import lrfast
from lrfast import schedules

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")

TOTAL = 48
# What one rank's loss is multiplied by in its eighth step, by rank.
CASES: dict[str, dict[int, float]] = {
    "plain": {},
    "rank 1 turns NaN": {1: math.nan},
    "rank 0 grows": {0: 50.0},
}


def run(rank: int, factors: dict[int, float]) -> dict[str, Any]:
    torch.manual_seed(4)
    model = DistributedDataParallel(make_model())
    torch.manual_seed(rank)  # dropout differs between the ranks
    optimizer = lrfast.AdamW(model.parameters(), lr=0.01, weight_decay=0.2)
    plan = schedules.one_cycle(TOTAL)
    search = lrfast.find_in_warmup(model, optimizer, plan, num_iter=20, end_lr=3.0)
    batches = make_batches(2 * TOTAL)[rank::2]
    own, spent = [], []
    for step, (inputs, targets) in enumerate(batches):
        loss = cross_entropy(model(inputs), targets)
        if step == 7:
            loss = loss * factors.get(rank, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        own.append(loss.item())
        if search.observe(loss) is not None:
            spent.append(step + 1)
    assert search.result is not None
    return {
        "weights": bits(list(model.parameters())),
        "own": own,
        "ended after": spent,
        "losses": search.result.losses.tolist(),
        "rates": [group["lr"] for group in optimizer.param_groups],
        "schedules": [schedule.to_dict() for schedule in optimizer.schedules if schedule],
        "outcome": search.result.outcome,
        "clock": optimizer.schedule_step,
    }


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    seen = {case: run(rank, factors) for case, factors in CASES.items()}
    dist.destroy_process_group()
    Path(f"{folder}/seen{world}-{rank}").write_bytes(pickle.dumps(seen))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return spawn(work, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_decide_alike_on_their_mean_losses(
    case: str, ranks: list[dict[str, Any]]
) -> None:
    one, other = (dict(seen[case]) for seen in ranks)
    own = [one.pop("own"), other.pop("own")]
    assert own[0] != own[1]
    assert repr(one) == repr(other)
    assert one["clock"] == TOTAL and len(one["ended after"]) == 1
    count = len(one["losses"])
    mean = [(a + b) / 2 for a, b in zip(*own, strict=True)][:count]
    assert one["losses"] == pytest.approx(mean, nan_ok=True)
    assert (one["outcome"] == "non-finite") == (case == "rank 1 turns NaN")
    assert (one["ended after"] == [10]) == (case != "plain")
