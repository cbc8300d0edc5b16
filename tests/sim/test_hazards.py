"""Mistakes planted on purpose: each is found within a few seeds, its corrected twin in none.

A program makes its mistake where `correct` is false. It asserts what would hold if its launches ran
at once, so that only their order, or what CUDA forbids, can show the mistake.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lrfast
from sim.plugin import start

pytestmark = [pytest.mark.sim, pytest.mark.hazard]

SEEDS = range(20)
NUMEL = 64
Program = Callable[[bool], None]
PROGRAMS: dict[str, Program] = {}


def hazard(program: Program) -> Program:
    PROGRAMS[program.__name__] = program
    return program


def full(value: float, device: str = "cuda", **options: bool) -> Tensor:
    return torch.full((NUMEL,), value, device=device, **options)


def assert_all(tensor: Tensor, value: float) -> None:
    assert tensor.tolist() == [value] * NUMEL


def record_graph(call: Callable[[], None], **options: object) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        call()
    return graph


# ---- streams -----------------------------------------------------------------------------------


@hazard
def a_tensor_of_another_stream_is_dropped(correct: bool) -> None:
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    given = full(2.0)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        made = given * 3
        if correct:
            given.record_stream(side)
    del given
    full(7.0)
    main.wait_stream(side)
    assert_all(made, 6.0)


@hazard
def a_wait_for_the_wrong_stream(correct: bool) -> None:
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(first):
        made = full(3.0)
    torch.cuda.current_stream().wait_stream(first if correct else second)
    assert_all(made + 1, 4.0)


@hazard
def an_event_that_is_recorded_too_early(correct: bool) -> None:
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        if not correct:
            event.record()
        made = full(3.0)
        if correct:
            event.record()
    torch.cuda.current_stream().wait_event(event)
    assert_all(made + 1, 4.0)


@hazard
def an_event_on_the_stream_of_another_device(correct: bool) -> None:
    there = full(3.0, "cuda:1")
    host = there.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream("cuda:1" if correct else "cuda:0"))
    event.synchronize()
    assert_all(host, 3.0)


@hazard
def two_streams_write_the_same(correct: bool) -> None:
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    both = full(1.0)
    side.wait_stream(main)
    both.add_(1)
    if correct:
        side.wait_stream(main)
    with torch.cuda.stream(side):
        both.mul_(10)
    main.wait_stream(side)
    assert_all(both, 20.0)


# ---- the host ----------------------------------------------------------------------------------


@hazard
def the_host_reads_a_copy_on_its_way(correct: bool) -> None:
    host = full(5.0).to("cpu", non_blocking=True)
    if correct:
        torch.cuda.synchronize()
    assert_all(host, 5.0)


@hazard
def a_pinned_buffer_is_written_again_too_early(correct: bool) -> None:
    host, there = full(1.0, "cpu").pin_memory(), full(0.0)
    there.copy_(host, non_blocking=True)
    if correct:
        torch.cuda.current_stream().synchronize()
    host.fill_(2.0)
    assert_all(there, 1.0)


@hazard
def a_synchronisation_in_a_step(correct: bool) -> None:
    weights = nn.Parameter(full(1.0))
    optimizer = lrfast.SGD([weights], lr=0.1)
    torch.cuda.set_sync_debug_mode("error")
    loss = weights.square().sum()
    loss.backward()
    optimizer.step()
    assert loss.detach() is not None if correct else loss.item() > 0
    torch.cuda.set_sync_debug_mode("default")


@hazard
def memory_that_was_never_written(correct: bool) -> None:
    del_me = full(0.0)
    del del_me
    made = full(0.0) if correct else full(0.0).new_empty(NUMEL)
    made += 1
    assert_all(made, 1.0)


@hazard
def tensors_of_two_devices(correct: bool) -> None:
    assert_all(full(1.0, "cuda:1") + full(2.0, "cuda:1" if correct else "cuda:0"), 3.0)


# ---- graphs ------------------------------------------------------------------------------------


@hazard
def a_table_is_rewritten_while_a_graph_reads_it(correct: bool) -> None:
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    table, made = full(1.0), full(0.0)
    graph = record_graph(lambda: made.copy_(table * 2))
    graph.replay()
    if correct:
        side.wait_stream(main)
    with torch.cuda.stream(side):
        table.fill_(9.0)
    assert_all(made, 2.0)


@hazard
def what_a_graph_reads_is_given_to_another_tensor(correct: bool) -> None:
    given = [full(1.0)]
    made = full(0.0)
    graph = record_graph(lambda: made.copy_(given[0] * 2))
    if not correct:
        given.clear()
    others = [full(7.0) for _ in range(4)]
    graph.replay()
    assert_all(made, 2.0)
    assert len(others) == 4


@hazard
def memory_that_a_capture_has_freed(correct: bool) -> None:
    """Three graphs of one pool: the third is given what the first one leaves for the second."""
    pool = {"pool": torch.cuda.graph_pool_handle()}
    given, between, result = full(1.0), [], full(0.0)
    first = record_graph(lambda: between.append(given * 2), **pool)
    second = record_graph(lambda: result.copy_(between[0] + 1), **pool)
    if not correct:
        between.clear()
    third = record_graph(lambda: between.append(given * 9), **pool)
    for graph in (first, third, second):
        graph.replay()
    assert_all(result, 3.0)


@hazard
def a_graph_copies_from_pinned_memory_that_is_dropped(correct: bool) -> None:
    host, there = [full(1.0, "cpu").pin_memory()], full(0.0)
    graph = record_graph(lambda: there.copy_(host[0], non_blocking=True))
    if not correct:
        host.clear()
    graph.replay()
    assert_all(there, 1.0)


@hazard
def a_synchronisation_in_a_capture(correct: bool) -> None:
    given, made = full(1.0), full(0.0)
    record_graph(lambda: made.fill_(2.0 if correct else given[0].item() * 2)).replay()
    assert_all(made, 2.0)


@hazard
def a_copy_from_pageable_memory_in_a_capture(correct: bool) -> None:
    host = full(1.0, "cpu")
    host, there = host.pin_memory() if correct else host, full(0.0)
    record_graph(lambda: there.copy_(host, non_blocking=True)).replay()
    assert_all(there, 1.0)


@hazard
def a_capture_that_no_stream_comes_back_to(correct: bool) -> None:
    side, made = torch.cuda.Stream(), full(0.0)

    def fork() -> None:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            made.add_(1)
        if correct:
            main.wait_stream(side)

    record_graph(fork).replay()
    assert_all(made, 1.0)


@hazard
def a_capture_that_waits_for_what_is_outside(correct: bool) -> None:
    side, made = torch.cuda.Stream(), full(0.0)
    with torch.cuda.stream(side):
        given = full(1.0)
    torch.cuda.current_stream().wait_stream(side)

    def step() -> None:
        if not correct:
            torch.cuda.current_stream().wait_stream(side)
        made.add_(given)

    record_graph(step).replay()
    assert_all(made, 1.0)


@hazard
def a_capture_on_another_device_than_its_work(correct: bool) -> None:
    made = full(0.0, "cuda:1")
    with torch.cuda.device(1 if correct else 0):
        graph = record_graph(lambda: made.add_(1))
    graph.replay()
    assert_all(made, 1.0)


@hazard
def random_numbers_of_a_generator_that_the_graph_does_not_know(correct: bool) -> None:
    generator, made = torch.Generator("cuda").manual_seed(3), full(0.0)
    graph = torch.cuda.CUDAGraph()
    if correct:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        made.uniform_(generator=generator)
    graph.replay()
    once = made.tolist()
    graph.replay()
    assert made.tolist() != once


# ---- lrfast ------------------------------------------------------------------------------------


@hazard
def a_captured_step_whose_warm_up_is_not_joined(correct: bool) -> None:
    """Without the waits that lrfast.capture makes between its streams."""
    weights = nn.Parameter(full(1.0))
    optimizer = lrfast.SGD([weights], lr=0.25, momentum=0.5, zero_grads=True)

    def step(batch: Tensor) -> Tensor:
        loss = (weights * batch).sum()
        loss.backward()
        optimizer.step()
        return loss

    with pytest.MonkeyPatch.context() as patch:
        if not correct:
            patch.setattr(torch.cuda.Stream, "wait_stream", lambda *_: None)
        captured = lrfast.capture(step, optimizer, full(1.0))
    captured(full(2.0))
    captured(full(2.0))
    assert_all(weights.detach(), 1.0 - 0.25 * 2 - 0.25 * 3)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mistake_is_found(name: str) -> None:
    for seed in SEEDS:
        start(f"{name} {seed}")
        try:
            PROGRAMS[name](False)
        except (AssertionError, RuntimeError, UserWarning):
            return
    pytest.fail(f"{name} shows in none of {len(SEEDS)} seeds")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_corrected_program_is_never_accused(name: str) -> None:
    for seed in SEEDS:
        start(f"{name} {seed}")
        PROGRAMS[name](True)
