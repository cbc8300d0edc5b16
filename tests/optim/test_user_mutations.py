"""What users do behind an optimizer's back: swapped storage, subclasses, second backward passes."""

from __future__ import annotations

import copy
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import lrfast
from lrfast.snapshot import Snapshot
from lrfast.training._data import to_device

ON_META = torch.device("meta")


def make_param(values: Tensor, grad: Tensor | None = None) -> torch.nn.Parameter:
    param = torch.nn.Parameter(values)
    param.grad = torch.ones_like(values) if grad is None else grad
    return param


def test_a_parameter_that_grew_is_updated_whole() -> None:
    param = make_param(torch.zeros(100))
    optimizer = lrfast.SGD([param], lr=0.5)
    optimizer.step()
    param.grad = None
    param.data = torch.zeros(40_000)
    param.grad = torch.ones(40_000)
    optimizer.step()
    assert torch.equal(param.detach(), torch.full((40_000,), -0.5))


class WithoutMemory(torch.Tensor):
    """A wrapper subclass, as DTensor is one."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> WithoutMemory:
        wrapper: WithoutMemory = torch.Tensor._make_wrapper_subclass(cls, inner.shape)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(function)


def test_a_subclass_without_memory_is_refused() -> None:
    param = torch.nn.Parameter(WithoutMemory(torch.ones(3)))
    optimizer = lrfast.SGD([param], lr=0.1)
    optimizer.step()  # without a gradient it makes no demands
    param.grad = torch.ones(3)
    with pytest.raises(
        TypeError, match="must have memory of its own, as a tensor subclass may not"
    ):
        optimizer.step()


def test_a_second_backward_pass_through_old_values_is_noticed() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    loss = (weight * weight).sum()
    loss.backward(retain_graph=True)
    lrfast.SGD([weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rule", [lrfast.SGD, lrfast.AdamW])
def test_states_with_swapped_storage_are_used(rule: Any) -> None:
    options = {"momentum": 0.9} if rule is lrfast.SGD else {}
    param = make_param(torch.ones(4))
    optimizer = rule([param], lr=0.1, **options)
    optimizer.step()
    name = "momentum_buffer" if rule is lrfast.SGD else "exp_avg"
    old = optimizer.state[param][name].data
    before = old.clone()
    optimizer.state[param][name].data = torch.zeros(4)
    optimizer.step()
    assert torch.equal(old, before)
    assert (optimizer.state[param][name] != 0).all()


def test_a_lazily_negated_gradient() -> None:
    param = make_param(torch.zeros(3), torch._neg_view(torch.ones(3)))
    lrfast.SGD([param], lr=0.5).step()
    assert torch.equal(param.detach(), torch.full((3,), 0.5))


def test_hooks_see_the_arguments_that_were_given() -> None:
    seen: list[tuple[Any, ...]] = []
    optimizer = lrfast.SGD([make_param(torch.ones(2))], lr=0.1)
    optimizer.register_step_pre_hook(lambda _, args, kwargs: seen.append(args[1:]))
    optimizer.step()
    assert seen == [()]


def test_a_group_that_was_taken_away() -> None:
    params = [make_param(torch.ones(2)), make_param(torch.ones(2))]
    optimizer = lrfast.SGD([{"params": [p]} for p in params], lr=0.5)
    optimizer.set_schedule(lrfast.schedules.constant(0.5))
    optimizer.step()
    optimizer.param_groups.pop()
    optimizer.step()
    assert optimizer.get_last_lr() == [0.25]
    assert params[0].detach().tolist() == [0.5, 0.5]
    assert params[1].detach().tolist() == [0.75, 0.75]


def test_a_rate_on_another_device_is_refused() -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(1))], "lr": torch.ones((), device=ON_META)}
    with pytest.raises(ValueError, match=r"lr of param_groups\[0\] must be.*on cpu or cuda"):
        lrfast.SGD([group])


def test_a_suggestion_fills_a_tensor_rate() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=torch.tensor(0.1))
    rate = optimizer.param_groups[0]["lr"]
    batch = (torch.ones(4, 2), torch.ones(4, 1))
    result = lrfast.lr_find(
        model, optimizer, [batch], torch.nn.functional.mse_loss, progress=False, end_lr=0.1
    )
    (applied,) = result.apply(optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(applied)


def test_a_curve_goes_on_after_it_was_cut() -> None:
    curve = lrfast.LossCurve(4)
    for loss in (1.0, 2.0, 3.0):
        curve.record(torch.tensor(loss))
    curve.truncate(1)
    curve.record(torch.tensor(9.0))
    assert curve.losses.tolist() == [1.0, 9.0]
    assert curve.status().count == 2


def test_a_curve_under_another_default_device() -> None:
    curve = lrfast.LossCurve(1, "cpu")
    with ON_META:
        curve.record(torch.tensor(1.0, device="cpu"), lr=0.1)
    assert curve.lrs.tolist() == [0.1]


def test_batches_that_know_how_to_move() -> None:
    packed = pack_sequence([torch.ones(2), torch.ones(1)])
    moved = to_device(packed, torch.device("cpu"))
    assert isinstance(moved, PackedSequence)
    encoding: UserDict[str, Tensor] = UserDict(ids=torch.ones(2))
    assert to_device(encoding, ON_META)["ids"].device == ON_META


@pytest.mark.parametrize("rule", [lrfast.AdamW, torch.optim.AdamW])
def test_an_empty_parameter_has_states_and_counts(rule: Any) -> None:
    empty, other = make_param(torch.zeros(0, 3)), make_param(torch.ones(2))
    optimizer = rule([empty, other], lr=0.1)
    for _ in range(2):
        optimizer.step()
    state = optimizer.state[empty]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["exp_avg"].shape == (0, 3)
    assert state["step"].item() == 2.0


def test_the_same_memory_read_as_another_dtype() -> None:
    param = make_param(torch.ones(4, dtype=torch.bfloat16))
    optimizer = lrfast.SGD([param], lr=0.5)
    optimizer.step()
    param.grad = None
    param.data = param.data.view(torch.float16)
    expected = param.detach() - 0.5
    param.grad = torch.ones(4, dtype=torch.float16)
    optimizer.step()
    assert torch.equal(param.detach(), expected)


def test_loading_into_an_optimizer_that_has_gone_on() -> None:
    param = make_param(torch.ones(3))
    optimizer = lrfast.AdamW([param], lr=0.1, schedule=lrfast.schedules.one_cycle(20))
    for _ in range(4):
        optimizer.step()
    saved, values = copy.deepcopy(optimizer.state_dict()), param.detach().clone()

    def go_on() -> list[float]:
        rates = []
        for _ in range(5):
            optimizer.step()
            rates += optimizer.last_rates.tolist()
        return [*rates, *param.detach().tolist()]

    first = go_on()
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        param.copy_(values)
    assert optimizer.schedule_step == 4
    assert go_on() == first


@pytest.mark.parametrize("change", ["load", "add group"])
def test_a_snapshot_outlives_the_engine(change: str) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = lrfast.SGD(model.parameters(), lr=0.1, schedule=lrfast.schedules.one_cycle(20))
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
    snapshot = Snapshot(model, optimizer)
    if change == "load":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        optimizer.add_param_group({"params": [make_param(torch.ones(2))]})
    optimizer.step()
    if change == "load":
        optimizer._engine = None
    snapshot.restore()
    assert optimizer.schedule_step == 3
    optimizer.step()
    expected = 0.1 * lrfast.schedules.one_cycle(20).at(3)
    assert optimizer.last_rates.tolist() == [expected]
