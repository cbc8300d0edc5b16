"""Updates of a sweep in Ignite's engines and fastai's Learners: their own, bit for bit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from tiny import bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import cross_entropy, load, options_in_docs

import lrfast

BATCHES, UPDATES = 7, 9
KINDS = [lrfast.AdamW, torch.optim.AdamW]
# Only the last group's learning rate moves; its parameter adds nothing to the loss.
SWEEP: dict[str, Any] = {"vary": 1, "start_lr": 1e-4, "end_lr": 1e-2, "num_iter": UPDATES}
SWEEP |= {"diverge_threshold": None, "progress": False}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 3))
        self.moved = nn.Parameter(torch.ones(()))

    def forward(self, *inputs: Tensor) -> Tensor:
        # Large losses, whose gradients are clipped.
        outputs: Tensor = 30 * self.net(sum(inputs[1:], start=inputs[0])) + 0 * self.moved
        return outputs


def optimizer_of(kind: Any, model: Model) -> Any:
    groups = [{"params": model.net.parameters(), "lr": 0.03}, {"params": [model.moved]}]
    return kind(groups, lr=1e-3, weight_decay=0.1)


def make_loader(inputs: int = 1) -> DataLoader[Any]:
    rows = torch.randn(8 * BATCHES, 8, generator=torch.Generator().manual_seed(1))
    columns = [rows.roll(number, 0) for number in range(inputs)]
    # A generator of its own: without one each pass draws a seed from the global one.
    data = TensorDataset(*columns, rows[:, :3].argmax(1))
    return DataLoader(data, 8, generator=torch.Generator())


def state_of(model: Model, optimizer: Any, *counts: Any) -> Any:
    group = optimizer.param_groups[0]
    states = [copy.deepcopy(optimizer.state.get(each, {})) for each in group["params"]]
    grads = [each.grad for each in model.net.parameters()]
    return bits([list(model.net.parameters()), grads, states, group["lr"], counts])


def check(swept: list[Any], after: list[Any], plain: list[Any]) -> None:
    """Compare what each batch left, in a sweep and in the training after it."""
    assert len(swept) >= UPDATES - 1 and len({str(row[0]) for row in plain}) > 2
    for number, pair in enumerate(zip(swept, plain, strict=False)):
        assert pair[0] == pair[1], f"batch {number} of the sweep"
    assert len(after) == len(plain)
    for number, pair in enumerate(zip(after, plain, strict=True)):
        assert pair[0] == pair[1], f"batch {number} after the sweep"


# Ignite.

Note = Callable[..., Any]


def supervised(model: Model, optimizer: Any, note: Note, **options: Any) -> Any:
    def noted(x: Any, y: Any, y_pred: Any, loss: Tensor) -> Tensor:
        note(trainer)
        return loss

    engines = load("ignite").engine
    given: dict[str, Any] = {"output_transform": noted} | options
    trainer = engines.create_supervised_trainer(model, optimizer, cross_entropy, **given)
    return trainer


def with_a_number(model: Model, optimizer: Any, note: Note) -> Any:
    def as_number(x: Any, y: Any, y_pred: Any, loss: Tensor) -> float:
        note(trainer)
        return loss.item()

    trainer = supervised(model, optimizer, note, output_transform=as_number)
    return trainer


def own_engine(step: Callable[..., Any], model: Model, optimizer: Any, note: Note) -> Any:
    def process(engine: Any, batch: Any) -> Any:
        output = step(engine, model, optimizer, batch)
        note(engine)
        return output

    return load("ignite").engine.Engine(process)


def accumulates(engine: Any, model: Model, optimizer: Any, batch: Any) -> Tensor:
    loss = cross_entropy(model(batch[0]), batch[1])
    (loss / 3).backward()
    if engine.state.iteration % 3 == 0:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def autocasts(engine: Any, model: Model, optimizer: Any, batch: Any) -> dict[str, Any]:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.05)
    optimizer.step()
    return {"loss": loss.detach(), "epoch": engine.state.epoch}


def skips(engine: Any, model: Model, optimizer: Any, batch: Any) -> Tensor | None:
    if engine.state.iteration % 3 == 2:
        return None
    optimizer.zero_grad()
    loss = cross_entropy(model(batch[0]), batch[1]) * engine.state.epoch
    loss.backward()
    optimizer.step()
    return loss.detach()


def without_data(engine: Any, model: Model, optimizer: Any, batch: Any) -> Tensor | None:
    assert batch is None and engine.state.batch is None
    rows = torch.randn(8, 8)
    return skips(engine, model, optimizer, (rows, rows[:, :3].argmax(1)))


def with_scaler(model: Model, optimizer: Any, note: Note) -> Any:
    scaler = torch.amp.GradScaler("cpu", 2.0**15, growth_interval=3)

    def process(engine: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        note(engine, scaler.get_scale())
        return loss.detach()

    return load("ignite").engine.Engine(process)


def with_events(model: Model, optimizer: Any, note: Note) -> Any:
    def process(engine: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        engine.fire_event("gradients")
        optimizer.step()
        engine.state.metrics["steps"] = engine.state.metrics.get("steps", 0) + 1
        note(engine, engine.state.metrics["steps"])
        return loss.detach()

    engine = load("ignite").engine.Engine(process)
    engine.register_events("gradients")
    engine.add_event_handler("gradients", lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.3))
    return engine


def with_another_network(model: Model, optimizer: Any, note: Note) -> Any:
    other = nn.Linear(8, 8)
    nn.init.eye_(other.weight)
    others = torch.optim.Adam(other.parameters(), lr=0.01)

    def process(engine: Any, batch: Any) -> Any:
        optimizer.zero_grad()
        others.zero_grad()
        loss = cross_entropy(model(other(batch[0])), batch[1])
        loss.backward()
        optimizer.step()
        others.step()
        weights, states = list(other.parameters()), others.state_dict()["state"]
        note(engine, copy.deepcopy(weights), copy.deepcopy(states))
        return loss.detach()

    return load("ignite").engine.Engine(process)


Make = Callable[[Model, Any, Note], Any]

# Row of the table in docs/integrations.md -> engines, and arguments of LRFindHandler.
ENGINES: dict[str, list[tuple[Make, dict[str, Any]]]] = {
    "`create_supervised_trainer`, its `output_transform`, also to a number": [
        (supervised, {}),
        (with_a_number, {}),
    ],
    "`gradient_accumulation_steps`": [
        (partial(supervised, gradient_accumulation_steps=2), {}),
        (partial(supervised, gradient_accumulation_steps=5), {"lag": 0}),
    ],
    "accumulation by `engine.state.iteration`": [
        (partial(own_engine, accumulates), {}),
        (partial(own_engine, accumulates), {"gradient_accumulation_steps": 3}),
    ],
    "clipping, `autocast`, GradScaler in the process function": [
        (partial(own_engine, autocasts), {"output_transform": lambda output: output["loss"]}),
        (with_scaler, {}),
    ],
    "events that the process function fires, `engine.state.metrics`": [(with_events, {})],
    "modules and optimizers that the process function names": [(with_another_network, {})],
    "an output of None, `engine.state.epoch`": [(partial(own_engine, skips), {})],
    "`engine.run(None)`": [(partial(own_engine, without_data), {})],
}
IN_ENGINES = [
    pytest.param(make, options, id=f"{row}-{number}")
    for row, cases in ENGINES.items()
    for number, (make, options) in enumerate(cases)
]


def run_engine(make: Make, kind: Any, options: dict[str, Any] | None) -> tuple[list[Any], Any]:
    """Train for two epochs, and return what each batch left, those of a sweep first."""
    load("ignite")
    from lrfast.integrations.ignite import LRFindHandler

    model, seen = Model(), []
    optimizer = optimizer_of(kind, model)

    def note(engine: Any, *more: Any) -> None:
        counts = (engine.state.iteration, engine.state.epoch, *more)
        seen.append(state_of(model, optimizer, *counts))

    trainer = make(model, optimizer, note)
    finder = LRFindHandler(model, optimizer, **(SWEEP | (options or {})))
    if options is not None:
        finder.attach(trainer)
    torch.manual_seed(5)
    without = isinstance(make, partial) and without_data in make.args
    data = {"epoch_length": BATCHES} if without else {"data": make_loader()}
    trainer.run(**data, max_epochs=2)
    return seen, finder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("make", "options"), IN_ENGINES)
def test_updates_are_the_engines_own(
    make: Make, options: dict[str, Any], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = run_engine(make, kind, None)
    monkeypatch.setattr(lrfast.RangeTest, "apply", lambda *given, **options: None)
    tested, finder = run_engine(make, kind, options)
    swept = len(tested) - len(plain)
    check(tested[:swept], tested[swept:], plain)
    assert len(finder.results[0].losses) > 5


def test_handlers_that_are_left_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    events = load("ignite").engine.Events
    from ignite.handlers import EMAHandler, TerminateOnNan

    from lrfast.integrations.ignite import LRFindHandler

    def prepare(engine: Any) -> None:
        engine.state.batch = [engine.state.batch[0] * 2, engine.state.batch[1]]

    model = Model()
    optimizer = optimizer_of(lrfast.AdamW, model)
    trainer = supervised(model, optimizer, lambda engine: None)
    trainer.add_event_handler(events.ITERATION_STARTED(every=2), prepare)
    trainer.add_event_handler(events.EPOCH_COMPLETED, lambda: None)
    trainer.add_event_handler(events.ITERATION_COMPLETED, TerminateOnNan())
    EMAHandler(model).attach(trainer)
    finder = LRFindHandler(model, optimizer, rule="steep", **SWEEP).attach(trainer)
    with caplog.at_level(logging.INFO):
        trainer.run(make_loader(), max_epochs=1)
    *_, note = finder.results[0].notes
    assert note == "prepare, a handler of ITERATION_STARTED, did not run in the range test"
    told = [line for line in caplog.messages if line.startswith("LRFindHandler: ")]
    rate = optimizer.param_groups[1]["lr"]
    assert f"learning rate set from 0.03 to 0.03, 0.001 to {rate:.3g} (steep: " in told[0]
    assert told[-1].endswith(note) and len(told) == 1 + len(finder.results[0].notes)


def piecewise(optimizer: Any) -> Any:
    from ignite.handlers import PiecewiseLinear

    return PiecewiseLinear(optimizer, "lr", [(0, 1e-5), (8, 1e-3)])


def in_groups(optimizer: Any) -> Any:
    from ignite.handlers import LinearCyclicalScheduler, ParamGroupScheduler

    parts = [
        LinearCyclicalScheduler(optimizer, "lr", 0.1, 1.0, 4, param_group_index=index)
        for index in range(2)
    ]
    return ParamGroupScheduler(parts, ["one", "other"])


def wrapped(optimizer: Any) -> Any:
    from ignite.handlers import LRScheduler

    return LRScheduler(torch.optim.lr_scheduler.StepLR(optimizer, 3))


def warmed_up(optimizer: Any) -> Any:
    from ignite.handlers import create_lr_scheduler_with_warmup

    return create_lr_scheduler_with_warmup(piecewise(optimizer), 0.0, 3)


@pytest.mark.parametrize("make", [piecewise, in_groups, wrapped, warmed_up])
def test_a_scheduler_of_the_learning_rate_is_refused(make: Callable[[Any], Any]) -> None:
    """Of any class, at any event, and before anything has changed; of another value it is not."""
    events = load("ignite").engine.Events
    from ignite.handlers import PiecewiseLinear

    from lrfast.integrations.ignite import LRFindHandler

    model = Model()
    optimizer = optimizer_of(torch.optim.SGD, model)
    trainer = supervised(model, optimizer, lambda engine: None)
    other = PiecewiseLinear(optimizer, "weight_decay", [(0, 0.1), (8, 0.2)])
    trainer.add_event_handler(events.ITERATION_STARTED, other)
    LRFindHandler(model, optimizer, **SWEEP).attach(trainer)
    trainer.run(make_loader(), max_epochs=1)
    trainer.add_event_handler(events.ITERATION_STARTED(every=2), make(optimizer))
    before = state_of(model, optimizer)
    name = type(make(optimizer)).__name__
    match = f"the engine must have no handler that sets the learning rate for a .*, got {name}"
    with pytest.raises(ValueError, match=match) as raised:
        trainer.run(make_loader(), max_epochs=1)
    assert state_of(model, optimizer) == before and "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("val_loader", [1]), ("verify", 4), ("lag", 1)])
def test_what_an_accumulating_engine_cannot_measure(name: str, value: Any) -> None:
    make = partial(supervised, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=f"{name} must be left out with a process function that"):
        run_engine(make, lrfast.AdamW, {name: value})


def test_ignites_table_in_the_docs_is_the_tested_one() -> None:
    honoured = options_in_docs("Ignite")
    others = {"handlers of the engine's own events": "left out", "`ParamScheduler`": "refused"}
    assert {row for row in honoured if row not in others} == set(ENGINES)
    assert all(honoured[row].startswith(word) for row, word in others.items())


# fastai.


@dataclass(frozen=True)
class Case:
    callbacks: Callable[[], list[Any]] = list
    inputs: int = 1
    options: dict[str, Any] = field(default_factory=dict)  # of the Learner
    find: dict[str, Any] = field(default_factory=dict)


def in_learners() -> dict[str, list[Case]]:
    """Row of the table in docs/integrations.md -> what is trained."""
    load("fastai")
    from fastai.callback.core import (
        Callback,
        CancelBackwardException,
        CancelBatchException,
        CancelStepException,
    )
    from fastai.callback.mixup import MixUp
    from fastai.callback.schedule import ParamScheduler, SchedLin
    from fastai.callback.tracker import TerminateOnNaNCallback
    from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
    from fastai.losses import CrossEntropyLossFlat

    class Autocasts(Callback):  # type: ignore[misc]
        def before_batch(self) -> None:
            self.inner = torch.autocast("cpu", torch.bfloat16)
            self.inner.__enter__()

        def after_loss(self) -> None:
            self.inner.__exit__(None, None, None)

    class Cancels(Callback):  # type: ignore[misc]
        def before_batch(self) -> None:
            if self.iter == 1:
                raise CancelBatchException

        def before_backward(self) -> None:
            if self.iter == 3:
                raise CancelBackwardException

        def before_step(self) -> None:
            if self.iter == 5:
                raise CancelStepException

    class Touches(Callback):  # type: ignore[misc]
        """Changes losses and gradients, by a count of its own and by the epoch."""

        def before_fit(self) -> None:
            self.counts = [0]

        def after_loss(self) -> None:
            self.learn.loss_grad = self.loss_grad * (1 + self.epoch)

        def before_step(self) -> None:
            self.counts[0] += 1
            for each in self.model.net.parameters():
                each.grad /= self.counts[0]

    watching = lambda: [  # noqa: E731
        TerminateOnNaNCallback(),
        ParamScheduler({"lr": SchedLin(5.0, 5.0)}),
    ]
    return {
        "`GradientClip`": [Case(), Case(lambda: [GradientClip(0.3)])],
        "`GradientAccumulation`": [
            Case(lambda: [GradientAccumulation(16), GradientClip(0.3)]),
            Case(lambda: [GradientAccumulation(20)]),
        ],
        "mixed precision by a callback": [Case(lambda: [Autocasts()])],
        "`MixUp`, callbacks that change batches, losses or gradients": [
            Case(lambda: [MixUp(0.4)], options={"loss_func": CrossEntropyLossFlat()}),
            Case(lambda: [Touches()]),
        ],
        "`CancelBatchException`, `CancelStepException`": [Case(lambda: [Cancels()])],
        "`CancelTrainException`, `ShortEpochCallback`": [
            Case(lambda: [ShortEpochCallback(0.5, short_valid=False)])
        ],
        "several inputs, `wd`": [Case(inputs=2, options={"wd": 0.3})],
        "callbacks that schedule, watch, save or stop": [Case(find={"callbacks": watching})],
    }


def run_learner(case: Case, kind: Any, find: bool) -> tuple[list[Any], list[Any], Any]:
    """Return what each batch left in a sweep, if there is one, and in two epochs; its result."""
    learners = load("fastai").learner
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.optimizer import OptimWrapper

    from lrfast.integrations.fastai import lr_find

    seen: list[Any] = []
    model = Model()

    class Spy(Callback):  # type: ignore[misc]
        order = 100

        def after_batch(self) -> None:
            if self.training:
                counts = (self.iter, self.epoch, self.train_iter)
                seen.append(state_of(model, self.opt.opt, *counts))

    data = DataLoaders(make_loader(case.inputs), make_loader(case.inputs))
    data.n_inp = case.inputs
    options = {"wd": 0.1, "loss_func": nn.CrossEntropyLoss()} | case.options
    learner = learners.Learner(
        data,
        model,
        opt_func=partial(OptimWrapper, opt=kind),
        splitter=lambda model: [list(model.net.parameters()), [model.moved]],
        cbs=[*case.callbacks(), Spy()],
        **options,
    )
    learner.create_opt()
    learner.opt.set_hypers(lr=[0.03, 1e-3])
    result = None
    if find:
        extra = case.find.get("callbacks", list)()
        learner.add_cbs(extra)
        hypers = copy.deepcopy(learner.opt.hypers)
        torch.manual_seed(5)
        result = lr_find(learner, **SWEEP)
        assert bits(learner.opt.hypers) == bits(hypers) and learner.model is model
        learner.remove_cbs(extra)
    swept = list(seen)
    seen.clear()
    torch.manual_seed(5)
    with learner.no_bar(), learner.no_logging():
        learner.fit(2, lr=[0.03, 1e-3])
    return swept, seen, result


FASTAI_ROWS = (
    *("`GradientClip`", "`GradientAccumulation`", "mixed precision by a callback"),
    "`MixUp`, callbacks that change batches, losses or gradients",
    *("`CancelBatchException`, `CancelStepException`", "several inputs, `wd`"),
    "`CancelTrainException`, `ShortEpochCallback`",
    "callbacks that schedule, watch, save or stop",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", FASTAI_ROWS)
def test_updates_are_the_learners_own(row: str, kind: Any) -> None:
    for case in in_learners()[row]:
        _, plain, _ = run_learner(case, kind, find=False)
        swept, after, result = run_learner(case, kind, find=True)
        check(swept, after, plain)
        assert len(result.losses) > 5


def test_fastais_own_optimizer_is_refused() -> None:
    learners = load("fastai").learner
    from fastai.data.core import DataLoaders

    from lrfast.integrations.fastai import lr_find

    data = DataLoaders(make_loader(), make_loader())
    learner = learners.Learner(data, Model(), nn.CrossEntropyLoss())
    match = r"opt_func must make an optimizer of lrfast or torch .*, got fastai.optimizer.Optimizer"
    with pytest.raises(TypeError, match=match) as raised:
        lr_find(learner)
    assert learner.opt is None and "\n" not in str(raised.value)


def test_a_learner_with_other_parameters_in_half_precision_is_refused() -> None:
    learners = load("fastai").learner
    from fastai.callback.fp16 import NonNativeMixedPrecision
    from fastai.data.core import DataLoaders

    from lrfast.integrations import fastai as integration

    data = DataLoaders(make_loader(), make_loader())
    learner = learners.Learner(
        data,
        Model(),
        nn.CrossEntropyLoss(),
        opt_func=integration.opt_func(),
        cbs=NonNativeMixedPrecision(),
    )
    with pytest.raises(ValueError, match="cbs must not hold NonNativeMixedPrecision for a range"):
        integration.lr_find(learner)


def test_the_order_of_fastais_own_loaders() -> None:
    """Its generator goes on as without a sweep, and a repeat meets the same batches."""
    learners = load("fastai").learner
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as OwnLoader

    from lrfast.integrations import fastai as integration

    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    pairs = list(zip(rows, rows[:, :3].argmax(1), strict=True))
    loaders = [OwnLoader(pairs, bs=8, shuffle=True, num_workers=0) for _ in range(2)]
    state = loaders[0].rng.getstate()
    opt_func = integration.opt_func()
    model = Model()
    learner = learners.Learner(
        DataLoaders(*loaders), model, nn.CrossEntropyLoss(), opt_func=opt_func
    )
    result = integration.lr_find(learner, num_iter=20, verify=4, progress=False)
    assert loaders[0].rng.getstate() == state and len(result.lrs) > 5


def test_fastais_table_in_the_docs_is_the_tested_one() -> None:
    honoured = options_in_docs("fastai")
    others = {"fastai's own `Optimizer`": "refused", "`NonNativeMixedPrecision`": "refused"}
    assert set(in_learners()) == set(FASTAI_ROWS)
    assert {row for row in honoured if row not in others} == set(FASTAI_ROWS)
    assert all(honoured[row].startswith(word) for row, word in others.items())
