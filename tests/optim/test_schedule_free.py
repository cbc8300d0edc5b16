"""Schedule-free optimizers: against the package, which weights the model holds, state dicts."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
from cases import by_name, random_grad, twins
from reference import optimizers as reference
from torch import Tensor, nn

import lrfast
from lrfast import schedules
from lrfast.finetune import _tuner

OPTIONS: dict[str, Any] = {"weight_decay": 0.07, "warmup_steps": 30, "r": 0.6}
KINDS: dict[str, tuple[type[Any], Callable[..., Any], dict[str, Any]]] = {
    "AdamWScheduleFree": (
        lrfast.AdamWScheduleFree,
        reference.adamw_schedule_free,
        {"lr": 0.03, "betas": (0.85, 0.97), "eps": 1e-5, "weight_lr_power": 1.5, **OPTIONS},
    ),
    "SGDScheduleFree": (
        lrfast.SGDScheduleFree,
        reference.sgd_schedule_free,
        {"lr": 0.3, "momentum": 0.85, "weight_lr_power": 1.5, **OPTIONS},
    ),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def parameters(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((), (7,), (40, 30))]


def grads_at(step: int, params: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(step)
    return [random_grad(param) + 0.3 for param in params]


def rate_at(lr: float, step: int) -> float:
    return lr * (0.2 + (step * 7 % 10) / 10)


def run(optimizer: Any, params: list[Tensor], steps: range, rate: bool = False) -> None:
    """Steps with gradients that depend on the step alone; rate: the learning rate changes, too."""
    first = float(optimizer.param_groups[0]["lr"])
    for step in steps:
        for param, grad in zip(params, grads_at(step, params), strict=True):
            param.grad = grad.clone()
        if rate:
            optimizer.param_groups[0]["lr"] = rate_at(first, step)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = first


def furthest(params: list[Tensor], others: list[Tensor]) -> float:
    errors = [(a - b).abs() / (b.abs() + 1e-3) for a, b in zip(params, others, strict=True)]
    return max(float(error.detach().max()) for error in errors)


@EACH
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("foreach", [True, False])
def test_equal_to_the_package_over_200_steps(
    kind: str, dtype: torch.dtype, allowed: float, foreach: bool
) -> None:
    cls, _, options = KINDS[kind]
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = cls(ours, **options)
    other = getattr(schedulefree, kind)(theirs, **options, foreach=foreach)
    other.train()
    for start in range(0, 200, 50):
        for each, params in ((optimizer, ours), (other, theirs)):
            run(each, params, range(start, start + 50), rate=True)
        assert furthest(ours, theirs) < allowed
        optimizer.eval()
        other.eval()
        assert furthest(ours, theirs) < allowed
        optimizer.train()
        other.train()


@EACH
@pytest.mark.parametrize("at", [0, 40])  # 40: after the warm-up
@pytest.mark.parametrize("is_training", [True, False])
def test_wrap_takes_over_the_packages_own(kind: str, at: int, is_training: bool) -> None:
    cls, _, options = KINDS[kind]
    ours, theirs = parameters(), parameters()
    old, other = (getattr(schedulefree, kind)(params, **options) for params in (ours, theirs))
    for each, params in ((old, ours), (other, theirs)):
        each.train()
        run(each, params, range(at), rate=True)
        if not is_training:
            each.eval()
    with pytest.raises(ValueError, match="max_grad_norm"):
        lrfast.wrap(old, max_grad_norm=-1.0)
    assert old.param_groups[0]["k"] == at  # as it was
    optimizer = lrfast.wrap(old)
    assert type(optimizer) is cls and optimizer.state is old.state
    for each, params in ((optimizer, ours), (other, theirs)):
        each.train()
        run(each, params, range(at, 80), rate=True)
        each.eval()
    assert furthest(ours, theirs) < 1e-10
    added = {"params": [nn.Parameter(torch.ones(2))]}
    optimizer.add_param_group(added)
    assert optimizer.param_groups[1].keys() == cls([added["params"][0]]).param_groups[0].keys()
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["k"], saved["lr_max"]) == (80, other.param_groups[0]["lr_max"])


@EACH
def test_arguments_and_defaults_are_the_packages(kind: str) -> None:
    wanted = inspect.signature(getattr(schedulefree, kind)).parameters
    got = inspect.signature(KINDS[kind][0]).parameters
    assert list(got)[: len(wanted)] == list(wanted)
    assert all(got[n].default == p.default for n, p in wanted.items() if n != "foreach")


@EACH
def test_equal_to_the_reference_over_200_steps(kind: str) -> None:
    cls, rule, options = KINDS[kind]
    params = parameters()
    optimizer = cls(params, **options)
    values = [param.detach().numpy().copy() for param in params]
    states: list[dict[str, Any]] = [{} for _ in params]
    for step in range(200):
        run(optimizer, params, range(step, step + 1), rate=True)
        hypers = options | {"lr": rate_at(options["lr"], step)}
        for i, grad in enumerate(grads_at(step, params)):
            values[i], states[i] = rule(values[i], grad.numpy(), states[i], **hypers)
    assert furthest(params, [torch.as_tensor(value) for value in values]) < 1e-10
    optimizer.eval()
    beta = options["betas"][0] if "betas" in options else options["momentum"]
    averaged = [(v - (1 - beta) * s["z"]) / beta for v, s in zip(values, states, strict=True)]
    assert furthest(params, [torch.as_tensor(x) for x in averaged]) < 1e-10


@EACH
def test_the_average_is_that_of_all_iterates(kind: str) -> None:
    cls, _, options = KINDS[kind]
    params = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = cls(params, **options | {"warmup_steps": 0, "r": 0.0})
    iterates = []
    for step in range(20):
        run(optimizer, params, range(step, step + 1))
        iterates.append(optimizer.state[params[0]]["z"].clone())
    optimizer.eval()
    assert torch.allclose(params[0], torch.stack(iterates).mean(0), rtol=1e-12)


@EACH
@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_train_and_eval_are_idempotent_and_each_other_undo(
    kind: str, state_dtype: torch.dtype | None
) -> None:
    cls, _, options = KINDS[kind]
    dtype = torch.float64 if state_dtype is None else torch.bfloat16
    params = parameters(dtype)
    left_out = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = cls([*params, left_out], **options, state_dtype=state_dtype)
    optimizer.eval()  # before the first step both weights are the same
    optimizer.train()
    run(optimizer, params, range(9))
    y = [param.detach().clone() for param in params]
    optimizer.train()
    assert all(torch.equal(a, b) for a, b in zip(params, y, strict=True))
    optimizer.eval()
    x = [param.detach().clone() for param in params]
    assert furthest(x, y) > 1e-3
    optimizer.eval()
    assert all(torch.equal(a, b) for a, b in zip(params, x, strict=True))
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before step"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, x, strict=True))
    optimizer.train()
    for a, b in zip(params, y, strict=True):
        assert torch.allclose(a, b, rtol=1e-12 if state_dtype is None else 0.02)
    assert left_out.tolist() == [1, 1]


@EACH
@pytest.mark.parametrize("captures", [False, True])
def test_no_step_starts_from_averaged_weights(
    kind: str, captures: bool, device: torch.device
) -> None:
    """A replayed graph would step on from them in silence."""
    cls, _, options = KINDS[kind]
    param = nn.Parameter(torch.linspace(-1, 1, 5, device=device))
    optimizer = cls([param], **options)

    def train_step(batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (param - batch).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    batch = torch.ones(5, device=device)
    step = lrfast.capture(train_step, optimizer, batch) if captures else train_step
    for _ in range(4):
        step(batch)
    optimizer.eval()
    averaged = param.detach().clone()
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before step"):
        step(batch)
    assert torch.equal(param, averaged)
    optimizer.train()
    step(batch)
    assert not torch.equal(param, averaged)


@EACH
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("in_eval", [True, False])
def test_resumes_bit_for_bit(kind: str, way: str, in_eval: bool) -> None:
    cls, _, options = KINDS[kind]
    params = parameters(torch.float32)
    schedule = schedules.cosine(40)
    optimizer = cls(params, **options, schedule=schedule)
    run(optimizer, params, range(13))
    if in_eval:
        optimizer.eval()
    copies = twins(params)
    resumed: Any
    if way == "state_dict":
        resumed = cls(copies, **options, schedule=schedule)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        loaded = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else None
        resumed = loaded or copy.deepcopy(optimizer)
        copies = resumed.param_groups[0]["params"]
    assert resumed.param_groups[0]["train_mode"] is not in_eval
    for each, own in ((optimizer, params), (resumed, copies)):
        each.train()
        run(each, own, range(13, 30))
        each.eval()
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


@EACH
def test_state_dicts_go_both_ways_with_the_package(kind: str) -> None:
    cls, _, options = KINDS[kind]
    for ours_first in (True, False):
        params = parameters()
        first, second = (cls, getattr(schedulefree, kind))[:: 1 if ours_first else -1]
        before = first(params, **options)
        before.train()
        run(before, params, range(17))
        before.eval()
        copies = twins(params)
        after = second(copies, **options)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        for each, own in ((before, params), (after, copies)):
            each.train()
            run(each, own, range(17, 60))
            each.eval()
        assert furthest(params, copies) < 1e-12


@EACH
def test_a_state_dict_of_the_packages_form_goes_on(kind: str) -> None:
    """Counts and sums in the groups alone, as the package's optimizers have them."""
    cls, _, options = KINDS[kind]
    params = parameters()
    optimizer = cls(params, **options)
    run(optimizer, params, range(17))
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["param_groups"][0]["k"] == 17
    for group in saved["param_groups"]:
        del group["differentiable"]
    for state in saved["state"].values():
        for name in ("step", "weight_sum", "lr_max"):
            del state[name]
    copies = twins(params)
    resumed = cls(copies, **options)
    resumed.load_state_dict(saved)
    assert not {"k", "weight_sum", "lr_max"} & resumed.param_groups[0].keys()
    for each, own in ((optimizer, params), (resumed, copies)):
        run(each, own, range(17, 40))
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))
    saved["param_groups"][0]["k"] = "seventeen"
    with pytest.raises(ValueError, match=r"k of param_groups\[0\] must"):
        cls(twins(params), **options).load_state_dict(saved)


ERRORS = [
    ("AdamWScheduleFree", {"betas": (0.0, 0.9)}, r"betas must lie in \(0, 1\) and \[0, 1\)"),
    ("AdamWScheduleFree", {"betas": (0.9, 1.0)}, "got 1.0 as number 1"),
    ("AdamWScheduleFree", {"lr": -1.0}, "lr must be finite and not negative, got -1.0"),
    ("AdamWScheduleFree", {"warmup_steps": -1}, "warmup_steps must be a whole number"),
    ("SGDScheduleFree", {"momentum": 0.0}, r"momentum must lie in \(0, 1\), got 0.0"),
    ("SGDScheduleFree", {"r": -0.5}, "r must be finite and not negative"),
    ("SGDScheduleFree", {"weight_lr_power": float("nan")}, "weight_lr_power must be finite"),
    ("SGDScheduleFree", {"lr": torch.ones(2)}, r"lr must be one number, got a tensor"),
]


@pytest.mark.parametrize(("kind", "options", "message"), ERRORS, ids=by_name)
def test_arguments_out_of_range(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KINDS[kind][0](parameters(), **options)


@EACH
def test_weights_may_not_be_exchanged_within_ema_parameters(kind: str) -> None:
    params = parameters()
    optimizer = KINDS[kind][0](params, ema_decay=0.9)
    run(optimizer, params, range(3))
    with optimizer.ema_parameters(), pytest.raises(RuntimeError, match="eval must wait until"):
        optimizer.eval()
    assert optimizer.param_groups[0]["train_mode"] is True


@EACH
def test_a_schedules_momentum_has_no_effect(kind: str) -> None:
    """The averaged weights are read off by beta, so that it stays."""
    cls, _, options = KINDS[kind]
    runs = []
    for momentum in ((0.95, 0.7), None):
        params = parameters()
        schedule = schedules.one_cycle(20, momentum=momentum)
        optimizer = cls(params, **options, schedule=schedule)
        assert np.isnan(optimizer.planned().momenta).all()
        run(optimizer, params, range(20))
        optimizer.eval()
        runs.append(params)
    assert furthest(*runs) == 0


def fine_tuner(kind: str, seen: list[Tensor], is_package: bool = False) -> lrfast.FineTuner:
    torch.manual_seed(5)
    model = nn.Linear(4, 2, dtype=torch.float64)
    data = [(torch.randn(8, 4, dtype=torch.float64), torch.randint(2, (8,))) for _ in range(6)]

    def watch(outputs: Tensor, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            seen.append(model.weight.detach().clone())
        return nn.functional.cross_entropy(outputs, targets)

    cls = getattr(schedulefree, kind) if is_package else KINDS[kind][0]
    make = functools.partial(cls, **KINDS[kind][2] | {"warmup_steps": 0})
    return lrfast.FineTuner(model, data, data[:1], loss_fn=watch, optimizer=make)


@EACH
@pytest.mark.parametrize("is_package", [False, True])
def test_the_fine_tuner_validates_and_ends_with_averaged_weights(
    kind: str, is_package: bool
) -> None:
    seen: list[Tensor] = []
    tuner = fine_tuner(kind, seen, is_package)
    weight, optimizer = tuner.model.weight, tuner.optimizer
    for _ in range(2):
        tuner.fit(2, schedules.constant(0.8))
        assert optimizer.param_groups[0]["train_mode"] is False
        assert torch.allclose(seen[-1], weight, rtol=1e-12)
        optimizer.train()
        assert not torch.allclose(seen[-1], weight, rtol=1e-4)
        optimizer.eval()
    before = weight.detach().clone()
    result = tuner.lr_find(num_iter=6, progress=False)
    assert len(result.lrs) == 6
    assert torch.equal(weight, before)
    assert optimizer.param_groups[0]["train_mode"] is False


class _Spoilt(nn.Module):
    """Fails on request."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails and not torch.is_grad_enabled():
            raise RuntimeError("spoilt")
        return x


def with_batch_norm(kind: str, ema: bool = False) -> tuple[lrfast.FineTuner, list[Tensor]]:
    """A tuner whose loader shuffles, and the statistics that each validation sees."""
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3)), nn.BatchNorm1d(6, momentum=0.3),
        _Spoilt(), nn.Linear(6, 2),
    ).double()  # fmt: skip
    rows = torch.utils.data.TensorDataset(
        torch.randn(48, 4, dtype=torch.float64) + 2, torch.randint(2, (48,))
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
    seen: list[Tensor] = []

    def watch(outputs: Tensor, targets: Tensor) -> Tensor:
        if not model[1].training:
            seen.append(model[1].running_mean.clone())
        return nn.functional.cross_entropy(outputs, targets)

    make = functools.partial(KINDS[kind][0], **KINDS[kind][2] | {"warmup_steps": 0})
    if ema:
        make = functools.partial(make, ema_decay=0.9)
    valid = [next(iter(loader))]
    return lrfast.FineTuner(model, loader, valid, loss_fn=watch, optimizer=make), seen


@EACH
def test_the_fine_tuner_takes_statistics_at_the_averaged_weights(kind: str) -> None:
    tuner, seen = with_batch_norm(kind)
    tuner.fit(2, schedules.constant(0.8))
    layer = tuner.model[1]
    inputs = tuner.train_loader.dataset.tensors[0]
    wanted = tuner.model[0].eval()(inputs).detach()
    for mean in (layer.running_mean, seen[-1]):
        torch.testing.assert_close(mean, wanted.mean(0))
    assert layer.momentum == 0.3
    kept = layer.running_mean.clone()
    tuner.norm_mode = "keep"
    tuner.freeze_to(-1)
    tuner.fit(1, schedules.constant(0.8))
    assert torch.equal(layer.running_mean, kept)


@EACH
@pytest.mark.parametrize("validates", [True, False])
def test_statistics_are_taken_once_for_each_average_that_is_looked_at(
    kind: str, validates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end leaves the weights of the last validation; without one it takes its own."""
    tuner, _ = with_batch_norm(kind)
    if not validates:
        tuner.val_loader = None
    taken: list[Any] = []
    monkeypatch.setattr(_tuner, "refresh_statistics", lambda *given: taken.append(given))
    for fits in (1, 2):
        tuner.fit(3, schedules.constant(0.8))
        assert len(taken) == fits * (3 if validates else 1)


@EACH
def test_statistics_at_averaged_weights_draw_no_random_numbers(kind: str) -> None:
    """Their pass over the data changes no later batch and no dropout."""
    weights = []
    for refreshes in (True, False):
        tuner, _ = with_batch_norm(kind)
        if not refreshes:
            tuner._refresh_statistics = lambda data: None  # type: ignore[method-assign]
        tuner.fit(3, schedules.constant(0.8))
        weights.append([p.detach().clone() for p in tuner.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@EACH
def test_the_ema_has_statistics_of_its_own_and_the_end_those_of_the_average(kind: str) -> None:
    tuner, seen = with_batch_norm(kind, ema=True)
    tuner.fit(1, schedules.constant(0.8))
    wanted = tuner.model[0].eval()(tuner.train_loader.dataset.tensors[0]).mean(0).detach()
    torch.testing.assert_close(tuner.model[1].running_mean, wanted)
    assert len(seen) == 1
    with tuner.optimizer.ema_parameters():  # type: ignore[operator]
        assert torch.equal(tuner.model[1].running_mean, seen[0])


@EACH
def test_statistics_stay_if_a_batch_fails(kind: str) -> None:
    tuner, _ = with_batch_norm(kind)
    layer, state = tuner.model[1], tuner.model[2]

    class Fails(lrfast.finetune.Callback):
        def on_step_end(self, tuner: Any, step: int, loss: Tensor) -> None:
            kept[:] = [buffer.clone() for buffer in layer.buffers()]
            state.fails = step == tuner.epoch_steps

    kept: list[Tensor] = []
    tuner.callbacks.append(Fails())
    with pytest.raises(RuntimeError, match="spoilt"):
        tuner.fit(1, schedules.constant(0.8))
    assert all(torch.equal(a, b) for a, b in zip(kept, layer.buffers(), strict=True))
    assert layer.momentum == 0.3 and layer.training


@EACH
def test_a_range_test_validates_averaged_weights(kind: str) -> None:
    seen: list[Tensor] = []
    tuner = fine_tuner(kind, seen)
    weight = tuner.model.weight
    trained: list[Tensor] = []
    tuner.optimizer.register_step_post_hook(lambda *_: trained.append(weight.detach().clone()))
    lrfast.lr_find(
        tuner.model, tuner.optimizer, tuner.train_loader, loss_fn=tuner.loss_fn,
        val_loader=tuner.val_loader, start_lr=0.01, num_iter=5, progress=False,
    )  # fmt: skip
    validated = [value for value in seen if any(torch.allclose(value, y) for y in trained[1:])]
    assert len(trained) >= 4
    assert len(seen) >= 5
    assert not validated
