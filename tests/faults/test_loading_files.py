"""What loaders of files refuse, by name, and with nothing changed; files are whole or not there."""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import HUGE, Change, held
from results import make_result
from tiny import bits
from torch import Tensor
from tuners import make_tuner

import lrfast
from lrfast import History, RangeTest, Stage
from lrfast._utils.atomic_write import replacing
from lrfast.finetune import EarlyStop, Observe

HISTORIES: list[tuple[str, Any, str]] = [
    ("losses", [1.0], r"losses must be a float64 tensor of 1 dimensions, got \[1.0\]"),
    ("losses", torch.ones(3), "losses must be a float64 tensor .*float32"),
    ("rates", torch.ones(2, 2).double(), "losses, rates and momentum must be as many"),
    ("epochs", [{"valid_loss": 1.0}], "an epoch must hold 'step'"),
    ("epochs", [{"step": "1"}], "step must be a number, got '1'"),
    ("name", None, "name must be a string, got None"),
]


@pytest.mark.parametrize(("name", "value", "message"), HISTORIES)
def test_histories(name: str, value: Any, message: str) -> None:
    stage = Stage("fit", np.ones(3), np.ones((3, 2)), None, ({"step": 3.0},), "completed", 1.0)
    data = History([stage]).to_dict()
    assert len(History.from_dict(data).losses) == 3
    data["stages"][0][name] = value
    with pytest.raises(ValueError, match=message):
        History.from_dict(data)


def test_a_range_test_that_is_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="which is no JSON"):
        RangeTest.from_json(tmp_path / "deep.json")


def test_a_range_test_of_more_points_than_there_is_memory_for(tmp_path: Path) -> None:
    """It may have ended early; only points that it has reached are made."""
    path = tmp_path / "result.json"
    make_result([3.0, 2.0, 1.0], ranges=((1e-4, 1.0), (1e-5, 0.1))).to_json(path)
    content = json.loads(path.read_text())
    content["sweep"]["num_iter"] = HUGE
    path.write_text(json.dumps(content))
    result = RangeTest.from_json(path)
    result.to_csv(tmp_path / "result.csv")
    assert len((tmp_path / "result.csv").read_text().splitlines()) == 4
    content["sweep"]["num_iter"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"num_iter must be a whole number in \[3"):
        RangeTest.from_json(path)


CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "model": (lambda d: d["model"].update({"0.weight": torch.ones(2)}), "0.weight must be a tens"),
    "no model": (lambda d: d.pop("model"), "broken: KeyError: 'model'"),
    "buffers": (lambda d: d.update(buffers={"x": torch.ones(1)}), "broken: KeyError: 'x'"),
    "requires": (lambda d: d["requires_grad"].update({"0.bias": 3}), "requires_grad must be True"),
    "a best value alone": (
        lambda d: d["best"].update(tensors={}),
        "the best model must hold a value and its tensors, or neither",
    ),
    "best": (lambda d: d["best"]["tensors"].popitem(), r"tensors must be \['"),
    "callbacks": (lambda d: d["callbacks"][0].update(waited=-1), "waited must be a whole number"),
    "fewer": (lambda d: d.update(callbacks=[]), "zip"),
    "total": (lambda d: d["callbacks"][1].update(total=torch.ones(2)), "total must be a float64"),
    "history": (lambda d: d["history"].update(stages=3), "stages must be a list, got 3"),
    "python": (lambda d: d["random"].update(python=[3, [1], None]), "random states must be"),
    "gauss": (lambda d: d["random"]["python"].__setitem__(2, []), "python's random state must be"),
    "numpy": (lambda d: d["random"]["numpy"]["state"].update(pos=10**6), r"pos must be .*\[0, 624"),
    "bytes": (
        lambda d: d["random"]["numpy"]["state"]["key"].update(dtype="S2000000000"),
        "dtype must be one of uint32, uint64",
    ),
    "torch": (lambda d: d["random"].update(cpu=torch.ones(7).byte()), "random states must be"),
    "modes": (lambda d: d.update(modes=[1]), "modes must be True or False, got 1"),
    "optimizer": (lambda d: d["optimizer"].pop("state"), "state_dict must hold 'state'"),
    "run": (lambda d: d["run"].update(epochs=HUGE), r"epochs must be a whole number in \[1"),
    "epochs": (lambda d: d["run"].update(epochs=2**30), "epochs must be of 2147483648 steps in"),
    "fewer batches than updates": (
        lambda d: d["run"].update(epoch=0, used=0, rows=[]),
        "step must be 0 at most after the batches used",
    ),
    "more losses than steps": (
        lambda d: d["run"].update(
            losses=torch.ones(100).double(), factors=torch.ones(100).double()
        ),
        "losses must be",
    ),
    "schedules": (lambda d: d["run"]["schedules"].append(d["run"]["schedules"][0]), "schedules mu"),
    "frozen": (lambda d: d["run"].update(frozen=[[0, [True]]]), "frozen must say so of 3 param"),
    "kind": (
        lambda d: d["kind"].update(gradient_accumulation_steps=torch.ones(2)),
        "broken: RuntimeError",
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a stage saves in its middle."""
    path = tmp_path_factory.mktemp("saved") / "half.pt"

    class Save(EarlyStop):
        def on_step_end(self, tuner: Any, step: int, loss: Tensor) -> None:
            if step == 6:  # in the second epoch
                tuner.save(path)

    Save.__qualname__ = "EarlyStop"
    make_observed(Save()).fit_one_cycle(2, 0.01)
    return dict(torch.load(path, weights_only=True))


def make_observed(stop: EarlyStop) -> Any:
    tuner = make_tuner("adamw", keep_best="accuracy", callbacks=[stop])
    tuner.callbacks.append(Observe(lrfast.Plateau(tuner.optimizer), every=2))
    return tuner


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    change, message = CHECKPOINTS[case]
    data = copy.deepcopy(checkpoint)
    change(data)
    torch.save(data, tmp_path / "half.pt")
    taker = make_observed(EarlyStop())
    taker.fit_one_cycle(1, 0.02)

    def left() -> str:
        parts = (taker.model.state_dict(), taker.best.state_dict(), torch.get_rng_state().tolist())
        callbacks = [callback.state_dict() for callback in taker.callbacks]
        modes = [module.training for module in taker.model.modules()]
        stages = list(map(id, taker.history.stages))
        return repr(bits([*parts, callbacks, modes, stages])) + held(taker.optimizer)

    before = left()
    with pytest.raises(ValueError, match=message):
        taker.load(tmp_path / "half.pt")
    assert left() == before and taker._interrupted is None


def test_files_cut_off_anywhere(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save(checkpoint, path)
    whole = path.read_bytes()
    taker = make_observed(EarlyStop())
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="must hold tensors and plain data"):
            taker.load(path)


# Files that take another's place.


def test_a_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real.csv", tmp_path / "link.csv"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with replacing(link) as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_a_new_file_has_the_mode_that_the_process_gives(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with replacing(tmp_path / "new.csv") as file:
            file.write("new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.csv").stat().st_mode) == 0o640


def boom(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        boom(file.write("half"))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    make_result([1.0, 2.0]).to_csv(os.devnull)
    assert not Path(os.devnull).is_file()
    reader, writer = os.pipe()
    make_result([1.0, 2.0]).to_csv(f"/dev/fd/{writer}")
    os.close(writer)
    with open(reader) as file:
        assert len(file.read().splitlines()) == 3


def test_files_that_hold_the_result_are_whole(tmp_path: Path, monkeypatch: Any) -> None:
    """Whatever writes a file does it beside the old one."""
    result, history = make_result([3.0, 2.0, 1.0]), make_tuner("sgd").history
    writers: dict[str, Callable[[Path], Any]] = {
        "result.json": result.to_json,
        "result.csv": result.to_csv,
        "history.csv": history.to_csv,
        "plot.png": result.plot,
    }
    for name, write in writers.items():
        (tmp_path / name).write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                write(tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == len(writers)


def test_who_reads_a_file_goes_on_reading_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        with replacing(path) as writer:
            writer.write("newest")
        assert reader.read() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
