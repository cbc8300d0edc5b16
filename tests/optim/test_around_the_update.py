"""What a step does besides the update: unscaling, clipping, skipping, averaging, zeroing, records.

Each against the same made of torch's parts: GradScaler, clip_grad_norm_, lerp, zero_.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import HALF_DTYPES, STATEFUL, OptimizerCase, by_name, parameters, random_grad, twins
from torch import Tensor

import lrfast
from lrfast import schedules

STEPS = 6


def grads_of(params: list[Tensor], scale: float = 1.0) -> list[Tensor]:
    return [scale * random_grad(param) for param in params]


def give(params: list[Tensor], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()


def pair(case: OptimizerCase, device: torch.device, **options: Any) -> tuple[Any, Any]:
    """Ours with the options and torch's without, on equal parameters of all layouts."""
    params = parameters(torch.float64, device)
    ours = case.ours(case.groups(params), **case.options, **options)
    theirs = case.theirs(case.groups(twins(params)), **case.options, foreach=False)
    return ours, theirs


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_alike(ours: Any, theirs: Any, rtol: float = 1e-12) -> None:
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=rtol, atol=rtol)


def snapshot(optimizer: Any) -> list[Tensor]:
    states = [v for state in optimizer.state.values() for v in state.values() if v is not None]
    return [t.detach().clone() for t in [*params_of(optimizer), *states]]


# ---- clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.5, 20.0, 1e6])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_clipping_is_torchs(case: OptimizerCase, max_norm: float, device: torch.device) -> None:
    ours, theirs = pair(case, device, max_grad_norm=max_norm)
    for _ in range(STEPS):
        grads = grads_of(params_of(ours))
        give(params_of(ours), grads)
        give(params_of(theirs), grads)
        ours.step()
        norm = torch.nn.utils.clip_grad_norm_(params_of(theirs), max_norm)
        theirs.step()
        # Sums of squares keep floats per lane; for doubles they are exact to the last digits.
        torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-12, atol=0)
        for param, grad in zip(params_of(ours), grads, strict=True):
            assert param.grad is not None and torch.equal(param.grad, grad)
    assert_alike(ours, theirs, 1e-10)


def test_a_group_is_clipped_by_its_own_norm(device: torch.device) -> None:
    case = STATEFUL[1]
    ours, theirs = pair(case, device, max_grad_norm=3.0)
    ours.param_groups[1]["max_grad_norm"] = 0.2
    for _ in range(STEPS):
        grads = grads_of(params_of(ours))
        give(params_of(ours), grads)
        give(params_of(theirs), grads)
        ours.step()
        own = theirs.param_groups[1]["params"]
        others = theirs.param_groups[0]["params"] + theirs.param_groups[2]["params"]
        whole = torch.nn.utils.get_total_norm([p.grad for p in params_of(theirs)])
        torch.nn.utils.clip_grad_norm_(own, 0.2)
        torch.nn.utils.clip_grad_norm_(others, 3.0)
        theirs.step()
        torch.testing.assert_close(ours.grad_norm, whole, rtol=1e-12, atol=0)
    assert_alike(ours, theirs, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=by_name)
def test_norms_of_narrow_gradients(dtype: torch.dtype, device: torch.device) -> None:
    """Float lanes, emptied into doubles: off by at most 2^-19 of the norm's square, see norms.cpp.

    The GPU adds up single vectors in float, fewer than the CPU's lanes.
    """
    params = [torch.nn.Parameter(p.detach()) for p in parameters(dtype, device)]
    optimizer = lrfast.SGD(params, lr=0.0, max_grad_norm=1.0)
    give(params, grads_of(params))
    optimizer.step()
    squares = [p.grad.double().square().sum() for p in params if p.grad is not None]
    assert optimizer.grad_norm is not None
    expected = torch.stack(squares).sum().sqrt()
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=2**-20, atol=0)


def test_a_norm_knows_no_gradient_of_a_frozen_group_or_none(device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.ones(3, device=device)) for _ in range(3)]
    optimizer = lrfast.SGD([{"params": [p]} for p in params], lr=0.1, max_grad_norm=1.0)
    assert optimizer.grad_norm is None
    give(params, [torch.full_like(p, 2.0) for p in params])
    params[0].grad = None
    optimizer.param_groups[2]["frozen"] = True
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(2 * 3**0.5)  # type: ignore[union-attr]


def test_the_limit_may_change_and_go(device: torch.device) -> None:
    param = torch.nn.Parameter(torch.zeros(1, device=device))
    optimizer = lrfast.SGD([param], lr=1.0, max_grad_norm=2.0)
    positions = []
    for limit in (2.0, 0.5, None):
        optimizer.max_grad_norm = limit
        param.grad = torch.full_like(param, 8.0)
        optimizer.step()
        positions.append(param.item())
    assert optimizer.max_grad_norm is None
    assert positions == pytest.approx([-2.0, -2.5, -10.5], abs=1e-5)
    with pytest.raises(ValueError, match="max_grad_norm must be finite and above 0"):
        optimizer.max_grad_norm = -1.0
    assert optimizer.max_grad_norm is None


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_clipping_alone_lets_nonfinite_norms_through_as_torch_does(bad: float) -> None:
    ours, theirs = pair(STATEFUL[0], torch.device("cpu"), max_grad_norm=1.0)
    grads = grads_of(params_of(ours))
    grads[-1].flatten()[0] = bad
    give(params_of(ours), grads)
    give(params_of(theirs), grads)
    ours.step()
    torch.nn.utils.clip_grad_norm_(params_of(theirs), 1.0)
    theirs.step()
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.gpu
def test_one_norm_over_several_devices() -> None:
    options = {"lr": 0.1, "momentum": 0.9, "max_grad_norm": 0.5, "skip_nonfinite": True}
    spread = [torch.nn.Parameter(torch.ones(2, device=d)) for d in ("cpu", "cuda", "cpu")]
    alike = [torch.nn.Parameter(torch.ones(2)) for _ in spread]
    ours, other = lrfast.SGD(spread, **options), lrfast.SGD(alike, **options)
    for factor in (1.0, torch.inf, 0.01):
        grads = [grad * factor for grad in grads_of(alike)]
        give(alike, grads)
        give(spread, [g.to(p.device) for p, g in zip(spread, grads, strict=True)])
        ours.step()
        other.step()
    for param, single in zip(spread, alike, strict=True):
        torch.testing.assert_close(param.cpu(), single)
    torch.testing.assert_close(ours.grad_norm.cpu(), other.grad_norm)


@pytest.mark.gpu
def test_telemetry_over_several_devices_is_refused() -> None:
    params = [torch.nn.Parameter(torch.ones(2, device=d)) for d in ("cpu", "cuda")]
    optimizer = lrfast.SGD(params, lr=0.1, telemetry=3)
    give(params, grads_of(params))
    with pytest.raises(ValueError, match="telemetry needs all parameters on one device, got"):
        optimizer.step()


# ---- skipping --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_step_with_nonfinite_gradients_is_skipped(
    case: OptimizerCase, bad: float, device: torch.device
) -> None:
    """The first one, a later one, and after it the run goes on as if it had not been."""
    schedule = schedules.one_cycle(20)
    params = parameters(torch.float32, device)
    plain = case.ours(case.groups(twins(params)), **case.options, schedule=schedule)
    ours = case.ours(
        case.groups(params), **case.options, schedule=schedule, skip_nonfinite=True, ema_decay=0.9
    )
    for step in range(STEPS):
        if step in (0, 3):
            poisoned = grads_of(params_of(ours))
            poisoned[-2].flatten()[-1] = bad
            give(params_of(ours), poisoned)
            before = snapshot(ours) if step else [p.detach().clone() for p in params_of(ours)]
            ours.step()
            after = snapshot(ours) if step else [p.detach().clone() for p in params_of(ours)]
            for was, now in zip(before, after, strict=True):
                assert torch.equal(was, now)
        grads = grads_of(params_of(ours))
        give(params_of(ours), grads)
        give(params_of(plain), grads)
        ours.step()
        plain.step()
        assert ours.schedule_step == step + 1
    for param, other in zip(params_of(ours), params_of(plain), strict=True):
        assert torch.equal(param, other)


# ---- GradScaler ------------------------------------------------------------------------------


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_grad_scaler_steps_as_with_torchs(
    case: OptimizerCase, unscale_first: bool, device: torch.device
) -> None:
    """Scales that are no powers of two, overflows in between, the first step included."""
    params = [torch.nn.Parameter(torch.randn(n, device=device)) for n in (3, 40, 700)]
    copies = twins(params)
    ours = case.ours(case.groups(params), **case.options)
    theirs = case.theirs(case.groups(copies), **case.options)
    scalers = [torch.amp.GradScaler(device.type, init_scale=100.0, growth_interval=2) for _ in "12"]
    for step in range(8):
        grads = grads_of(params)
        if step in (0, 4):
            grads[1][7] = torch.inf
        for optimizer, scaler in ((ours, scalers[0]), (theirs, scalers[1])):
            mine = params_of(optimizer)
            scale = scaler.scale(torch.ones((), device=device)).item()
            give(mine, [g * scale for g in grads])
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
    for param, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(param, other, rtol=2e-5, atol=1e-6)
    assert "grad_scale" not in vars(ours) and "found_inf" not in vars(ours)


def test_scaler_and_clipping_in_one_step(device: torch.device) -> None:
    """The norm is that of the unscaled gradients."""
    params = [torch.nn.Parameter(torch.randn(50, dtype=torch.float64, device=device))]
    copies = twins(params)
    ours = lrfast.AdamW(params, lr=0.1, weight_decay=0.1, max_grad_norm=0.7)
    theirs = torch.optim.AdamW(copies, lr=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    for _ in range(STEPS):
        grads = grads_of(params)
        scaler.scale(torch.ones((), device=device))
        give(params, [1024.0 * g for g in grads])
        give(copies, grads)
        scaler.step(ours)
        scaler.update(1024.0)
        norm = torch.nn.utils.clip_grad_norm_(copies, 0.7)
        theirs.step()
        torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-12, atol=0)
    torch.testing.assert_close(params[0], copies[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_checkpoint_after_a_skipped_first_step(momentum: float) -> None:
    """torch's SGD buffer starts at the first gradient that counts, undampened."""
    options = {"lr": 0.1, "momentum": momentum, "dampening": 0.5 if momentum else 0.0}
    param = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    ours = lrfast.SGD([param], **options, skip_nonfinite=True)
    param.grad = torch.full_like(param, torch.nan)
    ours.step()
    resumed_param = twins([param])
    resumed = lrfast.SGD(resumed_param, **options, skip_nonfinite=True)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    torch_param = twins([param])
    theirs = torch.optim.SGD(torch_param, **options)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for _ in range(3):
        grad = torch.randn(5, dtype=torch.float64)
        for optimizer in (ours, resumed, theirs):
            give(params_of(optimizer), [grad])
            optimizer.step()
    assert torch.equal(param, resumed_param[0])
    torch.testing.assert_close(param, torch_param[0], rtol=1e-12, atol=1e-12)
