"""Muon beside AdamW: against torch's two optimizers and the reference, all that a step does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captures import Training, make_muon, train_both
from cases import random_grad, twins
from reference import optimizers as reference
from torch import Tensor, nn
from torch.distributed.tensor import Shard
from torch.optim import _muon as torch_muon

import lrfast
from lrfast import schedules
from lrfast.optim._newton_schulz import NewtonSchulz

ADAMW: dict[str, Any] = {"lr": 0.02, "betas": (0.85, 0.97), "eps": 1e-4, "weight_decay": 0.03}
# Muon's arguments, none neutral; "defaults" are torch's.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "plain": {"nesterov": False, "momentum": 0.7, "weight_decay": 0.3},
    "match_rms_adamw": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.02},
    "original": {"adjust_lr_fn": "original", "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 4},
    "large-eps": {"eps": 30.0, "ns_steps": 3},
    "no-steps": {"ns_steps": 0, "momentum": 0.0},
}
NORMUON: dict[str, dict[str, Any]] = {
    "normuon": {"beta2": 0.9, "momentum": 0.8},
    "normuon-plain": {"beta2": 0.6, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
}
ALL = ARGUMENTS | NORMUON
EACH = pytest.mark.parametrize("arguments", ALL.values(), ids=ALL)
SHAPES = ((7, 12), (12, 7), (7, 12), (5, 5), (1, 6), (6, 1))


def matrices(
    dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> list[Tensor]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape, dtype=dtype).to(device)) for shape in SHAPES]


def others(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> list[Tensor]:
    torch.manual_seed(4)
    shapes = ((), (9,), (11, 4))
    return [nn.Parameter(torch.randn(shape, dtype=dtype).to(device)) for shape in shapes]


def set_grads(step: int, *lists: list[Tensor]) -> None:
    """Gradients that depend on step and position alone."""
    for params in lists:
        torch.manual_seed(step)
        for param in params:
            param.grad = random_grad(param) + 0.2


def exact_zeropower(
    grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """torch's function of that name without its rounding to bfloat16."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


def furthest(params: list[Tensor], wanted: list[Tensor]) -> float:
    errors = [(a - b).abs() / (b.abs() + 1e-3) for a, b in zip(params, wanted, strict=True)]
    return max(float(error.detach().max()) for error in errors)


def both(mine: list[Tensor], rest: list[Tensor], lr: float = 0.03, **options: Any) -> lrfast.Muon:
    groups = [{"params": mine}, {"params": rest, "rule": "adamw", **ADAMW}]
    return lrfast.Muon(groups, lr, **options)


# By default three rows; all of them make 8 steps against the reference below.
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(each, marks=() if place < 3 else pytest.mark.full)
        for place, each in enumerate(ARGUMENTS.values())
    ],
    ids=ARGUMENTS,
)
def test_equal_to_torch_over_200_steps(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.optim.Muon and AdamW side by side; products in float64, or they hide all else."""
    monkeypatch.setattr(torch_muon, "_zeropower_via_newtonschulz", exact_zeropower)
    mine, rest = matrices(), others()
    its, its_rest = twins(mine), twins(rest)
    optimizer = both(mine, rest, **arguments, ns_dtype=torch.float64)
    muon = torch.optim.Muon(its, 0.03, **arguments)
    adamw = torch.optim.AdamW(its_rest, **ADAMW)
    for step in range(200):
        set_grads(step, mine, its)
        set_grads(step, rest, its_rest)
        for each in (optimizer, muon, adamw):
            if each is not adamw:  # both follow a schedule, AdamW's group its own
                each.param_groups[0]["lr"] = 0.03 * (1 + step % 7)
            each.step()
    assert furthest(mine + rest, its + its_rest) < 1e-10
    for param, other in zip(mine, its, strict=True):
        buffer = optimizer.state[param]["momentum_buffer"]
        assert furthest([buffer], [muon.state[other]["momentum_buffer"]]) < 1e-10


def normuon_update(grad: Tensor, momentum: Tensor, rows: Tensor, nesterov: bool) -> Tensor:
    """The authors' function of that name, without its rounding; beta 0.8, beta2 0.9."""
    momentum.lerp_(grad, 0.2)
    update = grad.lerp(momentum, 0.8) if nesterov else momentum.clone()
    update = exact_zeropower(update, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    norm = update.norm()
    rows.lerp_((update * update).mean(-1, keepdim=True), 0.1)
    update *= 1 / rows.sqrt().add(1e-10)
    update *= norm / update.norm().add(1e-10)
    return update * max(1, grad.size(-2) / grad.size(-1)) ** 0.5


@pytest.mark.parametrize("nesterov", [True, False])
def test_equal_to_normuon_over_200_steps(nesterov: bool) -> None:
    arguments: dict[str, Any] = {"momentum": 0.8, "beta2": 0.9, "nesterov": nesterov}
    mine = matrices()
    its = twins(mine)
    optimizer = lrfast.Muon(mine, 0.03, 0.2, **arguments, ns_dtype=torch.float64)
    momenta = [torch.zeros_like(param) for param in its]
    rows = [torch.zeros(len(param), 1, dtype=torch.float64) for param in its]
    for step in range(200):
        set_grads(step, mine, its)
        optimizer.step()
        for param, momentum, average in zip(its, momenta, rows, strict=True):
            assert param.grad is not None
            update = normuon_update(param.grad, momentum, average, nesterov)
            param.data.mul_(1 - 0.03 * 0.2).add_(update, alpha=-0.03)
    assert furthest(mine, its) < 1e-10
    assert furthest([optimizer.state[p]["second_momentum_buffer"] for p in mine], rows) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_near_to_exact_products_as_torch_is(dtype: torch.dtype) -> None:
    """bfloat16 has 8 bits, and the order of a product's sums decides on the last: 2 % of a step."""
    mine, its = matrices(dtype), matrices(dtype)
    start = [param.detach().clone() for param in mine]
    optimizer, muon = lrfast.Muon(mine, 0.5, 0.0), torch.optim.Muon(its, 0.5, 0.0)
    exact = matrices(torch.float64)
    reference_steps = lrfast.Muon(exact, 0.5, 0.0, ns_dtype=torch.float64)
    set_grads(0, mine, its)
    for param, other in zip(exact, mine, strict=True):
        param.data.copy_(other)
        param.grad = other.grad.double()  # type: ignore[union-attr]
    for each in (optimizer, muon, reference_steps):
        each.step()
    for was, param, other, right in zip(start, mine, its, exact, strict=True):
        size = (right.detach() - was).norm()
        assert (param - right).norm() < 0.03 * size
        assert (param - other).norm() < 0.03 * size


@EACH
def test_equal_to_the_reference_in_every_layout(arguments: dict[str, Any]) -> None:
    """Convolutions are matrices by flattening, wherever their elements lie."""
    torch.manual_seed(5)
    new = [torch.randn(shape, dtype=torch.float64) for shape in ((6, 3, 2, 2), (4, 2, 3), (8, 9))]
    layouts = [
        *new,
        new[0].contiguous(memory_format=torch.channels_last),
        torch.randn(9, 8, dtype=torch.float64).t(),
        torch.randn(40, 10, dtype=torch.float64)[::4, 1:5],
        torch.randn(3, 4, 5, dtype=torch.float64).permute(2, 0, 1),
        torch.zeros(0, 3, dtype=torch.float64),
    ]
    params: list[Tensor] = [nn.Parameter(layout) for layout in layouts]
    optimizer = lrfast.Muon(params, 0.03, **arguments, ns_dtype=torch.float64)
    values = [param.detach().numpy().copy() for param in params]
    states: list[dict[str, Any]] = [{} for _ in params]
    for step in range(8):
        set_grads(step, params)
        optimizer.step()
        for i, param in enumerate(params[:-1]):
            assert param.grad is not None
            values[i], states[i] = reference.muon(
                values[i], param.grad.numpy(), states[i], lr=0.03, **arguments
            )
    assert furthest(params[:-1], [torch.as_tensor(value) for value in values[:-1]]) < 1e-9


def test_matrices_of_one_shape_share_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over groups whose products are alike; frozen ones at either end have none."""
    seen: list[tuple[int, ...]] = []
    products = NewtonSchulz.__call__

    def count(self: NewtonSchulz, stack: Tensor, *others: Any) -> bool:
        seen.append(tuple(stack.shape))
        return products(self, stack, *others)

    monkeypatch.setattr(NewtonSchulz, "__call__", count)
    params: list[Tensor] = [nn.Parameter(torch.randn(4, 6)) for _ in range(5)]
    optimizer = lrfast.Muon([{"params": [param], "lr": 0.1} for param in params])
    set_grads(0, params)
    optimizer.step()
    assert seen == [(5, 4, 6)]
    params[4].grad = None
    optimizer.param_groups[0]["frozen"] = True
    optimizer.step()
    assert seen[1:] == [(3, 4, 6)]


def test_groups_of_one_stack_keep_their_own_products() -> None:
    own: tuple[dict[str, Any], ...] = ({}, {"ns_steps": 2}, {"adjust_lr_fn": "match_rms_adamw"})
    own += ({"beta2": 0.7}, {"beta2": 0.2})
    params: list[Tensor] = [nn.Parameter(torch.randn(9, 4)) for _ in own]
    alone = twins(params)
    groups = [{"params": [p], **each} for p, each in zip(params, own, strict=True)]
    each_alone = [lrfast.Muon([p], **each) for p, each in zip(alone, own, strict=True)]
    set_grads(0, params, alone)
    optimizers = (lrfast.Muon(groups), *each_alone)
    for step in range(3):  # the first one makes all averages of rows alike
        set_grads(step, params, alone)
        for optimizer in optimizers:
            optimizer.step()
    assert furthest(params, alone) < 1e-3


def test_another_dict_in_place_of_a_group_has_its_own_products() -> None:
    optimizer, mine, _ = around()
    run(optimizer, mine, range(2))
    again = copy.deepcopy(optimizer)
    optimizer.param_groups[0] = optimizer.param_groups[0] | {"ns_steps": 2}
    again.param_groups[0]["ns_steps"] = 2
    for each in (optimizer, again):
        run(each, each.param_groups[0]["params"], range(2, 3))
    assert equal(held(again), held(optimizer))


def around(
    device: torch.device | str = "cpu", **options: Any
) -> tuple[lrfast.Muon, list[Tensor], list[Tensor]]:
    mine, rest = matrices(torch.float32, device), others(torch.float32, device)
    return both(mine, rest, **{"beta2": 0.8, **options}), mine, rest


def held(optimizer: lrfast.Muon) -> list[Tensor]:
    """Copies of all weights and states."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [s for p in params for _, s in sorted(optimizer.state.get(p, {}).items())]
    return [tensor.detach().clone() for tensor in (*params, *states)]


def equal(tensors: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors, wanted, strict=True))


def run(optimizer: lrfast.Muon, params: list[Tensor], steps: range) -> None:
    for step in steps:
        set_grads(step, params)
        optimizer.step()


def test_one_norm_clips_all_groups_and_everything_else_happens_once(
    device: torch.device,
) -> None:
    """Clipping, EMA, telemetry and zeroing in one run, against the same by hand."""
    options = {"max_grad_norm": 0.4, "ema_decay": 0.7, "telemetry": 9, "zero_grads": True}
    optimizer, mine, rest = around(device, **options)
    plain, its, its_rest = around(device)
    averages = [param.detach().clone() for param in its + its_rest]
    for step in range(3):
        set_grads(step, mine + rest, its + its_rest)
        norm = nn.utils.clip_grad_norm_(its + its_rest, 0.4)
        before = [param.detach().clone() for param in its]
        optimizer.step()
        plain.step()
        torch.testing.assert_close(optimizer.grad_norm, norm.double(), rtol=1e-6, atol=0)
        assert not any(param.grad.any() for param in mine + rest)  # type: ignore[union-attr]
        for average, param in zip(averages, its + its_rest, strict=True):
            average.lerp_(param.detach(), 0.3)
    assert furthest(mine + rest, its + its_rest) < 1e-3  # the clipped gradient is rounded once more
    emas = [optimizer.state[param]["ema"] for param in mine + rest]
    assert furthest(emas, averages) < 1e-3
    moved = torch.stack([(a - b).norm() for a, b in zip(its, before, strict=True)]).norm()
    torch.testing.assert_close(
        optimizer.telemetry().update_norms[-1, 0], moved.double().cpu(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("how", ["found_inf", "nonfinite", "stopped"])
def test_a_skipped_step_changes_nothing(how: str, device: torch.device) -> None:
    zeroes = how != "stopped"  # which leaves zeros in place of directions, too
    optimizer, mine, rest = around(device, skip_nonfinite=True, ema_decay=0.9, zero_grads=zeroes)
    run(optimizer, mine + rest, range(3))
    before = held(optimizer)
    set_grads(3, mine + rest)
    if how == "nonfinite":
        rest[0].grad = torch.full_like(rest[0], torch.inf)
    elif how == "found_inf":
        optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
    else:
        optimizer._watch(torch.ones((), dtype=torch.float64, device=device))
    optimizer.step()
    assert equal(held(optimizer), before)
    if not zeroes:
        return
    assert not any(param.grad.any() for param in mine + rest)  # type: ignore[union-attr]


def test_the_scale_of_gradients_is_undone() -> None:
    optimizer, mine, rest = around()
    scaled, its, its_rest = around()
    scaled.grad_scale = torch.tensor(1024.0)  # type: ignore[attr-defined]
    for step in range(3):
        set_grads(step, mine + rest, its + its_rest)
        for param in its + its_rest:
            param.grad.mul_(1024.0)  # type: ignore[union-attr]
        optimizer.step()
        scaled.step()
    assert equal(mine + rest, its + its_rest)


def test_schedules_cycle_the_momentum_of_both_rules() -> None:
    schedule = schedules.one_cycle(6, momentum=(0.95, 0.6))
    optimizer, mine, rest = around(schedule=schedule)
    plain, its, its_rest = around()
    for step in range(6):
        set_grads(step, mine + rest, its + its_rest)
        for group, lr in zip(plain.param_groups, (0.03, ADAMW["lr"]), strict=True):
            group["lr"] = lr * schedule.at(step)
        momentum = float(optimizer.planned(6).momenta[step, 0])
        plain.param_groups[0]["momentum"] = momentum
        if step == 0:  # later the product of the betas used counts, not the power of the last one
            plain.param_groups[1]["betas"] = (momentum, ADAMW["betas"][1])
        optimizer.step()
        plain.step()
        if step == 0:
            assert furthest(rest, its_rest) < 1e-5
    assert furthest(mine, its) < 1e-3
    assert "beta1_product" in optimizer.state[rest[0]]
    assert "beta1_product" not in optimizer.state[mine[0]]


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_groups_stay(frozen: int, device: torch.device) -> None:
    optimizer, mine, rest = around(device)
    run(optimizer, mine + rest, range(2))
    lists = (mine, rest)
    optimizer.param_groups[frozen]["frozen"] = True
    states = [copy.deepcopy(optimizer.state[p]) for p in lists[frozen]]
    before = [[p.detach().clone() for p in params] for params in lists]
    run(optimizer, mine + rest, range(2, 4))
    assert equal(lists[frozen], before[frozen])
    assert not equal(lists[1 - frozen], before[1 - frozen])
    for param, state in zip(lists[frozen], states, strict=True):
        assert all(
            torch.equal(optimizer.state[param][name], value) for name, value in state.items()
        )


def reloaded(optimizer: lrfast.Muon) -> lrfast.Muon:
    fresh, _, _ = around(schedule=schedules.cosine(20), ema_decay=0.8, adjust_lr_fn="original")
    for group, own in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        for param, other in zip(group["params"], own["params"], strict=True):
            param.data.copy_(other)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return fresh


@pytest.mark.parametrize(
    "copied", [reloaded, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_resumes_bit_for_bit(copied: Callable[[lrfast.Muon], lrfast.Muon]) -> None:
    """In the middle of a schedule, with an EMA and momenta of both rules."""
    optimizer, mine, rest = around(
        schedule=schedules.cosine(20), ema_decay=0.8, adjust_lr_fn="original"
    )
    run(optimizer, mine + rest, range(5))
    again = copied(optimizer)
    run(optimizer, mine + rest, range(5, 9))
    run(again, [p for group in again.param_groups for p in group["params"]], range(5, 9))
    assert equal(held(again), held(optimizer))


def test_state_dicts_go_both_ways_with_torchs() -> None:
    arguments = {**ARGUMENTS["plain"], "lr": 0.03}
    mine, its = matrices(torch.float32), matrices(torch.float32)
    muon = torch.optim.Muon(its, **arguments)
    for step in range(3):
        set_grads(step, its)
        muon.step()
    optimizer = lrfast.Muon(mine, lr=0.5)
    optimizer.load_state_dict(muon.state_dict())
    assert optimizer.param_groups[0]["momentum"] == 0.7
    assert optimizer.param_groups[0]["ns_dtype"] == torch.bfloat16
    for param, other in zip(mine, its, strict=True):
        param.data.copy_(other)
    run(optimizer, mine, range(3, 5))
    back = torch.optim.Muon(its, lr=0.5)
    back.load_state_dict(optimizer.state_dict())
    for param, other in zip(mine, its, strict=True):
        assert torch.equal(
            back.state[other]["momentum_buffer"], optimizer.state[param]["momentum_buffer"]
        )
    rest, its_rest = others(), others()
    adamw = torch.optim.AdamW(its_rest, **ADAMW, amsgrad=True)
    set_grads(0, its_rest)
    adamw.step()
    half = lrfast.Muon([{"params": rest, "rule": "adamw"}])
    half.load_state_dict(copy.deepcopy(adamw.state_dict()))
    set_grads(1, rest, its_rest)
    for param, other in zip(rest, its_rest, strict=True):
        param.data.copy_(other)
    adamw.step()
    half.step()
    assert furthest(rest, its_rest) < 1e-12


def test_wraps_torchs() -> None:
    mine, its = matrices(torch.float32), matrices(torch.float32)
    muon, wrapped = (torch.optim.Muon(p, **ARGUMENTS["plain"], lr=0.03) for p in (its, mine))
    set_grads(0, mine, its)
    muon.step()
    wrapped.step()
    optimizer = lrfast.wrap(wrapped)
    assert isinstance(optimizer, lrfast.Muon)
    optimizer.add_param_group({"params": others(torch.float32), "rule": "adamw"})
    set_grads(1, mine, its)
    muon.step()
    optimizer.step()
    assert furthest(mine, its) < 0.1  # bfloat16
    buffers = [muon.state[other]["momentum_buffer"] for other in its]
    assert furthest([optimizer.state[p]["momentum_buffer"] for p in mine], buffers) < 1e-4


def test_a_group_may_be_added_and_may_change_its_rule() -> None:
    optimizer, mine, rest = around()
    run(optimizer, mine + rest, range(2))
    more: list[Tensor] = [nn.Parameter(torch.randn(7, 12))]
    optimizer.add_param_group({"params": iter(more), "lr": 0.2})
    assert optimizer.param_groups[2]["momentum"] == 0.95
    run(optimizer, mine + rest + more, range(2, 4))
    assert float(optimizer.state[more[0]]["step"]) == 2
    group = optimizer.param_groups[2]
    optimizer.param_groups[2] = {"params": more, "rule": "adamw", **ADAMW, "amsgrad": False}
    optimizer.param_groups[2] |= {"maximize": False, "frozen": False}
    alone: list[Tensor] = twins(more)
    adamw = torch.optim.AdamW(alone, **ADAMW)
    adamw.state[alone[0]] = {
        "step": torch.tensor(2.0),
        "exp_avg": torch.zeros(7, 12),
        "exp_avg_sq": torch.zeros(7, 12),
    }
    set_grads(4, mine + rest + more)
    alone[0].grad = more[0].grad
    adamw.step()
    optimizer.step()
    assert furthest(more, alone) < 1e-5
    optimizer.param_groups[2] = group
    run(optimizer, mine + rest + more, range(5, 6))
    assert float(optimizer.state[more[0]]["step"]) == 4


def _change(training: Training) -> None:
    """Both rules' learning rates, what is frozen, and clipping."""
    for factor, group in zip((0.3, 2.0, 0.5, 3.0), training.optimizer.param_groups, strict=True):
        group["lr"] *= factor
    training.optimizer.param_groups[0]["frozen"] = True
    training.optimizer.max_grad_norm = 0.05


def _unfreeze(training: Training) -> None:
    training.optimizer.param_groups[0]["frozen"] = False


@pytest.mark.parametrize("scaler", [False, True])
def test_a_captured_step_equals_an_eager_one(scaler: bool, device: torch.device) -> None:
    """Also where an infinite loss makes the scaler skip some of its steps."""
    changes: dict[int, Callable[[Training], Any]] = {3: _change, 6: _unfreeze}
    if scaler:
        changes |= {1: lambda t: t.factor.fill_(torch.inf), 2: lambda t: t.factor.fill_(1.0)}
    _, _, step = train_both(changes, device, 9, make_muon, zeroing="step", scaler=scaler)
    assert step.captures == 1


def test_products_run_in_their_dtype_within_autocast() -> None:
    optimizer, mine, rest = around(ns_dtype=torch.float32)
    plain, its, its_rest = around(ns_dtype=torch.float32)
    set_grads(0, mine + rest, its + its_rest)
    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step()
    plain.step()
    assert equal(mine + rest, its + its_rest)


def test_half_parameters_with_wide_states_and_stochastic_rounding() -> None:
    options: dict[str, Any] = {"state_dtype": torch.float32, "stochastic_rounding": True}
    mine = [nn.Parameter(torch.zeros(32, 48, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = lrfast.Muon(mine, lr=0.01, weight_decay=0.0, **options)
    exact: list[Tensor] = [nn.Parameter(torch.zeros(32, 48)) for _ in mine]
    plain = lrfast.Muon(exact, lr=0.01, weight_decay=0.0)
    for step in range(6):
        set_grads(step, list(mine))
        for param, other in zip(mine, exact, strict=True):
            assert param.grad is not None
            other.grad = param.grad.float()
        optimizer.step()
        plain.step()
    for param, other in zip(mine, exact, strict=True):
        assert optimizer.state[param]["momentum_buffer"].dtype == torch.float32
        assert (param - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_averages_of_rows_keep_their_digits(state_dtype: torch.dtype | None) -> None:
    """Half of them would lose beta2's steps; loading and ``state_dtype`` leave them alone."""
    mine: list[Tensor] = [nn.Parameter(torch.randn(8, 6, dtype=torch.bfloat16)) for _ in range(3)]
    optimizer, again = (
        lrfast.Muon(each, beta2=0.999, state_dtype=state_dtype) for each in (mine, twins(mine))
    )
    run(optimizer, mine, range(4))
    again.load_state_dict(optimizer.state_dict())
    kept = [optimizer.state[param]["second_momentum_buffer"] for param in mine]
    loaded = [again.state[p]["second_momentum_buffer"] for p in again.param_groups[0]["params"]]
    assert {tensor.dtype for tensor in loaded} == {torch.float32}
    assert equal(loaded, kept) and not equal([t.bfloat16().float() for t in kept], kept)


def with_rows(rows: Any) -> dict[str, Any]:
    """The state dict of an optimizer whose first matrix has these averages of its rows."""
    optimizer, mine = lrfast.Muon(matrices(), beta2=0.5), matrices()
    state = {"momentum_buffer": torch.zeros_like(mine[0]), "second_momentum_buffer": rows}
    return optimizer.state_dict() | {"state": {0: state}}


def sharded() -> Tensor:
    """What is asked of a DTensor, without processes."""
    param = nn.Parameter(torch.ones(4, 2))
    param.placements = (Shard(0),)  # type: ignore[attr-defined]
    return param


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: lrfast.Muon(others()),
        r"parameter 0 of param_groups\[0\] must have two dimensions or more for rule 'muon', got "
        r"shape \[\]; .*lrfast.muon_groups",
    ),
    (
        lambda: lrfast.Muon([{"params": matrices(), "rule": "mion"}]),
        r"rule of param_groups\[0\] must be one of muon, adamw, got 'mion'; did you mean 'muon'",
    ),
    (
        lambda: lrfast.Muon([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))]),
        "parameter 0 of .* must be real for rule 'muon', got torch.complex64",
    ),
    (
        lambda: lrfast.Muon([sharded()]),
        r"parameter 0 of .* must be whole for rule 'muon', got shards \(Shard\(dim=0\),\)",
    ),
    (
        lambda: lrfast.Muon([{"params": others(), "rule": "adamw", "momentum": 0.9}]),
        "entries of .* must be of its rule 'adamw', got 'momentum'",
    ),
    (
        lambda: lrfast.Muon([{"params": matrices(), "betas": (0.9, 0.99)}]),
        "entries of .* must be of its rule 'muon', got 'betas'",
    ),
    (lambda: lrfast.Muon(matrices(), lr=-1.0), "lr must be"),
    (
        lambda: lrfast.Muon(matrices(), momentum=1.5),
        r"momentum must be a finite number in \[0, 1\], got 1.5",
    ),
    (lambda: lrfast.Muon(matrices(), ns_steps=100), "ns_steps must be"),
    (
        lambda: lrfast.Muon(matrices(), ns_coefficients=(1.0, float("nan"), 2.0)),
        r"ns_coefficients must be a finite number in \[-1e\+06, 1e\+06\], got nan",
    ),
    (
        lambda: lrfast.Muon(matrices(), adjust_lr_fn="orginal"),  # type: ignore[arg-type]
        "adjust_lr_fn must be one of original, match_rms_adamw, got 'orginal'",
    ),
    (lambda: lrfast.Muon(matrices(), ns_dtype=torch.float16), "ns_dtype must be"),
    (
        lambda: lrfast.Muon(matrices(), beta2=1.0),
        r"beta2 must be None or lie in \[0, 1\), got 1.0",
    ),
    (
        lambda: lrfast.Muon(matrices()).load_state_dict(with_rows(torch.ones(12, 1))),
        r"state\[0\]\['second_momentum_buffer'\] must be a floating-point tensor of shape .7, 1.",
    ),
    (
        lambda: lrfast.Muon(matrices()).load_state_dict(with_rows(torch.ones(7, 1).int())),
        "must be a floating-point tensor of shape",
    ),
    (
        lambda: lrfast.Muon(matrices()).load_state_dict(with_rows(None) | {"state": "none"}),
        "state must be a dict, got 'none'",
    ),
    (
        lambda: lrfast.Muon([{"params": others(), "rule": "adamw", "betas": (0.9, 1.0)}]),
        r"betas of param_groups\[0\] must lie in \[0, 1\), got 1.0 as number 1",
    ),
    (
        lambda: lrfast.Muon(matrices()).load_state_dict(
            lrfast.Muon([{"params": matrices(), "rule": "adamw"}]).state_dict()
        ),
        r"rule of param_groups\[0\] must be 'muon', got 'adamw'",
    ),
    (
        lambda: lrfast.Muon(matrices()).load_state_dict(lrfast.SGD(matrices()).state_dict()),
        "state_dict must be of the same rule",
    ),
    (
        lambda: lrfast.Muon([{"params": matrices(), "rule": "adamw"}]).load_state_dict(
            torch.optim.Adam(matrices()).state_dict()
        ),
        r"decoupled_weight_decay of param_groups\[0\] must be True, got False",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[m[:24] for _, m in ERRORS])
def test_errors_name_what_is_wrong(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_group_or_rule_changes_nothing() -> None:
    optimizer, mine, rest = around()
    run(optimizer, mine + rest, range(2))
    before = held(optimizer)
    with pytest.raises(ValueError, match="two dimensions"):
        optimizer.add_param_group({"params": others(torch.float32)})
    assert len(optimizer.param_groups) == 2
    set_grads(2, mine + rest)
    optimizer.param_groups[0]["ns_steps"] = None  # found before the momenta have moved
    with pytest.raises(ValueError, match=r"ns_steps of param_groups\[0\] must be"):
        optimizer.step()
    assert equal(held(optimizer), before)
    optimizer.param_groups[0]["ns_steps"] = 5
    optimizer.param_groups[1]["rule"] = "sgd"
    with pytest.raises(ValueError, match=r"\['rule'\] must be 'muon' or 'adamw', got 'sgd'"):
        optimizer.step()
    optimizer.param_groups[1] |= optimizer.param_groups[0] | {"params": rest}
    with pytest.raises(ValueError, match="two dimensions or more"):
        optimizer.step()
    assert equal(held(optimizer)[: len(mine + rest)], before[: len(mine + rest)])
    odd: list[Tensor] = [nn.Parameter(torch.randn(4, 3, 5).transpose(0, 1))]
    odd[0].grad = torch.ones(3, 4, 5)
    with pytest.raises(ValueError, match="first dimension first or last in memory"):
        lrfast.Muon(odd).step()


def test_range_test_leaves_no_trace() -> None:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3))
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = both([p for p in model.parameters() if p.dim() >= 2], rest, beta2=0.8)
    run(optimizer, list(model.parameters()), range(2))
    before = held(optimizer)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    result = lrfast.lr_find(
        model, optimizer, batches, nn.functional.cross_entropy, num_iter=12, progress=False
    )
    assert len(result.lrs) > 3 and np.isfinite(result.losses[0])
    assert equal(held(optimizer), before)
