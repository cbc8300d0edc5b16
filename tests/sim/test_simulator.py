"""The simulator's own promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sim.plugin import backend, start

pytestmark = [pytest.mark.sim, pytest.mark.hazard]
cuda = torch.device("cuda")

# Streams, events, memory that is given out again, a capture, replays and random numbers.
PROGRAM = """
from sim.plugin import backend, start
import torch
import lrfast

for seed in range(5):
    start(str(seed))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Dropout(), torch.nn.Linear(9, 1))
    optimizer = lrfast.AdamW(model.cuda().parameters(), max_grad_norm=1.0, zero_grads=True)

    def train_step(batch):
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    step = lrfast.capture(train_step, optimizer, torch.ones(4, 6))
    with torch.cuda.stream(side):
        batches = [torch.randn(4, 6, device="cuda") for _ in range(5)]
    torch.cuda.current_stream().wait_stream(side)
    losses = [step(batch).clone() for batch in batches]
    print(backend.fingerprint(), [loss.item() for loss in losses])
"""


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    tests = str(Path(__file__).parents[1])
    runs = [
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{PROGRAM}"],
            check=True, capture_output=True, text=True, cwd=Path(tests).parent,
        ).stdout
        for _ in range(2)
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(set(runs[0].splitlines())) == 5


def test_another_seed_gives_another_order() -> None:
    orders = set()
    for seed in range(5):
        start(f"order {seed}")
        streams = [torch.cuda.Stream() for _ in range(4)]
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.ones(3, device=cuda).add_(1)
        torch.cuda.synchronize()
        orders.add(backend.fingerprint())
    assert len(orders) == 5


def test_a_graph_may_be_released_while_it_runs() -> None:
    """Its memory, and what tensors hold of it, is nobody else's until the device has gone on."""
    given, made = torch.ones(64, device=cuda), []
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.append(given * 2)
    graph.replay()
    copy = made[0].clone()
    graph.reset()
    made.clear()
    others = [torch.full((64,), 7.0, device=cuda) for _ in range(4)]
    assert copy.tolist() == [2.0] * 64 and len(others) == 4


def test_replays_draw_new_numbers_and_a_seed_repeats_them() -> None:
    made = torch.zeros(64, device=cuda)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.uniform_()
    drawn: list[list[float]] = []
    for seed in (1, 1, 2):
        torch.cuda.manual_seed(seed)
        for _ in range(2):
            graph.replay()
            drawn.append(made.tolist())
    assert drawn[0] != drawn[1] and drawn[:2] == drawn[2:4] and drawn[0] != drawn[4]
