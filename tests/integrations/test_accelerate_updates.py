"""Updates of a sweep under Hugging Face's Accelerate: those of its own loop, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trainers import cross_entropy, load, make_loader, make_model, options_in_docs

accelerate = load("accelerate")

import lrfast  # noqa: E402
from lrfast._utils.wrapped_optimizers import inner_optimizer  # noqa: E402
from lrfast.integrations.accelerate import clip_in_step, lr_find  # noqa: E402

UPDATES = 4
RATES: dict[str, Any] = {
    "start_lr": 1e-3,
    "end_lr": 0.5,
    "num_iter": UPDATES,
    "diverge_threshold": None,
}
OPTIMIZERS = {
    "lrfast": lambda p: lrfast.AdamW(p, lr=1e-2, weight_decay=0.1),
    "torch": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}

# Row of the table in docs/integrations.md -> options of Accelerator, and those of the loop.
CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "`gradient_accumulation_steps`, `accumulate()`": [
        ({"gradient_accumulation_steps": 3}, {}),
        ({"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.05}),
    ],
    "`clip_grad_norm_`": [({}, {"max_grad_norm": 0.05})],
    "`clip_in_step`": [({"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.05, "fused": 1})],
    "`mixed_precision`": [
        ({"mixed_precision": "bf16"}, {"max_grad_norm": 0.05}),
        # A GradScaler as for fp16, which Accelerate makes on GPUs only.
        ({"scaler": True, "gradient_accumulation_steps": 2}, {"max_grad_norm": 20.0}),
    ],
}
ROWS = [(f"{name}-{i}", *row) for name, rows in CASES.items() for i, row in enumerate(rows)]


def prepare(options: dict[str, Any], kind: str, loader: DataLoader[Any]) -> tuple[Any, ...]:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    scaled = options.get("scaler", False)
    given = {name: value for name, value in options.items() if name != "scaler"}
    accelerator = accelerate.Accelerator(cpu=True, **given)
    if scaled:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    model = make_model()
    optimizer = OPTIMIZERS[kind](model.parameters())
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def watch(model: nn.Module, optimizer: Any) -> list[Any]:
    """A list that grows by weights and states after each step."""
    seen: list[Any] = []

    def note(inner: Any, args: Any, kwargs: Any) -> None:
        states = [copy.deepcopy(inner.state.get(p, {})) for p in model.parameters()]
        seen.append(([p.detach().clone() for p in model.parameters()], states))

    inner_optimizer(optimizer).register_step_post_hook(note)
    return seen


def loop(
    accelerator: Any, model: nn.Module, optimizer: Any, loader: Any, norm: float | None
) -> list[list[float]]:
    """Accelerate's loop, without end; returns the losses of each update."""
    losses: list[list[float]] = [[]]
    while len(losses) <= UPDATES:
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(inputs), targets)
                losses[-1].append(loss.item())
                accelerator.backward(loss)
                if accelerator.sync_gradients and norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                losses.append([])
            if len(losses) > UPDATES:
                break
    return losses[:UPDATES]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def set_rates(optimizer: Any, sweep: Any) -> None:
    """Let an optimizer step at a sweep's learning rates."""
    inner = inner_optimizer(optimizer)
    if isinstance(inner, lrfast.optim.FusedOptimizer):
        (rate, schedule), *_ = sweep.parts()
        inner.param_groups[0]["lr"] = rate
        inner.set_schedule(schedule)
        return
    rates = iter(sweep.table()[:, 0].tolist())

    def set_next(optimizer: Any, args: Any, kwargs: Any) -> None:
        optimizer.param_groups[0]["lr"] = next(rates)

    inner.register_step_pre_hook(set_next)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    ("options", "steps"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_an_update_of_the_sweep_is_that_of_the_loop(
    kind: str, options: dict[str, Any], steps: dict[str, Any]
) -> None:
    """Weights and states after each; the loader ends within a window, where the loop steps."""
    if "fused" in steps and kind == "torch":
        pytest.skip("clip_in_step is for an lrfast optimizer")
    norm, seen = steps.get("max_grad_norm"), []
    for _ in range(2):
        accelerator, model, optimizer, loader = prepare(options, kind, make_loader())
        if "fused" in steps:
            clip_in_step(accelerator, optimizer)
        seen.append(watch(model, optimizer))
        if len(seen) == 1:
            given = {"max_grad_norm": norm, **RATES}
            result = lr_find(accelerator, model, optimizer, loader, cross_entropy, **given)
            assert accelerator.scaler is None or accelerator.scaler.get_scale() == 2.0**10
        else:
            set_rates(optimizer, result.sweep)
            losses = loop(accelerator, model, optimizer, loader, norm)
    assert len(seen[0]) == len(seen[1]) == UPDATES
    assert same(seen[0], seen[1])
    means = [sum(each) / len(each) for each in losses]
    assert result.losses.tolist() == pytest.approx(means, rel=1e-6)
    assert result.lrs.tolist() == result.sweep.table()[:, 0].tolist()
    assert not same(seen[0][0], seen[0][-1])


def test_the_docs_list_what_is_tested() -> None:
    assert list(options_in_docs("Accelerate")) == list(CASES)


def test_an_accelerator_keeps_no_trace() -> None:
    """Also in the middle of a window, whose gradients and count go on."""
    trained = []
    for tests in (False, True):
        options = {"gradient_accumulation_steps": 3}
        accelerator, model, optimizer, loader = prepare(options, "lrfast", make_loader())
        for count, (inputs, targets) in enumerate(loader):
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(inputs), targets))
                optimizer.step()
                optimizer.zero_grad()
            if tests and count == 3:
                references = accelerator.gradient_state.dataloader_references
                result = lr_find(
                    accelerator, model, optimizer, make_loader(), cross_entropy, **RATES
                )
                assert len(result.losses) == UPDATES
                assert accelerator.gradient_state.dataloader_references == references
        trained.append([parameter.detach().clone() for parameter in model.parameters()])
    assert same(*trained)


def test_what_the_lr_finder_of_plain_loops_takes_from_a_prepared_optimizer() -> None:
    accelerator, model, optimizer, loader = prepare(
        {"gradient_accumulation_steps": 2}, "torch", make_loader()
    )
    references = accelerator.gradient_state.dataloader_references
    result = lrfast.lr_find(model, optimizer, loader, cross_entropy, **RATES)
    assert result.notes[0].startswith("clip_grad_norm_ is left out of the sweep")
    assert result.notes[1] == "gradient_accumulation_steps is 2, as the Accelerator has it"
    assert accelerator.gradient_state.dataloader_references == references
    other = lr_find(accelerator, model, optimizer, loader, cross_entropy, **RATES)
    assert result.losses.tolist() == pytest.approx(other.losses.tolist(), rel=1e-6)
    assert other.notes == ()
    accelerator.step = 1  # within a window, which the sweep does not go on with
    again = lr_find(accelerator, model, optimizer, loader, cross_entropy, **RATES)
    assert again.losses.tolist() == other.losses.tolist() and accelerator.step == 1
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    retest = lrfast.Retest(
        *(model, optimizer, loader, cross_entropy), every=1, schedulers=[scheduler], **RATES
    )
    assert retest.epoch_end() is not None


def test_a_fine_tuner_takes_prepared_optimizers() -> None:
    accelerator = accelerate.Accelerator(cpu=True)

    def make(groups: Any) -> Any:
        return accelerator.prepare(lrfast.SGD(groups, lr=0.1))

    tuner = lrfast.FineTuner(
        make_model(), make_loader(), loss_fn=cross_entropy, optimizer=make, progress=False
    )
    tuner.fit_one_cycle(1, max_lr=1e-2)
    assert type(tuner.optimizer) is lrfast.SGD


@pytest.mark.parametrize("name", ["step_fn", "gradient_accumulation_steps", "capture"])
def test_what_is_the_accelerators_is_refused(name: str) -> None:
    prepared = prepare({}, "torch", make_loader())
    with pytest.raises(ValueError, match=f"{name} must be left out: the updates are the acc"):
        lr_find(*prepared, cross_entropy, **{name: None})
    with pytest.raises(ValueError, match="max_grad_norm must be above 0, or None, got -1"):
        lr_find(*prepared, cross_entropy, max_grad_norm=-1)
    accelerator, model, optimizer, loader = prepared
    with pytest.raises(ValueError, match=r"one that accelerator.prepare returned, got SGD"):
        lr_find(accelerator, model, optimizer.optimizer, loader, cross_entropy)
