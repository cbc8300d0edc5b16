"""Targets whose data are numbers, strings and lists: schedules, range tests, histories, logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

import lrfast
from lrfast import History, RangeTest, Retest, schedules
from lrfast._utils.extension import extension
from lrfast.schedules import Schedule

from .mutations import damage
from .target import Finding, Target, bits, mutated

STEPS = (0, 1, 2, 9, 10, 100, 12345, 2**31, 2**40, 2**52)


def make_schedules() -> list[Schedule]:
    """One of each kind of segment and table, and some that are composed."""
    s = schedules
    own = s.from_function(lambda step: 1 / (1 + step), 12)
    return [
        *(s.one_cycle(20, momentum=(0.95, 0.85)), s.one_cycle(30, compat="fastai"), own),
        *(s.cosine(9, 0.1), s.exponential(9, 0.8), s.polynomial(9, 2.0), s.rex(9), s.wsd(9, 3, 3)),
        *(s.inverse_sqrt(3, 9), s.multistep([2, 3, 3], 0.5), s.step(3, 0.5), s.sgdr(4, 2, 3)),
        *(s.cyclic(3, mode="exp_range", gamma=0.9), s.cyclic(3, mode="triangular2")),
        *(s.warmup(4), s.flat_cosine(20), s.slanted_triangular(20), s.sweep(1e-5, 1.0, 20)),
        s.warmup(3).then(own).then(s.cosine(8)).with_weight_decay(s.linear(1.0, 2.0, 9)),
        s.warmup(3) * s.cosine(9).repeat() * s.step(4, 0.7),
        s.per_epoch(s.cosine(5), 3) * s.warmup(4),
    ]


class Schedules(Target):
    """Schedule.from_dict: what it takes is evaluated, composed and written again."""

    name = "schedules"
    share = 0.4

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._saved = [each.to_dict() for each in make_schedules()]
        self._saved += [json.loads(json.dumps(each)) for each in self._saved]

    def case(self, random: Random) -> bool:
        data = mutated(random, random.choice(self._saved))
        accepted, schedule = self.attempt(lambda: Schedule.from_dict(data))
        if accepted:
            self._use(schedule)
        return accepted

    def _use(self, schedule: Schedule) -> None:
        for channel in (schedule.values, schedule.momentum, schedule.weight_decay):
            values = channel(STEPS)
            if values is not None and values.shape != (len(STEPS),):
                raise Finding(f"values of shape {values.shape}")
        if Schedule.from_dict(schedule.to_dict()) != schedule:
            raise Finding("it is another schedule when it is written and read")
        if not schedule.describe().startswith(schedule.name):
            raise Finding("it does not describe itself")
        schedule.fingerprint()
        schedule.then(schedules.constant()).at(3)


class EngineTables(Target):
    """The engine's own reader, to which nothing that Python checks has been checked."""

    name = "engine"
    share = 0.241
    longest = 2**30  # pybind lists what it was called with

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._saved = [each.encode() for each in make_schedules()]
        self._steps = np.array(STEPS)

    def case(self, random: Random) -> bool:
        tables = mutated(random, random.choice(self._saved))
        evaluate = extension().evaluate_schedule
        accepted, found = self.attempt(lambda: evaluate(tables, self._steps))
        if accepted and found[0].shape != (len(STEPS),):
            raise Finding(f"values of shape {found[0].shape}")
        return accepted


def make_range_tests() -> list[RangeTest]:
    """A plain one, one with everything, and one without a point."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = lrfast.SGD(lrfast.discriminative(model, slice(0.01, 0.1)))
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(6)]
    options: dict[str, Any] = {"num_iter": 12, "progress": False, "end_lr": 1.0}
    loss_fn = nn.functional.mse_loss
    plain = lrfast.lr_find(model, optimizer, data, loss_fn, **options)
    options |= {"repeats": 2, "verify": 2, "vary": 1, "mode": "linear"}
    return [plain, lrfast.lr_find(model, optimizer, data, loss_fn, **options)]


class RangeTests(Target):
    """RangeTest.from_json, from changed content and from damaged bytes."""

    name = "range tests"
    share = 0.12

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._texts = []
        for result in make_range_tests():
            result.to_json(self.path)
            self._texts.append(self.path.read_text())
        self._contents = [json.loads(text) for text in self._texts]
        self._optimizer = lrfast.SGD([nn.Parameter(torch.zeros(1)) for _ in range(2)], lr=0.1)

    def case(self, random: Random) -> bool:
        if random.random() < 0.3:
            data = damage(random, random.choice(self._texts).encode())
        else:
            content = mutated(random, random.choice(self._contents))
            data = _json(content, random.random() < 0.5)
        self.path.write_bytes(data)
        accepted, result = self.attempt(lambda: RangeTest.from_json(self.path))
        if accepted:
            self._use(result, random)
        return accepted

    def _use(self, result: RangeTest, random: Random) -> None:
        for text in (str(result), repr(result), result.table()):
            text.encode()
        for rule in result.suggestions:
            self.attempt(lambda rule=rule: result.apply(self._optimizer, rule).undo())
        if result.band is not None and len(result.band[0]) != len(result.lrs):
            raise Finding("a band of another length")
        if random.random() < 0.1:
            result.to_csv(self.path)
            self.attempt(result.terminal_plot)
        result.to_json(self.path)
        again = RangeTest.from_json(self.path)
        if bits(vars(again)) != bits(vars(result)):
            raise Finding("it is another range test when it is written and read")


def _json(content: Any, ascii_only: bool) -> bytes:
    try:
        text = json.dumps(content, default=str, ensure_ascii=ascii_only)
        return text.encode("utf-8", "surrogatepass")
    except (RecursionError, TypeError, ValueError):  # names that are none, circles
        return b"[" * 5000 + b"]" * 5000


class Histories(Target):
    """History.from_dict, and the CSV file that it then writes."""

    name = "histories"
    share = 0.08

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        generator = np.random.default_rng(0)
        self._saved = History(
            [
                lrfast.Stage(
                    *("one-cycle", generator.random(6), generator.random((6, 2))),
                    *(momentum, ({"step": 3.0, "valid_loss": math.nan}, {"step": 6.0, "a": 1.0})),
                    *("completed", 1.5),
                )
                for momentum in (None, generator.random(6))
            ]
        ).to_dict()

    def case(self, random: Random) -> bool:
        data = mutated(random, self._saved)
        accepted, history = self.attempt(lambda: History.from_dict(data))
        if accepted:
            if len(history.losses) != sum(len(stage.losses) for stage in history.stages):
                raise Finding("losses are missing")
            if random.random() < 0.2:
                history.to_csv(self.path)
            rows = [row["step"] for row in history.epochs]
            if bits(History.from_dict(history.to_dict()).to_dict()) != bits(history.to_dict()):
                raise Finding(f"another history when it is written and read; steps {rows}")
        return accepted


class Retests(Target):
    """Retest.load_state_dict, and its table."""

    name = "retests"
    share = 0.04

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = lrfast.SGD(model.parameters(), lr=0.1)
        data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(6)]
        options: dict[str, Any] = {"every": 1, "budget": None, "num_iter": 10, "progress": False}
        self._retest = Retest(model, optimizer, data, nn.functional.mse_loss, **options)
        for loss in (1.0, 0.9):
            self._retest.epoch_end(loss)
        self._saved = self._retest.state_dict()

    def case(self, random: Random) -> bool:
        retest = self._retest
        data = mutated(random, self._saved)

        def state() -> Any:
            return bits({k: v for k, v in retest.state_dict().items() if k != "elapsed"})

        accepted, _ = self.attempt(lambda: retest.load_state_dict(data), state)
        if accepted:
            retest.table().encode()
            retest.to_csv(self.path)
            retest.load_state_dict(self._saved)
        return accepted
