"""Two processes that train together: mean losses, one decision, and each puts its own copy back."""

from __future__ import annotations

import math
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import spawn
from tiny import OPTIMIZERS, bits, cross_entropy, make_batches, make_model, trace
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lrfast import RangeTest, lr_find

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")

KINDS = ("adamw", "torch-sgd")
# Name: options, and what one rank's loss is multiplied by in its eighth training step.
CASES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "plain": ({}, {}),
    "one diverges": ({"diverge_threshold": 4.0, "beta": 0.5}, {1: 1e3}),
    "rank 0 turns NaN": ({}, {0: math.nan}),
    "rank 1 turns NaN": ({}, {1: math.nan}),
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 2}, {}),
    "lag": ({"lag": 1}, {}),
    "val_loader": ({"val_loader": True}, {}),
    "repeats": ({"repeats": 2}, {}),
    "verify": ({"verify": 6}, {}),
    "scaler": ({"scaler": True}, {}),
}


class Rank:
    """One process, and what it saw in each case."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.exchanges = 0
        batches = make_batches(40)
        self.batches = batches[rank * 20 : rank * 20 + 20]

    def run(self, kind: str, case: str) -> dict[str, Any]:
        options, factors = CASES[case]
        options = {
            "num_iter": 10,
            "diverge_threshold": None,
            "start_lr": 1e-3,
            "end_lr": 0.5,
        } | options
        if "val_loader" in options:
            options["val_loader"] = self.batches[-3:]
        if "scaler" in options:
            options["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(self.rank)
        model = DistributedDataParallel(make_model())
        self.exchanges = 0
        model.register_comm_hook(None, lambda state, bucket: self._count(bucket))
        optimizer = OPTIMIZERS[kind](model.parameters())
        self._disturb(model, optimizer)
        weights: list[Any] = []
        optimizer.register_step_post_hook(lambda *_: weights.append(bits(list(model.parameters()))))
        losses: list[tuple[bool, float]] = []

        def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
            loss = cross_entropy(outputs, targets) * (8 if "scaler" in options else 1)
            if sum(enabled for enabled, _ in losses) == 7:
                loss = loss * factors.get(self.rank, 1.0)
            losses.append((torch.is_grad_enabled(), loss.item()))
            return loss

        before = trace(model, optimizer)
        files = set(Path.cwd().rglob("*"))
        self.exchanges = 0
        result = lr_find(model, optimizer, self.batches, criterion, **options)
        return self._report(result) | {
            "weights": weights,
            "own": losses,
            "exchanges": self.exchanges,
            "files": set(Path.cwd().rglob("*")) - files,
            "no trace": trace(model, optimizer) == before,
        }

    def _disturb(self, model: Any, optimizer: Any) -> None:
        """Train two steps, and let buffers and states differ between the ranks."""
        for inputs, targets in self.batches[:2]:
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        model.module[1].running_mean += self.rank
        for state in optimizer.state.values():
            next(iter(t for t in state.values() if t.ndim)).add_(1e-3 * self.rank)

    def _count(self, bucket: Any) -> Any:
        self.exchanges += 1
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    @staticmethod
    def _report(result: RangeTest) -> dict[str, Any]:
        race = None if result.race is None else result.race.candidates
        return {
            "lrs": result.lrs,
            "losses": result.losses,
            "repeats": result.repeats,
            "outcome": result.outcome,
            "rates": [suggestion.lr for suggestion in result.suggestions.values()],
            "race": race,
        }

    def run_without_ddp(self, group: Any) -> dict[str, Any]:
        model = make_model()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        own: list[float] = []
        reductions = 0
        reduce = dist.all_reduce

        def all_reduce(*args: Any, **options: Any) -> Any:
            nonlocal reductions
            reductions += 1
            return reduce(*args, **options)

        def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
            loss = cross_entropy(outputs, targets)
            own.append(loss.item())
            return loss

        dist.all_reduce = all_reduce
        try:
            options = {"num_iter": 8, "diverge_threshold": None, "process_group": group}
            result = lr_find(model, optimizer, self.batches, criterion, **options)
        finally:
            dist.all_reduce = reduce
        return self._report(result) | {"own": own, "reductions": reductions}


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    here = Path(folder) / f"rank{rank}"
    here.mkdir()
    os.chdir(here)
    os.environ["TMPDIR"] = str(here)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    process = Rank(rank)
    seen: dict[Any, Any] = {
        (kind, case): process.run(kind, case) for kind in KINDS for case in CASES
    }
    seen["alone"] = process.run_without_ddp(None)
    seen["group"] = process.run_without_ddp(dist.group.WORLD)
    dist.destroy_process_group()
    Path(f"{folder}/seen{world}-{rank}").write_bytes(pickle.dumps(seen))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return spawn(work, 2, tmp_path_factory.mktemp("ranks"))


def training(seen: dict[str, Any]) -> list[float]:
    return [loss for enabled, loss in seen["own"] if enabled]


EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
@pytest.mark.parametrize("case", CASES)
def test_both_ranks_see_the_same_and_put_their_own_back(kind: str, case: str, ranks: Any) -> None:
    one, other = (seen[kind, case] for seen in ranks)
    for name in ("lrs", "losses", "repeats", "outcome", "rates", "race"):
        assert bits(one[name]) == bits(other[name]), name
    assert one["no trace"] and other["no trace"]
    assert len(one["own"]) == len(other["own"]) and training(one) != training(other)
    assert len(one["weights"]) == len(other["weights"]) > 0
    if case not in ("rank 0 turns NaN", "rank 1 turns NaN", "one diverges"):
        assert one["outcome"] == "completed" and len(one["lrs"]) == 10


@EACH
def test_losses_are_means_over_the_ranks(kind: str, ranks: Any) -> None:
    one, other = (seen[kind, "plain"] for seen in ranks)
    means = np.mean([training(one), training(other)], axis=0)
    np.testing.assert_array_equal(one["losses"], means)
    one, other = (seen[kind, "gradient_accumulation_steps"] for seen in ranks)
    windows = np.mean([training(one), training(other)], axis=0).reshape(10, 2).mean(axis=1)
    np.testing.assert_allclose(one["losses"], windows, rtol=1e-6)
    one, other = (seen[kind, "val_loader"] for seen in ranks)
    judged = [[loss for enabled, loss in seen["own"] if not enabled] for seen in (one, other)]
    means = np.mean(judged, axis=0).reshape(10, 3).mean(axis=1)
    np.testing.assert_allclose(one["losses"], means, rtol=1e-6)
    one, other = (seen[kind, "lag"] for seen in ranks)
    last = np.mean([one["own"][-1][1], other["own"][-1][1]])
    np.testing.assert_allclose(one["losses"][-1], last, rtol=1e-6)


@EACH
@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        ("one diverges", "diverged"),
        ("rank 0 turns NaN", "non-finite"),
        ("rank 1 turns NaN", "non-finite"),
    ],
)
def test_one_rank_ends_it_for_both(kind: str, case: str, outcome: str, ranks: Any) -> None:
    for seen in ranks:
        assert seen[kind, case]["outcome"] == outcome
        assert len(seen[kind, case]["lrs"]) == len(training(seen[kind, case])) == 8


@EACH
def test_gradients_are_exchanged_once_per_update(kind: str, ranks: Any) -> None:
    for seen in ranks:
        assert seen[kind, "plain"]["exchanges"] == 10 == len(seen[kind, "plain"]["weights"])
        assert seen[kind, "gradient_accumulation_steps"]["exchanges"] == 10
        assert len(training(seen[kind, "gradient_accumulation_steps"])) == 20


@EACH
def test_repeats_differ_and_the_scaler_skips_on_both(kind: str, ranks: Any) -> None:
    for seen in ranks:
        repeats = seen[kind, "repeats"]["repeats"]
        assert bits(repeats[0]) == bits(seen[kind, "plain"]["losses"]) != bits(repeats[1])
        assert len(training(seen[kind, "scaler"])) > 11


def test_without_ddp_nothing_is_exchanged(ranks: Any) -> None:
    for seen in ranks:
        assert seen["alone"]["reductions"] == 0
        assert seen["alone"]["losses"].tolist() == seen["alone"]["own"]
    assert ranks[0]["alone"]["own"] != ranks[1]["alone"]["own"]


def test_a_group_without_ddp_averages_the_losses(ranks: Any) -> None:
    one, other = (seen["group"] for seen in ranks)
    np.testing.assert_array_equal(one["losses"], np.mean([one["own"], other["own"]], axis=0))
    assert bits(one["losses"]) == bits(other["losses"])
    assert one["reductions"] == 8


def test_no_file_is_written(ranks: Any) -> None:
    """Neither in the working directory nor among temporary files, which here are the same."""
    assert not set().union(
        *(seen[kind, c]["files"] for seen in ranks for kind in KINDS for c in CASES)
    )
