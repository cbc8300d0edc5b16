"""What one process of a sharded training does; optim/test_sharded_ranks.py runs it in 1, 2 or 4."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tiny import bits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lrfast

BATCH = 8
STEPS = 8
_CYCLE = {"schedule": lrfast.schedules.one_cycle(2 * STEPS, momentum=(0.95, 0.85))}
# Name: class, its options, and what the second param group, an ordinary tensor, has of its own.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "adamw": (
        lrfast.AdamW,
        {"lr": 0.05, "weight_decay": 0.1, "max_grad_norm": 0.3, "ema_decay": 0.9, **_CYCLE},
        {"lr": 0.01},
    ),
    "sgd": (
        lrfast.SGD,
        {"lr": 0.1, "momentum": 0.9, "max_grad_norm": 0.5, "skip_nonfinite": True},
        {"lr": 0.02, "max_grad_norm": 0.1},
    ),
    "lion": (
        lrfast.Lion,
        {"lr": 0.01, "weight_decay": 0.1, "skip_nonfinite": True, "zero_grads": True},
        {},
    ),
    "schedule-free": (
        lrfast.AdamWScheduleFree,
        {"lr": 0.05, "weight_decay": 0.1, "warmup_steps": 3, "max_grad_norm": 0.3, **_CYCLE},
        {"lr": 0.01},
    ),
    "prodigy": (  # one estimate for all processes
        lrfast.Prodigy,
        {"d0": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.3, "use_bias_correction": True}
        | _CYCLE,
        {"lr": 0.5},
    ),
}
SAVED = ("adamw", "schedule-free", "prodigy")  # what checkpoints are made of


class Model(nn.Module):
    """Layers that no number of processes divides, one of which some processes have nothing of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh())
        self.head = nn.Linear(3, 1)
        self.scale = nn.Parameter(torch.tensor([1.5, 0.5]))
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs)) * self.scale.prod()


class Run:
    """A model in ``world`` processes, sharded over a mesh of that shape, and its optimizer."""

    def __init__(self, case: str, rank: int, shape: tuple[int, ...]) -> None:
        self.rank, self.world = rank, dist.get_world_size() if dist.is_initialized() else 1
        self.model = Model()
        if self.world > 1:
            names = ("replicate", "shard")[-len(shape) :]
            mesh = torch.distributed.init_device_mesh("cpu", shape, mesh_dim_names=names)
            fully_shard(self.model.body, mesh=mesh)
            fully_shard(self.model, mesh=mesh, ignored_params={self.model.scale})
        maker, options, own = CASES[case]
        sharded = [p for name, p in self.model.named_parameters() if name != "scale"]
        groups = [{"params": sharded}, {"params": [self.model.scale], **own}]
        self.optimizer = maker(groups, **options)
        self.norms: list[float] = []

    def train(self, first: int, last: int, infinite_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        for step in range(last):
            inputs = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
            targets = torch.randn(BATCH, 1, generator=generator, dtype=torch.float64)
            if step < first:
                continue
            part = slice(self.rank * BATCH // self.world, (self.rank + 1) * BATCH // self.world)
            self.optimizer.zero_grad()
            (self.model(inputs[part]) - targets[part]).square().mean().backward()
            if self.world > 1:  # nobody else averages what is not sharded
                dist.all_reduce(self.model.scale.grad)
                self.model.scale.grad /= self.world
            if step == infinite_at and self.rank == 0:
                local(self.model.body[0].weight.grad)[0, 0] = torch.inf
            self.optimizer.step()
            norm = self.optimizer.grad_norm
            self.norms.append(0.0 if norm is None else float(norm))

    def report(self) -> dict[str, Any]:
        states = [self.optimizer.state[param] for param in self.model.parameters()]
        return {
            "params": [full(param) for param in self.model.parameters()],
            "states": [{name: full(value) for name, value in s.items()} for s in states],
            "norms": self.norms,
            "clock": self.optimizer.schedule_step,
        }


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Any) -> Any:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().numpy().copy()


class Counter:
    """Counts the collectives that this process starts, by whoever asks for them."""

    def __enter__(self) -> Counter:
        self.calls, self._reduce = 0, dist.all_reduce

        def all_reduce(*args: Any, **options: Any) -> Any:
            self.calls += 1
            return self._reduce(*args, **options)

        torch.distributed.all_reduce = all_reduce
        return self

    def __exit__(self, *_: Any) -> None:
        torch.distributed.all_reduce = self._reduce


def count_collectives(case: str, rank: int, world: int) -> dict[str, int]:
    """Collectives of one step of the optimizer, and of one that wants no norm."""
    run = Run(case, rank, (world,))
    run.train(0, 1)
    counts = {}
    for name, norm in (("norm", 1.0), ("none", None)):
        run.optimizer.max_grad_norm = norm
        with Counter() as counter:
            run.optimizer.step()
        counts[name] = counter.calls
    return counts


def find_rate(rank: int, world: int) -> dict[str, Any]:
    """A range test under FSDP, and whether it has left a trace."""
    run = Run("adamw", rank, (world,))
    run.train(0, 2)
    generator = torch.Generator().manual_seed(rank)
    batches = [
        (torch.randn(4, 5, generator=generator, dtype=torch.float64), torch.ones(4, 1).double())
        for _ in range(4)
    ]
    before = bits([local(t) for t in _tensors(run)])
    result = lrfast.lr_find(
        run.model,
        run.optimizer,
        batches,
        nn.functional.mse_loss,
        start_lr=1e-4,
        end_lr=0.1,
        num_iter=12,
        process_group=dist.group.WORLD,
        progress=False,
    )
    return {
        "losses": result.losses,
        "lrs": result.lrs,
        "no trace": bits([local(t) for t in _tensors(run)]) == before,
        "clock": run.optimizer.schedule_step,
    }


def scale_gradients(rank: int, world: int) -> dict[str, Any]:
    """Three steps under a GradScaler, the second with an infinity in one process's shard.

    Without the ordinary tensor: torch's scaler refuses gradients of both kinds in one optimizer.
    """
    run = Run("sgd", rank, (world,))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    clocks = []
    for step in range(3):
        run.optimizer.zero_grad()
        scaler.scale(run.model(torch.ones(2, 5).double()).square().mean()).backward()
        run.model.scale.grad = None
        if step == 1 and rank == 0:
            local(run.model.body[0].weight.grad)[0, 0] = torch.inf
        scaler.step(run.optimizer)
        scaler.update()
        clocks.append(run.optimizer.schedule_step)
    return {"clocks": clocks, "scale": scaler.get_scale(), "params": run.report()["params"]}


def _tensors(run: Run) -> list[Any]:
    states = [v for state in run.optimizer.state.values() for v in state.values()]
    return [*run.model.parameters(), *states]


def train_replicated(rank: int, world: int, **options: Any) -> dict[str, Any]:
    """DistributedDataParallel, whose gradients may be views of its buckets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()
    wrapped = DistributedDataParallel(model, **options) if world > 1 else model
    optimizer = lrfast.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, max_grad_norm=0.3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        inputs = torch.randn(BATCH, 5, generator=generator, dtype=torch.float64)
        part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        optimizer.zero_grad(set_to_none=False)
        wrapped(inputs[part]).square().mean().backward()
        optimizer.step()
    return {"params": [full(param) for param in model.parameters()]}


def resume(case: str, rank: int, world: int, folder: str) -> dict[str, Any]:
    """Load what another number of processes has saved after half of the steps; make the rest."""
    run = Run(case, rank, (world,))
    for param in run.model.parameters():
        local(param.data).mul_(0.3)
    state = {"training": lrfast.ShardedState(run.model, run.optimizer)}
    dcp.load(state, checkpoint_id=f"{folder}-{case}", no_dist=world == 1)
    if case == "schedule-free":
        run.optimizer.train()
    run.train(STEPS // 2, STEPS)
    return run.report()


def save(case: str, rank: int, world: int, folder: str) -> None:
    run = Run(case, rank, (world,))
    run.train(0, STEPS // 2)
    if case == "schedule-free":
        run.optimizer.eval()
    state = {"training": lrfast.ShardedState(run.model, run.optimizer)}
    dcp.save(state, checkpoint_id=f"{folder}-{case}")


class CodedRun(Run):
    """States in 8 bits: the first weight's shards are of whole blocks, the second one's are not."""

    def __init__(self, rank: int) -> None:
        self.rank, self.world = rank, dist.get_world_size() if dist.is_initialized() else 1
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 130))
        if self.world > 1:
            mesh = torch.distributed.init_device_mesh("cpu", (self.world,))
            fully_shard(self.model, mesh=mesh)
        self.optimizer = lrfast.AdamW(
            self.model.parameters(), lr=0.01, betas=(0.8, 0.95), state_dtype="8bit", seed=5
        )

    def train(self, first: int, last: int, infinite_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        for step in range(last):
            inputs = torch.randn(BATCH, 256, generator=generator)
            part = slice(self.rank * BATCH // self.world, (self.rank + 1) * BATCH // self.world)
            if step >= first:
                self.optimizer.zero_grad()
                self.model(inputs[part]).square().mean().backward()
                self.optimizer.step()

    def held(self) -> list[bytes]:
        return bits([local(tensor) for tensor in _tensors(self)])

    def decoded(self) -> list[dict[str, Any]]:
        states = self.optimizer.float32_state_dict()["state"].values()
        return [{name: full(value) for name, value in state.items()} for state in states]

    def load(self, folder: str) -> CodedRun:
        for param in self.model.parameters():
            local(param.data).mul_(0.3)
        state = {"training": lrfast.ShardedState(self.model, self.optimizer)}
        dcp.load(state, checkpoint_id=folder, no_dist=self.world == 1)
        return self


def train_coded(rank: int, world: int, folder: str) -> dict[str, Any]:
    """States in 8 bits: saved, loaded by as many processes, and two processes' by four."""
    run = CodedRun(rank)
    run.train(0, 3)
    path = f"{folder}/coded{world}"
    dcp.save({"training": lrfast.ShardedState(run.model, run.optimizer)}, checkpoint_id=path)
    seen: dict[str, Any] = {"decoded": run.decoded()}
    again = CodedRun(rank).load(path)
    seen["loaded"] = again.held() == run.held()
    for each in (run, again):
        each.train(3, 5)
    seen["goes on"] = again.held() == run.held()
    if world == 4:
        other = CodedRun(rank).load(f"{folder}/coded2")
        seen["resumed"] = other.decoded()
        other.train(3, 4)
    return seen


def lose_a_process(rank: int, world: int) -> str:
    """The last process dies before its second step; what do the others get?"""
    run = Run("sgd", rank, (world,))
    run.train(0, 1)
    for param in run.model.parameters():
        local(param.grad).fill_(0.1)
    if rank == world - 1:
        os._exit(0)
    try:
        run.optimizer.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


def work(rank: int, world: int, folder: str) -> None:
    """Everything that ``world`` processes do, in the order of both worlds' checkpoints."""
    torch.set_num_threads(1)
    here = Path(folder)
    store = f"file://{folder}/store{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    seen: dict[str, Any] = {}
    for case in CASES:
        run = Run(case, rank, (world,))
        run.train(0, STEPS)
        seen[case] = run.report()
        skipping = Run(case, rank, (world,))
        skipping.optimizer._set_options(lrfast.optim.Options(skip_nonfinite=True))
        skipping.train(0, 3, infinite_at=1)
        seen[case, "infinite"] = skipping.report()
    seen["collectives"] = count_collectives("adamw", rank, world)
    seen["range test"] = find_rate(rank, world)
    seen["scaler"] = scale_gradients(rank, world)
    seen["coded"] = train_coded(rank, world, folder)
    for case in SAVED:
        save(case, rank, world, f"{folder}/saved{world}")
    if world == 4:
        run = Run("adamw", rank, (2, 2))
        run.train(0, STEPS)
        seen["two dimensions"] = run.report()
        for case in SAVED:
            seen[case, "resumed"] = resume(case, rank, world, f"{folder}/saved2")
    else:
        seen["bucket view"] = train_replicated(rank, world, gradient_as_bucket_view=True)
        seen["static graph"] = train_replicated(rank, world, static_graph=True)
    (here / f"seen{world}-{rank}").write_bytes(pickle.dumps(seen))
    seen["dead"] = lose_a_process(rank, world)
    (here / f"seen{world}-{rank}").write_bytes(pickle.dumps(seen))
