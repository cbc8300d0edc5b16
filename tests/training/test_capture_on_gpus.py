"""Captures as only a GPU, or a simulated one, can show them: its devices, streams and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captures import SGD, Training, make_batches
from torch import Tensor, nn

import lrfast

pytestmark = pytest.mark.gpu


def _line(
    device: str = "cuda", **options: Any
) -> tuple[nn.Parameter, lrfast.SGD, Callable[[Tensor], Tensor]]:
    """A vector that trains to become zero, its optimizer, and the step."""
    weights = nn.Parameter(torch.ones(8, device=device))
    optimizer = lrfast.SGD([weights], zero_grads=True, **({"lr": 0.01} | options))

    def step(batch: Tensor) -> Tensor:
        loss: Tensor = (weights * batch).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return weights, optimizer, step


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("has_captured_before", [False, True])
@pytest.mark.parametrize("current", [0, 1])
def test_the_parameters_device_need_not_be_the_current_one(
    current: int, has_captured_before: bool
) -> None:
    if has_captured_before:  # torch keeps the stream of its first capture
        _, optimizer, step = _line()
        lrfast.capture(step, optimizer, torch.ones(8))
    batches = [torch.randn(8) for _ in range(6)]
    with torch.cuda.device(current):
        plain, _, eager = _line("cuda:1")
        weights, optimizer, step = _line("cuda:1")
        captured = lrfast.capture(step, optimizer, batches[0])
        assert weights.tolist() == [1.0] * 8
        for batch in batches:
            assert captured(batch).item() == eager(batch.to("cuda:1")).item()
        assert torch.equal(weights, plain)
        assert torch.cuda.current_device() == current


def test_a_step_beside_the_capture_is_an_error_and_undone() -> None:
    """On a stream of its own, which does not wait for the captured one, a step runs eagerly."""
    weights, optimizer, step = _line()
    aside = torch.cuda.Stream()
    calls = 0

    def train_step(batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls <= 1:
            return step(batch)
        with torch.cuda.stream(aside):
            optimizer.step()
        return torch.zeros((), device="cuda")

    with pytest.raises(RuntimeError, match="must step the optimizer on the current stream"):
        lrfast.capture(train_step, optimizer, torch.ones(8), warmup=1)
    torch.cuda.synchronize()
    assert weights.tolist() == [1.0] * 8 and optimizer._clock() == (0, 0)


def test_host_state_is_restored_after_the_recording() -> None:
    """What a step moves on the host moves while it is recorded, too, without a step."""
    _, optimizer, step = _line()
    outside = nn.Linear(8, 1).to("cuda")
    counter = torch.zeros(())  # on the CPU
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(counter)], 0.1), 1)

    def train_step(batch: Tensor) -> Tensor:
        outside(batch).sum().backward()
        outside.training = False
        counter.add_(1)
        scheduler._step_count += 1
        optimizer.param_groups[0]["lr"] *= 0.5
        return step(batch)

    captured = lrfast.capture(
        train_step, optimizer, torch.ones(8), others=[counter, scheduler], warmup=1
    )
    assert counter.item() == 0 and scheduler._step_count == 1
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert all(param.grad is None for param in outside.parameters())
    captured.release()


def test_gradients_keep_their_values_until_the_first_replay() -> None:
    training = Training(SGD, "cuda", zeroing="before")
    training.head.weight.grad = torch.full_like(training.head.weight, 3.0)
    step = training.capture()
    for name, param in training.model.named_parameters():
        assert param.grad is not None
        wanted = 3.0 if param is training.head.weight else 0.0
        assert (param.grad == wanted).all(), name
    step(make_batches(1, "cuda")[0])


def test_a_first_replay_after_a_new_capture_finds_its_gradients() -> None:
    losses: list[list[float]] = []
    for is_captured in (False, True):
        _, optimizer, step = _line(lr=0.1)
        batch = torch.full((8,), 0.5, device="cuda")
        run: Any = step
        if is_captured:
            run = lrfast.capture(step, optimizer, batch, recapture="auto", warmup=1)
        losses.append([])
        for number in range(6):
            if number in (2, 4):
                optimizer.zero_grad()  # to None, which a graph cannot follow
            losses[-1].append(run(batch).item())
    assert losses[0] == losses[1]


def test_casts_are_part_of_the_graph() -> None:
    """Within an autocast of the user's: weights cast before, or in the warm-up, would stay."""

    def train(capture: bool) -> list[float]:
        torch.manual_seed(0)
        layer = nn.Linear(4, 1, bias=False).to("cuda")
        optimizer = lrfast.SGD(layer.parameters(), lr=0.1, zero_grads=True)

        def step(batch: Tensor) -> Tensor:
            if not capture:
                torch.clear_autocast_cache()
            loss: Tensor = layer(batch).float().square().mean()
            loss.backward()
            optimizer.step()
            return loss

        batch = torch.ones(3, 4, device="cuda")
        run: Any = step
        with torch.autocast("cuda", torch.bfloat16):
            layer(batch)
            if capture:
                run = lrfast.capture(step, optimizer, batch)
            assert layer(batch).isfinite().all()  # by no cast in the graph's memory
            return [run(batch).item() for _ in range(4)]

    assert train(True) == train(False)


def test_what_cuda_refuses_is_explained() -> None:
    weights, optimizer, step = _line()

    def train_step(batch: Tensor) -> Tensor:
        loss = step(batch)
        if torch.cuda.is_current_stream_capturing():
            loss.item()
        return loss

    with pytest.raises(RuntimeError, match=r"train_step cannot be captured: CUDA error: .* held"):
        lrfast.capture(train_step, optimizer, torch.ones(8))
    torch.cuda.synchronize()
    assert weights.tolist() == [1.0] * 8


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # torch's own hint
def test_a_held_loss_is_let_go_of_before() -> None:
    """Its part of the backward pass would run on the stream of its own step."""
    weights, optimizer, step = _line()
    held = (weights * 2).sum()
    with pytest.raises(RuntimeError, match=r"delete it, or hold loss\.detach\(\)"):
        lrfast.capture(step, optimizer, torch.ones(8))
    torch.cuda.synchronize()
    assert weights.tolist() == [1.0] * 8
    del held
    captured = lrfast.capture(step, optimizer, torch.ones(8))
    assert captured(torch.ones(8)).item() == 8.0


def test_copies_of_a_failed_capture_outlive_their_use() -> None:
    """They are made on the warm-up's stream, read on another and dropped."""
    norm = nn.BatchNorm1d(3).to("cuda")
    optimizer = lrfast.SGD(norm.parameters(), lr=0.1)

    def step(batch: Tensor) -> Tensor:
        norm(batch).square().sum().backward()
        optimizer.step()
        raise KeyError

    with pytest.raises(KeyError):
        lrfast.capture(step, optimizer, torch.randn(4, 3, device="cuda"))
    assert [buffer.tolist() for buffer in list(norm.buffers())[:2]] == [[0.0] * 3, [1.0] * 3]
