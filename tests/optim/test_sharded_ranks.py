"""Two and four processes with a sharded model, compared with one process that has it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sharded_runs
import torch.distributed as dist
from processes import spawn
from sharded_runs import CASES, Run

import lrfast

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")

WORLDS = (2, 4)
# float64 throughout: what differs is the order in which gradients are averaged.
CLOSE = {"rtol": 1e-11, "atol": 1e-13}
EACH_WORLD = pytest.mark.parametrize("world", WORLDS)
EACH_CASE = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def worlds(folder: Path) -> dict[int, list[dict[Any, Any]]]:
    return {
        world: spawn(sharded_runs.work, world, folder) for world in WORLDS
    }  # four read what two have saved


def alone(case: str, steps: int, infinite_at: int | None = None) -> dict[str, Any]:
    run = Run(case, 0, ())
    if infinite_at is not None:
        run.optimizer._set_options(lrfast.optim.Options(skip_nonfinite=True))
    run.train(0, steps, infinite_at)
    return run.report()


def assert_close(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got["clock"] == wanted["clock"]
    np.testing.assert_allclose(got["norms"], wanted["norms"], **CLOSE)
    for mine, other in zip(got["params"], wanted["params"], strict=True):
        np.testing.assert_allclose(mine, other, **CLOSE)
    for mine, other in zip(got["states"], wanted["states"], strict=True):
        assert mine.keys() == other.keys()
        for name in other:
            np.testing.assert_allclose(mine[name], other[name], **CLOSE, err_msg=name)


@EACH_CASE
@EACH_WORLD
def test_sharded_training_equals_training_alone(case: str, world: int, worlds: Any) -> None:
    """Weights, states, averages and the norm over all parameters; one of them not sharded."""
    wanted = alone(case, sharded_runs.STEPS)
    assert max(wanted["norms"]) > 0
    for seen in worlds[world]:
        assert_close(seen[case], wanted)


@EACH_CASE
@EACH_WORLD
def test_an_infinity_in_one_shard_skips_the_step_everywhere(
    case: str, world: int, worlds: Any
) -> None:
    wanted = alone(case, 3, infinite_at=1)
    assert wanted["clock"] == 2 and wanted["norms"][1] == np.inf
    for seen in worlds[world]:
        assert_close(seen[case, "infinite"], wanted)


@EACH_WORLD
def test_a_scaler_skips_everywhere_what_one_shard_has_found(world: int, worlds: Any) -> None:
    wanted = sharded_runs.scale_gradients(0, 1)
    assert wanted["clocks"] == [1, 1, 2] and wanted["scale"] == 512
    for seen in worlds[world]:
        found = seen["scaler"]
        assert (found["clocks"], found["scale"]) == (wanted["clocks"], wanted["scale"])
        for mine, other in zip(found["params"], wanted["params"], strict=True):
            np.testing.assert_allclose(mine, other, **CLOSE)


@EACH_WORLD
def test_a_norm_costs_one_collective_and_a_step_without_one_none(world: int, worlds: Any) -> None:
    for seen in worlds[world]:
        assert seen["collectives"] == {"norm": 1, "none": 0}


def test_a_mesh_that_replicates_and_shards(worlds: Any) -> None:
    """Every element lies on two processes and counts once."""
    wanted = alone("adamw", sharded_runs.STEPS)
    for seen in worlds[4]:
        assert_close(seen["two dimensions"], wanted)


@pytest.mark.parametrize("case", sharded_runs.SAVED)
@EACH_WORLD
def test_a_checkpoint_is_read_in_another_number_of_processes(
    case: str, world: int, worlds: Any, folder: Path
) -> None:
    """Saved by 2, read by 4 and by 1; saved by 4, read by 1: schedule, norms and averages go on."""
    wanted = alone(case, sharded_runs.STEPS)
    wanted["norms"] = wanted["norms"][sharded_runs.STEPS // 2 :]
    with pytest.warns(UserWarning, match="assuming the intent is to load in a single process"):
        assert_close(sharded_runs.resume(case, 0, 1, str(folder / f"saved{world}")), wanted)
    for seen in worlds[4]:
        assert_close(seen[case, "resumed"], wanted)


def assert_decoded(got: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Blocks that stay whole keep their numbers; those that are cut are rounded once more."""
    weights = (0, 2)
    for place, (mine, other) in enumerate(zip(got, wanted, strict=True)):
        for name in ("exp_avg", "exp_avg_sq"):
            equal = mine[name] == other[name]
            if place not in weights or place == 0:
                assert equal.all(), (place, name)
            largest = np.abs(other[name]).max()
            np.testing.assert_allclose(mine[name], other[name], rtol=0.13, atol=1e-4 * largest)
            assert equal.mean() > 0.7


@EACH_WORLD
def test_states_in_8_bits(world: int, worlds: Any, folder: Path) -> None:
    """No bit changes between as many processes; two processes' states are read by four and one."""
    wanted = worlds[world][0]["coded"]["decoded"]
    for seen in worlds[world]:
        assert seen["coded"]["loaded"] and seen["coded"]["goes on"]
        assert_decoded(seen["coded"]["decoded"], wanted)  # full_tensor() is the same everywhere
    for seen in worlds[4] if world == 2 else ():
        assert_decoded(seen["coded"]["resumed"], wanted)
    with pytest.warns(UserWarning, match="assuming the intent is to load in a single process"):
        alone_ = sharded_runs.CodedRun(0).load(str(folder / f"coded{world}"))
    assert_decoded(alone_.decoded(), wanted)
    alone_.train(3, 4)


@EACH_WORLD
def test_the_range_test_of_a_sharded_model(world: int, worlds: Any) -> None:
    first = worlds[world][0]["range test"]
    for seen in worlds[world]:
        found = seen["range test"]
        assert found["no trace"] and found["clock"] == 2
        np.testing.assert_array_equal(found["losses"], first["losses"])
        np.testing.assert_array_equal(found["lrs"], first["lrs"])
    assert len(first["losses"]) == 12


@pytest.mark.parametrize("case", ["bucket view", "static graph"])
def test_replicated_training_equals_training_alone(case: str, worlds: Any) -> None:
    wanted = sharded_runs.train_replicated(0, 1)
    for seen in worlds[2]:
        for mine, other in zip(seen[case]["params"], wanted["params"], strict=True):
            np.testing.assert_allclose(mine, other, **CLOSE)


@EACH_WORLD
def test_a_process_that_dies_is_an_error_to_the_others(world: int, worlds: Any) -> None:
    for seen in worlds[world][:-1]:
        assert "no error" not in seen["dead"] and seen["dead"], seen["dead"]
    assert "dead" not in worlds[world][-1]
