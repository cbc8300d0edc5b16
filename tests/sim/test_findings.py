"""What reviews of the CUDA side have found, each as a program that once showed it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrfast
from lrfast._utils.async_copy import AsyncHostQueue

pytestmark = pytest.mark.sim
cuda = torch.device("cuda")


class Line:
    """A step that trains a vector to become zero."""

    def __init__(self, device: str = "cuda", **options: Any) -> None:
        self.weights = nn.Parameter(torch.ones(8, device=device))
        self.optimizer = lrfast.SGD([self.weights], zero_grads=True, **options)

    def step(self, batch: Tensor) -> Tensor:
        loss = (self.weights * batch).square().sum()
        loss.backward()
        self.optimizer.step()
        return loss


@pytest.mark.parametrize("before", [False, True], ids=["first", "after-device-0"])
@pytest.mark.parametrize("current", [0, 1])
def test_01_a_capture_on_the_second_device(current: int, before: bool) -> None:
    if before:  # torch keeps the stream that it makes for a capture
        first = Line(lr=0.01)
        lrfast.capture(first.step, first.optimizer, torch.ones(8, device=cuda))
    torch.cuda.set_device(current)
    batches = [torch.randn(8, device="cuda:1") for _ in range(6)]
    eager, line = Line("cuda:1", lr=0.01), Line("cuda:1", lr=0.01)
    captured = lrfast.capture(line.step, line.optimizer, batches[0])
    assert line.weights.tolist() == [1.0] * 8
    for batch in batches:
        assert captured(batch).item() == eager.step(batch).item()
    assert torch.equal(line.weights, eager.weights)


def test_02_a_captured_curve_keeps_only_steps_that_were_made() -> None:
    line = Line(lr=0.01, skip_nonfinite=True)
    curve = lrfast.LossCurve(20, cuda)

    def step(batch: Tensor) -> Tensor:
        loss = (line.weights * batch).abs().sqrt().sum()  # at 0 finite, but not its gradient
        loss.backward()
        line.optimizer.step()
        return loss

    captured = lrfast.capture(step, line.optimizer, torch.ones(8, device=cuda), curve=curve)
    for factor in (1.0, 1.0, 0.0, 1.0):
        captured(torch.full((8,), factor, device=cuda))
    assert len(curve) == line.optimizer._clock()[0] == 3 and (curve.losses > 0).all()


def test_02_a_used_curve_is_captured_again() -> None:
    line, curve = Line(lr=0.01, skip_nonfinite=True), lrfast.LossCurve(20, cuda)
    example = torch.ones(8, device=cuda)
    lrfast.capture(line.step, line.optimizer, example, curve=curve)(example)
    lrfast.capture(line.step, line.optimizer, example, curve=curve)(example)
    assert len(curve) == 2


def test_04_the_cpu_step_has_the_scale_that_the_gpu_computes() -> None:
    params = [nn.Parameter(torch.ones(4, device=device)) for device in ("cuda", "cpu")]
    optimizer = lrfast.SGD(params, lr=1.0)
    for param in params:
        param.grad = torch.full_like(param, 8.0)
    # As GradScaler leaves them: results that the device has yet to compute.
    optimizer.grad_scale = torch.full((), 4.0, device=cuda) * 2
    optimizer.found_inf = torch.zeros((), device=cuda) + 0
    optimizer.step()
    assert [param.tolist() for param in params] == [[0.0] * 4] * 2


def test_04_a_cpu_parameter_that_comes_later_has_the_clock() -> None:
    first = nn.Parameter(torch.ones(4, device=cuda))
    schedule = lrfast.schedules.linear(1.0, 0.5, 10)
    optimizer = lrfast.SGD([first], lr=1.0, schedule=schedule)
    for _ in range(3):
        first.grad = torch.ones_like(first)
        optimizer.step()
    second = nn.Parameter(torch.zeros(4))
    optimizer.add_param_group({"params": [second], "lr": 1.0})
    optimizer._schedules = [optimizer._schedules[0]] * 2
    second.grad = torch.ones(4)
    optimizer.step()
    torch.cuda.synchronize()
    on_gpu, on_cpu = (clock.tolist() for clock in optimizer._engine.clocks())
    assert on_gpu == on_cpu


@pytest.mark.parametrize("kind", ["Adagrad", "AdamW", "SGD"])
def test_05_the_first_step_may_be_on_another_stream(kind: str) -> None:
    """With states that the default stream has made: by the constructor, or from a checkpoint."""
    param = nn.Parameter(torch.ones(64, device=cuda))
    optimizer = getattr(lrfast, kind)([param], lr=0.1)
    if kind != "Adagrad":
        param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        param.grad = torch.ones_like(param)
        optimizer.step()
    torch.cuda.synchronize()
    assert param.isfinite().all()


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_12_a_replay_after_a_new_capture_steps_on_its_own_gradients(captured: bool) -> None:
    def train(capture: bool) -> list[float]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2).to(cuda)
        optimizer = lrfast.SGD(layer.parameters(), lr=0.1, zero_grads=True)

        def step(batch: Tensor) -> Tensor:
            loss = layer(batch).square().sum()
            loss.backward()
            optimizer.step()
            return loss

        batch = torch.ones(4, 3, device=cuda)
        run: Any = step
        if capture:
            run = lrfast.capture(step, optimizer, batch, recapture="auto", warmup=1)
        losses = []
        for number in range(5):
            if number == 2:
                optimizer.zero_grad()  # to None, which a graph cannot follow
            losses.append(run(batch).item())
        return losses

    assert train(captured) == train(False)


def test_13_a_failed_capture_leaves_buffers_as_they_were() -> None:
    norm = nn.BatchNorm1d(3).to(cuda)
    optimizer = lrfast.SGD(norm.parameters(), lr=0.1)

    def step(batch: Tensor) -> Tensor:
        norm(batch).square().sum().backward()
        optimizer.step()
        raise OSError("the batch is lost")

    with pytest.raises(OSError, match="lost"):
        lrfast.capture(step, optimizer, torch.randn(4, 3, device=cuda))
    assert norm.running_mean.tolist() == [0.0] * 3 and norm.running_var.tolist() == [1.0] * 3


def test_15_the_learning_rates_of_no_step_are_on_the_device() -> None:
    line = Line(lr=0.01)
    assert line.optimizer.last_rates.device == line.weights.device
    lrfast.LossCurve(3, cuda).record(torch.ones((), device=cuda), line.optimizer.last_rates)


@pytest.mark.parametrize("moment", ["first", "last"])
def test_17_gradients_from_before_a_step_that_sets_them_to_none(moment: str) -> None:
    """At the start of a step they are dropped; at its end a graph would go on adding to them."""

    def train(capture: bool) -> list[float]:
        line = Line(lr=0.01)
        (line.weights * 3).sum().backward()

        def step(batch: Tensor) -> Tensor:
            if moment == "first":
                line.optimizer.zero_grad()
            loss = line.step(batch)
            line.optimizer.zero_grad()
            return loss

        batch = torch.ones(8, device=cuda)
        run = lrfast.capture(step, line.optimizer, batch) if capture else step
        return [run(batch).item() for _ in range(4)]

    if moment == "first":
        assert train(True) == train(False)
        return
    with pytest.raises(ValueError, match="must find no gradients if it adds to them"):
        train(True)


@pytest.mark.parametrize("dropped", ["gradient", "parameter", "buffer"])
def test_18_what_a_graph_knows_of_other_modules_stays_its_own(dropped: str) -> None:
    body = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)).to(cuda)
    line = Line(lr=0.01)

    def step(batch: Tensor) -> Tensor:
        return line.step(body(batch).sum() * torch.ones(8, device=cuda))

    batch = torch.randn(4, 3, device=cuda)
    step(batch)  # leaves gradients that the graph adds to
    captured = lrfast.capture(step, line.optimizer, batch)
    if dropped == "gradient":
        body.zero_grad()
    elif dropped == "parameter":
        body[0].weight = nn.Parameter(torch.ones(3, 3, device=cuda))
    else:
        body[1].running_mean = torch.ones(3, device=cuda)
    others = [torch.full(shape, 5.0, device=cuda) for shape in ((3, 3), (3,)) for _ in range(4)]
    losses = [captured(batch).item() for _ in range(3)]
    assert all((other == 5.0).all() for other in others)
    assert line.weights.isfinite().all() and all(map(math.isfinite, losses))


@pytest.mark.parametrize("kinds", [1, 2], ids=["one-kind", "two-kinds"])
def test_19_a_released_step_keeps_its_batch_until_the_stream_of_its_calls_has_used_it(
    kinds: int,
) -> None:
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    eager, line = Line(lr=0.01), Line(lr=0.01)
    batches = [torch.ones(8, device=cuda), torch.ones(1, 8, device=cuda)][:kinds]
    captured = lrfast.capture(line.step, line.optimizer, batches[0], recapture="auto")
    for batch in batches[1:]:  # kept on this stream, for an eager step
        captured(batch), eager.step(batch)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for batch in batches * 3:
            captured(batch)
        captured.release()
        del captured
    others = [torch.full((8,), 7.0, device=cuda) for _ in range(6)]
    main.wait_stream(side)
    for batch in batches * 3:
        eager.step(batch)
    assert torch.equal(line.weights, eager.weights) and len(others) == 6


@pytest.mark.parametrize("kind", [torch.optim.SGD, lrfast.SGD])
def test_20_a_range_test_of_whole_steps_waits_for_nothing(kind: type[torch.optim.SGD]) -> None:
    """The count of a scheduler on the host was copied to the GPU with a wait, each step."""
    weights = nn.Parameter(torch.ones(8, device=cuda))
    optimizer, batch = kind([weights], lr=0.01), torch.ones(8, device=cuda)
    modes = ["default", *["error"] * 3, "default"]

    def step(batch: Tensor) -> Tensor:
        torch.cuda.set_sync_debug_mode(modes.pop(0) if modes else "default")
        optimizer.zero_grad()
        loss = (weights * batch).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    model = nn.Module()
    model.weights = weights
    lrfast.lr_find(model, optimizer, [batch], step_fn=step, num_iter=20, progress=False)
    assert not modes


def test_21_numbers_of_several_devices_are_read_late_together() -> None:
    values = [torch.full((1,), 3.0, device=device) for device in ("cpu", "cuda:1", "cuda:0")]
    queue = AsyncHostQueue()
    queue.put(7, [value + 1 for value in values])
    assert list(queue.ready(wait=True)) == [(7, [4.0, 4.0, 4.0])]
