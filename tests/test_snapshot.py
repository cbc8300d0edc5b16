"""Claims of `lrfast.snapshot`: a range test leaves no trace, bit for bit, however it ends.

The first part states the claim over whole training runs; the second names every covered item, so
that each has a test of its own which fails when its restore is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from lrfast.snapshot import Snapshot, preserved


class Noisy(Dataset[Tensor]):
    """Twelve rows with noise from Python, numpy and torch, as augmentations draw it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(4)
        return torch.linspace(-1, 1, 4) * (index + 1) / 12 + 0.1 * noise


class Net(nn.Module):
    """Tied weights, batch norm, dropout, a frozen layer, a part in eval mode, odd buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.fixed_norm = nn.BatchNorm1d(4).eval()
        self.dropout = nn.Dropout(0.3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("expanded", torch.zeros(1).expand(3))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen += x.sum(0)
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # binds a new tensor
        x = self.fixed_norm(self.dropout(self.norm(self.encoder(x))))
        return self.decoder(torch.tanh(self.frozen(x))) + self.seen.tanh() + self.mean


@dataclass
class Run:
    model: Net
    optimizer: torch.optim.Optimizer
    scheduler: OneCycleLR
    scaler: torch.amp.GradScaler
    loader: DataLoader[Tensor]

    def watched(self) -> dict[str, Any]:
        return {"others": (self.scheduler, self.scaler), "loaders": (self.loader,)}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def build(
    optimizer: str = "sgd", own_generator: bool = True, workers: int = 0, persistent: bool = False
) -> Run:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    model = Net()
    built = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    return Run(
        model,
        built,
        OneCycleLR(built, max_lr=0.1, total_steps=100),
        torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3),
        DataLoader(
            Noisy(),
            batch_size=4,
            shuffle=True,
            generator=torch.Generator().manual_seed(4) if own_generator else None,
            num_workers=workers,
            persistent_workers=persistent,
        ),
    )


def batches(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


def train(run: Run, steps: int) -> list[Tensor]:
    losses = []
    for batch in islice(batches(run.loader), steps):
        run.optimizer.zero_grad()
        loss = (run.model(batch) - batch).square().mean()
        run.scaler.scale(loss).backward()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.scheduler.step()
        losses.append(loss.detach())
    return losses


def sweep(run: Run, error: BaseException | None = None) -> None:
    """What a careless range test does, ending in the middle of a step if there is an error."""
    run.model.train()
    for group in run.optimizer.param_groups:
        group["lr"], group["note"] = 1.0, "swept"
    train(run, 4)
    if error is not None:
        batch = next(iter(run.loader))
        run.scaler.scale(run.model(batch).sum()).backward()
        run.scaler.unscale_(run.optimizer)
        raise error


def bits(value: Any) -> Any:
    """`value` with each tensor as dtype, shape and bytes, so that == compares bit for bit."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return [(bits(k) if isinstance(k, Tensor) else k, bits(v)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def trace(run: Run) -> dict[str, Any]:
    generator = run.loader.generator
    return {
        "parameters": bits([(p, p.grad, p.requires_grad) for p in run.model.parameters()]),
        "buffers": bits(dict(run.model.named_buffers())),
        "training": [m.training for m in run.model.modules()],
        "optimizer": bits(run.optimizer.state_dict()),
        "scheduler": bits(run.scheduler.state_dict()),
        "scaler": bits(run.scaler.state_dict()),
        "python": random.getstate(),
        "numpy": bits(np.random.get_state()),
        "torch": bits(torch.get_rng_state()),
        "loader": None if generator is None else bits(generator.get_state()),
    }


# The claim over whole runs.


@pytest.mark.parametrize("error", [None, RuntimeError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_sweep_then_train_is_train(
    optimizer: str, own_generator: bool, before: int, error: BaseException | None
) -> None:
    check_claim(error, before, optimizer=optimizer, own_generator=own_generator)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("own_generator", [True, False])
def test_sweep_then_train_is_train_with_workers(own_generator: bool, persistent: bool) -> None:
    check_claim(None, 0, own_generator=own_generator, workers=2, persistent=persistent)


def check_claim(error: BaseException | None, before: int, **options: Any) -> None:
    plain = build(**options)
    plain_losses = train(plain, before) + train(plain, 5)
    expected = trace(plain)

    swept = build(**options)
    losses = train(swept, before)
    untouched = trace(swept)
    leaves = nullcontext() if error is None else pytest.raises(type(error))
    with leaves, preserved(swept.model, swept.optimizer, **swept.watched()):
        sweep(swept, error)
    assert trace(swept) == untouched
    losses += train(swept, 5)
    assert bits(losses) == bits(plain_losses)
    assert trace(swept) == expected


def test_the_sweep_would_leave_a_trace() -> None:
    run = build(optimizer="adamw")
    train(run, 5)
    untouched = trace(run)
    sweep(run)
    after = trace(run)
    assert [name for name in after if after[name] == untouched[name]] == []


def test_restores_as_often_as_asked() -> None:
    run = build(optimizer="adamw")
    train(run, 5)
    untouched = trace(run)
    snapshot = Snapshot(run.model, run.optimizer, **run.watched())
    for _ in range(3):
        sweep(run)
        snapshot.restore()
        assert trace(run) == untouched


# Item by item.


@pytest.fixture
def small() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


Small = tuple[nn.Linear, torch.optim.Optimizer]


def test_parameters_and_buffers_keep_identity_values_and_views() -> None:
    run = build()
    tensors = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    values = bits(tensors)
    view = run.model.encoder.weight.detach()[0]
    with preserved(run.model, run.optimizer):
        sweep(run)
        with torch.no_grad():
            run.model.frozen.weight.fill_(7)
            run.model.expanded = torch.ones(3)
            tensors["expanded"].narrow(0, 0, 1).fill_(7)
        run.model.cache = torch.ones(1)
        run.model.register_buffer("late", torch.ones(1))
        run.model.decoder.weight = nn.Parameter(torch.ones(4, 4))
    after = {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}
    assert bits(after) == values
    assert all(after[name] is tensors[name] for name in tensors)
    assert run.model.decoder.weight is run.model.encoder.weight
    assert view.data_ptr() == run.model.encoder.weight.data_ptr()
    assert run.model.cache is None


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and its tables are no dicts
def test_scripted_modules() -> None:
    model = torch.jit.script(nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = bits([list(model.parameters()), list(model.buffers())])
    with preserved(model, optimizer):
        model(torch.rand(4, 2)).square().sum().backward()
        optimizer.step()
    assert bits([list(model.parameters()), list(model.buffers())]) == before


def test_tied_parameters_are_held_once() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    assert Snapshot(tied, optimizer).nbytes == 4 * 4


def test_parameters_that_only_the_optimizer_knows(small: Small) -> None:
    model, optimizer = small
    extra = nn.Parameter(torch.ones(2))
    extra.grad = torch.full((2,), 3.0)
    optimizer.add_param_group({"params": [extra]})
    with preserved(model, optimizer):
        extra.grad = None
        with torch.no_grad():
            extra.fill_(7)
        extra.requires_grad_(False)
    assert bits(extra) == bits(torch.ones(2))
    assert bits(extra.grad) == bits(torch.full((2,), 3.0))
    assert extra.requires_grad


def test_gradients_that_existed_keep_object_and_values(small: Small) -> None:
    model, optimizer = small
    model(torch.ones(1, 2)).sum().backward()
    grads = [p.grad for p in model.parameters()]
    values = bits(grads)
    with preserved(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()  # adds in place
        assert bits(grads) != values
        optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert bits(grads) == values


def test_gradients_that_did_not_exist_are_none_again(small: Small) -> None:
    model, optimizer = small
    with preserved(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
    assert [p.grad for p in model.parameters()] == [None, None]


def test_sparse_gradients() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([1, 1, 3])).sum().backward()
    grad = model.weight.grad
    assert grad is not None
    values = bits([grad._indices(), grad._values()])
    with preserved(model, optimizer) as snapshot:
        model(torch.tensor([0, 4])).sum().backward()
    assert model.weight.grad is grad
    assert bits([grad._indices(), grad._values()]) == values
    assert snapshot.nbytes == 5 * 2 * 4 + 3 * 2 * 4 + 3 * 8


def test_requires_grad_flags() -> None:
    run = build()
    flags = [p.requires_grad for p in run.model.parameters()]
    with preserved(run.model, run.optimizer):
        run.model.frozen.requires_grad_(True)
        run.model.encoder.requires_grad_(False)
    assert [p.requires_grad for p in run.model.parameters()] == flags


def test_train_and_eval_flags_of_every_submodule() -> None:
    run = build()
    flags = [m.training for m in run.model.modules()]
    assert len(set(flags)) == 2
    for change in (run.model.train, run.model.eval):
        with preserved(run.model, run.optimizer):
            change()
        assert [m.training for m in run.model.modules()] == flags


def test_optimizer_state_that_did_not_exist_is_removed(small: Small) -> None:
    model, optimizer = small
    state = optimizer.state
    with preserved(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert len(optimizer.state) == 2
    assert optimizer.state is state
    assert len(state) == 0


def test_nested_optimizer_state(small: Small) -> None:
    model, optimizer = small
    kept = torch.ones(2)
    generator = torch.Generator().manual_seed(5)
    draws = generator.get_state()
    entry = optimizer.state[model.weight]
    entry.update(
        step=5,
        decay=0.5,
        deep={"moments": [kept, {"pair": (kept, torch.zeros(1))}], "n": 1},
        generator=generator,
    )
    entry["itself"] = entry  # sharing and cycles are no trouble
    moments = entry["deep"]["moments"]
    with preserved(model, optimizer):
        torch.rand(1, generator=generator)
        kept.fill_(7)
        moments[1]["pair"][1].fill_(7)
        moments[1]["new"] = 1
        moments[0] = torch.zeros(9)
        moments.append(1)
        del entry["decay"]
        entry.update(step=6, deep={})
    assert optimizer.state[model.weight] is entry
    assert (entry["step"], entry["decay"], entry["deep"]["n"]) == (5, 0.5, 1)
    assert entry["deep"]["moments"] is moments
    assert len(moments) == 2
    assert moments[0] is kept is moments[1]["pair"][0]
    assert list(moments[1]) == ["pair"]
    assert bits([kept, moments[1]["pair"][1]]) == bits([torch.ones(2), torch.zeros(1)])
    assert bits(generator.get_state()) == bits(draws)


def test_state_and_groups_bound_anew_by_load_state_dict(small: Small) -> None:
    model, optimizer = small
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state, groups = optimizer.state, optimizer.param_groups
    values = bits(optimizer.state_dict())
    with preserved(model, optimizer):
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert bits(optimizer.state_dict()) == values


def test_param_groups(small: Small) -> None:
    model, optimizer = small
    (group,) = optimizer.param_groups
    rate = torch.tensor(0.1)
    group["lr"] = rate
    with preserved(model, optimizer):
        rate.fill_(7)
        group.update(lr=7.0, momentum=0.5, initial_lr=7.0)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        group["params"].pop()
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] is group
    assert group["lr"] is rate
    assert bits(rate) == bits(torch.tensor(0.1))
    assert group["momentum"] == 0.9
    assert "initial_lr" not in group
    assert len(group["params"]) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda o: OneCycleLR(o, max_lr=1.0, total_steps=50),
        lambda o: MultiStepLR(o, [2, 4]),
        lambda o: LambdaLR(o, lambda step: 0.9**step),
        lambda o: ReduceLROnPlateau(o, patience=1),
    ],
    ids=["one_cycle", "multistep", "lambda", "plateau"],
)
def test_schedulers(small: Small, make: Callable[[Any], Any]) -> None:
    model, optimizer = small
    scheduler = make(optimizer)
    arguments = (1.0,) if isinstance(scheduler, ReduceLROnPlateau) else ()
    optimizer.step()
    scheduler.step(*arguments)
    before = bits(scheduler.state_dict())
    with preserved(model, optimizer, others=[scheduler]):
        for _ in range(7):
            scheduler.step(*arguments)
        assert bits(scheduler.state_dict()) != before
    assert bits(scheduler.state_dict()) == before


class Aliasing:
    """Hands out its inner state and keeps what it is given, as torch's schedulers do."""

    def __init__(self) -> None:
        self.state = {"history": [1], "tensor": torch.ones(3)}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def test_others_are_copied_both_ways(small: Small) -> None:
    other = Aliasing()
    snapshot = Snapshot(*small, others=[other])
    for _ in range(2):
        other.state["history"].append(2)
        snapshot.restore()
        assert other.state["history"] == [1]
    assert snapshot.nbytes == 6 * 4 + 3 * 4


def test_the_rest_is_restored_when_one_of_the_others_raises(small: Small) -> None:
    class Broken(Aliasing):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise OSError("broken")

    model, _ = small
    values, draws = bits(model.weight), bits(torch.get_rng_state())
    with pytest.raises(OSError, match="broken"), preserved(*small, others=[Broken()]):
        nn.init.normal_(model.weight)
    assert (bits(model.weight), bits(torch.get_rng_state())) == (values, draws)


def test_scaler_is_restored_in_place_and_without_asking_its_device(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = small
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scale = scaler._scale
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "item", lambda tensor: pytest.fail("a device was asked"))
        snapshot = Snapshot(model, optimizer, others=[scaler])
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    scaler.unscale_(optimizer)  # and the sweep ends here, in the middle of a step
    snapshot.restore()
    assert scaler._scale is scale
    assert scaler.get_scale() == 64.0
    scaler.unscale_(optimizer)  # raises where it still counts as unscaled


def test_scaler_that_was_not_used_yet(small: Small) -> None:
    model, optimizer = small
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    before = dict(vars(scaler))
    with preserved(model, optimizer, others=[scaler]):
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert vars(scaler) == before


@pytest.mark.parametrize(
    ("read", "draw"),
    [
        (random.getstate, random.random),
        (lambda: bits(np.random.get_state()), np.random.rand),
        (lambda: bits(torch.get_rng_state()), lambda: torch.rand(1)),
    ],
    ids=["python", "numpy", "torch"],
)
def test_global_random_states(
    small: Small, read: Callable[[], Any], draw: Callable[[], Any]
) -> None:
    before = read()
    with preserved(*small):
        draw()
        assert read() != before
    assert read() == before


def test_random_states_of_initialised_cuda(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    states, restored = [torch.ones(16)], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    Snapshot(*small).restore()
    assert restored == [states]


def test_cuda_is_not_initialised_for_this(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA was initialised"))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("CUDA was asked"))
    Snapshot(*small).restore()


def loader_with(where: str, generator: torch.Generator) -> DataLoader[Tensor]:
    if where == "loader":
        return DataLoader(Noisy(), generator=generator)
    sampler = RandomSampler(Noisy(), generator=generator)
    if where == "sampler":
        return DataLoader(Noisy(), sampler=sampler, batch_size=None)
    return DataLoader(Noisy(), batch_sampler=BatchSampler(sampler, 4, drop_last=False))


@pytest.mark.parametrize("where", ["loader", "sampler", "batch_sampler"])
def test_generators_of_loaders(small: Small, where: str) -> None:
    generator = torch.Generator().manual_seed(1)
    loader = loader_with(where, generator)
    before = bits(generator.get_state())
    with preserved(*small, loaders=[loader]):
        list(loader)
        assert bits(generator.get_state()) != before
    assert bits(generator.get_state()) == before


def test_other_loaders_are_left_alone(small: Small) -> None:
    endless = (torch.full((1,), float(i)) for i in range(10))
    with preserved(*small, loaders=[endless, [torch.ones(1)]]):
        assert next(endless).item() == 0
    assert next(endless).item() == 1


def test_engine_is_restored_after_what_torch_sees() -> None:
    class Fused(torch.optim.SGD):
        clock = 3

        def _engine_snapshot(self) -> object:
            return self.clock, torch.zeros(2)

        def _engine_restore(self, state: tuple[int, Tensor]) -> None:
            self.clock = state[0]
            self.rates_seen = [group["lr"] for group in self.param_groups]

    model = nn.Linear(2, 2)
    optimizer = Fused(model.parameters(), lr=0.1)
    with preserved(model, optimizer) as snapshot:
        optimizer.clock = 9
        optimizer.param_groups[0]["lr"] = 7.0
    assert (optimizer.clock, optimizer.rates_seen) == (3, [0.1])
    assert snapshot.nbytes == 6 * 4 + 2 * 4


def test_bytes_of_model_gradients_and_state(small: Small) -> None:
    model, optimizer = small
    assert Snapshot(model, optimizer).nbytes == 6 * 4
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert Snapshot(model, optimizer).nbytes == 3 * 6 * 4


def test_lbfgs_keeps_lists_of_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.eye(2)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = bits([dict(model.named_parameters()), optimizer.state_dict()])
    with preserved(model, optimizer):
        optimizer.step(closure)
    assert bits([dict(model.named_parameters()), optimizer.state_dict()]) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 1}, r"model: wanted a torch.nn.Module, got int"),
        ({"optimizer": 1}, r"optimizer: wanted a torch.optim.Optimizer, got int"),
        ({"others": [Aliasing(), 1]}, r"others\[1\]: wanted an object with state_dict .*, got int"),
        ({"others": Aliasing()}, r"others: wanted a list or tuple, got Aliasing"),
        ({"loaders": DataLoader(Noisy())}, r"loaders: wanted a list or tuple, got DataLoader"),
    ],
)
def test_wrong_arguments(small: Small, arguments: dict[str, Any], message: str) -> None:
    model, optimizer = small
    with pytest.raises(TypeError, match=message):
        Snapshot(**{"model": model, "optimizer": optimizer, **arguments})


def test_lazy_parameters_are_refused(small: Small) -> None:
    with pytest.raises(ValueError, match="lazy 'weight'"):
        Snapshot(nn.LazyLinear(2), small[1])
