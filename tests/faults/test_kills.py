"""Runs that are killed at any moment, and go on from the newest file, end as if undisturbed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
SEEDS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-W", "ignore", str(HELPERS / "killed_runs.py"), str(folder)]
    options: Any = {"cwd": ROOT, "capture_output": True, "text": True}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([*command, str(SEEDS)], env=environment, **options)
    assert done.returncode == 0, done.stderr
    return dict(pickle.loads((folder / "found.pickle").read_bytes()))


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("run", ["tuned", "plain"])
def test_a_killed_run_ends_as_if_undisturbed(run: str, seed: int, found: Any) -> None:
    """Weights, averages, states, schedule, Plateau, history and random numbers, to the bit."""
    torn = found[f"{run} {seed}"]
    assert torn["kills"] >= 2
    assert torn["result"] == found[run]


def test_runs_were_killed_everywhere(found: Any) -> None:
    torn = [value for name, value in found.items() if name[-1].isdigit()]
    moments = {moment for each in torn for moment in each["moments"]}
    assert "amid the bytes" in moments and sum(each["kills"] for each in torn) > 8
    assert sum(each["torn files"] for each in torn) > 0


def test_other_files_are_whole_whenever_one_looks(found: Any) -> None:
    assert found["files"] == [(41, 13)] * 5
