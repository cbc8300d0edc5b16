"""Objects leave their process: results, histories, schedules and callbacks are copied whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny import cross_entropy, make_batches
from torch import Tensor, nn

import lrfast
from lrfast import finetune, schedules
from lrfast.integrations._shared import LRFinderBase
from lrfast.snapshot import Snapshot

BATCHES = make_batches(6)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def optimizer_of(model: nn.Module) -> lrfast.AdamW:
    schedule = schedules.one_cycle(50)
    return lrfast.AdamW(model.parameters(), 1e-2, schedule=schedule, telemetry=5, ema_decay=0.9)


@cache
def objects() -> dict[str, Any]:
    """What a user may hold after training, by name."""
    model = network()
    optimizer = optimizer_of(model)
    arguments = (model, optimizer, BATCHES, cross_entropy)
    found = lrfast.lr_find(*arguments, num_iter=20, repeats=2, verify=2, progress=False)
    finder = LRFinderBase("steep")
    finder._take(found, optimizer)
    for inputs, targets in BATCHES[:2]:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    stop = finetune.EarlyStop()
    tuner = lrfast.FineTuner(
        *(network(), BATCHES, BATCHES), loss_fn=cross_entropy, progress=False,
        keep_best="valid_loss", callbacks=[stop], metrics={"accuracy": lrfast.accuracy},
    )  # fmt: skip
    recipe = tuner.recipe(epochs=(1, 1))
    tuner.lr_find(num_iter=20)
    tuner.fit_one_cycle(1, 1e-2)
    retest = lrfast.Retest(*arguments, every=1, budget=None, num_iter=20, progress=False)
    retest.epoch_end()
    curve = lrfast.LossCurve(3)
    curve.record(torch.tensor(2.0), lr=0.1)
    plateau = lrfast.Plateau(lrfast.SGD(network().parameters(), lr=0.1))
    greedy = lrfast.Greedy(lrfast.SGD(network().parameters(), lr=0.1))
    for schedule in (plateau, greedy):
        schedule.observe(torch.tensor(1.0))
    return {
        "range test": found,
        "applied rates": found.apply(optimizer, "steep"),
        "comparison": found.compare(found),
        "finder's callback": finder,
        "sweep": found.sweep,
        "race": found.race,
        "outcome": found.outcome,
        "suggestion": found.suggestion,
        "optimizer": optimizer,
        "telemetry": optimizer.telemetry(),
        "planned": optimizer.planned(),
        "sharded state": lrfast.ShardedState(model, optimizer),
        "snapshot": Snapshot(model, optimizer),
        "tuner": tuner,
        "history": tuner.history,
        "stage": tuner.history.stages[0],
        "early stop": stop,
        "observe": finetune.Observe(plateau),
        "recipe": recipe,
        "planned stage": recipe.stages[0],
        "retest": retest,
        "retest's entry": retest.log[0],
        "curve": curve,
        "curve's status": curve.status(),
        "plateau": plateau,
        "greedy": greedy,
        "schedule": schedules.one_cycle(20) * schedules.linear(1, 0.1, 20),
        "function": schedules.from_function(lambda step: 0.5 + step, 5),
        "layer groups": lrfast.layer_groups(network()),
        "param groups": lrfast.discriminative(network(), 0.1),
        "timetable": lrfast.gradual(3),
        "error": lrfast.RecaptureNeeded("reason"),
    }


NAMES = tuple("""
range test|applied rates|comparison|finder's callback|sweep|race|outcome|suggestion|optimizer
telemetry|planned|sharded state|snapshot|tuner|history|stage|early stop|observe|recipe
planned stage|retest|retest's entry|curve|curve's status|plateau|greedy|schedule|function
layer groups|param groups|timetable|error
""".strip().replace("\n", "|").split("|"))  # fmt: skip

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def plain(value: Any) -> Any:
    """What a copy must hold, for a comparison: numbers and texts, nested."""
    if isinstance(value, Tensor):
        return plain(value.detach().double().cpu().numpy())
    if isinstance(value, np.ndarray):
        return [value.shape, [repr(float(each)) for each in value.ravel()]]
    if isinstance(value, dict) or type(value).__name__ == "mappingproxy":
        return [(plain(key), plain(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, int | float | str | None):
        return repr(value)
    return type(value).__name__


def public(attributes: dict[str, Any]) -> dict[str, Any]:
    """Public attributes by name; a figure's canvas, which matplotlib makes anew, is none."""
    names = sorted(n for n in attributes if not n.startswith("_") and n != "canvas")
    return {name: attributes[name] for name in names}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_holds_the_same(name: str, way: str) -> None:
    value = objects()[name]
    copied = WAYS[way](value)
    assert type(copied) is type(value)
    kept = vars(value) if hasattr(value, "__dict__") else {}
    theirs = vars(copied) if hasattr(copied, "__dict__") else {}
    assert plain(public(kept)) == plain(public(theirs))
    assert repr(copied).partition(" at 0x")[0] == repr(value).partition(" at 0x")[0]


def test_the_table_has_every_object() -> None:
    assert set(NAMES) == set(objects())


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_range_test_goes_on(way: str) -> None:
    """It suggests, compares and applies; its suggestions stay read-only."""
    found = objects()["range test"]
    copied = WAYS[way](found)
    assert copied.suggestion == found.suggestion and copied.table() == found.table()
    optimizer = optimizer_of(network())
    assert copied.apply(optimizer, "steep").new == found.apply(optimizer, "steep").new
    with pytest.raises(TypeError, match="does not support item assignment"):
        copied.suggestions["auto"] = None


class OwnTuner(lrfast.FineTuner):
    """A tuner with an attribute that a curve of a former version had."""

    stop: float


class OwnCurve(lrfast.LossCurve):
    """A curve with such an attribute."""

    stop: float


@pytest.mark.parametrize("way", WAYS)
def test_attributes_of_a_subclass_keep_their_names(way: str) -> None:
    tuner = OwnTuner(network(), BATCHES, loss_fn=cross_entropy, progress=False)
    for own in (tuner, OwnCurve(3, diverge_threshold=5.0)):
        own.stop = 4.5
        copied = WAYS[way](own)
        assert copied.stop == 4.5 and vars(copied).keys() == vars(own).keys()


@pytest.mark.parametrize("way", WAYS)
def test_a_captured_step_says_that_it_cannot_be_copied(way: str) -> None:
    model = network()
    optimizer = lrfast.SGD(model.parameters(), lr=0.1)

    def train_step(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    step = lrfast.capture(train_step, optimizer, BATCHES[0])
    with pytest.raises(TypeError, match=r"cannot be copied or pickled.*call lrfast\.capture"):
        WAYS[way](step)
