"""States in other dtypes than their parameters, stochastic rounding, complex parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import STATEFUL, OptimizerCase, by_name, random_grad, twins
from torch import Tensor

import lrfast

COMPLEX = tuple(case for case in STATEFUL if "lion" not in case.name)


def run(optimizer: Any, param: Tensor, grads: list[Tensor]) -> None:
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()


@pytest.mark.parametrize(
    ("param_dtype", "state_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=by_name,
)
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_state_dtype(
    case: OptimizerCase, param_dtype: torch.dtype, state_dtype: torch.dtype, device: torch.device
) -> None:
    """The numbers of a run in float32 throughout, to the precision of what is stored."""
    start = torch.randn(500)
    param = torch.nn.Parameter(start.to(device, param_dtype))
    wide = torch.nn.Parameter(param.detach().float())
    optimizer = case.ours([param], **case.options, state_dtype=state_dtype)
    reference = case.ours([wide], **case.options)
    grads = [random_grad(param) for _ in range(5)]
    run(optimizer, param, grads)
    run(reference, wide, [grad.float() for grad in grads])
    names = [n for n, v in optimizer.state[param].items() if v.dim()]
    assert names and all(optimizer.state[param][n].dtype == state_dtype for n in names)
    eps = torch.finfo(torch.float16 if param_dtype == torch.float16 else torch.bfloat16).eps
    close = torch.isclose(param.float(), wide, rtol=8 * eps, atol=8 * eps)
    assert close.double().mean() > 0.99
    again = case.ours(twins([param]), **case.options, state_dtype=state_dtype)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (resumed,) = again.param_groups[0]["params"]
    more = [random_grad(param) for _ in range(2)]
    run(optimizer, param, more)
    run(again, resumed, more)
    assert torch.equal(param, resumed)


def test_states_that_were_made_in_bfloat16_are_taken_as_they_are() -> None:
    """As pre-step hooks make them to save memory; torch's fused CPU step raises."""
    param = torch.nn.Parameter(torch.ones(8))
    optimizer = lrfast.AdamW([param], lr=0.1)
    half = torch.zeros(8, dtype=torch.bfloat16)
    optimizer.state[param] = {
        "step": torch.zeros(()), "exp_avg": half.clone(), "exp_avg_sq": half.clone()
    }  # fmt: skip
    held = optimizer.state[param]["exp_avg"]
    run(optimizer, param, [torch.ones(8)])
    assert optimizer.state[param]["exp_avg"] is held and bool((held != 0).all())


# ---- stochastic rounding ---------------------------------------------------------------------


def test_small_steps_count_on_average(device: torch.device) -> None:
    """A weight of 1 and steps of 1/20 of its last place: rounded to nearest, it never moves."""
    start = torch.ones(4096, dtype=torch.bfloat16, device=device)
    step = torch.finfo(torch.bfloat16).eps / 20
    means = {}
    for stochastic in (False, True):
        param = torch.nn.Parameter(start.clone())
        optimizer = lrfast.SGD([param], lr=step, stochastic_rounding=stochastic)
        run(optimizer, param, [torch.full_like(param, -1.0)] * 40)
        means[stochastic] = param.double().mean().item()
    assert means[False] == 1.0
    # Each of 4096 weights is off by less than two places: 5 standard errors are 0.16 of one.
    expected = 1 + 40 * step
    assert means[True] == pytest.approx(expected, abs=0.16 * torch.finfo(torch.bfloat16).eps)


def stochastic_run(
    case: OptimizerCase, params: list[Tensor], threads: int, seed: int = 7
) -> list[Tensor]:
    torch.set_num_threads(threads)
    optimizer = case.ours(params, **case.options, stochastic_rounding=True, seed=seed)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).bfloat16()
        optimizer.step()
    states = [v for p in params for v in optimizer.state[p].values() if v.dim()]
    return [*params, *states]


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_the_noise_depends_on_seed_step_and_element_alone(case: OptimizerCase) -> None:
    params = [torch.nn.Parameter(torch.randn(n).bfloat16()) for n in (70_000, 5)]
    copies = [twins(params) for _ in range(3)]
    first = stochastic_run(case, params, threads=1)
    same = stochastic_run(case, copies[0], threads=2)
    other = stochastic_run(case, copies[1], threads=1, seed=8)
    for one, two in zip(first, same, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_a_resumed_stochastic_run_is_the_uninterrupted_one(case: OptimizerCase) -> None:
    param = torch.nn.Parameter(torch.randn(300).bfloat16())
    options = {**case.options, "stochastic_rounding": True, "seed": 3}
    optimizer = case.ours([param], **options)
    run(optimizer, param, [random_grad(param) for _ in range(3)])
    (copy_of,) = twins([param])
    resumed = case.ours([copy_of], **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    grads = [random_grad(param) for _ in range(3)]
    run(optimizer, param, grads)
    run(resumed, copy_of, grads)
    assert torch.equal(param, copy_of)


def test_parameters_of_other_dtypes_are_rounded_as_ever() -> None:
    params = [torch.nn.Parameter(torch.randn(100).to(d)) for d in (torch.float32, torch.float16)]
    copies = twins(params)
    stochastic = lrfast.AdamW(params, lr=0.1, stochastic_rounding=True)
    plain = lrfast.AdamW(copies, lr=0.1)
    for one, two in zip(params, copies, strict=True):
        one.grad = random_grad(one)
        two.grad = one.grad.clone()
    stochastic.step()
    plain.step()
    assert all(torch.equal(one, two) for one, two in zip(params, copies, strict=True))


# ---- complex parameters ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=by_name)
@pytest.mark.parametrize("case", COMPLEX, ids=by_name)
def test_complex_parameters_are_pairs_of_real_ones(
    case: OptimizerCase, dtype: torch.dtype, device: torch.device
) -> None:
    """As torch has it, bit for bit the same optimizer on view_as_real; in every layout."""
    made = [
        torch.randn(7, dtype=dtype, device=device),
        torch.randn(4, 6, dtype=dtype, device=device).t(),
        torch.randn(9, 4, dtype=dtype, device=device)[::2],
        torch.randn((), dtype=dtype, device=device),
    ]
    params = [torch.nn.Parameter(t) for t in made]
    reals = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    optimizer = case.ours(params, **case.options, ema_decay=0.5, zero_grads=True)
    real = case.ours(reals, **case.options, ema_decay=0.5)
    for step in range(4):
        for param, twin in zip(params, reals, strict=True):
            grad = torch.randn_like(param)
            param.grad = grad.conj() if step == 2 else grad
            twin.grad = torch.view_as_real(param.grad.resolve_conj()).clone()
        optimizer.step()
        real.step()
    for param, twin in zip(params, reals, strict=True):
        assert torch.equal(torch.view_as_real(param.detach()), twin)
        for name, value in real.state[twin].items():
            mine = optimizer.state[param][name]
            mine = torch.view_as_real(mine) if mine.is_complex() else mine
            assert torch.equal(mine, value), name
        assert param.grad is not None and not param.grad.any()
