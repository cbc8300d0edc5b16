"""Cautious updates, cautious and unscheduled weight decay, and update clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPES, OPTIMIZERS, STATEFUL, OptimizerCase, by_name, parameters, random_grad
from device_reads import NoDeviceReads
from reference.update_options import with_options
from steps import check_step, copied
from torch import Tensor, nn

import lrfast
from lrfast import schedules
from lrfast._utils.extension import extension

ALL: dict[str, Any] = {"cautious": True, "cautious_weight_decay": True, "clipping_threshold": 0.6}
_BY_NAME = {case.name: case for case in OPTIMIZERS}


def _case(name: str, **options: Any) -> OptimizerCase:
    """A row of OPTIMIZERS with options of its update."""
    row = _BY_NAME[name]
    # At betas like 0.85 = 17/20, bfloat16 momenta and gradients cancel to exactly 0, and roundings
    # of 1 - beta alone decide the sign. So do gradients and penalties at a decay like 0.15.
    own: dict[str, Any] = {"betas": (0.8731, 0.9377), "momentum": 0.8731}
    own["weight_decay"] = row.options["weight_decay"] * 1.0371
    hypers = row.options | {k: v for k, v in own.items() if row.options.get(k)} | options
    decoupled = row.options.get("decoupled_weight_decay", row.ours in (lrfast.AdamW, lrfast.Lion))
    rule = with_options(row.rule, decoupled, **options)
    label = "-".join(word[:4] for word in options)
    return OptimizerCase(f"{name}-{label}", row.ours, row.theirs, rule, hypers, row.description)


CASES = (
    _case("adamw-plain", cautious=True),
    _case("adamw-high-decay", cautious_weight_decay=True),
    _case("adamw-defaults", clipping_threshold=0.6),
    _case("adamw-amsgrad-maximize", **ALL),
    _case("adam-plain", cautious=True, clipping_threshold=0.6),
    _case("nadam-decoupled", **ALL),
    _case("radam-decoupled", **ALL),
    _case("rmsprop-all", cautious=True, clipping_threshold=0.6),
    _case("adamax-plain", cautious=True),
    _case("sgd-nesterov-maximize", cautious=True),
    _case("lion-high-decay", cautious=True, cautious_weight_decay=True),
)
MOST = next(case for case in CASES if case.name.startswith("adamw-amsgrad-maximize"))


@pytest.mark.parametrize("dtype", DTYPES, ids=by_name)
@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_every_step_is_the_references(
    case: OptimizerCase, dtype: torch.dtype, device: torch.device
) -> None:
    params = parameters(dtype, device)
    groups = case.groups(params)
    for group in groups:
        group |= {"betas": (0.7019, 0.95)} if "betas" in group else {}
    optimizer = case.ours(groups, **case.options)
    for _ in range(7):
        for param in params:
            param.grad = random_grad(param)
        was = {p: copied(p, optimizer.state.get(p, {})) for p in params if p.numel()}
        optimizer.step()
        check_step(case, optimizer, was)


UNSCHEDULED = [
    case
    for case in CASES
    if "scheduled_weight_decay" in extension().update_options[case.ours._rule]
    and case.options.get("decoupled_weight_decay", case.ours is not lrfast.Adam)
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=by_name
)
@pytest.mark.parametrize(
    ("case", "scheduled_decay"),
    [*((case, True) for case in CASES), *((case, False) for case in UNSCHEDULED)],
    ids=by_name,
)
def test_two_hundred_steps(
    case: OptimizerCase,
    scheduled_decay: bool,
    dtype: torch.dtype,
    tolerance: float,
    device: torch.device,
) -> None:
    """Under a schedule that starts at 0, with one mask of frozen groups in ten.

    In float32 an element whose momentum and gradient cancel to the last digit may be left out or
    not; it moves by next to nothing, but Lion's by a whole step.
    """
    options = dict(case.options)
    if not scheduled_decay:
        options["scheduled_weight_decay"] = False
    schedule = schedules.cosine_with_warmup(20, 200)
    params = [nn.Parameter(torch.randn(n, dtype=dtype, device=device)) for n in (700, 5, 1)]
    optimizer = case.ours([{"params": [p]} for p in params], **options, schedule=schedule)
    hypers = case.hypers(optimizer.param_groups[0])
    others: list[tuple[Any, dict[str, Any]]] = [
        (p.detach().double().cpu().numpy().copy(), {}) for p in params
    ]
    sign = 1.0 if hypers.get("maximize") else -1.0
    for step in range(200):
        optimizer.param_groups[1]["frozen"] = step % 10 == 3
        lr = {"lr": hypers["lr"] * schedule.at(step)}
        if not scheduled_decay:
            lr["decay_lr"] = hypers["lr"]
        for i, param in enumerate(params):
            # The pull towards 1 keeps the run near where it can be compared.
            param.grad = 0.3 * random_grad(param) + sign * (1.0 - param.detach())
            if i != 1 or step % 10 != 3:
                grad = param.grad.double().cpu().numpy()
                others[i] = case.rule(others[i][0], grad, others[i][1], **hypers | lr)
        optimizer.step()
    for param, (other, _) in zip(params, others, strict=True):
        inside = np.isclose(param.detach().cpu().numpy(), other, rtol=tolerance, atol=tolerance)
        assert (~inside).sum() <= (3 if case.ours is lrfast.Lion and tolerance > 1e-6 else 0)


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("case", STATEFUL, ids=by_name)
def test_no_weight_moves_against_its_gradient(
    case: OptimizerCase, cautious: bool, device: torch.device
) -> None:
    """Of every optimizer that takes the option; without it, some weights do."""
    if "cautious" not in extension().update_options[case.ours._rule]:
        with pytest.raises(ValueError, match="cautious must be False for the rule"):
            case.ours(parameters(torch.float32), **case.options, cautious=True)
        return
    params = [nn.Parameter(torch.randn(300, dtype=d, device=device)) for d in DTYPES]
    options = case.options | {"weight_decay": 0.0, "maximize": False}
    if case.ours is lrfast.RMSprop:
        options["centered"] = False
    optimizer = case.ours(params, **options, cautious=cautious)
    against = 0
    for _ in range(20):
        before = [p.detach().clone() for p in params]
        for param in params:
            param.grad = random_grad(param)
        optimizer.step()
        for param, was in zip(params, before, strict=True):
            assert param.grad is not None
            against += int(((param.detach() - was) * param.grad > 0).sum())
    assert against == 0 if cautious else against > 100


def test_a_step_that_is_left_out_still_counts_in_the_states(device: torch.device) -> None:
    case = _BY_NAME["adamw-plain"]
    params = [nn.Parameter(torch.randn(300, device=device)) for _ in range(2)]
    plain, cautious = (
        case.ours([p], **case.options, cautious=c)
        for p, c in zip(params, (False, True), strict=True)
    )
    for _ in range(5):
        params[0].grad = random_grad(params[0])
        params[1].grad = params[0].grad.clone()
        plain.step()
        cautious.step()
    for name, value in plain.state[params[0]].items():
        assert torch.equal(value, cautious.state[params[1]][name])


def test_weights_decay_during_a_warm_up_at_zero(device: torch.device) -> None:
    """A decay that follows no schedule goes by the group's own learning rate."""
    params = [nn.Parameter(torch.full((3,), 2.0, device=device)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.2}]
    optimizer = lrfast.AdamW(
        groups, lr=0.1, weight_decay=0.5, scheduled_weight_decay=False,
        schedule=schedules.constant(0.0),
    )  # fmt: skip
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert params[0].tolist() == pytest.approx([2.0 * 0.95] * 3)
    assert params[1].tolist() == pytest.approx([2.0 * 0.9] * 3)
    assert optimizer.last_rates.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_clipping_is_stable_adamws(threshold: float, device: torch.device) -> None:
    """Algorithm 2 of the paper, with its betas corrected for bias, whose threshold is 1."""
    beta1, beta2, eps, lr, decay = 0.9, 0.95, 1e-6, 0.02, 0.1
    param = nn.Parameter(torch.randn(500, dtype=torch.float64, device=device))
    other = param.detach().clone()
    mean, square = torch.zeros_like(other), torch.zeros_like(other)
    optimizer = lrfast.AdamW(
        [param], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay,
        clipping_threshold=threshold,
    )  # fmt: skip
    clipped = 0
    for t in range(1, 41):
        grad = random_grad(param) * (30.0 if t % 10 == 0 else 1.0)
        first, second = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (beta1, beta2))
        mean = first * mean + (1 - first) * grad
        square = second * square + (1 - second) * grad**2
        rms = (grad**2 / square.clamp(min=eps**2)).mean().sqrt().item()
        rate = lr / max(1.0, rms / threshold)
        clipped += rms > threshold
        other = other - rate * decay * other - rate * mean / (square.sqrt() + eps)
        param.grad = grad
        optimizer.step()
        torch.testing.assert_close(param.detach(), other, rtol=1e-10, atol=1e-10)
    assert clipped > 3
    assert optimizer.last_rates.item() == lr  # the group's


def test_threads_change_nothing() -> None:
    start = torch.randn(120_001)
    results = []
    for threads in (1, 3):
        torch.manual_seed(0)
        param = nn.Parameter(start.clone())
        optimizer = MOST.ours([param], **MOST.options)
        count = torch.get_num_threads()
        torch.set_num_threads(threads)
        for _ in range(3):
            param.grad = torch.randn(120_001)
            optimizer.step()
        torch.set_num_threads(count)
        results.append(param.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"state_dtype": torch.bfloat16}])
def test_options_of_the_step_go_with_those_of_the_update(
    options: dict[str, Any], device: torch.device
) -> None:
    """Against the same run without passes, clipping and a scale, whose gradients are so already."""
    case, runs = _case("adamw-plain", **ALL), []
    start = torch.randn(5000)
    for passes in (False, True):
        torch.manual_seed(1)
        params = [nn.Parameter(start.to(device))]
        own = {"telemetry": 3, "zero_grads": True, "ema_decay": 0.9} if passes else {}
        optimizer = case.ours(params, **case.options, **options, **own, seed=3)
        for step in range(6):
            params[0].grad = random_grad(params[0])
            if passes:
                scale, skips = torch.tensor(4.0, device=device), step == 3
                params[0].grad *= 4.0
                if skips:  # a step that must leave no trace
                    optimizer.grad_scale, optimizer.found_inf = scale, torch.ones_like(scale)
                    grad = params[0].grad.clone()
                    optimizer.step()
                    params[0].grad = grad
                optimizer.grad_scale, optimizer.found_inf = scale, torch.zeros_like(scale)
            with NoDeviceReads():
                optimizer.step()
        runs.append(params[0].detach().cpu())
    # A skipped step is no step of the random numbers.
    assert torch.equal(*runs)


def test_a_captured_step_goes_on_as_an_eager_one(device: torch.device) -> None:
    results = []
    for captures in (False, True):
        torch.manual_seed(2)
        model = nn.Linear(40, 30).to(device)
        optimizer = lrfast.AdamW(
            model.parameters(), lr=0.05, weight_decay=0.3, schedule=schedules.one_cycle(12), **ALL
        )

        def train_step(batch: Tensor, model: Any = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (model(batch) - 1.0).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        batches = [torch.randn(8, 40).to(device) for _ in range(10)]
        step = lrfast.capture(train_step, optimizer, batches[0]) if captures else train_step
        for batch in batches:
            step(batch)
        results.append(model.weight.detach().cpu())
    assert torch.equal(*results)


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_goes_on_from_a_state_dict(saved: bool) -> None:
    """Options of the update have no state: torch.optim's dict of the rule is enough."""
    params = [nn.Parameter(torch.randn(50, dtype=torch.float64)) for _ in range(2)]
    optimizer = MOST.ours(params, **MOST.options)
    grads = [[random_grad(p) for p in params] for _ in range(6)]
    others = [nn.Parameter(p.detach().clone()) for p in params]
    again = MOST.ours(others, **MOST.options)
    for step, given in enumerate(grads):
        if step == 3 and saved:
            state = again.state_dict()
            again = MOST.ours(others, **MOST.options)
            again.load_state_dict(state)
        for param, other, grad in zip(params, others, given, strict=True):
            param.grad, other.grad = grad, grad.clone()
        optimizer.step()
        again.step()
    assert all(map(torch.equal, params, others))
