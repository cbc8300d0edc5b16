"""Targets whose data hold tensors: optimizers, loss schedules, fine-tuners, sharded checkpoints."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lrfast
from lrfast import FineTuner, schedules
from lrfast.finetune import EarlyStop, Observe, _checkpoint
from lrfast.training._data import set_training

from .mutations import damage
from .target import Finding, Target, bits, mutated

Make = Callable[[list[dict[str, Any]]], Any]

HALVES = (torch.bfloat16, torch.float16)
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda g: lrfast.SGD(g, 0.1, momentum=0.9, weight_decay=0.1, telemetry=7),
    "nesterov": lambda g: lrfast.SGD(g, 0.1, momentum=0.9, nesterov=True, max_grad_norm=0.5),
    "adam": lambda g: lrfast.Adam(g, 0.1, amsgrad=True, state_dtype=torch.bfloat16),
    "adamw": lambda g: lrfast.AdamW(g, 0.1, schedule=schedules.one_cycle(9, momentum=(0.9, 0.8))),
    "rounded": lambda g: lrfast.AdamW(g, 0.1, ema_decay=0.9, stochastic_rounding=True, telemetry=3),
    "adamax": lambda g: lrfast.Adamax(g, 0.1, schedule=schedules.one_cycle(9)),
    "nadam": lambda g: lrfast.NAdam(g, 0.1, schedule=[schedules.cosine(9), None]),
    "rmsprop": lambda g: lrfast.RMSprop(g, 0.1, centered=True, momentum=0.5),
    "adagrad": lambda g: lrfast.Adagrad(g, 0.1, lr_decay=0.1),
    "adadelta": lambda g: lrfast.Adadelta(g, rho=0.8, weight_decay=0.1),
    "schedule-free": lambda g: lrfast.AdamWScheduleFree(g, 0.1, warmup_steps=3, r=0.5),
    "prodigy": lambda g: lrfast.Prodigy(g, d0=0.1, weight_decay=0.1),
    "dadapt": lambda g: lrfast.DAdaptAdam(g, d0=0.1, weight_decay=0.1),
    "muon": lambda g: lrfast.Muon([g[0], g[1] | {"rule": "adamw"}], 0.1, beta2=0.9),
    "lion": lambda g: lrfast.Lion(g, 0.1, weight_decay=0.1, skip_nonfinite=True),
    "8bit": lambda g: lrfast.AdamW(
        [g[0], g[1] | {"params": [nn.Parameter(torch.ones(4096))]}], 0.1, state_dtype="8bit"
    ),
    "master": lambda g: lrfast.AdamW(
        [g[0], g[1] | {"params": [nn.Parameter(torch.ones(5).to(half)) for half in HALVES]}],
        0.1,
        master="24bit",
    ),
}
LOSS_SCHEDULES: tuple[Callable[[Any], Any], ...] = (
    lambda optimizer: lrfast.Plateau(optimizer, factor=0.5, patience=1, window=3),
    lambda optimizer: lrfast.Greedy(optimizer, factor=0.5, patience=0, warmup=1),
)


def make_optimizer(kind: str, place: int) -> Any:
    """One over three parameters of two types in two groups, with a loss schedule perhaps."""
    generator = torch.Generator().manual_seed(3)
    params = [torch.randn(shape, generator=generator) for shape in ((2, 3), (3,))]
    params = [nn.Parameter(each) for each in (*params, torch.ones(4, dtype=torch.bfloat16))]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.01}]
    optimizer = OPTIMIZERS[kind](groups)
    if place < len(LOSS_SCHEDULES):
        LOSS_SCHEDULES[place](optimizer)
    return optimizer


def parameters_of(optimizer: Any) -> list[Tensor]:
    """All of them, in order."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def step(optimizer: Any, times: int = 1) -> None:
    """Steps with gradients of ones, and a loss where somebody follows it."""
    set_training(optimizer, True)  # a state dict may hold the averaged weights
    for _ in range(times):
        for param in parameters_of(optimizer):
            param.grad = torch.ones_like(param)
        optimizer.step()
        if optimizer.loss_schedule is not None:
            optimizer.loss_schedule.observe(0.5)


def held(optimizer: Any) -> Any:
    """All that a load could change, for comparison."""
    schedule = optimizer.loss_schedule
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    states = [optimizer.state.get(param) for param in parameters_of(optimizer)]
    return (
        *(bits(parameters_of(optimizer)), bits(states), len(optimizer.state), bits(groups)),
        *(optimizer._clock(), optimizer._distance(), optimizer._loaded_clock),
        list(optimizer._schedules),
        *(id(optimizer._engine), id(schedule), schedule and bits(schedule.state_dict())),
    )


class Optimizers(Target):
    """load_state_dict of each optimizer; what was accepted makes a step."""

    name = "optimizers"
    share = 0.05

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._kinds = [(kind, place) for kind in OPTIMIZERS for place in range(4)]
        self._takers = [make_optimizer(*kind) for kind in self._kinds]
        self._saved = []
        for taker, (_, place) in zip(self._takers, self._kinds, strict=True):
            step(taker, 3)
            taker._keeps_shapes = place == 3  # as in sharded checkpoints
            self._saved.append(copy.deepcopy(taker.state_dict()))
            taker._keeps_shapes = False

    def case(self, random: Random) -> bool:
        index = random.randrange(len(self._kinds))
        kind, taker = self._kinds[index], self._takers[index]
        data = mutated(random, self._saved[index])
        if random.random() < 0.3:  # of another optimizer, or into one without a loss schedule
            taker = make_optimizer(kind[0], 2)
        whose = random.choice((None, "saved", "own"))
        accepted, _ = self.attempt(
            lambda: taker.load_state_dict(data, schedule=whose), lambda: held(taker)
        )
        if accepted:
            self._use(taker)
            self._takers[index] = make_optimizer(*kind)
            step(self._takers[index], random.choice((0, 3)))
        return accepted

    def _use(self, taker: Any) -> None:
        step(taker, 2)
        taker.planned(5)
        if len(taker.get_last_lr()) != 2:
            raise Finding("rates are missing")
        # What such hyperparameters make of a state may well be refused.
        self.attempt(lambda: taker.load_state_dict(taker.state_dict()))
        if taker._options.telemetry:
            taker.telemetry()


class LossSchedules(Target):
    """load_state_dict of Plateau and Greedy."""

    name = "loss schedules"
    share = 0.06

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        optimizers = [make_optimizer("sgd", place) for place in range(len(LOSS_SCHEDULES))]
        self._takers = [optimizer.loss_schedule for optimizer in optimizers]
        for taker in self._takers:
            for loss in (3.0, 2.0, 2.5, 2.5, 2.5):
                taker.observe(loss)
        self._saved = [taker.state_dict() for taker in self._takers]

    def case(self, random: Random) -> bool:
        place = random.randrange(len(self._takers))
        taker = self._takers[place]
        data = mutated(random, self._saved[place])
        accepted, _ = self.attempt(
            lambda: taker.load_state_dict(data), lambda: bits(taker.state_dict())
        )
        if accepted:
            taker.observe(1.0)
            if not float(taker.scale) >= 0 or taker.cuts < 0:
                raise Finding(f"a factor of {float(taker.scale)}")
            taker.load_state_dict(self._saved[place])
        return accepted


def make_tuner() -> FineTuner:
    """Two layer groups, a norm, everything that a checkpoint can hold but a scaler."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    data = TensorDataset(torch.randn(12, 2), torch.randint(2, (12,)))
    generator = torch.Generator().manual_seed(1)
    tuner = FineTuner(
        model,
        DataLoader(data, 4, shuffle=True, generator=generator),
        [data[:4]],
        loss_fn=nn.functional.cross_entropy,
        keep_best="valid_loss",
        ema_decay=0.9,
        callbacks=[EarlyStop(patience=9)],
        progress=False,
    )
    tuner.callbacks.insert(0, Observe(lrfast.Plateau(tuner.optimizer, patience=0), every=2))
    return tuner


class Checkpoints(Target):
    """FineTuner.load, of changed content and of damaged files; some of what it takes resumes."""

    name = "checkpoints"
    share = 0.005

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._contents: list[Any] = []
        self._files: list[bytes] = []
        tuner = make_tuner()

        class Save(lrfast.finetune.Callback):
            def on_step_end(_, tuner: FineTuner, step: int, loss: Tensor) -> None:
                if step in (2, 3):
                    tuner.callbacks.pop()
                    self._keep(tuner)
                    tuner.callbacks.append(_)

        tuner.fit_one_cycle(1, 0.01)
        self._keep(tuner)
        tuner.callbacks.append(Save())
        tuner.fit_one_cycle(2, 0.01)
        self._taker = make_tuner()
        self._taker.fit_one_cycle(1, 0.02)

    def _keep(self, tuner: FineTuner) -> None:
        tuner.save(self.path)
        self._files.append(self.path.read_bytes())
        self._contents.append(_checkpoint.read(self.path))

    def case(self, random: Random) -> bool:
        place = random.randrange(len(self._files))
        taker = self._taker
        is_file = random.random() < 0.4
        if is_file:
            self.path.write_bytes(damage(random, self._files[place]))
        data = None if is_file else mutated(random, self._contents[place])

        def load() -> None:
            if data is None:
                taker.load(self.path)
            else:
                taker._interrupted = _checkpoint.unpack(taker, data)

        accepted, _ = self.attempt(load, lambda: self._held(taker))
        if accepted:
            self._use(taker, random)
            self._taker = make_tuner()
        return accepted

    @staticmethod
    def _held(taker: FineTuner) -> Any:
        assert taker.best is not None
        return (
            *(held(taker.optimizer), bits(taker.model.state_dict())),
            *(bits([p.requires_grad for p in taker.model.parameters()]), id(taker._interrupted)),
            *(bits(taker.best.state_dict()), [bits(c.state_dict()) for c in taker.callbacks]),
            *(list(map(id, taker.history.stages)), bits(torch.get_rng_state())),
            *(
                bits(taker.train_loader.generator.get_state()),
                [m.training for m in taker.model.modules()],
            ),
        )

    def _use(self, taker: FineTuner, random: Random) -> None:
        taker.save(self.path)
        run = taker._interrupted
        if run is None or run.total_steps > 100:
            return
        if random.random() < 0.3:
            self.attempt(taker.resume)
        if taker.best is not None and taker.best.value is not None:
            taker.restore_best()


class Sharded(Target):
    """ShardedState.load_state_dict, by what is ours in it."""

    name = "sharded"
    share = 0.004

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._make()
        self._saved = self._state.state_dict()
        self._entry = torch.load(io.BytesIO(self._saved["lrfast"]), weights_only=True)

    def _make(self) -> None:
        torch.manual_seed(0)
        self._model = nn.Linear(2, 1)
        schedule = schedules.one_cycle(9)
        self._optimizer = lrfast.AdamW(self._model.parameters(), 0.1, schedule=schedule)
        LOSS_SCHEDULES[0](self._optimizer)
        step(self._optimizer, 2)
        self._state = lrfast.ShardedState(self._model, self._optimizer)

    def case(self, random: Random) -> bool:
        kind = random.random()
        if kind < 0.3:
            data = {**self._saved, "lrfast": damage(random, self._saved["lrfast"])}
        elif kind < 0.7:
            file = io.BytesIO()
            entry = mutated(random, self._entry)
            try:
                torch.save(entry, file)
            except (RecursionError, NotImplementedError, RuntimeError):  # not to be written
                return False
            data = {**self._saved, "lrfast": file.getvalue()}
        else:
            name = random.choice(("model", "optimizer", "lrfast"))
            data = {k: v for k, v in self._saved.items() if k != name}
        accepted, _ = self.attempt(
            lambda: self._state.load_state_dict(data), lambda: held(self._optimizer)
        )
        if accepted:
            step(self._optimizer)
            self._make()
        return accepted


class WarmupSearches(Target):
    """WarmupSearch.load_state_dict, before, within and after the sweep; what it takes goes on."""

    name = "warm up"
    share = 0.004

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._saved = []
        for steps in (0, 4, 12):
            self._make()
            self._go_on(steps)
            self._saved.append(copy.deepcopy(self._search.state_dict()))
        self._make()

    def _make(self) -> None:
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self._optimizer = lrfast.AdamW(self._model.parameters(), 0.1)
        plan = schedules.one_cycle(30)
        self._search = lrfast.find_in_warmup(self._model, self._optimizer, plan, num_iter=10)

    def _go_on(self, steps: int) -> None:
        for _ in range(steps):
            step(self._optimizer)
            self._search.observe(torch.tensor(1.0))

    def case(self, random: Random) -> bool:
        data = mutated(random, random.choice(self._saved))
        accepted, _ = self.attempt(
            lambda: self._search.load_state_dict(data), lambda: bits(self._search.state_dict())
        )
        if accepted:
            self.attempt(lambda: self._go_on(12))
            self._search.state_dict()
            self._make()
            self._go_on(random.choice((0, 4)))
        return accepted
