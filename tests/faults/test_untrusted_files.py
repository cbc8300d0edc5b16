"""Files of anybody's: what would run code is refused, by every loader; ours need no trust."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import OPTIMIZERS, make_batches, make_model
from torch import Tensor, nn
from tuners import make_tuner

import lrfast
from lrfast import FineTuner, History, RangeTest, schedules
from lrfast.finetune import Callback
from lrfast.schedules import Schedule

REFUSED = r"must hold tensors and plain data that torch.save wrote.*nothing was executed"


class Bomb:
    """Creates a file where somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "exploded")


def test_the_bomb_works(bomb: Bomb, tmp_path: Path) -> None:
    torch.save({"model": bomb}, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert bomb.path.exists()


def at_the_top(data: dict[str, Any], bomb: Bomb) -> Any:
    return bomb


def among_the_entries(data: dict[str, Any], bomb: Bomb) -> Any:
    return {**data, "best": {**data["best"], "value": bomb}}


def instead_of_a_tensor(data: dict[str, Any], bomb: Bomb) -> Any:
    return {**data, "model": {**data["model"], "0.weight": bomb}}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", [at_the_top, among_the_entries, instead_of_a_tensor])
def test_a_checkpoint_with_a_bomb(place: Any, legacy: bool, bomb: Bomb, tmp_path: Path) -> None:
    tuner = make_tuner("adamw", keep_best="accuracy")
    tuner.fit_one_cycle(1, 0.02)
    path = tmp_path / "one.pt"
    tuner.save(path)
    data = torch.load(path, weights_only=True)
    torch.save(place(data, bomb), path, _use_new_zipfile_serialization=not legacy)
    before = copy.deepcopy(tuner.optimizer.state_dict()), copy.deepcopy(tuner.model.state_dict())
    with pytest.raises(ValueError, match=REFUSED) as caught:
        tuner.load(path)
    assert "weights_only=False" not in str(caught.value)
    assert not bomb.path.exists()
    after = tuner.optimizer.state_dict(), tuner.model.state_dict()
    assert all(map(torch.equal, tensors_in(before), tensors_in(after)))


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return [each for item in inner for each in tensors_in(item)]
    return [value] if isinstance(value, Tensor) else []


def test_a_plain_pickle_instead_of_a_checkpoint(bomb: Bomb, tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(pickle.dumps(bomb))
    with pytest.raises(ValueError, match=REFUSED):
        make_tuner("sgd").load(tmp_path / "one.pt")
    assert not bomb.path.exists()


def test_a_sharded_state_with_a_bomb(bomb: Bomb) -> None:
    model = nn.Linear(2, 1)
    optimizer = lrfast.AdamW(model.parameters(), schedule=schedules.cosine(9))
    state = lrfast.ShardedState(model, optimizer)
    saved = state.state_dict()
    for content in (bomb, {"schedules": [bomb], "schedule_step": 0}):
        file = io.BytesIO()
        torch.save(content, file)
        with pytest.raises(ValueError, match=f"^lrfast {REFUSED}"):
            state.load_state_dict({**saved, "lrfast": file.getvalue()})
    with pytest.raises(ValueError, match=f"^lrfast {REFUSED}"):
        state.load_state_dict({**saved, "lrfast": pickle.dumps(bomb)})
    with pytest.raises(ValueError, match="lrfast must be bytes, got <"):
        state.load_state_dict({**saved, "lrfast": bomb})
    assert not bomb.path.exists()


LOADERS: dict[str, Callable[[Path], Any]] = {
    "range test": RangeTest.from_json,
    "schedule": lambda path: Schedule.from_dict(path.read_bytes()),  # type: ignore[arg-type]
    "history": lambda path: History.from_dict(path.read_bytes()),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_of_plain_data_know_no_pickles(loader: str, bomb: Bomb, tmp_path: Path) -> None:
    for content in (pickle.dumps(bomb), json.dumps({"format": 1, "sweep": "!!python"}).encode()):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match="must"):
            LOADERS[loader](tmp_path / "file")
    assert not bomb.path.exists()


def test_what_is_no_longer_a_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_tuner("sgd").load(tmp_path / "none.pt")


# What we write needs no trust.


class Saver(Callback):
    """Saves in the middle of a stage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, tuner: FineTuner, step: int, loss: Tensor) -> None:
        if step == 3:
            tuner.save(self.path)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_our_checkpoints_are_plain_data(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if kind.startswith("torch") else {"ema_decay": 0.9}
    callbacks = [lrfast.finetune.EarlyStop(), Saver(tmp_path / "half.pt")]
    tuner = make_tuner(kind, keep_best="accuracy", callbacks=callbacks, **options)
    tuner.fit_one_cycle(1, 0.02)
    data = torch.load(tmp_path / "half.pt", weights_only=True)
    assert data["run"]["step"] == 3


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("make", [lrfast.Plateau, lrfast.Greedy])
def test_our_state_dicts_are_plain_data(make: Any, kind: str, tmp_path: Path) -> None:
    model = make_model()
    optimizer: Any = OPTIMIZERS[kind](model.parameters())
    optimizer.set_schedule(schedules.one_cycle(20, momentum=(0.9, 0.8)))
    make(optimizer, window=3).observe(1.0)
    for inputs, targets in make_batches(3):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    taker: Any = OPTIMIZERS[kind](make_model().parameters())
    taker.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert taker.schedule_step == 3 and isinstance(taker.loss_schedule, make)
