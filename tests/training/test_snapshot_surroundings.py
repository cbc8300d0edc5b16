"""What `lrfast.snapshot` covers besides: schedulers, scalers, random states, loaders, engines."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from training_runs import Noisy, Small, bits

from lrfast.snapshot import Snapshot, preserved


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
    assert snapshot.nbytes == 6 * 4 + 2 * 3 * 4  # its state dict, and its attributes


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
