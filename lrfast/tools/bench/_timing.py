"""Gradients of the contenders, the check that all make the same steps, and the timing.

Contenders take turns in one process, because on a shared machine timings made one after the other
differ by more than the contenders do. A GPU is synchronised only after all rounds are queued.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrfast.tools.bench._contenders import LRFAST, TORCH, Contender
from lrfast.training._data import ComputeLoss, check_loss, to_device

FORWARD = "forward + backward"
ROUNDS = (9, 300)  # fewest and most that are timed
WARM_UP = 4
CHECKED_STEPS = 3
# Bytes of a step below which its time does not depend on the memory's bandwidth.
LEAST_BYTES = 16 * 2**20

Loss = Callable[[nn.Module], Tensor]
Mark = tuple[float, Any]  # the host's time, and the GPU's event
Samples = dict[str, list[float]]  # seconds of each part


def make_loss(batch: Any, compute_loss: ComputeLoss) -> Loss:
    """Return the loss of a model on the batch, which follows the model to its device."""

    def loss(model: nn.Module) -> Tensor:
        device = next(model.parameters()).device
        return check_loss(compute_loss(model, to_device(batch, device)))

    return loss


class Gradients:
    """Equal gradients for all contenders: the batch's, or random ones without a batch."""

    def __init__(self, contenders: dict[str, Contender], loss: Loss | None, refills: bool) -> None:
        self.loss = loss
        self._refills = refills  # whether a step changes them
        params = contenders[TORCH].params
        if loss is not None:
            loss(contenders[TORCH].model).backward()
        self._source = [
            _random_like(param, seed) if loss is None else _copy(param.grad)
            for seed, param in enumerate(params)
        ]
        self._held = {name: list(map(_copy, self._source)) for name in contenders}

    def give(self, name: str, contender: Contender) -> None:
        """Set a contender's gradients to their first values."""
        held = self._held[name]
        if self._refills:
            given = [[g for g in each if g is not None] for each in (held, self._source)]
            torch._foreach_copy_(given[0], given[1])
        for param, grad in zip(contender.params, held, strict=True):
            param.grad = grad


def _copy(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.clone()


def _random_like(param: Tensor, seed: int) -> Tensor:
    # A generator of its own keeps the user's as they are.
    generator = torch.Generator(param.device).manual_seed(seed)
    values = torch.empty_like(param, memory_format=torch.preserve_format)
    return values.detach().normal_(generator=generator)


def assert_same(contenders: dict[str, Contender], gradients: Gradients) -> float:
    """Return the largest difference to torch after some steps, as a fraction of the tolerance."""
    before = [param.detach().clone() for param in contenders[TORCH].params]
    for name, contender in contenders.items():
        for _ in range(CHECKED_STEPS):
            gradients.give(name, contender)
            for part, run in contender.parts.items():
                if part != "scheduler":
                    run()
    worst = 0.0
    expected = [param.detach() for param in contenders[TORCH].params]
    for name, contender in contenders.items():
        for start, wanted, got in zip(before, expected, contender.params, strict=True):
            excess = _excess(start, wanted, got.detach())
            if not excess <= 1:  # NaN included
                raise RuntimeError(
                    f"{name} does not do the same as the optimizer given: after {CHECKED_STEPS} "
                    f"steps a parameter is {excess:.2g} times as far off as roundings explain"
                )
            worst = max(worst, excess)
    return worst


def _excess(start: Tensor, wanted: Tensor, got: Tensor) -> float:
    """Return the difference over the tolerance: roundings and a thousandth of the change."""
    if wanted.numel() == 0:
        return 0.0
    rounding = 4 * CHECKED_STEPS * torch.finfo(wanted.dtype).eps
    allowed = rounding * wanted.abs().max().double() + 1e-3 * (wanted - start).abs().max().double()
    difference = (wanted - got).abs().max().double()
    return float(difference / allowed) if bool(difference > 0) else float(difference)


@dataclass
class Measured:
    """Times of each contender's parts, and the memory's bandwidth if that matters."""

    device: dict[str, Samples] = field(default_factory=dict)
    host: dict[str, Samples] = field(default_factory=dict)  # until all was queued
    bandwidth: float | None = None  # bytes per second


def measure(
    contenders: dict[str, Contender], gradients: Gradients, seconds: float, moved: int, held: int
) -> Measured:
    """Time all contenders in turns; ``moved`` and ``held`` are bytes of a step, of its tensors."""
    device = contenders[LRFAST].params[0].device
    starts = {name: [p.detach().clone() for p in c.params] for name, c in contenders.items()}
    if gradients.loss is None:
        starts = {}

    def turn(name: str) -> list[tuple[str, Mark]]:
        contender = contenders[name]
        marks = []
        if gradients.loss is None:
            gradients.give(name, contender)
        else:  # from the same weights, so that losses and gradients stay what they are
            with torch.no_grad():
                torch._foreach_copy_(contender.params, starts[name])
            marks.append(("", _mark(device)))
            gradients.loss(contender.model).backward()
        marks.append((FORWARD if marks else "", _mark(device)))
        for part, run in contender.parts.items():
            run()
            marks.append((part, _mark(device)))
        return marks

    triad = _triad(held, device) if moved >= LEAST_BYTES else None

    def round_() -> dict[str, list[tuple[str, Mark]]]:
        taken = {name: turn(name) for name in contenders}
        if triad is not None:
            first = _mark(device)
            triad()
            taken["triad"] = [("", first), ("triad", _mark(device))]
        return taken

    spent = []
    for _ in range(WARM_UP):
        begin = time.perf_counter()
        round_()
        _wait(device)
        spent.append(time.perf_counter() - begin)
    fewest, most = ROUNDS
    rounds = [round_() for _ in range(int(min(max(seconds / min(spent), fewest), most)))]
    _wait(device)
    return _evaluate(rounds, held)


def _evaluate(rounds: list[dict[str, list[tuple[str, Mark]]]], held: int) -> Measured:
    measured = Measured()
    for taken in rounds:
        for name, marks in taken.items():
            device = measured.device.setdefault(name, {})
            host = measured.host.setdefault(name, {})
            for (_, before), (part, after) in itertools.pairwise(marks):
                spent = after[0] - before[0]
                host.setdefault(part, []).append(spent)
                if after[1] is not None:
                    spent = before[1].elapsed_time(after[1]) / 1e3
                device.setdefault(part, []).append(spent)
    if triad := measured.device.pop("triad", None):
        measured.host.pop("triad")
        measured.bandwidth = 12 * (held // 8) / statistics.median(triad["triad"])
    return measured


def _triad(held: int, device: torch.device) -> Callable[[], Any]:
    """Return a function that adds two arrays, of together as many bytes as a step's tensors."""
    a, b = (torch.randn(held // 8, device=device) for _ in range(2))
    return lambda: torch.add(a, b, alpha=1e-3, out=a)


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter(), None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return time.perf_counter(), event


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
