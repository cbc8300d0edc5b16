"""What a captured step cannot follow is an error that names it, or captures again; bad calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from captures import (
    ADAMW,
    SGD,
    Training,
    assert_same,
    copied,
    make_batches,
    make_muon,
    train_both,
)
from torch import nn

import lrfast
from lrfast.curve import _CurveRecorder
from lrfast.training.capture._spec import CaptureSpec
from lrfast.training.capture._step import CapturedStep, _refusal


def _add_group(training: Training) -> None:
    extra = nn.Parameter(torch.ones(2, device=training.device))
    training.optimizer.add_param_group({"params": [extra], "lr": 0.5})


def _swap_parameter(training: Training) -> None:
    group = training.optimizer.param_groups[1]
    group["params"] = [*group["params"][:-1], nn.Parameter(torch.ones(4, device=training.device))]


def _move_parameter(training: Training) -> None:
    training.head.bias.data = training.head.bias.data.clone()


def _replace_gradient(training: Training) -> None:
    training.head.bias.grad = training.head.bias.grad.clone()


def _bring_gradient(training: Training) -> None:
    training.unused.grad = torch.ones(4, device=training.device)


def _load(training: Training) -> None:
    training.optimizer.load_state_dict(training.optimizer.state_dict())


def _options(**options: Any) -> Callable[[Training], None]:
    def change(training: Training) -> None:
        own = training.optimizer._options
        training.optimizer._set_options(type(own)(**(vars(own) | options)))

    return change


def _unscaled(training: Training) -> None:
    training.scaler.set_growth_factor(3.0)


@dataclass(frozen=True)
class Row:
    """One change that needs a new capture."""

    name: str
    change: Callable[[Training], Any]
    message: str
    kind: tuple[tuple[str, Any], ...] = ()
    make: Callable[..., Any] = ADAMW


FIRST = r"parameter 0 of param_groups\[0\] \(shape \[9, 6\]\)"
BIAS = r"parameter 1 of param_groups\[1\] \(shape \[3\]\)"
ROWS = [
    Row("added group", _add_group, "param_groups hold other groups or parameters"),
    Row("another parameter", _swap_parameter, "param_groups hold other groups or parameters"),
    Row("moved parameter", _move_parameter, BIAS + " lies elsewhere in memory"),
    Row(
        "gradients set to None",
        lambda t: t.optimizer.zero_grad(),
        f"the gradient of {FIRST} is None now; zero gradients in place",
    ),
    Row("another gradient", _replace_gradient, f"the gradient of {BIAS} was replaced by another"),
    Row(
        "gradient that was None",
        _bring_gradient,
        r"the gradient of parameter 2 of param_groups\[1\] .* was None and is there now",
    ),
    Row(
        "requires_grad",
        lambda t: t.head.bias.requires_grad_(False),
        f"requires_grad of {BIAS} has changed",
    ),
    Row("zero_grads", _options(zero_grads=False), "zero_grads has changed"),
    Row("skip_nonfinite", _options(skip_nonfinite=True), "skip_nonfinite has changed"),
    Row("ema_decay", _options(ema_decay=0.5), "ema_decay has changed"),
    Row("telemetry", _options(telemetry=4), "telemetry has changed"),
    Row("seed", _options(seed=4), "seed has changed"),
    Row("rounding", _options(stochastic_rounding=True), "stochastic_rounding has changed"),
    Row("clipping off", _options(max_grad_norm=None), "clipping has been switched off"),
    Row(
        "clipping on",
        lambda t: t.optimizer.param_groups[0].update(max_grad_norm=0.1),
        "clipping has been switched on",
        (("zeroing", "in place"),),
        SGD,
    ),
    Row("loaded state", _load, "the optimizer's state was loaded or restored"),
    Row("evaluation", lambda t: t.body[3].eval(), "between training and evaluation mode"),
    Row(
        "products",
        lambda t: t.optimizer.param_groups[0].update(ns_steps=3),
        "the rule or the products of a param group have changed",
        make=make_muon,
    ),
    Row(
        "averages of rows",
        lambda t: t.optimizer.param_groups[0].update(beta2=None),
        "the rule or the products of a param group have changed",
        make=make_muon,
    ),
    Row(
        "scaler",
        _unscaled,
        "the scaler's factors or interval have changed",
        (("scaler", True), ("zeroing", "in place")),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_change_that_a_graph_cannot_follow_is_an_error(row: Row, device: torch.device) -> None:
    training = Training(row.make, device, **dict(row.kind))
    step = training.capture()
    batches = make_batches(3, device)
    step(batches[0])
    row.change(training)
    before, calls = copied(training.memory()), training.calls
    for batch in batches[1:]:  # as often as it is called
        with pytest.raises(lrfast.RecaptureNeeded, match=row.message):
            step(batch)
    assert training.calls == calls
    assert_same(training.memory(), before)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_or_it_captures_again(row: Row, device: torch.device) -> None:
    _, _, step = train_both(
        {4: row.change}, device, 8, row.make, {"recapture": "auto", "warmup": 1}, **dict(row.kind)
    )
    assert step.captures == 2


def test_a_capture_that_failed_is_not_replayed(device: torch.device) -> None:
    """The call that needs it raises and changes nothing; the next one captures."""
    training = Training(device=device)
    fails = False

    def train_step(batch: Any) -> torch.Tensor:
        loss = training.step(batch)
        if fails:
            raise OSError("not now")
        return loss

    batch = make_batches(1, device)[0]
    step = lrfast.capture(train_step, training.optimizer, batch, recapture="auto")
    step(batch)
    training.optimizer.zero_grad()
    before, fails = copied(training.memory()), True
    for _ in range(2):
        with pytest.raises(OSError, match="not now"):
            step(batch)
        assert_same(training.memory(), before)
    fails = False
    step(batch)
    assert step.captures == 2
    assert training.optimizer._clock()[0] == 2


def test_a_plateau_that_is_replaced_captures_again(device: torch.device) -> None:
    """Where the step records its factor, a graph holds that tensor's address."""
    training = Training(SGD, device, zeroing="in place")
    optimizer = training.optimizer
    plateau = lrfast.Plateau(optimizer)
    curve = lrfast.LossCurve(8, device)
    recorder = _CurveRecorder(curve)

    def train_step(batch: Any) -> torch.Tensor:
        loss = training.step(batch)
        recorder.record(loss, optimizer._loss_factor.reshape(1))
        return loss

    spec = CaptureSpec(
        train_step, optimizer, None, None, [], [], 1, recorder, records_loss_factor=True
    )
    captured = CapturedStep(spec, "auto")
    captured(make_batches(1, device)[0])
    plateau.detach()
    plateau = lrfast.Plateau(optimizer)
    plateau._state["scale"].fill_(0.25)
    captured(make_batches(1, device)[0])
    assert captured.captures == 2
    assert curve.lrs.tolist() == [1.0, 0.25]


def test_cudas_first_complaint_is_told() -> None:
    """torch ends a capture that has failed with another error."""
    first = RuntimeError("CUDA error: operation would make the legacy stream depend on a capturing")
    second = RuntimeError("CUDA error: operation failed due to a previous error during capture\n-")
    second.__context__ = first
    assert _refusal(second) == str(first)
    assert _refusal(RuntimeError("CUDA error: out of memory")) is None
    assert _refusal(RuntimeError("tables cannot be made while a CUDA graph is captured")) is None


def test_two_captured_steps_of_one_optimizer(device: torch.device) -> None:
    training = Training(device=device)
    first, second = training.capture(), training.capture(recapture="auto")
    batch = make_batches(1, device)[0]
    with pytest.raises(lrfast.RecaptureNeeded, match="another step of the same optimizer"):
        first(batch)
    second(batch)
    first.release()
    second(batch)
    assert second.captures == 1


# ---- batches of another kind -------------------------------------------------------------------


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


OTHERS = [
    (
        {"x": _tensor(4, 2), "k": 1, "z": [_tensor(1)]},
        r"batch\['x'\]: it was float32 \[3, 2\], got",
    ),
    (
        {"x": _tensor(3, 2, dtype=torch.float64), "k": 1, "z": [_tensor(1)]},
        r"batch\['x'\]: .*got float64 \[3, 2\]",
    ),
    ({"x": 3, "k": 1, "z": [_tensor(1)]}, r"batch\['x'\]: it was a tensor, got int"),
    ({"x": _tensor(3, 2), "k": 2, "z": [_tensor(1)]}, r"\['k'\]: it is no tensor and was 1, got 2"),
    ({"x": _tensor(3, 2), "k": 1.0, "z": [_tensor(1)]}, r"\['k'\]: it was int, got float"),
    ({"x": _tensor(3, 2), "k": 1, "z": (_tensor(1),)}, r"\['z'\]: it was list, got tuple"),
    ({"x": _tensor(3, 2), "k": 1, "z": []}, r"\['z'\]: its length was 1, got 0"),
    ({"x": _tensor(3, 2), "k": 1, "z": [_tensor(2)]}, r"batch\['z'\]\[0\]: it was float32 \[1\]"),
    ({"x": _tensor(3, 2), "z": [_tensor(1)]}, r"batch: its keys were \['x', 'k', 'z'\]"),
    ([_tensor(3, 2)], "batch: it was dict, got list"),
]


@pytest.mark.parametrize(("batch", "message"), OTHERS, ids=range(len(OTHERS)))
def test_a_batch_of_another_kind_is_an_error(
    batch: Any, message: str, device: torch.device
) -> None:
    layer = nn.Linear(2, 1).to(device)
    optimizer = lrfast.SGD(layer.parameters(), lr=0.1, momentum=0.9, zero_grads=True)

    def train_step(batch: Any) -> torch.Tensor:
        loss = layer(batch["x"]).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    example = {"x": _tensor(3, 2), "k": 1, "z": [_tensor(1)]}
    step = lrfast.capture(train_step, optimizer, example)
    step(example)
    before = layer.weight.detach().clone()
    with pytest.raises(lrfast.RecaptureNeeded, match=message):
        step(batch)
    assert torch.equal(layer.weight, before)
    step(example)


@pytest.mark.parametrize("zeroing", ["step", "before", "after", "in place"])
def test_smaller_last_batches_run_eagerly(zeroing: str, device: torch.device) -> None:
    batches = [*make_batches(4, device), *make_batches(1, device, rows=5)] * 3
    eager, captured = (
        Training(device=device, zeroing=zeroing),
        Training(device=device, zeroing=zeroing),
    )
    torch.manual_seed(5)
    wanted = [eager.step(batch).detach() for batch in batches]
    torch.manual_seed(5)
    step = captured.capture(recapture="auto")
    for index, batch in enumerate(batches):
        grads = [param.grad for param in captured.model.parameters()]
        assert torch.equal(step(batch), wanted[index])
        after = [param.grad for param in captured.model.parameters()]
        if len(batch[0]) == 5:  # the tensors that a graph writes to are still the parameters'
            assert all(grad is old for grad, old in zip(after, grads, strict=True))
    assert step.captures == 1
    assert_same(captured.memory(), eager.memory())


def test_the_second_batch_of_another_kind_is_captured(device: torch.device) -> None:
    training = Training(device=device)
    step = training.capture(recapture="auto")
    counts = []
    for rows in (8, 5, 5, 5, 8, 5, 8, 8):
        step(make_batches(1, device, rows)[0])
        counts.append(step.captures)
    assert counts == [1, 1, 2, 2, 2, 2, 2, 3]


# ---- bad arguments -----------------------------------------------------------------------------


@dataclass(frozen=True)
class BadCall:
    """One bad argument of capture()."""

    name: str
    options: dict[str, Any]
    error: type[Exception]
    message: str


def _hooked() -> Any:
    optimizer = SGD([nn.Parameter(torch.ones(2))])
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def _no_step(batch: Any) -> torch.Tensor:
    return torch.ones(())


BAD: list[BadCall] = [
    BadCall(
        "optimizer",
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])},
        TypeError,
        "optimizer must be an lrfast.* got a SGD; lrfast.wrap",
    ),
    BadCall("hooks", {"optimizer": _hooked()}, ValueError, "optimizer must have no step hooks"),
    BadCall("warmup", {"warmup": 0}, ValueError, "warmup must be a whole number .* got 0"),
    BadCall("warmup of bool", {"warmup": True}, ValueError, "warmup must be .* got True"),
    BadCall("recapture", {"recapture": "yes"}, ValueError, "recapture must be 'error' or 'auto'"),
    BadCall(
        "scaler", {"scaler": 2.0}, TypeError, "scaler must be a torch.GradScaler or None, got 2.0"
    ),
    BadCall(
        "others", {"others": [1]}, TypeError, r"others\[0\] must be a tensor or have .* got int"
    ),
    BadCall("curve", {"curve": []}, TypeError, "curve must be an lrfast.* got a list"),
    BadCall(
        "width",
        {"curve": lrfast.LossCurve(3, width=3)},
        ValueError,
        "curve must have width 1 or one rate per param group, 2, got 3",
    ),
    BadCall(
        "batch", {"example_batch": {1, 2}}, TypeError, "example_batch must be made of .* got set"
    ),
    BadCall(
        "no optimizer step",
        {"train_step": _no_step},
        ValueError,
        r"must call optimizer.step\(\) once, got 0 calls",
    ),
    BadCall(
        "loss", {"train_step": lambda _: 1.0}, TypeError, "the loss must be a tensor, got float"
    ),
]


@pytest.mark.parametrize("row", BAD, ids=lambda row: row.name)
def test_bad_arguments(row: BadCall) -> None:
    training = Training()
    before = copied(training.memory())
    given: dict[str, Any] = {
        "train_step": training.step,
        "optimizer": training.optimizer,
        "example_batch": make_batches(1)[0],
    }
    with pytest.raises(row.error, match=row.message):
        lrfast.capture(**(given | row.options))
    assert_same(training.memory(), before)


def test_two_optimizer_steps_in_one_training_step(device: torch.device) -> None:
    training = Training(device=device)

    def train_step(batch: Any) -> torch.Tensor:
        training.step(batch)
        return training.step(batch)

    with pytest.raises(ValueError, match="once, got 2 calls"):
        lrfast.capture(train_step, training.optimizer, make_batches(1, device)[0])


def test_a_training_step_that_changes_what_it_is_captured_with() -> None:
    training = Training()

    def train_step(batch: Any) -> torch.Tensor:
        loss = training.step(batch)
        training.unused.requires_grad_(training.calls % 2 == 0)
        return loss

    step = lrfast.capture(train_step, training.optimizer, make_batches(1)[0], warmup=2)
    step(make_batches(1)[0])
