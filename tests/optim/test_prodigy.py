"""Rules that estimate their learning rate: against the packages and references, state dicts."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import dadaptation
import prodigyopt
import pytest
import torch
from cases import by_name, twins
from reference import optimizers as reference
from torch import Tensor, nn

import lrfast
from lrfast import schedules
from lrfast.training._snapshot import Snapshot

# Neutral nowhere: the estimate begins to move in the first steps, and slows down again.
USUAL: dict[str, Any] = {"d0": 1e-3, "weight_decay": 0.05, "d_coef": 0.7}
TABLE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "usual": USUAL,
    "coupled": USUAL | {"decouple": False},
    "bias-correction": USUAL | {"use_bias_correction": True},
    "safeguard": USUAL | {"safeguard_warmup": True, "lr": 0.6},
    "beta3": USUAL | {"beta3": 0.85, "betas": (0.8, 0.95)},
    "no-beta1": USUAL | {"betas": (0.0, 0.97)},
    "growth": USUAL | {"growth_rate": 1.03},
    "eps": USUAL | {"eps": 1e-2, "lr": 1.4, "d_coef": 0.5},
}
BY_D: dict[str, Any] = {"d0": 1e-3, "weight_decay": 0.05, "betas": (0.8, 0.98)}
TABLE |= {
    "dadapt-defaults": {},
    "dadapt-usual": BY_D,
    "dadapt-decoupled": BY_D | {"decouple": True, "lr": 0.6},
    "dadapt-bias-correction": BY_D | {"use_bias_correction": True, "eps": 1e-2},
    "dadapt-growth": BY_D | {"growth_rate": 1.03, "decouple": True},
}
SHAPES = ((), (7,), (40, 30))


def parameters(
    dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> list[Tensor]:
    torch.manual_seed(3)
    values = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(value.to(device, dtype)) for value in values]


def grads_at(step: int, params: Sequence[Tensor]) -> list[Tensor]:
    """Of a noisy bowl: its bottom is at 2 for each element."""
    torch.manual_seed(step)
    noise = [torch.randn(param.shape, dtype=torch.float64) for param in params]
    return [
        (0.5 * (param.detach() - 2) + 0.1 * each.to(param)).contiguous()
        for param, each in zip(params, noise, strict=True)
    ]


def run(optimizer: Any, params: Sequence[Tensor], steps: range) -> None:
    for step in steps:
        for param, grad in zip(params, grads_at(step, params), strict=True):
            param.grad = grad
        optimizer.step()


def furthest(params: list[Tensor], others: list[Tensor], floor: float = 1e-3) -> float:
    errors = [(a - b).abs() / (b.abs() + floor) for a, b in zip(params, others, strict=True)]
    return max(float(error.detach().max()) for error in errors)


def package(params: list[Any], **options: Any) -> Any:
    return prodigyopt.Prodigy(params, **options)


def made(name: str, params: list[Any], **more: Any) -> Any:
    """The optimizer of a row of the table."""
    cls: Any = lrfast.DAdaptAdam if name.startswith("dadapt") else lrfast.Prodigy
    return cls(params, **TABLE[name], **more)


def theirs(name: str, params: list[Any]) -> Any:
    """The same by its package."""
    cls = dadaptation.DAdaptAdam if name.startswith("dadapt") else prodigyopt.Prodigy
    return cls(params, **TABLE[name])


def in_groups(params: list[Tensor]) -> list[dict[str, Any]]:
    """One group each; the last stays as it is."""
    own: list[dict[str, Any]] = [{"weight_decay": 0.1}, {"eps": 1e-3}, {"lr": 0.0}]
    return [{"params": [p], **each} for p, each in zip(params, own, strict=True)]


def rows() -> list[Any]:
    """Each of the table in float64, and two of them in float32."""
    chosen = [pytest.param(name, torch.float64, 1e-10, 1e-3, id=name) for name in TABLE]
    for name in TABLE:
        marks = () if name in ("usual", "no-beta1", "dadapt-usual") else pytest.mark.full
        row = (name, torch.float32, 1e-4, 1.0)
        chosen.append(pytest.param(*row, id=f"{name}-float32", marks=marks))
    return chosen


@pytest.mark.parametrize(("name", "dtype", "allowed", "floor"), rows())
def test_equal_to_the_package_over_200_steps(
    name: str, dtype: torch.dtype, allowed: float, floor: float
) -> None:
    params, others = parameters(dtype), parameters(dtype)
    optimizer, other = made(name, params), theirs(name, others)
    first, grown = float(optimizer.d), False
    for step in range(200):
        for param, twin, grad in zip(params, others, grads_at(step, others), strict=True):
            param.grad, twin.grad = grad.clone(), grad
        optimizer.step()
        other.step()
        d = other.param_groups[0]["d"]
        assert abs(float(optimizer.d) - d) < allowed * d
        assert furthest(params, others, floor) < allowed
        grown = grown or d > 3 * first
    assert grown


@pytest.mark.parametrize("name", TABLE)
def test_equal_to_the_reference_over_200_steps(name: str) -> None:
    params = parameters()
    optimizer = made(name, params)
    rule = reference.dadapt_adam if name.startswith("dadapt") else reference.prodigy
    values = [param.detach().numpy().copy() for param in params]
    state: dict[str, Any] = {}
    for step in range(200):
        grads = grads_at(step, [torch.as_tensor(value) for value in values])
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        arrays = [grad.numpy().copy() for grad in grads]
        values, state = rule(values, arrays, state, **TABLE[name])
        assert abs(float(optimizer.d) - state["d"]) < 1e-10 * state["d"]
    assert furthest(params, [torch.as_tensor(value) for value in values]) < 1e-10


def test_groups_share_the_estimate_as_in_the_package() -> None:
    params, others = parameters(), parameters()
    optimizer = lrfast.Prodigy(in_groups(params), **USUAL)
    other = package(in_groups(others), **USUAL | {"weight_decay": 0})
    optimizer.param_groups[1]["weight_decay"] = optimizer.param_groups[2]["weight_decay"] = 0
    still = params[2].detach().clone()
    for steps in (range(20), range(20, 60)):
        run(optimizer, params, steps)
        run(other, others, steps)
        assert furthest(params, others) < 1e-10
        for each in (optimizer, other):  # a later change of d_coef counts from the next step on
            each.param_groups[0]["d_coef"] = 0.9
    assert torch.equal(params[2], still)
    kept = params[1].detach().clone()
    for each in (optimizer, other):  # the package moves it on by its average
        each.param_groups[1]["lr"] = 0.0
    run(optimizer, params, range(60, 70))
    run(other, others, range(60, 70))
    assert torch.equal(params[1], kept)
    assert furthest(params[:1], others[:1]) < 1e-10
    d = other.param_groups[0]["d"]
    assert float(optimizer.d) == pytest.approx(d, rel=1e-10)
    alone = parameters()[:2]
    apart = lrfast.Prodigy(in_groups(parameters())[:1], **USUAL)
    run(apart, alone[:1], range(60))
    assert float(apart.d) != pytest.approx(float(optimizer.d), rel=1e-3)


def test_layer_scales_as_in_the_package() -> None:
    params, others = parameters(), parameters()
    scales = zip(range(3), (0.5, 1.5, 1.0), strict=True)
    both = [[{"params": [own[i]], "layer_scale": s} for i, s in [*scales]] for own in (params,)]
    both.append([group | {"params": [p]} for group, p in zip(both[0], others, strict=True)])
    optimizer, other = made("dadapt-usual", both[0]), theirs("dadapt-usual", both[1])
    run(optimizer, params, range(60))
    run(other, others, range(60))
    assert furthest(params, others) < 1e-10


EACH = ((lrfast.Prodigy, prodigyopt.Prodigy), (lrfast.DAdaptAdam, dadaptation.DAdaptAdam))


@pytest.mark.parametrize(("own", "original"), EACH)
def test_arguments_and_defaults_are_the_packages(own: Any, original: Any) -> None:
    wanted = inspect.signature(original).parameters
    got = inspect.signature(own).parameters
    assert list(got)[: len(wanted)] == list(wanted)
    assert all(got[name].default == param.default for name, param in wanted.items())


def test_a_schedule_multiplies_as_a_scheduler_of_torch(device: torch.device) -> None:
    params, others = parameters(device=device), parameters()
    optimizer = lrfast.Prodigy(params, **USUAL, schedule=schedules.cosine(40))
    other = package(others, **USUAL)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(other, 40)
    for step in range(40):
        run(optimizer, params, range(step, step + 1))
        run(other, others, range(step, step + 1))
        scheduler.step()
    assert furthest([param.cpu() for param in params], others) < 1e-9
    assert optimizer.get_last_lr() == [pytest.approx(0, abs=1e-12)]


def test_a_schedule_that_starts_at_0_does_not_count_in_the_estimate() -> None:
    params, others = parameters(), parameters()
    options = USUAL | {"use_bias_correction": True}
    schedule = schedules.warmup(8, start_factor=0)
    optimizer, other = (
        lrfast.Prodigy(params, **options, schedule=schedule),
        package(others, **options),
    )
    for step in range(20):
        run(optimizer, params, range(step, step + 1))
        other.param_groups[0]["lr"] = schedule.at(step)
        run(other, others, range(step, step + 1))
        assert furthest(params, others) < 1e-10
    assert other.param_groups[0]["k"] == 19


WAYS = ("state_dict", "pickle", "deepcopy")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bias-correction", "no-beta1", "dadapt-bias-correction"])
def test_resumes_bit_for_bit(way: str, name: str) -> None:
    params = parameters(torch.float32)
    options: dict[str, Any] = {"schedule": schedules.cosine(40), "ema_decay": 0.9}
    optimizer = made(name, params, **options)
    run(optimizer, params, range(13))
    copies = twins(params)
    resumed: Any
    if way == "state_dict":
        resumed = made(name, copies, **options)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert not {"d", "d_max", "k"} & resumed.param_groups[0].keys()
    else:
        loaded = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else None
        resumed = loaded or copy.deepcopy(optimizer)
        copies = resumed.param_groups[0]["params"]
    for each, own in ((optimizer, params), (resumed, copies)):
        run(each, own, range(13, 30))
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))
    assert float(optimizer.d) == float(resumed.d) > 1e-3


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    "name", ["defaults", "bias-correction", "no-beta1", "dadapt-bias-correction"]
)
def test_state_dicts_go_both_ways_with_the_package(ours_first: bool, name: str) -> None:
    params = parameters()
    with torch.no_grad():
        params[1].zero_()  # of which the package keeps one zero
    params[2].data = params[2].data.t()  # whose flat order is not that of its memory
    first, second = (made, theirs)[:: 1 if ours_first else -1]
    before = first(name, params)
    run(before, params, range(17))
    copies = twins(params)
    after = second(name, copies)
    saved = copy.deepcopy(before.state_dict())
    after.load_state_dict(saved)
    for each, own in ((before, params), (after, copies)):
        run(each, own, range(17, 60))
    assert furthest(params, copies) < 1e-10
    mine, its = (
        each.state_dict()["param_groups"][0] for each in (before, after)[:: 1 if ours_first else -1]
    )
    for entry in {"d", "d_max", "d_numerator", "d_denom", "k", "numerator_weighted"} & its.keys():
        assert mine[entry] == pytest.approx(its[entry], rel=1e-9), entry
    assert its.keys() - mine.keys() <= {"d_hat"}


def test_a_bad_load_changes_nothing() -> None:
    params = parameters()
    optimizer = lrfast.Prodigy(params, **USUAL)
    run(optimizer, params, range(9))
    good = copy.deepcopy(optimizer.state_dict())
    run(optimizer, params, range(9, 12))
    before = float(optimizer.d), copy.deepcopy(optimizer.state_dict())
    changes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda s: s["param_groups"][0].update(d="far"), r"d of param_groups\[0\] must"),
        (lambda s: s["param_groups"][0].update(slice_p=11), r"slice_p of param_groups\[0\] must"),
        (lambda s: s["state"][2].update(s=torch.ones(5)), "must have its parameter's shape"),
        (lambda s: s["param_groups"][0].pop("d_coef"), "must be of the same rule"),
        (lambda s: s["param_groups"][0].update(growth_rate="fast"), "growth_rate"),
    ]
    for change, message in changes:
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises((ValueError, TypeError), match=message):
            optimizer.load_state_dict(bad)
        assert float(optimizer.d) == before[0]
        run(optimizer, params, range(0))
    after = optimizer.state_dict()
    assert after["param_groups"] == before[1]["param_groups"]
    other = lrfast.AdamW(twins(params))
    with pytest.raises(ValueError, match="must be of the same rule"):
        other.load_state_dict(good)


@pytest.mark.parametrize("begun", [False, True])
def test_a_snapshot_restores_the_estimate(begun: bool, device: torch.device) -> None:
    """Which is what a range test, a race and a capture take and restore."""
    model = nn.Linear(5, 3, dtype=torch.float64, device=device)
    params = list(model.parameters())
    optimizer = lrfast.Prodigy(params, **USUAL)
    if begun:
        run(optimizer, params, range(6))
    before = float(optimizer.d), [param.detach().clone() for param in params]
    snapshot = Snapshot(model, optimizer)
    results = []
    for _ in range(2):
        run(optimizer, params, range(6, 15))
        assert float(optimizer.d) != before[0]
        results.append([param.detach().clone() for param in params])
        snapshot.restore()
        assert float(optimizer.d) == before[0]
        assert all(torch.equal(a, b) for a, b in zip(params, before[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_loaded_estimate_is_undone_by_a_snapshot_and_by_a_hook_that_raises() -> None:
    params = parameters()
    model = nn.ParameterList(params)
    begun, optimizer = made("usual", params), made("usual", params)
    run(begun, params, range(9))
    saved = copy.deepcopy(begun.state_dict())
    snapshot = Snapshot(model, optimizer)
    optimizer.load_state_dict(saved)
    assert float(optimizer.d) == float(begun.d) > 1e-3
    snapshot.restore()
    assert float(optimizer.d) == 1e-3

    def refuse(_: Any) -> None:
        raise RuntimeError("no")

    optimizer.register_load_state_dict_post_hook(refuse)
    with pytest.raises(RuntimeError, match="no"):
        optimizer.load_state_dict(saved)
    assert float(optimizer.d) == 1e-3


def test_options_of_the_step_are_those_of_other_rules(device: torch.device) -> None:
    """Unscaling, clipping, skipping, the EMA and telemetry, against gradients clipped before."""
    params: list[Any] = parameters(device=device)
    others = parameters(device=device)
    optimizer: Any = lrfast.Prodigy(
        params, **USUAL, max_grad_norm=3.0, skip_nonfinite=True, ema_decay=0.8, telemetry=50,
        zero_grads=True,
    )  # fmt: skip
    plain = lrfast.Prodigy(others, **USUAL)
    averages = [param.detach().clone() for param in others]
    for step in range(25):
        grads = grads_at(step, others)
        for param, twin, grad in zip(params, others, grads, strict=True):
            param.grad, twin.grad = grad * 64, grad.clone()
        optimizer.grad_scale = torch.tensor(64.0, device=device)
        if step == 11:
            params[1].grad.view(-1)[0] = torch.inf
            before = float(optimizer.d)
            optimizer.step()
            assert float(optimizer.d) == before
            for param, grad in zip(params, grads, strict=True):
                param.grad.copy_(grad * 64)
        optimizer.step()
        assert not any(param.grad.any() for param in params)
        nn.utils.clip_grad_norm_(others, 3.0)
        plain.step()
        averages = [a.lerp(p.detach(), 0.2) for a, p in zip(averages, others, strict=True)]
    assert furthest(params, others) < 1e-10
    assert float(optimizer.d) == pytest.approx(float(plain.d), rel=1e-10)
    with optimizer.ema_parameters():
        assert furthest(params, averages) < 1e-10
    assert optimizer.telemetry().rates.tolist() == [[1.0]] * 25


def test_frozen_groups_and_late_gradients_as_in_the_package() -> None:
    params, others = parameters(), parameters()
    groups = [{"params": [param]} for param in params]
    optimizer, other = lrfast.Prodigy(groups, **USUAL), package(others, **USUAL)
    optimizer.param_groups[1]["frozen"] = True
    for step in range(30):
        for index, grad in enumerate(grads_at(step, others)):
            params[index].grad = grad.clone()
            is_trained = index != 1 or step >= 12
            others[index].grad = grad if is_trained else None
        optimizer.param_groups[1]["frozen"] = step < 12
        optimizer.step()
        other.step()
    assert furthest(params, others) < 1e-10


def test_a_group_added_later_shares_the_estimate() -> None:
    params, others = parameters(), parameters()
    optimizer, other = lrfast.Prodigy(params[:2], **USUAL), package(others[:2], **USUAL)
    run(optimizer, params[:2], range(12))
    run(other, others[:2], range(12))
    for each, own in ((optimizer, params), (other, others)):
        each.add_param_group({"params": own[2:]})
        run(each, own, range(12, 13))
    d = other.param_groups[0]["d"]
    assert float(optimizer.d) == pytest.approx(d, rel=1e-10)
    assert furthest(params, others) < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parameters_with_float32_states_follow_the_package_in_float32(
    dtype: torch.dtype,
) -> None:
    params, others = parameters(dtype), [p.detach().float() for p in parameters(dtype)]
    options = USUAL | {"d0": 1e-2}
    optimizer = lrfast.Prodigy(params, **options, state_dtype=torch.float32)
    other = package([nn.Parameter(value) for value in others], **options)
    twin = other.param_groups[0]["params"]
    for step in range(10):
        for param, its, grad in zip(params, twin, grads_at(step, params), strict=True):
            param.grad, its.grad = grad, grad.float()
        optimizer.step()
        other.step()
        with torch.no_grad():  # only the estimate and the states go on by themselves
            for param, its in zip(params, twin, strict=True):
                its.copy_(param)
    assert float(optimizer.d) == pytest.approx(other.param_groups[0]["d"], rel=1e-4)
    assert all(optimizer.state[p]["p0"].dtype == torch.float32 for p in params)


def test_a_captured_step_goes_on_as_an_eager_one(device: torch.device) -> None:
    runs = []
    for captures in (False, True):
        param = nn.Parameter(torch.linspace(-1, 1, 5, device=device, dtype=torch.float64))
        optimizer = lrfast.Prodigy([param], **USUAL, schedule=schedules.cosine(30))

        def train_step(batch: Tensor, param: Tensor = param, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (param - batch).square().sum()
            loss.backward()
            optimizer.step()
            return loss

        batch = torch.full((5,), 2.0, device=device, dtype=torch.float64)
        step = lrfast.capture(train_step, optimizer, batch) if captures else train_step
        for _ in range(12):
            step(batch)
        runs.append((param.detach().clone(), float(optimizer.d)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1] > 1e-3


@pytest.mark.gpu
def test_the_estimate_stays_on_the_device() -> None:
    params = parameters(device="cuda")
    optimizer = lrfast.Prodigy(params, **USUAL, max_grad_norm=3.0)
    run(optimizer, params, range(2))
    grads = grads_at(2, params)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        for _ in range(3):
            optimizer.step()
        d = optimizer.d
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert d.device.type == "cuda"


@pytest.mark.gpu
def test_devices_share_one_estimate() -> None:
    params, others = parameters(), parameters()
    params[1] = nn.Parameter(params[1].detach().cuda())
    for norm in (None, 3.0):
        optimizer = lrfast.Prodigy(params, **USUAL, max_grad_norm=norm)
        plain = lrfast.Prodigy(others, **USUAL, max_grad_norm=norm)
        run(optimizer, params, range(15))
        run(plain, others, range(15))
        assert furthest([param.cpu() for param in params], others) < 1e-10
        assert float(optimizer.d) == pytest.approx(float(plain.d), rel=1e-10)


def test_the_number_of_threads_changes_nothing() -> None:
    torch.manual_seed(1)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            params = [nn.Parameter(torch.linspace(-1, 1, 300_000))]
            optimizer = lrfast.Prodigy(params, **USUAL)
            run(optimizer, params, range(4))
            results.append((params[0].detach().clone(), float(optimizer.d)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] > 1e-3


ERRORS = [
    ({"lr": 0.0}, "lr must be .* above 0"),
    ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got 1.0"),
    ({"beta3": 1.5}, r"beta3 must lie in \[0, 1\), got 1.5"),
    ({"eps": 0.0}, "eps must be .* above 0"),
    ({"d0": -1e-6}, "d0 must be .* above 0"),
    ({"d_coef": 0.0}, "d_coef must be .* above 0"),
    ({"growth_rate": 0.9}, "growth_rate must be 1 or more, got 0.9"),
    ({"growth_rate": float("nan")}, "growth_rate must be 1 or more, got nan"),
    ({"weight_decay": -0.1}, "weight_decay must be finite and not negative"),
    ({"slice_p": 11}, "slice_p must be 1, because every element counts, got 11"),
    ({"state_dtype": torch.bfloat16}, "state_dtype must be None or torch.float32"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=by_name)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lrfast.Prodigy(parameters(), **options)


def test_a_learning_rate_of_another_optimizer_warns() -> None:
    with pytest.warns(UserWarning, match=r"lr should be about 1.*got 0.001; leave lr out"):
        lrfast.Prodigy(parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lr in (0.1, 1.0, 2.0, torch.tensor(1.0)):
            lrfast.Prodigy(parameters(), lr=lr)


@pytest.mark.parametrize("make", [cls for pair in EACH for cls in pair])
def test_a_range_test_over_its_learning_rate_is_refused(make: Any) -> None:
    model = nn.Linear(4, 2)
    optimizer = make(model.parameters())
    data = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 3
    with pytest.raises(ValueError, match=r"optimizer must have a learning rate to find.*d_coef"):
        lrfast.lr_find(model, optimizer, data, loss_fn=nn.functional.cross_entropy, progress=False)


@pytest.mark.parametrize("name", ["bias-correction", "dadapt-bias-correction"])
@pytest.mark.parametrize("begun", [False, True])
def test_wrap_takes_over_the_packages_optimizer(begun: bool, name: str) -> None:
    params = parameters()
    with torch.no_grad():
        params[1].zero_()
    copies = twins(params)
    before, other = theirs(name, params), theirs(name, copies)
    if begun:
        run(before, params, range(17))
        run(other, copies, range(17))
    wrapped = lrfast.wrap(before, schedule=schedules.constant())
    assert isinstance(wrapped, lrfast.Prodigy | lrfast.DAdaptAdam)
    assert float(wrapped.d) == other.param_groups[0]["d"]
    run(wrapped, params, range(17, 50))
    run(other, copies, range(17, 50))
    assert furthest(params, copies) < 1e-10
    sliced = package(parameters(), slice_p=11)
    with pytest.raises(ValueError, match=r"slice_p of param_groups\[0\] must be 1, got 11"):
        lrfast.wrap(sliced)
    assert sliced.param_groups[0]["d"] == 1e-6


def test_the_fine_tuner_trains_with_it() -> None:
    torch.manual_seed(5)
    model = nn.Linear(4, 2)
    inputs = torch.randn(64, 4)
    data = [(inputs[i : i + 8], (inputs[i : i + 8, 0] > 0).long()) for i in range(0, 64, 8)]
    loss = nn.functional.cross_entropy
    tuner = lrfast.FineTuner(model, data, data[:2], loss_fn=loss, optimizer=lrfast.Prodigy)
    tuner.fit(15, schedules.cosine(15 * 8))
    losses = tuner.history.losses
    assert losses[-8:].mean() < losses[:8].mean() / 2
