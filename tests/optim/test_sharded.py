"""Parameters that are one process's part of a DTensor; the other process is faked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import STATEFUL, OptimizerCase, by_name
from torch import Tensor

import lrfast

fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    yield torch.distributed.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def shard(mesh: Any, local: torch.Tensor) -> Any:
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False)


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_shard_is_updated_as_a_tensor_of_its_size(case: OptimizerCase, mesh: Any) -> None:
    """Beside an ordinary parameter, whose presence torch's foreach refuses."""
    local = torch.randn(6, 4, dtype=torch.float64)
    params = [torch.nn.Parameter(shard(mesh, local.clone())), torch.nn.Parameter(torch.ones(3))]
    plain = [torch.nn.Parameter(local.clone()), torch.nn.Parameter(torch.ones(3))]
    ours = case.ours(params, **case.options, ema_decay=0.9)
    other = case.ours(plain, **case.options, ema_decay=0.9)
    for _ in range(3):
        grad = torch.randn(6, 4, dtype=torch.float64)
        params[0].grad = shard(mesh, grad.clone())
        plain[0].grad = grad
        for second in (params[1], plain[1]):
            second.grad = torch.ones(3)
        ours.step()
        other.step()
    assert torch.equal(params[0].to_local(), plain[0]) and torch.equal(params[1], plain[1])
    for name, value in other.state[plain[0]].items():
        mine = ours.state[params[0]][name]
        assert torch.equal(mine.to_local() if value.dim() else mine, value), name


def test_telemetry_of_one_shard_alone_is_refused(mesh: Any) -> None:
    """The norms of updates and weights are not added up over the processes."""
    param = torch.nn.Parameter(shard(mesh, torch.ones(4)))
    optimizer = lrfast.SGD([param], lr=1.0, telemetry=4)
    param.grad = shard(mesh, torch.ones(4))
    with pytest.raises(ValueError, match="telemetry needs whole parameters, got some that"):
        optimizer.step()
    assert torch.equal(param.to_local(), torch.ones(4))


def test_states_of_shards_in_8_bits(mesh: Any) -> None:
    """As those of a tensor of its size, through a state dict, a float32 one and wrap, too.

    Which tensors are small is the same on all processes: it goes by the size of the whole.
    """
    part = torch.nn.Parameter(shard(mesh, torch.randn(70, 63)))
    whole = torch.nn.Parameter(part.to_local().detach().clone())
    small = torch.nn.Parameter(shard(mesh, torch.ones(2047)))
    sharded = lrfast.AdamW([part, small], lr=0.1, state_dtype="8bit")
    plain = lrfast.AdamW([whole], lr=0.1, state_dtype="8bit")

    def step(optimizer: Any, param: Any) -> None:
        grad = torch.linspace(-1.0, 2.0, 70 * 63).reshape(70, 63)
        param.grad = grad if param is whole else shard(mesh, grad)
        optimizer.step()

    def held(optimizer: Any, param: Any) -> list[Tensor]:
        local = [getattr(v, "_local_tensor", v) for _, v in sorted(optimizer.state[param].items())]
        return [getattr(param, "_local_tensor", param), *local]

    small.grad = shard(mesh, torch.ones(2047))
    for optimizer, param in ((sharded, part), (plain, whole)):
        step(optimizer, param)
        step(optimizer, param)
        assert optimizer.state[param]["exp_avg_codes"].shape == param.shape
    assert all(map(torch.equal, held(sharded, part), held(plain, whole)))
    assert sharded.state[small]["exp_avg"].dtype is torch.float32
    saved = copy.deepcopy(sharded.state_dict())
    assert saved["state"][0]["exp_avg_scales"].shape == part.shape
    again = lrfast.AdamW([part, small], lr=0.1, state_dtype="8bit")
    again.load_state_dict(saved)
    assert all(map(torch.equal, held(again, part), held(sharded, part)))
    theirs = torch.optim.AdamW([part, small], foreach=False)
    theirs.load_state_dict(sharded.float32_state_dict())
    assert torch.equal(
        theirs.state[part]["exp_avg_sq"].to_local(),
        plain.float32_state_dict()["state"][0]["exp_avg_sq"],
    )
    wrapped = lrfast.wrap(theirs, state_dtype="8bit")
    step(wrapped, part)
    broken = plain.state_dict()
    broken["state"][0]["exp_avg_codes"] = torch.zeros(140, 63, dtype=torch.uint8)
    broken["state"][0]["exp_avg_scales"] = torch.zeros(140, 63, dtype=torch.uint8)
    one = lrfast.AdamW([part], lr=0.1, state_dtype="8bit")
    with pytest.raises(ValueError, match="must be a DTensor if its parameter is one"):
        one.load_state_dict(broken)


@pytest.mark.parametrize(("master", "other"), [("24bit", "32bit"), ("32bit", "24bit")])
def test_master_bits_of_a_shard(master: Any, other: Any, mesh: Any) -> None:
    """A DTensor, too, as the weights are; an optimizer of the other precision takes them."""
    local, grads = torch.randn(6, 4).bfloat16(), [torch.randn(6, 4).bfloat16() for _ in range(3)]
    part, plain = (torch.nn.Parameter(t) for t in (shard(mesh, local.clone()), local.clone()))
    options: dict[str, Any] = {"lr": 0.01, "state_dtype": torch.float32}
    both = [lrfast.AdamW([param], **options, master=master) for param in (part, plain)]
    for grad in grads:
        part.grad, plain.grad = shard(mesh, grad.clone()), grad
        for optimizer in both:
            optimizer.step()
    bits = both[0].state[part]["master_bits"]
    assert torch.equal(bits.to_local(), both[1].state[plain]["master_bits"]) and bits.any()
    weights = [optimizer.master_params() for optimizer in both]
    assert weights[0][part].shape == part.shape == (12, 4)
    assert torch.equal(weights[0][part].to_local(), weights[1][plain])
    taken = [lrfast.AdamW([param], **options, master=other) for param in (part, plain)]
    for own, source in zip(taken, both, strict=True):
        own.load_state_dict(source.state_dict())
        own.step()
    assert torch.equal(taken[0].master_params()[part].to_local(), taken[1].master_params()[plain])


@pytest.mark.parametrize("option", [{"cautious": True}, {"clipping_threshold": 1.0}])
def test_sums_over_shards_of_a_tensor_are_refused(mesh: Any, option: dict[str, Any]) -> None:
    """At once, and of a parameter that comes later; what needs no sum is an option of shards."""
    whole, part = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(shard(mesh, torch.ones(4)))
    message = f"{next(iter(option))} must be .* for sharded parameters"
    with pytest.raises(ValueError, match=message):
        lrfast.AdamW([part], **option)
    optimizer = lrfast.AdamW([whole], **option)
    optimizer.add_param_group({"params": [part]})
    whole.grad, part.grad = torch.ones(4), shard(mesh, torch.ones(4))
    with pytest.raises(ValueError, match=rf"{message}, as in param_groups\[1\]"):
        optimizer.step()
    assert bool((whole == 1).all()) and not optimizer.state.get(part)
    optimizer = lrfast.AdamW([part], lr=1.0, weight_decay=0.5, cautious_weight_decay=True)
    part.grad = shard(mesh, -torch.ones(4))
    optimizer.step()
    assert part.to_local().tolist() == pytest.approx([2.0] * 4)


def test_parameters_on_two_meshes_are_refused(mesh: Any) -> None:
    other = torch.distributed.init_device_mesh("cpu", (2,), mesh_dim_names=("other",))
    params = [torch.nn.Parameter(shard(each, torch.ones(4))) for each in (mesh, other)]
    for param, each in zip(params, (mesh, other), strict=True):
        param.grad = shard(each, torch.ones(4))
    with pytest.raises(ValueError, match="must lie on one mesh, got parameters on "):
        lrfast.SGD(params, lr=1.0).step()


def test_sharded_state_wants_one_of_our_optimizers() -> None:
    layer = torch.nn.Linear(2, 1)
    with pytest.raises(TypeError, match="must be one of lrfast's, got SGD"):
        lrfast.ShardedState(layer, torch.optim.SGD(layer.parameters()))


def trained(schedule: lrfast.schedules.Schedule, steps: int, cuts: int) -> tuple[Any, Any]:
    """A layer and its optimizer after some steps, whose Plateau has cut the rates so often."""
    layer = torch.nn.Linear(3, 2).double()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = lrfast.SGD(layer.parameters(), **options, schedule=schedule)
    plateau = lrfast.Plateau(optimizer, factor=0.5, patience=0)
    for _ in range(cuts + 1 if cuts else 0):
        plateau.observe(torch.tensor(1.0))
    for _ in range(steps):
        layer(torch.ones(1, 3).double()).square().sum().backward()
        optimizer.step()
    return layer, optimizer


def test_sharded_state_brings_schedule_plateau_and_step() -> None:
    schedule = lrfast.schedules.cosine(10)
    layer, optimizer = trained(schedule, 3, cuts=2)
    saved = lrfast.ShardedState(layer, optimizer).state_dict()
    other_layer, other = trained(schedule, 1, cuts=0)
    lrfast.ShardedState(other_layer, other).load_state_dict(saved)
    assert other.schedule_step == 3
    assert other.get_last_lr() == optimizer.get_last_lr() == [0.1 * schedule.at(3) * 0.25]
    assert torch.equal(other_layer.weight, layer.weight)
    momentum = optimizer.state[layer.weight]["momentum_buffer"]
    assert torch.equal(other.state[other_layer.weight]["momentum_buffer"], momentum)


def test_sharded_state_asks_whose_schedule_goes_on() -> None:
    layer, optimizer = trained(lrfast.schedules.cosine(10), 3, cuts=0)
    saved = lrfast.ShardedState(layer, optimizer).state_dict()
    linear, longer = lrfast.schedules.linear(1.0, 0.0, 10), lrfast.schedules.cosine(20)
    other_layer, other = trained(linear, 1, cuts=0)
    before = other_layer.weight.detach().clone()
    with pytest.raises(ValueError, match=r'schedule must be "saved" or "own".*cosine against lin'):
        lrfast.ShardedState(other_layer, other).load_state_dict(saved)
    assert torch.equal(other_layer.weight, before) and other.schedule_step == 1
    lrfast.ShardedState(other_layer, other, schedule="own").load_state_dict(saved)
    assert other.schedules == [linear] and other.schedule_step == 3
    lrfast.ShardedState(other_layer, other, schedule="saved").load_state_dict(saved)
    assert other.schedules == optimizer.schedules and other.schedule_step == 3
    other.set_schedule(longer, step=1)
    with pytest.warns(UserWarning, match=r"attached schedule goes on .*total steps: 10 against 20"):
        lrfast.ShardedState(other_layer, other).load_state_dict(saved)
    assert other.schedules == [longer] and other.schedule_step == 3
    with pytest.raises(ValueError, match="schedule must be 'saved' or 'own', got 'both'"):
        lrfast.ShardedState(layer, optimizer, schedule="both")  # type: ignore[arg-type]


def test_a_gradient_that_is_placed_otherwise_is_refused(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    def make(placement: Any) -> Any:
        return DTensor.from_local(torch.ones(4), mesh, [placement], run_check=False)

    param = torch.nn.Parameter(make(Replicate()))
    param.grad = make(Partial())
    with pytest.raises(ValueError, match="must be placed as the parameter is"):
        lrfast.SGD([param], lr=1.0).step()
